//! The read side of profiles over HTTP: who may read, what is shown, paging, and streams of what changes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use integration_tests::http::{Answer, post_json, request};
use integration_tests::setup::{AGENT, WEBSITE, read_until_silent};
use integration_tests::{
    Deployment, PostgresServer, Running, Setup, TestDatabase, TestDirectory, eventually, kafka,
    on_both_setups,
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

on_both_setups!(
    nothing_is_shown_without_a_key,
    what_is_asked_wrongly_is_refused_in_the_usual_envelope,
    a_person_is_shown_with_traits_sessions_and_journey,
    a_sessions_traits_have_their_types_and_a_validator,
    five_hundred_people_are_listed_once_each_while_others_are_added,
    a_change_on_one_device_reaches_the_streams_of_all,
    a_stream_may_come_before_its_session_and_goes_on_where_it_was,
    there_are_so_many_streams_and_no_more,
    a_reader_that_is_stuck_is_dropped_and_the_others_go_on,
    a_stop_ends_all_streams_at_once,
);

const KEY: &str = "the-first-key-of-the-tests";
const OTHER_KEY: &str = "the-second-key-of-the-tests";
const KEYS: (&str, &str) = ("DASHI_API_KEYS", "the-first-key-of-the-tests, the-second-key-of-the-tests");
/// Sessions of their own for each device, whatever made the database.
const PER_DEVICE: (&str, &str) = ("DASHI_INGEST_IDENTIFIED_SESSIONS", "per-device");
/// Events are applied as soon as can be.
const AT_ONCE: (&str, &str) = ("DASHI_PROJECTOR_BATCH_INTERVAL_MS", "0");

/// Another browser than [`AGENT`].
pub const PHONE: &str = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) \
                     Version/17.4 Mobile/15E148 Safari/604.1";

/// Longest wait for anything that has to come.
const SOON: Duration = Duration::from_secs(30);

fn path(rest: &str) -> String {
    format!("/api/websites/{WEBSITE}{rest}")
}

async fn get_with(running: &Running, path: &str, headers: &[(&str, &str)]) -> Answer {
    let answered = request(Method::GET, &running.url(path), Bytes::new(), headers).await;
    answered.unwrap_or_else(|error| panic!("GET {path}: {error:#}"))
}

/// With the key.
async fn get(running: &Running, path: &str) -> Answer {
    get_with(running, path, &[("authorization", &format!("Bearer {KEY}"))]).await
}

async fn shown(running: &Running, path: &str) -> Value {
    let answer = get(running, path).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"), "{path}");
    answer.json()
}

