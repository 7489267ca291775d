//! Which of Umami's versions a database belongs to.

use std::fmt;

/// Versions of Umami, as far as their tables differ for Dashi.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UmamiRelease {
    /// 3.0: no web vitals.
    V3_0,
    /// 3.1 and 3.2: web vitals.
    From3_1,
    /// 3.3 and newer: sessions linked to distinct ids, or unique properties of a session.
    From3_3,
}

impl fmt::Display for UmamiRelease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V3_0 => "3.0",
            Self::From3_1 => "3.1 or 3.2",
            Self::From3_3 => "3.3 or newer",
        })
    }
}

/// What is known of Umami's tables in a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UmamiTables {
    /// The version that made them.
    pub release: UmamiRelease,
    /// What tells so, in words.
    pub by: &'static str,
    /// Whether sessions are linked to distinct ids: then Umami computes session ids per device.
    pub has_session_link: bool,
}
