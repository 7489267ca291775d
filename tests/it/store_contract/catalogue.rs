//! Migrations and Umami's own tables, which may change while Dashi runs.

use std::time::Duration;

use dashi_domain::fold::Changes;
use dashi_domain::rows::SessionLinkRow;
use dashi_store::{CommitError, SqliteSettings, SqliteStore, Store};
use integration_tests::UmamiVersion;

use super::fixture::{
    NOON_MS, P0, Raw, StoreFixture, WEBSITE, at, claim, commit, id, open_postgres, page_views, property,
};

pub(super) async fn migrating_again_and_at_once_changes_nothing(fixture: StoreFixture) {
    let mut migrations = Vec::new();
    // Opened at once, too: for SQLite that makes the file.
    let opened: Vec<_> = match &fixture {
        StoreFixture::Sqlite(directory) => {
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
        StoreFixture::Postgres(database) => (0..5).map(|_| open_postgres(database.url())).collect(),
    };
    for store in &opened {
        let store = store.clone();
        migrations.push(tokio::spawn(async move { store.migrate().await }));
    }
    for migration in migrations {
        migration.await.unwrap().unwrap();
    }
    commit(&opened[0], &page_views([1])).await;
    let before = fixture.dump().await;
    for store in &opened {
        store.migrate().await.unwrap();
    }
    fixture.open().await.migrate().await.unwrap();
    assert_eq!(fixture.dump().await, before);
}

/// A page view of a session that says who it is with its own number.
pub(super) fn named_page_view(n: u128) -> Changes {
    let link = SessionLinkRow {
        website_id: id(WEBSITE),
        session_id: id(500_000),
        distinct_id: n.to_string(),
        created_at_ms: NOON_MS,
    };
    Changes { session_links: vec![link], ..page_views([n]) }
}

pub(super) async fn an_upgrade_is_noticed_with_the_next_claim(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let mut raw = fixture.raw().await;
    commit(&store, &named_page_view(1)).await;
    raw.execute(UmamiVersion::V3_3.migrations()).await;
    commit(&store, &named_page_view(2)).await;
    assert_eq!(raw.strings("SELECT distinct_id FROM session_link").await, ["2"]);
    assert_eq!(raw.strings("SELECT distinct_id FROM session").await, ["2"]);
}

pub(super) async fn an_upgrade_is_noticed_when_the_catalogue_is_old(fixture: StoreFixture) {
    let mut raw = fixture.raw().await;
    let Store::Postgres(store) = fixture.migrated().await else { panic!("a file has no catalogue") };
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
pub(super) async fn tables_that_changed_are_written_as_they_are_now(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let mut raw = fixture.raw().await;
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

/// The catalogue's content about everything outside the schema `dashi`.
pub(super) async fn catalogue(raw: &mut Raw) -> Vec<String> {
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

pub(super) async fn nothing_but_the_schema_dashi_is_made(fixture: StoreFixture) {
    let mut raw = fixture.raw().await;
    let (catalogue_before, rows_before) = (catalogue(&mut raw).await, fixture.dump().await);
    assert!(catalogue_before.iter().any(|line| line.contains("_prisma_migrations")));
    let store = fixture.migrated().await;
    store.migrate().await.unwrap();
    assert_eq!(catalogue(&mut raw).await, catalogue_before);
    let rows = fixture.dump().await;
    for (table, before) in rows_before {
        assert_eq!(rows[&table], before, "{table}");
    }
    assert!(rows.keys().any(|table| table.starts_with("dashi.")));
}
