//! The peers that are believed about a client's address and location, and a whole environment of Umami's.

use std::net::Ipv4Addr;
use std::time::Duration;

use dashi_domain::calendar::SaltRotation;
use dashi_domain::ids::{IdRules, IdentifiedSessions, Secret, Visitor};
use dashi_domain::token::Tokens;
use hyper::Method;
use integration_tests::http::{self, Connection};
use integration_tests::setup::{AGENT, SECRET, WEBSITE, submission};
use integration_tests::{Dashi, Running, Setup, TestDatabase, eventually, free_port};
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row as _};

const SOON: Duration = Duration::from_secs(60);
/// Two peers that a machine has without being set up.
const DIRECT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// A moment that visitors' ids depend on.
const AT_S: i64 = 1_777_593_600;

fn rules(rotation: SaltRotation, zone: &str) -> IdRules {
    let zone = TimeZone::get(zone).expect("a zone");
    IdRules { secret: Secret::from_text(SECRET), rotation, zone, identified: IdentifiedSessions::Shared }
}

/// The session of a visitor from this address.
fn session_at(rules: &IdRules, address: &str) -> String {
    let visitor = Visitor { source: WEBSITE, address, user_agent: AGENT, distinct_id: None };
    rules.session_id(&visitor, AT_S * 1_000).to_string()
}

/// Posts an event from a peer's address; returns the status, and the session if there is one.
async fn post_from(
    running: &Running,
    peer: Ipv4Addr,
    payload: &Value,
    headers: &[(&str, &str)],
) -> (u16, Value) {
    let mut payload = payload.clone();
    payload["timestamp"] = json!(AT_S);
    let headers = [headers, &[("user-agent", AGENT)]].concat();
    let mut connection = Connection::open_from(peer, running.authority()).await.unwrap();
    let answer = connection.post_json("/api/send", &submission("event", &payload), &headers).await.unwrap();
    (answer.status, answer.json()["sessionId"].clone())
}

#[tokio::test]
async fn only_a_trusted_proxy_says_who_the_client_is_and_where() {
    for trusted in ["127.0.0.2", "10.0.0.0/8, 127.0.0.2/31", "::1,127.0.0.2/32 ,"] {
        let env = [("DASHI_INGEST_TRUSTED_PROXIES", trusted), ("IGNORE_IP", "203.0.113.7")];
        let running = Setup::Embedded.start(&env).await;
        let rules = rules(SaltRotation::Month, "UTC");
        let claims =
            [("x-forwarded-for", "203.0.113.1, 127.0.0.1"), ("cf-ipcountry", "GB"), ("cf-ipcity", "London")];
        let payload = json!({ "url": "/" });
        let direct = post_from(&running, DIRECT, &payload, &claims).await;
        assert_eq!(direct, (200, json!(session_at(&rules, "127.0.0.1"))), "{trusted}");
        let proxied = post_from(&running, PROXY, &payload, &claims).await;
        assert_eq!(proxied, (200, json!(session_at(&rules, "203.0.113.1"))), "{trusted}");
        // None of the headers is believed, so nobody is blocked, or not blocked, by his own words.
        for header in ["true-client-ip", "cf-connecting-ip", "x-real-ip", "x-forwarded-for", "forwarded"] {
            let claim = [(header, "203.0.113.7")];
            let direct = post_from(&running, DIRECT, &payload, &claim).await;
            assert_eq!(direct, (200, json!(session_at(&rules, "127.0.0.1"))), "{header}");
        }
        let blocked = post_from(&running, PROXY, &payload, &[("x-real-ip", "203.0.113.7")]).await;
        assert_eq!(blocked, (403, Value::Null));
        // What the payload says is the tracker's word, not a proxy's: it counts from everybody.
        let named = post_from(&running, DIRECT, &json!({ "url": "/", "ip": "192.0.2.9" }), &claims).await;
        assert_eq!(named, (200, json!(session_at(&rules, "192.0.2.9"))));

        running.applied(8).await;
        for (session, country, city) in
            [(direct.1, Value::Null, Value::Null), (proxied.1, json!("GB"), json!("London"))]
        {
            let condition = format!("session_id = '{}'", session.as_str().unwrap());
            let row = running.rows("session", &condition).await.remove(0);
            assert_eq!((&row["country"], &row["city"]), (&country, &city), "{row:?}");
        }
    }
}

