//! The console: wires its questions to the functions behind `dashi status` and `dashi dead-letters`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use dashi_api::Keys;
use dashi_config::Settings;
use dashi_console::{
    Access, Ask, Console, ConsoleSettings, Decision, Failure, Live, LiveSettings, ProcessFacts, Pulse,
    Question,
};
use dashi_domain::dead_letters::LetterAction;
use dashi_event_log::EventLog;
use dashi_ingest::{SCRIPT_PATH, SEND_PATH};
use dashi_store::{LetterPlace, Store, StoreError, Website};
use tokio::sync::Mutex;

use crate::clock::now_ms;
use crate::dead_letters::select::{FilterArgs, PlaceArg, Selection};
use crate::dead_letters::{decide, list};
use crate::ops::Ops;
use crate::serve::Base;
use crate::serve::helpers::Helpers;
use crate::serve::project::Projecting;
use crate::{open, status};

/// Dead letters in one answer.
const LETTERS: usize = 50;

/// Starts the console and the task that keeps its rates; `None` if the settings leave it out.
pub fn start(
    base: &Base<'_>,
    ops: &Arc<Ops>,
    projecting: Option<&Projecting>,
    helpers: &mut Helpers,
) -> Option<RunningConsole> {
    if !base.settings.console.enabled {
        return None;
    }
    let (pulse, ops) = (Pulse::default(), Arc::clone(ops));
    let kept = pulse.clone();
    helpers.spawn("the console's rates", |stop| async move {
        kept.keep(|| ops.metrics_text(), now_ms, stop).await
    });
    let live = projecting.map(|projecting| live(base, projecting, helpers));
    let console = Console::new(ConsoleSettings {
        access: access(base),
        ask: ask(base),
        pulse,
        live: live.clone(),
        process: facts(base),
    });
    Some(RunningConsole { console, live })
}

/// The console that runs.
pub struct RunningConsole {
    console: Console,
    live: Option<Live>,
}

impl RunningConsole {
    pub fn router(&self) -> Router {
        self.console.router()
    }

    /// Waits until every stream has ended. To be called after the last connection has closed.
    pub async fn drain(self) {
        if let Some(live) = self.live {
            live.drain().await;
        }
    }
}

/// The events that this process applies.
fn live(base: &Base<'_>, projecting: &Projecting, helpers: &mut Helpers) -> Live {
    let api = &base.settings.api;
    let live = Live::new(LiveSettings {
        heartbeat: Duration::from_millis(api.stream_heartbeat_ms),
        write_timeout: Duration::from_millis(api.stream_write_timeout_ms),
        draining: base.draining.clone(),
    });
    let (kept, applied) = (live.clone(), projecting.applied());
    helpers.spawn("the console's live events", |stop| kept.keep(applied, stop));
    live
}

/// Who may read and write.
pub fn access(base: &Base<'_>) -> Access {
    Access {
        keys: Keys::parse(base.settings.api.keys.expose()),
        is_loopback: base.address.ip().to_canonical().is_loopback(),
    }
}

fn facts(base: &Base<'_>) -> ProcessFacts {
    let ingest = &base.settings.ingest;
    let under_base = |path: &str| format!("{}{path}", ingest.base_path);
    ProcessFacts {
        version: env!("CARGO_PKG_VERSION"),
        collects: base.roles.collects(),
        projects: base.roles.projects(),
        base_path: ingest.base_path.clone(),
        script_path: under_base(SCRIPT_PATH),
        send_path: under_base(SEND_PATH),
    }
}

fn ask(base: &Base<'_>) -> Ask {
    let asked = Asked {
        settings: Arc::new(base.settings.clone()),
        log: base.log.clone(),
        store: base.store.clone(),
        accepted: Arc::default(),
    };
    Arc::new(move |question| {
        let asked = asked.clone();
        Box::pin(async move { asked.answer(question).await })
    })
}

/// All that questions are answered from.
#[derive(Clone)]
struct Asked {
    settings: Arc<Settings>,
    log: EventLog,
    store: Store,
    /// See [`Asked::accepted`].
    accepted: Arc<Mutex<Option<Accepted>>>,
}

