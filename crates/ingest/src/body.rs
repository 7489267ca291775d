//! Reading request bodies within bounds: one for each body, one for all large bodies of a client, one for all bodies.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::answer::Rejection;
use crate::origin::{Origin, OriginLimits, OriginShare};

/// One permit stands for this many bytes.
const BYTES_PER_PERMIT: usize = 1_024;

/// Up to this size a body is an ordinary event's. A quarter of the budget is kept for such bodies, and they are charged
/// to no client, so that large bodies cannot shut them out.
const ORDINARY_BYTES: usize = 64 * 1_024;

/// The memory that bodies may take.
#[derive(Debug, Clone)]
pub struct BodyBudget {
    /// Of one body.
    bytes_max: usize,
    /// Of all bodies that are being read or worked on.
    permits: Arc<Semaphore>,
    /// Permits that large bodies must leave free.
    reserve: usize,
    /// How much the large bodies of one client, and those from one address, may hold.
    limits: Arc<OriginLimits>,
}

/// A body, and the part of the budget that it holds until it is dropped.
#[derive(Debug)]
pub struct BudgetedBody {
    /// The bytes.
    pub bytes: Bytes,
    share: Share,
}

/// A part of the budget. It outlives the body while the record made of it waits to be appended: by then the record
/// takes the memory.
#[derive(Debug, Default)]
pub struct Share {
    permit: Option<OwnedSemaphorePermit>,
    of_origin: Option<OriginShare>,
}

impl BudgetedBody {
    /// Drops the bytes and keeps the part of the budget.
    pub fn into_share(self) -> Share {
        self.share
    }
}

impl BodyBudget {
    /// A budget of `bytes_max` per body and `bytes_total_max` in all. The large bodies of one client have a quarter of
    /// it at most, and those from one address a half; the budget is at least so large that a quarter holds one body.
    pub fn new(bytes_max: usize, bytes_total_max: usize) -> Self {
        let least = bytes_max.max(ORDINARY_BYTES).next_multiple_of(BYTES_PER_PERMIT).saturating_mul(4);
        let permits = (bytes_total_max.max(least) / BYTES_PER_PERMIT).clamp(4, Semaphore::MAX_PERMITS);
        Self {
            bytes_max,
            permits: Arc::new(Semaphore::new(permits)),
            reserve: permits / 4,
            limits: Arc::new(OriginLimits::new(permits / 4, permits / 2)),
        }
    }

    /// Reads a client's body to its end.
    ///
    /// # Errors
    /// [`Rejection::TooLarge`] past the bound of one body, [`Rejection::Unavailable`] past that of the client or of
    /// all, [`Rejection::Malformed`] if its bytes are not valid HTTP, [`Rejection::ClientGone`] if the client goes away
    /// in the middle.
    pub async fn read(&self, mut body: Body, origin: Origin) -> Result<BudgetedBody, Rejection> {
        let too_large = |bytes: u64| bytes > self.bytes_max as u64;
        if too_large(body.size_hint().lower()) {
            discard(body, self.bytes_max.saturating_mul(2)).await;
            return Err(Rejection::TooLarge);
        }
        let mut share = Share::default();
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(chunk) = frame.map_err(|error| failure(&error))?.into_data() else { continue };
            let bytes = first.len() + all.len() + chunk.len();
            if too_large(bytes as u64) {
                drop((first, all, share));
                discard(body, self.bytes_max.saturating_mul(2) - bytes.min(self.bytes_max)).await;
                return Err(Rejection::TooLarge);
            }
            self.charge(&mut share, bytes, origin)?;
            // Nearly every body comes in one piece, which then needs no copy.
            if first.is_empty() && all.is_empty() {
                first = chunk;
            } else {
                if all.is_empty() {
                    all.extend_from_slice(&std::mem::take(&mut first));
                }
                all.extend_from_slice(&chunk);
            }
        }
        let bytes = if all.is_empty() { first } else { all.freeze() };
        Ok(BudgetedBody { bytes, share })
    }

    /// Enlarges a share for a body of which so many bytes have arrived.
    fn charge(&self, share: &mut Share, bytes: usize, origin: Origin) -> Result<(), Rejection> {
        let held = share.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = bytes.div_ceil(BYTES_PER_PERMIT).saturating_sub(held);
        if more == 0 {
            return Ok(());
        }
        if bytes > ORDINARY_BYTES {
            if self.permits.available_permits() < self.reserve + more {
                return Err(Rejection::Unavailable);
            }
            let charged = match &mut share.of_origin {
                Some(of_origin) => of_origin.grow(more as u32),
                none => {
                    *none = self.limits.share(origin, (held + more) as u32);
                    none.is_some()
                }
            };
            if !charged {
                return Err(Rejection::Unavailable);
            }
        }
        let permits = Arc::clone(&self.permits).try_acquire_many_owned(more as u32);
        let permits = permits.map_err(|_| Rejection::Unavailable)?;
        match &mut share.permit {
            Some(permit) => permit.merge(permits),
            none => *none = Some(permits),
        }
        Ok(())
    }
}

