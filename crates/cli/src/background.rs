//! Threads that stand back behind those that answer requests. The system gives a thread the priority of the one that started
//! it, so whatever starts threads is started on a thread of less priority.

use std::future::Future;
use std::sync::mpsc::sync_channel;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Runs `start` on a thread that is `nice`: 0, as others, to 19, which runs when little else wants to. The threads that `start`
/// starts are, too. Where the system gives no such thread, all of them have the usual priority.
///
/// # Panics
/// If `start` does.
pub async fn started<T: Send + 'static>(nice: u8, start: impl Future<Output = T> + Send + 'static) -> T {
    if nice == 0 {
        return start.await;
    }
    let (give, taken) = sync_channel(1);
    let (done, outcome) = oneshot::channel();
    let runtime = Handle::current();
    let run = move || {
        stand_back(nice);
        if let Ok(start) = taken.recv() {
            // Nobody waits for it if the process ends.
            let _ = done.send(runtime.block_on(start));
        }
    };
    if let Err(error) = std::thread::Builder::new().name("background".to_owned()).spawn(run) {
        tracing::warn!(error = %error, "projecting has the priority of requests");
        return start.await;
    }
    let _ = give.send(start);
    outcome.await.expect("the thread sends what it was started for")
}

/// Lowers the priority of this thread, if it is not lower already. Elsewhere than on Linux it would be that of the whole process.
#[cfg(target_os = "linux")]
fn stand_back(nice: u8) {
    use rustix::process::{getpriority_process, setpriority_process};
    let nice = i32::from(nice);
    let lowered = match getpriority_process(None) {
        Ok(now) if now >= nice => Ok(()),
        _ => setpriority_process(None, nice),
    };
    if let Err(error) = lowered {
        tracing::warn!(error = %error, nice, "a thread keeps its priority");
    }
}

#[cfg(not(target_os = "linux"))]
fn stand_back(_nice: u8) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// The nice value of this thread.
    fn nice() -> i32 {
        rustix::process::getpriority_process(None).expect("this thread has one")
    }

    #[tokio::test]
    async fn threads_that_are_started_there_stand_back_and_others_do_not() {
        let before = nice();
        let start = async || std::thread::spawn(nice).join().expect("it ends");
        let (usual, back) = (started(0, start()).await, started(19, start()).await);
        assert_eq!((usual, back, nice()), (before, 19, before));
    }
}
