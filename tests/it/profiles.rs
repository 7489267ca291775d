//! People across their devices: what one changes all see, and nothing that a device merely repeats undoes it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use dashi_store::{SqliteSettings, SqliteStore, Store};
use integration_tests::profiles::{KEYS, Reader};
use integration_tests::setup::{AGENT, WEBSITE, submission};
use integration_tests::{Running, Setup, eventually, on_both_setups};
use serde_json::{Value, json};
use uuid::Uuid;

on_both_setups!(
    devices_that_share_a_session_see_each_others_changes_and_keep_them,
    devices_with_a_session_each_see_each_others_changes_and_keep_them,
    a_device_that_names_the_version_it_had_read_changes_what_it_changed,
    two_people_on_one_device_with_shared_sessions_stay_two,
    two_people_on_one_device_with_sessions_per_device_stay_two,
    a_journey_before_and_after_signing_in_is_one_with_shared_sessions,
    a_journey_before_and_after_signing_in_is_one_with_sessions_per_device,
    of_a_batch_of_identifies_the_last_one_of_each_person_wins,
);

/// The time that is promised of a stream.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// How long anything else may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

const PHONE_AGENT: &str = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 \
                           (KHTML, like Gecko) Version/17.4 Mobile/15E148 Safari/604.1";

const LAPTOP: Device = Device { address: "203.0.113.7", agent: AGENT };
const PHONE: Device = Device { address: "198.51.100.4", agent: PHONE_AGENT };
const TABLET: Device = Device { address: "198.51.100.5", agent: PHONE_AGENT };

/// The formula of a session's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sessions {
    Shared,
    PerDevice,
}

impl Sessions {
    async fn start(self, setup: Setup) -> (Running, Reader) {
        let formula = match self {
            Self::Shared => "shared",
            Self::PerDevice => "per-device",
        };
        let env =
            [KEYS, ("DASHI_INGEST_IDENTIFIED_SESSIONS", formula), ("DASHI_PROJECTOR_BATCH_INTERVAL_MS", "0")];
        let running = setup.start(&env).await;
        let reader = Reader::new(running.authority(), WEBSITE);
        (running, reader)
    }
}

/// Where somebody sits.
#[derive(Debug, Clone, Copy)]
struct Device {
    address: &'static str,
    agent: &'static str,
}

/// The answer to an event.
#[derive(Debug, Clone)]
struct Answered {
    session: String,
    visit: String,
    at: Instant,
}

impl Device {
    async fn send(self, running: &Running, kind: &str, payload: &Value) -> Answered {
        let body = submission(kind, payload).to_string();
        let headers = [("user-agent", self.agent), ("x-real-ip", self.address)];
        let answer = running.post("/api/send", body, &headers).await;
        assert_eq!(answer.status, 200, "{kind} {payload}: {}", answer.text());
        let at = Instant::now();
        let answer = answer.json();
        let text = |name: &str| answer[name].as_str().expect("it was taken").to_owned();
        Answered { session: text("sessionId"), visit: text("visitId"), at }
    }

    async fn identify(self, running: &Running, person: &str, data: &Value) -> Answered {
        self.send(running, "identify", &json!({ "id": person, "data": data })).await
    }
}

