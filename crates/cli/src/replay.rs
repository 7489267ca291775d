//! `dashi replay`: folds the whole log into an empty store and shows its progress.

use std::io::IsTerminal as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use dashi_config::Loaded;
use dashi_projector::{ProjectorMetrics, ReplayError, ReplayProgress, replay};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use prometheus_client::registry::Registry;

use crate::args::ReplayArgs;
use crate::exit::{Exit, Misuse};
use crate::output::print;
use crate::{interrupt, logging, open};

/// How often a line reports progress where there is no terminal for a bar.
const LINE: Duration = Duration::from_secs(5);

/// Replays. After an interrupt it stops between batches; running it again continues.
pub async fn run(loaded: &Loaded, args: ReplayArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    logging::start(&settings.logs)?;
    let log = open::log(settings, open::Absent::Refuse).await?;
    let store = open::store(&args.into, settings, open::Absent::Create).await?;
    store.migrate().await?;
    let in_force = match open::release_by_settings(settings, &args.into)? {
        Some(set) => set,
        None => open::release_by_store(&store).await?,
    };
    tracing::info!(
        umami_release = in_force.release.name(),
        because = %in_force.because,
        "events are folded by the rules of this version of Umami"
    );
    let stop = interrupt::token();
    let began = Instant::now();
    let progress = ProgressDisplay::new();
    let metrics = ProjectorMetrics::new(&mut Registry::default());
    let report = replay(
        log,
        store.clone(),
        open::projector_settings(settings, in_force.release, true)?,
        metrics,
        stop,
        move |replayed| progress.show(replayed),
    )
    .await
    .map_err(|error| match error {
        ReplayError::Live { .. } => Misuse(format!("--into: {error}")).into(),
        error => anyhow::Error::from(error),
    })?;
    store.close().await;
    let elapsed_s = began.elapsed().as_secs_f64();
    if args.json {
        let mut value = serde_json::to_value(&report)?;
        value["elapsed_s"] = elapsed_s.into();
        print(&format!("{value}\n"));
    } else {
        print(&format!(
            "replayed {} records of {} partitions in {elapsed_s:.1} s ({:.0}/s): applied {} · duplicate {} · dead {}\n",
            report.records,
            report.partitions,
            report.records as f64 / elapsed_s.max(0.001),
            report.applied,
            report.duplicate,
            report.dead,
        ));
        if !report.complete {
            print("interrupted: run the same command again to continue\n");
        }
    }
    Ok(if report.complete { Exit::Done } else { Exit::Overdue })
}

/// A bar on a terminal, a line every few seconds elsewhere.
struct ProgressDisplay {
    bar: ProgressBar,
    began: Instant,
    last_line: Mutex<Option<Instant>>,
    terminal: bool,
}

impl ProgressDisplay {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
        let template = "{bar:40} {human_pos}/{human_len} records  {per_sec}  {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let terminal = std::io::stderr().is_terminal();
        Self { bar, began: Instant::now(), last_line: Mutex::new(None), terminal }
    }

    fn show(&self, progress: ReplayProgress) {
        if self.terminal {
            self.bar.set_length(progress.total);
            self.bar.set_position(progress.done);
            return;
        }
        let mut last = self.last_line.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < LINE) {
            return;
        }
        *last = Some(Instant::now());
        let rate = progress.done as f64 / self.began.elapsed().as_secs_f64().max(0.001);
        let left = match progress.done {
            0 => ", no rate yet".to_owned(),
            done => format!(", {rate:.0}/s, {:.0} s left", (progress.total - done) as f64 / rate.max(1.0)),
        };
        eprintln!("{} of {} records{left}", progress.done, progress.total);
    }
}
