//! `dashi audit`: shows that every record has its outcome and that nothing that a collector accepted is missing, by the
//! hour, and where that is not so.
//!
//! * `read` counts the records of the log; * `account` compares the counts; * `show` prints the answer.

mod account;
mod read;
mod show;

use clap::Args;
use dashi_config::Loaded;
use dashi_domain::glance::hour_of;
use uuid::Uuid;

use crate::audit::account::{Input, account};
use crate::clock::now_ms;
use crate::exit::{Exit, Misuse};
use crate::open;
use crate::output::print;
use crate::reached::counts_and_reached;

#[derive(Debug, Args)]
#[command(
    after_help = "It reads the whole log, or that since --since. Exit code 3 if something does not add up; the answer \
    says where.\n\n\
    dashi audit\n\
    dashi audit --since 24h --website 3f2504e0-4f89-41d3-9a0c-0305e82c3301 --json"
)]
pub struct AuditArgs {
    /// Only this website, link or pixel
    #[arg(long, value_name = "UUID")]
    pub website: Option<Uuid>,

    /// Only hours that ended after this time: 2026-11-26, 2026-11-26T08:00:00Z, or 36h or 7d before now
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Audits and prints the answer. Exit code 3 if it does not add up.
pub async fn run(loaded: &Loaded, args: &AuditArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let since_ms = args.since.as_deref().map(|text| since_ms(text, now_ms())).transpose()?;
    let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
    let log = open::log(settings, open::Absent::Refuse).await?;
    // In this order each is a lower bound of the next: an event is in the log before it is accepted, and before it is
    // applied; one that is accepted while the log is away is in a spool, and goes from there into the log.
    let tallies = store.tallies(log.id()).await?;
    let (counts, reached) = counts_and_reached(&store, log.id()).await?;
    let missing = store.missing().await?;
    let spools = store.spools().await?;
    let read = read::all(&log, reached, since_ms, args.json).await?;
    let audit = account(&Input {
        counts: &counts,
        tallies: &tallies,
        missing: &missing,
        spools: &spools,
        log: log.id(),
        read: &read,
        website: args.website,
        since_ms,
        now_ms: now_ms(),
    });
    store.close().await;
    log.close().await;
    print(&if args.json { format!("{}\n", serde_json::to_string(&audit)?) } else { show::text(&audit) });
    Ok(if audit.adds_up { Exit::Done } else { Exit::No })
}

/// The beginning of the first hour that counts, milliseconds since 1970.
fn since_ms(text: &str, now_ms: i64) -> Result<i64, Misuse> {
    let ago =
        |number: &str, unit_ms: i64| number.parse::<u32>().ok().map(|n| now_ms - i64::from(n) * unit_ms);
    let at = match (text.strip_suffix('h'), text.strip_suffix('d')) {
        (Some(hours), _) => ago(hours, 3_600_000),
        (_, Some(days)) => ago(days, 86_400_000),
        _ => {
            let timestamp = text.parse::<jiff::Timestamp>().ok();
            let date = || text.parse::<jiff::civil::Date>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok();
            timestamp.or_else(|| date().map(|date| date.timestamp())).map(|at| at.as_millisecond())
        }
    };
    at.map(hour_of).ok_or_else(|| {
        Misuse(format!("--since {text:?} is no time: write 2026-11-26, 2026-11-26T08:00:00Z, 36h or 7d"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_given_in_several_forms() {
        let now = 1_795_000_000_000;
        for (text, expected) in [
            ("36h", hour_of(now - 36 * 3_600_000)),
            ("1d", hour_of(now - 86_400_000)),
            ("2026-11-26", 1_795_651_200_000),
            ("2026-11-26T08:30:00Z", 1_795_680_000_000),
            ("2026-11-26T09:30:00+01:00", 1_795_680_000_000),
        ] {
            assert_eq!(since_ms(text, now).map_err(|error| error.to_string()), Ok(expected), "{text}");
        }
        assert!(since_ms("yesterday", now).is_err() && since_ms("xh", now).is_err());
    }
}
