//! `dashi compare`: compares the rows of two stores.

use dashi_config::Loaded;

use crate::args::CompareArgs;
use crate::exit::Exit;
use crate::open;
use crate::output::print;

/// Compares and prints the differences. Exit code 3 if the stores differ.
pub async fn run(loaded: &Loaded, args: &CompareArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let first = open::store(&args.first, settings, open::Absent::Refuse).await?;
    let second = open::store(&args.second, settings, open::Absent::Refuse).await?;
    let comparison = dashi_store::compare(&first, &second).await?;
    first.close().await;
    second.close().await;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&comparison)?));
    } else {
        print("table                 rows of the first   of the second  checksums\n");
        for table in &comparison.tables {
            let [first, second] = &table.checksums;
            let (first, second) = (&first[..12], &second[..12]);
            print(&format!(
                "{:<20} {:>18} {:>15}  {}\n",
                table.table,
                table.rows[0],
                table.rows[1],
                if table.equal { format!("{first} equal") } else { format!("{first} and {second} DIFFER") },
            ));
            for difference in &table.differences {
                let side = |columns: &[String]| {
                    if columns.is_empty() { "no such row".to_owned() } else { columns.join(", ") }
                };
                print(&format!("    {}\n", difference.key));
                print(&format!("      first:  {}\n", side(&difference.first)));
                print(&format!("      second: {}\n", side(&difference.second)));
            }
        }
        print(if comparison.equal { "the stores hold the same rows\n" } else { "the stores differ\n" });
    }
    Ok(if comparison.equal { Exit::Done } else { Exit::No })
}
