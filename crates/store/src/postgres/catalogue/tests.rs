//! Tests of [`super`].

use std::borrow::Cow;

use dashi_domain::flatten::DataType;
use dashi_domain::fold::Changes;
use dashi_domain::ids::session_data_id;
use dashi_domain::rows::{
    DataValue, EventRow, EventType, RevenueRow, SessionAttributes, SessionDataRow, SessionRow,
};
use uuid::Uuid;

use super::*;

/// The tables of 3.1, after `edit`.
fn catalogue(unique_properties: bool, edit: impl Fn(&str, &str) -> Option<Option<usize>>) -> Catalogue {
    let written = tables::of_umami().filter(|table| table.owner == Owner::Umami);
    let written =
        written.flat_map(|table| table.columns.iter().map(|column| (table.name, column.name, column.width)));
    let read_only = [WEBSITE, LINK, PIXEL]
        .into_iter()
        .flat_map(|(table, columns)| columns.iter().map(move |column| (table, *column, None)));
    let columns = read_only.chain(written).filter_map(|(table, column, width)| {
        let width = edit(table, column).unwrap_or(Some(width.unwrap_or(usize::MAX)))?;
        Some((table.to_owned(), column.to_owned(), Some(width).filter(|width| *width < usize::MAX)))
    });
    Catalogue::new(columns, unique_properties)
}

fn event(id: u128, event_type: EventType) -> EventRow {
    EventRow {
        event_id: Uuid::from_u128(id),
        website_id: Uuid::from_u128(1),
        session_id: Uuid::from_u128(2),
        visit_id: Uuid::from_u128(3),
        created_at_ms: 4,
        url_path: "/ääää".to_owned(),
        url_query: None,
        campaign: Default::default(),
        referrer_path: None,
        referrer_query: None,
        referrer_domain: None,
        page_title: Some("title".to_owned()),
        hostname: None,
        event_type,
        event_name: None,
        tag: None,
        vitals: Default::default(),
    }
}

/// The tables of 3.1 with these columns beside them.
fn with(more: &[(&str, &str)]) -> Catalogue {
    let mut catalogue = catalogue(false, |_, _| None);
    for (table, column) in more {
        let columns = catalogue.tables.entry((*table).to_owned()).or_default();
        columns.insert((*column).to_owned(), None);
    }
    catalogue
}

#[test]
fn versions_are_recognised_by_what_came_with_them() {
    let release = |catalogue: &Catalogue| catalogue.recognised().release;
    let without_cls = catalogue(false, |_, column| (column == "cls").then_some(None));
    assert!(without_cls.check().is_ok() && !without_cls.has_vitals());
    assert_eq!(release(&without_cls), Release::V3_0);
    let (link, heatmap) = (("session_link", "session_id"), ("heatmap_event", "heatmap_event_id"));
    for (more, expected) in [
        (&[][..], Release::V3_1),
        (&[heatmap], Release::V3_2),
        (&[("website", "recorder_enabled")], Release::V3_2),
        (&[heatmap, link], Release::V3_3),
        (&[link], Release::V3_3),
        (&[heatmap, link, ("annotation", "annotation_id")], Release::V3_4),
        (&[heatmap, link, ("api_key", "api_key_id")], Release::V3_4),
        // Somebody else's tables of the same names.
        (&[link, ("annotation", "id"), ("api_key", "id")], Release::V3_3),
        (&[("annotation", "annotation_id")], Release::V3_1),
    ] {
        assert_eq!(release(&with(more)), expected, "{more:?}");
    }
    let mut of_migrations = with(&[link]);
    of_migrations.ran_3_4 = true;
    assert_eq!(release(&of_migrations), Release::V3_4);
    // An index that somebody made is no other version.
    assert_eq!(release(&catalogue(true, |_, _| None)), Release::V3_1);
}

