//! The damage that Umami leaves in its tables, and its causes: the pure part of healing. See docs/heal.md for the rules
//! and docs/umami-contract.md §8, §11, §12 and §16 for their sources.

use serde::Serialize;
use uuid::Uuid;

/// Why events of a session lie in the tables without the session's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Orphaning {
    /// The salt of session ids changed with the month while a page kept its token.
    Month,
    /// The visitor got or changed a distinct id while a page kept its token.
    DistinctId,
    /// The visitor's address or agent changed while a page kept its token. The tables do not distinguish the two.
    AddressOrAgent,
    /// The page kept a token of another website.
    Website,
    /// The website was reset or deleted while a page kept its token.
    Deletion,
    /// The tables do not show the cause.
    Unknown,
}

impl Orphaning {
    /// All of them, in the order in which they are reported.
    pub const ALL: [Self; 6] =
        [Self::Month, Self::DistinctId, Self::AddressOrAgent, Self::Website, Self::Deletion, Self::Unknown];

    /// Its name in a report.
    pub fn words(self) -> &'static str {
        match self {
            Self::Month => "the month changed",
            Self::DistinctId => "the distinct id changed",
            Self::AddressOrAgent => "the address or the agent changed",
            Self::Website => "a token of another website was kept",
            Self::Deletion => "the website was reset or deleted",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the other session of the visit was at the same place: its country, region and city hold for this
    /// session.
    pub fn keeps_place(self) -> bool {
        matches!(self, Self::Month | Self::DistinctId | Self::Website)
    }
}

/// A session without a row, and the facts about it that the tables show. Times are microseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OrphanedSession {
    /// The session.
    pub session_id: Uuid,
    /// The website of its first event.
    pub website_id: Uuid,
    /// Its first event or property.
    pub first_us: i64,
    /// Rows in `website_event`.
    pub events: i64,
    /// Rows in `session_data`.
    pub properties: i64,
    /// The distinct id of one of its properties.
    pub distinct_id: Option<String>,
    /// Another session of the same visit that has a row: the one whose event is nearest in time.
    pub sibling: Option<Sibling>,
    /// Whether the website is there.
    pub website: WebsiteState,
}

/// The session that a visit had before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sibling {
    /// The session.
    pub session_id: Uuid,
    /// Its website.
    pub website_id: Uuid,
    /// Its event of the visit that is nearest to the orphan's first one.
    pub event_us: i64,
    /// Its distinct id.
    pub distinct_id: Option<String>,
}

/// The state of a website.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WebsiteState {
    /// It is there.
    There,
    /// It is there, and its rows were deleted at some time.
    Reset,
    /// It has no row, or one that marks it deleted.
    Deleted,
}

impl OrphanedSession {
    /// The cause of the missing row: the first one that the tables show; a reset counts where no other session of the
    /// visit is left. `salt_start_ms` gives the start of the salt's period (a month, unless it is set otherwise)
    /// that a time lies in; both are milliseconds since 1970.
    pub fn orphaning(&self, salt_start_ms: impl Fn(i64) -> i64) -> Orphaning {
        if self.website == WebsiteState::Deleted {
            return Orphaning::Deletion;
        }
        let has_name = |id: &Option<String>| id.as_deref().is_some_and(|id| !id.is_empty());
        let Some(sibling) = &self.sibling else {
            return match self.website {
                WebsiteState::Reset => Orphaning::Deletion,
                _ if has_name(&self.distinct_id) => Orphaning::DistinctId,
                _ => Orphaning::Unknown,
            };
        };
        if sibling.website_id != self.website_id {
            Orphaning::Website
        } else if has_name(&self.distinct_id) && self.distinct_id != sibling.distinct_id {
            Orphaning::DistinctId
        } else if salt_start_ms(sibling.event_us / 1_000) != salt_start_ms(self.first_us / 1_000) {
            Orphaning::Month
        } else {
            Orphaning::AddressOrAgent
        }
    }

    /// Whether a row is inserted: not for a website that is deleted.
    pub fn is_repaired(&self) -> bool {
        self.website != WebsiteState::Deleted
    }
}

/// Cuts a range of keys into slices whose width follows the time that they take, so that no statement takes long and
/// small tables need few slices.
#[derive(Debug)]
pub(crate) struct Sweep {
    next: u64,
    end: u64,
    width: u64,
    total: u64,
}

/// A slice that takes longer is followed by one of half its width.
const SLOW: std::time::Duration = std::time::Duration::from_secs(2);
/// A slice that takes less is followed by one of twice its width.
const QUICK: std::time::Duration = std::time::Duration::from_millis(200);

impl Sweep {
    /// From `start` on, up to and with `end`; the first slice is one 256th of it.
    pub fn new(start: u64, end: u64) -> Self {
        let total = end.saturating_sub(start);
        Self { next: start, end, width: (total / 256).max(1), total }
    }

