//! The event log in files.
//!
//! * [`archive()`]: keeps closed ranges of a log in a directory or an object store; [`Archive`] is what it makes
//! * [`export()`]: writes a log's records to NDJSON or Parquet files
//! * [`rewrite()`]: puts tombstones into the places of records that erasures cover
//! * [`ArchiveReader`]: reads them in order, for a replay beyond the log's retention
//! * [`write_record`], [`read_record`]: one record as a line of NDJSON, which archives and exports share

mod archive;
mod archiver;
mod durable;
mod error;
mod export;
mod line;
mod manifest;
mod place;
mod read;
mod rewrite;
mod segment;
mod verify;

pub use archive::Archive;
pub use archiver::{ArchiveProgress, ArchiveReport, ArchiveSettings, PartitionReport, archive, holder};
pub use error::ArchiveError;
pub use export::{
    Compression, ExportProgress, ExportReport, ExportSettings, ExportTo, ExportedFile, Format, export,
};
pub use line::{LineError, read_record, write_record};
pub use manifest::{Manifest, Segment};
pub use place::Place;
pub use read::{ArchiveReader, Archived};
pub use rewrite::{RewriteProgress, RewriteReport, rewrite};
pub use verify::{Verification, VerifyProgress};
