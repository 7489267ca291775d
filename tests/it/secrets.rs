//! No secret is shown: not in logs, errors, answers, metrics, or the output of a command, whether things go well or not.

use std::time::Duration;

use dashi_domain::identity::{IdentityKey, signature};
use hyper::Method;
use integration_tests::{Dashi, Deployment, TestDatabase, TestDirectory, eventually, free_port, http};

/// How long a busy machine may take for what usually takes some seconds.
const SOON: Duration = Duration::from_secs(60);

const APP_SECRET: &str = "planted-app-secret-5f1c";
const DATABASE_PASSWORD: &str = "planted-database-password-77e0";
const API_KEY: &str = "planted-api-key-c0ffee";
const BROKER_PASSWORD: &str = "planted-broker-password-41d2";
const IDENTITY_KEY: &str = "planted-identity-key-of-32-characters-9a3b";
const PLANTED: [&str; 5] = [APP_SECRET, DATABASE_PASSWORD, API_KEY, BROKER_PASSWORD, IDENTITY_KEY];

/// Fails if a text shows a secret. `from` is where the text comes from.
fn assert_silent(from: &str, text: &str) {
    for secret in PLANTED {
        assert!(!text.contains(secret), "{from} shows {secret}:\n{text}");
    }
}

/// Commands that open log or store, or show settings.
const COMMANDS: &[&[&str]] = &[
    &["status"],
    &["status", "--json"],
    &["config", "show"],
    &["config", "show", "--json"],
    &["config", "check"],
    &["config", "check", "--connect"],
    &["website", "list"],
    &["website", "identity-key", "01a21895-dd29-7311-b25a-12be519b9a6c"],
    &["audit"],
    &["audit", "--json"],
    &["dead-letters", "list"],
    &["replay", "list"],
    &["replay", "plan"],
    &["trace", "01a21895-dd29-7311-b25a-12be519b9a6c"],
    &["heal"],
    &["doctor"],
    &["test-event", "--wait", "0"],
];

async fn assert_commands_are_silent(deployment: &Deployment, commands: &[&[&str]], log: &str, store: &str) {
    for command in commands {
        let mut words = command.to_vec();
        let known = Dashi::run(&[command, &["--help"][..]].concat(), &[]).await.stdout;
        for (flag, value) in [("--log", log), ("--store", store)] {
            if known.contains(flag) {
                words.extend([flag, value]);
            }
        }
        let env = [
            ("APP_SECRET", APP_SECRET),
            ("DASHI_API_KEYS", API_KEY),
            ("DASHI_PROFILES_IDENTITY_KEY", IDENTITY_KEY),
            ("DASHI_KAFKA_GROUP", deployment.env("DASHI_KAFKA_GROUP").unwrap_or("dashi")),
            (
                "DASHI_KAFKA_PROPERTIES",
                &format!(
                    "security.protocol=sasl_plaintext,sasl.mechanism=PLAIN,sasl.username=u,sasl.password={BROKER_PASSWORD}"
                ),
            ),
            ("DASHI_LOGS_FILTER", "debug"),
        ];
        let ended = Dashi::run(&words, &env).await;
        assert!(!ended.stdout.is_empty() || !ended.stderr.is_empty(), "{command:?} prints nothing");
        assert_silent(&format!("dashi {}", command.join(" ")), &format!("{}{}", ended.stdout, ended.stderr));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_shown_whether_things_go_well_or_not() {
    let database = TestDatabase::create().await;
    let directory = TestDirectory::create("secrets");
    let log = format!("sqlite:{}", directory.path().join("log.db").display());
    let role = format!("{}_planted", database.name());
    let (_, server) = database.url().split_once('@').expect("a user stands in the URL");
    let store = format!("postgres://{role}:{DATABASE_PASSWORD}@{server}");
    let mut connection = database.connect().await;
    let sql = format!("CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{DATABASE_PASSWORD}'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    let deployment = Deployment::new(log.as_str(), store.as_str())
        .with("APP_SECRET", APP_SECRET)
        .with("DASHI_API_KEYS", API_KEY)
        .with("DASHI_PROFILES_IDENTITY_KEY", IDENTITY_KEY)
        .with("DASHI_LOGS_FILTER", "debug");
    deployment.register().await;
    let mut running = deployment.start("serve").ready().await;

    let ask =
        async |path: &str| http::get(&format!("{}{path}", running.url())).await.map(|answer| answer.text());
    for path in ["/metrics", "/health/live", "/health/ready", "/script.js", "/"] {
        assert_silent(path, &ask(path).await.unwrap());
    }
    // A signature opens the person's traits to whoever has it, so it is a secret, too.
    let website = deployment.website();
    let key = IdentityKey::new(IDENTITY_KEY).unwrap().website_key(website.parse().unwrap());
    let signature = signature(&key, "ada");
    for (signature, status) in [(signature.as_str(), 200), (key.as_str(), 401)] {
        let bearer = format!("Bearer {signature}");
        let url = format!("{}/api/me?website={website}", running.url());
        let headers = [("authorization", bearer.as_str()), ("x-dashi-id", "ada")];
        let answer = http::request(Method::GET, &url, "", &headers).await.unwrap();
        assert_eq!(answer.status, status, "{}", answer.text());
        assert_silent(&url, &answer.text());
    }
    assert_commands_are_silent(&deployment, COMMANDS, &log, &store).await;

    // The database turns the role away.
    let sql = format!(
        "ALTER ROLE {role} NOLOGIN; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    eventually(SOON, "readiness shows that the store is away", async || {
        let ready = ask("/health/ready").await.map_err(|error| error.to_string())?;
        assert_silent("/health/ready", &ready);
        if ready.contains("\"store\":\"ok\"") { Err(ready) } else { Ok(()) }
    })
    .await;
    assert_commands_are_silent(&deployment, COMMANDS, &log, &store).await;
    // Neither log nor store can be reached.
    let nobody = format!("127.0.0.1:{}", free_port());
    let away = format!("postgres://planted:{DATABASE_PASSWORD}@{nobody}/dashi");
    // A broker is waited for, so few commands ask it.
    let few: &[&[&str]] = &[&["status"], &["doctor"], &["config", "check", "--connect"]];
    let nowhere = format!("kafka://{nobody}/dashi-events");
    assert_commands_are_silent(&deployment, few, &nowhere, &away).await;
    // What is no URL is not repeated either.
    for store in [
        format!("postgres:/u:{DATABASE_PASSWORD}@h/d"),
        format!("mysql://u:{DATABASE_PASSWORD}@h/d"),
        format!("u:{DATABASE_PASSWORD}@h"),
    ] {
        let ended =
            Dashi::run(&["status", "--log", &log, "--store", &store], &[("APP_SECRET", APP_SECRET)]).await;
        assert_ne!(ended.code, Some(0));
        assert_silent(
            &format!("dashi status --store {store:?}"),
            &format!("{}{}", ended.stdout, ended.stderr),
        );
    }

    assert_eq!(running.dashi.terminate().await, Some(0));
    let logs = running.dashi.logs();
    assert_silent("the logs of serve", &logs);
    assert!(!logs.contains(&key) && !logs.contains(&signature), "{logs}");
    let sql = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    // What it owns goes with the database.
    let _ = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await;
}
