//! `dashi compare`: compares the rows of two stores.

use dashi_config::Loaded;
use dashi_store::{ComparisonProgress, TableComparison};

use crate::args::CompareArgs;
use crate::exit::Exit;
use crate::open;
use crate::output::print;
use crate::progress::{ProgressDisplay, State, Unit};

/// Compares and prints the differences. Exit code 3 if the stores differ.
pub async fn run(loaded: &Loaded, args: &CompareArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let first = open::store(&args.first, settings, open::Absent::Refuse).await?;
    let second = open::store(&args.second, settings, open::Absent::Refuse).await?;
    let display = ProgressDisplay::new(args.json);
    let show = |at: ComparisonProgress| {
        let note = format!("{}, table {} of {}", at.table, at.number, at.tables);
        let (part, unit) = ("comparing", Unit::Of("rows"));
        display.show(State { part, done: at.rows, total: at.rows_total, unit, note: Some(&note) });
    };
    let comparison = dashi_store::compare_watched(&first, &second, &show).await;
    display.finish();
    let comparison = comparison?;
    first.close().await;
    second.close().await;
    print(&if args.json {
        format!("{}\n", serde_json::to_string(&comparison)?)
    } else {
        let verdict =
            if comparison.equal { "the stores hold the same rows\n" } else { "the stores differ\n" };
        text(&comparison.tables, ["first", "second"]) + verdict
    });
    Ok(if comparison.equal { Exit::Done } else { Exit::No })
}

/// Days that are printed per table, at most.
const DAYS_MAX: usize = 10;

/// A comparison as a table: rows and checksums, and where they differ the days and the first rows. `sides` are the names of
/// the two.
pub fn text(tables: &[TableComparison], [first, second]: [&str; 2]) -> String {
    let (of_first, of_second) = (format!("rows of {first}"), format!("of {second}"));
    let mut out = format!("{:<20} {of_first:>18} {of_second:>15}  checksums\n", "table");
    for table in tables {
        let [a, b] = &table.checksums;
        let (a, b) = (&a[..12], &b[..12]);
        out.push_str(&format!(
            "{:<20} {:>18} {:>15}  {}\n",
            table.table,
            table.rows[0],
            table.rows[1],
            if table.equal { format!("{a} equal") } else { format!("{a} and {b} DIFFER") },
        ));
        if !table.equal {
            let [only_first, only_second] = table.only;
            out.push_str(&format!(
                "    only in {first}: {only_first} · only in {second}: {only_second} · in both and changed: {}\n",
                table.changed
            ));
            out.push_str(&days(table, [first, second]));
        }
        for difference in &table.differences {
            let side = |columns: &[String]| {
                if columns.is_empty() { "no such row".to_owned() } else { columns.join(", ") }
            };
            out.push_str(&format!("    {}\n", difference.key));
            out.push_str(&format!("      {first}: {}\n", side(&difference.first)));
            out.push_str(&format!("      {second}: {}\n", side(&difference.second)));
        }
    }
    out
}

/// The days on which rows differ.
fn days(table: &TableComparison, [first, second]: [&str; 2]) -> String {
    let mut out = String::new();
    let differing: Vec<_> = table.days.iter().filter(|day| !day.equal).collect();
    for day in differing.iter().take(DAYS_MAX) {
        let [of_first, of_second] = day.rows;
        out.push_str(&format!("    {}: {of_first} rows of {first}, {of_second} of {second}\n", day.day));
    }
    if differing.len() > DAYS_MAX {
        out.push_str(&format!("    and {} more days: see --json\n", differing.len() - DAYS_MAX));
    }
    out
}
