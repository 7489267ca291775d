//! A page reads and follows its own person by its website's signature, and nobody else (docs/follow.md).

use std::time::{Duration, Instant};

use dashi_domain::identity::{IdentityKey, signature};
use hyper::Method;
use hyper::body::Bytes;
use integration_tests::http::{Answer, request};
use integration_tests::setup::{AGENT, WEBSITE};
use integration_tests::{Deployment, Running, Setup, TestDirectory, eventually, free_port, on_both_setups};
use serde_json::json;
use uuid::Uuid;

use crate::profiles_http::{Message, PHONE, Reader, identify, metric};

on_both_setups!(
    a_page_reads_its_own_person_by_its_signature,
    nobody_elses_traits_can_be_read,
    a_change_on_one_device_reaches_the_pages_of_the_same_person_alone,
    the_pages_of_a_person_have_so_many_streams,
);

const KEY: &str = "the-identity-key-of-these-tests-is-long";
const IDENTITY: (&str, &str) = ("DASHI_PROFILES_IDENTITY_KEY", KEY);
const API_KEY: &str = "the-first-key-of-the-tests";
const API_KEYS: (&str, &str) = ("DASHI_API_KEYS", API_KEY);
const OTHER_WEBSITE: &str = "33333333-3333-4333-8333-333333333333";

/// Longest wait for anything that has to come.
const SOON: Duration = Duration::from_secs(60);

const PATHS: [&str; 2] = ["/api/me", "/api/me/stream"];

/// As a website's server signs.
fn signed(website: &str, id: &str) -> String {
    let website: Uuid = website.parse().expect("an id");
    signature(&IdentityKey::new(KEY).expect("a key").website_key(website), id)
}

fn headers<'h>(bearer: &'h str, id: &'h str) -> [(&'h str, &'h str); 2] {
    [("authorization", bearer), ("x-dashi-id", id)]
}

async fn ask(running: &Running, path: &str, headers: &[(&str, &str)]) -> Answer {
    let answered = request(Method::GET, &running.url(path), Bytes::new(), headers).await;
    answered.unwrap_or_else(|error| panic!("GET {path}: {error:#}"))
}

/// Asks as a page of `website` whose person is `id`, percent-encoded.
async fn me(running: &Running, website: &str, id: &str, signature: &str) -> Answer {
    let bearer = format!("Bearer {signature}");
    ask(running, &format!("/api/me?website={website}"), &headers(&bearer, id)).await
}

async fn follow(running: &Running, id: &str) -> Result<Reader, (u16, Option<String>)> {
    let bearer = format!("Bearer {}", signed(WEBSITE, id));
    let path = format!("/api/me/stream?website={WEBSITE}");
    let (reader, headers) = Reader::ask(running.authority(), &path, &headers(&bearer, id)).await?;
    assert_eq!(headers["access-control-allow-origin"], "*", "pages are of other origins");
    Ok(reader)
}

