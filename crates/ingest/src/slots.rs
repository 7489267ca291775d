//! The slots of requests in flight.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::IngestMetrics;
use crate::origin::{Origin, OriginLimits, OriginShare};

/// The slots of requests that are worked on.
#[derive(Debug)]
pub struct Slots {
    free: Arc<Semaphore>,
    limits: Arc<OriginLimits>,
}

/// A request's slot, in the gauge while it is held.
#[derive(Debug)]
pub struct Slot {
    gauge: Gauge,
    _permit: OwnedSemaphorePermit,
    _share: OriginShare,
}

impl Slots {
    /// `max` slots, of which one client has a half at most, and all clients that come from one address three quarters.
    pub fn new(max: usize) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        let limits = OriginLimits::new(max.div_ceil(2), (max - max / 4).max(1));
        Self { free: Arc::new(Semaphore::new(max)), limits: Arc::new(limits) }
    }

    /// A slot for a client, if one is left for it.
    pub fn take(&self, origin: Origin, metrics: &IngestMetrics) -> Option<Slot> {
        let share = self.limits.share(origin, 1)?;
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        metrics.in_flight.inc();
        Some(Slot { gauge: metrics.in_flight.clone(), _permit: permit, _share: share })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use prometheus_client::registry::Registry;

    use super::*;
    use crate::origin::Origins;

    #[test]
    fn a_client_has_half_of_the_places_and_those_of_one_address_three_quarters() {
        let (slots, origins) = (Slots::new(8), Origins::default());
        let metrics = IngestMetrics::new(&mut Registry::default());
        let (proxy, elsewhere) = (IpAddr::from(Ipv4Addr::LOCALHOST), Ipv4Addr::new(192, 0, 2, 1).into());
        // Names that share no bucket.
        let mut names: Vec<String> = Vec::new();
        for name in (0..).map(|name| format!("client {name}")) {
            let bucket = |name: &str| origins.of(name, proxy).client();
            if names.iter().all(|other| bucket(other) != bucket(&name)) {
                names.push(name);
            }
            if names.len() == 4 {
                break;
            }
        }
        let take = |name: usize, peer| slots.take(origins.of(&names[name], peer), &metrics);
        let mut held: Vec<_> = (0..8).map_while(|_| take(0, proxy)).collect();
        assert_eq!(held.len(), 4);
        held.extend((0..8).map_while(|_| take(1, proxy)));
        assert_eq!(held.len(), 6, "others behind the same address have the rest of its part");
        assert!(take(2, proxy).is_none());
        if origins.of("", proxy).peer() != origins.of("", elsewhere).peer() {
            held.extend((0..8).map_while(|_| take(3, elsewhere)));
            assert_eq!(held.len(), 8);
        }
        assert_eq!(metrics.in_flight.get(), held.len() as i64);
        drop(held);
        assert_eq!(metrics.in_flight.get(), 0);
        assert!(take(2, proxy).is_some());
        assert!(
            Slots::new(1).take(origins.of("a", proxy), &metrics).is_some(),
            "one slot is one for everybody"
        );
    }
}
