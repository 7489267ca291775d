//! Which of Umami's versions a database belongs to.

use dashi_domain::umami::Release;

/// What is known of Umami's tables in a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UmamiTables {
    /// The version that made them.
    pub release: Release,
    /// What tells so, in words.
    pub by: &'static str,
}
