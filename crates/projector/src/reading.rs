//! How much a partition reads at once, so that the memory of all partitions has a bound.
//!
//! A batch has a share of the [`Budget`](crate::budget::Budget) while it is folded and written, and a part of it until it is
//! committed. A partition with a backlog takes that share before it reads, so those that wait for theirs hold no records. One
//! without a backlog reads first, since a share that waits for records would hold up the others, and so it reads a part of a
//! batch at most.

use std::pin::pin;
use std::time::Duration;

use dashi_domain::position::Checkpoint;
use dashi_event_log::ReadLimit;

use crate::budget::Share;
use crate::partition::PartitionTask;
use crate::source::{Batch, LastApplied, ReadError, Source};

/// How often a task that waits for a share notes that it does.
const SIGN: Duration = Duration::from_secs(1);

/// How much a partition reads at once.
pub(crate) struct Reading {
    /// The limit of a batch.
    whole: ReadLimit,
    /// The limit of the last read.
    limit: ReadLimit,
    /// The bytes of the next batch, where it is probably a large one.
    expected: Option<usize>,
}

impl Reading {
    /// Of a batch, what is read at most before there is a share of the budget for it.
    const PART: usize = 4;

    /// How long a read waits that holds a share: the log has more records in all likelihood.
    const WAIT: Duration = Duration::from_millis(50);

    pub fn new(whole: ReadLimit) -> Self {
        Self { whole, limit: whole, expected: None }
    }

    /// The limit of a read without a share.
    fn few(&mut self) -> ReadLimit {
        let ReadLimit { records_max, bytes_max, wait } = self.whole;
        self.limit = ReadLimit {
            records_max: records_max.div_ceil(Self::PART),
            bytes_max: bytes_max.div_ceil(Self::PART),
            wait,
        };
        self.limit
    }

    /// The limit of a read with a share of so many bytes.
    fn many(&mut self, bytes: usize) -> ReadLimit {
        let ReadLimit { records_max, bytes_max, wait } = self.whole;
        self.limit = ReadLimit { records_max, bytes_max: bytes_max.min(bytes), wait: wait.min(Self::WAIT) };
        self.limit
    }

    /// After a read: expects as many records again as a batch takes, of the same size, if these were many.
    fn has_read(&mut self, batch: &Batch) {
        let (records, bytes) = (batch.records.len(), batch.bytes());
        let few = self.whole.records_max.div_ceil(Self::PART);
        let is_many = records > 0 && (records >= few || bytes >= self.whole.bytes_max.div_ceil(Self::PART));
        self.expected = is_many.then(|| {
            let each = (bytes / records).max(1);
            let usual = each.saturating_mul(self.whole.records_max);
            // A little more, so that it is the count that ends a batch.
            usual.saturating_add(usual / 8).min(self.whole.bytes_max)
        });
    }

    /// Whether a batch has reached the limit of its read, so that there are probably more records.
    pub fn is_full(&self, batch: &Batch) -> bool {
        batch.records.len() >= self.limit.records_max || batch.bytes() >= self.limit.bytes_max
    }
}

impl PartitionTask {
    /// Reads on. Where many records are expected, a share of the budget is waited for first, so that the partitions that
    /// wait hold no records; otherwise a part of a batch is read at most.
    pub async fn read(
        &self,
        reading: &mut Reading,
        source: &mut Source,
        from: Checkpoint,
        last: LastApplied,
    ) -> (Result<Batch, ReadError>, Option<Share>) {
        let Some(expected) = reading.expected.take() else {
            let batch = source.read(self, reading.few(), from, last).await;
            if let Ok(batch) = &batch {
                reading.has_read(batch);
            }
            return (batch, None);
        };
        let Some(mut share) = self.wait_for_share(expected).await else {
            return (Ok(Batch::empty(from)), None);
        };
        let read = source.read(self, reading.many(share.bytes()), from, last).await;
        match read {
            Ok(batch) if !batch.records.is_empty() => {
                share.keep(batch.bytes());
                reading.has_read(&batch);
                (Ok(batch), Some(share))
            }
            read => (read, None),
        }
    }

    /// The share of a batch that is about to be applied, after waiting for it if need be; `None` if it is to stop.
    pub async fn share(&self, share: Option<Share>, batch: &Batch) -> Option<Share> {
        match share {
            Some(share) => Some(share),
            None => self.wait_for_share(batch.bytes()).await,
        }
    }

    /// Waits for a share of the budget; `None` if it is to stop. Others hold theirs while the store is away, so this wait has no
    /// bound, and it is no standstill: the task notes that it waits.
    async fn wait_for_share(&self, bytes: usize) -> Option<Share> {
        let mut taking = pin!(self.budget.take(bytes));
        let mut tick = tokio::time::interval(SIGN);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                share = &mut taking => return Some(share),
                _ = tick.tick() => self.shared.progress.waits(self.partition, SIGN),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dashi_domain::position::{Offset, Partition};
    use dashi_domain::record::Record;

    use super::*;

    const WHOLE: ReadLimit =
        ReadLimit { records_max: 100, bytes_max: 100_000, wait: Duration::from_millis(500) };

    fn batch(records: u64, bytes: usize) -> Batch {
        let record = |offset| Record {
            partition: Partition::new(0),
            offset: Offset::new(offset),
            appended_at_ms: 0,
            value: vec![0; bytes],
        };
        Batch {
            records: (0..records).map(record).collect(),
            to: Checkpoint::at(Offset::new(records)),
            ..Batch::empty(Checkpoint::START)
        }
    }

    #[test]
    fn a_share_is_taken_before_a_read_only_where_many_records_are_expected() {
        let mut reading = Reading::new(WHOLE);
        let few = reading.few();
        assert_eq!((few.records_max, few.bytes_max, few.wait), (25, 25_000, WHOLE.wait));
        for (read, expected, is_full) in [
            (batch(0, 0), None, false),
            (batch(24, 100), None, false),
            // A hundred of their size, and an eighth.
            (batch(25, 100), Some(11_250), true),
            (batch(2, 20_000), Some(WHOLE.bytes_max), true),
            (batch(1, 300_000), Some(WHOLE.bytes_max), true),
        ] {
            reading.has_read(&read);
            assert_eq!((reading.expected, reading.is_full(&read)), (expected, is_full));
        }
    }

    #[test]
    fn a_batch_is_no_larger_than_its_share_and_waits_for_records_only_a_moment() {
        let mut reading = Reading::new(WHOLE);
        let many = reading.many(40_000);
        assert_eq!((many.records_max, many.bytes_max, many.wait), (100, 40_000, Reading::WAIT));
        assert!(!reading.is_full(&batch(50, 100)));
        assert!(reading.is_full(&batch(100, 1)) && reading.is_full(&batch(4, 10_000)));
        assert_eq!(reading.many(usize::MAX).bytes_max, WHOLE.bytes_max);
    }
}
