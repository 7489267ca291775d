//! A projector that cannot run: the backlog shows, the reason is logged once, and another process takes over.

use std::time::Duration;

use integration_tests::{Deployment, Ledger, eventually};
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use super::{SOON, lines_with, metrics, on_files, send_events, until_metrics};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backlog_of_a_projector_that_cannot_run_shows_and_serve_takes_over_when_it_can() {
    let (_directory, deployment) = on_files("supervision").await;
    let mut first = deployment.start("project").ready().await;
    let mut second = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(&deployment);
    until_metrics(&second, &["dashi_projector_up 0".to_owned()]).await;
    until_metrics(&first, &["dashi_projector_up 1".to_owned()]).await;
    // It saves its position in the log now and then; stopped in the middle of that, it keeps everybody from the file.
    eventually(SOON, "the projector stands still and holds no lock", async || {
        first.dashi.sigstop();
        if is_writable(deployment.log()).await {
            return true;
        }
        first.dashi.sigcont();
        false
    })
    .await;
    send_events(&mut ledger, &second, 50).await;
    eventually(SOON, "the backlog shows where nobody works on it", async || {
        let text = metrics(&second).await;
        let lags = text.lines().filter_map(|line| line.strip_prefix("dashi_projector_lag_records{"));
        let lag: u64 = lags.map(|rest| rest.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
        if lag == 50 { Ok(()) } else { Err(format!("{lag}")) }
    })
    .await;
    first.dashi.sigcont();
    first.dashi.kill9();
    until_metrics(&second, &["dashi_projector_up 1".to_owned()]).await;
    ledger.check().await;
    assert_eq!(second.dashi.terminate().await, Some(0));
    let logs = second.dashi.stderr();
    assert_eq!(lines_with(&logs, "the projector cannot run").len(), 1, "{logs}");
}

/// Whether nobody holds a lock on an embedded log.
async fn is_writable(log: &str) -> bool {
    let path = log.strip_prefix("sqlite:").expect("an embedded log");
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_millis(200));
    let Ok(mut connection) = SqliteConnection::connect_with(&options).await else {
        return false;
    };
    sqlx::raw_sql("BEGIN IMMEDIATE; ROLLBACK").execute(&mut connection).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_projector_that_cannot_run_at_all_says_why_once_and_ends_with_1() {
    let (directory, deployment) = on_files("supervision").await;
    let mut server = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(&deployment);
    send_events(&mut ledger, &server, 20).await;
    deployment.settled().await;
    assert_eq!(server.dashi.terminate().await, Some(0));
    let other_log = format!("sqlite:{}", directory.path().join("other.db").display());
    let mut projector = Deployment::new(other_log, deployment.store()).start("project");
    assert_eq!(projector.dashi.wait_exit(SOON).await.code(), Some(1));
    let logs = projector.dashi.logs();
    assert_eq!(lines_with(&logs, "the store holds the projection of the log").len(), 1, "{logs}");
}
