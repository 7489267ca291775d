//! The examples below the flags of commands whose arguments are in `args`. A test parses every line of them that begins with
//! `dashi`; a text behind two spaces or more explains it.

pub const DASHI: &str = "Examples:
  dashi serve                                   collect and project, without any other server
  dashi website add --name 'My site'            a website whose events are taken
  dashi status                                  partitions, lag, and the account of all records
  dashi doctor                                  what is wrong, and its remedy

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 the answer is no (audit, compare, dead-letters, doctor, heal, import, \
replay, trace), 4 stopped before everything was finished.

Every setting can be given in a file (--config), as an environment variable (kafka.group is DASHI_KAFKA_GROUP), and some by a \
flag; the later one wins. `dashi config show` prints all settings and their origins.";

pub const SERVE: &str = "Examples:
  dashi serve
  dashi serve --listen 0.0.0.0:8484 --log sqlite:/srv/log.db --store sqlite:/srv/store.db
  dashi serve --config dashi.toml --json";

pub const COLLECT: &str = "Examples:
  dashi collect --log kafka://k1:9092,k2:9092/dashi-events --store postgres://dashi@db/dashi
  dashi collect --config dashi.toml --listen 0.0.0.0:8484";

pub const PROJECT: &str = "Examples:
  dashi project --log kafka://k1:9092,k2:9092/dashi-events --store postgres://dashi@db/dashi
  dashi project --config dashi.toml --listen 127.0.0.1:8485";

pub const WEBSITE: &str = "Examples:
  dashi website add --name 'My site' --domain example.com
  dashi website list";

pub const WEBSITE_ADD: &str = "Examples:
  dashi website add --name 'My site' --domain example.com
  dashi website add --name 'My site' --id 94db1cb1-74f4-4a40-ad6c-962362670409 --json";

pub const WEBSITE_LIST: &str = "Example:
  dashi website list --json";

pub const WEBSITE_REMOVE: &str = "Example:
  dashi website remove 94db1cb1-74f4-4a40-ad6c-962362670409";

pub const WEBSITE_RECORDINGS: &str = "Example:
  dashi website recordings 94db1cb1-74f4-4a40-ad6c-962362670409 on";

pub const WEBSITE_HEATMAPS: &str = "Example:
  dashi website heatmaps 94db1cb1-74f4-4a40-ad6c-962362670409 on";

pub const WEBSITE_IDENTITY_KEY: &str = "Examples:
  dashi website identity-key 94db1cb1-74f4-4a40-ad6c-962362670409
  IDENTITY_KEY=$(dashi website identity-key ID)   # of the website's server";

pub const WEBSITE_BLOCK: &str = "Examples:
  dashi website block 94db1cb1-74f4-4a40-ad6c-962362670409 203.0.113.7,198.51.100.0/24
  dashi website block 94db1cb1-74f4-4a40-ad6c-962362670409 ''       none is blocked any more";

pub const LINK: &str = "Examples:
  dashi link add --name 'Spring sale' --slug sale --url https://shop.example/spring
  dashi link list";

pub const LINK_ADD: &str = "Examples:
  dashi link add --name 'Spring sale' --slug sale --url https://shop.example/spring
  dashi link add --name 'Letter 7' --url https://shop.example/ --utm-source letter --utm-medium mail --json";

pub const LINK_LIST: &str = "Example:
  dashi link list --json";

pub const LINK_REMOVE: &str = "Example:
  dashi link remove 94db1cb1-74f4-4a40-ad6c-962362670409";

pub const PIXEL: &str = "Examples:
  dashi pixel add --name 'Letter 7'
  dashi pixel list";

pub const PIXEL_ADD: &str = "Example:
  dashi pixel add --name 'Letter 7' --slug letter-7 --json";

pub const PIXEL_LIST: &str = "Example:
  dashi pixel list --json";

pub const PIXEL_REMOVE: &str = "Example:
  dashi pixel remove 94db1cb1-74f4-4a40-ad6c-962362670409";

pub const STATUS: &str = "Examples:
  dashi status --log kafka://k1:9092/dashi-events --store postgres://dashi@db/dashi
  dashi status --json";

pub const ACCEPT_LOST: &str = "Examples:
  dashi accept-lost
  dashi accept-lost --partition 3 --json";

pub const TRACE: &str = "Examples:
  dashi trace 019a0d1c-55a4-7c3e-9a54-0e3b6f1c2d4e
  dashi trace order-4711 --website 94db1cb1-74f4-4a40-ad6c-962362670409     by the messageId of its client
  dashi trace 019a0d1c-55a4-7c3e-9a54-0e3b6f1c2d4e --scan --json";

pub const HEAL: &str =
    "Without --apply it changes nothing. Sessions that have events and no row get one, of properties that are there twice the \
newest stays, and events whose revenue was not written get it. Umami and Dashi may run meanwhile. Running it again changes \
nothing more.

dashi heal --store postgres://umami:…@localhost/umami            report
dashi heal --store postgres://… --apply --undo-file undo.ndjson  repair
dashi heal --store postgres://… --undo undo.ndjson               take the repair back";

pub const COMPARE: &str = "Examples:
  dashi compare sqlite:data/store.db sqlite:data/again.db
  dashi compare postgres://dashi@db/dashi sqlite:again.db --json";

