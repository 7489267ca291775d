//! `dashi bench` sends to Umami as Umami's own tracker does, counts its answers as what they are, and compares two servers.

use std::collections::BTreeSet;
use std::time::Duration;

use integration_tests::dashi::Ended;
use integration_tests::http;
use integration_tests::setup::{SECRET, WEBSITE};
use integration_tests::umami_server::{Accepted, Robots, UmamiServer};
use integration_tests::{Dashi, Setup, eventually, free_port, vectors};
use serde_json::{Value, json};

const OTHER: &str = "22222222-2222-4222-8222-222222222222";

/// How long a busy machine may take for what usually takes a second.
const SOON: Duration = Duration::from_secs(60);

/// The agents that Umami took for robots when it was recorded.
fn robots() -> Robots {
    let agents = vectors::load().user_agents.into_values();
    Robots::Of(agents.filter(|agent| agent.is_bot).map(|agent| agent.user_agent).collect())
}

async fn umami() -> UmamiServer {
    UmamiServer::start(SECRET, &[WEBSITE], robots()).await
}

async fn bench(args: &[&str]) -> Ended {
    Dashi::run(&[&["bench", "--website", WEBSITE, "--seed", "7"], args].concat(), &[]).await
}

fn json_of(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{} {}", ended.stdout, ended.stderr))
}

/// The mark of an event, if its kind has it in the URL.
fn path(event: &Accepted) -> Option<String> {
    let url = event.payload["url"].as_str()?.strip_prefix("https://shop.example.com")?;
    Some(url.split('?').next()?.to_owned()).filter(|_| event.kind != "identify")
}

#[tokio::test]
async fn the_partner_answers_as_umami_did_when_it_was_recorded() {
    let recorded = vectors::load();
    let umami = umami().await;
    let send = async |kind: &str, payload: Value, headers: &[(&str, &str)]| {
        let body = json!({ "type": kind, "payload": payload });
        http::post_json(&format!("{}/api/send", umami.url()), &body, headers).await.expect("it answers")
    };
    let with = |mut payload: Value, members: Value| {
        let members = members.as_object().expect("an object").clone();
        payload.as_object_mut().expect("an object").extend(members);
        payload
    };
    let usual = recorded.ids.iter().filter(|vector| {
        (vector.secret_input.as_str(), vector.salt_rotation.as_str(), vector.tz.as_str())
            == (SECRET, "month", "UTC")
            && vector.source_id == WEBSITE
            && vector.ip.is_some()
            && !vector.note.contains("link")
    });
    let mut sent = 0;
    for vector in usual {
        let mut payload = json!({
            "website": WEBSITE, "ip": vector.ip, "userAgent": vector.user_agent, "timestamp": vector.timestamp,
        });
        if let Some(id) = &vector.distinct_id {
            payload["id"] = json!(id);
        }
        let answer = send("event", payload, &[]).await.json();
        assert_eq!(
            (&answer["sessionId"], &answer["visitId"]),
            (&json!(vector.session_id), &json!(vector.visit_id))
        );
        sent += 1;
    }
    assert!(sent >= 5, "{sent}");
    for vector in &recorded.events {
        let payload = with(vector.payload.clone(), json!({ "website": WEBSITE }));
        assert_eq!(send(&vector.kind, payload, &[]).await.status, vector.status, "{vector:?}");
    }
    for (name, agent) in &recorded.user_agents {
        let payload = json!({ "website": WEBSITE, "userAgent": agent.user_agent });
        let answer = send("event", payload, &[]).await;
        assert_eq!((answer.status, answer.json()["beep"] == "boop"), (200, agent.is_bot), "{name}");
    }

    // A token is worth a look-up, whatever website it is of; one that was not signed by this secret is worth nothing.
    let before = umami.seen().look_ups;
    let token = send("event", json!({ "website": WEBSITE }), &[]).await.json()["cache"].clone();
    let token = token.as_str().expect("a token");
    let with_token = async |token: &str| {
        send("event", json!({ "website": OTHER }), &[("x-umami-cache", token)]).await.status
    };
    assert_eq!(with_token(token).await, 200);
    assert_eq!(with_token(&format!("{token}x")).await, 400);
    assert_eq!(with_token("").await, 400);
    assert_eq!(umami.seen().look_ups, before + 3);
    let strange = UmamiServer::start("another secret", &[OTHER], robots()).await;
    let theirs = json!({ "type": "event", "payload": { "website": OTHER } });
    let theirs =
        http::post_json(&format!("{}/api/send", strange.url()), &theirs, &[]).await.expect("it answers");
    assert_eq!(with_token(theirs.json()["cache"].as_str().expect("a token")).await, 400);
}

