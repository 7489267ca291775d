//! The writer of a partition: it moves between projectors that come, go, die and freeze, and only the rightful one ever
//! changes a row.

use std::collections::BTreeMap;
use std::time::Duration;

use dashi_load::{LoadPlan, Mode};
use integration_tests::{
    Dashi, Deployment, Ledger, Server, Status, TestDatabase, TestDirectory, eventually, kafka,
};
use serde_json::Value;
use sqlx::postgres::PgConnection;

/// How long a busy machine may take for what usually takes a second.
const SOON: Duration = Duration::from_secs(60);

/// Silence after which the group takes a projector's partitions away: the least that Kafka allows.
const SESSION_TIMEOUT_MS: &str = "6000";

/// How long the partitions of a projector that stopped dead may stay without a writer: the group notices after its
/// session timeout, and the database ends a frozen transaction after 15 s.
const TAKEN_OVER: Duration = Duration::from_secs(25);

async fn on_kafka_and_postgres() -> (Deployment, TestDatabase) {
    let database = TestDatabase::create().await;
    let log = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("ownership"));
    let deployment = Deployment::new(log, database.url())
        .with("DASHI_EVENT_LOG_PARTITIONS", "8")
        .with("DASHI_KAFKA_SESSION_TIMEOUT_MS", SESSION_TIMEOUT_MS)
        .with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", "100");
    deployment.register().await;
    (deployment, database)
}

/// Writes down, in the database itself, who claims and who moves a checkpoint. Each projector has a role of its own.
struct Witness {
    database: TestDatabase,
    roles: [String; 2],
}

