//! `dashi config`: shows the settings, or checks them.

use std::time::Duration;

use dashi_config::{Loaded, Settings};
use dashi_ingest::check_limits_file;

use crate::args::ConfigCommand;
use crate::exit::{Exit, Misuse};
use crate::output::{print, print_result};
use crate::progress::within;
use crate::{open, reach, settings};

/// Runs one of the commands.
pub async fn run(loaded: &Loaded, command: ConfigCommand) -> anyhow::Result<Exit> {
    match command {
        ConfigCommand::Show { json } => {
            let [release, formula] = in_force(&loaded.settings).await;
            print(&if json {
                loaded.show_json(&[(release.0, &release.1), (formula.0, &formula.1)])
            } else {
                let lines = [release, formula].map(|(key, value)| format!("# {key} in force: {value}\n"));
                format!("{}\n{}", loaded.show(), lines.concat())
            });
        }
        ConfigCommand::Check { connect, json } => {
            settings::check(loaded)?;
            open::parse_all(&loaded.settings)?;
            let limits = &loaded.settings.limits.file;
            let mut limit_entries = None;
            if !limits.is_empty() {
                let entries = check_limits_file(limits.as_ref()).map_err(|error| {
                    Misuse(format!("limits.file: {error}; a collector keeps its last good version"))
                })?;
                limit_entries = Some(entries);
                if !json {
                    print(&format!("{limits}: {entries} entries\n"));
                }
            }
            if connect {
                let reaching = reach::run(&loaded.settings);
                within(json, "asking log and store", reach::LONGEST, reaching).await?;
            }
            print_result(
                json,
                || serde_json::json!({ "valid": true, "reached": connect, "limits_file_entries": limit_entries }),
                || match connect {
                    true => "settings are valid; the event log and the store can be reached\n".to_owned(),
                    false => "settings are valid; --connect would also reach the event log and the store\n"
                        .to_owned(),
                },
            );
        }
    }
    Ok(Exit::Done)
}

/// The settings whose values the database may decide.
const RELEASE: &str = "umami_release";
const FORMULA: &str = "ingest.identified_sessions";

/// How long `config show` waits for a database.
const STORE_WAIT: Duration = Duration::from_secs(3);

/// By which version's rules a process with these settings would run, and which formula of session ids a collector would
/// use, each with the reason. A database that is away does not hold up an answer about settings.
async fn in_force(settings: &Settings) -> [(&'static str, String); 2] {
    let asked = async {
        if let Some(set) = open::release_by_settings(settings, &settings.store)? {
            return anyhow::Ok(set);
        }
        let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
        let shown = open::release_by_store(&store).await;
        store.close().await;
        anyhow::Ok(shown?)
    };
    let release = match tokio::time::timeout(STORE_WAIT, asked).await {
        Ok(Ok(release)) => Ok(release),
        Ok(Err(error)) => Err(format!("not known: {error:#}")),
        Err(_) => Err(format!("not known: the database does not answer within {} s", STORE_WAIT.as_secs())),
    };
    let formula = match open::formula_by_settings(settings) {
        Some(formula) => Ok(formula),
        None => release.as_ref().map(open::formula_by_release).map_err(Clone::clone),
    };
    [
        (RELEASE, release.map_or_else(|why| why, |it| format!("{}, for {}", it.release.name(), it.because))),
        (FORMULA, formula.map_or_else(|why| why, |it| format!("{}, for {}", it.name(), it.because))),
    ]
}
