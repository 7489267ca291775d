//! Which of Umami's versions a database belongs to.

use dashi_domain::umami::Release;

/// What a database of Umami's has that Dashi does not write, and what Dashi takes that it has no place for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unwritten {
    /// Tables that stay as they are, each with what it holds.
    pub tables: Vec<String>,
    /// What is taken, counted and kept in the log, and for which there is no table or column yet.
    pub nowhere: Vec<&'static str>,
    /// Columns that need a value and get none, `table.column` each: rows of their tables are refused.
    pub unfillable: Vec<String>,
}

impl Unwritten {
    /// All but the columns in one line, if there is anything to say.
    pub fn line(&self) -> Option<String> {
        let mut parts = Vec::new();
        if !self.tables.is_empty() {
            parts.push(format!("not written: {}", self.tables.join(", ")));
        }
        if !self.nowhere.is_empty() {
            parts.push(format!("kept in the log, with nowhere to write it: {}", self.nowhere.join(", ")));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// What is wrong with the columns, if anything is.
    pub fn warning(&self) -> Option<String> {
        (!self.unfillable.is_empty()).then(|| {
            format!(
                "this version of Umami has columns that need a value and that this version of Dashi does not know: {}. The \
                 database refuses rows of their tables; use a newer Dashi, or give the columns a default",
                self.unfillable.join(", ")
            )
        })
    }
}

/// What is known of Umami's tables in a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UmamiTables {
    /// The version that made them.
    pub release: Release,
    /// What tells so, in words.
    pub by: &'static str,
}