async fn a_page_reads_its_own_person_by_its_signature(setup: Setup) {
    let running = setup.start(&[IDENTITY]).await;
    let person = "Łukasz K.";
    let signature = signed(WEBSITE, person);
    let encoded = "%C5%81ukasz%20K.";
    // Before any event names them.
    let nobody = me(&running, WEBSITE, encoded, &signature).await;
    let nothing = json!({ "websiteId": WEBSITE, "distinctId": person, "version": "0", "traits": {} });
    assert_eq!((nobody.status, nobody.json()), (200, nothing));

    identify(&running, AGENT, person, &json!({ "plan": "pro", "seats": 3, "address": { "city": "Kraków" } }))
        .await;
    identify(&running, PHONE, person, &json!({ "seats": 4 })).await;
    running.applied(2).await;
    let answer = me(&running, WEBSITE, encoded, &signature).await;
    let shown = answer.json();
    let version = shown["version"].clone();
    assert_eq!(
        (answer.status, &shown),
        (
            200,
            &json!({ "websiteId": WEBSITE, "distinctId": person, "version": version,
                     "traits": { "address.city": "Kraków", "plan": "pro", "seats": 4 } })
        )
    );
    assert_eq!(me(&running, WEBSITE, encoded, &signature.to_uppercase()).await.json(), shown);
    // A page of another origin may read it, nobody but the page may keep it, and for this person alone.
    assert_eq!(
        ["access-control-allow-origin", "cache-control", "vary", "content-type"]
            .map(|name| answer.header(name)),
        [Some("*"), Some("private, no-cache"), Some("Authorization, X-Dashi-Id"), Some("application/json")]
    );
    let bearer = format!("Bearer {signature}");
    let path = format!("/api/me?website={WEBSITE}");
    let tag = answer.header("etag").expect("a validator").to_owned();
    let known = [headers(&bearer, encoded).as_slice(), &[("if-none-match", &tag)]].concat();
    assert_eq!(ask(&running, &path, &known).await.status, 304);
    identify(&running, PHONE, person, &json!({ "seats": 5 })).await;
    running.applied(3).await;
    let changed = ask(&running, &path, &known).await;
    assert_eq!((changed.status, &changed.json()["traits"]["seats"]), (200, &json!(5)));

    for path in PATHS {
        let preflight = request(Method::OPTIONS, &running.url(path), Bytes::new(), &[]).await.unwrap();
        assert_eq!(preflight.status, 204, "{path}");
        let allowed = preflight.header("access-control-allow-headers").expect("a list").to_owned();
        // A star would not allow the first.
        for name in ["authorization", "x-dashi-id", "last-event-id"] {
            assert!(allowed.split(", ").any(|each| each == name), "{allowed}");
        }
        assert_eq!(preflight.header("access-control-allow-origin"), Some("*"));
        let posted = request(Method::POST, &running.url(path), "{}", &[]).await.unwrap();
        assert_eq!(posted.status, 405, "{path}: nothing can be written");
    }
    // Each website has a key of its own.
    let printed = running.run(&["website", "identity-key", WEBSITE]).await;
    let key = IdentityKey::new(KEY).unwrap().website_key(WEBSITE.parse().unwrap());
    assert_eq!((printed.code, printed.stdout.trim()), (Some(0), key.as_str()), "{}", printed.stderr);
    let json = running.run(&["website", "identity-key", WEBSITE, "--json"]).await;
    let read: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(read, json!({ "website": WEBSITE, "identity_key": key }));
    let unknown = running.run(&["website", "identity-key", OTHER_WEBSITE]).await;
    assert!(unknown.code == Some(1) && unknown.stdout.is_empty(), "{}", unknown.stderr);
}

