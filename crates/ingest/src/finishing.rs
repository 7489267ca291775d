//! Work that is finished even if nobody waits for it any more.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio_util::task::TaskTracker;

/// Work that is finished in any case: as a part of its request while that waits for it, else on a task of its own. So a
/// request that waits to the end costs no change of tasks.
pub struct Finishing<F: Future<Output: Send + 'static> + Send + 'static> {
    /// Taken out while it is polled: work that panics is not tried again.
    work: Option<Pin<Box<F>>>,
    background: TaskTracker,
}

impl<F: Future<Output: Send + 'static> + Send + 'static> Finishing<F> {
    /// Work that goes on in `background` if it is dropped before its end.
    pub fn new(work: F, background: TaskTracker) -> Self {
        Self { work: Some(Box::pin(work)), background }
    }
}

impl<F: Future<Output: Send + 'static> + Send + 'static> Future for Finishing<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(mut work) = self.work.take() else { return Poll::Pending };
        let polled = work.as_mut().poll(context);
        if polled.is_pending() {
            self.work = Some(work);
        }
        polled
    }
}

impl<F: Future<Output: Send + 'static> + Send + 'static> Drop for Finishing<F> {
    fn drop(&mut self) {
        // Without a runtime, the process has ended.
        if let (Some(work), Ok(runtime)) = (self.work.take(), tokio::runtime::Handle::try_current()) {
            self.background.spawn_on(work, &runtime);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_begun_is_finished_when_nobody_waits_any_more() {
        let background = TaskTracker::new();
        let (go, waits) = tokio::sync::oneshot::channel::<()>();
        let (done, finished) = tokio::sync::oneshot::channel();
        let work = async move {
            waits.await.ok();
            done.send("finished").ok();
        };
        let mut finishing = Box::pin(Finishing::new(work, background.clone()));
        assert!(futures::poll!(&mut finishing).is_pending());
        drop(finishing);
        go.send(()).unwrap();
        assert_eq!(finished.await, Ok("finished"));
        background.close();
        background.wait().await;
        // Work that is waited for to its end leaves nothing behind.
        let finishing = Finishing::new(async { 7 }, background.clone());
        assert_eq!(finishing.await, 7);
        assert!(background.is_empty());
    }
}
