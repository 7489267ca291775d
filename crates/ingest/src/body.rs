//! Reading request bodies within bounds: each body has one, and all bodies together have one.

use std::sync::Arc;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::answer::Rejection;

/// One permit stands for this many bytes.
const BYTES_PER_PERMIT: usize = 1_024;

/// The memory that bodies may take.
#[derive(Debug, Clone)]
pub struct BodyBudget {
    /// Of one body.
    bytes_max: usize,
    /// Of all bodies that are being read or worked on.
    permits: Arc<Semaphore>,
}

/// A body, and the part of the budget that it holds until it is dropped.
#[derive(Debug)]
pub struct BudgetedBody {
    /// The bytes.
    pub bytes: Bytes,
    share: Share,
}

/// A part of the budget. It outlives the body while the record made of it waits to be appended: then that one takes
/// the memory.
#[derive(Debug)]
pub struct Share(#[expect(dead_code, reason = "held for its drop")] Vec<OwnedSemaphorePermit>);

impl BudgetedBody {
    /// Lets go of the bytes, but not of the budget.
    pub fn into_share(self) -> Share {
        self.share
    }
}

impl BodyBudget {
    /// A budget of `bytes_max` per body and `bytes_total_max` in all.
    pub fn new(bytes_max: usize, bytes_total_max: usize) -> Self {
        let permits = (bytes_total_max.max(bytes_max) / BYTES_PER_PERMIT).clamp(1, Semaphore::MAX_PERMITS);
        Self { bytes_max, permits: Arc::new(Semaphore::new(permits)) }
    }

    /// Reads a body to its end.
    ///
    /// # Errors
    /// [`Rejection::TooLarge`] past the bound of one body, [`Rejection::Unavailable`] past that of all, and
    /// [`Rejection::TooSlow`] if the client goes away in the middle.
    pub async fn read(&self, mut body: Body) -> Result<BudgetedBody, Rejection> {
        let mut permits = Vec::new();
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return Err(Rejection::TooSlow) };
            let Ok(chunk) = frame.into_data() else { continue };
            if first.len() + all.len() + chunk.len() > self.bytes_max {
                drop((first, all, permits));
                discard(body, self.bytes_max).await;
                return Err(Rejection::TooLarge);
            }
            let cost = (chunk.len() / BYTES_PER_PERMIT + 1) as u32;
            let permit = Arc::clone(&self.permits).try_acquire_many_owned(cost);
            permits.push(permit.map_err(|_| Rejection::Unavailable)?);
            // Nearly every body is one chunk, which then needs no copy.
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
        Ok(BudgetedBody { bytes, share: Share(permits) })
    }
}

/// Reads `bytes_max` more at most and keeps nothing. A client that still sends when its connection is closed may lose
/// the answer; this way only one whose body is far too large does.
async fn discard(mut body: Body, bytes_max: usize) {
    let mut left = bytes_max;
    while let Some(Ok(frame)) = body.frame().await {
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(less) => left = less,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(budget: &BodyBudget, chunks: Vec<&'static str>) -> Result<BudgetedBody, Rejection> {
        let chunks =
            chunks.into_iter().map(|chunk| Ok::<_, std::io::Error>(Bytes::from_static(chunk.as_bytes())));
        budget.read(Body::from_stream(futures::stream::iter(chunks))).await
    }

    #[tokio::test]
    async fn a_body_has_a_bound_and_all_bodies_have_one() {
        let budget = BodyBudget::new(4_000, 3 * BYTES_PER_PERMIT);
        let two = read(&budget, vec!["abc", "def"]).await.expect("within bounds");
        assert_eq!(&two.bytes[..], b"abcdef");
        let one = read(&budget, vec!["abc"]).await.expect("the last permit");
        assert!(matches!(read(&budget, vec!["x"]).await, Err(Rejection::Unavailable)));
        drop((one, two));
        assert_eq!(&read(&budget, vec!["x"]).await.expect("permits came back").bytes[..], b"x");
        let long: &'static str = "x".repeat(2_001).leak();
        assert!(matches!(read(&BodyBudget::new(4_000, 0), vec![long, long]).await, Err(Rejection::TooLarge)));
    }
}