    /// First and last key of the next slice, both inclusive; `None` after the end.
    pub fn slice(&self) -> Option<(u64, u64)> {
        (self.next <= self.end).then(|| (self.next, self.next.saturating_add(self.width - 1).min(self.end)))
    }

    /// Goes on behind the slice; `took` is the time that it took. False at the end.
    pub fn advance(&mut self, took: std::time::Duration) -> bool {
        let Some((_, last)) = self.slice() else { return false };
        if took > SLOW {
            self.width = (self.width / 2).max(1);
        } else if took < QUICK {
            self.width = self.width.saturating_mul(2);
        }
        match last.checked_add(1).filter(|next| *next <= self.end) {
            Some(next) => {
                self.next = next;
                true
            }
            None => false,
        }
    }

    /// The share of the range that is done, from 0 to 1.
    pub fn share(&self) -> f64 {
        let start = self.end - self.total;
        (self.next - start) as f64 / (self.total as f64).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const APRIL_US: i64 = 1_777_500_000_000_000;
    const MAY_US: i64 = 1_777_593_600_000_000;

    /// April or May.
    fn month(ms: i64) -> i64 {
        if ms * 1_000 < MAY_US { 4 } else { 5 }
    }

    fn orphan() -> OrphanedSession {
        OrphanedSession {
            session_id: Uuid::from_u128(1),
            website_id: Uuid::from_u128(9),
            first_us: MAY_US,
            events: 1,
            properties: 0,
            distinct_id: None,
            sibling: Some(Sibling {
                session_id: Uuid::from_u128(2),
                website_id: Uuid::from_u128(9),
                event_us: MAY_US + 1_000_000,
                distinct_id: None,
            }),
            website: WebsiteState::There,
        }
    }

    fn beside(change: impl FnOnce(&mut Sibling)) -> OrphanedSession {
        let mut orphan = orphan();
        if let Some(sibling) = orphan.sibling.as_mut() {
            change(sibling);
        }
        orphan
    }

    #[test]
    fn every_cause_is_recognised() {
        let named = |id: &str| Some(id.to_owned());
        assert_eq!(orphan().orphaning(month), Orphaning::AddressOrAgent);
        assert_eq!(beside(|it| it.event_us = APRIL_US).orphaning(month), Orphaning::Month);
        assert_eq!(beside(|it| it.website_id = Uuid::from_u128(8)).orphaning(month), Orphaning::Website);
        assert_eq!(
            OrphanedSession { distinct_id: named("ada"), ..orphan() }.orphaning(month),
            Orphaning::DistinctId
        );
        // A distinct id that both sessions have did not change.
        let both = OrphanedSession {
            distinct_id: named("ada"),
            ..beside(|it| it.distinct_id = Some("ada".to_owned()))
        };
        assert_eq!(both.orphaning(month), Orphaning::AddressOrAgent);
        let alone = OrphanedSession { sibling: None, ..orphan() };
        assert_eq!(alone.orphaning(month), Orphaning::Unknown);
        let reset = OrphanedSession { website: WebsiteState::Reset, ..alone.clone() };
        assert_eq!((reset.orphaning(month), reset.is_repaired()), (Orphaning::Deletion, true));
        let deleted = OrphanedSession { website: WebsiteState::Deleted, ..orphan() };
        assert_eq!((deleted.orphaning(month), deleted.is_repaired()), (Orphaning::Deletion, false));
        assert_eq!(
            OrphanedSession { distinct_id: named("ada"), ..alone }.orphaning(month),
            Orphaning::DistinctId
        );
    }

    #[test]
    fn a_sweep_covers_its_range_once_and_widens_while_it_is_quick() {
        for (start, end) in [(0, 0), (0, 10), (7, 1_000_003), (0, u64::MAX), (u64::MAX, u64::MAX)] {
            let mut sweep = Sweep::new(start, end);
            let (mut expected, mut slices) = (start, 0);
            let mut took =
                [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3)].into_iter().cycle();
            loop {
                let (first, last) = sweep.slice().expect("not at the end");
                assert_eq!(first, expected);
                assert!(last >= first && last <= end);
                slices += 1;
                assert!((0.0..=1.0).contains(&sweep.share()));
                if !sweep.advance(took.next().unwrap_or_default()) {
                    assert_eq!(last, end);
                    break;
                }
                expected = last + 1;
            }
            assert!(slices <= 600, "{slices} slices");
        }
        let mut quick = Sweep::new(0, u64::MAX);
        let mut slices = 1;
        while quick.advance(Duration::ZERO) {
            slices += 1;
        }
        assert!(slices < 12, "{slices}");
    }
}
