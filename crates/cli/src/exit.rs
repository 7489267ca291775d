//! How a command ends.

/// How a command ended, as the shell sees it. Errors are printed on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what it was asked to do.
    Done = 0,
    /// It failed; trying again later may help.
    Failed = 1,
    /// A flag or a setting is wrong and has to be changed first.
    Misused = 2,
    /// It answered a question, and the answer is no: `compare` found a difference, `heal` damage, `trace` no event, `audit`
    /// something that does not add up, `dead-letters` some that are still dead, `import` something that it cannot take, `replay swap`
    /// foreign rows.
    No = 3,
    /// It was stopped and did not finish in time; nothing acknowledged is lost.
    Overdue = 4,
}

/// A mistake in flags or settings that no configuration error covers.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misuse(pub String);
