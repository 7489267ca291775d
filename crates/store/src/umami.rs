//! The version of Umami that a database belongs to.

use dashi_domain::umami::Release;

/// The parts of Umami's database that Dashi does not write, and the data that Dashi takes and that the database has no
/// table for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unwritten {
    /// Tables that stay as they are, each with its contents in words.
    pub tables: Vec<String>,
    /// Kinds of data that are taken, counted and kept in the log, and for which there is no table or column yet.
    pub nowhere: Vec<&'static str>,
    /// Columns that need a value and get none, `table.column` each: rows of their tables are refused.
    pub unfillable: Vec<String>,
}

impl Unwritten {
    /// All but the columns in one line, if there is any.
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

    /// The warning about the columns, if there are any.
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

/// The recognised version of Umami's tables in a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UmamiTables {
    /// The version that made them.
    pub release: Release,
    /// The tables or columns that show it, in words.
    pub by: &'static str,
}
