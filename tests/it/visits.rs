//! Links and pixels (docs/umami-contract.md §13): answered whatever becomes of the visit, recorded as an
//! event, never held up.

use std::time::{Duration, Instant};

use hyper::Method;
use integration_tests::http::{self, Answer};
use integration_tests::setup::AGENT;
use integration_tests::{Running, Setup, eventually, on_both_setups};
use serde_json::json;
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

on_both_setups!(
    a_link_leads_on_and_its_visit_is_an_event,
    a_pixel_is_a_picture_and_its_visit_is_an_event,
    a_removed_link_leads_nowhere_and_its_slug_stays_taken,
);

const LINK: &str = "33333333-3333-4333-8333-333333333333";
const PIXEL: &str = "44444444-4444-4444-8444-444444444444";

/// How long a busy machine may take for what is bounded by half a second.
const PROMPT: Duration = Duration::from_secs(5);

async fn visit(running: &Running, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut all = vec![("user-agent", AGENT), ("host", "go.example:8080")];
    all.retain(|(name, _)| !headers.iter().any(|(other, _)| name == other));
    all.extend(headers);
    http::request(method, &running.url(path), "", &all).await.expect("an answer")
}

async fn add(running: &Running, command: &[&str]) {
    let added = running.run(command).await;
    assert_eq!(added.code, Some(0), "{}", added.stderr);
}

async fn add_link(running: &Running, slug: &str, url: &str, id: &str) {
    add(running, &["link", "add", "--name", "n", "--slug", slug, "--url", url, "--id", id]).await;
}

#[track_caller]
fn assert_leads(answer: &Answer, location: &str) {
    assert_eq!((answer.status, answer.header("location")), (307, Some(location)), "{}", answer.text());
    assert!(answer.body.is_empty());
    assert_eq!(answer.header("access-control-allow-origin"), None);
}

async fn a_link_leads_on_and_its_visit_is_an_event(setup: Setup) {
    let running = setup.start(&[]).await;
    let unknown = visit(&running, Method::GET, "/q/sale", &[]).await;
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.text(), r#"{"error":{"message":"Not found","code":"not-found","status":404}}"#);
    add_link(&running, "sale", "HTTPS://Shop.Example/a b?x=ü", LINK).await;
    let there = "https://shop.example/a%20b?x=%C3%BC";
    // Found although it was looked for in vain a moment ago.
    eventually(PROMPT, "the link is known", async || {
        let head = visit(&running, Method::HEAD, "/q/sale", &[]).await;
        if head.status == 307 { Ok(()) } else { Err(head.status) }
    })
    .await;
    // Umami records a visit for a HEAD, too; link checkers are no visitors.
    assert_leads(&visit(&running, Method::HEAD, "/q/sale", &[]).await, there);
    let headers = [("referer", "https://news.example/a?b=1"), ("x-forwarded-for", "2.125.160.216")];
    assert_leads(&visit(&running, Method::GET, "/q/sale?utm_source=mail&name=x", &headers).await, there);
    // Bots get where they want to, and so do those whose Referer is no URL.
    assert_leads(&visit(&running, Method::GET, "/q/sale", &[("user-agent", "curl/8.0")]).await, there);
    assert_leads(&visit(&running, Method::GET, "/q/sale", &[("referer", "http://[")]).await, there);
    running.applied(2).await;
    assert_eq!(running.totals().await.in_log, 2, "neither the HEADs nor the bot");
    let rows = running.rows("website_event", "referrer_domain IS NOT NULL").await;
    let row = &rows[0];
    assert_eq!(
        json!([
            rows.len(),
            row["website_id"],
            row["event_type"],
            row["event_name"],
            row["url_path"],
            row["url_query"]
        ]),
        json!([1, LINK, 3, null, "/q/sale", "utm_source=mail&name=x"])
    );
    // The public host, where Umami has its server's internal one.
    assert_eq!(
        json!([
            row["hostname"],
            row["utm_source"],
            row["referrer_domain"],
            row["referrer_path"],
            row["page_title"]
        ]),
        json!(["go.example", "mail", "news.example", "/a", null])
    );
    let sessions = running.rows("session", &format!("website_id = '{LINK}'")).await;
    assert_eq!(sessions.len(), 2, "{sessions:?}");
    for session in &sessions {
        assert_eq!(json!([session["browser"], session["screen"]]), json!(["chrome", null]));
    }
    for (path, allow) in [("/q/sale", "GET, HEAD, OPTIONS"), ("/p/sale", "GET, HEAD, OPTIONS")] {
        let options = visit(&running, Method::OPTIONS, path, &[]).await;
        assert_eq!((options.status, options.header("allow")), (204, Some(allow)));
        assert_eq!(visit(&running, Method::POST, path, &[]).await.status, 405);
    }
    let slash = visit(&running, Method::GET, "/q/sale/?a=1", &[]).await;
    assert_eq!((slash.status, slash.header("location")), (308, Some("/q/sale?a=1")));
}

