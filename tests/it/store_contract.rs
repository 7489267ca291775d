//! The promises of a store, one suite for every backend.

mod profiles;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use dashi_domain::decimal::Decimal;
use dashi_domain::flatten::DataType;
use dashi_domain::fold::{Changes, FoldRules, Outcomes, fold};
use dashi_domain::missing::{Missing, MissingCause};
use dashi_domain::position::{Checkpoint, Epoch, LogId, Offset, Partition};
use dashi_domain::profile::{ProfileLink, ProfileLinkKind, Stamp, TraitSend};
use dashi_domain::record::Record;
use dashi_domain::rows::{
    AppliedRow, Campaign, ChunkEvent, ChunkRow, DataValue, DeadLetter, EventDataRow, EventRow, EventType,
    HeatmapKind, HeatmapRow, IdentifyRow, RevenueRow, SessionAttributes, SessionDataRow, SessionLinkRow,
    SessionRow, Vitals,
};
use dashi_domain::umami::Release;
use dashi_store::{
    Claim, ClaimError, CommitError, ErrorNote, NewWebsite, PostgresSettings, PostgresStore, SqliteSettings,
    SqliteStore, Store, StoreError, compare,
};
use integration_tests::{PostgresServer, TestDatabase, TestDirectory, UmamiVersion, eventually};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};
use uuid::Uuid;

use profiles::{
    a_deleted_trait_stays_deleted_until_it_is_written_anew, a_late_send_settles_where_it_belongs,
    a_listener_that_is_cut_off_looks_at_everything_again, a_repeated_send_touches_no_row,
    a_send_that_names_a_version_is_decided_anew_when_an_older_one_arrives,
    changes_of_profiles_are_told_once_they_are_committed,
    lists_of_people_sessions_and_events_are_read_in_pages,
    writers_of_one_person_neither_block_each_other_nor_lose_anything,
};

/// How long anything may take on a busy machine before it counts as never.
const SOON: Duration = Duration::from_secs(30);

/// Runs each function of the suite against a fresh place of the given kind.
macro_rules! store_contract {
    ($place:path: $($promise:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise($place().await).await;
            }
        )+
    };
}

/// Calls `store_contract!` with every function that all backends share.
macro_rules! whole_contract {
    ($place:path) => {
        store_contract!($place:
            migrating_again_and_at_once_changes_nothing,
            every_claim_has_a_higher_epoch,
            a_stale_epoch_is_fenced_and_changes_nothing,
            no_commit_of_an_older_epoch_comes_after_a_claim,
            a_misplaced_batch_is_refused_and_told_where_to_go_on,
            a_repeated_commit_changes_nothing,
            a_dropped_commit_is_whole_or_not_at_all,
            every_column_is_written_as_it_is,
            many_rows_go_through_as_one,
            a_session_keeps_what_it_has_and_gets_what_it_lacks,
            a_property_of_a_session_is_its_newest_value,
            a_property_that_umami_wrote_is_updated_in_place,
            heatmaps_are_written_in_the_columns_that_there_are,
            applied_events_are_named_and_nothing_is_written,
            an_event_and_an_identify_with_one_id_are_one_event,
            of_two_partitions_with_one_event_one_applies_it,
            dead_letters_are_kept_with_their_place_and_reason,
            outcomes_add_up,
            what_is_missing_is_noted_with_the_checkpoint_that_passes_it,
            a_checkpoint_goes_back_and_dead_letters_of_the_other_records_stay,
            ranges_of_what_is_missing_are_bounded_and_their_counts_are_not,
            what_a_store_holds_is_told,
            errors_are_noted_for_their_owner_only,
            an_error_is_over_when_the_checkpoint_moves,
            a_replay_claims_only_what_no_live_projector_has_claimed,
            websites_come_and_go,
            equal_stores_compare_equal_and_others_are_told_apart,
            writers_of_one_person_neither_block_each_other_nor_lose_anything,
            a_repeated_send_touches_no_row,
            a_late_send_settles_where_it_belongs,
            a_deleted_trait_stays_deleted_until_it_is_written_anew,
            a_send_that_names_a_version_is_decided_anew_when_an_older_one_arrives,
            changes_of_profiles_are_told_once_they_are_committed,
            lists_of_people_sessions_and_events_are_read_in_pages,
        );
    };
}

mod sqlite {
    whole_contract!(super::Place::sqlite);
    store_contract!(super::Place::sqlite:
        rows_that_a_constraint_refuses_are_told_as_such,
        a_batch_for_a_locked_file_is_not_written_within_a_bounded_time,
    );
}

mod postgres {
    whole_contract!(super::Place::postgres);
    store_contract!(super::Place::postgres:
        rows_that_do_not_fit_are_refused_and_nothing_is_written,
        a_listener_that_is_cut_off_looks_at_everything_again,
    );
}

mod umamis_own_postgres {
    whole_contract!(super::Place::umami);
    store_contract!(super::Place::umami:
        nothing_but_the_schema_dashi_is_made,
        an_upgrade_is_noticed_with_the_next_claim,
        an_upgrade_is_noticed_when_the_catalogue_is_old,
        tables_that_changed_are_written_as_they_are_now,
        doubled_properties_of_a_session_are_updated_alike,
    );
}

mod umamis_3_3_postgres {
    whole_contract!(super::Place::umami_3_3);
    store_contract!(super::Place::umami_3_3:
        nothing_but_the_schema_dashi_is_made,
        identifies_link_sessions_and_name_them,
        a_property_that_umami_writes_at_the_same_time_is_no_conflict,
    );
}

/// Where a store lies; it can be opened there several times, as by several processes.
enum Place {
    Sqlite(TestDirectory),
    Postgres(TestDatabase),
}

impl Place {
    async fn sqlite() -> Self {
        Self::Sqlite(TestDirectory::create("store"))
    }

    async fn postgres() -> Self {
        Self::Postgres(TestDatabase::create().await)
    }

    async fn umami() -> Self {
        Self::made_by(UmamiVersion::V3_1).await
    }

    async fn umami_3_3() -> Self {
        Self::made_by(UmamiVersion::V3_3).await
    }

    async fn made_by(version: UmamiVersion) -> Self {
        let database = TestDatabase::create().await;
        version.install(&mut database.connect().await).await;
        Self::Postgres(database)
    }

    /// A place of the other backend.
    async fn of_the_other_backend(&self) -> Self {
        match self {
            Self::Sqlite(_) => Self::postgres().await,
            Self::Postgres(_) => Self::sqlite().await,
        }
    }

    /// A handle of its own; the tables may not be there yet.
    async fn open(&self) -> Store {
        match self {
            Self::Sqlite(directory) => {
                let path = directory.path().join("made/with/the.store");
                Store::Sqlite(SqliteStore::open(&SqliteSettings { path }).await.unwrap())
            }
            Self::Postgres(database) => open_postgres(database.url()),
        }
    }

    async fn migrated(&self) -> Store {
        let store = self.open().await;
        store.migrate().await.unwrap();
        store
    }

    async fn raw(&self) -> Raw {
        match self {
            Self::Sqlite(directory) => {
                let path = directory.path().join("made/with/the.store");
                let url = format!("sqlite:{}", path.display());
                Raw::Sqlite(SqliteConnection::connect(&url).await.unwrap())
            }
            Self::Postgres(database) => Raw::Postgres(database.connect().await),
        }
    }

    /// Every row of every table, as text.
    async fn dump(&self) -> BTreeMap<String, Vec<String>> {
        let mut raw = self.raw().await;
        let mut dump = BTreeMap::new();
        for table in raw.tables().await {
            let sql = match &raw {
                Raw::Postgres(_) => format!("SELECT t::text FROM {table} AS t ORDER BY 1"),
                Raw::Sqlite(_) => {
                    let columns =
                        raw.strings(&format!("SELECT name FROM pragma_table_info('{table}')")).await;
                    let columns: Vec<_> = columns.iter().map(|column| format!("quote({column})")).collect();
                    format!("SELECT {} FROM {table} ORDER BY 1", columns.join(" || ',' || "))
                }
            };
            let rows = raw.strings(&sql).await;
            dump.insert(table, rows);
        }
        dump
    }
}

fn open_postgres(url: &str) -> Store {
    let settings = PostgresSettings {
        url: url.to_owned(),
        connections_max: 6,
        statement_timeout: Duration::from_secs(20),
    };
    Store::Postgres(PostgresStore::open(&settings).unwrap())
}

/// A connection past the store.
enum Raw {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Raw {
    async fn execute(&mut self, sql: &str) {
        match self {
            Self::Postgres(connection) => {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
            }
            Self::Sqlite(connection) => {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
            }
        }
    }

    async fn strings(&mut self, sql: &str) -> Vec<String> {
        self.nullable(sql).await.into_iter().map(|text| text.unwrap_or_else(|| "null".to_owned())).collect()
    }

    async fn nullable(&mut self, sql: &str) -> Vec<Option<String>> {
        match self {
            Self::Postgres(connection) => {
                sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(connection).await.unwrap()
            }
            Self::Sqlite(connection) => {
                sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(connection).await.unwrap()
            }
        }
    }

    async fn tables(&mut self) -> Vec<String> {
        let sql = match self {
            Self::Postgres(_) => {
                "SELECT table_schema || '.\"' || table_name || '\"' FROM information_schema.tables
                 WHERE table_schema IN ('public', 'dashi') ORDER BY 1"
            }
            Self::Sqlite(_) => "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1",
        };
        self.strings(sql).await
    }

    /// The columns of one of Umami's tables; none if it is not there.
    async fn columns(&mut self, table: &str) -> Vec<String> {
        let sql = match self {
            Self::Postgres(_) => format!(
                "SELECT attname::text FROM pg_attribute
                 WHERE attrelid = to_regclass('{table}') AND attnum > 0 AND NOT attisdropped"
            ),
            Self::Sqlite(_) => format!("SELECT name FROM pragma_table_info('{table}')"),
        };
        self.strings(&sql).await
    }

    async fn count(&mut self, table: &str) -> usize {
        self.strings(&format!("SELECT CAST(count(*) AS text) FROM {table}")).await[0].parse().unwrap()
    }

