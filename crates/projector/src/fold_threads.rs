//! Threads that fold, as many as the machine has cores. A batch makes tens of thousands of small allocations, and the allocator
//! keeps some memory back for each thread that makes them; on the runtime's threads for blocking work, which take turns,
//! that is a multiple.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// The threads. They end when this is dropped and what they were given is done.
pub(crate) struct FoldThreads {
    /// `None` on a machine that has no thread left: then the runtime's are taken.
    jobs: Option<Sender<Job>>,
}

impl FoldThreads {
    /// Starts one for each core.
    pub fn start() -> Self {
        let (jobs, waiting) = channel::<Job>();
        let waiting = Arc::new(Mutex::new(waiting));
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let started = (0..count).filter(|_| {
            let waiting = Arc::clone(&waiting);
            std::thread::Builder::new().name("fold".to_owned()).spawn(move || work(&waiting)).is_ok()
        });
        Self { jobs: (started.count() > 0).then_some(jobs) }
    }

    /// Runs `act`, which must not panic, on one of the threads, in the order of the calls. `None` if the runtime shuts down.
    pub async fn run<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let Some(jobs) = &self.jobs else { return tokio::task::spawn_blocking(act).await.ok() };
        let (done, outcome) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Nobody waits any more where a task was dropped.
            let _ = done.send(act());
        });
        jobs.send(job).ok()?;
        outcome.await.ok()
    }
}

fn work(waiting: &Mutex<Receiver<Job>>) {
    loop {
        // Held while it waits: the others wait for the lock instead.
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[tokio::test]
    async fn many_jobs_run_on_no_more_threads_than_there_are_cores() {
        let threads = FoldThreads::start();
        let jobs = (0..100).map(|number| threads.run(move || (number, std::thread::current().id())));
        let done: Vec<_> = futures::future::join_all(jobs).await.into_iter().flatten().collect();
        assert!(done.iter().map(|(number, _)| *number).eq(0..100));
        let used: HashSet<_> = done.iter().map(|(_, thread)| *thread).collect();
        assert!(used.len() <= std::thread::available_parallelism().map_or(1, usize::from), "{used:?}");
    }
}
