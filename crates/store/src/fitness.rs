//! Whether a database suits: asked by `dashi doctor`, without changing anything.

/// Answers of a database about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fitness {
    /// The server and its version, for people.
    pub server: String,
    /// Its clock at the moment of the question, in milliseconds since 1970.
    pub clock_ms: i64,
    /// Rights that the role lacks, each as in `INSERT on website_event`.
    pub lacking: Vec<String>,
}
