//! Gaps between two offsets: which hold records that are missing, and which never held a record for readers.
//!
//! Dashi's own producer leaves no gaps. Transactions of other producers do: each ends with a marker, which takes an
//! offset and is shown to no reader, and the records of an aborted transaction are not shown either. Compaction and deletion
//! leave gaps that look the same. Reading the gap again, batch by batch, distinguishes them:
//!
//! * a client that reads uncommitted records receives those of aborted transactions;
//! * a marker is shown to no client, but it moves the client's position. If a client fetches one batch and then no more,
//!   and its position has moved behind an offset, that offset held a marker.
//!
//! Offsets that give no record and move no position are missing records. A cluster without a transaction log never had a
//! transaction, so there nothing has to be read. The limit of this method: a transaction whose records and marker were both
//! compacted away counts as missing, as it should.

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

/// Kafka's own topic of transactions; the cluster creates it with its first transaction.
const TRANSACTIONS: &str = "__transaction_state";

/// How long the first client has to read a batch. Each further client has twice as long as the one before; the last one
/// has longer than the maximum.
const PATIENCE: Duration = Duration::from_millis(500);
const PATIENCE_MAX: Duration = Duration::from_secs(10);

impl KafkaLog {
    /// The parts of `gaps` whose records are missing; `gaps` are in order. The parts that are not returned are markers and
    /// records of aborted transactions.
    pub(crate) async fn missing(
        &self,
        partition: Partition,
        gaps: Vec<Range<Offset>>,
    ) -> Result<Vec<Range<Offset>>, LogError> {
        let missing = self
            .ask("looking into a gap between records", move |shared| {
                if had_no_transactions(shared)? {
                    Ok(gaps.clone())
                } else {
                    look_into(shared, partition, &gaps)
                }
            })
            .await?;
        // The gaps that were read are of this log, not of one that took its name meanwhile.
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
    let mut consumer = uncommitted_reader(shared)?;
    let mut missing = Vec::new();
    for gap in gaps {
        let mut at = gap.start;
        // Below `low` nothing can be read any more, so all of it counts as missing.
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
                // The client may have postponed its next fetch, and keeps postponing it after a new assignment; so a new
                // client is made, which may need longer to connect.
                None => (consumer, patience) = (uncommitted_reader(shared)?, patience * 2),
            }
        }
    }
    Ok(missing)
}

/// A client that also receives records of aborted transactions. It fetches one batch, and then no other for a minute while
/// records of the batch are in its queue: so its queue holds that batch only.
fn uncommitted_reader(shared: &Shared) -> KafkaResult<BaseConsumer<Quiet>> {
    reader_config(&shared.settings)
        .set("isolation.level", "read_uncommitted")
        .set("fetch.message.max.bytes", "1")
        .set("queued.min.messages", "1")
        .set("fetch.queue.backoff.ms", "60000")
        .set("fetch.wait.max.ms", "10")
        .create_with_context(Quiet::default())
}

/// Reads the batch at `at`, or the next one behind it; returns the offset to look at next, or `None` if nothing came.
fn one_batch(
    consumer: &BaseConsumer<Quiet>,
    at: Offset,
    end: Offset,
    patience: Duration,
    missing: &mut Vec<Range<Offset>>,
) -> KafkaResult<Option<Offset>> {
    let began = Instant::now();
    let mut next = at;
    // The offset `found` holds something, so the records before it are missing.
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

/// Whether it is an error of a connection, which the client makes again by itself.
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
