//! `dashi replay`: a new generation of the tables beside the live ones and its swap, or a replay into a store of its own.

mod compare;
mod into;
mod list;
mod plan;
mod run;
mod standing;
mod swap;

use std::num::NonZeroUsize;

use dashi_archive::Archive;
use dashi_config::{Loaded, Settings};
use dashi_event_log::EventLog;
use dashi_projector::{ProjectorMetrics, Rebuild, ReplayOptions, ReplayProgress};
use dashi_store::{Generation, GenerationState, Store};
use prometheus_client::registry::Registry;

pub use standing::standing;

use crate::args::{FromArchiveArgs, IntoStoreArgs, ReplayArgs, ReplayCommand, SpeedArgs};
use crate::exit::{Exit, Misuse};
use crate::progress::{State, Unit};
use crate::{interrupt, logging, open};

/// Runs the subcommand. After an interrupt it stops between batches; running it again continues.
pub async fn run(loaded: &Loaded, args: ReplayArgs) -> anyhow::Result<Exit> {
    let ReplayArgs { command, into } = args;
    match command {
        Some(ReplayCommand::Plan(args)) => plan::run(loaded, &args).await,
        Some(ReplayCommand::Run(args)) => run::run(loaded, &args).await,
        Some(ReplayCommand::Compare(args)) => compare::run(loaded, &args).await,
        Some(ReplayCommand::Swap(args)) => swap::swap(loaded, &args).await,
        Some(ReplayCommand::Rollback(args)) => swap::rollback(loaded, &args).await,
        Some(ReplayCommand::Drop(args)) => list::drop(loaded, &args).await,
        Some(ReplayCommand::List(args)) => list::run(loaded, &args).await,
        Some(ReplayCommand::Into(args)) => into::run(loaded, args).await,
        None => {
            let url =
                into.into.ok_or_else(|| Misuse("--into URL, or a subcommand, is missing".to_owned()))?;
            into::run(loaded, IntoStoreArgs { url, fold: into.fold }).await
        }
    }
}

/// The live store and the log, opened for a rebuild.
struct Opened {
    log: EventLog,
    store: Store,
    rebuild: Rebuild,
}

impl Opened {
    /// Opens both and decides the rules. An interrupt stops the rebuild from now on.
    async fn open(
        loaded: &Loaded,
        archive: &FromArchiveArgs,
        speed: Option<SpeedArgs>,
    ) -> anyhow::Result<Self> {
        let settings = &loaded.settings;
        logging::start_quiet(loaded)?;
        let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
        let log = open::log(settings, open::Absent::Refuse).await?;
        store.migrate().await?;
        let release = release(settings, &store).await?;
        let rebuild = Rebuild {
            log: log.clone(),
            store: store.clone(),
            settings: open::projector_settings(settings, release, true)?,
            jobs: jobs(speed),
            rate: speed.and_then(|speed| speed.rate),
            archive: archive_of(archive, &log).await?,
            metrics: ProjectorMetrics::new(&mut Registry::default()),
            stop: interrupt::token(),
        };
        Ok(Self { log, store, rebuild })
    }

    /// The generation of this number, or else the newest one that is ready.
    async fn generation(&self, number: Option<u32>) -> anyhow::Result<Result<Generation, String>> {
        let all = self.store.generations().await?;
        Ok(match number {
            Some(number) => match all.into_iter().find(|generation| generation.number == number) {
                Some(Generation { state: GenerationState::Live, .. }) => {
                    Err(format!("generation {number} is live already"))
                }
                Some(generation) => Ok(generation),
                None => Err(format!(
                    "there is no generation {number}; `dashi replay list` shows those that there are"
                )),
            },
            None => {
                let newest = |state| all.iter().rfind(|generation| generation.state == state);
                match (newest(GenerationState::Ready), newest(GenerationState::Kept)) {
                    (Some(ready), _) => Ok(ready.clone()),
                    (None, Some(Generation { number, .. })) => Err(format!(
                        "no generation is ready; generation {number} is kept: name it to use it (`dashi replay swap \
                         {number}`), or build another one by `dashi replay run`"
                    )),
                    (None, None) => Err("no generation is ready: `dashi replay run` builds one".to_owned()),
                }
            }
        })
    }

    /// The text of the rules in force.
    fn rules(&self) -> String {
        self.rebuild.settings.rules.text()
    }

    async fn close(self) {
        self.store.close().await;
        self.log.close().await;
    }
}

/// The version of Umami whose rules the fold has: by the settings, or else by the database.
pub async fn release(settings: &Settings, store: &Store) -> anyhow::Result<dashi_domain::umami::Release> {
    Ok(match open::release_by_settings(settings, &settings.store)? {
        Some(set) => set.release,
        None => open::release_by_store(store).await?.release,
    })
}

/// The archive that was named, which must be of this log.
async fn archive_of(args: &FromArchiveArgs, log: &EventLog) -> anyhow::Result<Option<Archive>> {
    Ok(match &args.archive {
        Some(place) => Some(crate::archive::of_log(place, log.id()).await?),
        None => None,
    })
}

fn jobs(speed: Option<SpeedArgs>) -> NonZeroUsize {
    speed.and_then(|speed| speed.jobs).unwrap_or(ReplayOptions::default().jobs)
}

/// Progress of a replay, as the display takes it.
fn state<'s>(part: &'s str, progress: &'s ReplayProgress) -> State<'s> {
    let ReplayProgress { done, total, .. } = *progress;
    State { part, done, total, unit: Unit::Of("records"), note: progress.reason.as_deref() }
}

/// Prints why the answer is no.
fn refuse(reason: &str) -> Exit {
    eprintln!("dashi: {reason}");
    Exit::No
}