#[test]
fn what_3_0_has_must_be_there_and_what_is_missing_is_named() {
    let old = catalogue(false, |table, column| {
        (table == "link" || (table, column) == ("website_event", "tag")).then_some(None)
    });
    let error = old.check().expect_err("too old").to_string();
    assert!(error.contains("the column website_event.tag, the table link"), "{error}");
    assert!(error.contains("Umami 3.0"), "{error}");
}

#[test]
fn texts_are_cut_to_narrower_columns_only() {
    let narrow = catalogue(false, |_, column| match column {
        "url_path" => Some(Some(3)),
        "page_title" => Some(Some(9_000)),
        "browser" | "currency" => Some(Some(2)),
        "data_key" => Some(Some(1)),
        _ => None,
    });
    let property = |id, key: &str, created_at_ms| SessionDataRow {
        session_data_id: Uuid::from_u128(id),
        website_id: Uuid::from_u128(1),
        session_id: Uuid::from_u128(2),
        data_key: key.to_owned(),
        value: DataValue {
            data_type: DataType::String,
            string_value: Some("value".to_owned()),
            number_value: None,
            date_value_ms: None,
        },
        distinct_id: None,
        created_at_ms,
    };
    let changes = Changes {
        sessions: vec![SessionRow {
            session_id: Uuid::from_u128(2),
            website_id: Uuid::from_u128(1),
            attributes: SessionAttributes { browser: Some("chrome".to_owned()), ..Default::default() },
            reported: vec![SessionAttributes { browser: Some("chromium".to_owned()), ..Default::default() }],
            created_at_ms: 4,
        }],
        events: vec![event(10, EventType::PageView), event(11, EventType::Performance)],
        session_data: vec![property(20, "aa", 5), property(21, "ab", 7), property(22, "b", 6)],
        revenue: vec![RevenueRow {
            revenue_id: Uuid::from_u128(30),
            website_id: Uuid::from_u128(1),
            session_id: Uuid::from_u128(2),
            event_id: Uuid::from_u128(10),
            event_name: String::new(),
            currency: "EUR".to_owned(),
            revenue: dashi_domain::decimal::Decimal::round(1.0, 4).expect("a decimal"),
            created_at_ms: 4,
        }],
        ..Changes::default()
    };
    let fitted = narrow.fit(&changes);
    assert_eq!((fitted.events[0].url_path.as_str(), fitted.events.len()), ("/ää", 2));
    assert_eq!(fitted.events[0].page_title.as_deref(), Some("title"));
    assert_eq!(fitted.sessions[0].attributes.browser.as_deref(), Some("ch"));
    assert_eq!(fitted.sessions[0].reported[0].browser.as_deref(), Some("ch"));
    assert_eq!(fitted.revenue[0].currency, "EU");
    let keys: Vec<_> =
        fitted.session_data.iter().map(|row| (row.data_key.as_str(), row.created_at_ms)).collect();
    assert_eq!(keys, [("a", 7), ("b", 6)], "of two keys that became one the newest stays");
    let ids: Vec<_> = fitted.session_data.iter().map(|row| row.session_data_id).collect();
    let of_keys = ["a", "b"].map(|key| session_data_id(Uuid::from_u128(2), key));
    assert_eq!(ids, of_keys, "an id is that of the key as it is stored");
    assert!(matches!(catalogue(true, |_, _| None).fit(&changes), Cow::Borrowed(_)));
}

#[test]
fn without_columns_for_them_vitals_leave_no_event_but_an_identify() {
    let without = catalogue(false, |_, column| (column == "lcp").then_some(None));
    let changes = Changes {
        events: vec![event(10, EventType::PageView), event(11, EventType::Performance)],
        ..Changes::default()
    };
    let fitted = without.fit(&changes);
    assert_eq!(fitted.events, [event(10, EventType::PageView)]);
    let applied: Vec<_> = fitted.identifies.iter().map(|row| (row.event_id, row.created_at_ms)).collect();
    assert_eq!(applied, [(Uuid::from_u128(11), 4)]);
}
