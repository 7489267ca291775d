//! The harness itself: a test is worth what its servers are worth.

use std::cell::Cell;
use std::time::Duration;

use integration_tests::{
    KafkaServer, PostgresServer, TestDatabase, TestDirectory, eventually, free_port, http, kafka, vectors,
};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_test_database_is_empty_and_goes_away() {
    let database = TestDatabase::create().await;
    let mut connection = database.connect().await;
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(tables, 0);

    let name = database.name().to_owned();
    drop(database);
    let other = TestDatabase::create().await;
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_database WHERE datname = $1")
        .bind(name)
        .fetch_one(&mut other.connect().await)
        .await
        .unwrap();
    assert_eq!(left, 0, "a database with an open connection is dropped too");
}

#[tokio::test]
async fn the_shared_database_is_durable() {
    let database = TestDatabase::create().await;
    let mut connection = database.connect().await;
    assert_durable(&mut connection).await;
}

async fn assert_durable(connection: &mut PgConnection) {
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        let value: String = sqlx::query_scalar(AssertSqlSafe(format!("SHOW {setting}")))
            .fetch_one(&mut *connection)
            .await
            .unwrap();
        assert_eq!(value, "on", "{setting}");
    }
}

#[tokio::test]
async fn a_private_postgres_comes_back_with_its_data_on_its_port() {
    let mut server = PostgresServer::start().await;
    server.create_database("dashi").await;
    let url = server.url("dashi");
    let mut connection = PgConnection::connect(&url).await.unwrap();
    assert_durable(&mut connection).await;
    sqlx::raw_sql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)")
        .execute(&mut connection)
        .await
        .unwrap();

    server.stop_immediate().await;
    assert!(PgConnection::connect(&url).await.is_err(), "a stopped server takes no connection");
    server.start_again().await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("INSERT INTO kept VALUES (2)").execute(&mut connection).await.unwrap();

    server.stop_fast().await;
    server.start_again().await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let kept: Vec<i32> =
        sqlx::query_scalar("SELECT n FROM kept ORDER BY n").fetch_all(&mut connection).await.unwrap();
    assert_eq!(kept, [1, 2]);
}

#[tokio::test]
async fn a_frozen_postgres_is_silent_until_it_thaws() {
    let server = PostgresServer::start().await;
    let mut connection = PgConnection::connect(&server.url("postgres")).await.unwrap();
    server.freeze();
    {
        let query = sqlx::query_scalar::<_, i32>("SELECT 1").fetch_one(&mut connection);
        let mut query = std::pin::pin!(query);
        assert!(tokio::time::timeout(Duration::from_millis(300), &mut query).await.is_err());
        server.thaw();
        assert_eq!(tokio::time::timeout(SOON, query).await.unwrap().unwrap(), 1);
    }
}

#[tokio::test]
async fn a_private_kafka_comes_back_on_its_port() {
    let mut server = KafkaServer::start().await;
    let address = server.address();
    server.kill();
    assert!(!server.answers().await, "a killed broker does not answer");
    server.start_again().await;
    server.freeze();
    // A signal takes a moment to reach every thread of a process on a busy machine.
    eventually(SOON, "a frozen broker does not answer", async || !server.answers().await).await;
    server.thaw();
    eventually(SOON, "the broker answers again", async || server.answers().await).await;
    server.stop().await;
    assert!(!server.answers().await, "a stopped broker does not answer");
    server.start_again().await;
    assert_eq!(server.address(), address);
}

#[tokio::test]
async fn the_shared_kafka_takes_connections() {
    tokio::net::TcpStream::connect(kafka::shared_broker()).await.unwrap();
    assert_ne!(kafka::unique_topic("t"), kafka::unique_topic("t"));
}

#[tokio::test]
async fn the_client_shows_what_was_sent_and_answered() {
    let port = free_port();
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"{\"a\":1}") {
            stream.read_buf(&mut request).await.unwrap();
        }
        let answer = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 7\r\ntransfer-encoding: chunked\r\n\r\n\
                      2\r\n{}\r\n0\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(request).unwrap()
    });
    let url = format!("http://127.0.0.1:{port}/api/send?x=1");
    let body = serde_json::json!({ "a": 1 });
    let answer = http::post_json(&url, &body, &[("X-Forwarded-For", "203.0.113.9")]).await.unwrap();
    assert_eq!(
        (answer.status, answer.header("retry-after"), answer.json()),
        (503, Some("7"), serde_json::json!({}))
    );
    let request = server.await.unwrap().to_lowercase();
    assert!(request.starts_with("post /api/send?x=1 http/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("host: 127.0.0.1:{port}\r\n")), "{request}");
    assert!(request.contains("content-type: application/json\r\n"), "{request}");
    assert!(request.contains("x-forwarded-for: 203.0.113.9\r\n"), "{request}");
    assert!(http::get(&format!("http://127.0.0.1:{}/", free_port())).await.is_err());
}

#[tokio::test]
async fn waiting_ends_when_the_condition_holds() {
    let looks = Cell::new(0);
    eventually(SOON, "the third look", async || {
        looks.set(looks.get() + 1);
        looks.get() == 3
    })
    .await;
    assert_eq!(looks.get(), 3);
}

#[tokio::test]
#[should_panic(expected = "until pigs fly; last seen: no wings")]
async fn waiting_in_vain_says_for_what_and_what_was_seen() {
    eventually(Duration::from_millis(100), "pigs fly", async || Err::<(), _>("no wings")).await;
}

#[test]
fn a_test_directory_goes_away() {
    let directory = TestDirectory::create("x");
    let path = directory.path().to_owned();
    assert!(path.is_dir());
    drop(directory);
    assert!(!path.exists());
}

#[test]
fn the_vectors_are_read() {
    let vectors = vectors::load();
    assert_eq!(vectors.ids.len(), 23);
    assert_eq!(vectors.events.len(), 26);
    assert_eq!(vectors.data.len(), 13);
    assert!(vectors.user_agents.len() > 30);
}
