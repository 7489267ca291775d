//! `dashi archive`: keeps closed ranges of the log in files, lists and verifies them.

use dashi_archive::{
    Archive, ArchiveError, ArchiveReport, ArchiveSettings, Manifest, Place, RewriteReport, Verification,
    VerifyProgress, archive, holder, rewrite,
};
use dashi_config::Loaded;
use dashi_domain::calendar::iso_string;
use dashi_domain::position::LogId;
use dashi_event_log::ReadLimit;

use crate::args::{ArchiveArgs, ArchiveCommand, ArchiveRunArgs, ArchivedArgs};
use crate::clock::now_ms;
use crate::exit::{Exit, Misuse};
use crate::output::print;
use crate::progress::{ProgressDisplay, State, Unit};
use crate::{interrupt, moment, open};

/// One read of the log.
const READ: ReadLimit =
    ReadLimit { records_max: 2_000, bytes_max: 4 * 1024 * 1024, wait: std::time::Duration::from_millis(500) };

/// Archives, or runs a subcommand.
pub async fn run(loaded: &Loaded, args: ArchiveArgs) -> anyhow::Result<Exit> {
    match args.command {
        None => run_archive(loaded, &args.run).await,
        Some(ArchiveCommand::List(args)) => list(&args).await,
        Some(ArchiveCommand::Verify(args)) => verify(&args).await,
        Some(ArchiveCommand::Rewrite(args)) => run_rewrite(loaded, &args).await,
        Some(ArchiveCommand::Release(args)) => release(loaded, &args).await,
    }
}

/// The place of a path or URL.
fn place(text: &str, flag: &str) -> anyhow::Result<Place> {
    Place::parse(text).map_err(|error| misuse(error, flag))
}

/// The archive of a log, for a replay.
///
/// # Errors
/// The place has none of this log.
pub async fn of_log(text: &str, log: &LogId) -> anyhow::Result<Archive> {
    let archive = Archive::new(place(text, "--archive")?, log.clone());
    if archive.partitions().await?.is_empty() {
        let place = archive.place();
        anyhow::bail!(
            "{place} has no archive of the log {log}; `dashi archive list --archive {place}` shows its archives"
        );
    }
    Ok(archive)
}

/// An error of the given place is wrong usage.
fn misuse(error: ArchiveError, flag: &str) -> anyhow::Error {
    match error {
        ArchiveError::Place { .. } => Misuse(format!("{flag}: {error}")).into(),
        error => error.into(),
    }
}

async fn run_archive(loaded: &Loaded, args: &ArchiveRunArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let Some(to) = &args.to else {
        return Err(Misuse(
            "give the archive's place with --to, or a subcommand: list, verify, release".to_owned(),
        )
        .into());
    };
    let place = place(to, "--to")?;
    let zone = open::zone(settings)?;
    let until_ms = match (&args.until, &args.keep_in_log) {
        (Some(until), _) => Some(
            moment::parse(until, &zone, now_ms()).map_err(|reason| Misuse(format!("--until: {reason}")))?,
        ),
        (None, Some(kept)) => {
            let kept = moment::duration_ms(kept);
            Some(now_ms() - kept.map_err(|reason| Misuse(format!("--keep-in-log: {reason}")))?)
        }
        (None, None) => None,
    };
    let log = open::log(settings, open::Absent::Refuse).await?;
    let how = ArchiveSettings {
        until_ms,
        file_bytes_max: u64::from(args.file_mib.get()) * 1024 * 1024,
        hold: args.hold,
        read_limit: READ,
        now_ms,
    };
    let (display, stop) = (ProgressDisplay::new(args.json), interrupt::token());
    let kept = Archive::new(place.clone(), log.id().clone());
    let report = archive(&log, &kept, how, &stop, &|at| {
        let (part, unit) = ("archive", Unit::Of("records"));
        display.show(State { part, done: at.done, total: at.total, unit, note: None });
    })
    .await;
    display.finish();
    log.close().await;
    let report = report?;
    print(&if args.json { format!("{}\n", serde_json::to_string(&report)?) } else { text(&report, &place) });
    Ok(if report.complete { Exit::Done } else { Exit::Overdue })
}

fn text(report: &ArchiveReport, place: &Place) -> String {
    let sum = |of: fn(&dashi_archive::PartitionReport) -> u64| report.partitions.iter().map(of).sum::<u64>();
    let mut out = format!(
        "archived {} records of {} partitions in {} files ({} bytes) in {place}\n",
        sum(|part| part.records),
        report.partitions.len(),
        sum(|part| part.files),
        sum(|part| part.bytes),
    );
    if report.erased > 0 {
        out.push_str(&format!("erased {} records, which erasures in the log cover\n", report.erased));
    }
    for part in &report.partitions {
        for [from, to] in &part.not_archived {
            out.push_str(&format!(
                "partition {}: offsets {from} to {} are not archived: retention removed them from the log before\n",
                part.partition,
                to - 1
            ));
        }
    }
    if !report.complete {
        out.push_str("interrupted: run the same command again to continue\n");
    }
    out
}

