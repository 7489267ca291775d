//! Generations in databases of Umami's: readers beside a swap, databases that refuse one, and everything that stays as
//! it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dashi_domain::fold::{Changes, Outcomes};
use dashi_domain::rows::{EventDataRow, IdentifyRow, SessionAttributes, SessionRow};
use dashi_store::{CommitError, Foreign, GenerationError, Store, StoreError, SwapError, compare};
use integration_tests::umami::catalogue_dump;
use integration_tests::{TestDatabase, UmamiVersion, eventually};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use uuid::Uuid;

use super::catalogue::named_page_view;
use super::fixture::{
    P0, Raw, SOON, StoreFixture, WEBSITE, at, claim, event, id, log, open_postgres, page_views, property,
    session,
};
use super::generations::Log;
use super::rows::full_changes;

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Page views, each of a session of its own, whose path and browser name the rules.
fn named(rules: &str, records: u128) -> Log {
    let record = |n: u128| {
        let mut event = event(1_000 + n, 600_000 + 2 * n);
        event.url_path = rules.to_owned();
        let attributes =
            SessionAttributes { browser: Some(rules.to_owned()), ..SessionAttributes::default() };
        let session = SessionRow { attributes, ..session(600_000 + 2 * n) };
        let outcomes = Outcomes { applied: 1, ..Outcomes::default() };
        Changes { events: vec![event], sessions: vec![session], outcomes, ..Changes::default() }
    };
    Log((0..records).map(record).collect())
}

/// The paths and browsers that there are, and how many rows.
const READ: &str = "SELECT (SELECT string_agg(DISTINCT url_path, ',') FROM website_event),
    (SELECT string_agg(DISTINCT browser, ',') FROM session),
    (SELECT count(*) FROM website_event), (SELECT count(*) FROM session)";

