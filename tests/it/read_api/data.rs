//! The fixed events, and requests with a key.

use hyper::Method;
use hyper::body::Bytes;
use integration_tests::http::{Answer, request};
use integration_tests::setup::{AGENT, WEBSITE};
use integration_tests::{Running, Setup};
use jiff::Timestamp;
use serde_json::{Value, json};

pub const KEY: &str = "the-only-key-of-this-test";
/// A website beside the first one, whose traffic shows nowhere else.
pub const OTHER: &str = "22222222-2222-4222-8222-222222222222";

const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
const IPHONE: &str = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) \
                      Version/17.4 Mobile/15E148 Safari/604.1";

/// Visitors: agent, address, country, language.
#[derive(Clone, Copy)]
pub struct Visitor(&'static str, &'static str, &'static str, &'static str);

/// Chrome in Germany.
pub const ANNA: Visitor = Visitor(AGENT, "203.0.113.1", "DE", "de-DE");
/// Firefox in Britain.
pub const BERT: Visitor = Visitor(FIREFOX, "203.0.113.2", "GB", "en-GB");
/// An iPhone in France, known as "ada".
pub const CLEO: Visitor = Visitor(IPHONE, "203.0.113.3", "FR", "fr-FR");

/// The fixed events, sent and applied.
pub struct Fixed {
    pub running: Running,
    pub anna: String,
    pub bert: String,
    pub cleo: String,
    /// The event "buy".
    pub buy: String,
}

/// Milliseconds since 1970 of a moment such as `2026-10-25T08:00:00Z`.
pub fn ms(at: &str) -> i64 {
    at.parse::<Timestamp>().unwrap().as_millisecond()
}

async fn send(running: &Running, visitor: Visitor, kind: &str, at: &str, payload: Value) -> String {
    let Visitor(agent, address, country, language) = visitor;
    let mut whole = json!({
        "website": WEBSITE, "hostname": "a.example", "language": language, "screen": "2560x1440",
        "timestamp": ms(at) / 1_000,
    });
    if country == "FR" {
        whole["id"] = json!("ada");
    }
    for (name, value) in payload.as_object().unwrap() {
        whole[name] = value.clone();
    }
    let body = json!({ "type": kind, "payload": whole }).to_string();
    let headers = [("user-agent", agent), ("x-real-ip", address), ("cf-ipcountry", country)];
    let answer = running.post("/api/send", body, &headers).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["sessionId"].as_str().unwrap_or_else(|| panic!("{}", answer.text())).to_owned()
}

