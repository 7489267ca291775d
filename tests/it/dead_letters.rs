//! `dashi dead-letters`: records that were set aside are listed, tried again and discarded, and a replay gives the same
//! tables.

use std::time::Duration;

use dashi_event_log::NewRecord;
use integration_tests::setup::{AGENT, WEBSITE, submission};
use integration_tests::{Database, Running, Setup, eventually, on_both_setups};
use serde_json::{Value, json};
use uuid::Uuid;

on_both_setups!(
    letters_are_a_work_list,
    a_retry_that_is_killed_midway_applies_each_event_once,
    later_records_of_a_session_wait_behind_its_letter,
);

const SOON: Duration = Duration::from_secs(120);

/// A killed projector's seat in the group is free after six seconds.
const SUCCEEDED_SOON: (&str, &str) = ("DASHI_KAFKA_SESSION_TIMEOUT_MS", "6000");

/// Another browser than [`AGENT`].
const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";

/// The store refuses events of these pages, as a constraint that somebody added would.
const POISON: &str = "/poison";

async fn refuse_poison(running: &Running) {
    let sql = if running.is_sqlite() {
        format!(
            "CREATE TRIGGER no_poison BEFORE INSERT ON website_event WHEN NEW.url_path LIKE '{POISON}%'
             BEGIN SELECT RAISE(ABORT, 'poison is not taken'); END"
        )
    } else {
        format!(
            "ALTER TABLE website_event ADD CONSTRAINT no_poison CHECK (url_path NOT LIKE '{POISON}%') NOT VALID"
        )
    };
    Database::open(running.store()).await.execute(&sql).await;
}

async fn take_poison(running: &Running) {
    let sql = if running.is_sqlite() {
        "DROP TRIGGER no_poison"
    } else {
        "ALTER TABLE website_event DROP CONSTRAINT no_poison"
    };
    Database::open(running.store()).await.execute(sql).await;
}

/// Inserting an event of a poisoned page takes some milliseconds from now on.
async fn slow_poison(running: &Running) {
    let sql = if running.is_sqlite() {
        format!(
            "CREATE TRIGGER slow BEFORE INSERT ON website_event WHEN NEW.url_path LIKE '{POISON}%'
             BEGIN SELECT count(*) FROM (WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c
                   WHERE n < 60000) SELECT n FROM c); END"
        )
    } else {
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END $$;
         CREATE TRIGGER slow BEFORE INSERT ON website_event FOR EACH ROW EXECUTE FUNCTION slow()"
            .to_owned()
    };
    Database::open(running.store()).await.execute(&sql).await;
}

async fn send(running: &Running, agent: &str, kind: &str, payload: Value) {
    let body = submission(kind, &payload).to_string();
    let answer = running.post("/api/send", body, &[("user-agent", agent)]).await;
    assert_eq!(answer.status, 200, "{payload}: {}", answer.text());
}

/// Waits until every record has its outcome, so many of them dead.
async fn settled(running: &Running, dead: u64) {
    eventually(SOON, &format!("every record has its outcome, {dead} are dead"), async || {
        let totals = running.totals().await;
        if totals.lag_records == 0 && totals.dead == dead { Ok(()) } else { Err(format!("{totals:?}")) }
    })
    .await;
}

async fn dead_letters(running: &Running, arguments: &[&str]) -> (Option<i32>, Value) {
    let ended = running.run(&[&["dead-letters"], arguments, &["--json"]].concat()).await;
    let report = serde_json::from_str(&ended.stdout);
    (ended.code, report.unwrap_or_else(|_| panic!("{arguments:?}: {}{}", ended.stdout, ended.stderr)))
}

fn place(letter: &Value) -> String {
    format!("{}:{}", letter["partition"], letter["offset"])
}

async fn state(running: &Running, id: &str) -> String {
    let ended = running.run(&["trace", "--json", id]).await;
    let trace: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}", ended.stderr));
    trace["state"].as_str().unwrap().to_owned()
}