/// Identifies a person from a device; gives the session's id.
pub async fn identify(running: &Running, agent: &str, person: &str, data: &Value) -> String {
    let payload = json!({ "website": WEBSITE, "id": person, "data": data });
    let body = json!({ "type": "identify", "payload": payload }).to_string();
    let answer = running.post("/api/send", body, &[("user-agent", agent)]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["sessionId"].as_str().expect("a session").to_owned()
}

pub async fn metric(running: &Running, name: &str) -> u64 {
    let metrics = get_with(running, "/metrics", &[]).await.text();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

/// Its warnings and errors, less the one that [`PER_DEVICE`] is not the formula of the database's Umami.
fn complaints(running: &Running) -> Vec<String> {
    let mut complaints = running.complaints();
    complaints.retain(|line| !line.contains("session ids of identified visitors"));
    complaints
}

/// A stream's reader.
pub struct Reader {
    body: Incoming,
    text: String,
    // Without it, the connection would end.
    _sender: SendRequest<Empty<Bytes>>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    Traits { version: String, session: Value },
    Resync(Value),
    Comment,
    End,
}

impl Reader {
    /// Asks for a session's stream; the status and `Retry-After` if it is refused.
    async fn open(
        running: &Running,
        session: &str,
        last_event_id: Option<&str>,
    ) -> Result<Self, (u16, Option<String>)> {
        Self::at(running.authority(), &path(&format!("/sessions/{session}/stream")), last_event_id).await
    }

    async fn at(
        authority: &str,
        path: &str,
        last_event_id: Option<&str>,
    ) -> Result<Self, (u16, Option<String>)> {
        let known = last_event_id.map(|version| ("last-event-id", version));
        let (reader, headers) =
            Self::ask(authority, &format!("{path}?key={OTHER_KEY}"), known.as_slice()).await?;
        assert_eq!(headers.get("access-control-allow-origin"), None);
        Ok(reader)
    }

    /// Asks for a stream with these headers; gives the headers of the answer, too.
    pub async fn ask(
        authority: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<(Self, HeaderMap), (u16, Option<String>)> {
        let stream = TcpStream::connect(authority).await.expect("it listens");
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(async { connection.await.ok() });
        let mut request = Request::get(path).header("host", authority);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let asked = sender.send_request(request.body(Empty::new()).expect("a request"));
        let response =
            tokio::time::timeout(SOON, asked).await.expect("an answer in time").expect("an answer");
        let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        if response.status() != 200 {
            return Err((response.status().as_u16(), header("retry-after")));
        }
        assert_eq!(header("content-type").as_deref(), Some("text/event-stream"));
        let headers = response.headers().clone();
        Ok((Self { body: response.into_body(), text: String::new(), _sender: sender }, headers))
    }

    /// The next event.
    pub async fn next(&mut self) -> Message {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let shown = read(block);
                self.text = rest.to_owned();
                return shown;
            }
            match tokio::time::timeout(SOON, self.body.frame()).await.expect("something in time") {
                Some(Ok(frame)) => {
                    let bytes = frame.into_data().expect("data");
                    self.text.push_str(std::str::from_utf8(&bytes).expect("events end at characters"));
                }
                Some(Err(error)) => panic!("the stream broke: {error}"),
                None => {
                    assert_eq!(self.text, "", "a half event at the end");
                    return Message::End;
                }
            }
        }
    }

    /// The next event, with the comments before it left out.
    async fn event(&mut self) -> Message {
        loop {
            match self.next().await {
                Message::Comment => {}
                event => return event,
            }
        }
    }

    /// The next traits and their version.
    pub async fn traits(&mut self) -> (String, Value) {
        match self.event().await {
            Message::Traits { version, session } => {
                assert_eq!(session["version"], json!(version));
                (version, session["traits"].clone())
            }
            other => panic!("{other:?} instead of traits"),
        }
    }
}

fn read(block: &str) -> Message {
    if block.starts_with(':') {
        return Message::Comment;
    }
    let field = |name: &str| {
        block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
    };
    let data: Value = serde_json::from_str(&field("data").expect("data")).expect("JSON");
    match field("event").as_deref() {
        Some("traits") => Message::Traits { version: field("id").expect("an id"), session: data },
        Some("resync") => {
            assert_eq!(field("id"), None, "the reader keeps the id of what it has");
            Message::Resync(data)
        }
        other => panic!("{other:?}"),
    }
}

const SESSION: &str = "22222222-2222-4222-8222-222222222222";

fn all_paths() -> [String; 5] {
    ["/profiles", "/profiles/ada", "/profiles/ada/journey", "/sessions/{}", "/sessions/{}/stream"]
        .map(|rest| path(&rest.replace("{}", SESSION)))
}

async fn nothing_is_shown_without_a_key(setup: Setup) {
    let running = setup.start(&[]).await;
    for path in all_paths() {
        let answer = get(&running, &path).await;
        assert_eq!(
            (answer.status, answer.json()["error"]["code"].as_str()),
            (404, Some("not-found")),
            "{path}"
        );
    }
    drop(running);

    let running = setup.start(&[KEYS]).await;
    let envelope = r#"{"error":{"message":"Unauthorized","code":"unauthorized","status":401}}"#;
    let basic = format!("Basic {KEY}");
    let wrong = format!("Bearer {}", &KEY[1..]);
    let both = format!("Bearer {KEY}, {OTHER_KEY}");
    for path in all_paths() {
        for authorization in ["", "Bearer", "Bearer ", KEY, &basic, &wrong, &both] {
            let answer = get_with(&running, &path, &[("authorization", authorization)]).await;
            assert_eq!((answer.status, answer.text().as_str()), (401, envelope), "{path} {authorization:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            assert_eq!(answer.header("access-control-allow-origin"), None);
        }
        if !path.ends_with("/stream") {
            // A key in a URL gets into histories and logs: it opens only what cannot be opened otherwise.
            assert_eq!(get_with(&running, &format!("{path}?key={KEY}"), &[]).await.status, 401, "{path}");
            for key in [KEY, OTHER_KEY] {
                let answer = get_with(&running, &path, &[("authorization", &format!("bearer {key}"))]).await;
                assert!([200, 404].contains(&answer.status), "{path}: {}", answer.text());
                assert_eq!(answer.header("access-control-allow-origin"), None);
            }
        }
    }
    // The collector asks for none.
    running.accept("event", &json!({ "url": "/" })).await;
    let shown = running.run(&["config", "show"]).await;
    assert!(!shown.stdout.contains(KEY) && shown.stdout.contains("redacted"), "{}", shown.stdout);
}

async fn what_is_asked_wrongly_is_refused_in_the_usual_envelope(setup: Setup) {
    let running = setup.start(&[KEYS]).await;
    let bad = [
        "/api/websites/x/profiles".to_owned(),
        "/api/websites/x/sessions/y".to_owned(),
        path("/sessions/ada"),
        path("/sessions/ada/stream"),
        path("/profiles?limit=0"),
        path("/profiles?limit=201"),
        path("/profiles?limit=many"),
        path("/profiles?after=nonsense"),
        path(&format!("/profiles?query={}", "x".repeat(51))),
        path("/profiles/ada?after=nonsense"),
        path("/profiles/ada/journey?after=nonsense"),
        path("/profiles/%FF"),
    ];
    for path in &bad {
        let answer = get(&running, path).await;
        let error = answer.json()["error"].clone();
        assert_eq!(
            (answer.status, &error["code"], &error["status"]),
            (400, &json!("bad-request"), &json!(400))
        );
        assert_eq!(answer.header("content-type"), Some("application/json"), "{path}");
    }
    let not_found = r#"{"error":{"message":"Not found","code":"not-found","status":404}}"#;
    for rest in ["/profiles/nobody", "/profiles/nobody/journey", &format!("/sessions/{SESSION}")] {
        let answer = get(&running, &path(rest)).await;
        assert_eq!((answer.status, answer.text().as_str()), (404, not_found), "{rest}");
    }
    assert_eq!(shown(&running, &path("/profiles")).await, json!({ "profiles": [], "next": null }));
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
        for path in all_paths() {
            let headers = [("authorization", format!("Bearer {KEY}"))];
            let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
            let answer = request(method.clone(), &running.url(&path), "{}", &headers).await.unwrap();
            let error = answer.json()["error"].clone();
            assert_eq!(
                (answer.status, &error["code"]),
                (405, &json!("method-not-allowed")),
                "{method} {path}"
            );
            assert_eq!(answer.header("allow"), Some("GET,HEAD"));
        }
    }
}

async fn a_person_is_shown_with_traits_sessions_and_journey(setup: Setup) {
    let running = setup.start(&[KEYS, PER_DEVICE, ("DASHI_PROFILES_NULL_DELETES", "true")]).await;
    let page =
        running.accept("event", &json!({ "url": "/before", "screen": "1920x1080", "language": "de" })).await;
    let anonymous = page["sessionId"].as_str().unwrap().to_owned();
    running.applied(1).await;
    let laptop = identify(&running, AGENT, "ada", &json!({ "name": "Ada", "plan": 1, "old": true })).await;
    running.applied(2).await;
    running.accept("event", &json!({ "url": "/after", "id": "ada", "name": "signed-in" })).await;
    running.applied(3).await;
    let phone = identify(&running, PHONE, "ada", &json!({ "plan": 2, "old": null })).await;
    running.applied(4).await;
    assert_eq!(BTreeSet::from([&anonymous, &laptop, &phone]).len(), 3);

    let answer = get(&running, &path("/profiles/ada")).await;
    let person = answer.json();
    let (traits, deleted) = (&person["traits"], &person["deleted"]);
    assert_eq!(json!([person["distinctId"], person["websiteId"]]), json!(["ada", WEBSITE]));
    assert_eq!(json!([traits["name"]["value"], traits["name"]["type"]]), json!(["Ada", "string"]));
    assert_eq!(json!([traits["plan"]["value"], traits["plan"]["type"]]), json!([2, "number"]));
    assert_eq!(json!([traits["name"]["changedBy"], traits["plan"]["changedBy"]]), json!([laptop, phone]));
    assert_eq!(traits.as_object().unwrap().len(), 2, "{traits}");
    assert_eq!(deleted["old"]["changedBy"], json!(phone));
    assert!(traits["plan"]["changedAt"].as_str() > traits["name"]["changedAt"].as_str(), "{traits}");

    let sessions = person["sessions"].as_array().unwrap();
    assert_eq!(person["sessionsNext"], Value::Null);
    let of = |id: &str, kind: &str| {
        let session = sessions.iter().find(|session| session["sessionId"] == id && session["kind"] == kind);
        session.unwrap_or_else(|| panic!("{id} {kind} is not in {sessions:?}")).clone()
    };
    let seen = of(&anonymous, "anonymous");
    assert_eq!(
        json!([seen["browser"], seen["os"], seen["device"], seen["screen"], seen["language"], seen["live"]]),
        json!(["chrome", "Windows 10", "laptop", "1920x1080", "de", true])
    );
    assert_eq!(of(&phone, "own")["device"], json!("mobile"));
    let laptops = of(&laptop, "own");
    assert!(laptops["lastAt"].as_str() > laptops["firstAt"].as_str(), "{laptops}");
    // The phone was never anonymous here, but would have been: the session that is not there is not live.
    for session in sessions.iter().filter(|session| session["lastAt"].is_null()) {
        assert_eq!(json!([session["live"], session["browser"]]), json!([false, null]), "{session}");
    }

    // One by one, the pages give the same.
    let mut one_by_one = Vec::new();
    let mut after = String::new();
    loop {
        let page = shown(&running, &path(&format!("/profiles/ada?limit=1&after={after}"))).await;
        one_by_one.extend(page["sessions"].as_array().unwrap().clone());
        let Some(next) = page["sessionsNext"].as_str() else { break };
        after = next.to_owned();
        assert!(one_by_one.len() < 10);
    }
    assert_eq!(&one_by_one, sessions);

    let known = answer.header("etag").expect("a validator").to_owned();
    let bearer = format!("Bearer {KEY}");
    let ask = [("authorization", bearer.as_str()), ("if-none-match", &known)];
    let again = get_with(&running, &path("/profiles/ada"), &ask).await;
    assert_eq!((again.status, again.body.len(), again.header("etag")), (304, 0, Some(known.as_str())));
    // A session goes on, and no trait changes: what the client has does not hold any more.
    running.accept("event", &json!({ "url": "/more", "id": "ada" })).await;
    running.applied(5).await;
    let again = get_with(&running, &path("/profiles/ada"), &ask).await;
    assert_eq!((again.status, &again.json()["version"]), (200, &person["version"]));

    let journey = shown(&running, &path("/profiles/ada/journey")).await;
    let events = journey["events"].as_array().unwrap();
    let steps: Vec<_> =
        events.iter().map(|event| json!([event["type"], event["urlPath"], event["eventName"]])).collect();
    assert_eq!(
        json!(steps),
        json!([
            ["pageview", "/before", null],
            ["identify", null, null],
            ["event", "/after", "signed-in"],
            ["identify", null, null],
            ["pageview", "/more", null]
        ])
    );
    let whose: Vec<_> = events.iter().map(|event| event["sessionId"].as_str().unwrap()).collect();
    assert_eq!(whose, [&anonymous, &laptop, &laptop, &phone, &laptop]);
    let mut paged = Vec::new();
    let mut after = String::new();
    loop {
        let page = shown(&running, &path(&format!("/profiles/ada/journey?limit=2&after={after}"))).await;
        paged.extend(page["events"].as_array().unwrap().clone());
        let Some(next) = page["next"].as_str() else { break };
        after = next.to_owned();
        assert!(paged.len() < 10);
    }
    assert_eq!(&paged, events);
    assert_eq!(complaints(&running), Vec::<String>::new());
}

async fn a_sessions_traits_have_their_types_and_a_validator(setup: Setup) {
    let running = setup.start(&[KEYS]).await;
    let data = json!({
        "text": "a \"b\"\nc", "number": 12.5, "whole": 3, "yes": true, "no": false, "none": null,
        "at": "2026-05-01T08:20:30.123Z", "list": [1, "a", null], "deep": { "er": { "still": "x" } },
    });
    // The session's own properties and, without a person, nothing over them.
    let payload = json!({ "data": { "own": 1, "text": "own" } });
    let anonymous = running.accept("identify", &payload).await["sessionId"].as_str().unwrap().to_owned();
    running.applied(1).await;
    let nobody = shown(&running, &path(&format!("/sessions/{anonymous}"))).await;
    assert_eq!(json!([nobody["person"], nobody["traits"]]), json!([null, { "own": 1, "text": "own" }]));

    let session = identify(&running, AGENT, "ada", &data).await;
    running.applied(2).await;
    let at = path(&format!("/sessions/{session}"));
    let answer = get(&running, &at).await;
    let expected = json!({
        "text": "a \"b\"\nc", "number": 12.5, "whole": 3, "yes": true, "no": false, "none": null,
        "at": "2026-05-01T08:20:30.123Z", "list": [1, "a", null], "deep.er.still": "x",
    });
    let body = answer.json();
    assert_eq!(json!([body["person"], body["sessionId"], body["traits"]]), json!(["ada", session, expected]));
    // The validator begins with the version; the rest changes with views and visits.
    let version = answer.header("etag").unwrap().to_owned();
    assert!(version.starts_with(&format!("\"{}.", body["version"].as_str().unwrap())), "{version}");
    assert_eq!(answer.header("cache-control"), Some("private, no-cache"));

    let bearer = format!("Bearer {KEY}");
    let known =
        async || get_with(&running, &at, &[("authorization", &bearer), ("if-none-match", &version)]).await;
    let again = known().await;
    assert_eq!((again.status, again.body.len(), again.header("etag")), (304, 0, Some(version.as_str())));
    // What is merely repeated changes no version.
    identify(&running, AGENT, "ada", &data).await;
    running.applied(3).await;
    assert_eq!(known().await.status, 304);
    identify(&running, AGENT, "ada", &json!({ "whole": 4 })).await;
    running.applied(4).await;
    let changed = known().await;
    assert_eq!((changed.status, &changed.json()["traits"]["whole"]), (200, &json!(4)));
    // The device's anonymous session is the person's too, over what it has of its own.
    let linked = shown(&running, &path(&format!("/sessions/{anonymous}"))).await;
    assert_eq!(
        json!([
            linked["person"],
            linked["traits"]["own"],
            linked["traits"]["text"],
            linked["traits"]["whole"]
        ]),
        json!(["ada", 1, "a \"b\"\nc", 4])
    );
    let head =
        request(Method::HEAD, &running.url(&at), Bytes::new(), &[("authorization", &bearer)]).await.unwrap();
    assert_eq!((head.status, head.body.len()), (200, 0));
}

async fn five_hundred_people_are_listed_once_each_while_others_are_added(setup: Setup) {
    let running = setup.start(&[KEYS]).await;
    let identifies = |people: Vec<String>| {
        let all: Vec<_> = people
            .iter()
            .map(|person| {
                let payload = json!({ "website": WEBSITE, "id": person, "data": { "name": person, "n": 1 } });
                json!({ "type": "identify", "payload": payload })
            })
            .collect();
        json!(all).to_string()
    };
    let people: BTreeSet<String> = (0..500).map(|number| format!("person-{number:03}/ä%")).collect();
    running.post("/api/batch", identifies(people.iter().cloned().collect()), &[]).await;
    running.applied(500).await;

    let mut listed = Vec::new();
    let mut after = String::new();
    let mut pages = 0;
    loop {
        let page = shown(&running, &path(&format!("/profiles?limit=60&after={after}"))).await;
        let rows = page["profiles"].as_array().unwrap();
        listed.extend(rows.iter().map(|row| row["distinctId"].as_str().unwrap().to_owned()));
        assert_eq!(json!([rows[0]["traits"], rows[0]["sessions"].as_u64() > Some(0)]), json!([2, true]));
        pages += 1;
        let Some(next) = page["next"].as_str() else { break };
        assert_eq!(rows.len(), 60);
        assert!(pages < 20, "the pages do not end");
        after = next.to_owned();
        // Some come before what was listed, some behind it.
        let added = [format!("a-{pages}"), format!("person-499/{pages}"), format!("z-{pages}")];
        running.post("/api/batch", identifies(added.to_vec()), &[]).await;
        running.applied(500 + 3 * pages).await;
    }
    let once: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(once.len(), listed.len(), "somebody was listed twice");
    assert!(once.is_superset(&people), "{:?} were not listed", people.difference(&once));
    assert!(listed.is_sorted());
    assert!(pages >= 9, "{pages}");

    let found = shown(&running, &path("/profiles?query=N-49&limit=200")).await;
    let found: Vec<_> = found["profiles"].as_array().unwrap().iter().map(|row| &row["distinctId"]).collect();
    let expected: BTreeSet<_> = once.iter().filter(|person| person.contains("n-49")).collect();
    assert!(found.len() >= expected.len() && expected.len() >= 10, "{found:?}");
    assert!(found.iter().all(|person| person.as_str().unwrap().contains("n-49")), "{found:?}");
    // What SQL and URLs give a meaning means nothing here.
    assert_eq!(
        shown(&running, &path("/profiles?query=%25&limit=1")).await["profiles"][0]["distinctId"],
        "person-000/ä%"
    );
    assert_eq!(shown(&running, &path("/profiles?query=_")).await["profiles"], json!([]));
    let person = shown(&running, &path("/profiles/person-007%2F%C3%A4%25")).await;
    assert_eq!(person["traits"]["name"]["value"], "person-007/ä%");
}

async fn a_change_on_one_device_reaches_the_streams_of_all(setup: Setup) {
    let running = setup.start(&[KEYS, PER_DEVICE, AT_ONCE]).await;
    let laptop = identify(&running, AGENT, "ada", &json!({ "nickname": "ada", "avatar": 1 })).await;
    let phone = identify(&running, PHONE, "ada", &json!({ "nickname": "ada", "avatar": 1 })).await;
    let other = identify(&running, AGENT, "bob", &json!({ "nickname": "bob" })).await;
    assert_ne!(laptop, phone);
    running.applied(3).await;
    let mut readers = Vec::new();
    for session in [&laptop, &phone, &phone, &other] {
        readers.push(Reader::open(&running, session, None).await.expect("a place"));
    }
    for (reader, name) in readers.iter_mut().zip(["ada", "ada", "ada", "bob"]) {
        assert_eq!(reader.traits().await.1["nickname"], name);
    }
    assert_eq!(metric(&running, "dashi_api_streams").await, 4);

    identify(&running, AGENT, "ada", &json!({ "nickname": "countess" })).await;
    for reader in &mut readers[..3] {
        assert_eq!(reader.traits().await.1, json!({ "nickname": "countess", "avatar": 1 }));
    }
    // The phone sends what it knew, and a new picture: the nickname stays, and the laptop sees the picture.
    identify(&running, PHONE, "ada", &json!({ "nickname": "ada", "avatar": 2 })).await;
    let mut version = String::new();
    for reader in &mut readers[..3] {
        let (sent, traits) = reader.traits().await;
        assert_eq!(traits, json!({ "nickname": "countess", "avatar": 2 }));
        version = sent;
    }
    let read = shown(&running, &path(&format!("/sessions/{phone}"))).await;
    assert_eq!(read["version"], json!(version));
    // Others were not notified of it.
    identify(&running, AGENT, "bob", &json!({ "nickname": "robert" })).await;
    assert_eq!(readers[3].traits().await.1, json!({ "nickname": "robert" }));
    eventually(SOON, "all events are counted", async || {
        metric(&running, "dashi_api_stream_events_total").await == 11
    })
    .await;
    drop(readers);
    eventually(SOON, "readers that go are noticed", async || {
        metric(&running, "dashi_api_streams").await == 0
    })
    .await;
    assert_eq!(metric(&running, "dashi_api_streams_dropped_total").await, 0);
    assert_eq!(complaints(&running), Vec::<String>::new());
}

async fn a_stream_may_come_before_its_session_and_goes_on_where_it_was(setup: Setup) {
    let heartbeat = ("DASHI_API_STREAM_HEARTBEAT_MS", "100");
    let running = setup.start(&[KEYS, AT_ONCE, heartbeat]).await;
    // Ids are computed: an event of the same visitor names the session before anything of it is applied elsewhere.
    let mut unknown = Reader::open(&running, SESSION, None).await.expect("a place");
    let (nothing, traits) = unknown.traits().await;
    assert_eq!(traits, json!({}));
    assert_eq!(unknown.next().await, Message::Comment);
    let mut resumed = Reader::open(&running, SESSION, Some(&nothing)).await.expect("a place");
    assert_eq!(resumed.next().await, Message::Comment, "nothing has changed since");

    let session =
        running.accept("event", &json!({ "url": "/" })).await["sessionId"].as_str().unwrap().to_owned();
    let mut reader = Reader::open(&running, &session, None).await.expect("a place");
    assert_eq!(reader.traits().await.1, json!({}));
    running.accept("identify", &json!({ "data": { "own": 1 } })).await;
    assert_eq!(reader.traits().await.1, json!({ "own": 1 }));
    // The device signs in: the stream of its anonymous session follows the person from now on.
    identify(&running, AGENT, "ada", &json!({ "name": "Ada" })).await;
    let (mut version, mut traits) = reader.traits().await;
    if traits != json!({ "own": 1, "name": "Ada" }) {
        (version, traits) = reader.traits().await;
    }
    assert_eq!(traits, json!({ "own": 1, "name": "Ada" }));
    drop(reader);
    let mut resumed = Reader::open(&running, &session, Some(&version)).await.expect("a place");
    assert_eq!(resumed.next().await, Message::Comment);
    drop(resumed);
    identify(&running, PHONE, "ada", &json!({ "name": "Countess" })).await;
    running.applied(4).await;
    let mut resumed = Reader::open(&running, &session, Some(&version)).await.expect("a place");
    let (newer, traits) = resumed.traits().await;
    assert_eq!(traits, json!({ "own": 1, "name": "Countess" }));
    assert_ne!(newer, version);
}

async fn there_are_so_many_streams_and_no_more(setup: Setup) {
    let running =
        setup.start(&[KEYS, ("DASHI_API_STREAMS_MAX", "2"), ("DASHI_INGEST_RETRY_AFTER_S", "7")]).await;
    let mut first = Reader::open(&running, SESSION, None).await.expect("a place");
    let _second = Reader::open(&running, SESSION, None).await.expect("a place");
    first.traits().await;
    let refused = Reader::open(&running, SESSION, None).await.err();
    assert_eq!(refused, Some((503, Some("7".to_owned()))));
    // Other requests are answered as ever.
    assert_eq!(get(&running, &path("/profiles")).await.status, 200);
    drop(first);
    eventually(SOON, "the place is free again", async || Reader::open(&running, SESSION, None).await.is_ok())
        .await;
}

/// Traits that no socket takes at once from a reader that does not read.
fn large(name: &str) -> Value {
    let mut data = json!({ "name": name });
    for number in 0..600 {
        data[format!("key-{number}")] = json!("x".repeat(500));
    }
    data
}

/// Asks for a stream with little room at this end, and reads nothing.
async fn stuck(running: &Running, session: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let mut stream =
        socket.connect(running.authority().parse().expect("an address")).await.expect("it listens");
    let path = path(&format!("/sessions/{session}/stream?key={KEY}"));
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.expect("it is sent");
    stream
}

async fn a_reader_that_is_stuck_is_dropped_and_the_others_go_on(setup: Setup) {
    let timeout = ("DASHI_API_STREAM_WRITE_TIMEOUT_MS", "1000");
    let running = setup.start(&[KEYS, AT_ONCE, timeout]).await;
    let session = identify(&running, AGENT, "ada", &large("Ada")).await;
    running.applied(1).await;
    let mut reader = Reader::open(&running, &session, None).await.expect("a place");
    assert_eq!(reader.traits().await.1["name"], "Ada");
    let mut stuck = stuck(&running, &session).await;
    eventually(SOON, "the second stream is open", async || metric(&running, "dashi_api_streams").await == 2)
        .await;
    // While it is stuck, and after.
    identify(&running, AGENT, "ada", &json!({ "name": "Countess" })).await;
    assert_eq!(reader.traits().await.1["name"], "Countess");
    eventually(SOON, "it is dropped", async || {
        metric(&running, "dashi_api_streams_dropped_total").await == 1
            && metric(&running, "dashi_api_streams").await == 1
    })
    .await;
    identify(&running, AGENT, "ada", &json!({ "name": "Lovelace" })).await;
    assert_eq!(reader.traits().await.1["name"], "Lovelace");
    // Its connection is closed, in the middle of what it did not take.
    let rest = tokio::time::timeout(SOON, read_until_silent(&mut stuck, SOON)).await.expect("it is closed");
    assert!(rest.starts_with("HTTP/1.1 200 OK\r\n") && !rest.contains("Countess"), "{} bytes", rest.len());
    assert!(!rest.ends_with("0\r\n\r\n"), "the answer was cut off");
}

async fn a_stop_ends_all_streams_at_once(setup: Setup) {
    let mut running = setup.start(&[KEYS, AT_ONCE]).await;
    let session = identify(&running, AGENT, "ada", &large("Ada")).await;
    running.applied(1).await;
    let mut reader = Reader::open(&running, &session, None).await.expect("a place");
    reader.traits().await;
    let stuck = stuck(&running, &session).await;
    eventually(SOON, "both streams are open", async || metric(&running, "dashi_api_streams").await == 2)
        .await;
    let began = Instant::now();
    running.dashi().sigterm();
    assert_eq!(reader.event().await, Message::Resync(json!({ "reason": "draining" })));
    assert_eq!(reader.next().await, Message::End);
    let shown = began.elapsed();
    let status = running.dashi().wait_exit(SOON).await;
    assert_eq!(status.code(), Some(0), "{}", running.dashi().stderr());
    let ended = began.elapsed();
    assert!(shown < Duration::from_secs(5) && ended < Duration::from_secs(15), "{shown:?} {ended:?}");
    drop(stuck);
}

/// Two processes on one log and one store: the streams of both show the rows that one of them projects.
async fn every_process_tells_what_any_of_them_projects(deployment: Deployment) {
    let deployment = deployment.with(KEYS.0, KEYS.1).with(AT_ONCE.0, AT_ONCE.1);
    deployment.register().await;
    let mut collector = deployment.start("collect").ready().await;
    let mut projector = deployment.start("project").ready().await;
    let identify = async |data: Value| {
        let payload = json!({ "website": deployment.website(), "id": "ada", "data": data });
        let url = format!("{}/api/send", collector.url());
        let body = json!({ "type": "identify", "payload": payload });
        let answer = post_json(&url, &body, &[("user-agent", AGENT)]).await.expect("an answer");
        answer.json()["sessionId"].as_str().expect("a session").to_owned()
    };
    let session = identify(json!({ "n": 0 })).await;
    deployment.settled().await;
    let path = format!("/api/websites/{}/sessions/{session}/stream", deployment.website());
    let mut readers = Vec::new();
    for server in [&collector, &projector] {
        let mut reader = Reader::at(&server.authority, &path, None).await.expect("a place");
        assert_eq!(reader.traits().await.1, json!({ "n": 0 }));
        readers.push(reader);
    }
    for n in 1..=3 {
        identify(json!({ "n": n })).await;
        for reader in &mut readers {
            assert_eq!(reader.traits().await.1, json!({ "n": n }));
        }
    }
    for server in [&mut collector, &mut projector] {
        assert_eq!(server.dashi.terminate().await, Some(0));
    }
    for reader in &mut readers {
        assert_eq!(reader.event().await, Message::Resync(json!({ "reason": "draining" })));
    }
}

#[tokio::test]
async fn every_process_tells_what_any_of_them_projects_into_a_file() {
    let directory = TestDirectory::create("profiles");
    every_process_tells_what_any_of_them_projects(Deployment::embedded(&directory)).await;
}

#[tokio::test]
async fn every_process_tells_what_any_of_them_projects_on_kafka_and_postgres() {
    let log = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("profiles"));
    let database = TestDatabase::create().await;
    every_process_tells_what_any_of_them_projects(Deployment::new(log, database.url())).await;
}

