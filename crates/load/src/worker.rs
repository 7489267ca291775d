//! A worker: one connection with one request at a time.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::connection::{Answer, Connection, ConnectionError, Target};
use crate::job::Job;
use crate::plan::LoadPlan;
use crate::random::Random;

/// Sends requests over one connection, each after the answer to the last, until the run ends. Makes a new connection
/// when it is lost.
pub(crate) async fn work(job: Arc<Job>, mut connection: Option<Connection>, number: u64) {
    // Streams below 2^63 belong to events.
    let mut random = Random::new(job.plan.seed, u64::MAX - number);
    let (mut events, mut body, mut request) = (Vec::new(), Vec::new(), Vec::new());
    let mut failures = 0;
    while !job.stop.is_cancelled() {
        let mut current = match connection.take() {
            Some(current) => current,
            None => {
                job.pause(backoff(failures, &mut random)).await;
                match job.stop.run_until_cancelled(connect(&job.target, job.plan.timeout)).await {
                    None => return,
                    Some(Ok(new)) => new,
                    Some(Err(error)) => {
                        failures += 1;
                        job.count_error(Instant::now(), &error);
                        continue;
                    }
                }
            }
        };
        let Some(turn) = job.next_turn().await else { return };
        job.compose(&turn, &mut events, &mut body, &mut request);
        match timeout(job.plan.timeout, current.exchange(&request)).await {
            Ok(Ok(answer)) => {
                failures = 0;
                job.count_answer(&turn, &events, answer, current.body());
                connection = current.is_usable().then_some(current);
                if let Some(pause) = pause_after(&job.plan, answer) {
                    job.count(turn.from, |counts| counts.pauses += 1);
                    job.pause(pause).await;
                }
            }
            Ok(Err(error)) => {
                failures += 1;
                job.count_error(turn.from, &error);
            }
            Err(_) => {
                failures += 1;
                job.count(turn.from, |counts| counts.errors.timeout += 1);
            }
        }
    }
}

/// Connects within `time`.
pub(crate) async fn connect(target: &Target, time: Duration) -> Result<Connection, ConnectionError> {
    timeout(time, Connection::connect(&target.authority)).await.unwrap_or_else(|_| {
        let source = io::ErrorKind::TimedOut.into();
        Err(ConnectionError::Connect { authority: target.authority.clone(), source })
    })
}

/// Pause before connecting after `failures` in a row: none, then about 20 ms, doubling up to 1 s, of
/// which up to half is random so that connections do not return all at once.
fn backoff(failures: u32, random: &mut Random) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
    let full_us = 20_000u64.saturating_mul(1 << doublings.min(10)).min(1_000_000);
    Duration::from_micros(full_us / 2 + random.below(full_us / 2))
}

/// Longest pause that a `Retry-After` can ask for.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The pause that an answer asks for, if the plan heeds it.
fn pause_after(plan: &LoadPlan, answer: Answer) -> Option<Duration> {
    let asked = plan.pause_on_retry_after && matches!(answer.status, 429 | 503);
    let pause = Duration::from_secs(answer.retry_after_s.filter(|_| asked)?);
    Some(pause.min(PAUSE_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_grows_to_a_second_and_no_further() {
        let mut random = Random::new(1, 1);
        assert_eq!(backoff(0, &mut random), Duration::ZERO);
        for failures in 1..100 {
            let full_ms = (20u64 << (failures - 1).min(10)).min(1_000);
            let pause_ms = backoff(failures, &mut random).as_millis() as u64;
            assert!((full_ms / 2..=full_ms).contains(&pause_ms), "{failures}: {pause_ms}");
        }
    }
}