#[tokio::test]
async fn a_configured_header_is_believed_from_a_trusted_proxy_only() {
    let env = [("DASHI_INGEST_TRUSTED_PROXIES", "127.0.0.2"), ("CLIENT_IP_HEADER", "X-My-Ip")];
    let running = Setup::Embedded.start(&env).await;
    let rules = rules(SaltRotation::Month, "UTC");
    let mine = [("x-my-ip", "203.0.113.9")];
    let payload = json!({ "url": "/" });
    assert_eq!(post_from(&running, PROXY, &payload, &mine).await.1, session_at(&rules, "203.0.113.9"));
    assert_eq!(post_from(&running, DIRECT, &payload, &mine).await.1, session_at(&rules, "127.0.0.1"));
}

#[tokio::test]
async fn unless_proxies_are_named_everybody_is_believed_as_in_umami() {
    let running = Setup::Embedded.start(&[]).await;
    let rules = rules(SaltRotation::Month, "UTC");
    for peer in [DIRECT, PROXY] {
        let claims = [("x-forwarded-for", "203.0.113.1"), ("cf-ipcountry", "GB")];
        let answer = post_from(&running, peer, &json!({ "url": "/" }), &claims).await;
        assert_eq!(answer, (200, json!(session_at(&rules, "203.0.113.1"))));
    }
    let silent = post_from(&running, PROXY, &json!({ "url": "/" }), &[]).await;
    assert_eq!(silent, (200, json!(session_at(&rules, "127.0.0.2"))), "the peer itself");
    running.applied(3).await;
    assert_eq!(running.number("SELECT count(*) FROM session WHERE country = 'GB'").await, 1);
    assert_eq!(running.complaints(), [""; 0], "on a loopback address no warning is needed");
}

/// Starts to serve on every address until this is logged; returns the log lines about proxies.
async fn logged_about_proxies(trusted: &str) -> Vec<String> {
    let port = free_port();
    let listen = format!("0.0.0.0:{port}");
    let env = [("DASHI_INGEST_TRUSTED_PROXIES", trusted), ("DASHI_LOGS_FORMAT", "json")];
    let mut dashi = Dashi::spawn(&["serve", "--listen", &listen], &env);
    dashi.wait_ready(&format!("http://127.0.0.1:{port}")).await;
    assert_eq!(dashi.terminate().await, Some(0));
    let about = |line: &&str| line.contains("trusted_proxies");
    dashi.stderr().lines().filter(about).map(str::to_owned).collect()
}

#[tokio::test]
async fn who_listens_in_public_and_names_no_proxies_is_warned_once() {
    let shown = logged_about_proxies("").await;
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert!(shown[0].contains("can claim any client address"), "{shown:?}");
    assert_eq!(logged_about_proxies("127.0.0.1").await, [""; 0]);
}

#[tokio::test]
async fn a_proxy_that_is_no_address_is_refused_before_anything_is_made() {
    for (list, entry) in [
        ("10.0.0.0/8, proxy.example", "proxy.example"),
        ("10.0.0.0/33", "10.0.0.0/33"),
        ("127.0.0.1,10.0.0.0/", "10.0.0.0/"),
    ] {
        let env = [("DASHI_INGEST_TRUSTED_PROXIES", list)];
        let listen = format!("127.0.0.1:{}", free_port());
        for args in
            [&["config", "check"][..], &["serve", "--listen", &listen], &["collect", "--listen", &listen]]
        {
            let mut dashi = Dashi::spawn(args, &env);
            assert_eq!(dashi.wait_exit(SOON).await.code(), Some(2), "{list}: {}", dashi.logs());
            let shown = dashi.stderr();
            for word in ["ingest.trusted_proxies", &format!("{entry:?}"), "CIDR"] {
                assert!(shown.contains(word), "{word} is not in {shown}");
            }
            assert!(!dashi.directory().join("data").exists(), "{args:?}");
        }
    }
}

/// Columns of the one row that a query gives, as text.
async fn row(database: &TestDatabase, query: &str) -> Vec<Option<String>> {
    let row = sqlx::query(AssertSqlSafe(query.to_owned())).fetch_one(&mut database.connect().await).await;
    let row = row.unwrap_or_else(|error| panic!("{query}: {error}"));
    (0..row.len()).map(|column| row.get::<Option<String>, _>(column)).collect()
}