async fn a_pixel_is_a_picture_and_its_visit_is_an_event(setup: Setup) {
    let running = setup.start(&[("IGNORE_IP", "192.0.2.9")]).await;
    add(&running, &["pixel", "add", "--name", "n", "--slug", "mail-1", "--id", PIXEL]).await;
    for (method, headers, recorded) in [
        (Method::GET, vec![], true),
        (Method::HEAD, vec![], false),
        (Method::GET, vec![("user-agent", "Googlebot/2.1")], false),
        (Method::GET, vec![("x-forwarded-for", "192.0.2.9")], false),
        (Method::GET, vec![("host", "no host at all")], true),
    ] {
        let before = running.totals().await.in_log;
        let answer = visit(&running, method.clone(), "/p/mail-1?utm_campaign=c", &headers).await;
        assert_eq!(answer.status, 200, "{headers:?}");
        let header = |name| answer.header(name);
        assert_eq!(
            [
                header("content-type"),
                header("content-length"),
                header("cache-control"),
                header("pragma"),
                header("expires")
            ],
            [
                Some("image/gif"),
                Some("43"),
                Some("no-cache, no-store, must-revalidate"),
                Some("no-cache"),
                Some("0")
            ]
        );
        if method == Method::GET {
            let hex: String = answer.body.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(
                hex,
                "47494638396101000100800000ffffff00000021f90401000000002c00000000010001000002024401003b"
            );
        }
        // The answer does not wait long for the log, whose first record takes its time on Kafka.
        if recorded {
            running.applied(before + 1).await;
        }
        assert_eq!(running.totals().await.in_log, before + u64::from(recorded), "{method} {headers:?}");
    }
    assert_eq!(running.applied(2).await.in_log, 2);
    let rows = running.rows("website_event", "event_type = 4").await;
    assert_eq!(rows.len(), 2);
    for row in &rows {
        assert_eq!(
            json!([row["website_id"], row["url_path"], row["utm_campaign"], row["referrer_path"]]),
            json!([PIXEL, "/p/mail-1", "c", null])
        );
    }
    let hosts: Vec<_> = rows.iter().map(|row| row["hostname"].clone()).collect();
    assert!(hosts.contains(&json!("go.example")) && hosts.contains(&json!("localhost")), "{hosts:?}");
}

async fn a_removed_link_leads_nowhere_and_its_slug_stays_taken(setup: Setup) {
    let running = setup.start(&[("DASHI_INGEST_WEBSITE_REFRESH_MS", "200")]).await;
    add_link(&running, "gone", "https://a.example/", LINK).await;
    assert_leads(&visit(&running, Method::GET, "/q/gone", &[]).await, "https://a.example/");
    add(&running, &["link", "remove", LINK]).await;
    eventually(PROMPT, "the link is gone", async || {
        let answer = visit(&running, Method::HEAD, "/q/gone", &[]).await;
        if answer.status == 404 { Ok(()) } else { Err(answer.status) }
    })
    .await;
    let again =
        running.run(&["link", "add", "--name", "n", "--slug", "gone", "--url", "https://b.example/"]).await;
    assert_eq!(again.code, Some(1));
    assert!(again.stderr.contains("\"gone\"") && again.stderr.contains("choose another"), "{}", again.stderr);
    let listed = running.run(&["link", "list", "--json"]).await;
    assert_eq!(listed.stdout.trim(), "[]");
    for (name, url) in [("n", "nowhere"), ("n", "javascript:alert(1)"), ("a\tb", "https://a.example/")] {
        let refused = running.run(&["link", "add", "--name", name, "--url", url]).await;
        assert_eq!(refused.code, Some(2), "{name:?} {url}: {}", refused.stderr);
    }
}