#[tokio::test]
async fn streams_outlive_an_outage_of_the_database_and_reads_are_refused_meanwhile() {
    let directory = TestDirectory::create("profiles");
    let mut postgres = PostgresServer::start().await;
    postgres.create_database("dashi").await;
    let log = format!("sqlite:{}", directory.path().join("log.db").display());
    let deployment = Deployment::new(log, postgres.url("dashi"))
        .with(KEYS.0, KEYS.1)
        .with(AT_ONCE.0, AT_ONCE.1)
        .with("DASHI_API_STREAM_HEARTBEAT_MS", "200")
        .with("DASHI_INGEST_REQUEST_TIMEOUT_MS", "3000");
    deployment.register().await;
    let mut server = deployment.start("serve").ready().await;
    let identify = async |n: u32| {
        let payload = json!({ "website": deployment.website(), "id": "ada", "data": { "n": n } });
        let body = json!({ "type": "identify", "payload": payload });
        let url = format!("{}/api/send", server.url());
        let answer = post_json(&url, &body, &[("user-agent", AGENT)]).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["sessionId"].as_str().expect("a session").to_owned()
    };
    let session = identify(0).await;
    deployment.settled().await;
    let of_website = format!("/api/websites/{}", deployment.website());
    let path = format!("{of_website}/sessions/{session}/stream");
    let mut reader = Reader::at(&server.authority, &path, None).await.expect("a place");
    assert_eq!(reader.traits().await.1, json!({ "n": 0 }));

    // Connections that hang are the harder case.
    postgres.freeze();
    let asked = Instant::now();
    let bearer = format!("Bearer {KEY}");
    let url = format!("{}{of_website}/profiles/ada", server.url());
    let refused =
        request(Method::GET, &url, Bytes::new(), &[("authorization", &bearer)]).await.expect("an answer");
    let envelope = r#"{"error":{"message":"Service unavailable","code":"service-unavailable","status":503}}"#;
    assert_eq!((refused.status, refused.text().as_str()), (503, envelope));
    assert!(refused.header("retry-after").is_some());
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    identify(1).await;
    for _ in 0..5 {
        assert_eq!(reader.next().await, Message::Comment);
    }
    postgres.thaw();
    assert_eq!(reader.traits().await.1, json!({ "n": 1 }));

    // Cut connections: changes may have been missed, and appear on the streams all the same.
    postgres.stop_immediate().await;
    identify(2).await;
    assert_eq!(reader.next().await, Message::Comment);
    postgres.start_again().await;
    assert_eq!(reader.traits().await.1, json!({ "n": 2 }));
    drop(reader);
    assert_eq!(server.dashi.terminate().await, Some(0));
}

#[tokio::test]
async fn the_api_lies_under_the_base_path() {
    let running = Setup::Embedded.start(&[KEYS, ("BASE_PATH", "/umami")]).await;
    assert_eq!(get(&running, &path("/profiles")).await.status, 404);
    let list = shown(&running, &format!("/umami{}", path("/profiles"))).await;
    assert_eq!(list, json!({ "profiles": [], "next": null }));
}
