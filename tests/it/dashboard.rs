//! The numbers that the dashboard reads add up: its questions (docs/umami-contract.md §16), in SQL of our own, against a
//! plain count of what was sent and answered; and the read API gives the same numbers.

use std::collections::{BTreeMap, BTreeSet};

use integration_tests::http::{self, Connection};
use integration_tests::setup::{AGENT, WEBSITE, submission};
use integration_tests::{Running, Setup, on_both_setups};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;

on_both_setups!(the_dashboard_adds_up);

const VISITORS: u64 = 80;
const LINK: &str = "33333333-3333-4333-8333-333333333333";
const MINUTE_MS: i64 = 60_000;

/// An agent and what it is shown as, with a screen that makes no laptop of a desktop.
const AGENTS: [(&str, &str, &str); 3] = [
    (AGENT, "chrome", "desktop"),
    ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "firefox", "desktop"),
    (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 Mobile/15E148 Safari/604.1",
        "ios",
        "mobile",
    ),
];
const COUNTRIES: [Option<&str>; 4] = [Some("GB"), Some("FR"), Some("DE"), None];

/// SplitMix64: the same traffic in every run, and no crate for it.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }
}

/// One request that was taken: what was sent, and the ids it was answered with.
#[derive(Debug, Clone)]
struct Sent {
    kind: &'static str,
    name: Option<&'static str>,
    link: bool,
    /// `None`: now.
    at_ms: Option<i64>,
    data: Value,
    browser: &'static str,
    device: &'static str,
    country: Option<&'static str>,
    session: String,
    visit: String,
}

impl Sent {
    fn is_row(&self) -> bool {
        self.kind != "identify"
    }

    /// Whether it is among the dashboard's views.
    fn is_view(&self) -> bool {
        self.kind == "event" && self.name.is_none()
    }
}

/// The whole visit of one visitor, in order: whatever trackers do, and what makes a kept token lie.
async fn visitor(authority: String, seed: u64, base_ms: i64) -> Vec<Sent> {
    let mut random = Random(seed);
    let mut connection = Connection::open(&authority).await.unwrap();
    let mut ip = format!("203.0.{seed}.1");
    let (mut agent, mut browser, mut device) = random.of(&AGENTS);
    let mut country = random.of(&COUNTRIES);
    let id = random.one_in(3).then(|| format!("visitor-{seed}"));
    let mut token = String::new();
    let mut at_ms = base_ms + random.below(9_000) as i64 * 1_000;
    let mut sent = Vec::new();
    let actions = 1 + random.below(14);
    for action in 0..actions {
        let identifies = random.one_in(6) || action == 0 && random.one_in(4);
        let (kind, name) = match random.below(8) {
            _ if identifies => ("identify", None),
            0..4 => ("event", None),
            4 | 5 => ("event", Some(random.of(&["signup", "buy"]))),
            6 => ("performance", None),
            _ => ("event", Some("plain")),
        };
        if random.one_in(5) {
            // Another network, another browser; the page keeps its token.
            ip = format!("203.0.{seed}.{}", 1 + random.below(3));
            country = random.of(&COUNTRIES);
        }
        if random.one_in(7) {
            (agent, browser, device) = random.of(&AGENTS);
        }
        if random.one_in(4) {
            // A page was loaded again.
            token.clear();
        }
        at_ms += random.below(1_500) as i64 * 1_000;
        // The last thing that some do is now.
        let now = action + 1 == actions && random.one_in(3);
        let link = kind == "event" && name.is_none() && random.one_in(12);
        let mut payload = json!({
            "hostname": "a.example", "url": format!("/{action}?utm_source=x"), "screen": "2560x1440", "ip": "",
        });
        if let Some(id) = &id {
            payload["id"] = json!(id);
        }
        if let Some(name) = name {
            payload["name"] = json!(name);
        }
        if !now {
            payload["timestamp"] = json!(at_ms / 1_000);
        }
        if link {
            payload["link"] = json!(LINK);
        }
        if kind == "performance" {
            payload["lcp"] = json!(random.below(4_000));
        }
        let data = match (kind, name) {
            ("identify", _) => json!({ "plan": random.of(&["free", "pro"]), "seats": random.below(9) }),
            (_, Some("buy")) => {
                json!({ "revenue": 1 + random.below(50), "currency": "EUR", "item": { "sku": seed } })
            }
            (_, Some("signup")) => json!({ "form": "long", "beta": true }),
            _ => Value::Null,
        };
        if data.is_object() {
            payload["data"] = data.clone();
        }
        let mut headers =
            vec![("user-agent", agent), ("x-real-ip", ip.as_str()), ("x-umami-cache", token.as_str())];
        headers.extend(country.map(|country| ("cf-ipcountry", country)));
        let answer = connection.post_json("/api/send", &submission(kind, &payload), &headers).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = answer.json();
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        let (session, visit) = (text("sessionId"), text("visitId"));
        // The tracker forgets its token when it identifies.
        token = if kind == "identify" { String::new() } else { text("cache") };
        let at_ms = (!now).then_some(at_ms);
        sent.push(Sent { kind, name, link, at_ms, data, browser, device, country, session, visit });
    }
    sent
}

