//! `dashi import`: brings history into the event log; the projection makes its rows.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use dashi_config::{Loaded, Settings};
use dashi_domain::client_address::BlockedAddresses;
use dashi_domain::ids::{IdRules, Secret};
use dashi_import::{
    FileSource, FileSourceKind, Format, ImportError, ImportSettings, Pacer, PastSettings, Progress, Report,
    Source, UmamiSource,
};
use dashi_store::{PostgresSettings, Store, UmamiHistory, redact_url};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clock::now_ms;
use crate::exit::{Exit, Misuse};
use crate::layouts::{Follower, Role};
use crate::open::InForce;
use crate::output::print;
use crate::progress::{ProgressDisplay, State, Unit};
use crate::{interrupt, logging, open};

/// How long one statement on an Umami database may take: a page of rows without a fitting index.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(600);

/// Places that history comes from.
#[derive(Debug, Subcommand)]
pub enum ImportCommand {
    /// Rows of an Umami database (PostgreSQL; 2.18 and newer)
    #[command(after_help = "dashi import umami postgres://umami:…@old-host/umami --dry-run\n\
        dashi import umami postgres://umami:…@old-host/umami --add-websites")]
    Umami {
        /// The database: postgres://USER:PASSWORD@HOST:PORT/DATABASE
        url: String,
        /// This website, link or pixel only; may be given several times
        #[arg(long, value_name = "UUID")]
        website: Vec<Uuid>,
        #[command(flatten)]
        args: ImportArgs,
    },
    /// Umami Cloud's CSV: a file, or a directory with files of events and of their data
    #[command(after_help = "dashi import umami-csv export/ --add-websites")]
    UmamiCsv {
        /// The file or directory; files may be compressed by gzip or zstd
        path: PathBuf,
        #[command(flatten)]
        args: ImportArgs,
    },
    /// NDJSON: a body of /api/send on each line, with a timestamp
    #[command(
        after_help = "A line: {\"type\":\"event\",\"payload\":{\"website\":\"…\",\"url\":\"/\",\"timestamp\":1777636800},\n        \
        \"address\":\"203.0.113.9\",\"agent\":\"Mozilla/5.0 …\"}\n\n\
        dashi import ndjson events.ndjson.gz --website 11111111-1111-4111-8111-111111111111"
    )]
    Ndjson {
        /// The file; it may be compressed by gzip or zstd
        file: PathBuf,
        /// The website of lines that name none
        #[arg(long, value_name = "UUID")]
        website: Option<Uuid>,
        #[command(flatten)]
        args: ImportArgs,
    },
    /// A web server's access log: each successful GET of a page is a page view
    #[command(
        after_help = "dashi import access-log access.log.1.gz --website 11111111-1111-4111-8111-111111111111 \
        --hostname www.example.org"
    )]
    AccessLog {
        /// The file; it may be compressed by gzip or zstd
        file: PathBuf,
        /// The website of the page views
        #[arg(long, value_name = "UUID")]
        website: Uuid,
        /// Its host name
        #[arg(long, value_name = "HOST")]
        hostname: String,
        /// The format of the lines
        #[arg(long, value_enum, default_value = "combined")]
        format: LineFormat,
        #[command(flatten)]
        args: ImportArgs,
    },
    /// An export of a Dashi log; its records are appended as they are
    #[command(after_help = "dashi import dashi export.ndjson.zst --add-websites")]
    Dashi {
        /// The file; it may be compressed by gzip or zstd
        file: PathBuf,
        #[command(flatten)]
        args: ImportArgs,
    },
}

/// The format of an access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LineFormat {
    /// `host ident user [time] "request" status bytes`; every visitor of an address is one
    Common,
    /// The same, with referrer and agent
    Combined,
}

