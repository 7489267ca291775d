//! Event log in, store out. One writer per partition; the log's membership says which partitions are this
//! process's, the store's fencing epoch makes a stale owner harmless.
//!
//! * `partition`: the loop of one partition, live or in a replay
//! * [`Projector`]: starts and stops those tasks as partitions come and go
//! * [`replay`]: the same loop from the beginning, into an empty store
//! * [`Progress`]: where the partitions stand, for metrics and readiness; [`measure`] sets the gauges

mod apply;
mod fold_panic;
mod lag;
mod metrics;
mod outage;
mod partition;
mod progress;
mod projector;
mod replay;
mod settings;

pub use lag::measure;
pub use metrics::ProjectorMetrics;
pub use progress::{FailureKind, PartitionState, Progress, ProjectorState, Stuck};
pub use projector::{Projector, ProjectorError};
pub use replay::{ReplayError, ReplayProgress, ReplayReport, replay};
pub use settings::{Fold, ProjectorSettings};