/// All of a batch arrive at once, and the ids that clients name are in no order: an earlier one won, now and then.
async fn of_a_batch_of_identifies_the_last_one_of_each_person_wins(setup: Setup) {
    let (running, reader) = Sessions::Shared.start(setup).await;
    let identify = |n: usize| {
        let person = if n.is_multiple_of(2) { "ada" } else { "grace" };
        let payload = json!({ "id": person, "messageId": format!("message {n}"), "data": { "n": n, format!("k{n}"): n } });
        submission("identify", &payload)
    };
    let batch: Vec<_> = (0..40).map(identify).collect();
    let answer = running.post("/api/batch", json!(batch).to_string(), &[("user-agent", AGENT)]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    running.applied(40).await;
    for (person, last) in [("ada", 38), ("grace", 39)] {
        let (_, traits) = reader.person(person).await;
        assert_eq!(
            (&traits["n"], traits.as_object().unwrap().len()),
            (&json!(last), 21),
            "{person}: {traits}"
        );
    }
    running.assert_replay_gives_the_same_rows().await;
}

/// All that is sent so far is applied, whatever it is.
async fn all_applied(running: &Running) {
    running.applied(0).await;
}

/// The number of rows that the history of all people has.
async fn writes(running: &Running) -> i64 {
    running.number(&format!("SELECT count(*) FROM {}", running.own("profile_write"))).await
}

/// Waits until a person's trait has this text in the tables, past the API; says when that was seen.
async fn committed(running: &Running, person: &str, key: &str, text: &str) -> Instant {
    let count = format!(
        "SELECT count(*) FROM {} WHERE distinct_id = '{person}' AND key = '{key}' AND string_value = '{text}'",
        running.own("profile_trait")
    );
    eventually(SOON, "the trait is written", async || running.number(&count).await == 1).await;
    Instant::now()
}

/// Folds the log into an empty store, which must get the same rows, and the same version of a person.
async fn assert_replay_gives_the_same_versions(running: &Running, reader: &Reader, people: &[&str]) {
    running.assert_replay_gives_the_same_rows().await;
    let path = running.directory().join("again.db");
    let again = Store::Sqlite(SqliteStore::open(&SqliteSettings { path }).await.unwrap());
    for person in people {
        let replayed = again.profile(WEBSITE.parse::<Uuid>().unwrap(), person).await.unwrap();
        assert_eq!(replayed.expect("somebody").version, reader.person(person).await.0, "{person}");
    }
    again.close().await;
}

/// That it runs under another formula than its database's is said once, and wanted here.
fn assert_no_complaints(running: &Running) {
    let mut complaints = running.complaints();
    complaints.retain(|line| !line.contains("session ids of identified visitors"));
    assert_eq!(complaints, [""; 0]);
}

async fn devices_that_share_a_session_see_each_others_changes_and_keep_them(setup: Setup) {
    two_devices(setup, Sessions::Shared).await;
}

async fn devices_with_a_session_each_see_each_others_changes_and_keep_them(setup: Setup) {
    two_devices(setup, Sessions::PerDevice).await;
}

/// The founding scenario.
async fn two_devices(setup: Setup, sessions: Sessions) {
    let (mut running, reader) = sessions.start(setup).await;
    let both = |nickname: &str, avatar: &str| json!({ "nickname": nickname, "avatar": avatar });
    let a = LAPTOP.identify(&running, "ada", &both("ada", "one")).await;
    let b = PHONE.identify(&running, "ada", &both("ada", "one")).await;
    assert_eq!(a.session == b.session, sessions == Sessions::Shared);
    all_applied(&running).await;
    let live = reader.read("/profiles/ada").await["sessions"].clone();
    for session in [&a.session, &b.session] {
        let of = |row: &&Value| row["kind"] == "own" && row["sessionId"] == session.as_str();
        let own: Vec<_> = live.as_array().unwrap().iter().filter(of).collect();
        assert!(own.len() == 1 && own[0]["live"] == true, "{live}");
    }
    let on_a = reader.follow(&a.session).await;
    let on_b = reader.follow(&b.session).await;

    // A changes the nickname: B is notified, and reads it.
    let changed = LAPTOP.identify(&running, "ada", &both("countess", "one")).await;
    let committed_at = committed(&running, "ada", "nickname", "countess").await;
    let shown = on_b.until("B sees the nickname", |traits| traits["nickname"] == "countess").await;
    let took = shown.at.saturating_duration_since(committed_at.max(changed.at));
    assert!(took <= TOLD_WITHIN, "{took:?}");
    assert_eq!(reader.session(&b.session).await, (shown.version.clone(), both("countess", "one")));

    // B sends what it knew, with a new avatar: the nickname stays, and A is notified of the avatar.
    PHONE.identify(&running, "ada", &both("ada", "two")).await;
    let committed_at = committed(&running, "ada", "avatar", "two").await;
    let shown = on_a.until("A sees the avatar", |traits| traits["avatar"] == "two").await;
    let took = shown.at.saturating_duration_since(committed_at);
    assert!(took <= TOLD_WITHIN, "{took:?}");
    assert_eq!(shown.traits, both("countess", "two"));
    assert_eq!(reader.person("ada").await, (shown.version, both("countess", "two")));
    let person = reader.read("/profiles/ada").await;
    assert_eq!(person["traits"]["nickname"]["changedBy"], a.session.as_str());
    assert_eq!(person["traits"]["avatar"]["changedBy"], b.session.as_str());
    for following in [&on_a, &on_b] {
        let names: Vec<_> = following.shown().iter().map(|shown| shown.traits["nickname"].clone()).collect();
        let old = names.iter().rposition(|name| name == "ada").map_or(0, |place| place + 1);
        assert!(names[old..].iter().all(|name| name == "countess") && old < 2, "it was back: {names:?}");
    }

    // A changes it again, and the phone's snapshot is so late that Dashi is another process, and comes three times.
    LAPTOP.identify(&running, "ada", &both("lovelace", "one")).await;
    all_applied(&running).await;
    assert_eq!(reader.person("ada").await.1, both("lovelace", "two"), "the laptop repeats its old avatar");
    running.dashi().kill9();
    running.start_again().await;
    let before = writes(&running).await;
    let on_a = reader.follow(&a.session).await;
    PHONE.identify(&running, "ada", &both("ada", "three")).await;
    let shown = on_a.until("A sees the third avatar", |traits| traits["avatar"] == "three").await;
    assert_eq!(shown.traits, both("lovelace", "three"));
    for _ in 0..3 {
        PHONE.identify(&running, "ada", &both("ada", "three")).await;
    }
    all_applied(&running).await;
    assert_eq!(reader.person("ada").await, (shown.version.clone(), both("lovelace", "three")));
    assert_eq!(on_a.last().map(|shown| shown.version), Some(shown.version), "repetitions are not shown");
    assert_eq!(writes(&running).await, before + 1);

    assert_replay_gives_the_same_versions(&running, &reader, &["ada"]).await;
    assert_no_complaints(&running);
}

/// Devices that never sent anything themselves, so that nothing else shows which values they knew.
async fn a_device_that_names_the_version_it_had_read_changes_what_it_changed(setup: Setup) {
    let (running, reader) = Sessions::PerDevice.start(setup).await;
    let data = |nickname: &str, avatar: &str, seats: u32| json!({ "nickname": nickname, "avatar": avatar, "seats": seats });
    let laptop = LAPTOP.identify(&running, "ada", &data("ada", "one", 1)).await;
    all_applied(&running).await;
    let (read, known) = reader.session(&laptop.session).await;
    assert_eq!(known, data("ada", "one", 1));
    LAPTOP.identify(&running, "ada", &data("countess", "one", 1)).await;
    all_applied(&running).await;
    // It writes back what it read, and one change.
    let payload = json!({ "id": "ada", "data": data("ada", "two", 1), "baseVersion": read });
    let phone = PHONE.send(&running, "identify", &payload).await;
    all_applied(&running).await;
    assert_eq!(reader.person("ada").await.1, data("countess", "two", 1));
    let person = reader.read("/profiles/ada").await;
    let by = |key: &str| person["traits"][key]["changedBy"].clone();
    assert_eq!(
        [by("nickname"), by("avatar"), by("seats")],
        [json!(laptop.session), json!(phone.session), json!(laptop.session)]
    );
    // Whoever names the version of now writes what is new, and what is repeated stays as it is.
    let (now, _) = reader.session(&phone.session).await;
    let payload = json!({ "id": "ada", "data": data("lovelace", "two", 1), "baseVersion": now });
    TABLET.send(&running, "identify", &payload).await;
    all_applied(&running).await;
    assert_eq!(reader.person("ada").await.1, data("lovelace", "two", 1));
    // Without a version, a device that nothing is known of is believed.
    let stranger = Device { address: "192.0.2.1", ..TABLET };
    stranger.identify(&running, "ada", &data("ada", "one", 1)).await;
    all_applied(&running).await;
    assert_eq!(reader.person("ada").await.1, data("ada", "one", 1));
    assert_replay_gives_the_same_versions(&running, &reader, &["ada"]).await;
    assert_no_complaints(&running);
}

async fn two_people_on_one_device_with_shared_sessions_stay_two(setup: Setup) {
    two_people(setup, Sessions::Shared).await;
}

async fn two_people_on_one_device_with_sessions_per_device_stay_two(setup: Setup) {
    two_people(setup, Sessions::PerDevice).await;
}

/// Umami's issue 4512: who identifies last overwrites who was there before.
async fn two_people(setup: Setup, sessions: Sessions) {
    const ROUNDS: usize = 5;
    let (running, reader) = sessions.start(setup).await;
    let people = ["ada", "bob"];
    let value = |person: &str, round: usize| {
        // One value that both have, and several that each has of its own.
        json!({ "shared": "same", "name": format!("{person} {round}"), (format!("only-{person}")): round, "first": person })
    };
    let anonymous = LAPTOP.send(&running, "event", &json!({ "url": "/before" })).await.session;
    let mut own: [BTreeSet<String>; 2] = Default::default();
    let mut following = Vec::new();
    for round in 0..ROUNDS {
        for (which, person) in people.into_iter().enumerate() {
            let identified = LAPTOP.identify(&running, person, &value(person, round)).await;
            let page = json!({ "url": format!("/{person}/{round}"), "id": person });
            let viewed = LAPTOP.send(&running, "event", &page).await;
            assert_eq!(viewed.session, identified.session);
            if round == 0 {
                following.push(reader.follow(&identified.session).await);
            }
            own[which].insert(identified.session);
        }
        LAPTOP.send(&running, "event", &json!({ "url": format!("/between/{round}") })).await;
    }
    all_applied(&running).await;
    assert_eq!(own.each_ref().map(BTreeSet::len), [1, 1]);
    assert_ne!(own[0], own[1]);

    for (which, person) in people.into_iter().enumerate() {
        let expected = value(person, ROUNDS - 1);
        assert_eq!(reader.person(person).await.1, expected);
        let session = own[which].first().unwrap();
        assert_eq!(reader.session(session).await.1, expected, "the session of {person}");
        // What Umami shows of the session is that person's too.
        let data = running.rows("session_data", &format!("session_id = '{session}'")).await;
        let keys: BTreeSet<_> = data.iter().map(|row| row["data_key"].as_str().unwrap()).collect();
        assert_eq!(keys, BTreeSet::from(["shared", "name", "first", &format!("only-{person}")]));
        // The history is theirs alone, and whole: a name and a number per round, and what never changed once.
        let history = running
            .texts(&format!(
                "SELECT string_value FROM {} WHERE distinct_id = '{person}' AND key IN ('name', 'first')
                 ORDER BY key DESC, received_at",
                running.own("profile_write")
            ))
            .await;
        let names = (0..ROUNDS).map(|round| format!("{person} {round}"));
        assert_eq!(history, names.chain([person.to_owned()]).collect::<Vec<_>>());
        let count =
            format!("SELECT count(*) FROM {} WHERE distinct_id = '{person}'", running.own("profile_write"));
        assert_eq!(running.number(&count).await as usize, 2 * ROUNDS + 2);
        // The journey has what the device did while nobody was signed in, and nothing of the other person.
        let other = people[1 - which];
        let journey = reader.journey(person, 4).await;
        let of_other = |event: &&Value| event["urlPath"].as_str().is_some_and(|path| path.contains(other));
        assert_eq!(journey.iter().find(of_other), None);
        assert_eq!(journey.len(), 1 + 3 * ROUNDS);
        let shown = following[which].until("the last name is shown", |traits| traits == &expected).await;
        assert_eq!(shown.version, reader.person(person).await.0);
        for shown in following[which].shown() {
            assert!(!shown.traits.to_string().contains(other), "{shown:?}");
        }
    }
    // The owner of the anonymous session cannot be known, so it is nobody's.
    let nobody = reader.read(&format!("/sessions/{anonymous}")).await;
    assert_eq!([&nobody["person"], &nobody["traits"]], [&Value::Null, &json!({})]);
    assert_replay_gives_the_same_versions(&running, &reader, &people).await;
    assert_no_complaints(&running);
}

async fn a_journey_before_and_after_signing_in_is_one_with_shared_sessions(setup: Setup) {
    one_journey(setup, Sessions::Shared).await;
}

async fn a_journey_before_and_after_signing_in_is_one_with_sessions_per_device(setup: Setup) {
    one_journey(setup, Sessions::PerDevice).await;
}

/// Umami's issues 3663, 3752 and 3820: who signs in becomes another visitor, and on each device another one.
async fn one_journey(setup: Setup, sessions: Sessions) {
    let (running, reader) = sessions.start(setup).await;
    let mut answers: Vec<(Option<&str>, Answered)> = Vec::new();
    let steps: [(Device, Option<&str>, Option<&str>); 9] = [
        (LAPTOP, None, Some("/1")),
        (LAPTOP, None, Some("/2")),
        (LAPTOP, Some("ada"), None),
        (LAPTOP, Some("ada"), Some("/3")),
        (PHONE, None, Some("/4")),
        (PHONE, Some("ada"), None),
        (PHONE, Some("ada"), Some("/5")),
        (LAPTOP, Some("ada"), Some("/6")),
        (TABLET, None, Some("/somebody-else")),
    ];
    for (device, person, url) in steps {
        let answered = match (person, url) {
            (Some(person), None) => device.identify(&running, person, &json!({ "plan": "pro" })).await,
            (person, _) => {
                let mut payload = json!({ "url": url });
                payload.as_object_mut().unwrap().extend(person.map(|id| ("id".to_owned(), json!(id))));
                device.send(&running, "event", &payload).await
            }
        };
        // Their order is that of their arrival, to the millisecond.
        all_applied(&running).await;
        answers.push((url, answered));
    }
    let session = |step: usize| answers[step].1.session.as_str();

    let person = reader.read("/profiles/ada").await;
    let linked = person["sessions"].as_array().unwrap();
    let of_kind = |kind: &str| -> BTreeSet<&str> {
        let rows = linked.iter().filter(|row| row["kind"] == kind);
        rows.map(|row| row["sessionId"].as_str().unwrap()).collect()
    };
    assert_eq!(of_kind("own"), BTreeSet::from([session(2), session(5)]));
    assert_eq!(of_kind("anonymous"), BTreeSet::from([session(0), session(4)]));
    assert_eq!(session(2) == session(5), sessions == Sessions::Shared);
    assert!(linked.iter().all(|row| row["live"] == true), "{person}");
    for limit in [1, 3, 50] {
        let journey = reader.journey("ada", limit).await;
        let way: Vec<_> =
            journey.iter().map(|event| event["urlPath"].as_str().unwrap_or("identify")).collect();
        assert_eq!(way, ["/1", "/2", "identify", "/3", "/4", "identify", "/5", "/6"]);
        let whose: Vec<_> = journey.iter().map(|event| event["sessionId"].as_str().unwrap()).collect();
        assert_eq!(whose, (0..8).map(session).collect::<Vec<_>>());
    }
    // The devices' anonymous sessions are effectively hers as well.
    for step in [0, 4] {
        assert_eq!(reader.session(session(step)).await.1, json!({ "plan": "pro" }));
    }

    // What Umami counts is what was answered, as it would be without people: linking adds and moves no row.
    let views: Vec<_> = answers.iter().filter(|(url, _)| url.is_some()).map(|(_, answer)| answer).collect();
    let visitors: BTreeSet<_> = views.iter().map(|view| &view.session).collect();
    let visits: BTreeSet<_> = views.iter().map(|view| (&view.session, &view.visit)).collect();
    let counts = [
        ("count(*)", views.len()),
        ("count(DISTINCT session_id)", visitors.len()),
        ("count(DISTINCT session_id || visit_id)", visits.len()),
    ];
    for (count, expected) in counts {
        let count =
            count.replace("session_id || visit_id", "CAST(session_id AS text) || CAST(visit_id AS text)");
        let number = running.number(&format!("SELECT {count} FROM website_event")).await;
        assert_eq!(number as usize, expected, "{count}");
    }
    let all: BTreeSet<String> = answers.iter().map(|(_, answer)| answer.session.clone()).collect();
    let rows = running.rows("session", "1 = 1").await;
    let stored: BTreeSet<String> =
        rows.iter().map(|row| row["session_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(stored, all);
    let named = rows.iter().filter(|row| row["distinct_id"] == "ada").count();
    assert_eq!(named, of_kind("own").len(), "an anonymous session stays anonymous");
    assert_eq!(rows.len(), if sessions == Sessions::Shared { 4 } else { 5 });
    assert_replay_gives_the_same_versions(&running, &reader, &["ada"]).await;
    assert_no_complaints(&running);
}
