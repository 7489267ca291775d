//! `dashi erase`: a person, a session or all data of a website goes, by a command in the log.
//!
//! The steps of `--apply`: wait until the projection has reached the log's end, so that the person's sessions are known;
//! append a copy of the erasure to every partition; overwrite the covered records, where the log can; wait until the
//! projection has passed the copies. Each may be repeated: an erasure of what is erased changes nothing.

mod rewrite;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use dashi_config::Loaded;
use dashi_domain::calendar::iso_string;
use dashi_domain::erasure::{Erasure, ErasureCopy, Subject};
use dashi_domain::position::{Checkpoint, Offset, Partition};
use dashi_domain::profile;
use dashi_event_log::{EventLog, NewRecord};
use dashi_store::{Erasable, Store};
use serde::Serialize;
use uuid::Uuid;

use crate::clock::now_ms;
use crate::exit::{Exit, Misuse};
use crate::layouts::known;
use crate::open;
use crate::output::print;
use crate::progress::{ProgressDisplay, State, Unit};

#[derive(Debug, Args)]
#[command(
    after_help = "Without --apply it changes nothing and prints the rows that would go. The erasure is a command in the log: a \
    replay does not bring the data back, and events that arrive later are new and stay. docs/erase.md says what it does not \
    reach: backups, archives, and on Kafka the records until retention removes them.\n\n\
    dashi erase --website 94db1cb1-74f4-4a40-ad6c-962362670409 --distinct-id ada            what would go\n\
    dashi erase --website 94db1cb1-74f4-4a40-ad6c-962362670409 --distinct-id ada --apply\n\
    dashi erase --website 94db1cb1-74f4-4a40-ad6c-962362670409 --all --and-website --apply  all data of the website, and the website"
)]
pub struct EraseArgs {
    /// The website, link or pixel
    #[arg(long, value_name = "UUID")]
    pub website: Uuid,

    #[command(flatten)]
    pub subject: SubjectArgs,

    /// With --all: remove the website, too, so that it takes no more events
    #[arg(long)]
    pub and_website: bool,

    /// Erase
    #[arg(long)]
    pub apply: bool,

    /// Longest wait for the projection, before and after
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "apply")]
    pub wait: u64,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct SubjectArgs {
    /// The person with this distinct id, with all sessions and traits
    #[arg(long, value_name = "ID")]
    pub distinct_id: Option<String>,
    /// This session
    #[arg(long, value_name = "UUID")]
    pub session: Option<Uuid>,
    /// Everything of the website
    #[arg(long)]
    pub all: bool,
}

/// The answer.
#[derive(Debug, Serialize)]
struct Report {
    website: Uuid,
    subject: &'static str,
    /// The rows that are erased, or would be.
    erasable: Erasable,
    /// Absent without --apply.
    applied: Option<Applied>,
}

#[derive(Debug, Serialize)]
struct Applied {
    erasure_id: Uuid,
    erased_at_ms: i64,
    /// Records of the log that were overwritten; `None` where the log cannot.
    records_overwritten: Option<u64>,
    /// Whether every partition's projection has passed its copy, so that the rows are gone.
    rows_are_gone: bool,
    /// Whether the website was removed.
    website_removed: bool,
    elapsed_s: f64,
}

/// Erases, or prints what would go. Exit code 4 if the rows were not gone in time.
pub async fn run(loaded: &Loaded, args: &EraseArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let subject = subject(&args.subject)?;
    if args.and_website && subject != Subject::Website {
        return Err(Misuse("--and-website goes with --all only".to_owned()).into());
    }
    let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
    let log = open::log(settings, open::Absent::Refuse).await?;
    let began = Instant::now();
    let (mut erasable, mut applied) = (store.erasable(args.website, &subject).await?, None);
    if args.apply {
        let mut erasing = Erasing {
            log: &log,
            store: &store,
            display: ProgressDisplay::new(args.json),
            wait: Duration::from_secs(args.wait),
        };
        erasing.catch_up().await?;
        // By now the tables name all of the person's sessions.
        erasable = store.erasable(args.website, &subject).await?;
        let command =
            Command { website_id: args.website, subject: subject.clone(), removes: args.and_website };
        applied = Some(erasing.apply(&command, &erasable, began).await?);
        erasing.display.finish();
    }
    store.close().await;
    log.close().await;
    let report = Report { website: args.website, subject: subject.kind(), erasable, applied };
    print(&if args.json { format!("{}\n", serde_json::to_string(&report)?) } else { text(&report) });
    Ok(match &report.applied {
        Some(applied) if !applied.rows_are_gone => Exit::Overdue,
        _ => Exit::Done,
    })
}

fn subject(args: &SubjectArgs) -> Result<Subject, Misuse> {
    match (&args.distinct_id, args.session) {
        (Some(id), _) if id.is_empty() => Err(Misuse("--distinct-id is empty".to_owned())),
        (Some(id), _) => Ok(Subject::Person(profile::distinct_id(id))),
        (None, Some(session)) => Ok(Subject::Session(session)),
        (None, None) => Ok(Subject::Website),
    }
}

struct Command {
    website_id: Uuid,
    subject: Subject,
    /// Whether the website goes, too.
    removes: bool,
}

/// A copy of an erasure in the log.
struct Placed {
    copy: ErasureCopy,
    partition: Partition,
    offset: Offset,
}

struct Erasing<'a> {
    log: &'a EventLog,
    store: &'a Store,
    display: ProgressDisplay,
    wait: Duration,
}

/// How often the projection's checkpoints are looked at.
const LOOK: Duration = Duration::from_millis(200);