/// A session as it is shown: as it was first seen, filled by later events.
#[derive(Debug, Clone, Default)]
struct Shown {
    browser: &'static str,
    device: &'static str,
    country: Option<&'static str>,
}

/// Everything that was sent, and one website's part of it in a span of time.
struct Reference<'a> {
    sessions: BTreeMap<&'a str, Shown>,
    rows: Vec<&'a Sent>,
}

impl<'a> Reference<'a> {
    fn new(all: &'a [Sent], span: Span) -> Self {
        let mut sessions: BTreeMap<&str, Shown> = BTreeMap::new();
        for sent in all {
            let shown = sessions.entry(&sent.session).or_insert(Shown {
                browser: sent.browser,
                device: sent.device,
                country: None,
            });
            shown.country = shown.country.or(sent.country);
        }
        let rows = all.iter().filter(|sent| sent.is_row() && !sent.link && span.holds(sent)).collect();
        Self { sessions, rows }
    }

    fn visitors(&self) -> BTreeSet<&'a str> {
        self.rows.iter().map(|sent| sent.session.as_str()).collect()
    }

    /// The number of visitors by an attribute of their sessions.
    fn by(&self, attribute: impl Fn(&Shown) -> &str) -> BTreeMap<String, i64> {
        counted(self.visitors().into_iter().map(|session| attribute(&self.sessions[session]).to_owned()))
    }

    /// Views per session and visit, with their moments.
    fn visits(&self) -> BTreeMap<(&str, &str), Vec<i64>> {
        let mut visits: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for sent in self.rows.iter().filter(|sent| sent.is_view()) {
            let moments = visits.entry((sent.session.as_str(), sent.visit.as_str())).or_default();
            moments.extend(sent.at_ms);
        }
        visits
    }
}

fn counted(keys: impl Iterator<Item = String>) -> BTreeMap<String, i64> {
    let mut counts = BTreeMap::new();
    for key in keys {
        *counts.entry(key).or_default() += 1;
    }
    counts
}

/// From and to, milliseconds since 1970, inclusive. What happened now is in no span that ends before.
#[derive(Debug, Clone, Copy)]
struct Span(i64, i64);

impl Span {
    fn holds(self, sent: &Sent) -> bool {
        sent.at_ms.is_some_and(|at_ms| (self.0..=self.1).contains(&at_ms))
    }

    fn sql(self, running: &Running, table: &str) -> String {
        let at = running.milliseconds(&format!("{table}.created_at"));
        format!("{table}.website_id = '{WEBSITE}' AND {at} BETWEEN {} AND {}", self.0, self.1)
    }
}

/// The result of a query whose rows are a text and a number.
async fn groups(running: &Running, key: &str, count: &str, rest: &str) -> BTreeMap<String, i64> {
    let query = format!("SELECT coalesce(CAST({key} AS TEXT), '') || '=' || CAST({count} AS TEXT) {rest}");
    let texts = running.texts(&query).await;
    let rows = texts.len();
    let found: BTreeMap<_, _> = texts
        .iter()
        .map(|text| {
            let (key, count) = text.rsplit_once('=').unwrap();
            (key.to_owned(), count.parse().unwrap())
        })
        .collect();
    assert_eq!(found.len(), rows, "a group is there twice: {texts:?}");
    found
}

async fn the_dashboard_adds_up(setup: Setup) {
    let running = setup.start(&[]).await;
    let now_ms = Timestamp::now().as_millisecond();
    // Five hours, the last of which ends an hour ago.
    let base_ms = now_ms - now_ms % 1_000 - 600 * MINUTE_MS;
    let mut visitors = JoinSet::new();
    for seed in 0..VISITORS {
        visitors.spawn(visitor(running.authority().to_owned(), seed, base_ms));
    }
    let all: Vec<Sent> = visitors.join_all().await.into_iter().flatten().collect();
    assert!(all.len() > 400, "{}", all.len());
    let kinds = counted(all.iter().map(|sent| format!("{} {:?} {}", sent.kind, sent.name, sent.link)));
    assert_eq!(kinds.len(), 7, "every kind of request is among them: {kinds:?}");
    running.applied(all.len() as u64).await;

    let whole = Span(base_ms, now_ms - 30 * MINUTE_MS);
    let part = Span(base_ms + 90 * MINUTE_MS, base_ms + 150 * MINUTE_MS);
    for span in [whole, part] {
        assert_visitors(&running, &Reference::new(&all, span), span).await;
        assert_visits(&running, &Reference::new(&all, span), span).await;
        assert_properties(&running, &Reference::new(&all, span), &all, span).await;
        assert_api(&running, &Reference::new(&all, span), span).await;
    }
    // Active now: in the last five minutes.
    let at = running.milliseconds("created_at");
    let active = format!(
        "SELECT count(DISTINCT session_id) FROM website_event
         WHERE website_id = '{WEBSITE}' AND {at} >= {}",
        Timestamp::now().as_millisecond() - 5 * MINUTE_MS
    );
    let now: BTreeSet<_> = all
        .iter()
        .filter(|sent| sent.at_ms.is_none() && sent.is_row() && !sent.link)
        .map(|sent| &sent.session)
        .collect();
    assert!(now.len() > 5, "{now:?}");
    assert_eq!(running.number(&active).await, now.len() as i64, "active now");
    assert_eq!(running.complaints(), [""; 0]);
}

