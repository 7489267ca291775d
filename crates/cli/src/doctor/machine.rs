//! The machine: room on disks, and open files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dashi_config::{LogUrl, Settings, StoreUrl, parse_log_url, parse_store_url};

use super::Finding;
use crate::open_files;

/// Room at which events are refused soon, and at which it is time to make some, in bytes.
const ROOM_FAIL: u64 = 200 * 1024 * 1024;
const ROOM_WARN: u64 = 2 * 1024 * 1024 * 1024;

/// Bytes that an event takes in the log.
const EVENT: u64 = 700;

/// A line for each disk on which log, store or spool lie.
pub fn disks(settings: &Settings) -> Vec<Finding> {
    let mut places: Vec<(&str, PathBuf)> = Vec::new();
    match parse_log_url(&settings.log) {
        Ok(LogUrl::Sqlite(path)) => places.push(("the log", path)),
        Ok(LogUrl::Kafka { .. }) if settings.ingest.spool => {
            places.push(("the spool", PathBuf::from(&settings.ingest.spool_directory)));
        }
        _ => {}
    }
    if let Ok(StoreUrl::Sqlite(path)) = parse_store_url(&settings.store) {
        places.push(("the store", path));
    }
    let mut by_disk: BTreeMap<u64, (Vec<&str>, u64, PathBuf)> = BTreeMap::new();
    let mut findings = Vec::new();
    for (name, path) in places {
        let directory = nearest(&path);
        match rustix::fs::statvfs(&directory) {
            Ok(disk) => {
                let room = disk.f_bavail.saturating_mul(disk.f_frsize);
                by_disk.entry(disk.f_fsid).or_insert_with(|| (Vec::new(), room, directory)).0.push(name);
            }
            Err(error) => findings.push(Finding::warn(
                "disk",
                format!("the room for {name} in {} is not known: {error}", directory.display()),
                "look at the directory's rights",
            )),
        }
    }
    findings.extend(
        by_disk.into_values().map(|(names, room, directory)| of_room(&names.join(" and "), &directory, room)),
    );
    findings
}

fn of_room(names: &str, directory: &Path, room: u64) -> Finding {
    let found = format!(
        "{:.1} GiB are free for {names} in {}, {:.1} million events in the log",
        room as f64 / 1_073_741_824.0,
        directory.display(),
        (room / EVENT) as f64 / 1e6
    );
    match room {
        ..ROOM_FAIL => Finding::fail("disk", found, "make room at once: without it events are answered 503"),
        ROOM_FAIL..ROOM_WARN => Finding::warn("disk", found, "make room, or move the files to a larger disk"),
        _ => Finding::ok("disk", found),
    }
}

/// The directory in which a file lies or would lie: the nearest one that is there.
fn nearest(path: &Path) -> PathBuf {
    let there = path.ancestors().find(|ancestor| ancestor.is_dir());
    there.filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// Whether there are files for as many connections as the settings allow.
pub fn files(settings: &Settings) -> Finding {
    let (fitting, wanted) = open_files::room(settings);
    if fitting < wanted {
        Finding::warn(
            "files",
            format!(
                "this process may open files for {fitting} connections, and ingest.connections_max is {wanted}"
            ),
            "raise the limit (`ulimit -n`, LimitNOFILE with systemd), or lower ingest.connections_max",
        )
    } else {
        Finding::ok("files", format!("enough for {wanted} connections"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn little_room_is_warned_of_and_hardly_any_fails() {
        for (room, level) in [
            (ROOM_FAIL - 1, Level::Fail),
            (ROOM_FAIL, Level::Warn),
            (ROOM_WARN - 1, Level::Warn),
            (ROOM_WARN, Level::Ok),
        ] {
            assert_eq!(of_room("the log", Path::new("/data"), room).level, level, "{room}");
        }
        assert!(of_room("the log", Path::new("/data"), 7_000_000_000).found.contains("10.0 million events"));
    }

    #[test]
    fn a_file_that_is_not_there_would_lie_in_the_nearest_directory() {
        assert_eq!(nearest(Path::new("/nowhere/at/all/log.db")), Path::new("/"));
        assert_eq!(nearest(Path::new("nowhere/log.db")), Path::new("."));
    }
}
