//! Carrying out decisions: the records of a request are appended together; those that are historical go into the lane.

use std::time::Instant;

use dashi_domain::liveness::Watched;
use dashi_event_log::{AppendError, EventLog, Lane, NewRecord};

use crate::answer::Rejection;
use crate::frame::{Decision, Outcomes, PartOutcome};
use crate::metrics::IngestMetrics;

/// Appends the records of all decisions at once. Returns the outcome of each, in their order; a stored one is durable. Without a
/// lane, historical records are appended with the others. `appends` notes that they are under way.
pub(crate) async fn carry_out<S, A>(
    log: &EventLog,
    lane: Option<&Lane>,
    metrics: &IngestMetrics,
    appends: &Watched,
    decisions: Vec<Decision<S, A>>,
) -> Outcomes<S, A> {
    let lane = lane.filter(|lane| lane.takes());
    let (mut records, mut historical) = (Vec::with_capacity(decisions.len()), Vec::new());
    let waiting: Vec<_> = decisions
        .into_iter()
        .map(|decision| match decision {
            Decision::Append(record, stored) => {
                records.push(record);
                Waiting::ForAppend(stored)
            }
            Decision::Lane(record, stored) if lane.is_none() => {
                records.push(record);
                Waiting::ForAppend(stored)
            }
            Decision::Lane(record, stored) => {
                historical.push(record);
                Waiting::ForLane(stored)
            }
            Decision::Answer(answer) => Waiting::No(PartOutcome::Answered(answer)),
            Decision::Refuse(rejection) => Waiting::No(PartOutcome::Refused(rejection)),
        })
        .collect();
    let in_lane = async {
        match lane {
            Some(lane) if !historical.is_empty() => results(lane.accept(historical).await),
            _ => Vec::new(),
        }
    };
    let part = appends.part();
    let (appended, in_lane) = tokio::join!(append(log, metrics, records), in_lane);
    drop(part);
    let (mut appended, mut in_lane) = (appended.into_iter(), in_lane.into_iter());
    let outcome = |stored, result| match result {
        Some(Ok(())) => PartOutcome::Stored(stored),
        Some(Err(rejection)) => PartOutcome::Refused(rejection),
        None => PartOutcome::Refused(Rejection::Unavailable),
    };
    waiting
        .into_iter()
        .map(|waiting| match waiting {
            Waiting::No(outcome) => outcome,
            Waiting::ForAppend(stored) => outcome(stored, appended.next()),
            Waiting::ForLane(stored) => outcome(stored, in_lane.next()),
        })
        .collect()
}

/// Whether a part waits for its record to be durable, and where.
enum Waiting<S, A> {
    ForAppend(S),
    ForLane(S),
    No(PartOutcome<S, A>),
}

/// Appends records. A record whose result is `Ok` is durable.
async fn append(
    log: &EventLog,
    metrics: &IngestMetrics,
    records: Vec<NewRecord>,
) -> Vec<Result<(), Rejection>> {
    if records.is_empty() {
        return Vec::new();
    }
    let began = Instant::now();
    let accepted = log.accept(records).await;
    metrics.append_seconds.observe(began.elapsed().as_secs_f64());
    results(accepted)
}

fn results(accepted: Vec<Result<(), AppendError>>) -> Vec<Result<(), Rejection>> {
    let result = |accepted| match accepted {
        Ok(()) => Ok(()),
        Err(AppendError::TooLarge { .. }) => Err(Rejection::TooLarge),
        Err(
            AppendError::Full
            | AppendError::Unconfirmed(_)
            | AppendError::Refused(_)
            | AppendError::SpoolFull(_)
            | AppendError::LaneFull(_)
            | AppendError::Held
            | AppendError::Closed,
        ) => Err(Rejection::Unavailable),
    };
    accepted.into_iter().map(result).collect()
}
