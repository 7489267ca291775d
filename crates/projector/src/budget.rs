//! A bound of memory over all partitions of a process: the bytes of records that are read in full batches, folded and
//! written at one moment.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A permit is so many bytes.
const UNIT: usize = 1 << 10;

/// The bytes that batches share. Whoever asks first gets its share first, whatever its size. All clones are one.
#[derive(Clone)]
pub(crate) struct Budget {
    units: Arc<Semaphore>,
    all: u32,
}

impl Budget {
    pub fn new(bytes: usize) -> Self {
        let all = units(bytes).min(Semaphore::MAX_PERMITS as u32);
        Self { units: Arc::new(Semaphore::new(all as usize)), all }
    }

    /// Waits for a share of so many bytes, or for all of them if they are fewer.
    pub async fn take(&self, bytes: usize) -> Share {
        match Arc::clone(&self.units).acquire_many_owned(units(bytes).min(self.all)).await {
            Ok(permits) => Share(permits),
            // Nobody closes it.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Bytes of the budget; given back when it is dropped.
pub(crate) struct Share(OwnedSemaphorePermit);

impl Share {
    pub fn bytes(&self) -> usize {
        self.0.num_permits() * UNIT
    }

    /// Gives back all but so many bytes.
    pub fn keep(&mut self, bytes: usize) {
        drop(self.0.split(self.0.num_permits().saturating_sub(units(bytes) as usize)));
    }
}

/// At least one, so that a batch of few bytes waits its turn, too.
fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn shares_never_add_up_to_more_than_the_budget() {
        let budget = Budget::new(10 * UNIT);
        let mut large = budget.take(8 * UNIT).now_or_never().expect("there is enough");
        assert_eq!(large.bytes(), 8 * UNIT);
        assert!(budget.take(3 * UNIT).now_or_never().is_none());
        large.keep(4 * UNIT + 1);
        assert_eq!(large.bytes(), 5 * UNIT);
        let other = budget.take(5 * UNIT).now_or_never().expect("the rest was given back");
        assert!(budget.take(1).now_or_never().is_none());
        drop((large, other));
        let all =
            budget.take(usize::MAX).now_or_never().expect("a batch that is larger than the budget takes all");
        assert_eq!(all.bytes(), 10 * UNIT);
    }

    #[test]
    fn keeping_more_than_was_taken_changes_nothing() {
        let budget = Budget::new(4 * UNIT);
        let mut share = budget.take(2 * UNIT).now_or_never().expect("there is enough");
        share.keep(9 * UNIT);
        assert_eq!(share.bytes(), 2 * UNIT);
        share.keep(0);
        assert_eq!(share.bytes(), UNIT);
    }
}
