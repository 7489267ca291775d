//! The command line: commands and flags.

pub mod examples;
mod replay;

pub use replay::*;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use uuid::Uuid;

use dashi_config::FlagValue;

use crate::audit::AuditArgs;
use crate::dead_letters::DeadLettersArgs;
use crate::erase::EraseArgs;
use crate::import::ImportCommand;
use crate::partitions::PartitionsArgs;

/// An event-sourced collector for web analytics that speaks Umami's protocol.
///
/// It answers a tracker once the event is durable in its event log, and folds that log into Umami's tables. `dashi serve`
/// does all of it in one process and needs no other server.
#[derive(Debug, Parser)]
#[command(name = "dashi", version, max_term_width = 110)]
#[command(after_help = examples::DASHI)]
pub struct Cli {
    /// TOML file with settings; config/default.toml documents all of them [env: DASHI_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// File of environment variables, such as Umami's .env; the process's own variables win over it
    #[arg(long, global = true, value_name = "FILE")]
    pub env_file: Option<PathBuf>,

    /// The event log: sqlite:PATH or kafka://HOST:PORT,HOST:PORT/TOPIC
    #[arg(long, global = true, value_name = "URL")]
    pub log: Option<String>,

    /// The store: sqlite:PATH or postgres://USER:PASSWORD@HOST:PORT/DATABASE
    #[arg(long, global = true, value_name = "URL")]
    pub store: Option<String>,

    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The values of flags that set a setting.
    pub fn flags(&self) -> Vec<FlagValue> {
        let (listen, logs_json) = match &self.command {
            Command::Serve(args) | Command::Collect(args) | Command::Project(args) => {
                (args.listen, args.json)
            }
            _ => (None, false),
        };
        [
            ("log", self.log.clone(), "--log"),
            ("store", self.store.clone(), "--store"),
            ("listen", listen.map(|listen| listen.to_string()), "--listen"),
            ("logs.format", logs_json.then(|| "json".to_owned()), "--json"),
        ]
        .into_iter()
        .filter_map(|(key, value, flag)| Some(FlagValue { key, value: value?, flag }))
        .collect()
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Collect and project in one process: the whole of Dashi
    #[command(after_help = examples::SERVE)]
    Serve(ServeArgs),
    /// Collect only: HTTP in, event log out
    #[command(after_help = examples::COLLECT)]
    Collect(ServeArgs),
    /// Project only: event log in, store out; run at most as many as the log has partitions
    #[command(after_help = examples::PROJECT)]
    Project(ServeArgs),
    /// Add, list and remove the websites whose events are taken
    #[command(subcommand, after_help = examples::WEBSITE)]
    Website(WebsiteCommand),
    /// Add, list and remove links: /q/SLUG counts a visit and redirects to an address
    #[command(subcommand, after_help = examples::LINK)]
    Link(LinkCommand),
    /// Add, list and remove pixels: /p/SLUG counts a visit and returns an invisible image
    #[command(subcommand, after_help = examples::PIXEL)]
    Pixel(PixelCommand),
    /// Print partitions, checkpoints, lag, the account of all records and the last error
    #[command(after_help = examples::STATUS)]
    Status(StatusArgs),
    /// Print over how many partitions the log is spread, or let that number grow
    Partitions(PartitionsArgs),
    /// Accept that the log lost records, so that projecting can go on; the lost records are recorded as missing
    #[command(after_help = examples::ACCEPT_LOST)]
    AcceptLost(AcceptLostArgs),
    /// Rebuild the tables from the log beside the live ones and swap them, or fold the log into a store of its own
    Replay(ReplayArgs),
    /// Compare the rows of two stores (exit code 3 if they differ)
    #[command(after_help = examples::COMPARE)]
    Compare(CompareArgs),
    /// Show that every record has its outcome and nothing is lost, by the hour (exit code 3 if it does not add up)
    Audit(AuditArgs),
    /// List, show, retry, discard or export the records that could not be applied
    DeadLetters(DeadLettersArgs),
    /// Erase a person, a session or all data of a website, by a command in the log that a replay obeys, too
    Erase(EraseArgs),
    /// Show where an event is and its outcome (exit code 3 if neither log nor store has it)
    #[command(after_help = examples::TRACE)]
    Trace(TraceArgs),
    /// Find and repair the damage that Umami left in its tables (exit code 3 if there is some and --apply is not given)
    Heal(HealArgs),
    /// Bring history in: of an Umami database, of files, of another Dashi (exit code 3 if something cannot be taken)
    #[command(subcommand, after_help = examples::IMPORT)]
    Import(ImportCommand),
    /// Write the log to NDJSON or Parquet files
    Export(ExportArgs),
    /// Keep closed ranges of the log in files, for replays beyond its retention
    Archive(ArchiveArgs),
    /// Measure a running collector, or two in turns, with generated events; either may be an Umami (exit code 1 if one takes no
    /// event, 4 if a comparison was interrupted)
    #[command(after_help = examples::BENCH)]
    Bench(BenchArgs),
    /// Ask a running Dashi whether it is ready (exit code 1 if not)
    #[command(after_help = examples::HEALTH)]
    Health(HealthArgs),
    /// Examine settings, log, store, topic, rights, clocks and disks (exit code 3 if something fails)
    #[command(after_help = examples::DOCTOR)]
    Doctor(DoctorArgs),
    /// Send one event to a running collector and follow it to its row (exit code 3 if it is not applied in time)
    #[command(after_help = examples::TEST_EVENT)]
    TestEvent(TestEventArgs),
    /// Make API keys for the setting api.keys, and their hashes
    #[command(subcommand, after_help = examples::KEYS)]
    Keys(KeysCommand),
    /// Print or check the settings
    #[command(subcommand, after_help = examples::CONFIG)]
    Config(ConfigCommand),
    /// Print the completions of a shell
    #[command(after_help = examples::COMPLETIONS)]
    Completions(CompletionsArgs),
    /// Print the manual page, or write the pages of all commands into a directory
    #[command(after_help = examples::MAN)]
    Man(ManArgs),
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TestEventArgs {
    /// Address of the collector
    #[arg(long, default_value = "http://127.0.0.1:8484", value_name = "URL")]
    pub url: String,

    /// Id of the website of the event [default: the first website of --store]
    #[arg(long, value_name = "UUID")]
    pub website: Option<Uuid>,

    /// How long to wait for the row
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub wait: u64,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,

    /// Print JSON, with the script as a text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Directory for one page per command; it is made if it is not there
    #[arg(long, value_name = "DIRECTORY")]
    pub output: Option<PathBuf>,

    /// Print JSON: the page as a text, or the files that were written
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address and port to listen on; `project` serves only /health and /metrics, by default on port 8485
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,

    /// Allow this log in a store that already holds the projection of another log
    #[arg(long)]
    pub accept_new_log: bool,

    /// Log JSON on a terminal, too (logs.format)
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum WebsiteCommand {
    /// Add a website; prints its id
    #[command(after_help = examples::WEBSITE_ADD)]
    Add {
        /// Its name, for people
        #[arg(long)]
        name: String,
        /// Its host name, for people
        #[arg(long)]
        domain: Option<String>,
        /// The id that its trackers send; generated if omitted
        #[arg(long, value_name = "UUID")]
        id: Option<Uuid>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the websites
    #[command(after_help = examples::WEBSITE_LIST)]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a website: its events are taken no more; its rows stay
    #[command(after_help = examples::WEBSITE_REMOVE)]
    Remove {
        /// The id
        id: Uuid,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Turn session recordings of a website (/api/record) on or off
    #[command(after_help = examples::WEBSITE_RECORDINGS)]
    Recordings {
        /// The id
        id: Uuid,
        /// Whether to take them
        #[arg(value_enum)]
        taken: Switch,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Turn heatmaps that a website's recorder posts on or off (Umami 3.2 and newer, and SQLite stores)
    #[command(after_help = examples::WEBSITE_HEATMAPS)]
    Heatmaps {
        /// The id
        id: Uuid,
        /// Whether to take them
        #[arg(value_enum)]
        taken: Switch,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the key with which a website's server signs the distinct ids of its people (docs/follow.md): a secret
    ///
    /// It is derived from profiles.identity_key and signs for this website only. The signature of a distinct id is its
    /// HMAC-SHA-256 under this key, in hexadecimal digits.
    #[command(after_help = examples::WEBSITE_IDENTITY_KEY)]
    IdentityKey {
        /// The id
        id: Uuid,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Set the addresses whose events a website refuses: they are answered 403
    #[command(after_help = examples::WEBSITE_BLOCK)]
    Block {
        /// The id
        id: Uuid,
        /// Addresses and CIDR blocks, separated by commas; they replace the former ones. "" for none
        addresses: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    On,
    Off,
}

#[derive(Debug, Subcommand)]
pub enum LinkCommand {
    /// Add a link; prints its id and path
    #[command(after_help = examples::LINK_ADD)]
    Add {
        /// The address to which it redirects
        #[arg(long)]
        url: String,
        /// Its name, for people
        #[arg(long)]
        name: String,
        /// The last part of its path; generated if omitted
        #[arg(long)]
        slug: Option<String>,
        /// The id under which its events are stored; generated if omitted
        #[arg(long, value_name = "UUID")]
        id: Option<Uuid>,
        #[command(flatten)]
        campaign: CampaignArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the links
    #[command(after_help = examples::LINK_LIST)]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a link: it redirects no more; its rows stay, and its slug cannot be used again
    #[command(after_help = examples::LINK_REMOVE)]
    Remove {
        /// The id
        id: Uuid,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Campaign parameters of a link's visits
#[derive(Debug, Args)]
pub struct CampaignArgs {
    /// utm_source that it adds to the address, and that its visits count under
    #[arg(long, value_name = "TEXT")]
    pub utm_source: Option<String>,
    /// utm_medium, likewise
    #[arg(long, value_name = "TEXT")]
    pub utm_medium: Option<String>,
    /// utm_campaign, likewise
    #[arg(long, value_name = "TEXT")]
    pub utm_campaign: Option<String>,
    /// utm_term, likewise
    #[arg(long, value_name = "TEXT")]
    pub utm_term: Option<String>,
    /// utm_content, likewise
    #[arg(long, value_name = "TEXT")]
    pub utm_content: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum PixelCommand {
    /// Add a pixel; prints its id and path
    #[command(after_help = examples::PIXEL_ADD)]
    Add {
        /// Its name, for people
        #[arg(long)]
        name: String,
        /// The last part of its path; generated if omitted
        #[arg(long)]
        slug: Option<String>,
        /// The id under which its events are stored; generated if omitted
        #[arg(long, value_name = "UUID")]
        id: Option<Uuid>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the pixels
    #[command(after_help = examples::PIXEL_LIST)]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a pixel; its rows stay, and its slug cannot be used again
    #[command(after_help = examples::PIXEL_REMOVE)]
    Remove {
        /// The id
        id: Uuid,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct AcceptLostArgs {
    /// Accept the loss of this partition only
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TraceArgs {
    /// The event's id, as website_event has it, or with --website the messageId that its client gave, or its
    /// request's Idempotency-Key (KEY:INDEX for an element of a batch, from 0)
    #[arg(value_name = "EVENT")]
    pub event: String,

    /// The website, link or pixel of a messageId
    #[arg(long, value_name = "UUID")]
    pub website: Option<Uuid>,

    /// Read all of the log: finds every copy, also of events whose client gave a messageId and its own time
    #[arg(long)]
    pub scan: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::HEAL)]
pub struct HealArgs {
    /// Repair the damage
    #[arg(long)]
    pub apply: bool,

    /// File to which repairs are written before they are committed [default: dashi-heal-TIME.ndjson in this directory]
    #[arg(long, value_name = "FILE", requires = "apply")]
    pub undo_file: Option<PathBuf>,

    /// Take back the repairs of this undo file; rows that were changed since stay
    #[arg(long, value_name = "FILE", conflicts_with_all = ["apply", "website"])]
    pub undo: Option<PathBuf>,

    /// Heal this website only
    #[arg(long, value_name = "UUID")]
    pub website: Option<Uuid>,

    /// Most rows in one transaction
    #[arg(long, value_name = "N", default_value = "1000")]
    pub batch: NonZeroUsize,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The first store: sqlite:PATH or postgres://…
    #[arg(value_name = "STORE")]
    pub first: String,
    /// The second store
    #[arg(value_name = "STORE")]
    pub second: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "It reads the log and changes nothing; Dashi may run meanwhile. A file is whole when it has its name.\n\n\
    dashi export --to /srv/export/ --format parquet     a file for each partition, for DuckDB, pandas and ClickHouse\n\
    dashi export --to may.ndjson.zst --since 2026-05-01 --until 2026-06-01\n\
    dashi export --website 94db1cb1-74f4-4a40-ad6c-962362670409 | gzip > one.ndjson.gz"
)]
pub struct ExportArgs {
    /// A directory (it exists, or ends with /), which gets a file for each partition, or a file [default: standard output]
    #[arg(long, value_name = "DIR|FILE")]
    pub to: Option<PathBuf>,

    /// Form of the files [default: that of the file's name, or ndjson]
    #[arg(long, value_enum)]
    pub format: Option<ExportFormat>,

    /// Compression [default: that of the file's name; in a directory and for Parquet zstd]
    #[arg(long, value_enum)]
    pub compress: Option<ExportCompression>,

    /// Records of this website, link or pixel only; may be repeated
    #[arg(long, value_name = "UUID")]
    pub website: Vec<Uuid>,

    /// Records appended at this moment or later: a time, a date, or a duration before now such as 7d
    #[arg(long, value_name = "T")]
    pub since: Option<String>,

    /// Records appended before this moment
    #[arg(long, value_name = "T")]
    pub until: Option<String>,

    /// Print JSON; the result is on standard error if the records are on standard output
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportFormat {
    /// A line of JSON for each record; `dashi import dashi` reads it
    Ndjson,
    /// Apache Parquet
    Parquet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportCompression {
    Gzip,
    Zstd,
    None,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Each run goes on behind the last one: cron may start it. A run that was killed leaves a sound archive.\n\n\
    dashi archive --to /srv/archive                     all that is in the log now\n\
    dashi archive --to s3://bucket/dashi --keep-in-log 7d   records older than a week (a build with --features s3)\n\
    dashi archive list --archive /srv/archive\n\
    dashi archive verify --archive /srv/archive"
)]
pub struct ArchiveArgs {
    #[command(subcommand)]
    pub command: Option<ArchiveCommand>,

    #[command(flatten)]
    pub run: ArchiveRunArgs,
}

#[derive(Debug, Args)]
pub struct ArchiveRunArgs {
    /// The archive's place: a directory or s3://BUCKET/PREFIX
    #[arg(long, value_name = "DIR|URL")]
    pub to: Option<String>,

    /// Archive records appended before this moment: a time, a date, or a duration before now such as 7d [default: all]
    #[arg(long, value_name = "T", conflicts_with = "keep_in_log")]
    pub until: Option<String>,

    /// Archive records older than this, such as 7d
    #[arg(long, value_name = "DURATION")]
    pub keep_in_log: Option<String>,

    /// Embedded log: from now on, its retention (event_log.retention_h) removes only records that this archive has
    #[arg(long)]
    pub hold: bool,

    /// Size of a full file before compression, which a run also needs as memory
    #[arg(long, value_name = "MIB", default_value = "64")]
    pub file_mib: std::num::NonZeroU32,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum ArchiveCommand {
    /// List the archived ranges of all partitions
    #[command(after_help = examples::ARCHIVE_LIST)]
    List(ArchivedArgs),
    /// Read all files and compare them with the manifests (exit code 3 if one is damaged)
    #[command(after_help = examples::ARCHIVE_VERIFY)]
    Verify(ArchivedArgs),
    /// Apply the erasures of the log to the archive: tombstones take the places of erased records
    #[command(after_help = examples::ARCHIVE_REWRITE)]
    Rewrite(ArchivedArgs),
    /// Embedded log: end the hold of this archive, so that retention removes records that it does not have, too
    #[command(after_help = examples::ARCHIVE_RELEASE)]
    Release(ArchivedArgs),
}

#[derive(Debug, Args)]
pub struct ArchivedArgs {
    /// The archive's place: a directory or s3://BUCKET/PREFIX
    #[arg(long, value_name = "DIR|URL")]
    pub archive: String,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Address of the collector: a Dashi or an Umami
    #[arg(long, default_value = "http://127.0.0.1:8484", value_name = "URL")]
    pub url: String,
    /// Id of the website of the events [default: the first website of --store]
    #[arg(long, value_name = "UUID")]
    pub website: Option<Uuid>,
    /// Address of a second collector, a Dashi or an Umami: both are measured in turns, by the same requests
    #[arg(long, value_name = "URL", conflicts_with = "record_acknowledged")]
    pub compare: Option<String>,
    /// Id of the second collector's website [default: that of the first]
    #[arg(long, value_name = "UUID", requires = "compare")]
    pub compare_website: Option<Uuid>,
    /// How often each of two collectors is measured
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000), requires = "compare")]
    pub rounds: u64,
    /// Number of connections, each with one request at a time
    #[arg(long, short = 'c', default_value_t = 64)]
    pub connections: usize,
    /// Seconds to measure
    #[arg(long, short = 'd', default_value_t = 10.0, value_name = "SECONDS")]
    pub duration: f64,
    /// Seconds of warm-up before measuring
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    pub warmup: f64,
    /// Requests per second, sent on schedule however slow the answers are (open loop); if omitted, each connection
    /// sends its next request after the answer to its last (closed loop)
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,
    /// End after so many requests
    #[arg(long, value_name = "N")]
    pub requests: Option<u64>,
    /// Events per request; more than 1 go to /api/batch
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub batch: usize,
    /// Number of distinct visitors
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pub sessions: u64,
    /// Make a new visitor of every Nth event; the other events are of the --sessions newest visitors
    #[arg(long, value_name = "N")]
    pub new_every: Option<u64>,
    /// Number of the first event: that of the events that an earlier run with this --seed sent, to go on with new visitors
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub first: u64,
    /// Shares of page views, custom events, identifies and performance events
    #[arg(long, default_value = "80,12,4,4", value_name = "N,N,N,N")]
    pub mix: String,
    /// Send back the token of a visitor's last answer (header x-umami-cache), as a page does that is not reloaded
    #[arg(long)]
    pub token: bool,
    /// Random seed; also part of every event's mark [default: current time]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// File to which the marks of acknowledged events are written
    #[arg(long, value_name = "FILE")]
    pub record_acknowledged: Option<PathBuf>,
    /// Do not send the empty requests (GET /api/heartbeat, which Umami has, too) that follow a closed loop for at most 5 s; their
    /// rate is the limit of server, generator and machine, and the report prints the ratio of the events' rate to it
    #[arg(long)]
    pub no_limit: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Its address
    #[arg(long, default_value = "http://127.0.0.1:8484", value_name = "URL")]
    pub url: String,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key; prints it, this once, and its hash, which is what api.keys needs
    #[command(after_help = examples::KEYS_NEW)]
    New {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the hash of a key that is there; the key is read on standard input
    #[command(after_help = examples::KEYS_HASH)]
    Hash {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every setting and its origin; secrets are redacted
    #[command(after_help = examples::CONFIG_SHOW)]
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check whether the settings are valid, reading them as `serve` does
    #[command(after_help = examples::CONFIG_CHECK)]
    Check {
        /// Also connect to the event log and the store, within ten seconds each; creates and changes nothing there
        #[arg(long)]
        connect: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[cfg(test)]
mod tests;
