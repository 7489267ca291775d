//! Where a chunk of a recording comes among the others of its visit.

use std::collections::HashMap;

use dashi_domain::rows::ChunkRow;
use uuid::Uuid;

/// How far the times of a click may lie apart that a recorder both recorded and posted, inclusive: it reads the clock for
/// each.
pub(crate) const SAME_CLICK_MS: i64 = 1_000;

/// Session, visit and index of a chunk. The session belongs to it, for a visit may go on under another one, whose
/// chunks lie in another partition: only within a session does the log give an order.
pub(crate) type StoredIndex = (Uuid, Uuid, i32);

/// Gives every row its index: the least that is not below its second and that no other chunk of its session and visit
/// has. `taken` holds those of stored chunks, as far as they are not below the rows' seconds. Rows come in the order of
/// the log, so the result is the same however the log is cut into batches.
pub(crate) fn placed(
    rows: &[ChunkRow],
    taken: impl IntoIterator<Item = StoredIndex>,
) -> Vec<(i32, &ChunkRow)> {
    let mut indexes: HashMap<(Uuid, Uuid), Indexes> = HashMap::new();
    for (session_id, visit_id, index) in taken {
        indexes.entry((session_id, visit_id)).or_default().take(index);
    }
    rows.iter()
        .map(|row| {
            let indexes = indexes.entry((row.session_id, row.visit_id)).or_default();
            let index = indexes.free_from(row.chunk_index_min);
            indexes.take(index);
            (index, row)
        })
        .collect()
}

/// Taken indexes, each with one from which to look on. Looking shortens the way for the next time, so that a long run
/// of taken ones is not walked again and again.
#[derive(Debug, Default)]
struct Indexes(HashMap<i32, i32>);

impl Indexes {
    /// The last index of all can be had by several.
    fn take(&mut self, index: i32) {
        if index < i32::MAX {
            self.0.insert(index, index + 1);
        }
    }

    fn free_from(&mut self, first: i32) -> i32 {
        let mut walked = Vec::new();
        let mut index = first;
        while let Some(&next) = self.0.get(&index) {
            walked.push(index);
            index = next;
        }
        for taken in walked {
            self.0.insert(taken, index);
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(visit: u128, second: i32) -> ChunkRow {
        ChunkRow {
            replay_id: Uuid::nil(),
            website_id: Uuid::nil(),
            session_id: Uuid::nil(),
            visit_id: Uuid::from_u128(visit),
            chunk_index_min: second,
            events: Vec::new(),
            event_count: 0,
            started_at_ms: 0,
            ended_at_ms: 0,
            created_at_ms: 0,
        }
    }

    fn indexes(rows: &[ChunkRow], taken: &[StoredIndex]) -> Vec<i32> {
        placed(rows, taken.iter().copied()).into_iter().map(|(index, _)| index).collect()
    }

    #[test]
    fn chunks_of_one_second_keep_the_order_of_the_log() {
        let rows = [row(1, 100), row(1, 100), row(2, 100), row(1, 101), row(1, 90), row(1, 100)];
        assert_eq!(indexes(&rows, &[]), [100, 101, 100, 102, 90, 103]);
    }

    #[test]
    fn stored_chunks_are_gone_around_and_the_last_index_is_shared() {
        let visit = Uuid::from_u128(1);
        let taken = [(Uuid::nil(), visit, 100), (Uuid::nil(), visit, i32::MAX)];
        assert_eq!(
            indexes(&[row(1, 100), row(1, i32::MAX), row(1, i32::MAX)], &taken),
            [101, i32::MAX, i32::MAX]
        );
    }

    #[test]
    fn the_visits_of_another_session_take_nothing() {
        let taken = [(Uuid::from_u128(7), Uuid::from_u128(1), 100)];
        assert_eq!(indexes(&[row(1, 100)], &taken), [100]);
    }

    /// A client that sends ever the same second makes no work that grows with the square of its chunks.
    #[test]
    fn many_chunks_of_one_second_find_their_places() {
        let rows: Vec<_> = (0..100_000).map(|_| row(1, 100)).collect();
        let indexes = indexes(&rows, &[]);
        assert_eq!((indexes[0], indexes[99_999]), (100, 100_099));
    }
}
