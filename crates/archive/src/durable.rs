//! Files that are complete or not there: written under a temporary name, fsynced, renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Ending of the name of a file that is being written.
pub(crate) const TEMPORARY: &str = ".partial";

/// A file that gets its name when it is complete. Dropping it before removes it.
pub(crate) struct DurableFile {
    path: PathBuf,
    temporary: PathBuf,
    file: Option<BufWriter<File>>,
    written: u64,
}

impl DurableFile {
    /// Begins the file; its directory is made if it is not there. A rest of an earlier attempt is overwritten.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let directory = directory_of(path);
        fs::create_dir_all(directory)?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(TEMPORARY);
        let temporary = directory.join(name);
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
        Ok(Self { path: path.to_owned(), temporary, file: Some(BufWriter::new(file)), written: 0 })
    }

    /// Fsyncs the file and gives it its name. Returns its size in bytes. Durable on return, name included.
    pub(crate) fn finish(mut self) -> io::Result<u64> {
        if let Some(mut file) = self.file.take() {
            let synced = file.flush().and_then(|()| file.get_ref().sync_all());
            let named = synced.and_then(|()| fs::rename(&self.temporary, &self.path));
            if let Err(error) = named {
                let _ = fs::remove_file(&self.temporary);
                return Err(error);
            }
        }
        sync_directory(directory_of(&self.path))?;
        Ok(self.written)
    }
}

impl Write for DurableFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let written = file.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for DurableFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The directory of a file; that of a bare name is the current one.
pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
