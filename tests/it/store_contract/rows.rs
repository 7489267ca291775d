//! Rows: every column as it is written, and rows that a database refuses.

use std::collections::BTreeSet;

use dashi_domain::decimal::Decimal;
use dashi_domain::flatten::DataType;
use dashi_domain::fold::{Changes, Outcomes};
use dashi_domain::glance::HourKey;
use dashi_domain::missing::MissingCause;
use dashi_domain::position::{Checkpoint, Offset};
use dashi_domain::profile::{LinkSource, ProfileLink, ProfileLinkKind, Stamp, TraitSend};
use dashi_domain::rows::{
    AppliedRow, Campaign, ChunkEvent, ChunkRow, DataValue, DeadLetter, EventDataRow, EventRow, EventType,
    HeatmapKind, HeatmapRow, IdentifyRow, RevenueRow, SessionAttributes, SessionDataRow, SessionRow, Vitals,
};
use dashi_store::{CommitError, compare};

use super::fixture::{
    NOON_MS, P0, Raw, StoreFixture, WEBSITE, at, claim, commit, event, id, page_views, session,
};
use super::outcomes::missing;

/// Rows with every column set, with none set that need not be, and with values at the limits.
pub(super) fn full_changes() -> Changes {
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
    let value = |fixture: usize| {
        let (data_type, string_value, number_value, date_value_ms) = values[fixture].clone();
        DataValue { data_type, string_value, number_value, date_value_ms }
    };
    let keys = |fixture: usize| if fixture == 0 { wide('k', 500) } else { format!("key.{fixture}") };
    Changes {
        sessions: vec![SessionRow { attributes, ..session(11) }, session(12)],
        event_data: (0..values.len())
            .map(|fixture| EventDataRow {
                event_data_id: id(100 + fixture as u128),
                website_id: id(WEBSITE),
                website_event_id: id(1),
                data_key: keys(fixture),
                value: value(fixture),
                created_at_ms: NOON_MS,
            })
            .collect(),
        session_links: Vec::new(),
        names_sessions: false,
        has_imported: false,
        imported_session_data: Vec::new(),
        imported_session_links: Vec::new(),
        erasure: None,
        command: None,
        barrier: None,
        tried: None,
        skipped: 0,
        given_up: Vec::new(),
        link_sources: vec![LinkSource {
            website_id: id(WEBSITE),
            by_session: id(11),
            session_id: id(15),
            distinct_id: "Łukasz %_".to_owned(),
            first_ms: NOON_MS,
        }],
        hours: [(
            HourKey { hour_ms: 0, source_id: id(WEBSITE) },
            Outcomes { applied: 3, duplicate: 2, dead: 1 },
        )]
        .into(),
        session_data: (0..values.len())
            .map(|fixture| SessionDataRow {
                session_data_id: id(200 + fixture as u128),
                website_id: id(WEBSITE),
                session_id: id(11),
                data_key: keys(fixture),
                value: value(fixture),
                distinct_id: (fixture % 2 == 0).then(|| wide('d', 50)),
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
            .map(|fixture| TraitSend {
                website_id: id(WEBSITE),
                session_id: id(11),
                device: id(15),
                distinct_id: "Łukasz %_".to_owned(),
                key: keys(fixture),
                value: (fixture != 1).then(|| value(fixture)),
                stamp: Stamp { received_at_ms: NOON_MS, event_id: id(400) },
                base: (fixture == 2).then_some(Stamp { received_at_ms: 7, event_id: id(399) }),
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
            appended_at_ms: NOON_MS,
            reason: "it is \0 no é".to_owned(),
            value: vec![0, 255, b'{', 10],
            parking: Default::default(),
        }],
        outcomes: Outcomes { applied: events.len() as u64 + 7, duplicate: 3, dead: 1 },
        missing: vec![missing(12, 13, MissingCause::Gap)],
        markers: 1,
        fingerprint: Some(i64::MIN),
        events,
    }
}

pub(super) fn applied_row(n: u128) -> AppliedRow {
    AppliedRow {
        record_id: id(n),
        record_type: "heatmap".to_owned(),
        website_id: id(WEBSITE),
        session_id: id(11),
        received_at_ms: NOON_MS,
    }
}

/// A row by column; times in microseconds.
pub(super) type Cells = Vec<(&'static str, Option<String>)>;

pub(super) fn event_cells(row: &EventRow) -> Cells {
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

pub(super) fn session_cells(row: &SessionRow) -> Cells {
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

pub(super) fn value_cells(key: &str, value: &DataValue) -> Cells {
    vec![
        ("data_key", Some(key.to_owned())),
        ("data_type", Some(value.data_type.code().to_string())),
        ("string_value", value.string_value.clone()),
        ("number_value", value.number_value.map(|number| number.to_string())),
        ("date_value", value.date_value_ms.map(|ms| (ms * 1_000).to_string())),
    ]
}

pub(super) async fn assert_rows(raw: &mut Raw, table: &str, expected: &[Cells]) {
    for (fixture, (column, _)) in expected[0].iter().enumerate() {
        let found = raw.column(table, column, expected[0][0].0).await;
        let expected: Vec<_> = expected.iter().map(|cells| cells[fixture].1.clone()).collect();
        assert_eq!(found, expected, "{table}.{column}");
    }
}

pub(super) async fn every_column_is_written_as_it_is(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let changes = full_changes();
    commit(&store, &changes).await;
    let mut raw = fixture.raw().await;
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
    let of_recording = |(fixture, row): (usize, &ChunkRow)| {
        vec![
            ("replay_id", Some(row.replay_id.to_string())),
            ("website_id", Some(row.website_id.to_string())),
            ("session_id", Some(row.session_id.to_string())),
            ("visit_id", Some(row.visit_id.to_string())),
            ("chunk_index", Some((row.chunk_index_min + i32::from(fixture == 1)).to_string())),
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

    let other = fixture.of_the_other_backend().await;
    let other_store = other.migrated().await;
    commit(&other_store, &changes).await;
    let compared = compare(&store, &other_store).await.unwrap();
    assert!(compared.equal, "{compared:#?}");
    for table in compared.tables {
        let heatmaps = table.table == "heatmap_event";
        // An erasure is committed alone.
        let is_erasure = table.table.starts_with("erasure");
        assert!(heatmaps || is_erasure || table.rows[0] > 0, "{} has no row to compare", table.table);
        assert_eq!(table.checksums[0], table.checksums[1]);
    }
}

/// A click of a recording, whose chunk has to go around another one's index, and a click and a scroll that were posted.
/// A value for which a version's table has no column is left out; so are all values where there is no table.
pub(super) async fn heatmaps_are_written_in_the_columns_that_there_are(fixture: StoreFixture) {
    let store = fixture.migrated().await;
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
    let mut raw = fixture.raw().await;
    let columns = raw.columns("heatmap_event").await;
    if columns.is_empty() {
        assert!(matches!(fixture, StoreFixture::Postgres(_)));
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
            ("replay_event_index", row.recorded.map(|fixture| fixture.event_index.to_string())),
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
pub(super) async fn many_rows_go_through_as_one(fixture: StoreFixture) {
    let store = fixture.migrated().await;
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
    let mut raw = fixture.raw().await;
    for table in ["website_event", "session", "event_data"] {
        assert_eq!(raw.count(table).await, 3_000);
    }
}

pub(super) async fn equal_stores_compare_equal_and_others_are_told_apart(fixture: StoreFixture) {
    let (fixture, store) = fixture.migrated_with(&full_changes()).await;
    let (_other_place, other) = fixture.of_the_other_backend().await.migrated_with(&full_changes()).await;
    for (a, b) in [(&store, &store), (&store, &other), (&other, &store)] {
        let compared = compare(a, b).await.unwrap();
        assert!(compared.equal, "{compared:#?}");
        assert!(compared.tables.iter().all(|table| table.equal && table.differences.is_empty()));
    }
    // One event differs in a column, one is only here, seven are only there.
    let mut raw = fixture.raw().await;
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
    assert_eq!(events.differences.len(), 5, "only the first few are reported");
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

pub(super) async fn rows_that_do_not_fit_are_refused_and_nothing_is_written(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let claim = claim(&store, P0).await;
    store.commit(&claim, at(0), at(1), &page_views([1])).await.unwrap();
    let before = fixture.dump().await;
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
        assert_eq!(fixture.dump().await, before);
    }
    store.commit(&claim, at(1), at(2), &with(&|_| {})).await.unwrap();
}

pub(super) async fn rows_that_a_constraint_refuses_are_told_as_such(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let claim = claim(&store, P0).await;
    // The file takes texts of any length, so the refusal is made here.
    fixture
        .raw()
        .await
        .execute(
            "CREATE TRIGGER too_long BEFORE INSERT ON revenue WHEN length(NEW.currency) > 10
             BEGIN SELECT RAISE(ABORT, 'too long'); END",
        )
        .await;
    let before = fixture.dump().await;
    let mut changes = full_changes();
    changes.revenue[0].currency = "EURO-EURO-EURO".to_owned();
    let refused = store.commit(&claim, at(0), at(1), &changes).await;
    assert!(matches!(refused, Err(CommitError::Refused { partition: P0, .. })), "{refused:?}");
    assert_eq!(fixture.dump().await, before);
    store.commit(&claim, at(0), at(1), &full_changes()).await.unwrap();
}
