//! Imports: history of other stores and files in, event log out. The projection makes the rows.
//!
//! * [`Source`]: a place that history comes from, and how its parts become records (`source`)
//! * [`import`]: appends the records, in batches with many in flight, and can go on where it was killed (`importer`)
//! * `state`: the file that shows how far an import has come; `tail`: the records behind that, found in the log
//! * [`Pacer`]: how much history may be appended now, so that live events do not wait for it (`pacing`)
//! * `rejects`: the file of lines that cannot be taken
//!
//! Every record has an id that is the source's own or is computed of the source, so a second import of the same history
//! makes only copies, which change no row.

mod batch;
mod equal_lines;
mod error;
mod importer;
mod lines;
mod pacing;
mod rejects;
mod source;
mod state;
mod tail;

pub use error::ImportError;
pub use importer::{ImportSettings, Progress, Report, import};
pub use pacing::{Admitted, Pacer};
pub use source::access_log::Format;
pub use source::{FileSource, FileSourceKind, PastSettings, Source, UmamiSource};
