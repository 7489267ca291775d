//! Carrying out decisions: the records of a request are appended together.

use std::time::Instant;

use dashi_event_log::{AppendError, EventLog, NewRecord};

use crate::answer::Rejection;
use crate::frame::{Decision, Outcomes, PartOutcome};
use crate::metrics::IngestMetrics;

/// Appends the records of all decisions at once. Returns the outcome of each, in their order; a stored one is durable.
pub(crate) async fn carry_out<S, A>(
    log: &EventLog,
    metrics: &IngestMetrics,
    decisions: Vec<Decision<S, A>>,
) -> Outcomes<S, A> {
    let mut records = Vec::with_capacity(decisions.len());
    let waiting: Vec<_> = decisions
        .into_iter()
        .map(|decision| match decision {
            Decision::Append(record, stored) => {
                records.push(record);
                Waiting::ForAppend(stored)
            }
            Decision::Answer(answer) => Waiting::No(PartOutcome::Answered(answer)),
            Decision::Refuse(rejection) => Waiting::No(PartOutcome::Refused(rejection)),
        })
        .collect();
    let mut appended = append(log, metrics, records).await.into_iter();
    waiting
        .into_iter()
        .map(|waiting| match waiting {
            Waiting::No(outcome) => outcome,
            Waiting::ForAppend(stored) => match appended.next() {
                Some(Ok(())) => PartOutcome::Stored(stored),
                Some(Err(rejection)) => PartOutcome::Refused(rejection),
                None => PartOutcome::Refused(Rejection::Unavailable),
            },
        })
        .collect()
}

/// Whether a part waits for its record to be appended.
enum Waiting<S, A> {
    ForAppend(S),
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
    let result = |accepted| match accepted {
        Ok(()) => Ok(()),
        Err(AppendError::TooLarge { .. }) => Err(Rejection::TooLarge),
        Err(
            AppendError::Full
            | AppendError::Unconfirmed(_)
            | AppendError::Refused(_)
            | AppendError::SpoolFull(_)
            | AppendError::Closed,
        ) => Err(Rejection::Unavailable),
    };
    accepted.into_iter().map(result).collect()
}