impl Erasing<'_> {
    /// Waits until the projection has reached the end that the log has now.
    async fn catch_up(&self) -> anyhow::Result<()> {
        let mut ends = Vec::new();
        for partition in self.log.partitions().await? {
            let extent = self.log.extent(partition).await?;
            if extent.high > extent.low {
                ends.push((partition, extent.high));
            }
        }
        if !self.passes("waiting for the projection", &ends).await? {
            anyhow::bail!(
                "the projection has not reached the end of the log within {} s, so the sessions to erase are not all \
                 known: start `dashi serve` or `dashi project`, or wait longer (--wait); `dashi status` shows the lag",
                self.wait.as_secs()
            );
        }
        Ok(())
    }

    /// Whether all checkpoints reach these offsets in time.
    async fn passes(&self, part: &str, ends: &[(Partition, Offset)]) -> anyhow::Result<bool> {
        let deadline = Instant::now() + self.wait;
        let mut most = 0;
        loop {
            let checkpoints: HashMap<Partition, Checkpoint> = self
                .store
                .partitions()
                .await?
                .into_iter()
                .filter(|state| state.log == *self.log.id())
                .map(|state| (state.partition, state.checkpoint))
                .collect();
            let lag = |(partition, end): &(Partition, Offset)| {
                checkpoints.get(partition).copied().unwrap_or(Checkpoint::START).lag(*end)
            };
            let left: u64 = ends.iter().map(lag).sum();
            most = most.max(left);
            if left == 0 {
                return Ok(true);
            }
            let (done, unit) = (most - left, Unit::Of("records"));
            self.display.show(State { part, done, total: most, unit, note: None });
            if Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn apply(
        &mut self,
        command: &Command,
        found: &Erasable,
        began: Instant,
    ) -> anyhow::Result<Applied> {
        let (erasure, placed) = self.append(command, found).await?;
        let mut website_removed = false;
        if command.removes {
            website_removed = self.store.remove_website(command.website_id, now_ms()).await?;
        }
        let mut records_overwritten = None;
        if self.log.can_overwrite() {
            records_overwritten = Some(rewrite::overwrite(self, command.website_id, &placed).await?);
        }
        let ends: Vec<_> = placed.iter().map(|placed| (placed.partition, placed.offset.next())).collect();
        let rows_are_gone = self.passes("erasing rows", &ends).await?;
        Ok(Applied {
            erasure_id: erasure.erasure_id,
            erased_at_ms: erasure.erased_at_ms,
            records_overwritten,
            rows_are_gone,
            website_removed,
            elapsed_s: began.elapsed().as_secs_f64(),
        })
    }

    async fn append(&self, command: &Command, found: &Erasable) -> anyhow::Result<(Erasure, Vec<Placed>)> {
        let layouts = known(self.log, self.store).await?;
        let erasure = Erasure {
            erasure_id: Uuid::now_v7(),
            erased_at_ms: now_ms(),
            website_id: command.website_id,
            subject: command.subject.clone(),
            partitions: layouts.last().map_or(1, |layout| layout.partitions),
        };
        let earlier: Vec<u32> = layouts.iter().map(|layout| layout.partitions).collect();
        let placed = self.append_copies(&erasure.copies(&found.sessions, &earlier)).await?;
        anyhow::ensure!(
            known(self.log, self.store).await?.len() == layouts.len(),
            "the log has grown meanwhile, and the new partitions have no copy of the erasure {}: run the command again",
            erasure.erasure_id
        );
        Ok((erasure, placed))
    }

    async fn append_copies(&self, copies: &[ErasureCopy]) -> anyhow::Result<Vec<Placed>> {
        let append = async |copy: &ErasureCopy| {
            let record = NewRecord { session_id: copy.key, value: copy.encode() };
            self.log.append_to(copy.partition(), vec![record]).await
        };
        let appended = futures::future::join_all(copies.iter().map(append)).await.into_iter().flatten();
        let mut placed = Vec::with_capacity(copies.len());
        for (copy, appended) in copies.iter().zip(appended) {
            let (partition, offset) = appended.with_context(|| {
                format!(
                    "the erasure {} was not appended to all partitions: run the command again",
                    copy.erasure.erasure_id
                )
            })?;
            placed.push(Placed { copy: copy.clone(), partition, offset });
        }
        Ok(placed)
    }
}

fn text(report: &Report) -> String {
    let of = match report.subject {
        "person" => "this person",
        "session" => "this session",
        _ => "this website",
    };
    let mut out = String::new();
    if !report.erasable.sessions.is_empty() {
        out.push_str(&format!("{} sessions\n", report.erasable.sessions.len()));
    }
    for table in &report.erasable.tables {
        out.push_str(&format!("{:>10} rows of {}\n", table.rows, table.table));
    }
    if report.erasable.tables.is_empty() {
        out.push_str(&format!("The tables have no row of {of}.\n"));
    }
    let Some(applied) = &report.applied else {
        out.push_str("Nothing was changed; --apply erases them.\n");
        return out;
    };
    out.push_str(&format!("erasure {}, {}\n", applied.erasure_id, iso_string(applied.erased_at_ms)));
    match applied.records_overwritten {
        Some(records) => out.push_str(&format!("{records} records of the log are overwritten\n")),
        None => out.push_str(
            "The records stay in the topic until retention removes them (retention.ms), and in archives.\n",
        ),
    }
    if applied.website_removed {
        out.push_str("The website is removed.\n");
    }
    out.push_str(&if applied.rows_are_gone {
        format!("The rows are gone ({:.1} s).\n", applied.elapsed_s)
    } else {
        "The erasure is in the log; its rows go when the projector reads it: `dashi status` shows the lag.\n"
            .to_owned()
    });
    out
}