/// Visitors, however they are asked for, are as many.
async fn assert_visitors(running: &Running, reference: &Reference<'_>, span: Span) {
    let events = span.sql(running, "e");
    let visitors = reference.visitors().len() as i64;
    assert!(visitors > 20, "{visitors}");
    let counted = format!("SELECT count(DISTINCT e.session_id) FROM website_event AS e WHERE {events}");
    assert_eq!(running.number(&counted).await, visitors);
    let joined = "FROM website_event AS e JOIN session AS s
        ON s.session_id = e.session_id AND s.website_id = e.website_id";
    for (column, expected) in [
        ("browser", reference.by(|shown| shown.browser)),
        ("device", reference.by(|shown| shown.device)),
        ("country", reference.by(|shown| shown.country.unwrap_or_default())),
    ] {
        let rest = format!("{joined} WHERE {events} GROUP BY s.{column}");
        let found = groups(running, &format!("s.{column}"), "count(DISTINCT e.session_id)", &rest).await;
        assert_eq!(found, expected, "{column}");
        assert_eq!(found.values().sum::<i64>(), visitors, "{column}");
    }
    // The list of sessions: one line for each, whatever kinds of events it has.
    let rest = format!(
        "{joined} WHERE {events} GROUP BY s.session_id, s.website_id, e.hostname, s.browser, s.os, s.device, s.screen,
         s.language, s.country, s.region, s.city"
    );
    let listed = groups(running, "s.session_id", "count(*)", &rest).await;
    let expected = self::counted(reference.rows.iter().map(|sent| sent.session.clone()));
    assert_eq!(listed, expected);
}

/// Visits, views, bounces and time.
async fn assert_visits(running: &Running, reference: &Reference<'_>, span: Span) {
    let events = span.sql(running, "e");
    let visits: BTreeSet<_> = reference.rows.iter().map(|sent| &sent.visit).collect();
    let counted = format!("SELECT count(DISTINCT e.visit_id) FROM website_event AS e WHERE {events}");
    assert_eq!(running.number(&counted).await, visits.len() as i64);
    let at = running.milliseconds("e.created_at");
    let by_visit = format!(
        "(SELECT count(*) AS views, max({at}) - min({at}) AS took FROM website_event AS e
          WHERE {events} AND e.event_type NOT IN (2, 5) GROUP BY e.session_id, e.visit_id) AS visits"
    );
    let visits = reference.visits();
    let views: usize = visits.values().map(Vec::len).sum();
    let bounces = visits.values().filter(|moments| moments.len() == 1).count();
    let took: i64 =
        visits.values().map(|moments| moments.iter().max().unwrap() - moments.iter().min().unwrap()).sum();
    assert!(bounces > 3 && views > 2 * bounces && took > 0, "{views} {bounces} {took}");
    let sum = async |of: &str| running.number(&format!("SELECT {of} FROM {by_visit}")).await;
    assert_eq!(sum("sum(views)").await, views as i64);
    assert_eq!(sum("sum(CASE WHEN views = 1 THEN 1 ELSE 0 END)").await, bounces as i64);
    assert_eq!(sum("sum(took)").await, took);
    for (event_type, kind, named) in [(1, "event", false), (2, "event", true), (5, "performance", false)] {
        let rest = format!(
            "FROM website_event AS e WHERE {events} AND e.event_type = {event_type} GROUP BY e.event_name"
        );
        let found = groups(running, "e.event_name", "count(*)", &rest).await;
        let of_kind = reference.rows.iter().filter(|sent| sent.kind == kind && sent.name.is_some() == named);
        assert_eq!(found, self::counted(of_kind.map(|sent| sent.name.unwrap_or_default().to_owned())));
    }
}