/// Whether what a reader saw is one generation, whole. Returns how many events there were.
fn check_whole(row: &sqlx::postgres::PgRow) -> i64 {
    let (paths, browsers): (String, String) = (row.get(0), row.get(1));
    assert!(["first", "rebuilt"].contains(&&*paths), "{paths}");
    assert_eq!(paths, browsers);
    let (events, sessions): (i64, i64) = (row.get(2), row.get(3));
    assert_eq!(events, sessions);
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_and_writers_go_on_while_generations_are_swapped() {
    const RECORDS: u64 = 400;
    let fixture = StoreFixture::made_by(UmamiVersion::V3_3).await;
    let (first, rebuilt) = (Arc::new(named("first", 4_000)), named("rebuilt", 4_000));
    let store = fixture.migrated().await;
    let held = claim(&store, P0).await;
    for offset in 0..RECORDS {
        store.commit(&held, at(offset), at(offset + 1), &first.0[offset as usize]).await.unwrap();
    }
    store.begin_generation(2, "").await.unwrap();
    let generation = store.open_generation(2).await.unwrap();
    rebuilt.catch_up(&generation, &[(log(), P0, at(RECORDS))]).await.unwrap();
    store.finish_generation(2, |_| ()).await.unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let longest = Arc::new(AtomicU64::new(0));
    let StoreFixture::Postgres(database) = &fixture else { panic!("it is PostgreSQL") };
    let mut readers = Vec::new();
    for kind in ["prepared", "simple", "transaction"] {
        let (stop, longest) = (Arc::clone(&stop), Arc::clone(&longest));
        let mut connection = database.connect().await;
        readers.push(tokio::spawn(async move {
            let (mut reads, mut events) = (0, 0);
            while !stop.load(Ordering::SeqCst) {
                let began = Instant::now();
                if kind == "transaction" {
                    run(&mut connection, "BEGIN").await;
                    let before = sqlx::query("SELECT DISTINCT url_path::text FROM website_event LIMIT 1");
                    let before: String = before.fetch_one(&mut connection).await.unwrap().get(0);
                    let row = sqlx::query(READ).fetch_one(&mut connection).await.unwrap();
                    assert_eq!(row.get::<String, _>(1), before, "a transaction sees one generation");
                    run(&mut connection, "COMMIT").await;
                    check_whole(&row);
                } else {
                    let row = if kind == "prepared" {
                        sqlx::query(READ).fetch_one(&mut connection).await.unwrap()
                    } else {
                        sqlx::raw_sql(READ).fetch_one(&mut connection).await.unwrap()
                    };
                    let now = check_whole(&row);
                    assert!(now >= events, "rows went away: {events}, then {now}");
                    events = now;
                }
                longest.fetch_max(began.elapsed().as_millis() as u64, Ordering::SeqCst);
                reads += 1;
            }
            reads
        }));
    }
    // The projector: it claims again whenever it is fenced, and writes by the rules of the time.
    let writer = tokio::spawn({
        let (store, stop, log) = (fixture.open().await, Arc::clone(&stop), Arc::clone(&first));
        let rebuilt = named("rebuilt", 4_000);
        async move {
            let (mut fenced, mut written) = (0, 0_u64);
            let mut held = claim(&store, P0).await;
            let mut stands = held.resume_from.offset().number();
            while !stop.load(Ordering::SeqCst) && stands < 4_000 {
                let rules = if fenced % 2 == 0 { &log.0 } else { &rebuilt.0 };
                match store.commit(&held, at(stands), at(stands + 1), &rules[stands as usize]).await {
                    Ok(_) => (stands, written) = (stands + 1, written + 1),
                    Err(CommitError::Fenced { .. }) => {
                        held = claim(&store, P0).await;
                        assert_eq!(held.resume_from, at(stands), "it goes on where it was");
                        fenced += 1;
                    }
                    // It waited for the swap until the time of its statement was over.
                    Err(CommitError::NotWritten { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            (fenced, written)
        }
    });
    let swaps = 6;
    let (mut held, mut locked, mut retries) = (Duration::ZERO, Duration::ZERO, 0);
    for swap in 0..swaps {
        let (number, rules) = if swap % 2 == 0 { (2, &rebuilt) } else { (1, &*first) };
        let generation = store.open_generation(number).await.unwrap();
        let swapped = store
            .swap(number, Foreign::Refuse, async |targets| rules.catch_up(&generation, targets).await)
            .await
            .unwrap();
        generation.close().await;
        held = held.max(swapped.writers_held);
        locked = locked.max(swapped.readers_locked);
        retries += swapped.retries;
        let before = store.partitions().await.unwrap()[0].checkpoint;
        eventually(SOON, "the projector goes on after the swap", async || {
            store.partitions().await.unwrap()[0].checkpoint > before
        })
        .await;
    }
    stop.store(true, Ordering::SeqCst);
    let (fenced, written) = writer.await.unwrap();
    let mut reads = 0;
    for reader in readers {
        reads += reader.await.unwrap();
    }
    eprintln!(
        "{swaps} swaps beside {reads} reads (the longest {} ms) and {written} commits: writers held for {held:?} at \
         most, readers locked for {locked:?} at most, {retries} requests withdrawn",
        longest.load(Ordering::SeqCst)
    );
    assert_eq!(fenced, swaps, "fenced once by each swap");
    // A second in which all tables are never free, and some attempts.
    assert!(held < Duration::from_secs(20), "writers were held for {held:?}");
    assert!(reads > 50 && written > 50, "{reads} reads, {written} commits");
    // The live one, which is the first, is what the log gives.
    let StoreFixture::Postgres(_) = &fixture else { panic!("it is PostgreSQL") };
    let stands = store.partitions().await.unwrap()[0].checkpoint.offset().number();
    assert_eq!(fixture.raw().await.count("website_event WHERE url_path = 'first'").await as u64, stands);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_waits_for_a_slow_reader_of_postgres_without_holding_up_the_others() {
    let fixture = StoreFixture::made_by(UmamiVersion::V3_1).await;
    let records = named("first", 20);
    let store = fixture.migrated().await;
    let held = claim(&store, P0).await;
    for offset in 0..20 {
        store.commit(&held, at(offset), at(offset + 1), &records.0[offset as usize]).await.unwrap();
    }
    store.begin_generation(2, "").await.unwrap();
    let generation = store.open_generation(2).await.unwrap();
    records.catch_up(&generation, &[(log(), P0, at(20))]).await.unwrap();
    store.finish_generation(2, |_| ()).await.unwrap();
    let StoreFixture::Postgres(database) = &fixture else { panic!("it is PostgreSQL") };
    let mut slow = database.connect().await;
    run(&mut slow, "BEGIN; SELECT count(*) FROM session").await;
    let is_done = AtomicBool::new(false);
    let swapping = async {
        let catch_up = async |targets: &[_]| records.catch_up(&generation, targets).await;
        let swapped = store.swap(2, Foreign::Refuse, catch_up).await.unwrap();
        is_done.store(true, Ordering::SeqCst);
        swapped
    };
    let reading = async {
        let mut quick = database.connect().await;
        let mut longest = Duration::ZERO;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(3) {
            let read = Instant::now();
            run(&mut quick, "SELECT count(*) FROM session").await;
            longest = longest.max(read.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!is_done.load(Ordering::SeqCst), "the slow reader is waited for");
        run(&mut slow, "COMMIT").await;
        longest
    };
    let both = async { tokio::join!(swapping, reading) };
    let (swapped, longest) = tokio::time::timeout(SOON, both).await.expect("the swap ends");
    // Less than the longest request, and the machine's own slowness.
    assert!(longest < Duration::from_secs(2), "a reader waited for {longest:?}");
    eprintln!("beside a slow reader, others waited for {longest:?} at most: {swapped:?}");
    assert!(swapped.retries > 0, "{swapped:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_whose_connection_to_postgres_is_cut_changes_nothing() {
    let fixture = StoreFixture::made_by(UmamiVersion::V3_1).await;
    let records = named("first", 20);
    let store = fixture.migrated().await;
    let held = claim(&store, P0).await;
    for offset in 0..20 {
        store.commit(&held, at(offset), at(offset + 1), &records.0[offset as usize]).await.unwrap();
    }
    store.begin_generation(2, "").await.unwrap();
    let generation = store.open_generation(2).await.unwrap();
    records.catch_up(&generation, &[(log(), P0, at(20))]).await.unwrap();
    store.finish_generation(2, |_| ()).await.unwrap();
    let before = fixture.dump().await;
    let mut raw = fixture.raw().await;
    let cut = store
        .swap(2, Foreign::Refuse, async |targets| {
            let mut raw = fixture.raw().await;
            raw.strings(
                "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity
                 WHERE datname = current_database() AND state = 'idle in transaction'",
            )
            .await;
            records.catch_up(&generation, targets).await
        })
        .await;
    assert!(
        matches!(cut, Err(SwapError::Generation(GenerationError::Store(StoreError::Away { .. })))),
        "{cut:?}"
    );
    assert_eq!(fixture.dump().await, before);
    assert_eq!(
        raw.strings("SELECT relname::text FROM pg_class WHERE relname LIKE 'foreign\\_%' AND oid >= 16384 AND relnamespace = 'dashi_gen_2'::regnamespace").await,
        [""; 0]
    );
    store
        .swap(2, Foreign::Refuse, async |targets| records.catch_up(&generation, targets).await)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_database_whose_tables_cannot_be_replaced_is_refused_by_name() {
    let database = TestDatabase::create().await;
    let mut raw = database.connect().await;
    UmamiVersion::V3_3.install(&mut raw).await;
    let store = open_postgres(database.url());
    store.migrate().await.unwrap();
    let refused = async |make: &str, named: &str, undo: &str| {
        let mut raw = database.connect().await;
        run(&mut raw, make).await;
        match store.begin_generation(2, "").await {
            Err(GenerationError::Refused { reasons }) => {
                assert!(reasons.iter().any(|reason| reason.contains(named)), "{make}: {reasons:?}");
            }
            other => panic!("{make}: {other:?}"),
        }
        run(&mut raw, undo).await;
    };
    refused("CREATE VIEW seen AS SELECT * FROM website_event", "view seen", "DROP VIEW seen").await;
    refused(
        "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER notes AFTER INSERT ON session FOR EACH ROW EXECUTE FUNCTION noted()",
        "trigger notes",
        "DROP FUNCTION noted CASCADE",
    )
    .await;
    refused(
        "CREATE RULE kept AS ON DELETE TO revenue DO INSTEAD NOTHING",
        "rule kept",
        "DROP RULE kept ON revenue",
    )
    .await;
    refused(
        "CREATE TABLE note (event_id uuid CONSTRAINT of_event REFERENCES website_event)",
        "constraint of_event on table note",
        "DROP TABLE note",
    )
    .await;
    refused(
        "CREATE TABLE owner (id uuid PRIMARY KEY);
         ALTER TABLE event_data ADD CONSTRAINT owned FOREIGN KEY (website_id) REFERENCES owner",
        "constraint owned on table event_data",
        "ALTER TABLE event_data DROP CONSTRAINT owned; DROP TABLE owner",
    )
    .await;
    refused("CREATE PUBLICATION one FOR TABLE session", "publication one", "DROP PUBLICATION one").await;
    refused("CREATE PUBLICATION whole FOR ALL TABLES", "publication whole", "DROP PUBLICATION whole").await;
    refused("CREATE TABLE older () INHERITS (session_data)", "older", "DROP TABLE older").await;
    refused(
        "CREATE STATISTICS pair ON website_id, tag FROM website_event",
        "statistics object pair",
        "DROP STATISTICS pair",
    )
    .await;
    refused("CREATE POLICY mine ON session USING (true)", "policy mine", "DROP POLICY mine ON session").await;
    // Nothing was made by any of them; and none of them is there any more.
    assert_eq!(store.generations().await.unwrap().len(), 1);
    assert_eq!(store.begin_generation(2, "").await.unwrap().number, 2);
    // What comes later is seen by the swap.
    store.finish_generation(2, |_| ()).await.unwrap();
    run(&mut raw, "CREATE VIEW seen AS SELECT * FROM website_event").await;
    let swap = async || store.swap(2, Foreign::Refuse, async |_| Ok::<_, CommitError>(())).await;
    let seen = swap().await;
    assert!(matches!(&seen, Err(SwapError::Generation(GenerationError::Refused { .. }))), "{seen:?}");
    // And an upgrade of Umami, which changes the live tables alone.
    run(&mut raw, "DROP VIEW seen; ALTER TABLE website_event ADD COLUMN build varchar(50)").await;
    match swap().await {
        Err(SwapError::Generation(GenerationError::Changed { number: 2, differences })) => {
            assert!(differences[0].contains("website_event.build"), "{differences:?}");
        }
        other => panic!("{other:?}"),
    }
    store.drop_generation(2).await.unwrap();
    assert_eq!(store.begin_generation(2, "").await.unwrap().number, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_does_not_own_the_tables_of_postgres_is_told_so() {
    let database = TestDatabase::create().await;
    let mut raw = database.connect().await;
    UmamiVersion::V3_1.install(&mut raw).await;
    let role = format!("dashi_{}", Uuid::now_v7().simple());
    let name = database.name();
    run(
        &mut raw,
        &format!(
            "CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role};
             REVOKE CREATE ON SCHEMA public FROM PUBLIC; GRANT CREATE ON DATABASE {name} TO {role}"
        ),
    )
    .await;
    let (_, rest) = database.url().split_once('@').unwrap();
    let store = open_postgres(&format!("postgres://{role}@{rest}"));
    store.migrate().await.unwrap();
    run(&mut raw, &format!("REVOKE CREATE ON DATABASE {name} FROM {role}")).await;
    let refused = store.begin_generation(2, "").await;
    let text = format!("{}", refused.unwrap_err());
    for reason in [
        format!("the role {role} does not own the table public.website_event, whose owner is"),
        format!("GRANT CREATE ON DATABASE {name} TO {role}"),
        format!("GRANT CREATE ON SCHEMA public TO {role}"),
    ] {
        assert!(text.contains(&reason), "{reason}: {text}");
    }
    assert!(!text.contains("dashi.checkpoint"), "its own tables are its own: {text}");
    store.close().await;
    run(&mut raw, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

/// Everything in the database but the schemas of generations, and Dashi's own tables by their definitions.
async fn everything(raw: &mut PgConnection) -> Vec<String> {
    let mut lines = catalogue_dump(raw, "public").await;
    let own = "SELECT line FROM (
        SELECT concat_ws(' ', 'own relation', c.relname, c.relkind, c.reloptions::text, pg_get_userbyid(c.relowner)) AS line
        FROM pg_class AS c WHERE c.relnamespace = 'dashi'::regnamespace
        UNION ALL SELECT concat_ws(' ', 'own index', indexdef) FROM pg_indexes WHERE schemaname = 'dashi'
        UNION ALL SELECT concat_ws(' ', 'column', c.oid::regclass, a.attname, a.attstattarget, a.attoptions::text,
            a.attstorage, a.attacl::text)
        FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
        WHERE c.relnamespace IN ('dashi'::regnamespace, 'public'::regnamespace) AND a.attnum > 0
        UNION ALL SELECT concat_ws(' ', 'comment', objoid::regclass, objsubid, description)
        FROM pg_description WHERE classoid = 'pg_class'::regclass AND objoid >= 16384
        UNION ALL SELECT concat_ws(' ', 'right', c.oid::regclass, r.grantee, r.privilege_type, r.is_grantable)
        FROM pg_class AS c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS r
        WHERE c.relnamespace IN ('dashi'::regnamespace, 'public'::regnamespace) AND c.relkind = 'r'
        ) AS of_all ORDER BY line";
    lines.extend(sqlx::query_scalar::<_, String>(own).fetch_all(raw).await.unwrap());
    lines.retain(|line| !line.contains("dashi_gen_"));
    lines
}

async fn everything_of_umamis_stays_as_it_was(version: UmamiVersion) {
    let database = TestDatabase::create().await;
    let mut raw = database.connect().await;
    let id = Uuid::now_v7().simple();
    let (owner, other, reader) = (format!("umami_{id}"), format!("dashi_{id}"), format!("reader_{id}"));
    let name = database.name();
    // Umami owns its tables; Dashi's role is a member of its role.
    run(
        &mut raw,
        &format!(
            "CREATE ROLE {owner}; CREATE ROLE {other} LOGIN IN ROLE {owner}; CREATE ROLE {reader};
             GRANT CREATE ON DATABASE {name} TO {owner}; GRANT ALL ON SCHEMA public TO {owner}; SET ROLE {owner}"
        ),
    )
    .await;
    version.install(&mut raw).await;
    run(
        &mut raw,
        &format!(
            "GRANT SELECT ON website_event, session TO {reader} WITH GRANT OPTION;
             GRANT SELECT (website_id, created_at), UPDATE (tag) ON website_event TO {reader};
             GRANT SELECT ON revenue TO PUBLIC; REVOKE DELETE ON session_data FROM {owner};
             CREATE INDEX \"an \"\" ON index\" ON website_event (lower(url_path), created_at DESC) WHERE tag IS NOT NULL;
             COMMENT ON INDEX \"an \"\" ON index\" IS 'it''s mine'; COMMENT ON TABLE session IS 'people; \\ more';
             COMMENT ON COLUMN session.city IS 'where'; CREATE INDEX ON session USING hash (city);
             ALTER TABLE website_event SET (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.01);
             ALTER TABLE website_event ALTER tag SET STATISTICS 300, ALTER url_path SET (n_distinct = 50);
             ALTER TABLE website_event ALTER page_title SET STORAGE EXTERNAL;
             ALTER TABLE session ADD CONSTRAINT sane CHECK (created_at > '1970-01-02'); RESET ROLE;
             INSERT INTO website (website_id, name) VALUES ('{id}', 'mine')"
        ),
    )
    .await;
    let (_, rest) = database.url().split_once('@').unwrap();
    let store = open_postgres(&format!("postgres://{other}@{rest}"));
    store.migrate().await.unwrap();
    let before = everything(&mut raw).await;
    let records = Log(vec![page_views([1, 2]), page_views([3])]);
    let held = claim(&store, P0).await;
    for offset in 0..2 {
        store.commit(&held, at(offset), at(offset + 1), &records.0[offset as usize]).await.unwrap();
    }
    store.begin_generation(2, "").await.unwrap();
    assert_eq!(everything(&mut raw).await, before);
    let generation = store.open_generation(2).await.unwrap();
    records.catch_up(&generation, &[(log(), P0, at(2))]).await.unwrap();
    store.finish_generation(2, |_| ()).await.unwrap();
    assert_eq!(everything(&mut raw).await, before);
    for number in [2, 1, 2] {
        let swap: &Store = &store;
        let generation = swap.open_generation(number).await.unwrap();
        let swapped = swap
            .swap(number, Foreign::Refuse, async |targets| records.catch_up(&generation, targets).await)
            .await;
        swapped.unwrap();
        generation.close().await;
        pretty(&everything(&mut raw).await, &before);
        let websites: Vec<String> =
            sqlx::query_scalar("SELECT name::text FROM website").fetch_all(&mut raw).await.unwrap();
        assert_eq!(websites, ["mine"]);
        // The reader's right is of use, and the plan takes the index that somebody made.
        run(&mut raw, &format!("SET ROLE {reader}; SELECT count(*) FROM website_event; RESET ROLE")).await;
    }
    store.drop_generation(1).await.unwrap();
    generation.close().await;
    store.close().await;
    pretty(&everything(&mut raw).await, &before);
    let schemas: Vec<String> =
        sqlx::query_scalar("SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'dashi%'")
            .fetch_all(&mut raw)
            .await
            .unwrap();
    assert_eq!(schemas, ["dashi"]);
    run(&mut raw, &format!("DROP OWNED BY {other}, {owner}, {reader}; DROP ROLE {other}, {owner}, {reader}"))
        .await;
    raw.close().await.unwrap();
}

/// Shows the lines that differ, of thousands.
fn pretty(after: &[String], before: &[String]) {
    let gone: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
    let new: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
    assert!(
        gone.is_empty() && new.is_empty() && after.len() == before.len(),
        "gone: {gone:#?}\nnew: {new:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_leave_all_else_of_postgres_databases_as_it_was() {
    for version in [UmamiVersion::V3_0, UmamiVersion::V3_1, UmamiVersion::V3_4] {
        everything_of_umamis_stays_as_it_was(version).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_while_a_generation_of_postgres_is_built_makes_it_write_nothing_elsewhere() {
    let fixture = StoreFixture::made_by(UmamiVersion::V3_1).await;
    let store = fixture.migrated().await;
    store.begin_generation(2, "").await.unwrap();
    let mut raw = fixture.raw().await;
    for version in [UmamiVersion::V3_2, UmamiVersion::V3_3] {
        raw.execute(version.migrations()).await;
    }
    let generation = store.open_generation(2).await.unwrap();
    // It names its session, which goes into `session_link` where there is one.
    let records = Log(vec![named_page_view(1)]);
    records.catch_up(&generation, &[(log(), P0, at(1))]).await.unwrap();
    assert_eq!(raw.count("dashi_gen_2.website_event").await, 1);
    for table in ["session_link", "website_event", "session", "dashi.checkpoint", "dashi.profile_link"] {
        assert_eq!(raw.count(table).await, 0, "{table} is a live one");
    }
    match store.finish_generation(2, |_| ()).await {
        Err(GenerationError::Changed { number: 2, differences }) => {
            assert!(differences.iter().any(|it| it == "it has no table session_link"), "{differences:?}");
        }
        other => panic!("{other:?}"),
    }
}

/// The names of a table's indexes in the second generation.
async fn indexes(raw: &mut Raw, table: &str) -> Vec<String> {
    raw.strings(&format!(
        "SELECT indexname::text FROM pg_indexes WHERE schemaname = 'dashi_gen_2' AND tablename = '{table}' ORDER BY 1"
    ))
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_copied_into_a_generation_of_postgres_until_some_are_there_already() {
    let fixture = StoreFixture::postgres().await;
    let store = fixture.migrated().await;
    let with_leaf = |n: u128, leaf: u128| Changes {
        event_data: vec![EventDataRow {
            event_data_id: id(leaf),
            website_id: id(WEBSITE),
            website_event_id: id(n),
            data_key: "key".to_owned(),
            value: property(1, 1, "key", "value").value,
            created_at_ms: 1_777_623_630_123,
        }],
        ..page_views([n])
    };
    let (first, second) = (with_leaf(41, 900), with_leaf(42, 901));
    // As of another store, some of whose leaves came before with another event.
    let imported = Changes { has_imported: true, ..with_leaf(43, 900) };
    let third = with_leaf(44, 902);
    let begun = store.begin_generation(2, "").await.unwrap();
    let generation = store.open_generation(begun.number).await.unwrap();
    let mut raw = fixture.raw().await;
    assert_eq!(indexes(&mut raw, "event_data").await, Vec::<String>::new());
    assert_eq!(indexes(&mut raw, "website_event").await, ["website_event_pkey"]);
    let claim_of_it = generation.claim_for_replay(&log(), P0, "a replay").await.unwrap();
    for (offset, changes) in [(0, &first), (1, &second)] {
        generation.commit(&claim_of_it, at(offset), at(offset + 1), changes).await.unwrap();
    }
    // Events that are there already are named, nothing else is written, and no key is needed for it.
    let (mut again, new) = (first.clone(), with_leaf(45, 903));
    again.events.extend(new.events);
    again.event_data.extend(new.event_data);
    match generation.commit(&claim_of_it, at(2), at(3), &again).await {
        Err(CommitError::Duplicates(ids)) => assert_eq!(ids, [id(41)]),
        other => panic!("{other:?}"),
    }
    assert_eq!(raw.count("dashi_gen_2.event_data").await, 2);
    // So is an identify of such an id, which lies in another table.
    let identify = IdentifyRow {
        event_id: id(41),
        website_id: id(WEBSITE),
        session_id: id(7),
        distinct_id: None,
        created_at_ms: 1_777_623_630_123,
    };
    let identify = Changes { identifies: vec![identify], events: Vec::new(), ..first.clone() };
    match generation.commit(&claim_of_it, at(2), at(3), &identify).await {
        Err(CommitError::Duplicates(ids)) => assert_eq!(ids, [id(41)]),
        other => panic!("{other:?}"),
    }
    assert_eq!(indexes(&mut raw, "event_data").await, Vec::<String>::new());
    // Imported leaves may be there although their event is new.
    for (offset, changes) in [(2, &imported), (3, &third)] {
        generation.commit(&claim_of_it, at(offset), at(offset + 1), changes).await.unwrap();
    }
    assert_eq!(indexes(&mut raw, "event_data").await, ["event_data_pkey"]);
    let live_claim = claim(&store, P0).await;
    for (offset, changes) in [(0, &first), (1, &second), (2, &imported), (3, &third)] {
        store.commit(&live_claim, at(offset), at(offset + 1), changes).await.unwrap();
    }
    let compared = compare(&store, &generation).await.unwrap();
    assert!(compared.equal, "{compared:#?}");
    // A row that the database refuses is refused alone, whichever way it goes.
    let mut refused = with_leaf(46, 904);
    refused.event_data[0].created_at_ms = i64::MAX;
    match generation.commit(&claim_of_it, at(4), at(5), &refused).await {
        Err(CommitError::Refused { .. }) => {}
        other => panic!("{other:?}"),
    }
    store.finish_generation(2, |_| ()).await.unwrap();
    let (made, live) = (
        indexes(&mut raw, "event_data").await,
        raw.strings("SELECT indexname::text FROM pg_indexes WHERE schemaname = 'public' AND tablename = 'event_data' ORDER BY 1").await,
    );
    assert_eq!(made, live);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_cannot_be_copied_into_a_generation_of_postgres_are_inserted() {
    let fixture = StoreFixture::postgres().await;
    let store = fixture.migrated().await;
    let mut raw = fixture.raw().await;
    // A type that takes the same values by `INSERT`, and is another one in binary format.
    raw.execute("ALTER TABLE event_data ALTER COLUMN data_type TYPE bigint").await;
    store.begin_generation(2, "").await.unwrap();
    let generation = store.open_generation(2).await.unwrap();
    let replaying = generation.claim_for_replay(&log(), P0, "a replay").await.unwrap();
    let live = claim(&store, P0).await;
    let changes = full_changes();
    generation.commit(&replaying, at(0), at(1), &changes).await.unwrap();
    store.commit(&live, at(0), at(1), &changes).await.unwrap();
    assert_eq!(indexes(&mut raw, "event_data").await, ["event_data_pkey"]);
    let compared = compare(&store, &generation).await.unwrap();
    assert!(compared.equal, "{compared:#?}");
}

/// One that an older release made is brought up to date with the live tables, so that it can take their place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_of_an_older_release_is_brought_up_to_date_in_postgres() {
    let fixture = StoreFixture::made_by(UmamiVersion::V3_1).await;
    let records = named("first", 20);
    let store = fixture.migrated().await;
    let claim = claim(&store, P0).await;
    store.commit(&claim, at(0), at(1), &records.0[0]).await.unwrap();
    let begun = store.begin_generation(2, "").await.unwrap();
    let Raw::Postgres(mut raw) = fixture.raw().await else { panic!("a store of PostgreSQL") };
    let place: String = sqlx::query_scalar("SELECT place FROM dashi.generation WHERE number = 2")
        .fetch_one(&mut raw)
        .await
        .unwrap();
    for schema in ["dashi", &place] {
        let back = "DROP COLUMN tail_from, DROP COLUMN tail_to, DROP COLUMN tail_applied, DROP COLUMN tail_fingerprint";
        run(&mut raw, &format!("ALTER TABLE \"{schema}\".checkpoint {back}")).await;
    }
    run(&mut raw, "DROP TABLE dashi.tail_sessions; DELETE FROM dashi.migration WHERE version = 9").await;
    let store = fixture.open().await;
    store.migrate().await.unwrap();
    let generation = store.open_generation(begun.number).await.unwrap();
    records.catch_up(&generation, &[(log(), P0, at(1))]).await.unwrap();
    store.finish_generation(begun.number, |_| ()).await.unwrap();
    let swapped = store
        .swap(begun.number, Foreign::Refuse, async |targets| records.catch_up(&generation, targets).await)
        .await
        .unwrap();
    assert_eq!(swapped.old, 1);
    generation.close().await;
}
