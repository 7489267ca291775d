//! Everything at once: processes, brokers, the database and the disk fail at random times, often together, while events
//! come in. At the end everything that was acknowledged is in the tables once, the tables are those of a replay, and the
//! audit adds up.
//!
//! `scripts/torture` runs it for as long as one likes; in the suite it is short. `DASHI_TEST_TORTURE` is `SEED:SECONDS`, or
//! `SEED:SECONDS:TEXT` for the faults alone whose names contain the text.

mod accidents;
mod faults;
mod world;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use dashi_load::Mode;
use integration_tests::{Ledger, TestDatabase, TestDirectory, environment};
use serde_json::Value;

use self::faults::{Active, Deck, Fault, Random};
use self::world::World;

/// How long a replay, a comparison or an audit may take after a long run.
const LONG: Duration = Duration::from_secs(1_800);

/// Requests per second to each collector, one event each.
const RATE: f64 = 120.0;

/// Faults that may last at the same time.
const TOGETHER: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn torture_embedded() {
    let directory = TestDirectory::create("torture");
    let again = format!("sqlite:{}", directory.path().join("again.db").display());
    torture(World::embedded().await, &again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn torture_three_brokers_and_postgres() {
    let again = TestDatabase::create().await;
    torture(World::cluster().await, again.url()).await;
}

/// The seed and the length of a run, and a part of the names of the faults it is limited to.
fn plan() -> (u64, Duration, String) {
    let plan = environment("DASHI_TEST_TORTURE").unwrap_or_else(|| "1:30".to_owned());
    let mut parts = plan.splitn(3, ':');
    let mut number = || parts.next().and_then(|part| part.parse().ok());
    let (Some(seed), Some(seconds)) = (number(), number()) else {
        panic!("DASHI_TEST_TORTURE={plan} is not SEED:SECONDS or SEED:SECONDS:TEXT")
    };
    (seed, Duration::from_secs(seconds), parts.next().unwrap_or_default().to_owned())
}

/// The moments of a run, printed if it fails.
struct Diary {
    begun: Instant,
    lines: String,
}

impl Diary {
    fn enter(&mut self, line: &str) {
        let _ = writeln!(self.lines, "{:8.3} s  {line}", self.begun.elapsed().as_secs_f64());
    }
}

impl Drop for Diary {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- what happened:\n{}", self.lines);
        }
    }
}