/// The same numbers from the read API, which this machine may ask without a key.
async fn assert_api(running: &Running, reference: &Reference<'_>, Span(from, to): Span) {
    let shown = async |rest: &str| {
        let path = format!("/api/websites/{WEBSITE}/{rest}");
        let separator = if rest.contains('?') { '&' } else { '?' };
        let url = format!("{}{separator}startAt={from}&endAt={to}", running.url(&path));
        let answer = http::get(&url).await.unwrap();
        assert_eq!(answer.status, 200, "{url}: {}", answer.text());
        answer.json()
    };
    let visits = reference.visits();
    let seconds =
        visits.values().map(|moments| moments.iter().max().unwrap() - moments.iter().min().unwrap());
    let of_visits: BTreeSet<_> = reference.rows.iter().map(|sent| &sent.visit).collect();
    let stats = shown("stats").await;
    let expected = json!({
        "pageviews": visits.values().map(Vec::len).sum::<usize>(),
        "visitors": reference.visitors().len(),
        "visits": of_visits.len(),
        "bounces": visits.values().filter(|moments| moments.len() == 1).count(),
        "totaltime": seconds.sum::<i64>() / 1_000,
        "comparison": stats["comparison"],
    });
    assert_eq!(stats, expected);
    // The points of a series add up to the whole.
    let series = shown("pageviews?unit=hour&timezone=Asia/Kolkata").await;
    let points = series["pageviews"].as_array().unwrap();
    assert!(points.len() > 1, "{series}");
    let sum: u64 = points.iter().map(|point| point["y"].as_u64().unwrap()).sum();
    assert_eq!(stats["pageviews"], json!(sum));
    let list = async |kind: &str| {
        let rows = shown(&format!("metrics?type={kind}")).await;
        let row = |row: &Value| (row["x"].as_str().unwrap().to_owned(), row["y"].as_i64().unwrap());
        rows.as_array().unwrap().iter().map(row).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(list("browser").await, reference.by(|shown| shown.browser));
    assert_eq!(list("device").await, reference.by(|shown| shown.device));
    let mut countries = reference.by(|shown| shown.country.unwrap_or_default());
    countries.remove("");
    assert_eq!(list("country").await, countries);
    let events = reference.rows.iter().filter(|sent| sent.kind == "event");
    assert_eq!(list("event").await, counted(events.filter_map(|sent| sent.name).map(str::to_owned)));
    let sessions = shown("sessions?pageSize=1").await;
    assert_eq!(sessions["count"], json!(reference.visitors().len()));
}

/// The known attributes of events and sessions, and their revenue.
async fn assert_properties(running: &Running, reference: &Reference<'_>, all: &[Sent], span: Span) {
    let events = span.sql(running, "e");
    // Both tables are restricted to the span.
    let rest = format!(
        "FROM event_data AS d JOIN website_event AS e ON e.event_id = d.website_event_id
         WHERE {events} AND {} GROUP BY e.event_name, d.data_key",
        span.sql(running, "d")
    );
    let found = groups(running, "e.event_name || '.' || d.data_key", "count(*)", &rest).await;
    let expected = counted(reference.rows.iter().flat_map(|sent| {
        let name = sent.name.unwrap_or_default();
        let keys = sent.data.as_object().into_iter().flat_map(|data| data.keys());
        keys.map(move |key| format!("{name}.{}", if key == "item" { "item.sku" } else { key }))
    }));
    assert!(expected.len() == 5, "{expected:?}");
    assert_eq!(found, expected);

    let earned = format!(
        "SELECT coalesce(sum(CAST(r.revenue AS INTEGER)), 0) FROM revenue AS r WHERE {}",
        span.sql(running, "r")
    );
    let expected: i64 = reference.rows.iter().filter_map(|sent| sent.data["revenue"].as_i64()).sum();
    assert!(expected > 0);
    assert_eq!(running.number(&earned).await, expected);

    // Properties of sessions that have an event in the span: of each key the last value.
    let rest = format!(
        "FROM session_data AS p WHERE p.website_id = '{WEBSITE}' AND EXISTS
         (SELECT 1 FROM website_event AS e WHERE e.session_id = p.session_id AND {events})
         GROUP BY p.data_key, p.string_value"
    );
    let found = groups(running, "p.data_key || ':' || p.string_value", "count(*)", &rest).await;
    let mut last = BTreeMap::new();
    for sent in all.iter().filter(|sent| sent.kind == "identify") {
        last.insert(sent.session.as_str(), &sent.data);
    }
    last.retain(|session, _| reference.visitors().contains(session));
    let expected = counted(last.values().flat_map(|data| {
        [format!("plan:{}", data["plan"].as_str().unwrap()), format!("seats:{}.0000", data["seats"])]
    }));
    assert!(expected.contains_key("plan:pro"), "{expected:?}");
    assert_eq!(found, expected);
}
