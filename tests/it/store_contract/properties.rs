//! Properties of sessions, beside those that Umami writes.

use dashi_domain::decimal::Decimal;
use dashi_domain::flatten::DataType;
use dashi_domain::fold::Changes;
use dashi_domain::rows::{DataValue, SessionDataRow};
use integration_tests::eventually;

use super::fixture::{NOON_MS, P0, Raw, SOON, StoreFixture, WEBSITE, at, claim, commit, id, property};
use super::rows::{Cells, assert_rows, value_cells};

pub(super) fn property_cells(row: &SessionDataRow) -> Cells {
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

pub(super) async fn a_property_of_a_session_is_its_newest_value(fixture: StoreFixture) {
    let store = fixture.migrated().await;
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
    assert_rows(&mut fixture.raw().await, "session_data", &cells).await;
    // Back to a text: the number goes.
    commit(&store, &with(vec![property(1, 7, "a", "3")])).await;
    let cells: Vec<_> = [property(1, 7, "a", "3")].iter().chain(&expected[1..]).map(property_cells).collect();
    assert_rows(&mut fixture.raw().await, "session_data", &cells).await;
}

pub(super) async fn an_imported_property_replaces_an_older_one_only(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let of = |n, key, value, after_ms| SessionDataRow {
        created_at_ms: NOON_MS + after_ms,
        ..property(n, 7, key, value)
    };
    let imported = |rows| Changes { imported_session_data: rows, ..Changes::default() };
    let live = vec![of(1, "a", "live", 100), of(2, "b", "live", 100)];
    commit(&store, &Changes { session_data: live, ..Changes::default() }).await;
    let history = vec![of(11, "a", "older", 50), of(12, "b", "newer", 150), of(13, "c", "new", 10)];
    commit(&store, &imported(history)).await;
    commit(&store, &imported(vec![of(23, "c", "as old", 10)])).await;
    let expected = [of(1, "a", "live", 100), of(2, "b", "newer", 150), of(13, "c", "new", 10)];
    let cells: Vec<_> = expected.iter().map(property_cells).collect();
    assert_rows(&mut fixture.raw().await, "session_data", &cells).await;
}

pub(super) fn umamis_property(n: u128, session: u128, key: &str) -> String {
    format!(
        "INSERT INTO session_data (session_data_id, website_id, session_id, data_key, data_type, string_value,
             created_at) VALUES ('{}', '{}', '{}', '{key}', 1, 'umami''s', {{now}})",
        id(n),
        id(WEBSITE),
        id(session)
    )
}

pub(super) async fn a_property_that_umami_wrote_is_updated_in_place(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let mut raw = fixture.raw().await;
    let now = if matches!(raw, Raw::Postgres(_)) { "now()" } else { "1" };
    raw.execute(&umamis_property(900, 7, "a").replace("{now}", now)).await;
    let with = |session_data| Changes { session_data, ..Changes::default() };
    commit(&store, &with(vec![property(1, 7, "a", "ours"), property(2, 7, "b", "ours")])).await;
    let updated = SessionDataRow { session_data_id: id(900), ..property(1, 7, "a", "ours") };
    let cells = [property_cells(&property(2, 7, "b", "ours")), property_cells(&updated)];
    assert_rows(&mut raw, "session_data", &cells).await;
}

/// While both collect, an insert of Umami's that is not committed yet makes ours wait, and then an update.
pub(super) async fn a_property_that_umami_writes_at_the_same_time_is_no_conflict(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let (mut umami, mut onlooker) = (fixture.raw().await, fixture.raw().await);
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
pub(super) async fn doubled_properties_of_a_session_are_updated_alike(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let mut raw = fixture.raw().await;
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