/// Flags of all imports.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Read everything and print counts; write nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Add the websites that the store does not have
    #[arg(long)]
    pub add_websites: bool,

    /// Leave out history from this time on: 2026-05-01 (UTC) or 2026-05-01T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = moment_ms)]
    pub before: Option<i64>,

    /// File to which lines and rows go that cannot be taken [default: import-rejects-TIME.ndjson in this directory]
    #[arg(long, value_name = "FILE")]
    pub rejects: Option<PathBuf>,

    /// File that shows how far the import is [default: dashi-import-….state.json beside the rejects]
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,

    /// Read everything again, whatever the state file says; what is in the tables already changes nothing
    #[arg(long)]
    pub from_start: bool,

    /// Most records per second, however much room live events leave
    #[arg(long, value_name = "PER_SECOND", value_parser = positive)]
    pub rate: Option<f64>,

    /// Append as fast as the log takes it, also where live events then wait: for a first import, or while no projector runs
    #[arg(long)]
    pub unpaced: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|rate: &f64| rate.is_finite() && *rate > 0.0)
        .ok_or_else(|| "a number above 0".to_owned())
}

/// Milliseconds since 1970.
fn moment_ms(text: &str) -> Result<i64, String> {
    let day = || text.parse::<jiff::civil::Date>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok();
    let moment = text.parse::<jiff::Timestamp>().ok().or_else(|| Some(day()?.timestamp()));
    moment.map(jiff::Timestamp::as_millisecond).ok_or_else(|| "2026-05-01 or 2026-05-01T12:00:00Z".to_owned())
}

impl ImportCommand {
    fn args(&self) -> &ImportArgs {
        match self {
            Self::Umami { args, .. }
            | Self::UmamiCsv { args, .. }
            | Self::Ndjson { args, .. }
            | Self::AccessLog { args, .. }
            | Self::Dashi { args, .. } => args,
        }
    }
}

/// Imports. Exit code 3 if something cannot be taken.
pub async fn run(loaded: &Loaded, command: &ImportCommand) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    logging::start(&settings.logs)?;
    let args = command.args();
    let absent = if args.dry_run { open::Absent::Refuse } else { open::Absent::Create };
    let store = open::store(&settings.store, settings, absent).await?;
    if !args.dry_run {
        store.migrate().await?;
    }
    let source = source(settings, command, &store).await?;
    let log = if args.dry_run { None } else { Some(open::log(settings, absent).await?) };
    let followed = CancellationToken::new();
    let follower = match &log {
        Some(log) => Follower::start(log, &store, &Role::Command).await,
        None => None,
    };
    let following = follower.map(|follower| tokio::spawn(follower.run(followed.clone())));
    let delay_max = Duration::from_millis(settings.history.delay_ms_max);
    let pacer = log.as_ref().filter(|_| !args.unpaced);
    let pacer = pacer.map(|log| Pacer::new(log.clone(), store.clone(), delay_max, false));
    let now_ms = now_ms();
    let import_settings = ImportSettings {
        rejects: args.rejects.clone().unwrap_or_else(|| format!("import-rejects-{now_ms}.ndjson").into()),
        state: args.state.clone(),
        from_start: args.from_start,
        rate: args.rate,
        pacer,
        before_ms: args.before,
        add_websites: args.add_websites,
        now_ms,
    };
    let stop = interrupt::token();
    let began = Instant::now();
    let display = ProgressDisplay::new(args.json);
    let part = if args.dry_run { "reading" } else { "importing" };
    let show = |progress: Progress| {
        let Progress { done, total, is_bytes, waits, .. } = progress;
        let unit = Unit::Of(if is_bytes { "bytes" } else { "rows" });
        let note = waits.map(|wait| format!("waiting: {wait}; --unpaced does not wait"));
        display.show(State { part, done, total, unit, note: note.as_deref() });
    };
    let imported = dashi_import::import(log.as_ref(), &store, source, &import_settings, &stop, &show).await;
    display.finish();
    drop(import_settings);
    followed.cancel();
    if let Some(following) = following {
        following.await.context("the task that follows the log's layouts")?;
    }
    if let Some(log) = log {
        log.close().await;
    }
    store.close().await;
    let report = imported.map_err(misuse)?;
    let elapsed_s = began.elapsed().as_secs_f64();
    print(&if args.json {
        let mut value = serde_json::to_value(&report)?;
        value["elapsed_s"] = elapsed_s.into();
        format!("{value}\n")
    } else {
        text(&report, elapsed_s)
    });
    Ok(match &report {
        Report { complete: false, .. } => Exit::Overdue,
        Report { rejected: 1.., .. } => Exit::No,
        _ => Exit::Done,
    })
}