/// Starts a server with these variables beside the key, sends the events and waits until they are applied.
pub async fn fixed(setup: Setup, env: &[(&str, &str)]) -> Fixed {
    let running = setup.start(&[&[("DASHI_API_KEYS", KEY)], env].concat()).await;
    let add = running.run(&["website", "add", "--name", "other", "--id", OTHER]).await;
    assert_eq!(add.code, Some(0), "{}", add.stderr);
    let view = async |visitor, at, payload| send(&running, visitor, "event", at, payload).await;

    // Saturday the 24th. Visit 1: 3 views in 300 s, and an event.
    let anna = view(
        ANNA,
        "2026-10-24T08:00:00Z",
        json!({ "url": "/?utm_source=news&a=1", "title": "Home", "referrer": "https://news.example/x" }),
    )
    .await;
    view(ANNA, "2026-10-24T08:01:40Z", json!({ "url": "/pricing" })).await;
    let plan = json!({ "url": "/pricing", "name": "signup", "data": { "plan": "pro", "seats": 3 } });
    view(ANNA, "2026-10-24T08:02:00Z", plan).await;
    view(ANNA, "2026-10-24T08:05:00Z", json!({ "url": "/docs" })).await;
    // Visit 2: 1 view.
    let bert = view(BERT, "2026-10-24T21:30:00Z", json!({ "url": "/" })).await;
    // Visit 3, in Berlin on Sunday: 2 views in 630 s.
    view(BERT, "2026-10-24T22:10:00Z", json!({ "url": "/docs" })).await;
    view(BERT, "2026-10-24T22:20:30Z", json!({ "url": "/pricing" })).await;

    // Sunday the 25th. Visit 4, 02:30 in summer time: 2 views in 900 s.
    let cleo = view(CLEO, "2026-10-25T00:30:00Z", json!({ "url": "/", "tag": "beta" })).await;
    view(CLEO, "2026-10-25T00:45:00Z", json!({ "url": "/docs" })).await;
    // Visit 5, 02:30 in winter time: 1 view.
    view(CLEO, "2026-10-25T01:30:00Z", json!({ "url": "/docs" })).await;
    // Visit 6: an event and a measurement, no view.
    let bought = json!({ "url": "/pricing", "name": "buy", "data": { "revenue": 19.5, "currency": "EUR" } });
    view(ANNA, "2026-10-25T10:00:00Z", bought).await;
    send(&running, ANNA, "performance", "2026-10-25T10:00:10Z", json!({ "url": "/pricing", "lcp": 1_200 }))
        .await;
    // Visit 7, the last second of Sunday in Berlin: 1 view.
    view(CLEO, "2026-10-25T22:59:59Z", json!({ "url": "/" })).await;
    // Visit 8, the first second of Monday there: 1 view.
    view(CLEO, "2026-10-25T23:00:00Z", json!({ "url": "/pricing" })).await;

    // Monday the 26th. Visit 9: 2 views in 1800 s, and an event.
    let within = json!({ "url": "/docs", "referrer": "https://a.example/docs" });
    view(BERT, "2026-10-26T12:00:00Z", within).await;
    view(BERT, "2026-10-26T12:00:05Z", json!({ "url": "/docs", "name": "signup" })).await;
    view(BERT, "2026-10-26T12:30:00Z", json!({ "url": "/" })).await;

    send(
        &running,
        CLEO,
        "identify",
        "2026-10-26T13:00:00Z",
        json!({ "data": { "plan": "free", "age": 41.5 } }),
    )
    .await;
    view(ANNA, "2026-10-25T09:00:00Z", json!({ "website": OTHER, "url": "/elsewhere" })).await;
    view(ANNA, "2026-10-25T09:10:00Z", json!({ "website": OTHER, "url": "/elsewhere", "name": "else" }))
        .await;
    running.applied(20).await;
    let buy =
        running.texts("SELECT CAST(event_id AS TEXT) FROM website_event WHERE event_name = 'buy'").await;
    Fixed { running, anna, bert, cleo, buy: buy[0].clone() }
}

impl Fixed {
    /// The answer to a request with the key. `rest` follows the website's path.
    pub async fn answer(&self, rest: &str) -> Answer {
        self.answer_of(&format!("/api/websites/{WEBSITE}{rest}")).await
    }

    pub async fn answer_of(&self, path: &str) -> Answer {
        let bearer = format!("Bearer {KEY}");
        let headers = [("authorization", bearer.as_str())];
        let answered = request(Method::GET, &self.running.url(path), Bytes::new(), &headers).await;
        answered.unwrap_or_else(|error| panic!("GET {path}: {error:#}"))
    }

    /// The answer, which is as openapi.json says.
    pub async fn shown(&self, rest: &str) -> Value {
        self.shown_at(&format!("/api/websites/{WEBSITE}{rest}")).await
    }

    pub async fn shown_at(&self, path: &str) -> Value {
        let answer = self.answer_of(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/json"), "{path}");
        let shown = answer.json();
        super::schema::assert_described(path, 200, &shown);
        shown
    }
}

/// `startAt` and `endAt` of a time; the end is exclusive here, as the last millisecond is inclusive there.
pub fn time(from: &str, to: &str) -> String {
    format!("startAt={}&endAt={}", ms(from), ms(to) - 1)
}

/// The three days in UTC.
pub fn three_days() -> String {
    time("2026-10-24T00:00:00Z", "2026-10-27T00:00:00Z")
}
