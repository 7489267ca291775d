//! `dashi heal`: finds the damage that Umami left in its tables, and repairs it on request.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use dashi_config::Loaded;
use dashi_domain::calendar::salt_start_ms;
use dashi_store::{
    HealError, HealReport, HealScope, KeepUndo, Orphaning, PostgresStore, REDACTED, Repair, Store, redact_url,
};
use serde::{Deserialize, Serialize};

use crate::args::HealArgs;
use crate::clock::now_ms;
use crate::exit::{Exit, Misuse};
use crate::output::print;
use crate::progress::{ProgressDisplay, State, Unit};
use crate::{interrupt, open};

/// Lines of an undo file that are taken back in one transaction.
const UNDO_BATCH: usize = 1_000;

/// Finds damage; repairs it with `--apply`; takes repairs back with `--undo`.
pub async fn run(loaded: &Loaded, args: &HealArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
    let Store::Postgres(postgres) = &store else {
        return Err(Misuse(
            "--store: heal is for a PostgreSQL database that Umami wrote; a SQLite store is Dashi's own and has no such \
             damage"
                .to_owned(),
        )
        .into());
    };
    if let Some(path) = &args.undo {
        let changed = undo(postgres, path, &settings.store).await?;
        store.close().await;
        print(&if args.json {
            format!("{}\n", serde_json::json!({ "taken_back": changed }))
        } else {
            format!(
                "{changed} rows are as they were before; rows that were changed since are left as they are\n"
            )
        });
        return Ok(Exit::Done);
    }
    let (rotation, zone) = open::salt_period(settings)?;
    let mut file =
        args.apply.then(|| UndoFile::create(args.undo_file.clone(), &settings.store)).transpose()?;
    let stop = interrupt::token();
    let scope = HealScope { website: args.website, batch_max: args.batch.get() };
    let progress = ProgressDisplay::new(args.json);
    let healed = postgres
        .heal(
            scope,
            |ms| salt_start_ms(ms, rotation, &zone),
            file.as_mut().map(|file| file as &mut (dyn KeepUndo + Send)),
            &mut |part, share| {
                progress.show(state(part, share));
                !stop.is_cancelled()
            },
        )
        .await;
    progress.finish();
    store.close().await;
    let path = file.map(|file| file.path);
    match healed {
        Ok(report) => {
            print(&if args.json { json(&report, path.as_deref())? } else { text(&report, path.as_deref()) });
            Ok(if args.apply || report.is_sound() { Exit::Done } else { Exit::No })
        }
        Err(HealError::Stopped) => {
            eprintln!(
                "dashi: interrupted; batches that were committed stay. Run the same command again to go on"
            );
            Ok(Exit::Overdue)
        }
        Err(error) => Err(error.into()),
    }
}

async fn undo(store: &PostgresStore, path: &Path, url: &str) -> anyhow::Result<u64> {
    let lines = read_undo(path, url)?;
    let mut changed = 0;
    for batch in lines.rchunks(UNDO_BATCH) {
        changed += store.undo_heal(batch).await?;
    }
    Ok(changed)
}

/// The first line of an undo file.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    dashi_undo: u32,
    store: String,
    began_at_ms: i64,
}

/// The format of undo files.
const FORMAT: u32 = 1;

/// The file to which repairs are written before they are committed.
struct UndoFile {
    path: PathBuf,
    file: File,
}

impl UndoFile {
    fn create(path: Option<PathBuf>, store: &str) -> anyhow::Result<Self> {
        let began_at_ms = now_ms();
        let path = path.unwrap_or_else(|| format!("dashi-heal-{began_at_ms}.ndjson").into());
        let file = OpenOptions::new().write(true).create_new(true).open(&path).with_context(|| {
            format!("--undo-file: {} cannot be made (a file that exists is not overwritten)", path.display())
        })?;
        let head = Head { dashi_undo: FORMAT, store: redact_url(store), began_at_ms };
        let mut undo = Self { path, file };
        undo.write(&[serde_json::to_string(&head)?])?;
        Ok(undo)
    }

    fn write(&mut self, lines: &[String]) -> io::Result<()> {
        let mut text = lines.join("\n");
        text.push('\n');
        self.file.write_all(text.as_bytes())?;
        self.file.sync_data()
    }
}

