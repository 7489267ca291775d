//! The client's address: the header it comes from, where it leads, and which addresses are refused.

use dashi_domain::ids::Visitor;
use integration_tests::setup::{AGENT, WEBSITE, submission};
use integration_tests::{Running, Setup};
use serde_json::json;

use super::rules;

#[tokio::test]
async fn blocked_addresses_are_refused_and_others_are_not() {
    let list = "203.0.113.7, 198.51.100.0/24 ,2001:db8::/32,::ffff:192.0.2.9";
    let running = Setup::Embedded.start(&[("IGNORE_IP", list)]).await;
    let body = submission("event", &json!({ "url": "/" })).to_string();
    let mut taken = 0;
    for (address, status) in [
        ("203.0.113.7", 403),
        ("203.0.113.7:1234", 403),
        ("::ffff:203.0.113.7", 403),
        ("198.51.100.0", 403),
        ("198.51.100.255, 10.0.0.1", 403),
        ("2001:0db8:0:0::1", 403),
        ("203.0.113.8", 200),
        ("198.51.101.0", 200),
        ("2001:db9::1", 200),
        ("unknown", 200),
        ("[2001:db8::1]:443", 200),
    ] {
        let answer = running.post("/api/send", body.clone(), &[("x-forwarded-for", address)]).await;
        assert_eq!(answer.status, status, "{address}: {}", answer.text());
        taken += u64::from(status == 200);
    }
    // The payload's address is compared as it was sent.
    for (address, status) in [
        ("203.0.113.7", 403),
        ("198.51.100.77", 403),
        ("::ffff:192.0.2.9", 403),
        ("192.0.2.9", 200),
        ("203.0.113.7:80", 200),
        ("198.51.100.77:80", 200),
    ] {
        let answer = running.send(&submission("event", &json!({ "url": "/", "ip": address }))).await;
        assert_eq!(answer.status, status, "{address}: {}", answer.text());
        taken += u64::from(status == 200);
    }
    assert_eq!(running.totals().await.in_log, taken);
}

/// The session that a visitor with this address and [`AGENT`] has at the moment that [`session_of`] sends.
fn session_at(address: &str) -> String {
    let visitor = Visitor { source: WEBSITE, address, user_agent: AGENT, distinct_id: None };
    rules().session_id(&visitor, 1_777_593_600_000).to_string()
}

async fn session_of(running: &Running, headers: &[(&str, &str)]) -> String {
    let body = submission("event", &json!({ "url": "/", "timestamp": 1_777_593_600 })).to_string();
    let answer = running.post("/api/send", body, headers).await;
    answer.json()["sessionId"].as_str().unwrap_or_else(|| panic!("{headers:?}: {}", answer.text())).to_owned()
}

