//! `dashi replay plan`: the records that a replay would read, and how long it would take. It writes nothing.

use anyhow::Context as _;
use dashi_config::Loaded;
use dashi_domain::calendar::iso_string;
use dashi_domain::position::Offset;
use dashi_projector::{PlanFrom, PlanScope, ReplayPlan, plan};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::{jobs, release};
use crate::args::PlanArgs;
use crate::exit::{Exit, Misuse};
use crate::output::print;
use crate::progress::{ProgressDisplay, State, Unit, duration};
use crate::{logging, open};

/// Reads a sample of the log and prints the plan.
pub async fn run(loaded: &Loaded, args: &PlanArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    logging::start_quiet(loaded)?;
    let zone = open::zone(settings)?;
    let scope = PlanScope {
        from: from(&args.from, &zone)?,
        until_ms: args.until.as_deref().map(|text| time_ms("--until", text, &zone)).transpose()?,
        website: args.website,
    };
    let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
    let release = release(settings, &store).await?;
    let last_per_s = store.generations().await?.iter().rev().find_map(|generation| generation.replayed_per_s);
    store.close().await;
    let log = open::log(settings, open::Absent::Refuse).await?;
    let of_projector = open::projector_settings(settings, release, true)?;
    let progress = ProgressDisplay::new(args.json);
    let planned = plan(&log, scope, of_projector.fold, &of_projector.rules, |done, total| {
        progress.show(State { part: "sampling", done, total, unit: Unit::Of("places"), note: None });
    })
    .await;
    progress.finish();
    log.close().await;
    let planned = planned.context("the log could not be sampled")?;
    let jobs = jobs(Some(args.speed)).get().min(planned.partitions.max(1));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let estimate = Estimate {
        fold_s: planned.fold_s / jobs.min(cores) as f64,
        rate_s: args.speed.rate.map(|rate| planned.records_max as f64 / f64::from(rate.get())),
        last_s: last_per_s.map(|per_s| planned.records_max as f64 / per_s.max(1) as f64),
    };
    print(&match args.json {
        true => {
            let mut value = serde_json::to_value(&planned)?;
            value["rules"] = of_projector.rules.text().into();
            value["least_s"] = estimate.least_s().into();
            value["last_replayed_per_s"] = last_per_s.into();
            format!("{value}\n")
        }
        false => text(&planned, &estimate, args),
    });
    Ok(Exit::Done)
}

/// Seconds that the replay takes at least.
struct Estimate {
    /// Decoding and folding, on the cores that it uses.
    fold_s: f64,
    /// By the limit on the rate.
    rate_s: Option<f64>,
    /// At the rate of the last rebuild.
    last_s: Option<f64>,
}

impl Estimate {
    fn least_s(&self) -> f64 {
        self.fold_s.max(self.rate_s.unwrap_or(0.0))
    }

    fn text(&self) -> String {
        let Self { fold_s, rate_s, last_s } = *self;
        let least = duration(self.least_s());
        match (rate_s, last_s) {
            (Some(rate_s), _) if rate_s > last_s.unwrap_or(fold_s) => format!("{least}, which --rate takes"),
            (_, Some(last_s)) => format!("about {} at the rate of the last rebuild", duration(last_s)),
            _ => format!("at least {least}: decoding and folding; writing the rows takes longer"),
        }
    }
}

fn text(planned: &ReplayPlan, estimate: &Estimate, args: &PlanArgs) -> String {
    let ReplayPlan { partitions, records_max, removed, bytes, website_records, sample, .. } = planned;
    let mut out = format!("records    {records_max} at most, in {partitions} partitions\n");
    if *removed > 0 {
        out.push_str(&format!(
            "           {removed} before them are no longer in the log: their rows would be foreign rows\n"
        ));
    }
    if let (Some(of_website), Some(website)) = (website_records, args.website) {
        out.push_str(&format!("           about {of_website} of {website}\n"));
    }
    if let (Some(first), Some(last)) = (planned.first_appended_at_ms, planned.last_appended_at_ms) {
        out.push_str(&format!("appended   {} to {}\n", iso_string(first), iso_string(last)));
    }
    out.push_str(&format!("bytes      about {}\n", bytes_text(*bytes)));
    out.push_str(&format!("duration   {}\n", estimate.text()));
    out.push_str(&format!(
        "           (decoding and folding {} records took {:.0} µs each)\n",
        sample.records,
        sample.fold_s * 1e6 / sample.records.max(1) as f64
    ));
    if sample.dead > 0 {
        out.push_str(&format!(
            "dead       {} of the sample would be set aside as dead letters\n",
            sample.dead
        ));
    }
    out
}

fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    let mut amount = bytes as f64 / 1e3;
    let mut unit = 0;
    while amount >= 999.5 && unit + 1 < UNITS.len() {
        amount /= 1e3;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

fn from(text: &str, zone: &TimeZone) -> anyhow::Result<PlanFrom> {
    if text == "beginning" {
        return Ok(PlanFrom::Beginning);
    }
    match text.parse() {
        Ok(offset) => Ok(PlanFrom::Offset(Offset::new(offset))),
        Err(_) => Ok(PlanFrom::Time(time_ms("--from", text, zone)?)),
    }
}

/// Milliseconds since 1970 of a time with or without a zone.
fn time_ms(flag: &str, text: &str, zone: &TimeZone) -> Result<i64, Misuse> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time.as_millisecond());
    }
    let local = text.parse::<DateTime>().ok().and_then(|local| local.to_zoned(zone.clone()).ok());
    local.map(|local| local.timestamp().as_millisecond()).ok_or_else(|| {
        Misuse(format!("{flag} {text:?} is no time: 2026-11-26, 2026-11-26T08:00 or 2026-11-26T08:00:00Z"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_beginning_an_offset_or_a_time() {
        let berlin = TimeZone::get("Europe/Berlin").expect("the zone is known");
        let from = |text| from(text, &berlin).ok();
        assert_eq!(from("beginning"), Some(PlanFrom::Beginning));
        assert_eq!(from("17"), Some(PlanFrom::Offset(Offset::new(17))));
        let midnight = 1_764_111_600_000;
        assert_eq!(from("2025-11-26"), Some(PlanFrom::Time(midnight)));
        assert_eq!(from("2025-11-26T00:30"), Some(PlanFrom::Time(midnight + 30 * 60_000)));
        assert_eq!(from("2025-11-25T23:00:00Z"), Some(PlanFrom::Time(midnight)));
        assert_eq!(from("yesterday"), None);
    }

    #[test]
    fn bytes_have_a_unit() {
        let texts: Vec<_> = [0, 999_400, 999_600, 12_345_678, 5_000_000_000_000_000].map(bytes_text).into();
        assert_eq!(texts, ["0.0 kB", "999.4 kB", "1.0 MB", "12.3 MB", "5000.0 TB"]);
    }
}
