//! `dashi bench --compare`: two servers under the same requests, in turns.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dashi_load::{Comparison, LoadPlan, Mode, Report, Snapshot};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::args::BenchArgs;
use crate::exit::Exit;
use crate::interrupt;
use crate::output::print;
use crate::progress::{ProgressDisplay, State, Unit};

/// The answer: how it was measured, and the figures.
#[derive(Debug, Serialize)]
struct Output {
    /// Rounds that were measured whole.
    rounds: u64,
    connections: usize,
    duration_s: f64,
    warmup_s: f64,
    batch: usize,
    sessions: u64,
    token: bool,
    /// Of the first round; the next ones follow.
    seed: u64,
    /// Processors of this machine that the generator may use.
    cores: Option<usize>,
    /// Of the last minute, before and after; absent where there is no `/proc`.
    load_average_before: Option<f64>,
    load_average_after: Option<f64>,
    #[serde(flatten)]
    comparison: Comparison,
}

/// Measures both servers in each round, and prints the comparison. Exit code 1 if one of them acknowledged nothing, 4 if it was
/// interrupted: then the figures are those of the rounds before.
pub async fn run(plans: [LoadPlan; 2], args: &BenchArgs) -> anyhow::Result<Exit> {
    let stop = interrupt::token();
    for plan in &plans {
        try_one(plan, &stop).await?;
    }
    let mut turns = Turns::new(&plans, args, stop);
    let load_average_before = load_average();
    let mut rounds = Vec::new();
    for round in 0..args.rounds {
        // Neither is always the first: a machine changes while it is busy.
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        let mut reports = [None, None];
        for which in order {
            let seed = plans[which].seed.wrapping_add(round);
            let plan = LoadPlan { seed, ..plans[which].clone() };
            reports[which] = turns.measure(plan, round).await?;
        }
        match reports {
            [Some(first), Some(second)] => rounds.push([first, second]),
            _ => break,
        }
    }
    turns.display.finish();
    let [first, second] = &plans;
    let names = [first, second].map(|plan| (plan.target.clone(), plan.website.clone()));
    let output = Output {
        rounds: rounds.len() as u64,
        connections: first.connections,
        duration_s: first.duration.as_secs_f64(),
        warmup_s: first.warmup.as_secs_f64(),
        batch: first.batch,
        sessions: first.sessions,
        token: first.token,
        seed: first.seed,
        cores: thread::available_parallelism().ok().map(usize::from),
        load_average_before,
        load_average_after: load_average(),
        comparison: Comparison::of(names, rounds),
    };
    print(&if args.json { serde_json::to_string(&output)? + "\n" } else { text(&output) });
    let is_silent = output.comparison.servers.iter().any(|side| side.events().0 == 0);
    Ok(match output.rounds < args.rounds {
        true => Exit::Overdue,
        false if is_silent => Exit::Failed,
        false => Exit::Done,
    })
}

/// Sends one event, or one batch: whoever does not take it need not be measured.
async fn try_one(plan: &LoadPlan, stop: &CancellationToken) -> anyhow::Result<()> {
    let one = LoadPlan {
        mode: Mode::Closed,
        connections: 1,
        requests_max: Some(1),
        warmup: Duration::ZERO,
        duration: plan.timeout,
        seed: plan.seed.wrapping_sub(1),
        ..plan.clone()
    };
    let report = dashi_load::run(one, stop.clone(), |_: &Snapshot| {}).await?;
    if report.counts.acknowledged_events == 0 && !stop.is_cancelled() {
        anyhow::bail!(
            "{} does not take an event of the website {}: {}",
            plan.target,
            plan.website,
            report.first_refusal.as_deref().unwrap_or("no answer")
        );
    }
    Ok(())
}

/// The turns of the servers, and how far they are.
struct Turns {
    display: Arc<ProgressDisplay>,
    stop: CancellationToken,
    with_limit: bool,
    rounds: u64,
    /// Of all turns, as planned, and of those that are over.
    total: Duration,
    over: Duration,
}

impl Turns {
    fn new(plans: &[LoadPlan; 2], args: &BenchArgs, stop: CancellationToken) -> Self {
        let with_limit = !args.no_limit && plans[0].mode == Mode::Closed;
        let of_plan = |plan: &LoadPlan| {
            let limit = plan.limit();
            plan.warmup
                + plan.duration
                + if with_limit { limit.warmup + limit.duration } else { Duration::ZERO }
        };
        let of_round: Duration = plans.iter().map(of_plan).sum();
        Self {
            display: Arc::new(ProgressDisplay::new(args.json)),
            stop,
            with_limit,
            rounds: args.rounds,
            total: of_round.saturating_mul(u32::try_from(args.rounds).unwrap_or(u32::MAX)),
            over: Duration::ZERO,
        }
    }

    /// A server's turn; `None` if it was interrupted.
    async fn measure(&mut self, plan: LoadPlan, round: u64) -> anyhow::Result<Option<Report>> {
        let limit = self.with_limit.then(|| plan.limit());
        let Some(report) = self.run(plan, round).await? else { return Ok(None) };
        let Some(limit) = limit else { return Ok(Some(report)) };
        Ok(self.run(limit, round).await?.map(|empty| report.beside(&empty)))
    }

    async fn run(&mut self, plan: LoadPlan, round: u64) -> anyhow::Result<Option<Report>> {
        let (display, over, total) = (Arc::clone(&self.display), self.over, self.total);
        self.over += plan.warmup + plan.duration;
        let what = format!("round {} of {}, {}", round + 1, self.rounds, plan.target);
        let progress = move |snapshot: &Snapshot| {
            let done =
                (over + snapshot.elapsed.min(snapshot.total)).as_secs_f64() / total.as_secs_f64().max(1e-9);
            let note =
                format!("{what}: {:.0} requests/s, {} errors", snapshot.requests_per_s, snapshot.errors);
            display.show(State {
                part: "comparison",
                done: (done * 1_000.0) as u64,
                total: 1_000,
                unit: Unit::Thousandths,
                note: Some(&note),
            });
        };
        let report = dashi_load::run(plan, self.stop.clone(), progress).await?;
        Ok((!self.stop.is_cancelled()).then_some(report))
    }
}

fn text(output: &Output) -> String {
    let Output { rounds, connections, duration_s, warmup_s, seed, .. } = output;
    let number =
        |value: Option<f64>| value.map_or_else(|| "unknown".to_owned(), |value| format!("{value:.2}"));
    let cores = output.cores.map_or_else(|| "unknown".to_owned(), |cores| cores.to_string());
    format!(
        "{}\nrounds in turn: {rounds}, {duration_s} s each after {warmup_s} s of warm-up, {connections} connections, batches of {}, {}, \
         seed {seed}\ncores {cores}, load average {} before and {} after; each value is the median (least to greatest) of the rounds\n",
        output.comparison,
        output.batch,
        if output.token { "tokens sent back" } else { "no tokens" },
        number(output.load_average_before),
        number(output.load_average_after),
    )
}

/// The number of processes that ran or waited to run in the last minute, on average.
fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_ascii_whitespace().next()?.parse().ok()
}