#[tokio::test]
async fn dashi_and_umami_get_the_same_requests_and_their_own_tokens() {
    let running = Setup::Embedded.start(&[]).await;
    let umami = umami().await;
    let (first, second) = (running.url(""), umami.url());
    let (first, rounds) = (first.trim_end_matches('/'), ["--rounds", "2", "--requests", "150", "-d", "100"]);
    let args =
        ["--url", first, "--compare", &second, "--token", "--sessions", "20", "-c", "4", "--warmup", "0"];
    let ended = bench(&[&args[..], &rounds, &["--no-limit", "--mix", "60,20,15,5", "--json"]].concat()).await;
    assert_eq!(ended.code, Some(0), "{} {}", ended.stdout, ended.stderr);
    let compared = json_of(&ended);
    assert_eq!((&compared["rounds"], &compared["token"]), (&json!(2), &json!(true)), "{compared}");
    for server in compared["servers"].as_array().expect("two servers") {
        assert_eq!(server["empty_requests_per_s"], Value::Null);
        for round in server["rounds"].as_array().expect("two rounds") {
            assert_eq!(
                (&round["acknowledged_events"], &round["refused_events"]),
                (&json!(150), &json!(0)),
                "{round}"
            );
        }
    }
    // Each round has a seed of its own; one event was sent before them.
    let seen = umami.seen();
    assert_eq!((seen.accepted.len(), seen.robots, seen.refused.len()), (301, 0, 0), "{:?}", seen.refused);
    running.applied(301).await;
    let sessions: BTreeSet<String> = seen.accepted.iter().map(|event| event.session_id.clone()).collect();
    let theirs: BTreeSet<String> = running
        .texts("SELECT session_id FROM session")
        .await
        .into_iter()
        .map(|id| id.to_lowercase())
        .collect();
    assert_eq!(theirs, sessions, "20 visitors, by the same addresses and agents");
    let paths: BTreeSet<String> = seen.accepted.iter().filter_map(path).collect();
    let theirs: BTreeSet<String> =
        running.texts("SELECT url_path FROM website_event").await.into_iter().collect();
    assert_eq!(theirs, paths);

    // As Umami's tracker: the last answer's token, none before it, and an empty one for an identify.
    assert_eq!(seen.strange_tokens, 0);
    for event in &seen.accepted {
        match (event.kind.as_str(), event.token.as_deref()) {
            ("identify", token) => assert!(matches!(token, None | Some("")), "{event:?}"),
            (_, token) => assert_ne!(token, Some(""), "{event:?}"),
        }
    }
    let identifies = seen.accepted.iter().filter(|event| event.kind == "identify").count() as u64;
    assert!(identifies > 0);
    // Of each round, a visitor's first requests have none: those that were sent before an answer was there.
    assert!(seen.look_ups >= identifies && seen.look_ups <= identifies + 1 + 2 * 20 * 4, "{}", seen.look_ups);
}

#[tokio::test]
async fn a_comparison_has_rates_latencies_limits_and_their_ratio() {
    let (running, umami) = (Setup::Embedded.start(&[]).await, umami().await);
    let (first, second) = (running.url(""), umami.url());
    let args =
        ["--url", first.trim_end_matches('/'), "--compare", &second, "-c", "4", "-d", "1", "--warmup", "0"];
    let ended = bench(&[&args[..], &["--rounds", "1", "--json"]].concat()).await;
    assert_eq!(ended.code, Some(0), "{} {}", ended.stdout, ended.stderr);
    let compared = json_of(&ended);
    let median = |of: &Value| of["median"].as_f64().unwrap_or_else(|| panic!("{of}"));
    for server in compared["servers"].as_array().expect("two servers") {
        let limit = median(&server["empty_requests_per_s"]);
        assert!(limit > 0.0, "{server}");
        let ratio = median(&server["events_per_s"]) / limit;
        assert!((median(&server["events_ratio"]) - ratio).abs() < 1e-9, "{server}");
        assert!(median(&server["p99_us"]) >= median(&server["p50_us"]), "{server}");
    }
    let rate = |which: usize| median(&compared["servers"][which]["events_per_s"]);
    assert!((median(&compared["ratio"]["events_per_s"]) - rate(0) / rate(1)).abs() < 1e-9, "{compared}");
    assert!(umami.seen().heartbeats > 0);

    let ended = bench(&[&args[..], &["--rounds", "1", "--no-limit"]].concat()).await;
    assert_eq!(ended.code, Some(0), "{} {}", ended.stdout, ended.stderr);
    for words in [
        "first / second",
        second.as_str(),
        "events acknowledged, 0 refused",
        "rounds in turn: 1",
        "load average",
    ] {
        assert!(ended.stdout.contains(words), "{words}: {}", ended.stdout);
    }
    // Umami alone.
    let alone =
        bench(&["--url", &second, "-c", "2", "-d", "0.5", "--warmup", "0", "--token", "--json"]).await;
    assert_eq!(alone.code, Some(0), "{} {}", alone.stdout, alone.stderr);
    assert!(json_of(&alone)["limit"]["empty_requests_per_s"].as_f64() > Some(0.0), "{}", alone.stdout);
}

