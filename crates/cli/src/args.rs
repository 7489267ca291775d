//! What can be typed.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use uuid::Uuid;

use dashi_config::FlagValue;

/// An event-sourced collector for web analytics that speaks Umami's protocol.
///
/// It answers a tracker only when the event is durable in its event log, and folds that log into Umami's tables.
/// `dashi serve` does all of it in one process, with nothing beside it.
#[derive(Debug, Parser)]
#[command(name = "dashi", version, max_term_width = 110)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 the answer is no (compare, heal, trace), \
    4 stopped before everything was finished.\n\nEvery setting can be given in a file (--config), as an environment \
    variable (kafka.group is DASHI_KAFKA_GROUP), or, where there is one, by a flag; the later one wins. `dashi config \
    show` tells all of them and where each comes from."
)]
pub struct Cli {
    /// A TOML file with settings; config/default.toml documents them all [env: DASHI_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// A file of environment variables, such as Umami's .env; the process's own variables win over it
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
    /// The flags that are settings.
    pub fn flags(&self) -> Vec<FlagValue> {
        let listen = match &self.command {
            Command::Serve(args) | Command::Collect(args) | Command::Project(args) => args.listen,
            _ => None,
        };
        [
            ("log", self.log.clone(), "--log"),
            ("store", self.store.clone(), "--store"),
            ("listen", listen.map(|listen| listen.to_string()), "--listen"),
        ]
        .into_iter()
        .filter_map(|(key, value, flag)| Some(FlagValue { key, value: value?, flag }))
        .collect()
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Collect and project in one process: the whole of Dashi
    Serve(ServeArgs),
    /// Collect only: HTTP in, event log out
    Collect(ServeArgs),
    /// Project only: event log in, store out; run as many as the log has partitions
    Project(ServeArgs),
    /// Add, list and remove the websites that take events
    #[command(subcommand)]
    Website(WebsiteCommand),
    /// Add, list and remove links: /q/SLUG counts a visit and leads to an address
    #[command(subcommand)]
    Link(LinkCommand),
    /// Add, list and remove pixels: /p/SLUG counts a visit and is an invisible picture
    #[command(subcommand)]
    Pixel(PixelCommand),
    /// Show partitions, checkpoints, lag and the last error
    Status(StatusArgs),
    /// Go on where the log has lost what comes next, or what was projected; notes in the books what is lost
    AcceptLost(AcceptLostArgs),
    /// Fold the whole log into an empty store; run it again to go on after an interruption
    Replay(ReplayArgs),
    /// Say whether two stores hold the same rows (exit code 3 if not)
    Compare(CompareArgs),
    /// Show where an event is and what became of it (exit code 3 if neither log nor store has it)
    Trace(TraceArgs),
    /// Find and repair the damage that Umami left in its tables (exit code 3 if there is some and --apply is not given)
    Heal(HealArgs),
    /// Measure a running collector with generated traffic
    Bench(BenchArgs),
    /// Say whether a running Dashi is ready (exit code 1 if not)
    Health(HealthArgs),
    /// Show or check the settings
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address and port to listen on; `project` serves only /health and /metrics there, by default on port 8485
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,

    /// Let the store go on with this log though it holds the projection of another one
    #[arg(long)]
    pub accept_new_log: bool,
}

#[derive(Debug, Subcommand)]
pub enum WebsiteCommand {
    /// Register a website; prints its id
    Add {
        /// What people call it
        #[arg(long)]
        name: String,
        /// Its host, for people
        #[arg(long)]
        domain: Option<String>,
        /// The id that its trackers send; made anew if not given
        #[arg(long, value_name = "UUID")]
        id: Option<Uuid>,
    },
    /// List the websites
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a website: it takes no more events; its rows stay
    Remove {
        /// Its id
        id: Uuid,
    },
    /// Say whether a website takes session recordings (/api/record)
    Recordings {
        /// Its id
        id: Uuid,
        /// Take them or not
        #[arg(value_enum)]
        taken: Switch,
    },
    /// Say whether a website takes heatmaps that its recorder posts (Umami 3.2 and newer, and a SQLite store)
    Heatmaps {
        /// Its id
        id: Uuid,
        /// Take them or not
        #[arg(value_enum)]
        taken: Switch,
    },
    /// Say whose visits a website does not want: they are answered 403
    Block {
        /// Its id
        id: Uuid,
        /// Addresses and CIDR blocks, separated by commas; they replace those before. "" for none
        addresses: String,
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
    Add {
        /// Where it leads
        #[arg(long)]
        url: String,
        /// What people call it
        #[arg(long)]
        name: String,
        /// The last part of its path; made up if not given
        #[arg(long)]
        slug: Option<String>,
        /// The id that its events are filed under; made anew if not given
        #[arg(long, value_name = "UUID")]
        id: Option<Uuid>,
        #[command(flatten)]
        campaign: CampaignArgs,
    },
    /// List the links
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a link: it leads nowhere any more; its rows stay, and its slug stays taken
    Remove {
        /// Its id
        id: Uuid,
    },
}

/// What a link's visits carry on, and are counted under
#[derive(Debug, Args)]
pub struct CampaignArgs {
    /// Campaign parameter that it carries on to where it leads
    #[arg(long, value_name = "TEXT")]
    pub utm_source: Option<String>,
    /// Another one
    #[arg(long, value_name = "TEXT")]
    pub utm_medium: Option<String>,
    /// Another one
    #[arg(long, value_name = "TEXT")]
    pub utm_campaign: Option<String>,
    /// Another one
    #[arg(long, value_name = "TEXT")]
    pub utm_term: Option<String>,
    /// Another one
    #[arg(long, value_name = "TEXT")]
    pub utm_content: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum PixelCommand {
    /// Add a pixel; prints its id and path
    Add {
        /// What people call it
        #[arg(long)]
        name: String,
        /// The last part of its path; made up if not given
        #[arg(long)]
        slug: Option<String>,
        /// The id that its events are filed under; made anew if not given
        #[arg(long, value_name = "UUID")]
        id: Option<Uuid>,
    },
    /// List the pixels
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a pixel; its rows stay, and its slug stays taken
    Remove {
        /// Its id
        id: Uuid,
    },
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct AcceptLostArgs {
    /// Only this partition
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
    /// As JSON
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

    /// Read all of the log: finds every copy, also of events whose client gave a messageId and a time of its own
    #[arg(long)]
    pub scan: bool,

    /// As JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Without --apply it changes nothing. Sessions that have events and no row get one, of properties that are \
    there twice the newest stays, and events whose revenue was not written get it. Umami and Dashi may run meanwhile. \
    Running it again changes nothing more.\n\n\
    dashi heal --store postgres://umami:…@localhost/umami            report\n\
    dashi heal --store postgres://… --apply --undo-file undo.ndjson  repair\n\
    dashi heal --store postgres://… --undo undo.ndjson               take the repair back"
)]
pub struct HealArgs {
    /// Repair what is found
    #[arg(long)]
    pub apply: bool,

