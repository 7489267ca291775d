//! Versions of Umami, as far as they collect by different rules. A database's tables show to which version it belongs.

use std::borrow::Cow;
use std::fmt;

use crate::ids::IdentifiedSessions;
use crate::text;

/// A version, the oldest first: each has the rules of the version before it, except where its methods differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Release {
    /// 3.0.
    V3_0,
    /// 3.1: web vitals, recordings.
    V3_1,
    /// 3.2: heatmaps, dates without milliseconds.
    V3_2,
    /// 3.3: sessions linked to distinct ids, unique properties, texts of any length.
    V3_3,
    /// 3.4 and newer: a distinct id is part of the session.
    V3_4,
}

impl Release {
    /// All of them, the oldest first.
    pub const ALL: [Self; 5] = [Self::V3_0, Self::V3_1, Self::V3_2, Self::V3_3, Self::V3_4];

    /// The version whose tables Dashi makes, and whose rules hold where there are no tables to recognise a version by.
    pub const OURS: Self = Self::V3_1;

    /// As settings name it, such as "3.1".
    pub const fn name(self) -> &'static str {
        match self {
            Self::V3_0 => "3.0",
            Self::V3_1 => "3.1",
            Self::V3_2 => "3.2",
            Self::V3_3 => "3.3",
            Self::V3_4 => "3.4",
        }
    }

    /// The version of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|release| release.name() == name)
    }

    /// The effect of a distinct id on a session.
    pub const fn identified_sessions(self) -> IdentifiedSessions {
        match self {
            Self::V3_0 | Self::V3_1 | Self::V3_2 => IdentifiedSessions::Shared,
            Self::V3_3 => IdentifiedSessions::Linked,
            Self::V3_4 => IdentifiedSessions::PerDevice,
        }
    }
}

impl Release {
    /// Cuts a text to the width of its column. From `since` on Umami itself does, in UTF-16 units; before, the column
    /// decides, in characters: Umami loses a longer text, and here it is cut.
    pub(crate) fn cut_from(self, since: Self, sent: Cow<'_, str>, width: usize) -> String {
        let cut = if self >= since { text::cut(sent, width) } else { text::cut_chars(sent, width) };
        cut.into_owned()
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        f.write_str(if *self == Self::V3_4 { " or newer" } else { "" })
    }
}