async fn nobody_elses_traits_can_be_read(setup: Setup) {
    let running = setup.start(&[IDENTITY, API_KEYS]).await;
    identify(&running, AGENT, "ada", &json!({ "secret": "of-ada" })).await;
    identify(&running, PHONE, "bob", &json!({ "secret": "of-bob" })).await;
    running.applied(2).await;
    let (ada, bob) = (signed(WEBSITE, "ada"), signed(WEBSITE, "bob"));
    assert_eq!(me(&running, WEBSITE, "ada", &ada).await.json()["traits"]["secret"], "of-ada");
    let master = signature(KEY, "ada");
    let elsewhere = signed(OTHER_WEBSITE, "ada");
    let envelope = r#"{"error":{"message":"Unauthorized","code":"unauthorized","status":401}}"#;
    for path in PATHS {
        let at = format!("{path}?website={WEBSITE}");
        let unsigned = ask(&running, &at, &[("x-dashi-id", "ada")]).await;
        assert_eq!((unsigned.status, unsigned.text().as_str()), (401, envelope), "{path}");
        // A page must be able to read that it is refused.
        assert_eq!(unsigned.header("access-control-allow-origin"), Some("*"));
        for authorization in [
            String::new(),
            "Bearer".to_owned(),
            "Bearer ".to_owned(),
            ada.clone(),
            format!("Basic {ada}"),
            format!("Bearer {bob}"),
            format!("Bearer {elsewhere}"),
            format!("Bearer {master}"),
            format!("Bearer {}", &ada[1..]),
            format!("Bearer {ada}0"),
            format!("Bearer {ada}, {ada}"),
            // An operator's key is no person's signature.
            format!("Bearer {API_KEY}"),
        ] {
            let refused = ask(&running, &at, &headers(&authorization, "ada")).await;
            assert_eq!(
                (refused.status, refused.text().as_str()),
                (401, envelope),
                "{path} {authorization:?}"
            );
        }
        // A URL gets into logs: no part of it opens anything.
        for name in ["signature", "key", "token", "authorization"] {
            let refused = ask(&running, &format!("{at}&{name}={ada}"), &[("x-dashi-id", "ada")]).await;
            assert_eq!(refused.status, 401, "{name}");
        }
        let bearer = format!("Bearer {ada}");
        for id in ["bob", "Ada", "ada%20", "ada%00", "ad", "%61da2"] {
            assert_eq!(ask(&running, &at, &headers(&bearer, id)).await.status, 401, "{path} {id}");
        }
        // The signature of a website opens nothing of another, whichever of the two is named.
        let other = format!("{path}?website={OTHER_WEBSITE}");
        assert_eq!(ask(&running, &other, &headers(&bearer, "ada")).await.status, 401);
        let twice = format!("{path}?website={OTHER_WEBSITE}&website={WEBSITE}");
        assert_eq!(ask(&running, &twice, &headers(&bearer, "ada")).await.status, 401);
        for (bad, id) in [
            (path.to_owned(), Some("ada")),
            (format!("{path}?website=x"), Some("ada")),
            (at.clone(), None),
            (at.clone(), Some("")),
            (at.clone(), Some("%zz")),
            (at.clone(), Some("%FF")),
        ] {
            let named = id.map(|id| ("x-dashi-id", id));
            let sent = [&[("authorization", bearer.as_str())], named.as_slice()].concat();
            let refused = ask(&running, &bad, &sent).await;
            assert_eq!(
                (refused.status, refused.json()["error"]["code"].clone()),
                (400, json!("bad-request")),
                "{bad} {id:?}"
            );
        }
    }
    // A person of the other website who has the same id is somebody else.
    let namesake = me(&running, OTHER_WEBSITE, "ada", &elsewhere).await;
    assert_eq!((namesake.status, &namesake.json()["traits"]), (200, &json!({})));
    // And a signature opens no other path.
    for path in ["/profiles/ada", "/profiles", "", "/stats"] {
        let bearer = format!("Bearer {ada}");
        let refused =
            ask(&running, &format!("/api/websites/{WEBSITE}{path}"), &headers(&bearer, "ada")).await;
        assert_eq!(refused.status, 401, "{path}");
    }
    drop(running);

    // Without an identity key nothing is there.
    let running = setup.start(&[API_KEYS]).await;
    for path in PATHS {
        let bearer = format!("Bearer {ada}");
        let answer = ask(&running, &format!("{path}?website={WEBSITE}"), &headers(&bearer, "ada")).await;
        assert_eq!(
            (answer.status, answer.json()["error"]["code"].clone()),
            (404, json!("not-found")),
            "{path}"
        );
    }
    let printed = running.run(&["website", "identity-key", WEBSITE]).await;
    assert!(
        printed.code == Some(1) && printed.stderr.contains("profiles.identity_key"),
        "{}",
        printed.stderr
    );
}

