//! The lane of historical events of a process that collects: opened at the start, and forwarded to the log as live events leave
//! room.

use std::time::Duration;

use dashi_config::{LogUrl, parse_log_url};
use dashi_domain::pace::Wait;
use dashi_event_log::{EventLog, Lane, LaneSettings, OpenError, Spool, SpoolState};
use dashi_import::Pacer;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::serve::Base;
use crate::serve::helpers::log_panic;

/// How long it waits before it tries again where log or file were in trouble: at first, and at most.
const TROUBLE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A lane that is forwarded.
pub struct History {
    lane: Lane,
    stop: CancellationToken,
    forwarding: JoinHandle<()>,
}

impl History {
    /// Opens the lane and starts to forward it. `None` if the settings want none, or if it cannot be had: then historical events
    /// are appended as they come.
    pub async fn start(base: &Base<'_>, adopt: bool) -> anyhow::Result<Option<Self>> {
        let Some(settings) = settings(base, adopt)? else { return Ok(None) };
        let directory = settings.directory.clone();
        let lane = match Lane::open(&base.log, settings).await {
            Ok(lane) => lane,
            Err(error) => {
                let is_taken = matches!(error, OpenError::LaneTaken { .. });
                let error = format!("{:#}", anyhow::Error::from(error));
                let directory = directory.display();
                if is_taken {
                    tracing::info!(error, %directory, "historical events are appended as they come, without a lane");
                } else {
                    tracing::error!(error, %directory, "historical events are appended as they come, without a lane");
                }
                return Ok(None);
            }
        };
        let delay_max = Duration::from_millis(base.settings.history.delay_ms_max);
        let pacer = Pacer::new(base.log.clone(), base.store.clone(), delay_max, true);
        let stop = CancellationToken::new();
        let forwarding = Forwarding {
            lane: lane.clone(),
            log: base.log.clone(),
            spool: base.spool.clone(),
            pacer,
            shown: false,
        };
        let forwarding = base.alive.spawn("the forwarding of history", forwarding.run(stop.clone()));
        Ok(Some(Self { lane, stop, forwarding }))
    }

    /// The lane.
    pub fn lane(&self) -> Lane {
        self.lane.clone()
    }

    /// Stops to forward and closes the lane, which keeps what it holds. To be called when no event can come any more, and
    /// before the log's spool is closed.
    pub async fn stop(self) {
        self.stop.cancel();
        log_panic("forwarding historical events", self.forwarding.await);
        self.lane.close().await;
    }
}

/// Where the lane of a log lies: beside an embedded log, and in the spool's directory for one on Kafka, which needs a disk that
/// outlives the process for both.
fn settings(base: &Base<'_>, adopt: bool) -> anyhow::Result<Option<LaneSettings>> {
    let settings = base.settings;
    if settings.history.event_age_s_min == 0 {
        return Ok(None);
    }
    let directory = match parse_log_url(&settings.log)? {
        LogUrl::Sqlite(path) => {
            let mut directory = path.into_os_string();
            directory.push(".history");
            directory.into()
        }
        LogUrl::Kafka { .. } if base.spool.is_some() => settings.ingest.spool_directory.clone().into(),
        LogUrl::Kafka { .. } => return Ok(None),
    };
    Ok(Some(LaneSettings {
        directory,
        bytes_max: settings.history.waiting_bytes_max,
        queue_max: settings.event_log.append_queue_max,
        batch_max: settings.event_log.append_batch_max,
        adopt,
        tracer: base.tracer.clone(),
    }))
}

struct Forwarding {
    lane: Lane,
    log: EventLog,
    spool: Option<Spool>,
    pacer: Pacer,
    /// Whether the logs show that it waits.
    shown: bool,
}

/// The outcome of one attempt.
enum Step {
    /// The log has some records more.
    Forwarded,
    /// Nothing waits.
    Empty,
    /// Live events come first, or nothing is applied.
    Waits(Wait),
    /// The log does not take records, or the lane cannot be read.
    Trouble(String),
}

impl Forwarding {
    async fn run(mut self, stop: CancellationToken) {
        let mut wait = TROUBLE.0;
        let mut had_records = false;
        loop {
            let step = self.step().await;
            let pause = match &step {
                Step::Forwarded | Step::Empty => Duration::ZERO,
                Step::Waits(_) => self.pacer.interval(),
                Step::Trouble(_) => {
                    wait = (wait * 2).min(TROUBLE.1);
                    wait
                }
            };
            if !matches!(step, Step::Trouble(_)) {
                wait = TROUBLE.0;
            }
            let is_empty = matches!(step, Step::Empty);
            if is_empty && had_records {
                self.lane.give_space_back().await;
            }
            had_records = !is_empty;
            self.note(step);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.lane.changed(), if is_empty => {}
                () = tokio::time::sleep(pause), if !is_empty => {}
            }
        }
    }

    async fn step(&self) -> Step {
        let front = match self.lane.front().await {
            Ok(front) if front.is_empty() => return Step::Empty,
            Ok(front) => front,
            Err(error) => return Step::Trouble(format!("{:#}", anyhow::Error::from(error))),
        };
        if let Some(status) = self.spool.as_ref().map(Spool::status)
            && status.state != SpoolState::Idle
        {
            return Step::Trouble(format!(
                "events that came while the log was away go first ({})",
                status.state.name()
            ));
        }
        let admitted = match self.pacer.admit(front.sessions()).await {
            Ok(admitted) => admitted,
            Err(wait) => return Step::Waits(wait),
        };
        match self.lane.forward(&self.log, &front, admitted.records()).await {
            Ok(()) => Step::Forwarded,
            Err(error) => Step::Trouble(error),
        }
    }

    /// Notes why records wait. What an operator has to know is logged once when it begins, and when it is over.
    fn note(&mut self, step: Step) {
        let records = self.lane.status().records;
        let (reason, is_grave) = match step {
            Step::Forwarded | Step::Empty => (None, false),
            Step::Waits(wait @ Wait::Behind { .. }) => (Some(wait.to_string()), false),
            Step::Waits(wait) => (Some(wait.to_string()), true),
            Step::Trouble(reason) => (Some(reason), true),
        };
        match (&reason, self.shown) {
            (Some(reason), false) if is_grave => {
                tracing::warn!(records, reason, "historical events wait");
                self.shown = true;
            }
            (None, true) => {
                tracing::info!(records, "historical events go into the log again");
                self.shown = false;
            }
            _ => {}
        }
        self.lane.waits(reason);
    }
}
