//! A rebuild: a new generation of the tables beside the live one, made of the log by a replay that follows the live
//! checkpoints, until the two are so close that a swap holds the projector for a moment only.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::{Duration, Instant};

use async_recursion::async_recursion as boxed;
use dashi_archive::Archive;
use dashi_domain::fold::PROJECTION_VERSION;
use dashi_domain::position::{Checkpoint, LogId, Offset, Partition};
use dashi_event_log::{EventLog, PartitionCheckpoint};
use dashi_store::{
    Comparison, Foreign, Generation, GenerationError, GenerationState, IndexProgress, PartitionState,
    Snapshot, Store, StoreError, SwapError, Swapped, TableComparison, compare_snapshots,
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::metrics::ProjectorMetrics;
use crate::outage::chain;
use crate::replay::{ReplayEnd, ReplayError, ReplayOptions, ReplayProgress, ReplayReport, replay};
use crate::settings::ProjectorSettings;

/// The values that a rebuild works with.
#[derive(Clone)]
pub struct Rebuild {
    /// The log.
    pub log: EventLog,
    /// The live store.
    pub store: Store,
    /// Fold, rules and limits.
    pub settings: ProjectorSettings,
    /// Partitions that are replayed at once.
    pub jobs: NonZeroUsize,
    /// Most records per second, over all partitions; `None` for no limit.
    pub rate: Option<NonZeroU32>,
    /// The archive of the log, read where the log does not begin yet.
    pub archive: Option<Archive>,
    /// Counts the records.
    pub metrics: ProjectorMetrics,
    /// Stops it between batches.
    pub stop: CancellationToken,
}

/// The step that a rebuild is at.
#[derive(Debug, Clone)]
pub enum RebuildStep {
    /// It replays the log.
    Replaying(ReplayProgress),
    /// It builds indexes.
    Indexing(IndexProgress),
    /// It applies the records that came meanwhile.
    CatchingUp(ReplayProgress),
}

/// Result of a rebuild.
#[derive(Debug, Clone, Serialize)]
pub struct Rebuilt {
    /// The generation.
    pub generation: u32,
    /// Offsets that this run applied.
    pub records: u64,
    /// Records that were applied, earlier runs' included.
    pub applied: u64,
    /// Records that were duplicates, earlier runs' included.
    pub duplicate: u64,
    /// Records that became dead letters, earlier runs' included.
    pub dead: u64,
    /// Seconds that replaying took in this run, with catching up.
    pub replay_s: f64,
    /// Seconds that indexes and statistics took in this run.
    pub index_s: f64,
    /// Whether it came to the end; `false` if it was stopped.
    pub complete: bool,
}

/// Why a rebuild did not come to its end. What it committed stays; run it again to go on.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The generation that is being built has other rules or another projection version than this program.
    #[error(
        "generation {number} is being built by version {version} and the rules {rules:?}, not by version \
         {PROJECTION_VERSION} and {current:?}: use the former program and settings, or `dashi replay drop {number}` first"
    )]
    OtherRules {
        /// The generation.
        number: u32,
        /// Its version.
        version: u32,
        /// Its rules.
        rules: String,
        /// The rules by the settings.
        current: String,
    },
    /// The generation has applied more, or less, than the live tables, and cannot be compared with them.
    #[error(
        "generation {number} has applied partition {partition} up to offset {generation}, the live tables up to {live}: \
         another process works on one of them, or `dashi accept-lost` has moved the live checkpoint back; try again, or \
         build another one"
    )]
    Ahead {
        /// The generation.
        number: u32,
        /// The partition.
        partition: Partition,
        /// The live checkpoint.
        live: Offset,
        /// That of the generation.
        generation: Offset,
    },
    /// The replay failed.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The generation cannot be used.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It was stopped.
    #[error("stopped before it came to its end; the same command goes on")]
    Stopped,
}

/// The rate of a replay is noted if it had so many records.
const RATE_RECORDS_MIN: u64 = 1_000;

/// The offsets that a generation may be behind the live one when a round of catching up is the last.
const CLOSE: u64 = 1_000;