/// With the projector's own settings: the times are those that a page sees.
async fn a_change_on_one_device_reaches_the_pages_of_the_same_person_alone(setup: Setup) {
    let running = setup.start(&[IDENTITY]).await;
    // The page may be quicker than its first event.
    let mut early = follow(&running, "ada").await.expect("a place");
    assert_eq!(early.traits().await, ("0".to_owned(), json!({})));
    identify(&running, AGENT, "ada", &json!({ "n": 0, "name": "Ada" })).await;
    let (version, traits) = early.traits().await;
    assert_eq!(traits, json!({ "n": 0, "name": "Ada" }));
    let mut laptop = follow(&running, "ada").await.expect("a place");
    assert_eq!(laptop.traits().await.0, version);
    let mut other = follow(&running, "bob").await.expect("a place");
    assert_eq!(other.traits().await.1, json!({}));

    let mut times = Vec::new();
    for n in 1..=10 {
        let began = Instant::now();
        identify(&running, PHONE, "ada", &json!({ "n": n })).await;
        assert_eq!(laptop.traits().await.1, json!({ "n": n, "name": "Ada" }));
        times.push(began.elapsed());
        assert_eq!(early.traits().await.1["n"], json!(n));
    }
    times.sort_unstable();
    eprintln!(
        "{setup:?}: from the phone's request to the laptop's stream: median {} ms, longest {} ms",
        times[times.len() / 2].as_millis(),
        times[times.len() - 1].as_millis()
    );
    // The other's next event is the other's own.
    identify(&running, AGENT, "bob", &json!({ "name": "Bob" })).await;
    assert_eq!(other.traits().await.1, json!({ "name": "Bob" }));

    // Whoever has the newest version hears nothing until there is a newer one.
    let (newest, _) = {
        let mut again = follow(&running, "ada").await.expect("a place");
        again.traits().await
    };
    let bearer = format!("Bearer {}", signed(WEBSITE, "ada"));
    let known = [headers(&bearer, "ada").as_slice(), &[("last-event-id", &newest)]].concat();
    let path = format!("/api/me/stream?website={WEBSITE}");
    let (mut resumed, _) = Reader::ask(running.authority(), &path, &known).await.expect("a place");
    identify(&running, PHONE, "ada", &json!({ "n": 11 })).await;
    assert_eq!(resumed.traits().await.1["n"], json!(11));
}

async fn the_pages_of_a_person_have_so_many_streams(setup: Setup) {
    let running = setup
        .start(&[
            IDENTITY,
            ("DASHI_API_PERSON_STREAMS_MAX", "2"),
            ("DASHI_API_STREAMS_MAX", "3"),
            ("DASHI_INGEST_RETRY_AFTER_S", "7"),
        ])
        .await;
    let first = follow(&running, "ada").await.expect("a place");
    let _second = follow(&running, "ada").await.expect("a place");
    assert_eq!(follow(&running, "ada").await.err(), Some((503, Some("7".to_owned()))));
    // Others have theirs, as long as the process has any.
    let mut other = follow(&running, "bob").await.expect("a place");
    assert!(matches!(other.next().await, Message::Traits { .. }));
    assert_eq!(follow(&running, "carol").await.err(), Some((503, Some("7".to_owned()))));
    assert_eq!(metric(&running, "dashi_api_streams").await, 3);
    drop(first);
    eventually(SOON, "the place is free again", async || follow(&running, "ada").await.is_ok()).await;
}

/// Without API keys, a process that others reach serves nothing but this.
#[tokio::test]
async fn a_process_that_others_reach_serves_pages_and_nobody_else() {
    let directory = TestDirectory::create("follow");
    let deployment =
        Deployment::embedded(&directory).with(IDENTITY.0, IDENTITY.1).with("BASE_PATH", "/umami");
    deployment.register().await;
    let server = deployment.start_at("serve", &format!("0.0.0.0:{}", free_port())).ready().await;
    let website = deployment.website();
    let ask = async |path: &str, signature: &str| {
        let bearer = format!("Bearer {signature}");
        let url = format!("{}/umami{path}?website={website}", server.url());
        request(Method::GET, &url, Bytes::new(), &headers(&bearer, "ada")).await.expect("an answer").status
    };
    let signature = signed(website, "ada");
    assert_eq!(ask("/api/me", &signature).await, 200);
    assert_eq!(ask("/api/me", &signature[1..]).await, 401);
    for path in
        [format!("/api/websites/{website}"), "/api/websites".to_owned(), "/api/openapi.json".to_owned()]
    {
        assert_eq!(ask(&path, &signature).await, 404, "{path}");
    }
}
