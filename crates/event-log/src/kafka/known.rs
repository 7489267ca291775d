//! The topic as it was when its log was last opened with a spool, kept in the spool's directory: by it a collector can start while
//! the cluster is away.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Identity and size of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownTopic {
    pub(super) cluster: String,
    pub(super) id: String,
    pub(super) partitions: u32,
}

impl KnownTopic {
    /// The topic of this name, if the directory knows it.
    pub(super) fn read(directory: &Path, topic: &str) -> Option<Self> {
        let text = fs::read_to_string(path(directory)).ok()?;
        let mut lines = text.lines();
        if lines.next()? != topic {
            return None;
        }
        let (cluster, id) = (lines.next()?.to_owned(), lines.next()?.to_owned());
        Some(Self { cluster, id, partitions: lines.next()?.parse().ok()? })
    }

    /// Remembers the topic of this name in place of another one. Durable on return.
    pub(super) fn write(&self, directory: &Path, topic: &str) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        let (path, new) = (path(directory), directory.join("topic.new"));
        let mut file = File::create(&new)?;
        writeln!(file, "{topic}\n{}\n{}\n{}", self.cluster, self.id, self.partitions)?;
        file.sync_all()?;
        fs::rename(new, path)?;
        File::open(directory)?.sync_all()
    }
}

fn path(directory: &Path) -> PathBuf {
    directory.join("topic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_known_by_its_name_and_a_torn_file_knows_none() {
        let directory = std::env::temp_dir().join(format!("dashi-known-{}", uuid::Uuid::now_v7()));
        assert_eq!(KnownTopic::read(&directory, "events"), None);
        let known = KnownTopic { cluster: "c".to_owned(), id: "AAAA".to_owned(), partitions: 8 };
        known.write(&directory, "events").expect("it can be written");
        assert_eq!(KnownTopic::read(&directory, "events"), Some(known.clone()));
        assert_eq!(KnownTopic::read(&directory, "others"), None);
        fs::write(path(&directory), "events\nc\nAAAA").expect("it can be written");
        assert_eq!(KnownTopic::read(&directory, "events"), None);
        known.write(&directory, "events").expect("it can be written again");
        assert_eq!(KnownTopic::read(&directory, "events"), Some(known));
        fs::remove_dir_all(directory).expect("it can be removed");
    }
}