impl Rebuild {
    /// Makes a generation, or goes on with the one that was begun by the same version and rules, and brings it to the live
    /// checkpoints, with all indexes. Afterwards it is ready, and behind the live one by the records of about the last
    /// second.
    ///
    /// # Errors
    /// See [`RebuildError`]. A stop is no error: the result says that it is not complete.
    pub async fn run(&self, report: impl Fn(RebuildStep)) -> Result<Rebuilt, RebuildError> {
        let generation = self.generation().await?;
        let number = generation.number;
        let target = self.store.open_generation(number).await?;
        let mut rebuilt = Rebuilt {
            generation: number,
            records: 0,
            applied: 0,
            duplicate: 0,
            dead: 0,
            replay_s: 0.0,
            index_s: 0.0,
            complete: false,
        };
        let began = Instant::now();
        let is_there =
            self.follow(&target, &mut rebuilt, |progress| report(RebuildStep::Replaying(progress))).await?;
        rebuilt.replay_s = began.elapsed().as_secs_f64();
        if self.rate.is_none() && rebuilt.records >= RATE_RECORDS_MIN {
            let per_s = (rebuilt.records as f64 / rebuilt.replay_s) as u64;
            self.store.note_replay_rate(number, per_s).await?;
        }
        if is_there {
            let began = Instant::now();
            tokio::select! {
                finished = self.store.finish_generation(number, |at| report(RebuildStep::Indexing(at))) => finished?,
                // The index that is being built is built again.
                () = self.stop.cancelled() => return Ok(rebuilt),
            }
            rebuilt.index_s = began.elapsed().as_secs_f64();
            let began = Instant::now();
            rebuilt.complete = self
                .follow(&target, &mut rebuilt, |progress| report(RebuildStep::CatchingUp(progress)))
                .await?;
            rebuilt.replay_s += began.elapsed().as_secs_f64();
        }
        target.close().await;
        Ok(rebuilt)
    }

    /// The generation to build or to go on with.
    async fn generation(&self) -> Result<Generation, RebuildError> {
        let rules = self.settings.rules.text();
        let is_mine = |generation: &Generation| {
            generation.projection_version == PROJECTION_VERSION && generation.rules == rules
        };
        let ready = |generation: &Generation| generation.state == GenerationState::Ready;
        let all = self.store.generations().await?;
        let building = all.iter().any(|generation| generation.state == GenerationState::Building);
        if let Some(ready) = all.into_iter().rfind(|generation| ready(generation) && is_mine(generation))
            && !building
        {
            return Ok(ready);
        }
        let begun = self.store.begin_generation(PROJECTION_VERSION, &rules).await?;
        if !is_mine(&begun) {
            let Generation { number, projection_version: version, rules: of_it, .. } = begun;
            return Err(RebuildError::OtherRules { number, version, rules: of_it, current: rules });
        }
        Ok(begun)
    }

    /// Replays up to the live checkpoints, again and again until the generation is close behind them, or no round is much
    /// shorter than the one before it, as with a rate below that of new records. Returns whether it got there; `false` if
    /// it was stopped.
    async fn follow(
        &self,
        target: &Store,
        rebuilt: &mut Rebuilt,
        report: impl Fn(ReplayProgress),
    ) -> Result<bool, RebuildError> {
        let mut behind_before = u64::MAX;
        loop {
            let ends = self.live_checkpoints().await?;
            let behind = behind(&self.log, target, &ends).await?;
            let round = self.replay_to(target, ends, &report).await?;
            rebuilt.records += round.records;
            (rebuilt.applied, rebuilt.duplicate, rebuilt.dead) = (round.applied, round.duplicate, round.dead);
            if !round.complete {
                return Ok(false);
            }
            if behind <= CLOSE || behind > behind_before / 2 {
                return Ok(true);
            }
            behind_before = behind;
        }
    }

    /// Brings a generation to these checkpoints exactly; see [`ReplayEnd::At`].
    ///
    /// # Errors
    /// See [`ReplayError`].
    pub async fn replay_to(
        &self,
        target: &Store,
        ends: Vec<PartitionCheckpoint>,
        report: impl Fn(ReplayProgress),
    ) -> Result<ReplayReport, ReplayError> {
        let (end, archive) = (ReplayEnd::At(ends), self.archive.clone());
        let options = ReplayOptions { end, jobs: self.jobs, rate: self.rate, archive };
        let (log, settings, stop) = (self.log.clone(), self.settings.clone(), self.stop.clone());
        replay(log, target.clone(), settings, options, self.metrics.clone(), stop, report).await
    }

    /// The checkpoints of the live tables in this log.
    async fn live_checkpoints(&self) -> Result<Vec<PartitionCheckpoint>, StoreError> {
        Ok(self.of_log(&self.store.partitions().await?))
    }

