//! `dashi replay --into`: folds the whole log into an empty store and shows its progress.

use std::time::Instant;

use dashi_config::Loaded;
use dashi_projector::{ProjectorMetrics, ReplayError, ReplayOptions, replay};
use prometheus_client::registry::Registry;

use crate::args::IntoStoreArgs;
use crate::exit::{Exit, Misuse};
use crate::output::print;
use crate::progress::ProgressDisplay;
use crate::replay::{archive_of, jobs, state};
use crate::{interrupt, logging, open};

/// Replays. After an interrupt it stops between batches; running it again continues.
pub async fn run(loaded: &Loaded, args: IntoStoreArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    logging::start(&settings.logs)?;
    let log = open::log(settings, open::Absent::Refuse).await?;
    let archive = archive_of(&args.fold.archive, &log).await?;
    let store = open::store(&args.url, settings, open::Absent::Create).await?;
    store.migrate().await?;
    let in_force = match open::release_by_settings(settings, &args.url)? {
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
    let progress = ProgressDisplay::new(args.fold.json);
    let metrics = ProjectorMetrics::new(&mut Registry::default());
    let report = replay(
        log,
        store.clone(),
        open::projector_settings(settings, in_force.release, true)?,
        ReplayOptions {
            archive,
            jobs: jobs(Some(args.fold.speed)),
            rate: args.fold.speed.rate,
            ..ReplayOptions::default()
        },
        metrics,
        stop,
        |replayed| progress.show(state("replaying", &replayed)),
    )
    .await
    .map_err(|error| match error {
        ReplayError::Live { .. } => Misuse(format!("--into: {error}")).into(),
        error => anyhow::Error::from(error),
    })?;
    progress.finish();
    store.close().await;
    let elapsed_s = began.elapsed().as_secs_f64();
    if args.fold.json {
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