#[tokio::test]
async fn the_clients_address_comes_from_the_first_header_that_has_one() {
    let running = Setup::Embedded.start(&[]).await;
    let forwarded = "for=192.0.2.60;proto=http";
    for (headers, address) in [
        (&[][..], "127.0.0.1"),
        (&[("true-client-ip", "203.0.113.1")], "203.0.113.1"),
        (&[("cf-connecting-ip", "203.0.113.2")], "203.0.113.2"),
        (&[("fastly-client-ip", "203.0.113.3")], "203.0.113.3"),
        (&[("x-nf-client-connection-ip", "203.0.113.4")], "203.0.113.4"),
        (&[("do-connecting-ip", "203.0.113.5")], "203.0.113.5"),
        (&[("x-real-ip", "203.0.113.6")], "203.0.113.6"),
        (&[("x-appengine-user-ip", "203.0.113.7")], "203.0.113.7"),
        (&[("x-forwarded-for", " 203.0.113.8 , 10.0.0.1")], "203.0.113.8"),
        (&[("cf-connecting-ip", "203.0.113.2"), ("true-client-ip", "203.0.113.1")], "203.0.113.1"),
        (&[("x-forwarded-for", "203.0.113.8"), ("x-real-ip", "203.0.113.6")], "203.0.113.6"),
        (&[("true-client-ip", ""), ("x-forwarded-for", "203.0.113.8")], "203.0.113.8"),
        // Behind x-forwarded-for, which the server itself fills, nothing is looked at.
        (&[("forwarded", forwarded)], "127.0.0.1"),
        (&[("x-client-ip", "203.0.113.9")], "127.0.0.1"),
        (&[("x-cluster-client-ip", "203.0.113.9"), ("x-forwarded", "203.0.113.9")], "127.0.0.1"),
        (&[("x-umami-client-ip", "203.0.113.9")], "127.0.0.1"),
        (&[("x-forwarded-for", ""), ("forwarded", forwarded)], "192.0.2.60"),
        (&[("x-forwarded-for", ""), ("x-client-ip", "203.0.113.9")], "203.0.113.9"),
        // In canonical form, without a port.
        (&[("x-forwarded-for", "203.0.113.10:8080")], "203.0.113.10"),
        (&[("x-real-ip", "::ffff:203.0.113.11")], "203.0.113.11"),
        (&[("x-real-ip", "2001:0218:0:0:0:0:0:1")], "2001:218::1"),
        (&[("x-real-ip", "[2001:db8::1]:443")], "[2001:db8::1]"),
        (&[("x-real-ip", "16909060")], "1.2.3.4"),
        (&[("x-real-ip", "fe80::1%eth0")], "fe80::1%eth0"),
        (&[("x-real-ip", "some-host:80")], "some-host"),
        (&[("x-forwarded-for", "unknown")], "unknown"),
    ] {
        assert_eq!(session_of(&running, headers).await, session_at(address), "{headers:?}");
    }
    // The payload's address goes before all headers, as it was sent; an empty one does not count.
    let proxy = [("x-real-ip", "203.0.113.6")];
    for (ip, address) in
        [("::ffff:192.0.2.1", "::ffff:192.0.2.1"), ("192.0.2.1:80", "192.0.2.1:80"), ("", "203.0.113.6")]
    {
        let payload = json!({ "url": "/", "timestamp": 1_777_593_600, "ip": ip });
        let answer = running.post("/api/send", submission("event", &payload).to_string(), &proxy).await;
        assert_eq!(answer.json()["sessionId"], session_at(address), "{ip}");
    }
}

#[tokio::test]
async fn a_configured_header_goes_before_all_and_is_taken_whole() {
    let running = Setup::Embedded.start(&[("CLIENT_IP_HEADER", "X-My-Ip")]).await;
    let mine = |value| [("x-my-ip", value), ("true-client-ip", "203.0.113.1")];
    assert_eq!(session_of(&running, &mine("203.0.113.9:80")).await, session_at("203.0.113.9"));
    let list = "203.0.113.9, 10.0.0.1";
    assert_eq!(session_of(&running, &mine(list)).await, session_at(list), "a list is not split");
    assert_eq!(session_of(&running, &mine("")).await, session_at("203.0.113.1"));
}

#[tokio::test]
async fn a_proxys_location_counts_for_public_addresses_it_names() {
    let running = Setup::Embedded.start(&[]).await;
    let cloudflare = [("cf-ipcountry", "GB"), ("cf-region-code", "ENG"), ("cf-ipcity", "L%C3%B3ndon")];
    let mut expected = Vec::new();
    for (place, (address, payload_ip, located)) in
        [("203.0.113.1", "", true), ("192.168.0.1", "", false), ("203.0.113.1", "203.0.113.2", false)]
            .into_iter()
            .enumerate()
    {
        let payload = json!({ "url": "/", "id": format!("{place}"), "ip": payload_ip });
        let headers = [&cloudflare[..], &[("cf-connecting-ip", address)]].concat();
        let answer = running.post("/api/send", submission("event", &payload).to_string(), &headers).await;
        assert_eq!(answer.status, 200);
        let location = if located { json!(["GB", "GB-ENG", "Lóndon"]) } else { json!([null, null, null]) };
        expected.push((answer.json()["sessionId"].as_str().unwrap().to_owned(), location));
    }
    running.applied(expected.len() as u64).await;
    for (session, location) in expected {
        let row = running.rows("session", &format!("session_id = '{session}'")).await.remove(0);
        assert_eq!(json!([row["country"], row["region"], row["city"]]), location, "{row:?}");
    }
}
