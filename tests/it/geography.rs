//! Where visitors are: by a proxy's headers, by the location database, or nowhere (docs/umami-contract.md §7.7).

use std::time::{Duration, Instant};

use integration_tests::location_database::{location_database, replace};
use integration_tests::setup::submission;
use integration_tests::{Running, Setup, TestDirectory, eventually, on_both_setups};
use serde_json::{Value, json};

on_both_setups!(
    an_address_is_where_the_database_says,
    a_providers_headers_go_before_the_database_and_in_their_order,
);

const SOON: Duration = Duration::from_secs(30);
const LONDON: &str = "2.125.160.217";

fn place(country: &str, regions: &[&str], city: &str) -> Value {
    let regions: Vec<_> = regions.iter().map(|code| json!({ "iso_code": code })).collect();
    json!({
        "country": { "iso_code": country, "geoname_id": 7, "names": { "en": "a country" } },
        "registered_country": { "iso_code": "ZZ" },
        "subdivisions": regions,
        "city": { "names": { "de": "Stadt", "en": city } },
    })
}

fn database() -> Vec<u8> {
    location_database(&[
        ("2.125.160.216/29", place("GB", &["ENG", "WBK"], "Boxford")),
        ("203.0.113.0/26", json!({ "registered_country": { "iso_code": "NL" } })),
        ("203.0.113.64/26", place("FR", &["FR-IDF"], "Paris")),
        ("203.0.113.128/26", place("BR", &["SP"], "S%C3%A3o Paulo")),
        (
            "203.0.113.192/26",
            json!({ "subdivisions": [{ "iso_code": "ENG" }], "city": { "names": { "en": "Nowhere" } } }),
        ),
        ("198.51.100.0/26", json!({ "country": { "iso_code": "DE" }, "city": { "names": { "de": "Ulm" } } })),
        ("198.51.100.64/26", place("USA", &["a-region-of-more-than-20"], &"city".repeat(13))),
        // Local addresses are nowhere, whatever a file says.
        ("10.0.0.0/8", place("XX", &["L"], "Local")),
        ("192.168.0.0/16", place("XX", &["L"], "Local")),
        ("fd00::/8", place("XX", &["L"], "Local")),
        ("2001:db8:1::/48", place("US", &["CA"], "Mountain View")),
    ])
}

/// A request: its headers, its payload's address, and country, region and city of the session it makes.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, [Option<&'a str>; 3]);

const NOWHERE: [Option<&str>; 3] = [None; 3];

