//! Steering: starts the workers and the pacer, reports progress, ends the run in time, and adds everything up.

use std::panic;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use async_recursion::async_recursion as boxed;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::connection::Target;
use crate::cpu::thread_cpu_s;
use crate::error::LoadError;
use crate::job::{Job, per_s};
use crate::plan::LoadPlan;
use crate::report::{Counts, Report, Snapshot};
use crate::schedule::pace;
use crate::worker::{connect, work};

/// Runs `plan` to its end, or to `stop`, and reports the requests made until then.
///
/// After `stop`, requests under way are still awaited, at most the plan's time-out, because only their
/// answers show whether their events were acknowledged. `progress` is called every 500 ms and once at the
/// end, on the generator's thread: it should return quickly. Dropping the future stops the run.
///
/// # Errors
/// See [`LoadError`]. A server that goes away during the run is no error: new connections are made
/// with growing pauses of at most 1 s, and the report counts the failures.
pub async fn run(
    plan: LoadPlan,
    stop: CancellationToken,
    progress: impl Fn(&Snapshot) + Send + Sync + 'static,
) -> Result<Report, LoadError> {
    drive(plan, stop, Box::new(progress)).await
}

/// What is called with each snapshot.
type Watch = dyn Fn(&Snapshot) + Send + Sync;

#[boxed]
async fn drive(plan: LoadPlan, stop: CancellationToken, progress: Box<Watch>) -> Result<Report, LoadError> {
    plan.check()?;
    let target = Target::parse(&plan.target)
        .ok_or(LoadError::Plan("target is not http://host:port with an optional path"))?;
    let stop = stop.child_token();
    let _stop_when_dropped = stop.clone().drop_guard();
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new()
        .name("dashi-load".to_owned())
        .spawn(move || {
            let report = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(LoadError::Start)
                .and_then(|runtime| runtime.block_on(steer(plan, target, stop, &*progress)));
            // The caller may have dropped the future.
            let _ = sender.send(report);
        })
        .map_err(LoadError::Start)?;
    // Without a report the sender was dropped by a panic, which has printed itself.
    receiver.await.unwrap_or(Err(LoadError::Panicked))
}

/// How often the journal is flushed. Every `SNAPSHOT_TICKS`th time progress is reported.
const TICK: Duration = Duration::from_millis(100);
const SNAPSHOT_TICKS: u32 = 5;

/// Starts the workers, ends the run when it is time, and adds everything up.
async fn steer(
    plan: LoadPlan,
    target: Target,
    stop: CancellationToken,
    progress: &Watch,
) -> Result<Report, LoadError> {
    let first = connect(&target, plan.timeout)
        .await
        .map_err(|source| LoadError::Unreachable { authority: target.authority.clone(), source })?;
    let (connections, total) = (plan.connections, plan.warmup + plan.duration);
    let job = Arc::new(Job::new(plan, target, stop.clone())?);

    let mut workers = JoinSet::new();
    let mut first = Some(first);
    for number in 0..connections {
        workers.spawn(work(job.clone(), first.take(), number as u64));
    }
    let pacer = job.schedule.map(|schedule| {
        let job = job.clone();
        thread::spawn(move || {
            pace(schedule, job.start, &job.turns, &job.stop);
            thread_cpu_s()
        })
    });

    let mut cpu_before_s = None;
    let mut stopped_at = None;
    let mut progress = ProgressReporter { job: &job, total, callback: progress, last: (Duration::ZERO, 0) };
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (warm, end) = (sleep(job.plan.warmup), sleep(total));
    tokio::pin!(warm, end);
    let mut ticked = 0;
    loop {
        tokio::select! {
            () = &mut warm, if cpu_before_s.is_none() => cpu_before_s = Some(thread_cpu_s()),
            () = &mut end, if stopped_at.is_none() => job.end(),
            _ = ticks.tick() => {
                job.flush();
                // The first tick comes at once.
                if ticked > 0 && ticked % SNAPSHOT_TICKS == 0 {
                    progress.report();
                }
                ticked += 1;
            }
            worker = workers.join_next() => match worker {
                None => break,
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    job.end();
                    // Workers are never aborted, so this is a panic.
                    if let Ok(cause) = error.try_into_panic() {
                        panic::resume_unwind(cause);
                    }
                }
            },
            () = stop.cancelled(), if stopped_at.is_none() => {
                stopped_at = Some(Instant::now());
                job.end();
            }
        }
    }
    let stopped_at = stopped_at.unwrap_or_else(Instant::now);
    let cpu_s = thread_cpu_s();
    job.end();
    job.flush();
    let pacer_cpu_s = match pacer.map(thread::JoinHandle::join) {
        None => Some(0.0),
        Some(Ok(cpu_s)) => cpu_s,
        Some(Err(cause)) => panic::resume_unwind(cause),
    };
    progress.report();

    if let Some(journal) = &job.journal
        && let Some(source) = journal.take_failure()
    {
        return Err(LoadError::Journal { path: journal.path().to_owned(), source });
    }
    let client_cpu_s = (|| Some(cpu_s? - cpu_before_s.flatten().unwrap_or(0.0) + pacer_cpu_s?))();
    Ok(job.report(stopped_at, client_cpu_s))
}

/// Computes snapshots and passes them to the caller.
struct ProgressReporter<'a> {
    job: &'a Job,
    total: Duration,
    callback: &'a Watch,
    /// Time of the last snapshot since the start, and the requests answered until then.
    last: (Duration, u64),
}

impl ProgressReporter<'_> {
    fn report(&mut self) {
        let elapsed = self.job.start.elapsed();
        let tally = self.job.tally();
        let sum = |field: fn(&Counts) -> u64| field(&tally.warmup) + field(&tally.counts);
        let requests = sum(|counts| counts.requests);
        let events = sum(|counts| counts.acknowledged_events);
        let errors = sum(Counts::failures);
        drop(tally);
        let (before, requests_before) = self.last;
        let requests_per_s = per_s(requests - requests_before, elapsed.saturating_sub(before));
        self.last = (elapsed, requests);
        (self.callback)(&Snapshot { elapsed, total: self.total, requests, events, requests_per_s, errors });
    }
}
