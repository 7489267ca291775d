//! The faults: what begins, how long it lasts, and how it ends.

use std::time::{Duration, Instant};

use super::world::{Servers, World};

/// A sequence of numbers that looks random and is the same in every run with its seed.
pub struct Random(pub u64);

impl Random {
    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % end
    }

    /// A time between these, in milliseconds.
    pub fn duration(&mut self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_millis(from_ms + self.below(to_ms - from_ms))
    }
}

/// A fault; a number names the process or the broker that it happens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of a process, and a start.
    Kill(usize),
    /// SIGSTOP of a process, and SIGCONT.
    Freeze(usize),
    /// SIGTERM of each process in turn, and a start.
    RollingRestart,
    /// The database stops in order, or as in a crash, and starts.
    DatabaseStops { crash: bool },
    /// Connections to the database stay open and silent.
    DatabaseHangs,
    /// Connections to the database are cut.
    DatabaseCut,
    /// Each packet to the database and back waits.
    DatabaseSlow,
    /// SIGKILL of a broker, and a start.
    BrokerKilled(usize),
    /// SIGSTOP of a broker, and SIGCONT.
    BrokerFrozen(usize),
    /// The disk with log and store is full.
    DiskFull,
    /// The log grows by a partition or more, unless a process that stands still keeps it from that.
    Grows,
    /// Somebody adds a partition to the topic.
    PartitionsByHand,
}

/// The thing that a fault happens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// One of Dashi's processes.
    Process(usize),
    /// All of them.
    Processes,
    /// The database.
    Database,
    /// The brokers: of three, one may be away.
    Brokers,
    /// The disk.
    Disk,
    /// The number of the log's partitions.
    Partitions,
}

/// A fault that lasts.
pub struct Active {
    /// The fault.
    pub fault: Fault,
    /// When it ends.
    pub ends_at: Instant,
}