    /// Where the repairs are written before they are committed; by default dashi-heal-TIME.ndjson in this directory
    #[arg(long, value_name = "FILE", requires = "apply")]
    pub undo_file: Option<PathBuf>,

    /// Take back the repairs of this undo file; rows that were changed since stay
    #[arg(long, value_name = "FILE", conflicts_with_all = ["apply", "website"])]
    pub undo: Option<PathBuf>,

    /// Only this website
    #[arg(long, value_name = "UUID")]
    pub website: Option<Uuid>,

    /// Rows in one transaction, at most
    #[arg(long, value_name = "N", default_value = "1000")]
    pub batch: NonZeroUsize,

    /// As JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The store to fold the log into: an empty one, or one that an interrupted replay has begun
    #[arg(long, value_name = "URL")]
    pub into: String,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// A store: sqlite:PATH or postgres://…
    #[arg(value_name = "STORE")]
    pub first: String,
    /// Another one
    #[arg(value_name = "STORE")]
    pub second: String,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The collector
    #[arg(long, default_value = "http://127.0.0.1:8484", value_name = "URL")]
    pub url: String,
    /// The website that takes the events; by default the first one of --store
    #[arg(long, value_name = "UUID")]
    pub website: Option<Uuid>,
    /// Connections, each with one request at a time
    #[arg(long, short = 'c', default_value_t = 64)]
    pub connections: usize,
    /// Seconds to measure
    #[arg(long, short = 'd', default_value_t = 10.0, value_name = "SECONDS")]
    pub duration: f64,
    /// Seconds to warm up before
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    pub warmup: f64,
    /// Requests per second, sent on schedule however slow the answers are (open loop); without it each connection
    /// sends its next request when it has its answer (closed loop)
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,
    /// Requests in all
    #[arg(long, value_name = "N")]
    pub requests: Option<u64>,
    /// Events per request; more than 1 uses /api/batch
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub batch: usize,
    /// Distinct visitors
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pub sessions: u64,
    /// Shares of page views, custom events, identifies and performance events
    #[arg(long, default_value = "80,12,4,4", value_name = "N,N,N,N")]
    pub mix: String,
    /// Send the token of the last answer back, as a page that is not reloaded does
    #[arg(long)]
    pub token: bool,
    /// Decides everything that is drawn; also part of every mark. By default the time
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Write the marks of acknowledged events to this file
    #[arg(long, value_name = "FILE")]
    pub record_acknowledged: Option<PathBuf>,
    /// Leave out the empty requests (GET /api/heartbeat) that follow a closed loop for at most 5 s: their rate is
    /// the limit of server, generator and machine, and the report prints the events' ratio to it
    #[arg(long)]
    pub no_limit: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Where it listens
    #[arg(long, default_value = "http://127.0.0.1:8484", value_name = "URL")]
    pub url: String,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every setting and where it comes from; secrets are redacted
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether Dashi would start with these settings: read them as `serve` does
    Check {
        /// Also reach the event log and the store, within ten seconds each; makes and changes nothing there
        #[arg(long)]
        connect: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
