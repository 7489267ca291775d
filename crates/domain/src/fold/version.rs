//! The projection version: the number of the code that folds, raised whenever old records give other rows. Together with
//! the text of the rules it decides every row, so tables that have another one differ from those of a replay.

use super::FoldRules;

/// The version of the fold in this program. A change that gives other rows for records that are in a log already raises
/// it, with a line in [`PROJECTION_CHANGES`].
pub const PROJECTION_VERSION: u32 = 1;

/// The changes of rows that each version made for old records, the oldest version first; the last one is
/// [`PROJECTION_VERSION`].
pub const PROJECTION_CHANGES: [(u32, &str); PROJECTION_VERSION as usize] =
    [(1, "the first version that is numbered")];

impl FoldRules {
    /// All rules that decide rows, in a fixed order, as a text for people and for comparison: equal texts, equal rows. It is
    /// stored, so a rule that is added later appears in it only where its value is not the former behaviour.
    pub fn text(&self) -> String {
        // A zone without a name is one that was given by its offset.
        let zone = self.zone.iana_name().map_or_else(|| format!("{:?}", self.zone), str::to_owned);
        format!(
            "release={} timezone={zone} remove_trailing_slash={} names_sessions={} null_deletes={}",
            self.release.name(),
            self.remove_trailing_slash,
            self.names_sessions,
            self.null_deletes
        )
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;
    use crate::umami::Release;

    fn rules() -> FoldRules {
        FoldRules {
            zone: TimeZone::UTC,
            remove_trailing_slash: false,
            release: Release::V3_1,
            names_sessions: false,
            null_deletes: true,
        }
    }

    #[test]
    fn every_rule_is_in_the_text() {
        let first = rules();
        assert_eq!(
            first.text(),
            "release=3.1 timezone=UTC remove_trailing_slash=false names_sessions=false null_deletes=true"
        );
        let berlin = TimeZone::get("Europe/Berlin").expect("the zone is known");
        for other in [
            FoldRules { zone: berlin, ..rules() },
            FoldRules { remove_trailing_slash: true, ..rules() },
            FoldRules { release: Release::V3_2, ..rules() },
            FoldRules { names_sessions: true, ..rules() },
            FoldRules { null_deletes: false, ..rules() },
        ] {
            assert_ne!(other.text(), first.text(), "{other:?}");
        }
    }

    #[test]
    fn every_version_says_what_it_changed() {
        for (place, (version, change)) in PROJECTION_CHANGES.iter().enumerate() {
            assert_eq!(*version as usize, place + 1);
            assert!(!change.is_empty());
        }
    }
}
