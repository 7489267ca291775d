//! The origins of requests, and the limits of one client or one address on things that all share.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The origin of a request: the client's address, which a proxy may have named, and that of the connection, each as a
/// bucket that it shares with others by chance.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    client: usize,
    peer: usize,
}

#[cfg(test)]
impl Origin {
    pub(crate) fn client(self) -> usize {
        self.client
    }

    pub(crate) fn peer(self) -> usize {
        self.peer
    }
}

/// Makes origins, differently in each process: nobody can choose with whom to share a bucket.
#[derive(Debug, Default)]
pub struct Origins(std::hash::RandomState);

/// So many buckets that two clients seldom share one; they take some kilobytes.
const BUCKETS: usize = 1_024;

impl Origins {
    /// The origin of a client at the other end of a connection, or behind that.
    pub fn of(&self, client: &str, peer: IpAddr) -> Origin {
        let bucket = |hash: u64| hash as usize % BUCKETS;
        Origin { client: bucket(self.0.hash_one(client)), peer: bucket(self.0.hash_one(peer)) }
    }
}

/// Limits what each client, and all clients that come from one address, hold of something that all share. So neither a
/// client behind a proxy nor one that pretends to be many can take all of it.
#[derive(Debug)]
pub struct OriginLimits {
    clients: Buckets,
    peers: Buckets,
}

/// A client's share: so many units, given back on drop.
#[derive(Debug)]
pub struct OriginShare {
    limits: Arc<OriginLimits>,
    origin: Origin,
    units: u32,
}

#[derive(Debug)]
struct Buckets {
    used: Box<[AtomicU32]>,
    each_max: u32,
}

impl Buckets {
    fn new(each_max: usize) -> Self {
        let used = std::iter::repeat_with(AtomicU32::default).take(BUCKETS).collect();
        Self { used, each_max: u32::try_from(each_max).unwrap_or(u32::MAX) }
    }

    /// Adds units to a bucket unless that exceeds its limit. Returns whether they were added.
    fn add(&self, bucket: usize, units: u32) -> bool {
        let before = self.used[bucket].fetch_add(units, Ordering::Relaxed);
        let fits = before.saturating_add(units) <= self.each_max;
        if !fits {
            self.remove(bucket, units);
        }
        fits
    }

    fn remove(&self, bucket: usize, units: u32) {
        self.used[bucket].fetch_sub(units, Ordering::Relaxed);
    }
}

impl OriginLimits {
    /// So many units for one client, and so many for all clients that come from one address.
    pub fn new(of_client: usize, of_peer: usize) -> Self {
        Self { clients: Buckets::new(of_client), peers: Buckets::new(of_peer) }
    }

    /// A share of so many units, unless the origin would then have more than its limit.
    pub fn share(self: &Arc<Self>, origin: Origin, units: u32) -> Option<OriginShare> {
        self.add(origin, units).then(|| OriginShare { limits: Arc::clone(self), origin, units })
    }

    fn add(&self, origin: Origin, units: u32) -> bool {
        if !self.clients.add(origin.client, units) {
            return false;
        }
        let fits = self.peers.add(origin.peer, units);
        if !fits {
            self.clients.remove(origin.client, units);
        }
        fits
    }
}

impl OriginShare {
    /// Adds so many units. Returns whether they were to be had.
    pub fn grow(&mut self, units: u32) -> bool {
        let grown = self.limits.add(self.origin, units);
        if grown {
            self.units += units;
        }
        grown
    }
}

impl Drop for OriginShare {
    fn drop(&mut self) {
        self.limits.clients.remove(self.origin.client, self.units);
        self.limits.peers.remove(self.origin.peer, self.units);
    }
}