/// The submissions that collectors accepted, by their tallies.
struct Accepted {
    count: u64,
    read_at: Instant,
    /// How long reading took.
    took: Duration,
}

/// Tallies of years are many rows, so reading them takes a twentieth of the time at most. They are a lower bound of what the log
/// has, however old they are.
const TALLIES_REST: u32 = 20;

impl Asked {
    async fn accepted(&self) -> Result<u64, StoreError> {
        let mut known = self.accepted.lock().await;
        if let Some(Accepted { count, read_at, took }) = &*known
            && read_at.elapsed() < *took * TALLIES_REST
        {
            return Ok(*count);
        }
        let began = Instant::now();
        let count = status::accepted(&self.store, self.log.id()).await?;
        *known = Some(Accepted { count, read_at: Instant::now(), took: began.elapsed() });
        Ok(count)
    }

    async fn answer(&self, question: Question) -> Result<String, Failure> {
        match question {
            Question::Status => {
                let owner = open::owner();
                let accepted = self.accepted().await.map_err(|error| unavailable(error.into()))?;
                let status =
                    status::read(&self.settings, &self.log, &self.store, Some(&owner), accepted).await;
                let status = status.map_err(unavailable)?;
                json(&status)
            }
            Question::Websites => {
                let websites = self.store.websites().await.map_err(|error| unavailable(error.into()))?;
                let websites = websites.into_iter().map(|Website { id, name, domain, .. }| {
                    serde_json::json!({ "id": id, "name": name, "domain": domain })
                });
                json(&serde_json::json!({ "websites": websites.collect::<Vec<_>>() }))
            }
            Question::DeadLetters { after, discarded } => {
                let after = after.as_deref().map(place).transpose()?;
                let (log, filter) = (self.log.id().clone(), FilterArgs::default());
                let selection = Selection::new(&self.settings, log, &filter, Some(discarded));
                let selection = selection.map_err(unavailable)?;
                let after = after.map(|PlaceArg { partition, offset }| LetterPlace {
                    log: self.log.id().clone(),
                    partition,
                    offset,
                });
                json(&list::page(&self.store, &selection, after, LETTERS).await.map_err(unavailable)?)
            }
            Question::DeadLetter(text) => {
                let found =
                    list::letter(&self.store, self.log.id(), place(&text)?).await.map_err(unavailable)?;
                let letter =
                    found.ok_or_else(|| Failure::NotFound(format!("there is no dead letter at {text}")))?;
                let line = list::line(&letter).map_err(unavailable)?;
                Ok(String::from_utf8_lossy(&line).into_owned())
            }
            Question::Decide { place: text, decision } => {
                let PlaceArg { partition, offset } = place(&text)?;
                let found = list::letter(&self.store, self.log.id(), PlaceArg { partition, offset }).await;
                if found.map_err(unavailable)?.is_none() {
                    return Err(Failure::NotFound(format!("there is no dead letter at {text}")));
                }
                let action = match decision {
                    Decision::Retry => LetterAction::Retry,
                    Decision::Discard => LetterAction::Discard,
                };
                let letters = BTreeMap::from([(partition, vec![offset])]);
                let placed = decide::append(&self.log, action, &letters).await.map_err(unavailable)?;
                let (command, at) =
                    placed.first().ok_or_else(|| unavailable(anyhow::anyhow!("no command was made")))?;
                tracing::info!(letter = text, action = action.name(), "the console commanded a dead letter");
                json(&serde_json::json!({ "partition": command.partition.number(), "offset": at.number() }))
            }
        }
    }
}

fn place(text: &str) -> Result<PlaceArg, Failure> {
    text.parse().map_err(Failure::Bad)
}

fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| unavailable(error.into()))
}

#[expect(clippy::needless_pass_by_value, reason = "it is the end of an error's way")]
fn unavailable(error: anyhow::Error) -> Failure {
    Failure::Unavailable(format!("{error:#}"))
}