impl Fault {
    /// The name in the report.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kill(_) => "kill -9 of a collector or projector",
            Self::Freeze(_) => "SIGSTOP and SIGCONT of a collector or projector",
            Self::RollingRestart => "rolling restart",
            Self::DatabaseStops { crash: false } => "restart of the database",
            Self::DatabaseStops { crash: true } => "crash of the database",
            Self::DatabaseHangs => "database that hangs",
            Self::DatabaseCut => "cut connections to the database",
            Self::DatabaseSlow => "slow network to the database",
            Self::BrokerKilled(_) => "kill -9 of a broker",
            Self::BrokerFrozen(_) => "SIGSTOP and SIGCONT of a broker",
            Self::DiskFull => "full disk",
            Self::Grows => "growing log",
            Self::PartitionsByHand => "partition added by hand",
        }
    }

    /// The thing that it happens to.
    pub fn subject(&self) -> Subject {
        match self {
            Self::Kill(process) | Self::Freeze(process) => Subject::Process(*process),
            Self::RollingRestart => Subject::Processes,
            Self::DatabaseStops { .. } | Self::DatabaseHangs | Self::DatabaseCut | Self::DatabaseSlow => {
                Subject::Database
            }
            Self::BrokerKilled(_) | Self::BrokerFrozen(_) => Subject::Brokers,
            Self::DiskFull => Subject::Disk,
            Self::Grows | Self::PartitionsByHand => Subject::Partitions,
        }
    }

    /// How long it lasts, once it has begun.
    pub fn lasts(&self, random: &mut Random) -> Duration {
        match self {
            // Longer than the session time-out of 6 s at times, so that partitions move.
            Self::Freeze(_) | Self::BrokerFrozen(_) => random.duration(200, 9_000),
            Self::RollingRestart | Self::DatabaseCut | Self::PartitionsByHand => Duration::ZERO,
            Self::Kill(_) => random.duration(0, 1_500),
            // The command goes on meanwhile, and is killed at the end if it has not ended by then.
            Self::Grows => random.duration(100, 6_000),
            Self::DatabaseStops { .. } | Self::BrokerKilled(_) | Self::DiskFull => {
                random.duration(200, 4_000)
            }
            Self::DatabaseHangs | Self::DatabaseSlow => random.duration(500, 6_000),
        }
    }

    /// Makes it happen.
    pub async fn begin(&self, world: &mut World) {
        match (self, &mut world.servers) {
            (Self::Kill(process), _) => world.processes[*process].server.dashi.kill9(),
            (Self::Freeze(process), _) => world.processes[*process].server.dashi.sigstop(),
            (Self::RollingRestart, _) => world.restart_each().await,
            (Self::DatabaseStops { crash: true }, Servers::Cluster { postgres, .. }) => {
                postgres.stop_immediate().await;
            }
            (Self::DatabaseStops { crash: false }, Servers::Cluster { postgres, .. }) => {
                postgres.stop_fast().await
            }
            (Self::DatabaseHangs, Servers::Cluster { proxy, .. }) => proxy.freeze(),
            (Self::DatabaseCut, Servers::Cluster { proxy, .. }) => proxy.cut(),
            (Self::DatabaseSlow, Servers::Cluster { proxy, .. }) => proxy.delay(Duration::from_millis(20)),
            (Self::BrokerKilled(broker), Servers::Cluster { kafka, .. }) => kafka.brokers[*broker].kill(),
            (Self::BrokerFrozen(broker), Servers::Cluster { kafka, .. }) => kafka.brokers[*broker].freeze(),
            (Self::Grows, _) => world.grow(),
            (Self::PartitionsByHand, _) => world.add_a_partition().await,
            (Self::DiskFull, Servers::Files(space)) => {
                space.take(world.processes.iter().map(|process| &process.server.dashi));
            }
            (fault, _) => panic!("{fault:?} cannot happen here"),
        }
    }

    /// Ends it.
    pub async fn end(&self, world: &mut World) {
        match (self, &mut world.servers) {
            (Self::Kill(process), _) => world.start(*process),
            (Self::Freeze(process), _) => world.processes[*process].server.dashi.sigcont(),
            (Self::RollingRestart, _) => {}
            (Self::DatabaseStops { .. }, Servers::Cluster { postgres, .. }) => postgres.start_again().await,
            (Self::DatabaseHangs, Servers::Cluster { proxy, .. }) => {
                proxy.thaw();
                proxy.cut();
            }
            (Self::DatabaseSlow, Servers::Cluster { proxy, .. }) => proxy.delay(Duration::ZERO),
            (Self::BrokerKilled(broker), Servers::Cluster { kafka, .. }) => {
                kafka.brokers[*broker].start_again().await
            }
            (Self::BrokerFrozen(broker), Servers::Cluster { kafka, .. }) => kafka.brokers[*broker].thaw(),
            (Self::DiskFull, Servers::Files(space)) => {
                space.give(world.processes.iter_mut().map(|process| &mut process.server.dashi));
            }
            (Self::DatabaseCut | Self::PartitionsByHand, _) => {}
            (Self::Grows, _) => world.end_growth().await,
            (fault, _) => panic!("{fault:?} cannot happen here"),
        }
    }
}

/// Kinds of faults in random order, each as often as every other.
pub struct Deck {
    kinds: Vec<fn(usize, usize) -> Fault>,
    left: Vec<usize>,
    rounds: u32,
}

impl Deck {
    /// Of these kinds; each is made with a number of a process and of a broker. Only those are taken whose names contain
    /// the text.
    pub fn new(mut kinds: Vec<fn(usize, usize) -> Fault>, only: &str) -> Self {
        kinds.retain(|kind| kind(0, 0).name().contains(only));
        assert!(!kinds.is_empty(), "no fault here has {only:?} in its name");
        Self { kinds, left: Vec::new(), rounds: 0 }
    }

    /// The next fault.
    pub fn draw(&mut self, random: &mut Random, world: &World) -> Fault {
        if self.left.is_empty() {
            self.left = (0..self.kinds.len()).collect();
            self.rounds += 1;
        }
        let kind = self.left.swap_remove(random.below(self.left.len() as u64) as usize);
        let process = random.below(world.processes.len() as u64) as usize;
        self.kinds[kind](process, random.below(3) as usize)
    }

    /// Whether each kind has come up.
    pub fn is_through(&self) -> bool {
        self.rounds > 1 || (self.rounds == 1 && self.left.is_empty())
    }
}