/// The environment of an Umami is all that is needed.
#[tokio::test]
async fn an_environment_of_umamis_is_understood_whole() {
    let database = TestDatabase::create().await;
    let env = [
        ("APP_SECRET", SECRET),
        ("DATABASE_URL", database.url()),
        ("TZ", "Asia/Kolkata"),
        ("CLIENT_IP_HEADER", "X-My-Ip"),
        ("IGNORE_IP", "203.0.113.77, 198.51.100.0/24"),
        ("DISABLE_BOT_CHECK", "0"),
        ("SALT_ROTATION", "week"),
        ("SKIP_LOCATION_HEADERS", "1"),
        ("REMOVE_TRAILING_SLASH", "1"),
        ("CORS_MAX_AGE", "123"),
    ];
    let added = Dashi::run(&["website", "add", "--name", "test", "--id", WEBSITE], &env).await;
    assert_eq!(added.code, Some(0), "{}", added.stderr);
    let authority = format!("127.0.0.1:{}", free_port());
    let mut dashi = Dashi::spawn(&["serve", "--listen", &authority], &env);
    dashi.wait_ready(&format!("http://{authority}")).await;

    let url = format!("http://{authority}/api/send");
    let payload = json!({
        "url": "/x/", "timestamp": AT_S, "name": "ev", "data": { "local": "2026-05-01T08:20:30" },
    });
    let post = async |ip: &str, agent: &str| {
        let headers =
            [("x-my-ip", ip), ("x-real-ip", "192.0.2.99"), ("user-agent", agent), ("cf-ipcountry", "GB")];
        http::post_json(&url, &submission("event", &payload), &headers).await.unwrap()
    };
    let taken = post("203.0.113.9", AGENT).await;
    assert_eq!(taken.status, 200, "{}", taken.text());
    assert_eq!(taken.header("access-control-max-age"), Some("123"), "CORS_MAX_AGE");
    let taken = taken.json();
    let ours = rules(SaltRotation::Week, "Asia/Kolkata");
    let session = session_at(&ours, "203.0.113.9");
    for (rotation, zone) in [(SaltRotation::Month, "Asia/Kolkata"), (SaltRotation::Week, "UTC")] {
        assert_ne!(session_at(&rules(rotation, zone), "203.0.113.9"), session, "each of the two matters");
    }
    assert_eq!(taken["sessionId"], session, "TZ, SALT_ROTATION, CLIENT_IP_HEADER and APP_SECRET");
    let claims = Tokens::new(&Secret::from_text(SECRET)).verify(taken["cache"].as_str().unwrap(), AT_S);
    assert_eq!(claims.and_then(|claims| claims.session_id).map(|id| id.to_string()), Some(session.clone()));
    for blocked in ["203.0.113.77", "198.51.100.200"] {
        assert_eq!(post(blocked, AGENT).await.status, 403, "IGNORE_IP: {blocked}");
    }
    let bot = post("203.0.113.10", "curl/8.0").await;
    assert!(bot.json()["cache"].is_string(), "DISABLE_BOT_CHECK is set: {}", bot.text());
    let preflight = http::request(Method::OPTIONS, &url, "", &[]).await.unwrap();
    assert_eq!(preflight.header("access-control-max-age"), Some("123"));

    eventually(SOON, "both events are in the tables", async || {
        let count = row(&database, "SELECT count(*)::text FROM website_event").await;
        if count == [Some("2".to_owned())] { Ok(()) } else { Err(format!("{count:?}")) }
    })
    .await;
    let of_session = format!("session_id = '{session}'");
    let event =
        row(&database, &format!("SELECT url_path, event_name FROM website_event WHERE {of_session}")).await;
    assert_eq!(event, [Some("/x".to_owned()), Some("ev".to_owned())], "REMOVE_TRAILING_SLASH");
    let place =
        row(&database, &format!("SELECT country::text, browser FROM session WHERE {of_session}")).await;
    assert_eq!(place, [None, Some("chrome".to_owned())], "SKIP_LOCATION_HEADERS");
    let dates = row(
        &database,
        &format!(
            "SELECT d.string_value FROM event_data AS d JOIN website_event AS e
             ON e.event_id = d.website_event_id WHERE e.{of_session} AND d.date_value = '2026-05-01 02:50:30Z'"
        ),
    )
    .await;
    assert_eq!(dates, [Some("2026-05-01T02:50:30.000Z".to_owned())], "TZ");
    assert!(!dashi.directory().join("data/store.db").exists(), "DATABASE_URL is the store");
    assert_eq!(dashi.terminate().await, Some(0));
}
