//! The log's own accidents, one after the other on what the faults have left: each is noticed, one command goes on, and nothing is lost
//! but what the log itself has lost.

use std::time::Duration;

use dashi_load::Mode;
use integration_tests::log::{LogCopy, remove};
use integration_tests::{Ledger, eventually, http, kafka};

use super::faults::Random;
use super::world::{Servers, World};
use super::{Diary, RATE};

/// How long a process may take to notice it on a busy machine, and a command until it works.
const NOTICED: Duration = Duration::from_secs(120);

/// An accident.
#[derive(Debug, Clone, Copy)]
enum Accident {
    /// The log's files are replaced by an older copy of themselves.
    OlderCopy,
    /// The log is deleted, and another one takes its place.
    Replaced,
    /// Retention removes records that are not applied.
    Retention,
}

impl Accident {
    const fn name(self) -> &'static str {
        match self {
            Self::OlderCopy => "older copy of the log restored",
            Self::Replaced => "log deleted and made again",
            Self::Retention => "retention past the checkpoints",
        }
    }
}

/// Lets each accident happen that there is here, in random order; returns their names, and how many acknowledged events the log has
/// lost at most.
pub async fn befall(
    world: &mut World,
    ledger: &mut Ledger,
    random: &mut Random,
    diary: &mut Diary,
) -> (Vec<&'static str>, u64) {
    let mut accidents = match world.servers {
        Servers::Files(_) => vec![Accident::OlderCopy, Accident::Replaced],
        Servers::Cluster { .. } => vec![Accident::Retention, Accident::Replaced],
    };
    if random.below(2) == 1 {
        accidents.reverse();
    }
    let mut lost = 0;
    for accident in &accidents {
        diary.enter(accident.name());
        match accident {
            Accident::OlderCopy => restore_older_copy(world, ledger, random).await,
            Accident::Replaced => replace(world, ledger, random).await,
            Accident::Retention => lost += remove_records(world, ledger, random).await,
        }
        load(world, ledger, random).await;
        ledger.check_after_loss(lost).await;
        let audit = world.deployment.run(&["audit"]).await;
        assert_eq!(audit.code, Some(0), "{}: {}", accident.name(), audit.stdout);
        diary.enter("everything else is there once");
    }
    (accidents.into_iter().map(Accident::name).collect(), lost)
}

/// Some events to every collector.
async fn load(world: &World, ledger: &mut Ledger, random: &mut Random) {
    let loads: Vec<_> = world
        .collectors()
        .map(|collector| {
            ledger.start(&collector, |plan| {
                plan.connections = 8;
                plan.sessions = 100;
                plan.mode = Mode::Open { requests_per_s: RATE };
                plan.duration = Duration::from_secs(3_600);
            })
        })
        .collect();
    // The length is random on purpose: nothing is waited for.
    tokio::time::sleep(random.duration(800, 2_500)).await;
    for load in loads {
        ledger.stop(load).await;
    }
}

async fn restore_older_copy(world: &mut World, ledger: &mut Ledger, random: &mut Random) {
    world.deployment.settled().await;
    world.kill();
    let older = LogCopy::take(world.deployment.log());
    world.start_all().await;
    load(world, ledger, random).await;
    // What is applied stays though the log loses it; what is not would be gone.
    world.deployment.settled().await;
    world.kill();
    older.restore();
    world.start_all().await;
    load(world, ledger, random).await;
    accept_lost(world, "read again from").await;
}

async fn remove_records(world: &mut World, ledger: &mut Ledger, random: &mut Random) -> u64 {
    let before = world.deployment.settled().await.totals.missing;
    for projector in world.projectors() {
        world.processes[projector].server.dashi.kill9();
    }
    load(world, ledger, random).await;
    let (brokers, topic) = world.topic();
    let status = world.deployment.status().await.expect("log and store answer");
    for partition in status.partitions.iter().filter(|partition| partition.lag_records > 1) {
        let end = partition.checkpoint + 1 + random.below(partition.lag_records - 1);
        kafka::delete_records(&brokers, &topic, partition.partition as i32, end as i64).await;
    }
    for projector in world.projectors() {
        world.start(projector);
    }
    accept_lost(world, "are recorded as missing").await;
    world.deployment.settled().await.totals.missing - before
}

async fn replace(world: &mut World, ledger: &mut Ledger, random: &mut Random) {
    world.deployment.settled().await;
    match world.servers {
        Servers::Files(_) => {
            world.kill();
            remove(world.deployment.log());
            for collector in world.places("collect") {
                world.start(collector);
            }
        }
        Servers::Cluster { .. } => {
            let (brokers, topic) = world.topic();
            kafka::delete_topic(&brokers, &topic).await;
            kafka::create_replicated_topic(&brokers, &topic, 6).await;
        }
    }
    // Nothing of the new log is applied under the old one's checkpoints.
    let collectors: Vec<String> = world.collectors().collect();
    for collector in &collectors {
        eventually(NOTICED, "the collector takes events into the new log", async || {
            let taken = ledger.send(collector, &[]).await.map_err(|error| error.to_string())?;
            if taken.status == 200 { Ok(()) } else { Err(taken.text()) }
        })
        .await;
    }
    load(world, ledger, random).await;
    // What a collector took for the old log when that was gone already.
    world.forward_into_the_new_log().await;
    for projector in world.projectors() {
        world.processes[projector].server.dashi.kill9();
    }
    let authority = format!("127.0.0.1:{}", integration_tests::free_port());
    let mut accepting = world.deployment.spawn(&["project", "--accept-new-log", "--listen", &authority]);
    eventually(NOTICED, "the projector goes on with the new log", async || {
        match http::get(&format!("http://{authority}/health/ready")).await {
            Ok(answer) if answer.status == 200 => world.deployment.status().await.map(|_| ()),
            Ok(answer) => Err(answer.text()),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .await;
    world.deployment.settled().await;
    assert_eq!(accepting.terminate().await, Some(0), "{}", accepting.logs());
    for projector in world.projectors() {
        world.start(projector);
    }
    world.ready().await;
}

/// Runs the command that goes on behind what the log has lost, once a partition has noticed it. A running projector claims its
/// partitions again and again meanwhile.
async fn accept_lost(world: &World, says: &str) {
    let mut said = String::new();
    eventually(NOTICED, "the loss is accepted", async || {
        let ended = world.deployment.run(&["accept-lost"]).await;
        said.push_str(&ended.stdout);
        if ended.code == Some(0) && said.contains(says) && ended.stdout.contains("nothing is lost") {
            return Ok(());
        }
        Err(format!("{:?} {} {}", ended.code, ended.stdout, ended.stderr))
    })
    .await;
}