/// Sends the requests, each of a visitor of its own, and compares where their sessions are.
async fn assert_places(running: &Running, cases: &[Case<'_>]) {
    let before = running.totals().await.in_log;
    let mut sessions = Vec::new();
    for (place, (headers, ip, _)) in cases.iter().enumerate() {
        let body = submission("event", &json!({ "url": "/", "id": format!("{before}-{place}"), "ip": ip }));
        let answer = running.post("/api/send", body.to_string(), headers).await;
        assert_eq!(answer.status, 200, "{headers:?} {ip}: {}", answer.text());
        sessions.push(answer.json()["sessionId"].clone());
    }
    running.applied(before + cases.len() as u64).await;
    let rows = running.rows("session", "1 = 1").await;
    for ((headers, ip, expected), session) in cases.iter().zip(sessions) {
        let row = rows.iter().find(|row| row["session_id"] == session).expect("every event has its session");
        let found = json!([row["country"], row["region"], row["city"]]);
        assert_eq!(found, json!(expected), "{headers:?} {ip}");
    }
}

async fn an_address_is_where_the_database_says(setup: Setup) {
    let directory = TestDirectory::create("geo");
    let path = directory.path().join("GeoLite2-City.mmdb");
    replace(&path, &database());
    let running = setup.start(&[("GEOLITE_DB_PATH", path.to_str().unwrap())]).await;
    let boxford = [Some("GB"), Some("GB-ENG"), Some("Boxford")];
    let california = [Some("US"), Some("US-CA"), Some("Mountain View")];
    let long = "city".repeat(13);
    let at = |ip: &'static str| [("x-forwarded-for", ip)];
    assert_places(
        &running,
        &[
            (&at(LONDON), "", boxford),
            (&at("::ffff:2.125.160.218"), "", boxford),
            (&at("2.125.160.219:8080"), "", boxford),
            (&at("2.125.160.224"), "", NOWHERE),
            (&at("203.0.113.1"), "", [Some("NL"), None, None]),
            (&at("203.0.113.65"), "", [Some("FR"), Some("FR-IDF"), Some("Paris")]),
            (&at("203.0.113.129"), "", [Some("BR"), Some("BR-SP"), Some("São Paulo")]),
            (&at("203.0.113.193"), "", [None, None, Some("Nowhere")]),
            (&at("198.51.100.1"), "", [Some("DE"), None, None]),
            (&at("198.51.100.65"), "", [None, Some("a-region-of-more-tha"), Some(&long[..50])]),
            (&at("2001:db8:1::5"), "", california),
            (&at("2001:db8:2::5"), "", NOWHERE),
            (&at("10.1.2.3"), "", NOWHERE),
            (&at("192.168.7.7"), "", NOWHERE),
            (&at("::ffff:10.1.2.3"), "", NOWHERE),
            (&at("fd00::1"), "", NOWHERE),
            (&at("127.0.0.1"), "", NOWHERE),
            (&at("unknown"), "", NOWHERE),
            // In brackets it is no address, as in Umami.
            (&at("[2001:db8:1::5]:443"), "", NOWHERE),
            // The payload's address goes before the headers', and is looked up without its port.
            (&at("203.0.113.1"), LONDON, boxford),
            (&[], "2.125.160.217:8080", boxford),
            (&[], "2001:db8:1::6", california),
            (&at(LONDON), "10.1.2.3", NOWHERE),
            (&at(LONDON), "some text", NOWHERE),
            // A text with a dot is cut at its last colon: what is left of this one is another address.
            (&[], "::ffff:2.125.160.217", NOWHERE),
        ],
    )
    .await;
    assert_eq!(running.complaints(), [""; 0]);
}

const CLOUDFLARE: [(&str, &str); 3] =
    [("cf-ipcountry", "GB"), ("cf-region-code", "ENG"), ("cf-ipcity", "L%C3%B3ndon")];
const VERCEL: [(&str, &str); 3] = [
    ("x-vercel-ip-country", "FR"),
    ("x-vercel-ip-country-region", "FR-IDF"),
    ("x-vercel-ip-city", "Saint%20Denis"),
];
const CLOUDFRONT: [(&str, &str); 3] = [
    ("cloudfront-viewer-country", "us"),
    ("cloudfront-viewer-country-region", "CA"),
    ("cloudfront-viewer-city", "S%25C3%25A3o"),
];
const EDGEONE: [(&str, &str); 3] = [("eo-ipcountry", "T1"), ("eo-region-code", ""), ("eo-ipcity", "%zz")];

async fn a_providers_headers_go_before_the_database_and_in_their_order(setup: Setup) {
    let directory = TestDirectory::create("geo");
    let path = directory.path().join("geo.mmdb");
    replace(&path, &database());
    let running = setup.start(&[("DASHI_GEO_DATABASE", path.to_str().unwrap())]).await;
    let client = [("x-real-ip", LONDON)];
    let london = [Some("GB"), Some("GB-ENG"), Some("Lóndon")];
    let denis = [Some("FR"), Some("FR-IDF"), Some("Saint Denis")];
    let sao = [Some("us"), Some("us-CA"), Some("São")];
    let boxford = [Some("GB"), Some("GB-ENG"), Some("Boxford")];
    let all = [&client[..], &EDGEONE, &CLOUDFRONT, &VERCEL, &CLOUDFLARE].concat();
    let but_cloudflare = [&client[..], &EDGEONE, &CLOUDFRONT, &VERCEL].concat();
    let last_two = [&client[..], &EDGEONE, &CLOUDFRONT].concat();
    let edgeone = [&client[..], &EDGEONE].concat();
    // Without a country, a provider says nothing; an empty one is none.
    let without = [&client[..], &CLOUDFLARE[1..], &VERCEL[1..]].concat();
    let empty = [&client[..], &[("cf-ipcountry", "")], &VERCEL].concat();
    let local = [&[("x-real-ip", "192.168.0.9")], &CLOUDFLARE[..]].concat();
    let cloud = [&client[..], &[("x-umami-client-country", "SE")]].concat();
    assert_places(
        &running,
        &[
            (&all, "", london),
            (&but_cloudflare, "", denis),
            (&last_two, "", sao),
            (&edgeone, "", [Some("T1"), None, Some("%zz")]),
            (&without, "", boxford),
            (&empty, "", denis),
            (&local, "", NOWHERE),
            (&cloud, "", boxford),
            // An address that the payload names is looked up, and is not where the proxy's client is.
            (&all, "2001:db8:1::1", [Some("US"), Some("US-CA"), Some("Mountain View")]),
            (&all, "198.51.100.200", NOWHERE),
        ],
    )
    .await;
}

#[tokio::test]
async fn skipped_location_headers_leave_the_database() {
    let directory = TestDirectory::create("geo");
    let path = directory.path().join("geo.mmdb");
    replace(&path, &database());
    let env = [("GEOLITE_DB_PATH", path.to_str().unwrap()), ("SKIP_LOCATION_HEADERS", "0")];
    let running = Setup::Embedded.start(&env).await;
    let headers = [&[("x-real-ip", LONDON)], &VERCEL[..], &CLOUDFLARE].concat();
    let elsewhere = [&[("x-real-ip", "198.51.100.200")], &CLOUDFLARE[..]].concat();
    let boxford = [Some("GB"), Some("GB-ENG"), Some("Boxford")];
    assert_places(&running, &[(&headers, "", boxford), (&elsewhere, "", NOWHERE)]).await;
}

/// The lines about the location database that are warnings.
fn warnings(running: &Running) -> Vec<String> {
    let mut warnings = running.complaints();
    warnings.retain(|line| line.contains("location database"));
    warnings
}

/// Sends events of ever new visitors until one of them is there.
async fn eventually_at(running: &Running, country: &str) {
    let sent = std::cell::Cell::new(0);
    eventually(SOON, &format!("{LONDON} is in {country}"), async || {
        let id = format!("{country}-{}", sent.replace(sent.get() + 1));
        let body = submission("event", &json!({ "url": "/", "id": id, "ip": LONDON }));
        let answer = running.send(&body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let session = answer.json()["sessionId"].as_str().unwrap().to_owned();
        running.applied(1).await;
        let row = running.rows("session", &format!("session_id = '{session}'")).await.remove(0);
        if row["country"] == country { Ok(()) } else { Err(row["country"].to_string()) }
    })
    .await;
}

#[tokio::test]
async fn a_database_that_comes_changes_and_breaks_is_followed() {
    let directory = TestDirectory::create("geo");
    let path = directory.path().join("later.mmdb");
    let began = Instant::now();
    let running = Setup::Embedded.start(&[("GEOLITE_DB_PATH", path.to_str().unwrap())]).await;
    assert_places(&running, &[(&[("x-real-ip", LONDON)], "", NOWHERE), (&[], LONDON, NOWHERE)]).await;
    // It is looked for every second.
    eventually(SOON, "some looks are over", async || began.elapsed() > Duration::from_millis(3_500)).await;
    let shown = warnings(&running);
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert!(shown[0].contains("later.mmdb") && shown[0].contains("proxies' headers only"), "{shown:?}");

    let with = |country: &str| location_database(&[("2.125.160.216/29", place(country, &[], "Boxford"))]);
    replace(&path, &with("GB"));
    eventually_at(&running, "GB").await;
    replace(&path, &with("IE"));
    eventually_at(&running, "IE").await;
    assert_eq!(warnings(&running).len(), 1);

    // Half of a file, and then bytes that are none.
    let whole = with("FR");
    for damaged in [&whole[..whole.len() / 2], b"no database"] {
        let before = Instant::now();
        replace(&path, damaged);
        eventually(SOON, "the damage is logged", async || warnings(&running).len() == 2).await;
        eventually(SOON, "some looks are over", async || before.elapsed() > Duration::from_millis(2_500))
            .await;
        eventually_at(&running, "IE").await;
    }
    let shown = warnings(&running);
    assert!(shown.len() == 2 && shown[1].contains("its last good version stays in use"), "{shown:?}");
    std::fs::remove_file(&path).unwrap();
    let removed = Instant::now();
    eventually(SOON, "some looks are over", async || removed.elapsed() > Duration::from_millis(2_500)).await;
    eventually_at(&running, "IE").await;
    replace(&path, &whole);
    eventually_at(&running, "FR").await;
    assert_eq!(warnings(&running).len(), 2);
}
