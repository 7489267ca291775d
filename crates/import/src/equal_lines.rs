//! Numbers of equal lines: of a line, how many equal ones came before it.

use std::collections::HashMap;

/// Distinct lines that are remembered, at most twice as many.
const LINES_MAX: usize = 1_000_000;

/// Counts equal lines, of the last one or two million distinct ones. Equal lines have the same time to the second, so
/// they lie close together in files that are in order; and which lines are forgotten depends on the lines alone, so
/// reading a file again gives the same numbers.
#[derive(Debug, Default)]
pub(crate) struct EqualLines {
    newer: HashMap<u128, u32>,
    older: HashMap<u128, u32>,
}

impl EqualLines {
    /// How many lines with this hash came before; adds one.
    pub(crate) fn number(&mut self, hash: u128) -> u32 {
        if self.newer.len() >= LINES_MAX {
            self.older = std::mem::take(&mut self.newer);
        }
        let before = match self.newer.get(&hash) {
            Some(count) => *count,
            None => self.older.get(&hash).copied().unwrap_or(0),
        };
        self.newer.insert(hash, before + 1);
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lines_are_numbered_and_the_oldest_forgotten() {
        let mut lines = EqualLines::default();
        assert_eq!([7, 8, 7, 7, 8].map(|hash| lines.number(hash)), [0, 0, 1, 2, 1]);
        for hash in 0..LINES_MAX as u128 {
            lines.number(1_000 + hash);
        }
        assert_eq!(lines.number(7), 3, "the generation before is still known");
        for hash in 0..2 * LINES_MAX as u128 {
            lines.number(10_000_000 + hash);
        }
        assert_eq!(lines.number(8), 0, "two generations later it is not");
        assert!(lines.newer.len() + lines.older.len() <= 2 * LINES_MAX);
    }
}