async fn torture(mut world: World, again: &str) {
    let (seed, duration, only) = plan();
    let mut ledger = Ledger::new(&world.deployment);
    let loads: Vec<_> = world
        .collectors()
        .map(|collector| {
            ledger.start(&collector, |plan| {
                plan.connections = 32;
                plan.sessions = 300;
                // New visitors, who pass a backlog.
                plan.new_every = Some(5);
                plan.mode = Mode::Open { requests_per_s: RATE };
                plan.duration = duration + LONG;
            })
        })
        .collect();
    let mut diary = Diary { begun: Instant::now(), lines: String::new() };
    diary.enter(&format!("DASHI_TEST_TORTURE={seed}:{}", duration.as_secs()));
    let survived = disturb(&mut world, &mut Random(seed), (duration, &only), &mut diary).await;
    world.ready().await;
    world.grow_at_last().await;
    diary.enter("the log has grown");
    let mut answered = [0; 2];
    for load in loads {
        let report = ledger.stop(load).await;
        answered[0] += report.counts.statuses.get(&200).copied().unwrap_or(0);
        answered[1] += report.counts.requests + report.counts.errors.total() + report.counts.missed;
    }
    diary.enter("the faults are over");
    let forwarded = world.spools_are_empty().await;

    let status = ledger.check().await;
    let audit = world.run(&["audit", "--json"], LONG).await;
    let audit: Value = serde_json::from_str(&audit).expect("audit --json prints JSON");
    assert_eq!(audit["adds_up"], true, "{audit}");
    world.run(&["replay", "--into", again], LONG).await;
    world.run(&["compare", world.deployment.store(), again], LONG).await;
    diary.enter("the tables are those of a replay");

    let totals = status.totals;
    let mut report = format!(
        "\ntorture, seed {seed}, {} s on {}\n\n| fault | survived |\n|---|---|\n",
        duration.as_secs(),
        world.name()
    );
    for (fault, count) in &survived {
        let _ = writeln!(report, "| {fault} | {count} |");
    }
    let grown: Value = serde_json::from_str(&world.run(&["partitions", "--json"], LONG).await).expect("JSON");
    assert!(grown["layouts"].as_array().is_some_and(|layouts| layouts.len() > 1), "{grown}");
    let replaced = world.lines_with("the Kafka producer is broken");
    let _ = writeln!(
        report,
        "\n| events | |\n|---|---|\n| sent | {} |\n| acknowledged | {} |\n| in the log | {} |\n| applied | {} |\n\
         | duplicate | {} |\n| dead letters | {} |\n| forwarded from a spool by the last collectors | {} |\n| Kafka producers \
         replaced | {} |\n| layouts of the log | {} |\n",
        answered[1],
        ledger.acknowledged(),
        totals.in_log,
        totals.applied,
        totals.duplicate,
        totals.dead,
        forwarded,
        replaced.len(),
        grown["layouts"].as_array().map_or(0, Vec::len)
    );
    for line in replaced {
        let _ = writeln!(report, "{line}");
    }
    let tails = world.lines_with("there is a backlog").len();
    let _ = writeln!(report, "| backlogs that live events passed | {tails} |");
    let (befell, lost) = if only.is_empty() {
        accidents::befall(&mut world, &mut ledger, &mut Random(seed), &mut diary).await
    } else {
        Default::default()
    };
    for accident in befell {
        let _ = writeln!(report, "| {accident} | 1 |");
    }
    let _ = writeln!(report, "| events that the log lost by that, at most | {lost} |");
    #[expect(clippy::print_stdout, reason = "the report is what a long run is for")]
    {
        println!("{report}");
    }
    assert!(ledger.acknowledged() as u64 >= answered[0], "{report}");
    assert!(ledger.acknowledged() > 100, "{report}");
    world.stop().await;
}

/// Makes faults until the time is over and each kind has come up; returns how often each came.
async fn disturb(
    world: &mut World,
    random: &mut Random,
    (duration, only): (Duration, &str),
    diary: &mut Diary,
) -> BTreeMap<&'static str, u32> {
    let mut deck = Deck::new(world.faults(), only);
    let mut active: Vec<Active> = Vec::new();
    let mut survived = BTreeMap::new();
    while diary.begun.elapsed() < duration || !deck.is_through() {
        let fault = deck.draw(random, world);
        // One fault of a thing at a time, and not too many together; a rolling restart is one of healthy processes.
        while active.len() >= TOGETHER || active.iter().any(|other| other.fault.excludes(&fault)) {
            end_next(world, &mut active, diary).await;
        }
        if matches!(fault, Fault::RollingRestart) {
            world.ready().await;
        }
        diary.enter(&format!("{} {fault:?}", fault.name()));
        fault.begin(world).await;
        *survived.entry(fault.name()).or_default() += 1;
        active.push(Active { ends_at: Instant::now() + fault.lasts(random), fault });
        // The moment is random on purpose: nothing is waited for.
        tokio::time::sleep(random.duration(100, 1_500)).await;
        while active.iter().any(|fault| fault.ends_at <= Instant::now()) {
            end_next(world, &mut active, diary).await;
        }
        world.supervise(&active);
    }
    while !active.is_empty() {
        end_next(world, &mut active, diary).await;
    }
    survived
}

/// Waits for the fault that ends first, and ends it.
async fn end_next(world: &mut World, active: &mut Vec<Active>, diary: &mut Diary) {
    let next = (0..active.len()).min_by_key(|index| active[*index].ends_at).expect("a fault lasts");
    let Active { fault, ends_at } = active.swap_remove(next);
    tokio::time::sleep_until(ends_at.into()).await;
    fault.end(world).await;
    diary.enter(&format!("{} {fault:?} is over", fault.name()));
}

impl Fault {
    /// Whether the other one must not begin while this one lasts.
    fn excludes(&self, other: &Self) -> bool {
        self.subject() == other.subject() || matches!(other, Self::RollingRestart)
    }
}