    /// A column of one of Umami's tables in the form in which [`Cells`] has it.
    async fn column(&mut self, table: &str, column: &str, key: &str) -> Vec<Option<String>> {
        let own = matches!(table, "identify" | "applied");
        let time = matches!(column, "created_at" | "date_value" | "started_at" | "ended_at");
        let digits = match column {
            "lcp" | "inp" | "fcp" | "ttfb" => Some(1),
            "cls" | "number_value" | "revenue" => Some(4),
            _ => None,
        };
        let (table, value) = match self {
            Self::Postgres(_) => {
                let value = if time {
                    // Microseconds: what the column can tell apart.
                    format!("(extract(epoch FROM {column}) * 1000000)::bigint::text")
                } else if column == "events" {
                    format!("encode({column}, 'hex')")
                } else {
                    format!("{column}::text")
                };
                (format!("{}{table}", if own { "dashi." } else { "" }), value)
            }
            Self::Sqlite(_) => {
                let value = match digits {
                    // As the number is, not as SQLite rounds it to 15 digits.
                    Some(_) => format!("printf('%!.17g', {column})"),
                    None if time => format!("CAST({column} * 1000 AS TEXT)"),
                    None if column == "events" => format!("lower(hex({column}))"),
                    None => format!("CAST({column} AS TEXT)"),
                };
                let value = format!("iif({column} IS NULL, NULL, {value})");
                (format!("{}{table}", if own { "dashi_" } else { "" }), value)
            }
        };
        let found = self.nullable(&format!("SELECT {value} FROM {table} ORDER BY {key}")).await;
        let sqlite = matches!(self, Self::Sqlite(_));
        found
            .into_iter()
            .map(|cell| match digits {
                Some(digits) if sqlite => {
                    cell.map(|cell| Decimal::round(cell.parse().unwrap(), digits).unwrap().to_string())
                }
                _ => cell,
            })
            .collect()
    }
}

const P0: Partition = Partition::new(0);
const P1: Partition = Partition::new(1);
const NOON_MS: i64 = 1_777_636_800_000;

fn log() -> LogId {
    LogId::new("test:log")
}

fn at(offset: u64) -> Checkpoint {
    Checkpoint::at(Offset::new(offset))
}

fn id(n: u128) -> Uuid {
    Uuid::from_u128(0x0100_0000_0000_4000_8000_0000_0000_0000 + n)
}

const WEBSITE: u128 = 1_000_000;

fn event(n: u128, session: u128) -> EventRow {
    EventRow {
        event_id: id(n),
        website_id: id(WEBSITE),
        session_id: id(session),
        visit_id: id(session + 1),
        created_at_ms: NOON_MS + n as i64,
        url_path: format!("/{n}"),
        url_query: Some(String::new()),
        campaign: Campaign::default(),
        referrer_path: None,
        referrer_query: None,
        referrer_domain: None,
        page_title: None,
        hostname: None,
        event_type: EventType::PageView,
        event_name: None,
        tag: None,
        vitals: Vitals::default(),
    }
}

fn session(n: u128) -> SessionRow {
    SessionRow {
        session_id: id(n),
        website_id: id(WEBSITE),
        attributes: SessionAttributes::default(),
        reported: Vec::new(),
        created_at_ms: NOON_MS,
    }
}

/// Page views with these ids, all of one session.
fn page_views(ids: impl IntoIterator<Item = u128>) -> Changes {
    let events: Vec<_> = ids.into_iter().map(|n| event(n, 500_000)).collect();
    let outcomes = Outcomes { applied: events.len() as u64, ..Outcomes::default() };
    Changes { sessions: vec![session(500_000)], events, outcomes, ..Changes::default() }
}

async fn claim(store: &Store, partition: Partition) -> Claim {
    store.claim(&log(), partition, "the test").await.unwrap()
}

/// Commits behind everything the partition has, under a claim of its own.
async fn commit(store: &Store, changes: &Changes) {
    let claim = claim(store, P0).await;
    let to = Checkpoint::after(claim.resume_from.offset());
    store.commit(&claim, claim.resume_from, to, changes).await.unwrap();
}

async fn migrating_again_and_at_once_changes_nothing(place: Place) {
    let mut migrations = Vec::new();
    // Opened at once, too: for SQLite that makes the file.
    let opened: Vec<_> = match &place {
        Place::Sqlite(directory) => {
            let path = directory.path().join("made/with/the.store");
            let opening: Vec<_> = (0..5)
                .map(|_| {
                    let settings = SqliteSettings { path: path.clone() };
                    tokio::spawn(async move { SqliteStore::open(&settings).await })
                })
                .collect();
            let mut opened = Vec::new();
            for store in opening {
                opened.push(Store::Sqlite(store.await.unwrap().unwrap()));
            }
            opened
        }
        Place::Postgres(database) => (0..5).map(|_| open_postgres(database.url())).collect(),
    };
    for store in &opened {
        let store = store.clone();
        migrations.push(tokio::spawn(async move { store.migrate().await }));
    }
    for migration in migrations {
        migration.await.unwrap().unwrap();
    }
    commit(&opened[0], &page_views([1])).await;
    let before = place.dump().await;
    for store in &opened {
        store.migrate().await.unwrap();
    }
    place.open().await.migrate().await.unwrap();
    assert_eq!(place.dump().await, before);
}

async fn every_claim_has_a_higher_epoch(place: Place) {
    let store = place.migrated().await;
    for number in 1..=3 {
        let claim = store.claim(&log(), P0, "x").await.unwrap();
        assert_eq!((claim.epoch, claim.resume_from), (Epoch::new(number), Checkpoint::START));
        assert_eq!((claim.log, claim.partition), (log(), P0));
    }
    // Each partition of each log has its own.
    assert_eq!(claim(&store, P1).await.epoch, Epoch::new(1));
    assert_eq!(store.claim(&LogId::new("another"), P0, "x").await.unwrap().epoch, Epoch::new(1));
    commit(&store, &page_views([1, 2])).await;
    let next = claim(&store, P0).await;
    assert_eq!((next.epoch, next.resume_from), (Epoch::new(5), at(1)));
    // Many at once, each with its own.
    let claims: Vec<_> = (0..20)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.claim(&log(), P0, "x").await.unwrap().epoch.number() })
        })
        .collect();
    let mut epochs = BTreeSet::new();
    for claim in claims {
        epochs.insert(claim.await.unwrap());
    }
    assert_eq!(epochs, (6..26).collect());
}

async fn a_stale_epoch_is_fenced_and_changes_nothing(place: Place) {
    let store = place.migrated().await;
    let stale = claim(&store, P0).await;
    store.commit(&stale, at(0), at(10), &page_views([4_000])).await.unwrap();
    let current = claim(&place.open().await, P0).await;
    let before = place.dump().await;
    let full = full_changes();
    for (from, to) in [(10, 20), (0, 10), (10, 11)] {
        match store.commit(&stale, at(from), at(to), &full).await {
            Err(CommitError::Fenced { partition, held, current }) => {
                assert_eq!((partition, held, current), (P0, Epoch::new(1), Epoch::new(2)));
            }
            other => panic!("{other:?}"),
        }
    }
    match store.resume(&stale).await {
        Err(ClaimError::Fenced { partition, held, current }) => {
            assert_eq!((partition, held, current), (P0, Epoch::new(1), Epoch::new(2)));
        }
        other => panic!("{other:?}"),
    }
    // Nor an epoch that was never given.
    let invented = Claim { epoch: Epoch::new(9), ..stale };
    let fenced = store.commit(&invented, at(10), at(20), &full).await;
    assert!(matches!(fenced, Err(CommitError::Fenced { .. })), "{fenced:?}");
    assert_eq!(place.dump().await, before);
    assert_eq!(current.resume_from, at(10));
    store.commit(&current, at(10), at(20), &full).await.unwrap();
}