    /// Makes a generation live that is ready or kept; see [`Store::swap`]. It is caught up without a limit on the rate. After a
    /// stop, [`Store::generations`] shows whether it took place.
    ///
    /// # Errors
    /// See [`SwapError`].
    pub async fn swap(
        &self,
        number: u32,
        foreign: Foreign,
        report: impl Fn(ReplayProgress),
    ) -> Result<Swapped, SwapError<RebuildError>> {
        let target = self.store.open_generation(number).await?;
        let unlimited = Self { rate: None, ..self.clone() };
        let catch_up = async |ends: &[(LogId, Partition, Checkpoint)]| {
            let of_log = ends.iter().filter(|(log, ..)| log == self.log.id());
            let ends = of_log.map(|(_, partition, end)| (*partition, *end)).collect();
            unlimited.catch_up(&target, ends, &report).await
        };
        let swapped = tokio::select! {
            swapped = self.store.swap(number, foreign, catch_up) => swapped,
            () = self.stop.cancelled() => Err(SwapError::CatchUp(RebuildError::Stopped)),
        };
        target.close().await;
        swapped
    }
}

/// The live tables compared with a generation. The live tables are the first of both.
#[derive(Debug, Clone, Serialize)]
pub struct GenerationComparison {
    /// The generation.
    pub generation: u32,
    /// Whether all rows are equal.
    pub equal: bool,
    /// Rows that only the live tables have, of all tables: they were not made of this log, by these rules.
    pub foreign: u64,
    /// One per table of the projection.
    pub tables: Vec<TableComparison>,
}

impl Rebuild {
    /// Compares the live tables, as they are at one moment, with a generation that is brought to the checkpoints of that
    /// moment. The projector goes on meanwhile.
    ///
    /// # Errors
    /// See [`RebuildError`].
    pub async fn compare(
        &self,
        number: u32,
        report: impl Fn(ReplayProgress),
    ) -> Result<GenerationComparison, RebuildError> {
        let target = self.store.open_generation(number).await?;
        // Most of what is behind is applied before the snapshot, which the database should not keep for long.
        let ends = self.live_checkpoints().await?;
        self.catch_up(&target, ends, &report).await?;
        let mut live = self.store.snapshot().await?;
        let compared = self.compare_with(number, &target, &mut live, &report).await;
        live.close().await;
        target.close().await;
        compared
    }

    async fn compare_with(
        &self,
        number: u32,
        target: &Store,
        live: &mut Snapshot,
        report: &impl Fn(ReplayProgress),
    ) -> Result<GenerationComparison, RebuildError> {
        let has_tail = |state: &&PartitionState| state.log == *self.log.id() && state.tail.is_some();
        if let Some(state) = live.partitions().iter().find(has_tail) {
            return Err(GenerationError::HasTail { partition: state.partition }.into());
        }
        let ends = self.of_log(live.partitions());
        self.catch_up(target, ends.clone(), report).await?;
        let mut snapshot = target.snapshot().await?;
        let reached = self.of_log(snapshot.partitions());
        for (partition, live) in ends {
            let generation = reached.iter().find(|(other, _)| *other == partition);
            let generation = generation.map_or(Checkpoint::START, |(_, reached)| *reached);
            if generation != live {
                snapshot.close().await;
                let (live, generation) = (live.offset(), generation.offset());
                return Err(RebuildError::Ahead { number, partition, live, generation });
            }
        }
        let compared = tokio::select! {
            compared = compare_snapshots(live, &mut snapshot) => compared,
            () = self.stop.cancelled() => return Err(RebuildError::Stopped),
        };
        snapshot.close().await;
        let Comparison { equal, tables } = compared?;
        // A dead letter that the generation lacks is a record that these rules apply.
        let others = tables.iter().filter(|table| table.table != "dead_letter");
        let foreign = others.map(|table| table.only[0]).sum();
        Ok(GenerationComparison { generation: number, equal, foreign, tables })
    }

    /// Replays to these checkpoints.
    async fn catch_up(
        &self,
        target: &Store,
        ends: Vec<PartitionCheckpoint>,
        report: &impl Fn(ReplayProgress),
    ) -> Result<(), RebuildError> {
        match self.replay_to(target, ends, report).await? {
            ReplayReport { complete: true, .. } => Ok(()),
            _ => Err(RebuildError::Stopped),
        }
    }

    /// The checkpoints of partitions of this log.
    fn of_log(&self, states: &[PartitionState]) -> Vec<PartitionCheckpoint> {
        let of_log = states.iter().filter(|state| state.log == *self.log.id());
        of_log.map(|state| (state.partition, state.checkpoint)).collect()
    }
}

