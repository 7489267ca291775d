//! `dashi doctor` on setups that are broken in one way each, and `dashi test-event` on one that works.

use integration_tests::kafka::{self, unique_topic};
use integration_tests::{Dashi, Deployment, TestDatabase, TestDirectory, free_port};
use serde_json::Value;

const SECRET: (&str, &str) = ("APP_SECRET", "a secret that nobody guesses");

/// The findings, as (level, subject, text with remedy), and the exit code.
async fn examined(
    log: &str,
    store: &str,
    env: &[(&str, &str)],
) -> (Vec<(String, String, String)>, Option<i32>) {
    let words = ["doctor", "--json", "--log", log, "--store", store];
    let ended = Dashi::run(&words, env).await;
    let findings: Vec<Value> = serde_json::from_str(&ended.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", ended.stdout, ended.stderr));
    let text = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    let findings = findings.iter().map(|finding| {
        let message = format!("{} -> {}", text(finding, "found"), text(finding, "remedy"));
        (text(finding, "level"), text(finding, "subject"), message)
    });
    (findings.collect(), ended.code)
}

/// Asserts that exactly the findings that are not ok are these, each with a part of its text and remedy.
fn assert_found(what: &str, findings: &[(String, String, String)], expected: &[(&str, &str, &str)]) {
    let wrong: Vec<_> = findings.iter().filter(|(level, ..)| level != "ok").collect();
    assert_eq!(wrong.len(), expected.len(), "{what}: {findings:#?}");
    for (level, subject, part) in expected {
        let there = wrong.iter().any(|(l, s, text)| l == level && s == subject && text.contains(part));
        assert!(there, "{what}: no {level} of {subject} with {part:?}: {wrong:#?}");
    }
}

fn embedded(directory: &TestDirectory) -> (String, String) {
    let file = |name: &str| format!("sqlite:{}", directory.path().join(name).display());
    (file("log.db"), file("store.db"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_broken_setup_has_its_line_and_a_sound_one_has_none() {
    let directory = TestDirectory::create("doctor");
    let (log, store) = embedded(&directory);

    let (findings, code) = examined(&log, &store, &[SECRET]).await;
    assert_found("nothing is there yet", &findings, &[]);
    assert_eq!(code, Some(0));
    assert!(!directory.path().join("log.db").exists(), "the doctor made a log");

    let (findings, code) = examined(&log, &store, &[("APP_SECRET", "changeme")]).await;
    assert_found("a secret of an example", &findings, &[("fail", "secret", "openssl rand -hex 32")]);
    assert_eq!(code, Some(3));

    let (findings, code) = examined(&log, &log, &[SECRET]).await;
    assert_found("one file for both", &findings, &[("fail", "settings", "give each its own file")]);
    assert_eq!(code, Some(3));

    let public = [SECRET, ("DASHI_LISTEN", "0.0.0.0:8484"), ("DASHI_EVENT_LOG_RETENTION_H", "24")];
    let (findings, code) = examined(&log, &store, &public).await;
    assert_found(
        "a public address without proxies",
        &findings,
        &[("warn", "settings", "ingest.trusted_proxies")],
    );
    assert_eq!(code, Some(0), "warnings are no failure");

    let guessed = [SECRET, ("DASHI_PROFILES_IDENTITY_KEY", "umami-umami-umami-umami-umami-umami")];
    let (findings, code) = examined(&log, &store, &guessed).await;
    assert_found(
        "an identity key that can be guessed",
        &findings,
        &[("warn", "identity", "openssl rand -hex 32")],
    );
    assert_eq!(code, Some(0), "warnings are no failure");

    let database = TestDatabase::create().await;
    let (_, server) = database.url().split_once('@').expect("a user stands in the URL");
    let nobody = format!("postgres://postgres@127.0.0.1:{}/umami", free_port());
    let (findings, code) = examined(&log, &nobody, &[SECRET]).await;
    assert_found("no database", &findings, &[("fail", "store", "look at host, port")]);
    assert_eq!(code, Some(3));

    let role = format!("{}_reader", database.name());
    let mut connection = database.connect().await;
    let sql = format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'x'; REVOKE CREATE ON DATABASE \"{}\" FROM PUBLIC; REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        database.name()
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    let as_role = format!("postgres://{role}:x@{server}");
    let (findings, code) = examined(&log, &as_role, &[SECRET]).await;
    let lacking = "CREATE on the database (for the schema dashi), CREATE on the schema public";
    assert_found("a role that may not make tables", &findings, &[("fail", "rights", lacking)]);
    assert_eq!(code, Some(3));

    // Tables that are another role's.
    Deployment::new(log.as_str(), database.url()).register().await;
    let (findings, _) = examined(&log, &as_role, &[SECRET]).await;
    assert_found(
        "a role without rights on the tables",
        &findings,
        &[("fail", "rights", "INSERT on website_event")],
    );
    let sql = format!("DROP ROLE {role}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    let (findings, code) = examined(&log, database.url(), &[SECRET]).await;
    assert_found("the owner", &findings, &[]);
    assert_eq!(code, Some(0));

    let away = format!("kafka://127.0.0.1:{}/dashi-events", free_port());
    let spool = directory.path().join("spool");
    let spool = ("DASHI_INGEST_SPOOL_DIRECTORY", spool.to_str().expect("UTF-8"));
    let (findings, code) = examined(&away, &store, &[SECRET, spool]).await;
    assert_found("no broker", &findings, &[("fail", "log", "look at the brokers' addresses")]);
    assert_eq!(code, Some(3));

    let topic = unique_topic("doctor");
    kafka::create_topic(&kafka::shared_broker(), &topic, 2, &[("cleanup.policy", "compact")]).await;
    let compacted = format!("kafka://{}/{topic}", kafka::shared_broker());
    let (findings, code) = examined(&compacted, &store, &[SECRET, spool]).await;
    let of_topic: Vec<_> = findings.iter().filter(|(_, subject, _)| subject == "topic").collect();
    assert!(
        of_topic.iter().any(|(level, _, text)| level == "fail"
            && text.contains("cleanup.policy")
            && text.contains("kafka-configs")),
        "{findings:#?}"
    );
    assert_eq!(code, Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_event_is_followed_to_its_row_or_to_the_place_where_it_waits() {
    let directory = TestDirectory::create("test-event");
    let deployment = Deployment::embedded(&directory);
    deployment.register().await;
    let mut collector = deployment.start("collect").ready().await;
    let url = collector.url();

    let ended = deployment.run(&["test-event", "--url", &url, "--wait", "0"]).await;
    assert_eq!(ended.code, Some(3), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("waits     in partition"), "{}", ended.stdout);
    assert!(ended.stdout.contains("1 records are not applied yet"), "{}", ended.stdout);

    let mut projector = deployment.start("project").ready().await;
    let ended = deployment.run(&["test-event", "--url", &url, "--wait", "60", "--json"]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    let way: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert!(way["applied_ms"].as_f64().unwrap() >= way["durable_ms"].as_f64().unwrap(), "{way}");
    let id = way["event_id"].as_str().unwrap();
    let traced = deployment.run(&["trace", id]).await;
    assert_eq!(traced.code, Some(0), "{}{}", traced.stdout, traced.stderr);

    let unknown = "99999999-9999-4999-8999-999999999999";
    let ended = deployment.run(&["test-event", "--url", &url, "--website", unknown]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    assert!(ended.stderr.contains("answered 400"), "{}", ended.stderr);
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let ended = deployment.run(&["test-event", "--url", &nobody]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    assert!(ended.stderr.contains(&nobody), "{}", ended.stderr);
    for server in [&mut collector, &mut projector] {
        assert_eq!(server.dashi.terminate().await, Some(0));
    }
}

#[tokio::test]
async fn completions_and_manual_pages_name_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = Dashi::run(&["completions", shell], &[]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(
            ["serve", "dead-letters", "test-event"].iter().all(|word| ended.stdout.contains(word)),
            "{shell}"
        );
    }
    let page = Dashi::run(&["man"], &[]).await;
    assert!(page.code == Some(0) && page.stdout.contains(".TH dashi 1"), "{}", page.stdout);
    let directory = TestDirectory::create("man");
    let output = directory.path().join("man1");
    let ended = Dashi::run(&["man", "--output", output.to_str().expect("UTF-8")], &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for page in ["dashi.1", "dashi-serve.1", "dashi-website-add.1", "dashi-replay-run.1"] {
        assert!(output.join(page).exists(), "{page}");
    }
}
