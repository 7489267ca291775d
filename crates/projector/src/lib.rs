//! Event log in, store out. One writer per partition: the log's membership assigns partitions to this process, the
//! store's fencing epoch makes a stale owner harmless.
//!
//! * `partition`: the loop of one partition, live or in a replay
//! * [`Projector`]: starts and stops the tasks of partitions as they are assigned and revoked
//! * [`replay()`]: the same loop from the beginning to an exact end, into a store of its own
//! * [`Rebuild`]: a new generation of the tables beside the live one, made by a replay, and its swap
//! * [`Progress`]: states and checkpoints of the partitions, for metrics and readiness; [`measure`] sets the gauges

mod apply;
mod budget;
mod fold_panic;
mod fold_threads;
mod lag;
mod layout;
mod letters;
mod metrics;
mod outage;
mod partition;
mod progress;
mod projector;
mod reading;
mod rebuild;
mod record_spans;
mod replay;
mod settings;
mod source;
mod state;
mod summary;
mod survey;
mod tail;

pub use lag::measure;
pub use metrics::ProjectorMetrics;
pub use progress::{Progress, Stuck};
pub use projector::{Projector, ProjectorError};
pub use rebuild::{
    Building, GenerationComparison, Rebuild, RebuildError, RebuildStep, Rebuilt, Standing, StandingReader,
    measure_rebuild,
};
pub use replay::plan::{PlanFrom, PlanScope, ReplayPlan, Sample, plan};
pub use replay::{ReplayEnd, ReplayError, ReplayOptions, ReplayProgress, ReplayReport, replay};
pub use settings::{Fold, ProjectorSettings};
pub use state::{FailureKind, PartitionState, ProjectorState};