async fn letters_are_a_work_list(setup: Setup) {
    let running = setup.start(&[]).await;
    refuse_poison(&running).await;
    // The first event of a session, one between others, and one of another session.
    send(&running, AGENT, "event", json!({ "url": "/poison/1", "screen": "1x1" })).await;
    send(&running, AGENT, "event", json!({ "url": "/good/1", "screen": "2x2" })).await;
    send(
        &running,
        AGENT,
        "event",
        json!({ "url": "/poison/2", "name": "buy", "data": { "revenue": 5, "currency": "EUR" } }),
    )
    .await;
    send(&running, AGENT, "identify", json!({ "data": { "plan": "pro" } })).await;
    send(&running, FIREFOX, "event", json!({ "url": "/poison/3" })).await;
    send(&running, AGENT, "event", json!({ "url": "/good/2" })).await;
    // And one that is no event at all.
    let log = running.open_log().await;
    let garbage = NewRecord { session_id: Uuid::from_u128(7), value: b"\xff\x00 garbage".to_vec() };
    assert!(log.append(vec![garbage]).await[0].is_ok());
    log.close().await;
    settled(&running, 4).await;

    let (code, listed) = dead_letters(&running, &["list"]).await;
    let letters = listed["dead_letters"].as_array().unwrap().clone();
    assert_eq!((code, letters.len(), &listed["next"]), (Some(0), 4, &Value::Null), "{listed}");
    let (poisoned, other): (Vec<_>, Vec<_>) =
        letters.iter().cloned().partition(|letter| letter["website"] == WEBSITE);
    assert_eq!((poisoned.len(), other.len()), (3, 1), "{listed}");
    for letter in &poisoned {
        let error = letter["error"].as_str().unwrap();
        assert!(error.contains("poison") && letter["state"] == "open" && letter["tries"] == 1, "{letter}");
        assert_eq!(letter["type"], "event");
    }
    let garbage = place(&other[0]);
    // Filters and pages.
    for (arguments, expected) in [
        (&["--website", WEBSITE][..], 3),
        (&["--website", "22222222-2222-4222-8222-222222222222"][..], 0),
        (&["--error", "poison"][..], 3),
        (&["--error", "not a JSON object"][..], 1),
        (&["--since", "1h"][..], 4),
        (&["--until", "1h"][..], 0),
        (&["--discarded"][..], 0),
        (&["--log-id", "another"][..], 0),
    ] {
        let (_, found) = dead_letters(&running, &[&["list"], arguments].concat()).await;
        assert_eq!(found["dead_letters"].as_array().unwrap().len(), expected, "{arguments:?}: {found}");
    }
    let (_, first) = dead_letters(&running, &["list", "--limit", "3"]).await;
    let next = first["next"].as_str().unwrap().to_owned();
    let (_, rest) = dead_letters(&running, &["list", "--limit", "3", "--after", &next]).await;
    assert_eq!(rest["dead_letters"].as_array().unwrap()[..], letters[3..]);
    let text = running.run(&["dead-letters", "list"]).await.stdout;
    assert!(text.contains(&garbage) && text.lines().count() == 4, "{text}");
    let status: Value = serde_json::from_str(&running.run(&["status", "--json"]).await.stdout).unwrap();
    assert_eq!(
        status["dead_letters"],
        json!({ "open": 4, "discarded": 0, "waiting": 0, "held_sessions": 0 })
    );
    // Shown, byte for byte.
    let ended = running.run(&["dead-letters", "show", &garbage]).await;
    assert!(ended.code == Some(0) && ended.stdout.contains("not a JSON object"), "{}", ended.stdout);
    let (_, shown) = dead_letters(&running, &["show", &garbage]).await;
    assert_eq!(shown["record_base64"], "/wAgZ2FyYmFnZQ==", "{shown}");
    let raw = running.run(&["dead-letters", "show", "--raw", &place(&poisoned[0])]).await.stdout;
    let records = running.records().await;
    assert!(records.iter().any(|record| record.value == raw.as_bytes()), "{raw}");
    assert_eq!(running.run(&["dead-letters", "show", "0:99999"]).await.code, Some(3));
    for wrong in [
        &["dead-letters", "retry"][..],
        &["dead-letters", "discard", "--all", "--error", "x"],
        &["dead-letters", "retry", "3"],
        &["dead-letters", "list", "--since", "yesterday"],
    ] {
        assert_eq!(running.run(wrong).await.code, Some(2), "{wrong:?}");
    }
    let file = running.directory().join("letters.ndjson");
    let (code, exported) = dead_letters(&running, &["export", "--to", file.to_str().unwrap()]).await;
    assert_eq!((code, &exported["dead_letters"]), (Some(0), &json!(4)), "{exported}");
    let lines = std::fs::read_to_string(&file).unwrap();
    assert_eq!(lines.lines().count(), 4);
    for (line, letter) in lines.lines().zip(&letters) {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(&line["dead_letter"], letter);
        assert!(line.get("record").is_some() != line.get("record_base64").is_some(), "{line}");
    }

    // The cause is not mended yet.
    let first = place(&poisoned[0]);
    let (code, dry) = dead_letters(&running, &["retry", "--dry-run", "--all"]).await;
    assert_eq!((code, &dry["selected"], &dry["commands"]), (Some(0), &json!(4), &json!([])), "{dry}");
    let (code, tried) = dead_letters(&running, &["retry", &first]).await;
    assert_eq!((code, &tried["settled"], &tried["still_dead"]), (Some(3), &json!(0), &json!(1)), "{tried}");
    let still = &tried["still_dead_first"][0];
    assert!(still["tries"] == 2 && still["error"].as_str().unwrap().contains("poison"), "{tried}");
    let id = poisoned[0]["event_id"].as_str().unwrap();
    assert_eq!(state(&running, id).await, "dead_letter");
    assert!(running.run(&["trace", id]).await.stdout.contains("tried 2 times"));

    // Somebody mends it.
    take_poison(&running).await;
    let (code, tried) = dead_letters(&running, &["retry", "--website", WEBSITE]).await;
    assert_eq!((code, &tried["settled"], &tried["still_dead"]), (Some(0), &json!(3), &json!(0)), "{tried}");
    assert_eq!(state(&running, id).await, "applied");
    settled(&running, 1).await;
    let again = dead_letters(&running, &["retry", &first]).await;
    assert_eq!((again.0, &again.1["not_there"]), (Some(3), &json!([first])), "{again:?}");
    let (code, discarded) = dead_letters(&running, &["discard", &garbage]).await;
    assert_eq!((code, &discarded["still_dead"]), (Some(0), &json!(1)), "{discarded}");
    settled(&running, 1).await;
    let (_, listed) = dead_letters(&running, &["list"]).await;
    assert_eq!(listed["dead_letters"], json!([]));
    let (_, listed) = dead_letters(&running, &["list", "--discarded"]).await;
    assert_eq!(place(&listed["dead_letters"][0]), garbage);
    let text = running.run(&["status"]).await.stdout;
    assert!(text.contains("dead letters: 0 to look at, 1 discarded"), "{text}");
    // A letter that was discarded can still be tried.
    let (code, tried) = dead_letters(&running, &["retry", &garbage]).await;
    assert_eq!((code, &tried["still_dead"]), (Some(3), &json!(1)), "{tried}");

    let metrics = integration_tests::http::get(&running.url("/metrics")).await.unwrap().text();
    assert!(metrics.contains("dashi_projector_dead_letters_tried_total{outcome=\"applied\"} 3"), "{metrics}");
    // As a replay applies them: each record at its own place.
    running.assert_replay_gives_the_same_rows().await;
    let audited = running.run(&["audit"]).await;
    assert_eq!(audited.code, Some(0), "{}", audited.stdout);
}