async fn run_rewrite(loaded: &Loaded, args: &ArchivedArgs) -> anyhow::Result<Exit> {
    let log = open::log(&loaded.settings, open::Absent::Refuse).await?;
    let archive = of_log(&args.archive, log.id()).await?;
    let how =
        ArchiveSettings { until_ms: None, file_bytes_max: u64::MAX, hold: false, read_limit: READ, now_ms };
    let (display, stop) = (ProgressDisplay::new(args.json), interrupt::token());
    let report = rewrite(&log, &archive, how, &stop, &|at| {
        let (part, unit) = ("rewrite", Unit::Of("records"));
        display.show(State { part, done: at.done, total: at.total, unit, note: None });
    })
    .await;
    display.finish();
    log.close().await;
    let report = report?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&report)?));
    } else {
        let RewriteReport { erasures, files, erased, .. } = &report;
        print(&format!("{erasures} erasures: {erased} records erased, {files} files written again\n"));
        if !report.complete {
            print("interrupted: run the same command again to continue\n");
        }
    }
    Ok(if report.complete { Exit::Done } else { Exit::Overdue })
}

async fn release(loaded: &Loaded, args: &ArchivedArgs) -> anyhow::Result<Exit> {
    let log = open::log(&loaded.settings, open::Absent::Refuse).await?;
    let archive = Archive::new(place(&args.archive, "--archive")?, log.id().clone());
    let released = log.release(&holder(&archive)).await?;
    log.close().await;
    print(&match (args.json, released) {
        (true, _) => format!("{}\n", serde_json::json!({ "released": released })),
        (false, true) => "released: retention no longer waits for this archive\n".to_owned(),
        (false, false) => "this archive holds nothing in this log\n".to_owned(),
    });
    Ok(if released { Exit::Done } else { Exit::No })
}

/// All archives in a place; at least one.
async fn archives(args: &ArchivedArgs) -> anyhow::Result<Vec<Archive>> {
    let place = place(&args.archive, "--archive")?;
    let archives = Archive::all(&place).await?;
    if archives.is_empty() {
        anyhow::bail!("there is no archive in {place}: `dashi archive --to {place}` makes one");
    }
    Ok(archives)
}

async fn list(args: &ArchivedArgs) -> anyhow::Result<Exit> {
    let mut listed = Vec::new();
    for archive in archives(args).await? {
        for partition in archive.partitions().await? {
            listed.push(archive.manifest(partition).await?);
        }
    }
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&listed)?));
        return Ok(Exit::Done);
    }
    let mut log = "";
    for manifest in &listed {
        if log != manifest.log {
            log = &manifest.log;
            print(&format!(
                "log {log}\npartition    offsets                     records   files         bytes  appended\n"
            ));
        }
        print(&listing(manifest));
    }
    Ok(Exit::Done)
}

/// A line for a partition, and one for each gap of it.
fn listing(manifest: &Manifest) -> String {
    let segments = &manifest.segments;
    let (Some(first), Some(last)) = (segments.first(), segments.last()) else { return String::new() };
    let sum = |of: fn(&dashi_archive::Segment) -> u64| segments.iter().map(of).sum::<u64>();
    let with_records = || segments.iter().filter(|segment| segment.records > 0);
    let from = with_records().map(|segment| segment.appended_at_ms_min).min();
    let to = with_records().map(|segment| segment.appended_at_ms_max).max();
    let times = match (from, to) {
        (Some(from), Some(to)) => format!("{} to {}", iso_string(from), iso_string(to)),
        _ => "never".to_owned(),
    };
    let mut out = format!(
        "{:>9}    {:<24} {:>10} {:>7} {:>13}  {times}\n",
        manifest.partition,
        format!("{} to {}", first.first, last.last),
        sum(|segment| segment.records),
        segments.len(),
        sum(|segment| segment.bytes),
    );
    for gap in manifest.gaps() {
        let (from, to) = (gap.start.number(), gap.end.number() - 1);
        out.push_str(&format!("             offsets {from} to {to} are not archived\n"));
    }
    let erased = sum(|segment| segment.erased);
    if erased > 0 {
        out.push_str(&format!("             {erased} records were erased\n"));
    }
    out
}

async fn verify(args: &ArchivedArgs) -> anyhow::Result<Exit> {
    let archives = archives(args).await?;
    let (display, stop) = (ProgressDisplay::new(args.json), interrupt::token());
    let mut found = Vec::new();
    for archive in &archives {
        let show = |at: VerifyProgress| {
            let (part, unit) = ("verify", Unit::Of("bytes"));
            display.show(State { part, done: at.done, total: at.total, unit, note: None });
        };
        found.push(archive.verify(&stop, &show).await?);
    }
    display.finish();
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&found)?));
    } else {
        found.iter().for_each(|result| print(&verified(result)));
    }
    Ok(if found.iter().any(|result| !result.damaged.is_empty()) {
        Exit::No
    } else if found.iter().all(|result| result.complete) {
        Exit::Done
    } else {
        Exit::Overdue
    })
}

fn verified(result: &Verification) -> String {
    let Verification { log, partitions, files, bytes, records, erased, not_archived, .. } = result;
    let mut out = format!(
        "log {log}: read {files} files of {partitions} partitions, {bytes} bytes, {records} records\n"
    );
    if *erased > 0 {
        out.push_str(&format!("{erased} records were erased\n"));
    }
    if *not_archived > 0 {
        out.push_str(&format!(
            "{not_archived} offsets between archived ranges are not archived; `dashi archive list` names them\n"
        ));
    }
    for file in &result.unlisted {
        out.push_str(&format!("{file} is in no manifest: a run was killed; the next run removes it\n"));
    }
    for damage in &result.damaged {
        out.push_str(&format!("DAMAGED: {damage}\n"));
    }
    out.push_str(match (&result.damaged[..], result.complete) {
        ([], true) => "the archive is as it was written\n",
        ([], false) => "interrupted: files that were read are as they were written\n",
        _ => "the archive is damaged\n",
    });
    out
}