impl Witness {
    async fn install(database: TestDatabase) -> Self {
        let roles = ["a", "b"].map(|letter| format!("{}_{letter}", database.name()));
        let mut connection = database.connect().await;
        let [a, b] = &roles;
        let sql = format!(
            "CREATE ROLE {a} SUPERUSER LOGIN PASSWORD 'x';
             CREATE ROLE {b} SUPERUSER LOGIN PASSWORD 'x';
             CREATE TABLE claimed (partition int, epoch bigint, who text);
             CREATE TABLE moved (partition int, epoch bigint, who text);
             CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF TG_OP = 'INSERT' OR NEW.epoch > OLD.epoch THEN
                     INSERT INTO claimed VALUES (NEW.partition, NEW.epoch, current_user);
                 END IF;
                 IF TG_OP = 'UPDATE' AND NEW.checkpoint > OLD.checkpoint THEN
                     INSERT INTO moved VALUES (NEW.partition, NEW.epoch, current_user);
                 END IF;
                 RETURN NULL;
             END $$;
             CREATE TRIGGER witness AFTER INSERT OR UPDATE ON dashi.checkpoint
             FOR EACH ROW EXECUTE FUNCTION witness();"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        Self { database, roles }
    }

    /// The deployment as one of the two sees it.
    fn for_projector(&self, deployment: &Deployment, which: usize) -> Deployment {
        let (_, server) = self.database.url().split_once('@').expect("a user stands in the URL");
        deployment.with_store(&format!("postgres://{}:x@{server}", self.roles[which]))
    }

    /// Asserts that both have written, and that nobody has but under a claim of its own.
    async fn assert_only_the_rightful_wrote(&self) {
        let mut connection = self.database.connect().await;
        for role in &self.roles {
            let moves: i64 = sqlx::query_scalar("SELECT count(*) FROM moved WHERE who = $1")
                .bind(role)
                .fetch_one(&mut connection)
                .await
                .unwrap();
            assert!(moves > 0, "{role} never wrote");
        }
        let wrongful: Vec<String> = sqlx::query_scalar(
            "SELECT format('partition %s, epoch %s: %s', partition, epoch, who) FROM moved AS m
             WHERE NOT EXISTS (SELECT FROM claimed AS c
                 WHERE c.partition = m.partition AND c.epoch = m.epoch AND c.who = m.who)",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        assert!(wrongful.is_empty(), "written under the claim of another: {wrongful:?}");
        let drop = self.roles.each_ref().map(|role| format!("DROP ROLE {role};")).concat();
        sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&mut connection).await.unwrap();
    }
}

fn steady(requests_per_s: f64) -> impl FnOnce(&mut LoadPlan) {
    move |plan| {
        plan.connections = 8;
        plan.mode = Mode::Open { requests_per_s };
        plan.duration = 5 * SOON;
    }
}

/// Waits until the owners, as `dashi status` shows them, are as wanted.
async fn until(deployment: &Deployment, deadline: Duration, what: &str, wanted: impl Fn(&Status) -> bool) {
    eventually(deadline, what, async || {
        let status = deployment.status().await?;
        let owners: Vec<_> = status.partitions.iter().map(|p| (p.epoch, p.owner.clone())).collect();
        if wanted(&status) { Ok(()) } else { Err(format!("{owners:?}")) }
    })
    .await;
}

/// The answer of `status`; asked again where a busy broker gives it none.
async fn answered(deployment: &Deployment) -> Status {
    let seen = std::cell::Cell::new(None);
    eventually(SOON, "status answers", async || {
        seen.set(Some(deployment.status().await?));
        Ok::<_, String>(())
    })
    .await;
    seen.take().expect("it was seen")
}

fn epochs(status: &Status) -> BTreeMap<u32, u64> {
    status.partitions.iter().map(|partition| (partition.partition, partition.epoch)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_move_as_projectors_come_and_die() {
    let (deployment, _database) = on_kafka_and_postgres().await;
    let mut collectors =
        [deployment.start("collect").ready().await, deployment.start("collect").ready().await];
    let mut first = deployment.start("project").ready().await;
    let mut second = deployment.start("project").ready().await;
    let mut ledger = Ledger::new(&deployment);
    let loads = collectors.each_ref().map(|collector| ledger.start(&collector.authority, steady(200.0)));
    until(&deployment, SOON, "two projectors share the partitions", |status| {
        let shares = [&first, &second].map(|projector| status.owned_by(&projector.dashi).len());
        shares.iter().all(|share| *share > 0) && shares.iter().sum::<usize>() == 8
    })
    .await;

    let mut third = deployment.start("project").ready().await;
    until(&deployment, SOON, "a third projector gets its share", |status| {
        !status.owned_by(&third.dashi).is_empty()
    })
    .await;

    let before = answered(&deployment).await;
    let orphans = before.owned_by(&first.dashi);
    assert!(!orphans.is_empty(), "{before:?}");
    first.dashi.kill9();
    until(&deployment, TAKEN_OVER, "the partitions of the dead one move on", |status| {
        status.owned_by(&first.dashi).is_empty()
    })
    .await;
    let after = epochs(&answered(&deployment).await);
    let before = epochs(&before);
    assert!(orphans.iter().all(|partition| after[partition] > before[partition]), "{before:?} {after:?}");

    for load in loads {
        let report = ledger.stop(load).await;
        assert_eq!(report.counts.statuses.keys().collect::<Vec<_>>(), [&200], "{report}");
        assert_eq!(report.counts.errors.total(), 0, "{report}");
    }
    assert!(ledger.acknowledged() > 500);
    let status = ledger.check().await;
    assert_eq!(status.totals.duplicate, 0);
    for server in collectors.iter_mut().chain([&mut second, &mut third]) {
        assert_eq!(server.dashi.terminate().await, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_projector_with_a_name_keeps_its_partitions_over_a_restart() {
    let (deployment, _database) = on_kafka_and_postgres().await;
    // The restart has to be over before the group gives up waiting for the name, on a busy machine, too.
    let deployment = deployment.with("DASHI_KAFKA_SESSION_TIMEOUT_MS", "45000");
    let named = |name: &str| deployment.clone().with("DASHI_KAFKA_INSTANCE_ID", name);
    let mut collector = deployment.start("collect").ready().await;
    let mut first = named("first").start("project").ready().await;
    let mut second = named("second").start("project").ready().await;
    let mut ledger = Ledger::new(&deployment);
    let load = ledger.start(&collector.authority, steady(200.0));
    until(&deployment, SOON, "two projectors share the partitions", |status| {
        let shares = [&first, &second].map(|projector| status.owned_by(&projector.dashi).len());
        shares.iter().all(|share| *share > 0) && shares.iter().sum::<usize>() == 8
    })
    .await;

    let before = answered(&deployment).await;
    let (stay, wait) = (before.owned_by(&first.dashi), before.owned_by(&second.dashi));
    assert_eq!(second.dashi.terminate().await, Some(0));
    let mut second = named("second").start("project").ready().await;
    until(&deployment, SOON, "the one that came back has the partitions that it had", |status| {
        status.owned_by(&second.dashi) == wait
    })
    .await;
    let after = answered(&deployment).await;
    assert_eq!(after.owned_by(&first.dashi), stay);
    let (before, after) = (epochs(&before), epochs(&after));
    assert!(stay.iter().all(|partition| after[partition] == before[partition]), "{before:?} {after:?}");
    assert!(wait.iter().all(|partition| after[partition] == before[partition] + 1), "{before:?} {after:?}");

    // A second process under one name: the older one ends, and says why.
    let mut double = named("first").start("project").ready().await;
    assert_eq!(first.dashi.wait_exit(SOON).await.code(), Some(1));
    let errors = first.dashi.stderr();
    assert!(errors.contains("another projector has joined the group as first"), "{errors}");
    until(&deployment, SOON, "the newer one has its partitions", |status| {
        status.owned_by(&double.dashi) == stay
    })
    .await;

    let report = ledger.stop(load).await;
    assert_eq!(report.counts.statuses.keys().collect::<Vec<_>>(), [&200], "{report}");
    let status = ledger.check().await;
    assert_eq!(status.totals.duplicate, 0);
    for server in [&mut collector, &mut second, &mut double] {
        assert_eq!(server.dashi.terminate().await, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_projector_is_succeeded_and_harmless_when_it_wakes() {
    let (deployment, database) = on_kafka_and_postgres().await;
    let collector = deployment.start("collect").ready().await;
    let mut watch = database.connect().await;
    let witness = Witness::install(database).await;
    let mut projectors = [
        witness.for_projector(&deployment, 0).start("project").ready().await,
        witness.for_projector(&deployment, 1).start("project").ready().await,
    ];
    let mut ledger = Ledger::new(&deployment);
    let load = ledger.start(&collector.authority, steady(300.0));
    // The first two are caught in the middle of a transaction, which holds locks that the successor needs.
    for (round, in_transaction) in [true, true, false].into_iter().enumerate() {
        until(&deployment, SOON, "both projectors have partitions", |status| {
            projectors.iter().all(|projector| !status.owned_by(&projector.dashi).is_empty())
        })
        .await;
        let frozen = &mut projectors[round % 2].dashi;
        freeze(frozen, &mut watch, in_transaction).await;
        until(&deployment, TAKEN_OVER, "another projector takes over", |status| {
            status.owned_by(frozen).is_empty()
        })
        .await;
        let owned = epochs(&answered(&deployment).await);
        frozen.sigcont();
        until(&deployment, SOON, "the one that woke takes part again", |status| {
            !status.owned_by(frozen).is_empty()
        })
        .await;
        // It came back by a new claim, not by going on under its old claim.
        let status = answered(&deployment).await;
        let again = epochs(&status);
        assert!(
            status.owned_by(frozen).iter().all(|partition| again[partition] > owned[partition]),
            "{owned:?} {status:?}"
        );
    }
    let report = ledger.stop(load).await;
    assert_eq!(report.counts.statuses.keys().collect::<Vec<_>>(), [&200], "{report}");
    let status = ledger.check().await;
    assert_eq!(status.totals.duplicate, 0);
    for projector in &mut projectors {
        let logs = projector.dashi.stderr();
        assert!(logs.contains("another projector took over") || logs.contains("revoked"), "{logs}");
        assert_eq!(projector.dashi.terminate().await, Some(0));
    }
    witness.assert_only_the_rightful_wrote().await;
}

/// SIGSTOP; if wanted, at a moment when the process is between two statements of a transaction.
async fn freeze(dashi: &mut Dashi, watch: &mut PgConnection, in_transaction: bool) {
    for _ in 0..500 {
        dashi.sigstop();
        if !in_transaction {
            return;
        }
        // Everybody else's transactions end within this time; the frozen process's do not.
        tokio::time::sleep(Duration::from_millis(150)).await;
        let open: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'dashi'
             AND state = 'idle in transaction' AND state_change < clock_timestamp() - interval '100 ms'",
        )
        .fetch_one(&mut *watch)
        .await
        .unwrap();
        if open > 0 {
            return;
        }
        dashi.sigcont();
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    panic!("the process was never caught in a transaction");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_projectors_that_both_own_everything_get_on_with_it() {
    let (deployment, database) = on_kafka_and_postgres().await;
    let collector = deployment.start("collect").ready().await;
    // Two groups on one store: a mistake of the operator's, or two halves of a parted network.
    let rival = deployment.clone().with("DASHI_KAFKA_GROUP", &format!("rival-{}", database.name()));
    let witness = Witness::install(database).await;
    let mut projectors = [
        witness.for_projector(&deployment, 0).start("project").ready().await,
        witness.for_projector(&rival, 1).start("project").ready().await,
    ];
    let mut ledger = Ledger::new(&deployment);
    let load = ledger.start(&collector.authority, steady(300.0));
    // It goes on: at every look, more is applied than at the one before.
    let mut applied = 0;
    for look in 0..4 {
        eventually(Duration::from_secs(15), &format!("more is applied, look {look}"), async || {
            let status = deployment.status().await?;
            let more = status.totals.applied > applied + 200;
            if more { Ok(()) } else { Err(format!("{:?} after {applied}", status.totals)) }
        })
        .await;
        applied = answered(&deployment).await.totals.applied;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let report = ledger.stop(load).await;
    assert_eq!(report.counts.statuses.keys().collect::<Vec<_>>(), [&200], "{report}");
    let status = ledger.check().await;
    assert_eq!(status.totals.duplicate, 0);
    let rivalled = status.partitions.iter().filter(|partition| partition.epoch > 2).count();
    assert!(rivalled > 0, "they never took a partition from each other: {status:?}");
    for projector in &mut projectors {
        assert!(
            projector.dashi.stderr().contains("another projector took over"),
            "{}",
            projector.dashi.stderr()
        );
        assert_eq!(projector.dashi.terminate().await, Some(0));
    }
    witness.assert_only_the_rightful_wrote().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_log_has_one_projector() {
    let directory = TestDirectory::create("ownership");
    let deployment = Deployment::embedded(&directory);
    deployment.register().await;
    let mut first = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(&deployment);

    let mut second = deployment.start("project");
    assert_eq!(second.dashi.wait_exit(SOON).await.code(), Some(1));
    let errors = second.dashi.stderr();
    assert!(errors.contains("another process projects the event log already"), "{errors}");
    assert!(errors.contains("log.db.projector-lock"), "{errors}");

    // A second `serve` goes on collecting, says why it does not project, and what it collects is applied.
    let mut second = deployment.start("serve").ready().await;
    let projects = async |server: &Server| -> Value {
        let url = format!("{}/health/ready", server.url());
        integration_tests::http::get(&url).await.unwrap().json()["checks"]["projector"].clone()
    };
    eventually(SOON, "its projector has failed", async || {
        let state = projects(&second).await;
        let why = state.as_str().unwrap_or_default();
        if why.contains("log.db.projector-lock") { Ok(()) } else { Err(format!("{state}")) }
    })
    .await;
    assert_eq!(projects(&first).await, "ok");
    for server in [&first, &second] {
        assert_eq!(ledger.send(&server.authority, &[]).await.unwrap().status, 200);
    }
    ledger.check().await;

    // The lock dies with its holder.
    first.dashi.kill9();
    assert_eq!(second.dashi.terminate().await, Some(0));
    let mut third = deployment.start("serve").ready().await;
    eventually(SOON, "its projector has started", async || projects(&third).await == "ok").await;
    assert_eq!(ledger.send(&third.authority, &[]).await.unwrap().status, 200);
    ledger.check().await;
    assert_eq!(third.dashi.terminate().await, Some(0));
}