async fn a_retry_that_is_killed_midway_applies_each_event_once(setup: Setup) {
    const LETTERS: u64 = 250;
    let mut running = setup.start(&[SUCCEEDED_SOON]).await;
    refuse_poison(&running).await;
    let body: Vec<Value> = (0..LETTERS)
        .map(|n| {
            submission("event", &json!({ "url": format!("{POISON}/{n}"), "name": "e", "data": { "n": n } }))
        })
        .collect();
    for batch in body.chunks(50) {
        let answer = running.post("/api/batch", json!(batch).to_string(), &[]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    send(&running, AGENT, "event", json!({ "url": "/good" })).await;
    settled(&running, LETTERS).await;
    take_poison(&running).await;
    slow_poison(&running).await;
    // The command waits for nobody: the process is killed while it obeys.
    let (code, _) = dead_letters(&running, &["retry", "--all", "--wait", "0"]).await;
    assert_eq!(code, Some(4));
    let mut database = Database::open(running.store()).await;
    let left = "SELECT count(*) FROM @dead_letter";
    let mut killed_at = Vec::new();
    eventually(SOON, "some letters are settled", async || {
        let left = database.count(left).await as u64;
        if left < LETTERS { Ok(()) } else { Err(format!("{left} are left")) }
    })
    .await;
    running.dashi().kill9();
    running.dashi().wait_exit(SOON).await;
    eventually(SOON, "nothing is written any more", async || {
        let before = database.count(left).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        killed_at.push(before);
        if database.count(left).await == before { Ok(()) } else { Err(format!("{before}")) }
    })
    .await;
    let left_behind = database.count(left).await as u64;
    let applied = "SELECT count(*) FROM website_event WHERE url_path LIKE '/poison%'";
    // A letter leaves the table with its rows.
    assert_eq!(database.count(applied).await as u64 + left_behind, LETTERS);
    running.start_again().await;
    settled(&running, 0).await;
    assert_eq!(database.count(applied).await as u64, LETTERS);
    assert_eq!(database.count("SELECT count(*) FROM event_data").await as u64, LETTERS);
    let totals = running.totals().await;
    assert_eq!((totals.duplicate, totals.unaccounted), (0, 0), "{totals:?}");
    running.assert_replay_gives_the_same_rows().await;
    let audited = running.run(&["audit"]).await;
    assert_eq!(audited.code, Some(0), "{}", audited.stdout);
    assert!(left_behind > 0, "it was over before it was killed: {killed_at:?}");
}

async fn later_records_of_a_session_wait_behind_its_letter(setup: Setup) {
    let mut running = setup.start(&[("DASHI_DEAD_LETTERS_PARK_SESSION", "true"), SUCCEEDED_SOON]).await;
    refuse_poison(&running).await;
    send(&running, AGENT, "event", json!({ "url": "/good/1" })).await;
    send(&running, AGENT, "event", json!({ "url": "/poison/1" })).await;
    send(&running, AGENT, "identify", json!({ "data": { "plan": "free" } })).await;
    send(&running, AGENT, "event", json!({ "url": "/good/2" })).await;
    send(&running, AGENT, "event", json!({ "url": "/poison/2" })).await;
    send(&running, FIREFOX, "event", json!({ "url": "/good/3" })).await;
    settled(&running, 4).await;
    // After a crash, too.
    running.dashi().kill9();
    running.dashi().wait_exit(SOON).await;
    running.start_again().await;
    send(&running, AGENT, "identify", json!({ "data": { "plan": "pro" } })).await;
    send(&running, FIREFOX, "event", json!({ "url": "/good/4" })).await;
    settled(&running, 5).await;
    let good = "SELECT url_path FROM website_event WHERE url_path LIKE '/good/%' ORDER BY url_path";
    assert_eq!(running.texts(good).await, ["/good/1", "/good/3", "/good/4"]);
    let status: Value = serde_json::from_str(&running.run(&["status", "--json"]).await.stdout).unwrap();
    assert_eq!(
        status["dead_letters"],
        json!({ "open": 1, "discarded": 0, "waiting": 4, "held_sessions": 1 })
    );
    let text = running.run(&["status"]).await.stdout;
    assert!(text.contains("1 to look at, 4 waiting behind them in 1 sessions"), "{text}");
    let (_, listed) = dead_letters(&running, &["list"]).await;
    let letters = listed["dead_letters"].as_array().unwrap();
    let states: Vec<_> = letters.iter().map(|letter| (&letter["state"], &letter["tries"])).collect();
    let (first, waits) = (json!(1), json!(0));
    let (holding, waiting) = (json!("holds"), json!("waits"));
    let waits = (&waiting, &waits);
    assert_eq!(states, [(&holding, &first), waits, waits, waits, waits], "{listed}");
    // It waits for the first one, and that one fails again.
    let (code, tried) = dead_letters(&running, &["retry", &place(&letters[0]), &place(&letters[2])]).await;
    assert_eq!((code, &tried["still_dead"]), (Some(3), &json!(2)), "{tried}");
    settled(&running, 5).await;

    take_poison(&running).await;
    let (code, tried) = dead_letters(&running, &["retry", &place(&letters[0])]).await;
    assert_eq!((code, &tried["settled"]), (Some(0), &json!(1)), "{tried}");
    settled(&running, 0).await;
    assert_eq!(running.texts(good).await, ["/good/1", "/good/2", "/good/3", "/good/4"]);
    assert_eq!(running.texts("SELECT string_value FROM session_data").await, ["pro"]);
    running.assert_replay_gives_the_same_rows().await;
    let audited = running.run(&["audit"]).await;
    assert_eq!(audited.code, Some(0), "{}", audited.stdout);

    // A letter that is discarded holds up nothing.
    refuse_poison(&running).await;
    send(&running, AGENT, "event", json!({ "url": "/poison/3" })).await;
    send(&running, AGENT, "event", json!({ "url": "/good/5" })).await;
    settled(&running, 2).await;
    let (_, listed) = dead_letters(&running, &["list"]).await;
    let first = place(&listed["dead_letters"][0]);
    let (code, discarded) = dead_letters(&running, &["discard", &first]).await;
    assert_eq!(code, Some(0), "{discarded}");
    settled(&running, 1).await;
    assert_eq!(running.number("SELECT count(*) FROM website_event WHERE url_path = '/good/5'").await, 1);

    // Without the setting nothing waits, and nothing goes on waiting.
    send(&running, AGENT, "event", json!({ "url": "/poison/4" })).await;
    send(&running, AGENT, "event", json!({ "url": "/good/6" })).await;
    settled(&running, 3).await;
    assert_eq!(running.dashi().terminate().await, Some(0));
    running.set("DASHI_DEAD_LETTERS_PARK_SESSION", "false");
    running.start_again().await;
    send(&running, AGENT, "event", json!({ "url": "/good/7" })).await;
    settled(&running, 3).await;
    assert_eq!(running.number("SELECT count(*) FROM website_event WHERE url_path = '/good/7'").await, 1);
    let (_, listed) = dead_letters(&running, &["list"]).await;
    let letters = listed["dead_letters"].as_array().unwrap();
    assert!(letters.len() == 2 && letters.iter().all(|letter| letter["state"] == "open"), "{listed}");
    take_poison(&running).await;
    let (code, tried) = dead_letters(&running, &["retry", "--all"]).await;
    assert_eq!((code, &tried["settled"]), (Some(0), &json!(2)), "{tried}");
}
