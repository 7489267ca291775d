//! Websites, sessions and events one by one.

use integration_tests::setup::WEBSITE;
use integration_tests::{Setup, on_both_setups};
use serde_json::{Value, json};

use super::data::{Fixed, OTHER, fixed, three_days, time};

on_both_setups!(websites_sessions_and_events_are_shown_as_they_were_sent);

async fn websites_sessions_and_events_are_shown_as_they_were_sent(setup: Setup) {
    let fixed = fixed(setup, &[]).await;
    websites(&fixed).await;
    sessions(&fixed).await;
    one_session(&fixed).await;
    events(&fixed).await;
}

/// The values of these members, row by row.
fn columns(rows: &Value, names: &[&str]) -> Value {
    let rows = rows.as_array().unwrap_or_else(|| panic!("{rows}"));
    rows.iter().map(|row| names.iter().map(|name| row[name].clone()).collect::<Value>()).collect()
}

async fn websites(fixed: &Fixed) {
    let all = fixed.shown_at("/api/websites").await;
    assert_eq!(json!([all["count"], all["page"], all["pageSize"]]), json!([2, 1, 20]));
    assert_eq!(columns(&all["data"], &["id", "name"]), json!([[OTHER, "other"], [WEBSITE, "test"]]));
    let last = fixed.shown_at("/api/websites?pageSize=1&page=2").await;
    assert_eq!(json!([last["count"], last["page"], last["pageSize"]]), json!([2, 2, 1]));
    assert_eq!(columns(&last["data"], &["name"]), json!([["test"]]));
    let found = fixed.shown_at("/api/websites?search=OTH").await;
    assert_eq!(columns(&found["data"], &["name"]), json!([["other"]]));
    assert_eq!(found["count"], json!(1));
    let reversed = fixed.shown_at("/api/websites?orderBy=name&sortDescending=true").await;
    assert_eq!(columns(&reversed["data"], &["name"]), json!([["test"], ["other"]]));
    let one = fixed.shown("").await;
    assert_eq!(json!([one["id"], one["name"], one["deletedAt"]]), json!([WEBSITE, "test", null]));
    assert_eq!(&one, &last["data"][0]);
}

async fn sessions(fixed: &Fixed) {
    let days = three_days();
    let list = fixed.shown(&format!("/sessions?{days}")).await;
    assert_eq!(json!([list["count"], list["page"], list["pageSize"]]), json!([3, 1, 20]));
    let names = ["id", "country", "browser", "visits", "views", "events", "firstAt", "lastAt"];
    let (anna, bert, cleo) = (
        json!([fixed.anna, "DE", "chrome", 2, 3, 2, "2026-10-24T08:00:00.000Z", "2026-10-25T10:00:10.000Z"]),
        json!([fixed.bert, "GB", "firefox", 3, 5, 1, "2026-10-24T21:30:00.000Z", "2026-10-26T12:30:00.000Z"]),
        json!([fixed.cleo, "FR", "ios", 4, 5, 0, "2026-10-25T00:30:00.000Z", "2026-10-25T23:00:00.000Z"]),
    );
    assert_eq!(columns(&list["data"], &names), json!([bert, cleo, anna]));
    assert_eq!(columns(&list["data"], &["hostname", "distinctId"])[1], json!(["a.example", "ada"]));
    for (rest, expected) in [
        ("&pageSize=2&page=2", json!([anna])),
        ("&orderBy=visits", json!([cleo, bert, anna])),
        ("&orderBy=firstAt&sortDescending=false", json!([anna, bert, cleo])),
        ("&search=ADA", json!([cleo])),
        ("&country=neq.GB", json!([cleo, anna])),
        ("&event=buy&pageSize=7", json!([])),
    ] {
        let list = fixed.shown(&format!("/sessions?{days}{rest}")).await;
        if rest.contains("event") {
            // A session's numbers are those of the events that were asked for.
            assert_eq!(columns(&list["data"], &["id", "views", "events"]), json!([[fixed.anna, 0, 1]]));
            assert_eq!(list["count"], json!(1));
        } else {
            assert_eq!(columns(&list["data"], &names), expected, "{rest}");
        }
    }
    let value = |value: u64| json!({ "value": value });
    assert_eq!(
        fixed.shown(&format!("/sessions/stats?{days}")).await,
        json!({
            "pageviews": value(13), "visitors": value(3), "visits": value(9), "countries": value(3), "events": value(3),
        })
    );
}

