//! The usage of many senders, in a table that does not grow.
//!
//! Keys are hostile input: whoever makes up a million addresses fills the table. So it forgets, in each set of places, the
//! sender that used least; a forgotten sender begins anew, which takes its events rather than refusing them. The senders
//! that come close to their limits use most, and stay. A key is kept as its hash, made differently in each process, so
//! that nobody can choose whom to displace.

use std::hash::{BuildHasher, Hash, RandomState};
use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use dashi_domain::rate::{Exceeded, Moment, RateLimit, Usage};

/// Places of a set. Two senders share a lock only if they share a set.
const SET: usize = 8;

/// Usages by key.
pub struct Usages<K> {
    hasher: RandomState,
    sets_max: usize,
    /// Made when the first usage is counted.
    sets: OnceLock<Box<[Mutex<Set>]>>,
    key: PhantomData<fn(&K)>,
}

type Set = [Place; SET];

/// A sender's hash, 0 where there is none, and its usage.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    hash: u64,
    usage: Usage,
}

impl<K: Hash> Usages<K> {
    /// A table for so many senders; each takes 32 bytes, all of them together from the first event on.
    pub fn new(senders_max: usize) -> Self {
        let sets_max = senders_max.div_ceil(SET).max(1);
        Self { hasher: RandomState::new(), sets_max, sets: OnceLock::new(), key: PhantomData }
    }

    /// Takes one event of a sender, unless it exceeds this limit.
    ///
    /// # Errors
    /// The limit that it exceeds.
    pub fn take(&self, key: &K, limit: &RateLimit, now: Moment) -> Result<(), Exceeded> {
        let hash = self.hash(key);
        let mut set = self.set(hash);
        if let Some(place) = set.iter_mut().find(|place| place.hash == hash) {
            return place.usage.take(limit, now);
        }
        let mut usage = Usage::default();
        let taken = usage.take(limit, now);
        let weight = |place: &Place| (place.hash != 0).then(|| place.usage.weight(now));
        if let Some(least) = set.iter_mut().min_by_key(|place| weight(place)) {
            *least = Place { hash, usage };
        }
        taken
    }

    /// Gives back an event that was taken under this limit.
    pub fn give_back(&self, key: &K, limit: &RateLimit) {
        let hash = self.hash(key);
        if let Some(place) = self.set(hash).iter_mut().find(|place| place.hash == hash) {
            place.usage.give_back(limit);
        }
    }

    fn hash(&self, key: &K) -> u64 {
        self.hasher.hash_one(key).max(1)
    }

    fn set(&self, hash: u64) -> MutexGuard<'_, Set> {
        let make = || std::iter::repeat_with(Mutex::default).take(self.sets_max).collect();
        let sets = self.sets.get_or_init(make);
        sets[hash as usize % sets.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day_max(max: u64) -> RateLimit {
        RateLimit { rate: None, day_max: Some(max) }
    }

    const NOW: Moment = Moment { elapsed_ns: 1, ms: 1 };

    #[test]
    fn a_flood_of_new_senders_is_taken_and_does_not_displace_those_that_use_much() {
        let usages = Usages::new(64);
        for _ in 0..3 {
            assert_eq!(usages.take(&u64::MAX, &day_max(3), NOW), Ok(()));
        }
        for sender in 0..10_000_u64 {
            assert_eq!(usages.take(&sender, &day_max(3), NOW), Ok(()), "{sender}");
        }
        assert!(usages.take(&u64::MAX, &day_max(3), NOW).is_err(), "it is not forgotten");
        let held = usages.sets.get().expect("it is made");
        assert_eq!(held.len() * SET, 64);
        assert_eq!(size_of::<Place>(), 32);
    }

    #[test]
    fn many_threads_take_no_more_than_there_is() {
        let usages = Usages::new(1_000);
        let takes =
            |sender: u64| (0..1_000).filter(|_| usages.take(&sender, &day_max(1_500), NOW).is_ok()).count();
        let counts = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || takes(thread % 2))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<usize>()
        });
        assert_eq!(counts, 2 * 1_500);
    }

    #[test]
    fn what_is_given_back_can_be_taken() {
        let usages = Usages::new(8);
        assert_eq!(usages.take(&1, &day_max(1), NOW), Ok(()));
        assert!(usages.take(&1, &day_max(1), NOW).is_err());
        usages.give_back(&1, &day_max(1));
        usages.give_back(&2, &day_max(1));
        assert_eq!(usages.take(&1, &day_max(1), NOW), Ok(()));
    }
}
