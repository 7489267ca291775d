//! Sessions: how later events fill them, and which distinct ids they have.

use dashi_domain::fold::Changes;
use dashi_domain::rows::{SessionAttributes, SessionLinkRow, SessionRow};

use super::fixture::{NOON_MS, P0, StoreFixture, WEBSITE, at, claim, commit, id, page_views, session};
use super::rows::{assert_rows, session_cells};

pub(super) async fn a_session_keeps_what_it_has_and_gets_what_it_lacks(fixture: StoreFixture) {
    let store = fixture.migrated().await;
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
    last.sessions[0].add(nearer.clone());
    last.sessions[0].created_at_ms = 1;
    last.sessions[0].website_id = id(WEBSITE + 1);
    last.sessions.push(session(2));
    commit(&store, &last).await;

    let expected = SessionAttributes { distinct_id: first.distinct_id, ..nearer };
    let expected = SessionRow { attributes: expected, created_at_ms: NOON_MS + 5, ..session(1) };
    let cells = [session_cells(&expected), session_cells(&session(2))];
    assert_rows(&mut fixture.raw().await, "session", &cells).await;
}

/// The first identify makes the link, the last names the session; a session of another website is left alone.
pub(super) async fn identifies_link_sessions_and_name_them(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let mut raw = fixture.raw().await;
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
