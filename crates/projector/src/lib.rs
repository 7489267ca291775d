//! Event log in, store out. One writer per partition; the log's membership says which partitions are this
//! process's, the store's fencing epoch makes a stale owner harmless.
//!
//! * `partition`: the story of one partition
//! * [`Projector`]: starts and stops those stories as partitions come and go
//! * [`replay`]: the same story from the beginning, into an empty store

mod apply;
mod lag;
mod metrics;
mod partition;
mod projector;
mod replay;
mod story;

pub use metrics::ProjectorMetrics;
pub use projector::{Projector, ProjectorError};
pub use replay::{Progress, ReplayError, ReplayReport, replay};
pub use story::ProjectorSettings;