fn misuse(error: ImportError) -> anyhow::Error {
    if error.is_misuse() { Misuse(error.to_string()).into() } else { error.into() }
}

async fn source(settings: &Settings, command: &ImportCommand, store: &Store) -> anyhow::Result<Source> {
    let file = |path: &PathBuf, kind| FileSource::new(path, kind).map(Source::Files).map_err(misuse);
    match command {
        ImportCommand::Umami { url, website, .. } => {
            let history = UmamiHistory::open(&PostgresSettings {
                url: url.clone(),
                connections_max: 1,
                statement_timeout: STATEMENT_TIMEOUT,
            })
            .await?;
            Ok(Source::Umami(UmamiSource::new(history, redact_url(url), website.clone())))
        }
        ImportCommand::UmamiCsv { path, .. } => file(path, FileSourceKind::UmamiCsv),
        ImportCommand::Ndjson { file: path, website, args } => {
            let past = Box::new(past(settings, store, args.dry_run).await?);
            file(path, FileSourceKind::Ndjson { website: *website, past })
        }
        ImportCommand::AccessLog { file: path, website, hostname, format, args } => {
            let past = Box::new(past(settings, store, args.dry_run).await?);
            let format = match format {
                LineFormat::Common => Format::Common,
                LineFormat::Combined => Format::Combined,
            };
            let hostname = hostname.clone();
            file(path, FileSourceKind::AccessLog { website: *website, hostname, format, past })
        }
        ImportCommand::Dashi { file: path, .. } => file(path, FileSourceKind::Dashi),
    }
}

/// The rules by which a collector of these settings decides.
async fn past(settings: &Settings, store: &Store, is_dry_run: bool) -> anyhow::Result<PastSettings> {
    let in_force: InForce = match open::release_by_settings(settings, &settings.store)? {
        Some(set) => set,
        None => open::release_by_store(store).await?,
    };
    let formula = open::formula_by_settings(settings).unwrap_or_else(|| open::formula_by_release(&in_force));
    let ids = if is_dry_run {
        // Ids that nobody will see; the secret of an embedded log may not have been made yet.
        let (rotation, zone) = open::salt_period(settings)?;
        let secret = Secret::from_text("a dry run");
        IdRules { secret, rotation, zone, identified: formula.identified }
    } else {
        IdRules { identified: formula.identified, ..open::id_rules(settings)? }
    };
    let ingest = &settings.ingest;
    Ok(PastSettings {
        secret: ids.secret.clone(),
        ids,
        release: in_force.release,
        cut_long_fields: ingest.cut_long_fields,
        blocked: BlockedAddresses::parse(&ingest.ignore_ip),
        bots_welcome: ingest.disable_bot_check,
        geo: Some(PathBuf::from(&settings.geo.database)).filter(|path| !path.as_os_str().is_empty()),
    })
}

fn text(report: &Report, elapsed_s: f64) -> String {
    let Report { read, appended, already_in_log, rejected, .. } = report;
    let verb = if report.dry_run { "would append" } else { "appended" };
    let mut out = format!(
        "{}\nread {read} in {elapsed_s:.1} s · {verb} {appended} records · {already_in_log} were in the log already · \
         {rejected} rejected\n",
        report.source
    );
    for (reason, count) in &report.ignored {
        out.push_str(&format!("left out, {reason}: {count}\n"));
    }
    for website in &report.websites_added {
        let verb = if report.dry_run { "would add" } else { "added" };
        out.push_str(&format!("{verb} the website {website}\n"));
    }
    for note in &report.notes {
        out.push_str(&format!("note: {note}\n"));
    }
    for sample in &report.reject_samples {
        out.push_str(&format!("rejected, for example: {sample}\n"));
    }
    if let Some(path) = &report.rejects_file {
        out.push_str(&format!("all of them are in {}\n", path.display()));
    }
    if report.dry_run {
        out.push_str("nothing was written\n");
    } else if !report.complete {
        out.push_str("interrupted: run the same command again to go on\n");
    } else if *appended > 0 {
        out.push_str("`dashi serve` and `dashi project` make rows of these records; `dashi status` shows how far they are\n");
    }
    out
}
