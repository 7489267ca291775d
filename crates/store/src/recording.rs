//! Where a chunk of a recording comes among the others of its visit.

use std::collections::HashSet;

use dashi_domain::rows::RecordingRow;
use uuid::Uuid;

/// Website, visit and index of a chunk.
pub(crate) type Place = (Uuid, Uuid, i32);

/// Gives every row its index: the least that is not below its second and that no other chunk of its visit has.
/// `taken` holds those of the visits' chunks that are stored. Rows come in the order of the log, so the result is
/// the same however the log is cut into batches.
pub(crate) fn placed(rows: &[RecordingRow], mut taken: HashSet<Place>) -> Vec<(i32, &RecordingRow)> {
    rows.iter()
        .map(|row| {
            let mut index = row.chunk_index_min;
            while index < i32::MAX && taken.contains(&(row.website_id, row.visit_id, index)) {
                index += 1;
            }
            taken.insert((row.website_id, row.visit_id, index));
            (index, row)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(visit: u128, second: i32) -> RecordingRow {
        RecordingRow {
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

    fn indexes(rows: &[RecordingRow], taken: &[Place]) -> Vec<i32> {
        placed(rows, taken.iter().copied().collect()).into_iter().map(|(index, _)| index).collect()
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
}