async fn one_session(fixed: &Fixed) {
    let bert = fixed.shown(&format!("/sessions/{}", fixed.bert)).await;
    let expected = json!({
        "id": fixed.bert, "websiteId": WEBSITE, "distinctId": null, "browser": "firefox", "os": "Linux",
        "device": "desktop", "screen": "2560x1440", "language": "en-GB", "country": "GB", "region": null,
        "city": null, "firstAt": "2026-10-24T21:30:00.000Z", "lastAt": "2026-10-26T12:30:00.000Z", "visits": 3,
        "views": 5, "events": 1, "totaltime": 2_430,
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&bert[name], value, "{name}");
    }
    let cleo = fixed.shown(&format!("/sessions/{}", fixed.cleo)).await;
    assert_eq!(json!([cleo["person"], cleo["traits"]]), json!(["ada", { "age": 41.5, "plan": "free" }]));

    let days = three_days();
    let names = ["createdAt", "urlPath", "eventType", "eventName", "hasData"];
    let activity = fixed.shown(&format!("/sessions/{}/activity?{days}", fixed.anna)).await;
    assert_eq!(
        columns(&activity, &names),
        json!([
            ["2026-10-25T10:00:10.000Z", "/pricing", 5, null, 0],
            ["2026-10-25T10:00:00.000Z", "/pricing", 2, "buy", 1],
            ["2026-10-24T08:05:00.000Z", "/docs", 1, null, 0],
            ["2026-10-24T08:02:00.000Z", "/pricing", 2, "signup", 1],
            ["2026-10-24T08:01:40.000Z", "/pricing", 1, null, 0],
            ["2026-10-24T08:00:00.000Z", "/", 1, null, 0],
        ])
    );
    assert_eq!(
        columns(&activity, &["urlQuery", "referrerDomain"])[5],
        json!(["utm_source=news&a=1", "news.example"])
    );
    let monday = time("2026-10-26T00:00:00Z", "2026-10-27T00:00:00Z");
    assert_eq!(fixed.shown(&format!("/sessions/{}/activity?{monday}", fixed.anna)).await, json!([]));
    let properties = fixed.shown(&format!("/sessions/{}/properties", fixed.cleo)).await;
    assert_eq!(
        columns(
            &properties,
            &["dataKey", "dataType", "stringValue", "numberValue", "dateValue", "sessionId"]
        ),
        json!([["age", 2, "41.5000", 41.5, null, fixed.cleo], ["plan", 1, "free", null, null, fixed.cleo],])
    );
    assert_eq!(fixed.shown(&format!("/sessions/{}/properties", fixed.anna)).await, json!([]));
    let nobody = "33333333-3333-4333-8333-333333333333";
    for rest in ["", "/properties", &format!("/activity?{days}")] {
        assert_eq!(fixed.answer(&format!("/sessions/{nobody}{rest}")).await.status, 404, "{rest}");
        let elsewhere = format!("/api/websites/{OTHER}/sessions/{}{rest}", fixed.bert);
        assert_eq!(fixed.answer_of(&elsewhere).await.status, 404, "{rest}");
    }
}

async fn events(fixed: &Fixed) {
    let days = three_days();
    let list = fixed.shown(&format!("/events?{days}&pageSize=3")).await;
    assert_eq!(json!([list["count"], list["page"], list["pageSize"]]), json!([17, 1, 3]));
    let names = ["createdAt", "sessionId", "urlPath", "eventType", "eventName", "country", "hasData"];
    assert_eq!(
        columns(&list["data"], &names),
        json!([
            ["2026-10-26T12:30:00.000Z", fixed.bert, "/", 1, null, "GB", 0],
            ["2026-10-26T12:00:05.000Z", fixed.bert, "/docs", 2, "signup", "GB", 0],
            ["2026-10-26T12:00:00.000Z", fixed.bert, "/docs", 1, null, "GB", 0],
        ])
    );
    let custom = fixed.shown(&format!("/events?{days}&eventType=2&search=SIGN")).await;
    assert_eq!(custom["count"], json!(2));
    assert_eq!(columns(&custom["data"], &["eventName", "hasData"]), json!([["signup", 0], ["signup", 1]]));
    let last = fixed.shown(&format!("/events?{days}&pageSize=16&page=2")).await;
    assert_eq!(columns(&last["data"], &["pageTitle", "referrerPath", "tag"]), json!([["Home", "/x", null]]));

    let data = fixed.shown(&format!("/event-data/{}", fixed.buy)).await;
    assert_eq!(
        columns(
            &data,
            &["dataKey", "dataType", "stringValue", "numberValue", "eventName", "urlPath", "eventId"]
        ),
        json!([
            ["currency", 1, "EUR", null, "buy", "/pricing", fixed.buy],
            ["revenue", 2, "19.5000", 19.5, "buy", "/pricing", fixed.buy],
        ])
    );
    assert_eq!(columns(&data, &["sessionId"])[0], json!([fixed.anna]));
    let elsewhere = fixed.shown_at(&format!("/api/websites/{OTHER}/event-data/{}", fixed.buy)).await;
    assert_eq!(elsewhere, json!([]));
}