/// Offsets that a generation has still to apply to reach these checkpoints.
async fn behind(log: &EventLog, target: &Store, ends: &[PartitionCheckpoint]) -> Result<u64, StoreError> {
    let states = target.partitions().await?;
    let reached = |partition: &Partition| {
        let state = states.iter().find(|state| state.log == *log.id() && state.partition == *partition);
        state.map_or(Checkpoint::START, |state| state.checkpoint)
    };
    Ok(ends.iter().map(|(partition, end)| reached(partition).lag(end.offset())).sum())
}

/// Which generation is live, whether a rebuild is due, and how far one is that is being built; for `dashi status` and
/// metrics.
#[derive(Debug, Clone, Serialize)]
pub struct Standing {
    /// All generations, by number.
    pub generations: Vec<Generation>,
    /// Why the live tables differ from those that a rebuild would make now; `None` if they do not, as far as is recorded.
    pub due: Option<String>,
    /// The generation that is being built.
    pub building: Option<Building>,
}

/// A generation that is being built.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Building {
    /// Its number.
    pub number: u32,
    /// Offsets that it has applied.
    pub done: u64,
    /// Offsets that the live tables have applied.
    pub total: u64,
    /// When it last committed; milliseconds since 1970. `None` if it never did.
    pub committed_at_ms: Option<i64>,
}

impl Standing {
    /// The live generation.
    pub fn live(&self) -> Option<&Generation> {
        self.generations.iter().find(|generation| generation.state == GenerationState::Live)
    }
}

/// Reads the state of all generations, again and again.
pub struct StandingReader {
    store: Store,
    log: LogId,
    /// The generation that is being built, opened.
    open: Option<(u32, Store)>,
}

impl StandingReader {
    /// Of this live store and this log.
    pub fn new(store: Store, log: LogId) -> Self {
        Self { store, log, open: None }
    }

    /// The state as of now. `rules` is the text of the rules in force, if they are known.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn read(&mut self, rules: Option<&str>) -> Result<Standing, GenerationError> {
        let generations = self.store.generations().await?;
        let in_state = |state| generations.iter().find(|generation| generation.state == state);
        let due = in_state(GenerationState::Live).and_then(|live| due(live, rules));
        let number = in_state(GenerationState::Building).map(|building| building.number);
        let building = match number {
            Some(number) => Some(self.building(number).await?),
            None => {
                self.close().await;
                None
            }
        };
        Ok(Standing { generations, due, building })
    }

    async fn building(&mut self, number: u32) -> Result<Building, GenerationError> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != number) {
            self.close().await;
            self.open = Some((number, self.store.open_generation(number).await?));
        }
        let target = self.open.as_ref().map_or(&self.store, |(_, target)| target);
        let states = target.partitions().await?;
        let committed_at_ms = states.iter().map(|state| state.updated_at_ms).max();
        let done = self.applied(&states);
        let total = self.applied(&self.store.partitions().await?);
        Ok(Building { number, done, total, committed_at_ms })
    }

    fn applied(&self, states: &[PartitionState]) -> u64 {
        let of_log = states.iter().filter(|state| state.log == self.log);
        of_log.map(|state| state.checkpoint.offset().number()).sum()
    }

    /// Closes the generation that is open, if one is.
    #[boxed]
    pub async fn close(&mut self) {
        if let Some((_, target)) = self.open.take() {
            target.close().await;
        }
    }
}

/// Why a rebuild is due, if it is.
fn due(live: &Generation, rules: Option<&str>) -> Option<String> {
    let version = live.projection_version;
    if version != dashi_store::VERSION_UNKNOWN && version < PROJECTION_VERSION {
        return Some(format!(
            "the live tables are of projection version {version}, this program has version {PROJECTION_VERSION}"
        ));
    }
    let other = rules.filter(|rules| !live.rules.is_empty() && live.rules != *rules)?;
    Some(format!("the live tables were made by the rules {:?}, those in force are {other:?}", live.rules))
}

/// How often the gauges of a rebuild are set.
const TICK: Duration = Duration::from_secs(5);

/// Sets the gauges of generations and of a rebuild until `stop`. `rules` is the text of the rules in force, once it is
/// known.
pub async fn measure_rebuild(
    store: Store,
    log: LogId,
    rules: impl Fn() -> Option<String>,
    metrics: ProjectorMetrics,
    stop: CancellationToken,
) {
    let mut reader = StandingReader::new(store, log);
    loop {
        let reading = async {
            match reader.read(rules().as_deref()).await {
                Ok(standing) => metrics.rebuild(&standing),
                Err(error) => tracing::debug!(error = %chain(&error), "the generations cannot be read"),
            }
            tokio::time::sleep(TICK).await;
        };
        tokio::select! {
            () = stop.cancelled() => break,
            () = reading => {}
        }
    }
    reader.close().await;
}