#[tokio::test]
async fn an_answer_that_takes_no_event_counts_as_refused_and_is_shown() {
    let running = Setup::Embedded.start(&[]).await;
    let dashi = running.url("");
    let (dashi, few) =
        (dashi.trim_end_matches('/'), ["-c", "2", "-d", "60", "--warmup", "0", "--no-limit", "--requests"]);
    let without_website = UmamiServer::start(SECRET, &[OTHER], robots()).await;
    let url = without_website.url();
    let ended = bench(&[&["--url", &url, "--json"], &few[..], &["5"]].concat()).await;
    let report = json_of(&ended);
    assert_eq!(
        (ended.code, &report["refused_events"], &report["statuses"]["400"]),
        (Some(1), &json!(5), &json!(5))
    );
    let refusal = report["first_refusal"].as_str().expect("it is there");
    assert!(refusal.starts_with("400 ") && refusal.contains("Website not found."), "{refusal}");
    let compared = bench(&[&["--url", dashi, "--compare", &url], &few[..], &["5"]].concat()).await;
    assert_eq!((compared.code, compared.stdout.as_str()), (Some(1), ""), "{}", compared.stderr);
    for words in [url.as_str(), WEBSITE, "does not take an event", "Website not found."] {
        assert!(compared.stderr.contains(words), "{words}: {}", compared.stderr);
    }
    let by_its_id = ["--compare-website", OTHER, "--rounds", "1", "--json"];
    let compared =
        bench(&[&["--url", dashi, "--compare", &url], &few[..], &["5"], &by_its_id].concat()).await;
    assert_eq!(compared.code, Some(0), "{} {}", compared.stdout, compared.stderr);
    assert_eq!(without_website.seen().accepted[0].payload["website"], OTHER);

    // A robot is answered 200, and nothing is taken: as a single event, and in a batch, which counts it as processed.
    let of_robots = UmamiServer::start(SECRET, &[WEBSITE], Robots::All).await;
    let url = of_robots.url();
    for (batch, refused) in [("1", 4), ("3", 12)] {
        let ended = bench(&[&["--url", &url, "--batch", batch, "--json"], &few[..], &["4"]].concat()).await;
        let report = json_of(&ended);
        assert_eq!((ended.code, &report["acknowledged_events"]), (Some(1), &json!(0)), "{report}");
        assert_eq!(
            (&report["refused_events"], &report["statuses"]["200"]),
            (&json!(refused), &json!(4)),
            "{report}"
        );
    }

    // Nobody listens there.
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let ended = bench(&["--url", dashi, "--compare", &nobody]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    assert!(ended.stderr.contains("cannot be reached"), "{}", ended.stderr);
    for misuse in [
        &["--compare-website", OTHER][..],
        &["--rounds", "2"],
        &["--compare", &url, "--record-acknowledged", "f"],
    ] {
        assert_eq!(bench(misuse).await.code, Some(2), "{misuse:?}");
    }
}

#[tokio::test]
async fn an_interrupted_comparison_has_the_rounds_that_were_whole() {
    let (first, second) = (umami().await, umami().await);
    let (one, other) = (first.url(), second.url());
    let args =
        ["bench", "--website", WEBSITE, "--seed", "7", "--url", &one, "--compare", &other, "--rounds", "500"];
    let more = ["-c", "2", "-d", "0.3", "--warmup", "0", "--no-limit", "--json"];
    let mut dashi = Dashi::spawn(&[&args[..], &more].concat(), &[]);
    // The third round has the third seed.
    eventually(SOON, "the third round", async || {
        let has_begun = |event: &Accepted| path(event).is_some_and(|path| path.starts_with("/load/9/"));
        if first.seen().accepted.iter().any(has_begun) { Ok(()) } else { Err(dashi.stderr()) }
    })
    .await;
    dashi.interrupt();
    let ended = dashi.wait_exit(SOON).await;
    let compared: Value = serde_json::from_str(&dashi.stdout()).expect("JSON");
    assert_eq!(ended.code(), Some(4), "{compared}");
    let rounds = compared["rounds"].as_u64().expect("a number");
    assert!((2..500).contains(&rounds), "{rounds}");
    assert_eq!(compared["servers"][1]["rounds"].as_array().map(|all| all.len() as u64), Some(rounds));
}