/// The reason why a body did not come to its end: bytes that are no HTTP, or a client that is gone.
fn failure(error: &axum::Error) -> Rejection {
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return match error.kind() {
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => Rejection::Malformed,
                _ => Rejection::ClientGone,
            };
        }
        source = error.source();
    }
    Rejection::ClientGone
}

/// How long a client whose body is refused may pause before it is answered: it may be waiting for the answer.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Reads so many more bytes at most and keeps nothing. A client that still sends when its connection is closed may lose
/// the answer; so only a client whose body is more than twice as large as it may be loses it.
async fn discard(mut body: Body, bytes: usize) {
    let mut left = bytes;
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(PAUSE_MAX, body.frame()).await {
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(less) => left = less,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::origin::Origins;

    const MIB: usize = 1 << 20;

    async fn read(
        budget: &BodyBudget,
        origin: Origin,
        chunk: usize,
        chunks: usize,
    ) -> Result<BudgetedBody, Rejection> {
        let chunk = Bytes::from(vec![b'x'; chunk]);
        let chunks = std::iter::repeat_n(chunk, chunks).map(Ok::<_, io::Error>);
        budget.read(Body::from_stream(futures::stream::iter(chunks)), origin).await
    }

    /// Clients behind one address, or at an address each, none of which share a bucket.
    fn origins(count: u8, behind_one: bool) -> Vec<Origin> {
        let of = Origins::default();
        let mut found: Vec<Origin> = Vec::new();
        for number in 0..u8::MAX {
            let peer = Ipv4Addr::new(192, 0, 2, if behind_one { 1 } else { number });
            let origin = of.of(&format!("client {number}"), IpAddr::V4(peer));
            let meets = |other: &Origin| {
                other.client() == origin.client() || (!behind_one && other.peer() == origin.peer())
            };
            if !found.iter().any(meets) {
                found.push(origin);
            }
            if found.len() == usize::from(count) {
                break;
            }
        }
        found
    }

    #[tokio::test]
    async fn a_body_has_a_bound() {
        let (budget, origin) = (BodyBudget::new(4_000, 0), origins(1, false)[0]);
        assert_eq!(read(&budget, origin, 2_000, 2).await.expect("just so").bytes.len(), 4_000);
        assert!(matches!(read(&budget, origin, 2_001, 2).await, Err(Rejection::TooLarge)));
        assert!(matches!(budget.read(Body::from(vec![0; 4_001]), origin).await, Err(Rejection::TooLarge)));
        let budget = BodyBudget::new(MIB + 1, 0);
        assert!(read(&budget, origin, 1, MIB + 1).await.is_ok(), "each client can send the largest body");
    }

    #[tokio::test]
    async fn a_body_costs_its_bytes_however_many_pieces_it_comes_in() {
        let (budget, origin) = (BodyBudget::new(MIB, 4 * MIB), origins(1, false)[0]);
        let free = budget.permits.available_permits();
        for (chunk, chunks) in [(1, 5_000), (5_000, 1), (1_000, 5)] {
            let body = read(&budget, origin, chunk, chunks).await.expect("within bounds");
            assert_eq!(free - budget.permits.available_permits(), 5, "{chunks} chunks of {chunk}");
            assert_eq!(body.bytes.len(), chunk * chunks);
        }
        assert_eq!(budget.permits.available_permits(), free, "all came back");
    }

    #[tokio::test]
    async fn large_bodies_of_one_leave_room_for_others_and_all_of_them_for_ordinary_ones() {
        let budget = BodyBudget::new(MIB, 16 * MIB);
        let (mut held, mut counts) = (Vec::new(), Vec::new());
        for origin in [origins(3, true), origins(3, false)].concat() {
            let before = held.len();
            while let Ok(body) = read(&budget, origin, MIB / 4, 4).await {
                held.push(body);
            }
            counts.push(held.len() - before);
        }
        assert_eq!(
            counts,
            [4, 4, 0, 4, 0, 0],
            "a quarter for one, a half for one address, three quarters for all"
        );
        for origin in origins(4, true) {
            held.push(read(&budget, origin, 60_000, 1).await.expect("for ordinary bodies"));
        }
        drop(held);
        assert!(read(&budget, origins(1, true)[0], MIB, 1).await.is_ok());
        assert_eq!(budget.permits.available_permits(), 16 * MIB / BYTES_PER_PERMIT);
    }
}
