//! What lies in a gap between two offsets: records that are missing, or what never was a record for its readers.
//!
//! Dashi's own producer leaves no gaps. Transactions of other producers do: each ends with a marker, which takes an
//! offset and is shown to nobody, and the records of one that was aborted are not shown either. Compaction and deletion
//! leave gaps that look the same. They are told apart by reading the gap again, batch by batch:
//!
//! * a client that reads uncommitted records is shown those of aborted transactions;
//! * a marker is shown to nobody, but it moves the client's position. A client that fetches one batch and then no more
//!   until it is told to stands behind the marker when it was the first thing in the gap.
//!
//! What moves nothing is missing. On a cluster that has no transaction log no transaction ever was, and nothing has to be
//! read. Its limit: a transaction whose records and marker were both compacted away counts as missing, as it should.

use std::ops::Range;
use std::time::{Duration, Instant};

use dashi_domain::position::{Offset, Partition};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message as _;

use super::client::{Quiet, reader_config};
use super::read::assignment;
use super::{ASK, KafkaLog, Shared};
use crate::LogError;

/// Kafka's own topic of transactions; it is made with the cluster's first one.
const TRANSACTIONS: &str = "__transaction_state";

/// How long the first client is waited for that is to read a batch; each further one twice as long as the one before,
/// and the last one for longer than the maximum.
const PATIENCE: Duration = Duration::from_millis(500);
const PATIENCE_MAX: Duration = Duration::from_secs(10);

impl KafkaLog {
    /// Which parts of gaps are missing records; `gaps` in order. What is not returned are markers and records of aborted
    /// transactions.
    pub(crate) async fn missing(
        &self,
        partition: Partition,
        gaps: Vec<Range<Offset>>,
    ) -> Result<Vec<Range<Offset>>, LogError> {
        let missing = self
            .ask("looking into a gap between records", move |shared| {
                if had_no_transactions(shared)? { Ok(gaps) } else { look_into(shared, partition, &gaps) }
            })
            .await?;
        // What was looked into is this topic's.
        self.verify(None, Instant::now()).await?;
        Ok(missing)
    }
}

fn had_no_transactions(shared: &Shared) -> KafkaResult<bool> {
    let metadata = shared.admin.inner().fetch_metadata(Some(TRANSACTIONS), ASK)?;
    let error = metadata.topics().first().and_then(|topic| topic.error()).map(RDKafkaErrorCode::from);
    Ok(error == Some(RDKafkaErrorCode::UnknownTopicOrPartition))
}

fn look_into(
    shared: &Shared,
    partition: Partition,
    gaps: &[Range<Offset>],
) -> KafkaResult<Vec<Range<Offset>>> {
    let topic = &shared.settings.topic;
    let (low, _) = shared.admin.inner().fetch_watermarks(topic, partition.number() as i32, ASK)?;
    let low = Offset::new(low.max(0) as u64);
    let mut consumer = onlooker(shared)?;
    let mut missing = Vec::new();
    for gap in gaps {
        let mut at = gap.start;
        // Nobody can say any more what was below.
        if at < low {
            missing.push(at..low.min(gap.end));
            at = low.min(gap.end);
        }
        let mut patience = PATIENCE;
        while at < gap.end {
            consumer.assign(&assignment(topic, partition, at)?)?;
            match one_batch(&consumer, at, gap.end, patience, &mut missing)? {
                Some(next) => (at, patience) = (next, PATIENCE),
                None if patience > PATIENCE_MAX => {
                    return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut));
                }
                // It may have put off its next fetch, and does so over assignments; a new one may need longer to connect.
                None => (consumer, patience) = (onlooker(shared)?, patience * 2),
            }
        }
    }
    Ok(missing)
}

/// A client that is shown records of aborted transactions, too. It fetches one batch, and then none for a minute, unless
/// all of it was taken: nothing but the batch is in its queue.
fn onlooker(shared: &Shared) -> KafkaResult<BaseConsumer<Quiet>> {
    reader_config(&shared.settings)
        .set("isolation.level", "read_uncommitted")
        .set("fetch.message.max.bytes", "1")
        .set("queued.min.messages", "1")
        .set("fetch.queue.backoff.ms", "60000")
        .set("fetch.wait.max.ms", "10")
        .create_with_context(Quiet::default())
}

/// Reads the batch at `at`, or the next one behind it; returns the offset that is to be looked at next, or `None` if
/// nothing came.
fn one_batch(
    consumer: &BaseConsumer<Quiet>,
    at: Offset,
    end: Offset,
    patience: Duration,
    missing: &mut Vec<Range<Offset>>,
) -> KafkaResult<Option<Offset>> {
    let began = Instant::now();
    let mut next = at;
    // There is something at the offset `found`: what lies before it is missing.
    let mut pass = |next: &mut Offset, found: Offset| {
        let found = found.min(end);
        if *next < found {
            missing.push(*next..found);
        }
        *next = found.next().min(end).max(*next);
    };
    while next < end {
        match consumer.poll(Duration::ZERO) {
            Some(Ok(message)) => pass(&mut next, Offset::new(message.offset().max(0) as u64)),
            Some(Err(error)) if is_passing(&error) => {}
            Some(Err(error)) => return Err(error),
            None => match position(consumer)? {
                Some(position) if position > next => {
                    pass(&mut next, Offset::new(position.number() - 1));
                    break;
                }
                _ if next > at => break,
                _ if began.elapsed() > patience => return Ok(None),
                _ => std::thread::sleep(Duration::from_millis(1)),
            },
        }
    }
    Ok(Some(next))
}

/// Errors of connections, which the client mends by itself.
fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error,
        KafkaError::MessageConsumption(
            RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown
        )
    )
}

fn position(consumer: &BaseConsumer<Quiet>) -> KafkaResult<Option<Offset>> {
    Ok(match consumer.position()?.elements().first().map(|element| element.offset()) {
        Some(rdkafka::Offset::Offset(offset)) => Some(Offset::new(offset.max(0) as u64)),
        _ => None,
    })
}