#[tokio::test]
async fn whatever_host_a_visitor_names_the_path_is_the_links() {
    let running = Setup::Embedded.start(&[]).await;
    add_link(&running, "x", "https://a.example/", LINK).await;
    for (headers, hostname) in [
        (vec![("x-forwarded-host", "front.example, inner.example")], "front.example"),
        (vec![("x-forwarded-host", ",")], "go.example"),
        (vec![("host", "x/y")], "localhost"),
        (vec![("host", "user:pw@evil.example")], "localhost"),
    ] {
        assert_leads(&visit(&running, Method::GET, "/q/x", &headers).await, "https://a.example/");
        let hosts = eventually_hosts(&running, hostname).await;
        assert!(hosts.iter().all(|row| row == "/q/x"), "{headers:?}: {hosts:?}");
    }
    // As clients write it who take Dashi for a proxy.
    let whole = format!(
        "GET http://abs.example/q/x?a=1 HTTP/1.1\r\nhost: abs.example\r\nuser-agent: {AGENT}\r\n\r\n"
    );
    let answer = running.raw(whole.as_bytes(), Duration::from_secs(2)).await;
    assert!(answer.starts_with("HTTP/1.1 307"), "{answer}");
    let paths = eventually_hosts(&running, "abs.example").await;
    assert_eq!(paths, ["/q/x"]);
    for path in ["/q/%FF", "/q/a%2Fb", "/p/%00"] {
        let answer = visit(&running, Method::GET, path, &[]).await;
        assert_eq!((answer.status, answer.header("content-type")), (404, Some("application/json")), "{path}");
    }
}

/// The paths of the events with this host, once there is one.
async fn eventually_hosts(running: &Running, hostname: &str) -> Vec<String> {
    let query = format!("SELECT url_path FROM website_event WHERE hostname = '{hostname}'");
    let seen = std::cell::RefCell::default();
    eventually(PROMPT, "an event of that host", async || {
        *seen.borrow_mut() = running.texts(&query).await;
        if seen.borrow().is_empty() {
            Err(running.texts("SELECT hostname FROM website_event").await.join(", "))
        } else {
            Ok(())
        }
    })
    .await;
    seen.into_inner()
}

#[tokio::test]
async fn a_link_that_is_no_url_is_recorded_and_answered_500() {
    let running = Setup::Embedded.start(&[]).await;
    // Not by our command, but Umami's dashboard lets it pass.
    let path = running.directory().join("store.db");
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_secs(30));
    let mut store = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query(
        "INSERT INTO link (link_id, name, slug, url, created_at) VALUES (?, 'n', 'bad', 'nowhere', 0)",
    )
    .bind(LINK)
    .execute(&mut store)
    .await
    .unwrap();
    let answer = visit(&running, Method::GET, "/q/bad", &[]).await;
    assert_eq!((answer.status, answer.body.len()), (500, 0));
    running.applied(1).await;
}

#[tokio::test]
async fn who_follows_a_link_does_not_wait_for_the_log() {
    let mut running = Setup::Embedded.start(&[("DASHI_INGEST_REDIRECT_WAIT_MS", "200")]).await;
    add_link(&running, "x", "https://a.example/", LINK).await;
    assert_leads(&visit(&running, Method::GET, "/q/x", &[]).await, "https://a.example/");
    running.applied(1).await;
    // Whoever holds the lock keeps the log from writing.
    let held = std::fs::File::open(running.directory().join("log.db.segments/append-lock")).unwrap();
    held.lock().unwrap();
    for _ in 0..3 {
        let asked = Instant::now();
        assert_leads(&visit(&running, Method::GET, "/q/x", &[]).await, "https://a.example/");
        let waited = asked.elapsed();
        assert!((Duration::from_millis(200)..Duration::from_secs(2)).contains(&waited), "{waited:?}");
    }
    held.unlock().unwrap();
    // A visit that was answered before it was stored is stored all the same, also if the process is asked to stop.
    assert_eq!(running.dashi().terminate().await, Some(0));
    running.start_again().await;
    running.applied(4).await;
    assert_eq!(running.totals().await.in_log, 4);
}