impl KeepUndo for UndoFile {
    fn keep(&mut self, batch: &[Repair]) -> io::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let lines: Result<Vec<_>, _> = batch.iter().map(serde_json::to_string).collect();
        self.write(&lines?)
    }
}

fn read_undo(path: &Path, url: &str) -> anyhow::Result<Vec<Repair>> {
    let file = File::open(path).with_context(|| format!("--undo: {} cannot be read", path.display()))?;
    let mut lines = BufReader::new(file).lines();
    let head = lines.next().transpose()?.unwrap_or_default();
    let head: Head = serde_json::from_str(&head)
        .map_err(|_| Misuse(format!("--undo: {} is no undo file of `dashi heal`", path.display())))?;
    if head.dashi_undo != FORMAT {
        return Err(Misuse(format!(
            "--undo: {} has format {}, this program reads format {FORMAT}",
            path.display(),
            head.dashi_undo
        ))
        .into());
    }
    let store = redact_url(url);
    if head.store != store {
        return Err(Misuse(format!(
            "--undo: {} is of the store {}, and --store is {store} (passwords are shown as {REDACTED})",
            path.display(),
            head.store
        ))
        .into());
    }
    let lines: Vec<String> = lines.collect::<Result<_, _>>()?;
    let mut repairs = Vec::with_capacity(lines.len());
    for (number, line) in lines.iter().enumerate() {
        match serde_json::from_str(line) {
            Ok(repair) => repairs.push(repair),
            // The process died while it wrote the last batch, which was never committed then.
            Err(_) if number + 1 == lines.len() => {}
            Err(error) => anyhow::bail!("--undo: line {} of {}: {error}", number + 2, path.display()),
        }
    }
    Ok(repairs)
}

/// Thousandths of a part of the work, of which `share` is the part done.
fn state(part: &'static str, share: f64) -> State<'static> {
    const ALL: u64 = 1_000;
    State { part, done: (share * ALL as f64) as u64, total: ALL, unit: Unit::Thousandths, note: None }
}

fn json(report: &HealReport, undo: Option<&Path>) -> anyhow::Result<String> {
    let mut value = serde_json::to_value(report)?;
    value["undo_file"] = undo.map(|path| path.display().to_string()).into();
    Ok(format!("{value}\n"))
}

fn text(report: &HealReport, undo: Option<&Path>) -> String {
    let mut out = String::from("sessions without a row              sessions      events        left\n");
    for cause in Orphaning::ALL {
        let Some(orphans) = report.orphaned_sessions.get(&cause) else { continue };
        let (sessions, events, left) = (orphans.sessions, orphans.events, orphans.left);
        out.push_str(&format!("  {:<32} {sessions:>9} {events:>11} {left:>11}\n", cause.words()));
        for sample in &orphans.samples {
            out.push_str(&format!(
                "    for example {} of website {}\n",
                sample.session_id, sample.website_id
            ));
        }
    }
    if report.orphaned_sessions.is_empty() {
        out.push_str("  none\n");
    }
    out.push_str(&format!(
        "properties that are there twice: {} rows too many, in {} sessions (Umami up to 3.2 fails at their next \
         identify)\n",
        report.doubled_properties, report.locked_sessions
    ));
    for (session, key) in &report.doubled_samples {
        out.push_str(&format!("    for example {key:?} of session {session}\n"));
    }
    out.push_str(&format!("half-written events (no row of revenue): {}\n", report.missing_revenue));
    for event in &report.revenue_samples {
        out.push_str(&format!("    for example event {event}\n"));
    }
    out.push_str(&format!("data of events that are not there: {} rows, left\n", report.stray_event_data));
    for event in &report.stray_samples {
        out.push_str(&format!("    for example event {event}\n"));
    }
    match undo {
        Some(path) => out.push_str(&format!(
            "repaired: {} rows; `dashi heal --undo {}` takes them back\n",
            report.repaired,
            path.display()
        )),
        None if report.is_sound() => out.push_str("there is nothing to repair\n"),
        None => out.push_str("nothing was changed; --apply repairs it\n"),
    }
    out
}
