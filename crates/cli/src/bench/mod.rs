//! `dashi bench`: sends generated events to a running collector, Dashi or Umami, and measures it.

mod compare;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use dashi_config::Loaded;
use dashi_load::{LoadPlan, Mix, Mode, Snapshot};
use uuid::Uuid;

use crate::args::BenchArgs;
use crate::clock::now_ms;
use crate::exit::{Exit, Misuse};
use crate::output::print;
use crate::progress::{ProgressDisplay, State, Unit};
use crate::{interrupt, open};

/// Runs the plan and prints the report. Exit code 1 if no event was acknowledged.
pub async fn run(loaded: &Loaded, args: BenchArgs) -> anyhow::Result<Exit> {
    let website = match args.website {
        Some(website) => website,
        None => {
            let settings = &loaded.settings;
            let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
            let websites = store.websites().await?;
            websites
                .first()
                .context("the store has no website: add one with `dashi website add --name NAME`")?
                .id
        }
    };
    let plan = plan(&args, website)?;
    match &args.compare {
        None => single(plan, &args).await,
        Some(url) => {
            let website = args.compare_website.unwrap_or(website).to_string();
            let other = LoadPlan { target: url.clone(), website, ..plan.clone() };
            compare::run([plan, other], &args).await
        }
    }
}

fn plan(args: &BenchArgs, website: Uuid) -> Result<LoadPlan, Misuse> {
    let mut plan = LoadPlan::new(args.url.as_str(), website.to_string());
    plan.mode = match args.rate {
        Some(requests_per_s) => Mode::Open { requests_per_s },
        None => Mode::Closed,
    };
    plan.connections = args.connections;
    plan.duration = seconds("--duration", args.duration)?;
    plan.warmup = seconds("--warmup", args.warmup)?;
    plan.requests_max = args.requests;
    plan.sessions = args.sessions;
    plan.mix = mix(&args.mix)?;
    plan.batch = args.batch;
    plan.token = args.token;
    plan.seed = args.seed.unwrap_or_else(|| now_ms().unsigned_abs());
    plan.record_acknowledged = args.record_acknowledged.clone();
    plan.first = args.first;
    plan.new_every = args.new_every;
    Ok(plan)
}

async fn single(plan: LoadPlan, args: &BenchArgs) -> anyhow::Result<Exit> {
    let stop = interrupt::token();
    let display = Arc::new(ProgressDisplay::new(args.json));
    let progress = |part: &'static str| {
        let display = Arc::clone(&display);
        move |snapshot: &Snapshot| show(&display, part, snapshot)
    };
    let limit = (!args.no_limit && plan.mode == Mode::Closed).then(|| plan.limit());
    let mut report = dashi_load::run(plan, stop.clone(), progress("load")).await?;
    // Measured in the same run, since the speed of a machine changes from minute to minute; not after an interrupt.
    if let Some(limit) = limit.filter(|_| !stop.is_cancelled()) {
        report = report.beside(&dashi_load::run(limit, stop, progress("empty requests")).await?);
    }
    display.finish();
    print(&if args.json { serde_json::to_string(&report)? + "\n" } else { report.to_string() + "\n" });
    Ok(if report.counts.acknowledged_events > 0 { Exit::Done } else { Exit::Failed })
}

fn show(display: &ProgressDisplay, part: &str, snapshot: &Snapshot) {
    let Snapshot { elapsed, total, requests, requests_per_s, errors, .. } = snapshot;
    let share = elapsed.as_secs_f64() / total.as_secs_f64().max(0.001);
    let done = (share.min(1.0) * 1_000.0) as u64;
    let note = format!("{requests} requests, {requests_per_s:.0}/s, {errors} errors");
    display.show(State { part, done, total: 1_000, unit: Unit::Thousandths, note: Some(&note) });
}

fn seconds(flag: &str, value: f64) -> Result<Duration, Misuse> {
    Duration::try_from_secs_f64(value).map_err(|_| Misuse(format!("{flag} {value}: give seconds, 0 or more")))
}

fn mix(text: &str) -> Result<Mix, Misuse> {
    let shares: Vec<u32> = text.split(',').filter_map(|share| share.trim().parse().ok()).collect();
    match shares[..] {
        [page_views, custom_events, identifies, performance] => {
            Ok(Mix { page_views, custom_events, identifies, performance })
        }
        _ => Err(Misuse(format!("--mix {text}: give four numbers, such as 80,12,4,4"))),
    }
}