/// The old owner commits as fast as it can while the new one claims: what the claim says must stay true.
async fn no_commit_of_an_older_epoch_comes_after_a_claim(place: Place) {
    let store = place.migrated().await;
    let other = place.open().await;
    let mut n = 0;
    for _ in 0..10 {
        let old = claim(&store, P0).await;
        let writer = tokio::spawn({
            let (store, first) = (store.clone(), n);
            async move {
                let (mut at_, mut n) = (old.resume_from, first);
                loop {
                    let to = Checkpoint::after(at_.offset());
                    match store.commit(&old, at_, to, &page_views([n])).await {
                        Ok(_) => (at_, n) = (to, n + 1),
                        Err(CommitError::Fenced { .. }) => return (at_, n),
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        });
        eventually(SOON, "the old owner is at work", async || {
            other.partitions().await.unwrap()[0].checkpoint.offset().number() >= n as u64 + 3
        })
        .await;
        let new = claim(&other, P0).await;
        let (stands, next) =
            tokio::time::timeout(SOON, writer).await.expect("the old owner is told").unwrap();
        assert_eq!(new.resume_from, stands);
        assert_eq!(other.resume(&new).await.unwrap(), stands);
        assert_eq!(place.raw().await.count("website_event").await as u128, next);
        n = next;
    }
}

async fn a_misplaced_batch_is_refused_and_told_where_to_go_on(place: Place) {
    let store = place.migrated().await;
    let claim = claim(&store, P0).await;
    store.commit(&claim, at(0), at(10), &page_views([1])).await.unwrap();
    let before = place.dump().await;
    for (from, to) in [(0, 5), (9, 20), (11, 20), (20, 30)] {
        match store.commit(&claim, at(from), at(to), &page_views([2])).await {
            Err(CommitError::Misplaced { partition, start, stored }) => {
                assert_eq!((partition, start, stored), (P0, at(from), at(10)));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(place.dump().await, before);
    assert_eq!(store.resume(&claim).await.unwrap(), at(10));
    store.commit(&claim, at(10), at(20), &page_views([2])).await.unwrap();
}

async fn a_repeated_commit_changes_nothing(place: Place) {
    let store = place.migrated().await;
    let claim = claim(&store, P0).await;
    let full = full_changes();
    store.commit(&claim, at(0), at(10), &full).await.unwrap();
    let before = place.dump().await;
    for _ in 0..2 {
        match store.commit(&claim, at(0), at(10), &full).await {
            Err(CommitError::Misplaced { stored, .. }) => assert_eq!(stored, at(10)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(place.dump().await, before);
}

async fn a_dropped_commit_is_whole_or_not_at_all(place: Place) {
    let store = place.migrated().await;
    let claim = claim(&store, P0).await;
    let mut raw = place.raw().await;
    let checkpoint = if matches!(raw, Raw::Postgres(_)) { "dashi.checkpoint" } else { "dashi_checkpoint" };
    let both = format!("SELECT checkpoint || '/' || (SELECT count(*) FROM website_event) FROM {checkpoint}");
    let (mut stands, mut dropped) = (0, 0);
    for round in 0..200_u64 {
        let changes = page_views((0..20).map(|n| u128::from(stands * 20 + n)));
        // In looks, not in time: the first commits are dropped at their first steps, the last ones never.
        let patience = async {
            for _ in 0..round * round / 4 {
                tokio::task::yield_now().await;
            }
            if round > 180 {
                std::future::pending::<()>().await;
            }
        };
        let outcome = tokio::select! {
            biased;
            outcome = store.commit(&claim, at(stands), at(stands + 1), &changes) => Some(outcome),
            () = patience => None,
        };
        stands = match outcome {
            Some(Ok(_)) => stands + 1,
            // What the server had in hand when its client went away ended a moment after that one had asked.
            Some(Err(CommitError::Misplaced { stored, .. })) => stored.offset().number(),
            Some(Err(error)) => panic!("{error:?}"),
            None => {
                dropped += 1;
                store.resume(&claim).await.unwrap().offset().number()
            }
        };
        let found = raw.strings(&both).await.remove(0);
        let (checkpoint, rows) = found.split_once('/').unwrap();
        assert_eq!(rows.parse::<u64>().unwrap(), checkpoint.parse::<u64>().unwrap() * 20);
    }
    assert!(dropped > 0 && stands > 0, "{dropped} dropped, {stands} committed: the test shows nothing");
}

/// Rows with every column set, with none set that need not be, and with values at the limits.
fn full_changes() -> Changes {
    let wide = |first: char, units: usize| format!("{first}{}", "漢".repeat(units - 1));
    let emoji = |units: usize| "😀".repeat(units / 2);
    let some = |text: &str| Some(text.to_owned());
    let decimal = |text: &str, scale| Decimal::parse(text, scale).unwrap();
    let campaign = Campaign {
        utm_source: some("source"),
        utm_medium: some("medium"),
        utm_campaign: Some(wide('c', 255)),
        utm_content: some(""),
        utm_term: some("term é"),
        gclid: some("gclid"),
        fbclid: some("fbclid"),
        msclkid: some("msclkid"),
        ttclid: some("ttclid"),
        li_fat_id: some("li_fat_id"),
        twclid: Some(emoji(254)),
    };
    let full = EventRow {
        url_path: wide('/', 500),
        url_query: Some(wide('?', 500)),
        campaign,
        referrer_path: Some(wide('p', 500)),
        referrer_query: some("q=' \" \\ %s {} $1 ?"),
        referrer_domain: Some(emoji(500)),
        page_title: some("Ünïcode \u{202e} \n\t title"),
        hostname: Some(wide('h', 100)),
        event_type: EventType::Custom,
        event_name: Some(emoji(50)),
        tag: Some(wide('t', 50)),
        vitals: Vitals {
            lcp: Some(decimal("1234.6", 1)),
            inp: Some(decimal("0.1", 1)),
            cls: Some(decimal("0.1235", 4)),
            fcp: Some(decimal("60000", 1)),
            ttfb: Some(decimal("0", 1)),
        },
        ..event(1, 11)
    };
    let bare = EventRow { url_path: String::new(), url_query: None, ..event(2, 12) };
    let mut events = vec![full, bare];
    for (n, event_type) in [EventType::PageView, EventType::Link, EventType::Pixel, EventType::Performance]
        .into_iter()
        .enumerate()
    {
        events.push(EventRow { event_type, ..event(3 + n as u128, 12) });
    }
    // Times before 1970, at the end of the years with four digits, and with every digit of the milliseconds.
    for (n, created_at_ms) in
        [-1, 0, 253_402_300_799_999, 1_777_623_630_123, 4_102_444_800_999].into_iter().enumerate()
    {
        events.push(EventRow { created_at_ms, ..event(20 + n as u128, 12) });
    }
    let attributes = SessionAttributes {
        browser: Some(wide('b', 20)),
        os: some("os"),
        device: some("device"),
        screen: some("12345x12345"),
        language: Some(wide('l', 35)),
        country: some("GB"),
        region: some("GB-ENG"),
        city: Some(wide('Ł', 50)),
        distinct_id: some(""),
    };
    let values = [
        (DataType::String, Some(emoji(500)), None, None),
        (DataType::String, None, None, None),
        (DataType::Number, some("-12345.6789"), Some(decimal("-12345.6789", 4)), None),
        (DataType::Number, some("0"), Some(decimal("0", 4)), None),
        (DataType::Number, some("0.0001"), Some(decimal("0.0001", 4)), None),
        // As many digits as a JavaScript number has; a time of performance.now() is such a number.
        (DataType::Number, some("t"), Decimal::round(1_777_623_630_123.456_7, 4), None),
        (DataType::Number, some("u"), Decimal::round(123_456_789_012_345.67, 4), None),
        (DataType::Number, some("v"), Decimal::round(-999_999_999_999_999.9, 4), None),
        (DataType::Boolean, some("true"), None, None),
        (DataType::Date, some("d"), None, Some(1_777_623_630_123)),
        (DataType::Date, some("d"), None, Some(253_402_300_799_999)),
        (DataType::Date, some("d"), None, Some(-62_135_596_799_999)),
        (DataType::Array, some("[\"\\u0000\",{}]"), None, None),
    ];
    let value = |place: usize| {
        let (data_type, string_value, number_value, date_value_ms) = values[place].clone();
        DataValue { data_type, string_value, number_value, date_value_ms }
    };
    let keys = |place: usize| if place == 0 { wide('k', 500) } else { format!("key.{place}") };
    Changes {
        sessions: vec![SessionRow { attributes, ..session(11) }, session(12)],
        event_data: (0..values.len())
            .map(|place| EventDataRow {
                event_data_id: id(100 + place as u128),
                website_id: id(WEBSITE),
                website_event_id: id(1),
                data_key: keys(place),
                value: value(place),
                created_at_ms: NOON_MS,
            })
            .collect(),
        session_links: Vec::new(),
        names_sessions: false,
        session_data: (0..values.len())
            .map(|place| SessionDataRow {
                session_data_id: id(200 + place as u128),
                website_id: id(WEBSITE),
                session_id: id(11),
                data_key: keys(place),
                value: value(place),
                distinct_id: (place % 2 == 0).then(|| wide('d', 50)),
                created_at_ms: NOON_MS,
            })
            .collect(),
        revenue: vec![RevenueRow {
            revenue_id: id(300),
            website_id: id(WEBSITE),
            session_id: id(11),
            event_id: id(1),
            event_name: String::new(),
            currency: "¥".repeat(10),
            revenue: decimal("19.9900", 4),
            created_at_ms: NOON_MS,
        }],
        identifies: [Some(wide('i', 50)), None]
            .into_iter()
            .enumerate()
            .map(|(n, distinct_id)| IdentifyRow {
                event_id: id(400 + n as u128),
                website_id: id(WEBSITE),
                session_id: id(11),
                distinct_id,
                created_at_ms: NOON_MS,
            })
            .collect(),
        sends: (0..values.len())
            .map(|place| TraitSend {
                website_id: id(WEBSITE),
                session_id: id(11),
                device: id(15),
                distinct_id: "Łukasz %_".to_owned(),
                key: keys(place),
                value: (place != 1).then(|| value(place)),
                stamp: Stamp { received_at_ms: NOON_MS, event_id: id(400) },
                base: (place == 2).then_some(Stamp { received_at_ms: 7, event_id: id(399) }),
            })
            .collect(),
        links: vec![
            ProfileLink {
                website_id: id(WEBSITE),
                session_id: id(11),
                distinct_id: "Łukasz %_".to_owned(),
                kind: ProfileLinkKind::Own,
                first_ms: NOON_MS,
            },
            ProfileLink {
                website_id: id(WEBSITE),
                session_id: id(15),
                distinct_id: "Łukasz %_".to_owned(),
                kind: ProfileLinkKind::Anonymous,
                first_ms: -1,
            },
        ],
        // Two of one second of one visit, in the order of the log, and one of another visit.
        chunks: [(500, 13), (501, 13), (502, 14)]
            .into_iter()
            .map(|(n, visit)| ChunkRow {
                replay_id: id(n),
                website_id: id(WEBSITE),
                session_id: id(11),
                visit_id: id(visit),
                chunk_index_min: 1_777_623_630,
                events: vec![0x1f, 0x8b, 0, 255],
                event_count: 200,
                started_at_ms: 0,
                ended_at_ms: 253_402_300_799_999,
                created_at_ms: NOON_MS,
            })
            .collect(),
        // Not every database has a table of them; they have a promise of their own.
        heatmap: Vec::new(),
        applied: vec![applied_row(600), AppliedRow { record_type: "é".to_owned(), ..applied_row(601) }],
        dead_letters: vec![DeadLetter {
            offset: Offset::new(7),
            reason: "it is \0 no é".to_owned(),
            value: vec![0, 255, b'{', 10],
        }],
        outcomes: Outcomes { applied: events.len() as u64 + 7, duplicate: 3, dead: 1 },
        missing: vec![missing(12, 13, MissingCause::Gap)],
        markers: 1,
        fingerprint: Some(i64::MIN),
        events,
    }
}

fn applied_row(n: u128) -> AppliedRow {
    AppliedRow {
        record_id: id(n),
        record_type: "heatmap".to_owned(),
        website_id: id(WEBSITE),
        session_id: id(11),
        received_at_ms: NOON_MS,
    }
}

/// A row by column; times in microseconds.
type Cells = Vec<(&'static str, Option<String>)>;

fn event_cells(row: &EventRow) -> Cells {
    let (campaign, vitals) = (row.campaign.clone(), row.vitals.clone());
    let number = |value: Option<Decimal>| value.map(|value| value.to_string());
    vec![
        ("event_id", Some(row.event_id.to_string())),
        ("website_id", Some(row.website_id.to_string())),
        ("session_id", Some(row.session_id.to_string())),
        ("visit_id", Some(row.visit_id.to_string())),
        ("created_at", Some((row.created_at_ms * 1_000).to_string())),
        ("url_path", Some(row.url_path.clone())),
        ("url_query", row.url_query.clone()),
        ("utm_source", campaign.utm_source),
        ("utm_medium", campaign.utm_medium),
        ("utm_campaign", campaign.utm_campaign),
        ("utm_content", campaign.utm_content),
        ("utm_term", campaign.utm_term),
        ("gclid", campaign.gclid),
        ("fbclid", campaign.fbclid),
        ("msclkid", campaign.msclkid),
        ("ttclid", campaign.ttclid),
        ("li_fat_id", campaign.li_fat_id),
        ("twclid", campaign.twclid),
        ("referrer_path", row.referrer_path.clone()),
        ("referrer_query", row.referrer_query.clone()),
        ("referrer_domain", row.referrer_domain.clone()),
        ("page_title", row.page_title.clone()),
        ("hostname", row.hostname.clone()),
        ("event_type", Some((row.event_type as i32).to_string())),
        ("event_name", row.event_name.clone()),
        ("tag", row.tag.clone()),
        ("lcp", number(vitals.lcp)),
        ("inp", number(vitals.inp)),
        ("cls", number(vitals.cls)),
        ("fcp", number(vitals.fcp)),
        ("ttfb", number(vitals.ttfb)),
    ]
}

fn session_cells(row: &SessionRow) -> Cells {
    let attributes = row.attributes.clone();
    vec![
        ("session_id", Some(row.session_id.to_string())),
        ("website_id", Some(row.website_id.to_string())),
        ("browser", attributes.browser),
        ("os", attributes.os),
        ("device", attributes.device),
        ("screen", attributes.screen),
        ("language", attributes.language),
        ("country", attributes.country),
        ("region", attributes.region),
        ("city", attributes.city),
        ("distinct_id", attributes.distinct_id),
        ("created_at", Some((row.created_at_ms * 1_000).to_string())),
    ]
}

fn value_cells(key: &str, value: &DataValue) -> Cells {
    vec![
        ("data_key", Some(key.to_owned())),
        ("data_type", Some(value.data_type.code().to_string())),
        ("string_value", value.string_value.clone()),
        ("number_value", value.number_value.map(|number| number.to_string())),
        ("date_value", value.date_value_ms.map(|ms| (ms * 1_000).to_string())),
    ]
}

async fn assert_rows(raw: &mut Raw, table: &str, expected: &[Cells]) {
    for (place, (column, _)) in expected[0].iter().enumerate() {
        let found = raw.column(table, column, expected[0][0].0).await;
        let expected: Vec<_> = expected.iter().map(|cells| cells[place].1.clone()).collect();
        assert_eq!(found, expected, "{table}.{column}");
    }
}

async fn every_column_is_written_as_it_is(place: Place) {
    let store = place.migrated().await;
    let changes = full_changes();
    commit(&store, &changes).await;
    let mut raw = place.raw().await;
    let of = |row: &EventDataRow| {
        let mut cells = vec![
            ("event_data_id", Some(row.event_data_id.to_string())),
            ("website_id", Some(row.website_id.to_string())),
            ("website_event_id", Some(row.website_event_id.to_string())),
            ("created_at", Some((row.created_at_ms * 1_000).to_string())),
        ];
        cells.extend(value_cells(&row.data_key, &row.value));
        cells
    };
    let of_session = |row: &SessionDataRow| {
        let mut cells = vec![
            ("session_data_id", Some(row.session_data_id.to_string())),
            ("website_id", Some(row.website_id.to_string())),
            ("session_id", Some(row.session_id.to_string())),
            ("distinct_id", row.distinct_id.clone()),
            ("created_at", Some((row.created_at_ms * 1_000).to_string())),
        ];
        cells.extend(value_cells(&row.data_key, &row.value));
        cells
    };
    let of_revenue = |row: &RevenueRow| {
        vec![
            ("revenue_id", Some(row.revenue_id.to_string())),
            ("website_id", Some(row.website_id.to_string())),
            ("session_id", Some(row.session_id.to_string())),
            ("event_id", Some(row.event_id.to_string())),
            ("event_name", Some(row.event_name.clone())),
            ("currency", Some(row.currency.clone())),
            ("revenue", Some(row.revenue.to_string())),
            ("created_at", Some((row.created_at_ms * 1_000).to_string())),
        ]
    };
    let of_identify = |row: &IdentifyRow| {
        vec![
            ("event_id", Some(row.event_id.to_string())),
            ("website_id", Some(row.website_id.to_string())),
            ("session_id", Some(row.session_id.to_string())),
            ("distinct_id", row.distinct_id.clone()),
            ("created_at", Some((row.created_at_ms * 1_000).to_string())),
        ]
    };
    let of_recording = |(place, row): (usize, &ChunkRow)| {
        vec![
            ("replay_id", Some(row.replay_id.to_string())),
            ("website_id", Some(row.website_id.to_string())),
            ("session_id", Some(row.session_id.to_string())),
            ("visit_id", Some(row.visit_id.to_string())),
            ("chunk_index", Some((row.chunk_index_min + i32::from(place == 1)).to_string())),
            ("events", Some("1f8b00ff".to_owned())),
            ("event_count", Some(row.event_count.to_string())),
            ("started_at", Some((row.started_at_ms * 1_000).to_string())),
            ("ended_at", Some((row.ended_at_ms * 1_000).to_string())),
            ("created_at", Some((row.created_at_ms * 1_000).to_string())),
        ]
    };
    let of_applied = |row: &AppliedRow| {
        vec![
            ("record_id", Some(row.record_id.to_string())),
            ("record_type", Some(row.record_type.clone())),
            ("website_id", Some(row.website_id.to_string())),
            ("session_id", Some(row.session_id.to_string())),
            ("received_at", Some(row.received_at_ms.to_string())),
        ]
    };
    let recordings: Vec<_> = changes.chunks.iter().enumerate().map(of_recording).collect();
    assert_rows(&mut raw, "session_replay", &recordings).await;
    assert_rows(&mut raw, "website_event", &changes.events.iter().map(event_cells).collect::<Vec<_>>()).await;
    assert_rows(&mut raw, "session", &changes.sessions.iter().map(session_cells).collect::<Vec<_>>()).await;
    assert_rows(&mut raw, "event_data", &changes.event_data.iter().map(of).collect::<Vec<_>>()).await;
    assert_rows(&mut raw, "session_data", &changes.session_data.iter().map(of_session).collect::<Vec<_>>())
        .await;
    assert_rows(&mut raw, "revenue", &changes.revenue.iter().map(of_revenue).collect::<Vec<_>>()).await;
    assert_rows(&mut raw, "identify", &changes.identifies.iter().map(of_identify).collect::<Vec<_>>()).await;
    assert_rows(&mut raw, "applied", &changes.applied.iter().map(of_applied).collect::<Vec<_>>()).await;

    let other = place.of_the_other_backend().await;
    let other_store = other.migrated().await;
    commit(&other_store, &changes).await;
    let compared = compare(&store, &other_store).await.unwrap();
    assert!(compared.equal, "{compared:#?}");
    for table in compared.tables {
        let heatmaps = table.table == "heatmap_event";
        assert!(heatmaps || table.rows[0] > 0, "{} has no row to compare", table.table);
        assert_eq!(table.checksums[0], table.checksums[1]);
    }
}

/// A click of a recording, whose chunk has to go around another one's index, and a click and a scroll that were posted.
/// What a version's table has no column for is left out; so is all of it where there is no table.
async fn heatmaps_are_written_in_the_columns_that_there_are(place: Place) {
    let store = place.migrated().await;
    let chunk = |n| ChunkRow { replay_id: id(n), ..full_changes().chunks.remove(0) };
    let row = |n: u128, kind, recorded| HeatmapRow {
        heatmap_event_id: id(n),
        website_id: id(WEBSITE),
        session_id: id(11),
        visit_id: id(13),
        url_path: "é".repeat(500),
        kind,
        node_id: Some(-1),
        x: Some(i32::MAX),
        y: Some(i32::MIN),
        page_x: Some(3),
        page_y: Some(4),
        page_w: Some(5),
        viewport_w: Some(6),
        viewport_h: Some(7),
        page_h: Some(8),
        scroll_pct: None,
        recorded,
        created_at_ms: NOON_MS + 1,
    };
    let place_in =
        |event_index| Some(ChunkEvent { chunk_id: id(701), event_index, time_ms: Some(1_777_623_630_123) });
    let heatmap = vec![
        row(801, HeatmapKind::Click, place_in(2)),
        // Another click: one that was both recorded and posted would count once.
        HeatmapRow { x: Some(1), ..row(802, HeatmapKind::Click, None) },
        HeatmapRow { x: None, scroll_pct: Some(100), ..row(803, HeatmapKind::Scroll, None) },
    ];
    let chunks = vec![chunk(700), chunk(701)];
    let outcomes = Outcomes { applied: 2, ..Outcomes::default() };
    let changes = Changes { heatmap: heatmap.clone(), chunks, outcomes, ..Changes::default() };
    commit(&store, &changes).await;
    let mut raw = place.raw().await;
    let columns = raw.columns("heatmap_event").await;
    if columns.is_empty() {
        assert!(matches!(place, Place::Postgres(_)));
        return;
    }
    let number = |number: Option<i32>| number.map(|number| number.to_string());
    let cells = |row: &HeatmapRow| -> Cells {
        let all = vec![
            ("heatmap_event_id", Some(row.heatmap_event_id.to_string())),
            ("website_id", Some(row.website_id.to_string())),
            ("session_id", Some(row.session_id.to_string())),
            ("visit_id", Some(row.visit_id.to_string())),
            ("url_path", Some(row.url_path.clone())),
            ("event_type", Some((row.kind as i32).to_string())),
            ("node_id", number(row.node_id)),
            ("x", number(row.x)),
            ("y", number(row.y)),
            ("page_x", number(row.page_x)),
            ("page_y", number(row.page_y)),
            ("page_w", number(row.page_w)),
            ("viewport_w", number(row.viewport_w)),
            ("viewport_h", number(row.viewport_h)),
            ("page_h", number(row.page_h)),
            ("scroll_pct", number(row.scroll_pct)),
            ("replay_chunk_index", row.recorded.map(|_| "1777623631".to_owned())),
            ("replay_event_index", row.recorded.map(|place| place.event_index.to_string())),
            ("replay_time_ms", row.recorded.map(|_| "1777623630123".to_owned())),
            ("created_at", Some((row.created_at_ms * 1_000).to_string())),
        ];
        all.into_iter().filter(|(column, _)| columns.iter().any(|there| there == column)).collect()
    };
    assert_eq!(cells(&heatmap[0]).len(), columns.len(), "{columns:?}");
    assert_rows(&mut raw, "heatmap_event", &heatmap.iter().map(cells).collect::<Vec<_>>()).await;
    // A chunk that is applied already brings no click a second time.
    let claimed = claim(&store, P0).await;
    let to = Checkpoint::after(claimed.resume_from.offset());
    match store.commit(&claimed, claimed.resume_from, to, &changes).await {
        Err(CommitError::Duplicates(ids)) => {
            assert_eq!(BTreeSet::from_iter(ids), BTreeSet::from([id(700), id(701)]));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(raw.count("heatmap_event").await, 3);
}

/// More rows than fit in one statement of any backend.
async fn many_rows_go_through_as_one(place: Place) {
    let store = place.migrated().await;
    let mut changes = page_views(0..3_000);
    changes.sessions = (0..3_000).map(|n| session(10_000 + n)).collect();
    changes.event_data = (0..3_000)
        .map(|n| EventDataRow {
            event_data_id: id(20_000 + n),
            website_id: id(WEBSITE),
            website_event_id: id(n),
            data_key: "key".to_owned(),
            value: DataValue {
                data_type: DataType::String,
                string_value: None,
                number_value: None,
                date_value_ms: None,
            },
            created_at_ms: NOON_MS,
        })
        .collect();
    commit(&store, &changes).await;
    let mut raw = place.raw().await;
    for table in ["website_event", "session", "event_data"] {
        assert_eq!(raw.count(table).await, 3_000);
    }
}

async fn a_session_keeps_what_it_has_and_gets_what_it_lacks(place: Place) {
    let store = place.migrated().await;
    let some = |text: &str| Some(text.to_owned());
    let with = |attributes| Changes {
        sessions: vec![SessionRow { attributes, created_at_ms: NOON_MS + 5, ..session(1) }],
        ..Changes::default()
    };
    let first = SessionAttributes {
        browser: some("chrome"),
        country: some("GB"),
        distinct_id: some(""),
        ..SessionAttributes::default()
    };
    commit(&store, &with(first.clone())).await;
    let another = SessionAttributes {
        browser: some("firefox"),
        os: some("linux"),
        device: some("desktop"),
        screen: some("1x1"),
        language: some("en"),
        country: some("DE"),
        region: some("DE-BE"),
        city: some("Berlin"),
        distinct_id: some("someone"),
    };
    commit(&store, &with(another.clone())).await;
    // Two in one batch: the first gives this row nothing, and the second what the first would not take from it.
    let nearer = SessionAttributes {
        browser: some("chrome"),
        screen: some("2x2"),
        country: some("GB"),
        region: some("GB-ENG"),
        city: some("London"),
        ..another.clone()
    };
    let mut last = with(another.clone());
    last.sessions[0].hear(nearer.clone());
    last.sessions[0].created_at_ms = 1;
    last.sessions[0].website_id = id(WEBSITE + 1);
    last.sessions.push(session(2));
    commit(&store, &last).await;

    let expected = SessionAttributes { distinct_id: first.distinct_id, ..nearer };
    let expected = SessionRow { attributes: expected, created_at_ms: NOON_MS + 5, ..session(1) };
    let cells = [session_cells(&expected), session_cells(&session(2))];
    assert_rows(&mut place.raw().await, "session", &cells).await;
}

fn property(n: u128, session: u128, key: &str, value: &str) -> SessionDataRow {
    SessionDataRow {
        session_data_id: id(n),
        website_id: id(WEBSITE),
        session_id: id(session),
        data_key: key.to_owned(),
        value: DataValue {
            data_type: DataType::String,
            string_value: Some(value.to_owned()),
            number_value: None,
            date_value_ms: None,
        },
        distinct_id: Some(value.to_owned()),
        created_at_ms: NOON_MS + n as i64,
    }
}

fn property_cells(row: &SessionDataRow) -> Cells {
    let mut cells = vec![
        ("session_data_id", Some(row.session_data_id.to_string())),
        ("website_id", Some(row.website_id.to_string())),
        ("session_id", Some(row.session_id.to_string())),
        ("distinct_id", row.distinct_id.clone()),
        ("created_at", Some((row.created_at_ms * 1_000).to_string())),
    ];
    cells.extend(value_cells(&row.data_key, &row.value));
    cells
}

async fn a_property_of_a_session_is_its_newest_value(place: Place) {
    let store = place.migrated().await;
    let with = |session_data| Changes { session_data, ..Changes::default() };
    commit(&store, &with(vec![property(1, 7, "a", "1"), property(2, 7, "b", "1"), property(3, 8, "a", "1")]))
        .await;
    let mut number = property(1, 7, "a", "2");
    number.value = DataValue {
        data_type: DataType::Number,
        string_value: Some("2.0000".to_owned()),
        number_value: Decimal::parse("2", 4),
        date_value_ms: None,
    };
    number.distinct_id = None;
    number.created_at_ms += 1_000;
    commit(&store, &with(vec![number.clone(), property(4, 7, "A", "new")])).await;
    let expected =
        [number.clone(), property(2, 7, "b", "1"), property(3, 8, "a", "1"), property(4, 7, "A", "new")];
    let cells: Vec<_> = expected.iter().map(property_cells).collect();
    assert_rows(&mut place.raw().await, "session_data", &cells).await;
    // Back to a text: the number goes.
    commit(&store, &with(vec![property(1, 7, "a", "3")])).await;
    let cells: Vec<_> = [property(1, 7, "a", "3")].iter().chain(&expected[1..]).map(property_cells).collect();
    assert_rows(&mut place.raw().await, "session_data", &cells).await;
}

fn umamis_property(n: u128, session: u128, key: &str) -> String {
    format!(
        "INSERT INTO session_data (session_data_id, website_id, session_id, data_key, data_type, string_value,
             created_at) VALUES ('{}', '{}', '{}', '{key}', 1, 'umami''s', {{now}})",
        id(n),
        id(WEBSITE),
        id(session)
    )
}

async fn a_property_that_umami_wrote_is_updated_in_place(place: Place) {
    let store = place.migrated().await;
    let mut raw = place.raw().await;
    let now = if matches!(raw, Raw::Postgres(_)) { "now()" } else { "1" };
    raw.execute(&umamis_property(900, 7, "a").replace("{now}", now)).await;
    let with = |session_data| Changes { session_data, ..Changes::default() };
    commit(&store, &with(vec![property(1, 7, "a", "ours"), property(2, 7, "b", "ours")])).await;
    let updated = SessionDataRow { session_data_id: id(900), ..property(1, 7, "a", "ours") };
    let cells = [property_cells(&property(2, 7, "b", "ours")), property_cells(&updated)];
    assert_rows(&mut raw, "session_data", &cells).await;
}

/// While both collect, an insert of Umami's that is not committed yet makes ours wait, and then an update.
async fn a_property_that_umami_writes_at_the_same_time_is_no_conflict(place: Place) {
    let store = place.migrated().await;
    let (mut umami, mut onlooker) = (place.raw().await, place.raw().await);
    let claim = claim(&store, P0).await;
    umami.execute("BEGIN").await;
    umami.execute(&umamis_property(900, 7, "a").replace("{now}", "now()")).await;
    let commit = tokio::spawn(async move {
        let changes = Changes { session_data: vec![property(1, 7, "a", "ours")], ..Changes::default() };
        store.commit(&claim, at(0), at(1), &changes).await
    });
    eventually(SOON, "the commit waits for Umami's", async || {
        let waiting = "SELECT pid::text FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        !onlooker.strings(waiting).await.is_empty()
    })
    .await;
    umami.execute("COMMIT").await;
    tokio::time::timeout(SOON, commit).await.unwrap().unwrap().unwrap();
    let updated = SessionDataRow { session_data_id: id(900), ..property(1, 7, "a", "ours") };
    assert_rows(&mut umami, "session_data", &[property_cells(&updated)]).await;
}

/// Umami 3.1 has no unique key there, and two identifies at once leave two rows, on which it then fails for ever.
async fn doubled_properties_of_a_session_are_updated_alike(place: Place) {
    let store = place.migrated().await;
    let mut raw = place.raw().await;
    for n in [900, 901] {
        raw.execute(&umamis_property(n, 7, "a").replace("{now}", "now()")).await;
    }
    let with = |session_data| Changes { session_data, ..Changes::default() };
    for round in ["1", "2"] {
        commit(&store, &with(vec![property(1, 7, "a", round)])).await;
        let of = |n| property_cells(&SessionDataRow { session_data_id: id(n), ..property(1, 7, "a", round) });
        assert_rows(&mut raw, "session_data", &[of(900), of(901)]).await;
    }
}

/// A page view of a session that says who it is with its own number.
fn named_page_view(n: u128) -> Changes {
    let link = SessionLinkRow {
        website_id: id(WEBSITE),
        session_id: id(500_000),
        distinct_id: n.to_string(),
        created_at_ms: NOON_MS,
    };
    Changes { session_links: vec![link], ..page_views([n]) }
}

async fn an_upgrade_is_noticed_with_the_next_claim(place: Place) {
    let store = place.migrated().await;
    let mut raw = place.raw().await;
    commit(&store, &named_page_view(1)).await;
    raw.execute(UmamiVersion::V3_3.migrations()).await;
    commit(&store, &named_page_view(2)).await;
    assert_eq!(raw.strings("SELECT distinct_id FROM session_link").await, ["2"]);
    assert_eq!(raw.strings("SELECT distinct_id FROM session").await, ["2"]);
}

async fn an_upgrade_is_noticed_when_the_catalogue_is_old(place: Place) {
    let mut raw = place.raw().await;
    let Store::Postgres(store) = place.migrated().await else { panic!("a file has no catalogue") };
    for (age_max, links) in [(Duration::from_secs(3_600), 0), (Duration::ZERO, 1)] {
        raw.execute("DROP TABLE IF EXISTS session_link").await;
        let store = Store::Postgres(store.clone().with_catalogue_age_max(age_max));
        let claim = claim(&store, P0).await;
        let stands = claim.resume_from.offset().number();
        raw.execute(
            "CREATE TABLE session_link (website_id uuid, session_id uuid, distinct_id varchar(50),
                 created_at timestamptz, PRIMARY KEY (website_id, distinct_id, session_id))",
        )
        .await;
        let changes = named_page_view(u128::from(stands) + 1);
        store.commit(&claim, at(stands), at(stands + 1), &changes).await.unwrap();
        assert_eq!(raw.strings("SELECT distinct_id FROM session_link").await.len(), links, "{age_max:?}");
    }
}

/// Rows that the tables refuse because they changed a moment ago are no dead letters: the store says that nothing was
/// written, and the next attempt fits.
async fn tables_that_changed_are_written_as_they_are_now(place: Place) {
    let store = place.migrated().await;
    let mut raw = place.raw().await;
    raw.execute(UmamiVersion::V3_3.migrations()).await;
    let claim = claim(&store, P0).await;
    let changes = |n: u64| {
        let mut changes = page_views([u128::from(n)]);
        changes.events[0].page_title = Some("title".to_owned());
        changes.session_data = vec![property(u128::from(n), 7, &format!("key {n}"), "ours")];
        changes
    };
    store.commit(&claim, at(0), at(1), &changes(1)).await.unwrap();
    let mut done = 1;
    for (change, becomes) in [
        ("ALTER TABLE website_event ALTER page_title TYPE varchar(5)", "title"),
        ("DROP INDEX session_data_session_id_data_key_key", "title"),
        ("ALTER TABLE website_event DROP COLUMN cls", "title"),
        (
            "UPDATE website_event SET page_title = 'ti'; ALTER TABLE website_event ALTER page_title TYPE varchar(2)",
            "ti",
        ),
        ("ALTER TABLE website_event ALTER page_title TYPE varchar(500)", "ti"),
    ] {
        raw.execute(change).await;
        match store.commit(&claim, at(done), at(done + 1), &changes(done + 1)).await {
            Err(CommitError::NotWritten { .. }) => {
                assert_eq!(store.resume(&claim).await.unwrap(), at(done), "{change}");
                store.commit(&claim, at(done), at(done + 1), &changes(done + 1)).await.unwrap();
            }
            outcome => drop(outcome.unwrap()),
        }
        done += 1;
        let titles = "SELECT page_title::text FROM website_event ORDER BY event_id DESC LIMIT 1";
        assert_eq!(raw.strings(titles).await, [becomes], "{change}");
    }
    raw.execute("DROP TABLE link").await;
    raw.execute("ALTER TABLE website_event DROP COLUMN tag").await;
    let error = store.commit(&claim, at(done), at(done + 1), &changes(done + 1)).await.unwrap_err();
    let CommitError::NotWritten { source, .. } = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains("website_event.tag, the table link missing"), "{source}");
}

/// The first identify makes the link, the last names the session; a session of another website is left alone.
async fn identifies_link_sessions_and_name_them(place: Place) {
    let store = place.migrated().await;
    let mut raw = place.raw().await;
    let link = |session, distinct_id: &str, created_at_ms| SessionLinkRow {
        website_id: id(WEBSITE),
        session_id: id(session),
        distinct_id: distinct_id.to_owned(),
        created_at_ms,
    };
    let mut changes = page_views([1]);
    changes.sessions = vec![session(7), session(8), session(9)];
    changes.session_links = vec![link(7, "b", 20), link(8, "a", 5), link(7, "b", 1), link(7, "a", 10)];
    changes.session_links.push(SessionLinkRow { website_id: id(404), ..link(9, "x", 1) });
    let claim = claim(&store, P0).await;
    store.commit(&claim, at(0), at(1), &changes).await.unwrap();
    let again = Changes {
        session_links: vec![link(8, "c", 30), link(8, "a", 30), link(8, "c", 40)],
        ..page_views([2])
    };
    store.commit(&claim, at(1), at(2), &again).await.unwrap();
    let last = "right(session_id::text, 1)";
    let links = format!(
        "SELECT concat_ws(' ', {last}, distinct_id, (extract(epoch FROM created_at) * 1000)::bigint)
         FROM session_link ORDER BY 1"
    );
    let expected = ["7 a 10", "7 b 20", "8 a 5", "8 c 30", "9 x 1"];
    assert_eq!(raw.strings(&links).await, expected, "the first in log order stays");
    let names = format!(
        "SELECT concat_ws(' ', {last}, distinct_id) FROM session WHERE {last} IN ('7', '8', '9') ORDER BY 1"
    );
    assert_eq!(raw.strings(&names).await, ["7 a", "8 c", "9"]);
}

fn record(offset: u64, event: u128, session: u128, kind: &str, payload: &str) -> Record {
    let value = format!(
        r#"{{"v":1,"id":"{}","at":{},"session":"{}","visit":"{}","type":"{kind}","payload":{{"website":"{}"{payload}}}}}"#,
        id(event),
        NOON_MS + event as i64,
        id(session),
        id(session + 1),
        id(WEBSITE)
    );
    Record { partition: P0, offset: Offset::new(offset), appended_at_ms: 0, value: value.into_bytes() }
}

fn rules() -> FoldRules {
    FoldRules {
        zone: jiff::tz::TimeZone::UTC,
        remove_trailing_slash: false,
        release: Release::V3_1,
        names_sessions: false,
        null_deletes: false,
    }
}

async fn applied_events_are_named_and_nothing_is_written(place: Place) {
    let store = place.migrated().await;
    let claim_ = claim(&store, P0).await;
    let all: Vec<Record> = (0..12)
        .map(|n| match n % 4 {
            0 => record(
                n,
                u128::from(n),
                100,
                "event",
                r#","url":"/x","name":"n","data":{"revenue":1,"currency":"EUR"}"#,
            ),
            1 => record(n, u128::from(n), 110, "identify", r#","id":"who","data":{"a":1}"#),
            // It has no row of its own.
            2 => record(n, u128::from(n), 130, "heatmap", r#","events":[]"#),
            _ => record(n, u128::from(n), 120, "performance", r#","url":"/x","lcp":1.5"#),
        })
        .collect();
    let (head, nothing) = (&all[..5], HashSet::new());
    store.commit(&claim_, at(0), at(5), &fold(head, &nothing, &rules())).await.unwrap();
    let before = place.dump().await;
    // The same five come again, under other offsets, with seven that are new.
    let again = fold(&all, &nothing, &rules());
    let named: HashSet<Uuid> = match store.commit(&claim_, at(5), at(17), &again).await {
        Err(CommitError::Duplicates(named)) => {
            assert_eq!(named.len(), 5, "each once: {named:?}");
            named.into_iter().collect()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(named, (0..5).map(id).collect());
    assert_eq!(place.dump().await, before);
    assert_eq!(store.resume(&claim_).await.unwrap(), at(5));
    let without = fold(&all, &named, &rules());
    store.commit(&claim_, at(5), at(17), &without).await.unwrap();

    // The tables are those of one copy of each.
    let other = place.of_the_other_backend().await.migrated_with(&fold(&all, &nothing, &rules())).await;
    let compared = compare(&store, &other.1).await.unwrap();
    assert!(compared.equal, "{compared:#?}");
    let outcomes = store.partitions().await.unwrap()[0].outcomes;
    assert_eq!(outcomes, Outcomes { applied: 12, duplicate: 5, dead: 0 });
}

/// Within a batch the fold counts the second as a duplicate. If the store did not, rows would depend on where a
/// batch ends, and a replay could give others (I5).
async fn an_event_and_an_identify_with_one_id_are_one_event(place: Place) {
    let store = place.migrated().await;
    let both = [record(0, 1, 100, "event", r#","url":"/x""#), record(1, 2, 100, "identify", "")];
    let swapped = [record(2, 1, 100, "identify", ""), record(3, 2, 100, "event", r#","url":"/x""#)];
    let more = [record(4, 3, 100, "identify", ""), record(5, 4, 100, "event", r#","url":"/x""#)];
    commit(&store, &fold(&both, &HashSet::new(), &rules())).await;
    let before = place.dump().await;
    let claim = claim(&store, P0).await;
    for (n, late) in swapped.iter().enumerate() {
        let batch: Vec<Record> = more.iter().chain([late]).cloned().collect();
        let changes = fold(&batch, &HashSet::new(), &rules());
        match store.commit(&claim, at(1), at(2), &changes).await {
            Err(CommitError::Duplicates(named)) => assert_eq!(named, [id(n as u128 + 1)]),
            other => panic!("{other:?}"),
        }
    }
    let mut after = place.dump().await;
    for (table, rows) in before {
        // The claim has a new epoch.
        if !table.contains("checkpoint") {
            assert_eq!(after.remove(&table), Some(rows), "{table}");
        }
    }
}

impl Place {
    async fn migrated_with(self, changes: &Changes) -> (Self, Store) {
        let store = self.migrated().await;
        commit(&store, changes).await;
        (self, store)
    }
}

async fn of_two_partitions_with_one_event_one_applies_it(place: Place) {
    let stores = [place.migrated().await, place.open().await];
    let mut raw = place.raw().await;
    for round in 0..15_u128 {
        let claims = [claim(&stores[0], P0).await, claim(&stores[1], P1).await];
        // Each has events of its own around the shared one, and both orders of ids occur.
        let shared = 1_000 * round + 50;
        let batches = [
            page_views((0..40).map(|n| 1_000 * round + n).chain([shared])),
            page_views([shared].into_iter().chain((60..99).map(|n| 1_000 * round + n))),
        ];
        let commits: Vec<_> = stores
            .iter()
            .zip(claims.clone())
            .zip(batches.clone())
            .map(|((store, claim), changes)| {
                let store = store.clone();
                tokio::spawn(async move {
                    let from = claim.resume_from;
                    store.commit(&claim, from, Checkpoint::after(from.offset()), &changes).await
                })
            })
            .collect();
        let mut applied = 0;
        for (n, commit) in commits.into_iter().enumerate() {
            match commit.await.unwrap() {
                Ok(_) => applied += 1,
                Err(CommitError::Duplicates(named)) => {
                    assert_eq!(named, [id(shared)]);
                    let from = claims[n].resume_from;
                    let mut rest = batches[n].clone();
                    rest.events.retain(|row| row.event_id != id(shared));
                    stores[n]
                        .commit(&claims[n], from, Checkpoint::after(from.offset()), &rest)
                        .await
                        .unwrap();
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        assert_eq!(applied, 1, "one applies it at once, the other is told");
        assert_eq!(raw.count("website_event").await as u128, (round + 1) * 80);
    }
}

async fn dead_letters_are_kept_with_their_place_and_reason(place: Place) {
    let store = place.migrated().await;
    let claim = claim(&store, P1).await;
    let garbage = [
        Record { value: b"\0\xff{".to_vec(), ..record(4, 1, 1, "event", "") },
        Record { value: Vec::new(), ..record(5, 1, 1, "event", "") },
        record(6, 1, 1, "unheard of", ""),
    ];
    let mut changes = fold(&garbage, &HashSet::new(), &rules());
    changes.dead_letters[1].reason = "with \0 in it".to_owned();
    let reasons: Vec<_> =
        changes.dead_letters.iter().map(|letter| letter.reason.replace('\0', "\u{fffd}")).collect();
    store.commit(&claim, at(0), at(7), &changes).await.unwrap();
    let mut raw = place.raw().await;
    let (table, hex) = match raw {
        Raw::Postgres(_) => ("dashi.dead_letter", "encode(record, 'hex')"),
        Raw::Sqlite(_) => ("dashi_dead_letter", "lower(hex(record))"),
    };
    let place = format!("SELECT log_id || '/' || partition || '/' || record_offset FROM {table} ORDER BY 1");
    assert_eq!(raw.strings(&place).await, ["test:log/1/4", "test:log/1/5", "test:log/1/6"]);
    assert_eq!(raw.strings(&format!("SELECT reason FROM {table} ORDER BY record_offset")).await, reasons);
    let values = raw.strings(&format!("SELECT {hex} FROM {table} ORDER BY record_offset")).await;
    assert_eq!(values[..2], ["00ff7b", ""]);
    assert_eq!(store.partitions().await.unwrap()[0].outcomes, Outcomes { dead: 3, ..Outcomes::default() });
}

fn missing(from: u64, to: u64, cause: MissingCause) -> Missing {
    Missing::all(Offset::new(from)..Offset::new(to), cause)
}

async fn what_is_missing_is_noted_with_the_checkpoint_that_passes_it(place: Place) {
    let store = place.migrated().await;
    let stale = claim(&store, P0).await;
    let held = claim(&store, P0).await;
    let gone = vec![missing(0, 3, MissingCause::Retention)];
    let lost = Changes { missing: gone.clone(), ..Changes::default() };
    assert!(store.commit(&stale, at(0), at(3), &lost).await.is_err(), "another's claim");
    assert!(store.commit(&held, at(1), at(3), &lost).await.is_err(), "another checkpoint");
    assert_eq!(store.missing().await.unwrap(), [], "what is not committed is not noted");

    store.commit(&held, at(0), at(3), &lost).await.unwrap();
    let gaps = vec![missing(4, 6, MissingCause::Gap), missing(8, 9, MissingCause::Gap)];
    let mixed = Changes { missing: gaps.clone(), markers: 1, ..page_views([1, 2]) };
    store.commit(&held, at(3), at(9), &mixed).await.unwrap();
    let state = &store.partitions().await.unwrap()[0];
    assert_eq!((state.missing, state.markers, state.rewound), (6, 1, 0));
    assert_eq!(state.checkpoint.offset().number(), state.outcomes.total() + state.missing + state.markers);
    let noted = store.missing().await.unwrap();
    let ranges: Vec<_> = noted.iter().map(|noted| noted.missing.clone()).collect();
    assert_eq!(ranges, [gone, gaps].concat());
    assert!(noted.iter().all(|noted| noted.log == log() && noted.partition == P0 && noted.noted_at_ms > 0));
}

/// Offsets that are used again get other records: a dead letter of theirs must not meet an older one, and neither may
/// be lost.
async fn a_checkpoint_goes_back_and_dead_letters_of_the_other_records_stay(place: Place) {
    let store = place.migrated().await;
    let letter = |value: &str| Changes {
        dead_letters: vec![DeadLetter {
            offset: Offset::new(4),
            reason: "bad".to_owned(),
            value: value.into(),
        }],
        outcomes: Outcomes { dead: 1, ..Outcomes::default() },
        ..Changes::default()
    };
    let held = claim(&store, P0).await;
    store.commit(&held, at(0), at(4), &page_views([1, 2, 3, 4])).await.unwrap();
    store.commit(&held, at(4), at(5), &letter("old")).await.unwrap();
    let lost = Changes { missing: vec![missing(2, 5, MissingCause::LogEnded)], ..Changes::default() };
    store.commit(&held, at(5), at(0), &lost).await.unwrap();
    assert_eq!(claim(&store, P0).await.resume_from, at(0));
    let held = claim(&store, P0).await;
    let copies = Changes { outcomes: Outcomes { duplicate: 4, ..Outcomes::default() }, ..Changes::default() };
    store.commit(&held, at(0), at(4), &copies).await.unwrap();
    store.commit(&held, at(4), at(5), &letter("new")).await.unwrap();
    let state = &store.partitions().await.unwrap()[0];
    assert_eq!((state.missing, state.rewound), (0, 5), "what was projected is not missing");
    assert_eq!(state.checkpoint.offset().number() + state.rewound, state.outcomes.total());
    assert_eq!(store.missing().await.unwrap()[0].missing.cause, MissingCause::LogEnded);
    let dump = place.dump().await;
    let letters = format!("{dump:?}");
    for value in ["old", "new"] {
        let hex: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
        let is_there = letters.to_lowercase().contains(&hex) || letters.contains(value);
        assert!(is_there, "the dead letter {value} is lost: {letters}");
    }
}

async fn ranges_of_what_is_missing_are_bounded_and_their_counts_are_not(place: Place) {
    let store = place.migrated().await;
    let held = claim(&store, P0).await;
    for n in 0..22 {
        let (from, to) = (n * 100, (n + 1) * 100);
        let gaps =
            (0..50).map(|gap| missing(from + 2 * gap, from + 2 * gap + 1, MissingCause::Gap)).collect();
        let changes = Changes { missing: gaps, ..Changes::default() };
        store.commit(&held, at(from), at(to), &changes).await.unwrap();
    }
    let noted = store.missing().await.unwrap();
    assert_eq!(noted.len(), 1_000);
    assert_eq!(noted.iter().map(|noted| noted.missing.records).sum::<u64>(), 1_100);
    assert_eq!(noted[999].missing.range.end, Offset::new(2_199), "the last one stands for the rest");
    assert_eq!(store.partitions().await.unwrap()[0].missing, 1_100);
}

async fn outcomes_add_up(place: Place) {
    let store = place.migrated().await;
    let claim_ = claim(&store, P0).await;
    let with = |applied, duplicate, dead| Changes {
        outcomes: Outcomes { applied, duplicate, dead },
        ..Changes::default()
    };
    store.commit(&claim_, at(0), at(6), &with(1, 2, 3)).await.unwrap();
    store.commit(&claim_, at(6), at(66), &with(10, 20, 30)).await.unwrap();
    // What is refused counts nothing.
    store.commit(&claim_, at(6), at(66), &with(10, 20, 30)).await.unwrap_err();
    let next = claim(&store, P0).await;
    store.commit(&claim_, at(66), at(99), &with(10, 20, 30)).await.unwrap_err();
    store.commit(&next, at(66), at(667), &with(100, 200, 300)).await.unwrap();
    let state = store.partitions().await.unwrap().remove(0);
    assert_eq!(state.outcomes, Outcomes { applied: 111, duplicate: 222, dead: 333 });
    assert_eq!(state.checkpoint, at(667));
}

async fn what_a_store_holds_is_told(place: Place) {
    let store = place.migrated().await;
    store.ping().await.unwrap();
    assert_eq!(store.logs().await.unwrap(), []);
    assert_eq!(store.partitions().await.unwrap(), []);
    assert!(store.is_empty().await.unwrap());
    let b = LogId::new("b");
    store.claim(&b, P1, "second").await.unwrap();
    store.claim(&b, P0, "first").await.unwrap();
    let claim = store.claim(&LogId::new("a"), P1, "third").await.unwrap();
    assert_eq!(store.logs().await.unwrap(), [LogId::new("a"), b.clone()]);
    assert!(store.is_empty().await.unwrap(), "a claim is no row of the projection");
    let told: Vec<_> = store
        .partitions()
        .await
        .unwrap()
        .into_iter()
        .map(|state| (state.log, state.partition, state.owner, state.epoch, state.last_error))
        .collect();
    let one = Epoch::new(1);
    assert_eq!(
        told,
        [
            (LogId::new("a"), P1, "third".to_owned(), one, None),
            (b.clone(), P0, "first".to_owned(), one, None),
            (b, P1, "second".to_owned(), one, None),
        ]
    );
    // Any row of any table counts, one that only sets a record aside too.
    let letter = DeadLetter { offset: Offset::ZERO, reason: "r".to_owned(), value: Vec::new() };
    store
        .commit(&claim, at(0), at(1), &Changes { dead_letters: vec![letter], ..Changes::default() })
        .await
        .unwrap();
    assert!(!store.is_empty().await.unwrap());
    store.close().await;
}

async fn errors_are_noted_for_their_owner_only(place: Place) {
    let store = place.migrated().await;
    let stale = claim(&store, P0).await;
    let current = claim(&store, P0).await;
    let note = |text| ErrorNote { kind: "beyond", text, at_ms: 1_700_000_000_123, is_over: false };
    store.note_error(&current, &note("it broke\0")).await.unwrap();
    store.note_error(&stale, &note("too late")).await.unwrap();
    let state = store.partitions().await.unwrap().remove(0);
    assert!(state.last_error.as_deref().is_some_and(|error| error.starts_with("it broke")), "{state:?}");
    assert_eq!(state.last_error_kind.as_deref(), Some("beyond"));
    assert_eq!((state.last_error_at_ms, state.last_error_over_at_ms), (Some(1_700_000_000_123), None));
    // Whoever claims next learns that it is not over, and only they say that it is.
    let next = claim(&store, P0).await;
    assert!(next.has_open_error && !current.has_open_error);
    store.note_over(&current).await.unwrap();
    assert_eq!(store.partitions().await.unwrap().remove(0).last_error_over_at_ms, None);
    store.note_over(&next).await.unwrap();
    let over = store.partitions().await.unwrap().remove(0);
    assert!((over.last_error_over_at_ms.unwrap() - over.updated_at_ms).abs() < 60_000, "{over:?}");
    assert!(!claim(&store, P0).await.has_open_error);
}

async fn an_error_is_over_when_the_checkpoint_moves(place: Place) {
    let store = place.migrated().await;
    let claim = claim(&store, P0).await;
    store.commit(&claim, at(0), at(1), &Changes::default()).await.unwrap();
    assert_eq!(store.partitions().await.unwrap().remove(0).last_error_over_at_ms, None, "nothing went wrong");
    let note = ErrorNote { kind: "waiting_for_store", text: "it broke", at_ms: 5, is_over: false };
    store.note_error(&claim, &note).await.unwrap();
    // What went wrong last stays to be read.
    store.commit(&claim, at(1), at(2), &Changes::default()).await.unwrap();
    let moved = store.partitions().await.unwrap().remove(0);
    assert_eq!((moved.last_error.as_deref(), moved.last_error_at_ms), (Some("it broke"), Some(5)));
    let over = moved.last_error_over_at_ms.expect("it is over");
    assert!((over - moved.updated_at_ms).abs() < 60_000, "{moved:?}");
    // It is over since then, not since the last commit.
    store.commit(&claim, at(2), at(3), &Changes::default()).await.unwrap();
    assert_eq!(store.partitions().await.unwrap().remove(0).last_error_over_at_ms, Some(over));
}

async fn a_replay_claims_only_what_no_live_projector_has_claimed(place: Place) {
    let store = place.migrated().await;
    let replayed = store.claim_for_replay(&log(), P0, "a replay").await.unwrap();
    assert_eq!((replayed.epoch, replayed.resume_from), (Epoch::new(1), at(0)));
    store.commit(&replayed, at(0), at(7), &Changes::default()).await.unwrap();
    // Interrupted, it goes on.
    let again = store.claim_for_replay(&log(), P0, "the replay again").await.unwrap();
    assert_eq!((again.epoch, again.resume_from), (Epoch::new(2), at(7)));
    assert!(store.partitions().await.unwrap().iter().all(|state| !state.is_live));
    // A live projector takes over where it stands, also of a replay that runs.
    let live = store.claim(&log(), P0, "somebody live").await.unwrap();
    assert_eq!((live.epoch, live.resume_from), (Epoch::new(3), at(7)));
    let fenced = store.commit(&again, at(7), at(8), &Changes::default()).await;
    assert!(matches!(fenced, Err(CommitError::Fenced { .. })), "{fenced:?}");
    // From then on no replay claims anything of this store, of whichever partition or log, and nobody is fenced.
    let states = store.partitions().await.unwrap();
    for (log, partition) in [(log(), P0), (log(), P1), (LogId::new("another"), P0)] {
        let refused = store.claim_for_replay(&log, partition, "a replay").await;
        let Err(ClaimError::Live { partition: P0, owner }) = refused else { panic!("{refused:?}") };
        assert_eq!(owner, "somebody live");
    }
    assert_eq!(store.partitions().await.unwrap(), states);
    store.commit(&live, at(7), at(8), &Changes::default()).await.unwrap();
}

async fn websites_come_and_go(place: Place) {
    let store = place.migrated().await;
    let website = |n, name: &str, domain: Option<&str>| NewWebsite {
        id: id(n),
        name: name.to_owned(),
        domain: domain.map(str::to_owned),
    };
    let told = async || -> Vec<(Uuid, String, Option<String>, Option<i64>)> {
        let websites = store.websites().await.unwrap();
        websites.into_iter().map(|site| (site.id, site.name, site.domain, site.created_at_ms)).collect()
    };
    assert_eq!(told().await, []);
    store.add_website(&website(2, "Zwei", None), NOON_MS + 2).await.unwrap();
    store.add_website(&website(1, "Eins é", Some("a.example")), NOON_MS + 1).await.unwrap();
    let one = (id(1), "Eins é".to_owned(), Some("a.example".to_owned()), Some(NOON_MS + 1));
    let two = (id(2), "Zwei".to_owned(), None, Some(NOON_MS + 2));
    assert_eq!(told().await, [one.clone(), two.clone()]);
    match store.add_website(&website(1, "Other", None), NOON_MS).await {
        Err(StoreError::WebsiteExists { id: exists }) => assert_eq!(exists, id(1)),
        other => panic!("{other:?}"),
    }
    assert_eq!(told().await, [one.clone(), two.clone()]);
    assert!(store.remove_website(id(1), NOON_MS + 9).await.unwrap());
    assert_eq!(told().await, std::slice::from_ref(&two));
    assert!(!store.remove_website(id(1), NOON_MS + 9).await.unwrap());
    assert!(!store.remove_website(id(3), NOON_MS + 9).await.unwrap());
    store.add_website(&website(1, "Back", Some("b.example")), NOON_MS + 99).await.unwrap();
    let back = (id(1), "Back".to_owned(), Some("b.example".to_owned()), Some(NOON_MS + 1));
    assert_eq!(told().await, [back, two]);
    assert!(store.is_empty().await.unwrap(), "a website is no row of the projection");
}

async fn equal_stores_compare_equal_and_others_are_told_apart(place: Place) {
    let (place, store) = place.migrated_with(&full_changes()).await;
    let (_other_place, other) = place.of_the_other_backend().await.migrated_with(&full_changes()).await;
    for (a, b) in [(&store, &store), (&store, &other), (&other, &store)] {
        let compared = compare(a, b).await.unwrap();
        assert!(compared.equal, "{compared:#?}");
        assert!(compared.tables.iter().all(|table| table.equal && table.differences.is_empty()));
    }
    // One event differs in a column, one is only here, seven are only there.
    let mut raw = place.raw().await;
    raw.execute(&format!(
        "UPDATE website_event SET page_title = 'changed', tag = NULL WHERE event_id = '{}'",
        id(1)
    ))
    .await;
    raw.execute(&format!("UPDATE session SET city = NULL WHERE session_id = '{}'", id(11))).await;
    commit(&store, &page_views([4_000])).await;
    commit(&other, &page_views(5_000..5_007)).await;
    let compared = compare(&store, &other).await.unwrap();
    assert!(!compared.equal);
    let unequal: Vec<_> =
        compared.tables.iter().filter(|table| !table.equal).map(|table| table.table).collect();
    assert_eq!(unequal, ["session", "website_event"]);
    let table = |name| compared.tables.iter().find(|table| table.table == name).unwrap();
    let events = table("website_event");
    assert_eq!(events.rows, [12, 18]);
    assert_ne!(events.checksums[0], events.checksums[1]);
    assert_eq!(events.differences.len(), 5, "no more than the first few are told");
    let first = &events.differences[0];
    assert_eq!(first.key, id(1).to_string());
    assert_eq!(first.first, ["page_title: changed", "tag: null"]);
    assert!(first.second[0].starts_with("page_title: Ünïcode") && first.second.len() == 2, "{first:?}");
    assert_eq!((&events.differences[1].key, events.differences[1].second.len()), (&id(4_000).to_string(), 0));
    assert_eq!((&events.differences[2].key, events.differences[2].first.len()), (&id(5_000).to_string(), 0));
    assert!(events.differences[2].second.contains(&"url_path: /5000".to_owned()));
    let sessions = &table("session").differences[0];
    assert_eq!(
        (sessions.key.clone(), sessions.first.clone()),
        (id(11).to_string(), vec!["city: null".to_owned()])
    );
}

async fn rows_that_do_not_fit_are_refused_and_nothing_is_written(place: Place) {
    let store = place.migrated().await;
    let claim = claim(&store, P0).await;
    store.commit(&claim, at(0), at(1), &page_views([1])).await.unwrap();
    let before = place.dump().await;
    let with = |change: &dyn Fn(&mut Changes)| {
        let mut changes = full_changes();
        changes.events.retain(|row| row.event_id != id(1));
        change(&mut changes);
        changes
    };
    let refused = [
        with(&|changes| changes.events[0].url_path = "x".repeat(600)),
        with(&|changes| changes.events[0].page_title = Some("a\0b".to_owned())),
        with(&|changes| changes.events[0].created_at_ms = -8_640_000_000_000_000),
        with(&|changes| changes.sessions[0].attributes.country = Some("GBR".to_owned())),
        with(&|changes| changes.event_data[0].data_key = "k".repeat(501)),
        with(&|changes| changes.session_data[0].value.string_value = Some("v".repeat(501))),
        with(&|changes| changes.revenue[0].currency = "EURO-EURO-EURO".to_owned()),
        with(&|changes| changes.identifies[0].distinct_id = Some("i".repeat(51))),
    ];
    for changes in refused {
        match store.commit(&claim, at(1), at(2), &changes).await {
            Err(CommitError::Refused { partition, .. }) => assert_eq!(partition, P0),
            other => panic!("{other:?}"),
        }
        assert_eq!(place.dump().await, before);
    }
    store.commit(&claim, at(1), at(2), &with(&|_| {})).await.unwrap();
}

async fn rows_that_a_constraint_refuses_are_told_as_such(place: Place) {
    let store = place.migrated().await;
    let claim = claim(&store, P0).await;
    // The file takes texts of any length, so the refusal is made here.
    place
        .raw()
        .await
        .execute(
            "CREATE TRIGGER too_long BEFORE INSERT ON revenue WHEN length(NEW.currency) > 10
             BEGIN SELECT RAISE(ABORT, 'too long'); END",
        )
        .await;
    let before = place.dump().await;
    let mut changes = full_changes();
    changes.revenue[0].currency = "EURO-EURO-EURO".to_owned();
    let refused = store.commit(&claim, at(0), at(1), &changes).await;
    assert!(matches!(refused, Err(CommitError::Refused { partition: P0, .. })), "{refused:?}");
    assert_eq!(place.dump().await, before);
    store.commit(&claim, at(0), at(1), &full_changes()).await.unwrap();
}

async fn a_batch_for_a_locked_file_is_not_written_within_a_bounded_time(place: Place) {
    let store = place.migrated().await;
    let claim = claim(&store, P0).await;
    let mut raw = place.raw().await;
    let before = place.dump().await;
    raw.execute("BEGIN IMMEDIATE").await;
    let start = Instant::now();
    let refused = store.commit(&claim, at(0), at(1), &full_changes()).await;
    assert!(matches!(refused, Err(CommitError::NotWritten { partition: P0, .. })), "{refused:?}");
    assert!(start.elapsed() < SOON, "it waits a bounded time");
    assert_eq!(store.resume(&claim).await.unwrap(), at(0));
    raw.execute("COMMIT").await;
    assert_eq!(place.dump().await, before);
    store.commit(&claim, at(0), at(1), &full_changes()).await.unwrap();
}

/// What the catalogue says of everything outside the schema `dashi`.
async fn catalogue(raw: &mut Raw) -> Vec<String> {
    raw.strings(
        "SELECT t FROM (
             SELECT concat_ws(' ', 'column', table_schema, table_name, column_name, ordinal_position, data_type,
                 character_maximum_length, numeric_precision, numeric_scale, is_nullable, column_default) AS t
             FROM information_schema.columns WHERE table_schema NOT IN ('dashi', 'pg_catalog', 'information_schema')
             UNION ALL SELECT concat_ws(' ', 'table', table_schema, table_name, table_type)
             FROM information_schema.tables WHERE table_schema NOT IN ('dashi', 'pg_catalog', 'information_schema')
             UNION ALL SELECT concat_ws(' ', 'index', indexdef) FROM pg_indexes
             WHERE schemaname NOT IN ('dashi', 'pg_catalog')
             UNION ALL SELECT concat_ws(' ', 'constraint', table_name, constraint_name, constraint_type)
             FROM information_schema.table_constraints WHERE table_schema NOT IN ('dashi', 'pg_catalog')
             UNION ALL SELECT concat_ws(' ', 'routine', routine_schema, routine_name)
             FROM information_schema.routines WHERE routine_schema NOT IN ('pg_catalog', 'information_schema', 'dashi')
             UNION ALL SELECT concat_ws(' ', 'trigger', event_object_table, trigger_name)
             FROM information_schema.triggers
             UNION ALL SELECT concat_ws(' ', 'extension', extname) FROM pg_extension
             UNION ALL SELECT concat_ws(' ', 'schema', nspname) FROM pg_namespace WHERE nspname <> 'dashi'
                 AND nspname NOT LIKE 'pg\\_%'
         ) AS of_all ORDER BY t",
    )
    .await
}

async fn nothing_but_the_schema_dashi_is_made(place: Place) {
    let mut raw = place.raw().await;
    let (catalogue_before, rows_before) = (catalogue(&mut raw).await, place.dump().await);
    assert!(catalogue_before.iter().any(|line| line.contains("_prisma_migrations")));
    let store = place.migrated().await;
    store.migrate().await.unwrap();
    assert_eq!(catalogue(&mut raw).await, catalogue_before);
    let rows = place.dump().await;
    for (table, before) in rows_before {
        assert_eq!(rows[&table], before, "{table}");
    }
    assert!(rows.keys().any(|table| table.starts_with("dashi.")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_goes_away_leaves_the_outcome_unknown_until_resume_tells() {
    let mut server = PostgresServer::start().await;
    server.create_database("dashi").await;
    let url = server.url("dashi");
    let store = open_postgres(&url);
    store.migrate().await.unwrap();
    let claim = claim(&store, P0).await;
    store.commit(&claim, at(0), at(1), &page_views([1])).await.unwrap();
    // Each lock stops the commit at another of its steps.
    for (n, table) in
        ["dashi.checkpoint", "website_event", "session_data", "dashi.dead_letter"].into_iter().enumerate()
    {
        let stands = n as u64 + 1;
        let mut other = PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")))
            .execute(&mut other)
            .await
            .unwrap();
        let mut changes = page_views([100 + n as u128]);
        changes.session_data = vec![property(n as u128, 7, table, "1")];
        let letter = DeadLetter { offset: Offset::new(stands), reason: "r".to_owned(), value: Vec::new() };
        changes.dead_letters = vec![letter];
        let commit = tokio::spawn({
            let (store, claim, changes) = (store.clone(), claim.clone(), changes.clone());
            async move { store.commit(&claim, at(stands), at(stands + 1), &changes).await }
        });
        eventually(SOON, "the commit waits for the lock", async || {
            let mut onlooker = PgConnection::connect(&url).await?;
            sqlx::query_scalar::<_, bool>(
                "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock')",
            )
            .fetch_one(&mut onlooker)
            .await
        })
        .await;
        server.stop_immediate().await;
        let cut = tokio::time::timeout(SOON, commit).await.unwrap().unwrap();
        assert!(matches!(cut, Err(CommitError::NotWritten { .. })), "at {table}: {cut:?}");
        let away = store.resume(&claim).await;
        assert!(matches!(away, Err(ClaimError::Store(StoreError::Away { .. }))), "{away:?}");
        assert!(store.ping().await.is_err());
        server.start_again().await;
        let mut told = None;
        eventually(SOON, "the store answers again", async || {
            told = Some(store.resume(&claim).await?);
            Ok::<_, ClaimError>(())
        })
        .await;
        assert_eq!(told, Some(at(stands)));
        eventually(SOON, "the batch is in", async || {
            match store.commit(&claim, at(stands), at(stands + 1), &changes).await {
                Err(CommitError::NotWritten { source, .. }) => Err(source.to_string()),
                other => {
                    other.unwrap();
                    Ok(())
                }
            }
        })
        .await;
    }
    let mut raw = Raw::Postgres(PgConnection::connect(&url).await.unwrap());
    assert_eq!(raw.count("website_event").await, 5);
    assert_eq!(raw.count("session_data").await, 4);
    assert_eq!(raw.count("dashi.dead_letter").await, 4);
}