pub const ARCHIVE_LIST: &str = "Example:
  dashi archive list --archive /srv/archive";

pub const ARCHIVE_VERIFY: &str = "Example:
  dashi archive verify --archive s3://bucket/dashi --json";

pub const ARCHIVE_REWRITE: &str = "Example:
  dashi archive rewrite --archive /srv/archive";

pub const ARCHIVE_RELEASE: &str = "Example:
  dashi archive release --archive /srv/archive";

pub const BENCH: &str = "Examples:
  dashi bench --duration 20 --connections 128      as many requests as it answers
  dashi bench --url http://collector:8484 --website 94db1cb1-74f4-4a40-ad6c-962362670409 --rate 500 --json
  dashi bench --compare http://umami:3000 --website 94db1cb1-74f4-4a40-ad6c-962362670409 --token --rounds 5

Two servers are measured by the same requests in each round, the first one first in every other round; the table has medians and the
ratios of the same rounds. Both need the website: docs/performance.md says how to add it to Umami.";

pub const HEALTH: &str = "Examples:
  dashi health --url http://127.0.0.1:8484
  dashi health --json || echo 'not ready'";

pub const DOCTOR: &str = "Example:
  dashi doctor --log kafka://k1:9092/dashi-events --store postgres://dashi@db/dashi

Each line is ok, warn or fail, with its remedy. Nothing is changed, but a topic that is not there is made, as by any start.";

pub const TEST_EVENT: &str = "Example:
  dashi test-event --url http://127.0.0.1:8484

The event stays, as a page view of /dashi-test-event; `dashi erase --session ID` removes it.";

pub const KEYS: &str = "Example:
  dashi keys new";

pub const KEYS_NEW: &str = "Examples:
  dashi keys new
  dashi keys new --json > key.json; export DASHI_API_KEYS=$(jq -r .hash key.json)";

pub const KEYS_HASH: &str = "Example:
  printf %s \"$KEY\" | dashi keys hash";

pub const CONFIG: &str = "Examples:
  dashi config show
  dashi config check --connect";

pub const CONFIG_SHOW: &str = "Examples:
  dashi config show --config dashi.toml
  dashi config show --json";

pub const CONFIG_CHECK: &str = "Examples:
  dashi config check --config dashi.toml
  dashi config check --connect --json";

pub const COMPLETIONS: &str = "Example, for bash:
  dashi completions bash > /etc/bash_completion.d/dashi";

pub const MAN: &str = "Example:
  dashi man --output /usr/local/share/man/man1; man dashi-replay-run";

pub const REPLAY: &str =
    "A rebuild makes a new generation of the tables from the log, beside the live ones, which go on:

dashi replay plan      the records that it would read; writes nothing
dashi replay run       builds the generation; after an interruption, run it again to go on
dashi replay compare   the generation and the live tables, row by row
dashi replay swap      the generation becomes live, the former one is kept
dashi replay rollback  the former one becomes live again
dashi replay drop 1    removes a generation that is not live

dashi replay --into sqlite:data/again.db   folds the log into an empty store and leaves the live one alone

docs/replay.md has more.";

pub const REPLAY_COMPARE: &str = "Examples:
  dashi replay compare
  dashi replay compare 2 --json";

pub const REPLAY_SWAP: &str = "Foreign rows are in the live tables and are not made of the log: another program wrote them, or their records are no \
longer in the log. While there are any, one of the two flags decides.

dashi replay swap                     the newest generation that is ready
dashi replay swap 2 --keep-foreign";

pub const REPLAY_ROLLBACK: &str = "Examples:
  dashi replay rollback
  dashi replay rollback --keep-foreign --json";

pub const REPLAY_DROP: &str = "Example:
  dashi replay drop 1";

pub const REPLAY_LIST: &str = "Example:
  dashi replay list --json";

pub const REPLAY_INTO: &str = "Examples:
  dashi replay into sqlite:data/again.db
  dashi replay into postgres://dashi@db/again --archive /srv/archive --rate 5000";

pub const IMPORT: &str = "Examples:
  dashi import umami postgres://umami:…@old-host/umami --dry-run
  dashi import ndjson events.ndjson.gz --website 11111111-1111-4111-8111-111111111111

Running one again goes on where it ended, and changes nothing twice. docs/import.md has more.";

pub const PARTITIONS_SHOW: &str = "Example:
  dashi partitions show --json";

pub const LETTERS_LIST: &str = "Examples:
  dashi dead-letters list
  dashi dead-letters list --error 'violates check constraint' --since 7d --json";

pub const LETTERS_SHOW: &str = "Examples:
  dashi dead-letters show 3:4711
  dashi dead-letters show 3:4711 --raw > record.json";

pub const LETTERS_RETRY: &str = "Examples:
  dashi dead-letters retry 3:4711 3:4712
  dashi dead-letters retry --error 'violates check constraint' --dry-run
  dashi dead-letters retry --all --json";

pub const LETTERS_DISCARD: &str = "Examples:
  dashi dead-letters discard 3:4711
  dashi dead-letters discard --website 94db1cb1-74f4-4a40-ad6c-962362670409 --until 2026-11-01";

pub const LETTERS_EXPORT: &str = "Examples:
  dashi dead-letters export --to letters.ndjson
  dashi dead-letters export --discarded | gzip > discarded.ndjson.gz";
