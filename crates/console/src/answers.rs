//! Questions to the process: how often and for how long it works on them.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Semaphore};

/// Longest time for an answer.
const ANSWER: Duration = Duration::from_secs(15);

/// Questions that the process works on at once, at most; further ones wait.
const AT_ONCE: usize = 2;

/// How long an answer that every page asks for again and again is given again: it reads log and store.
const STATUS_FRESH: Duration = Duration::from_millis(2_500);

/// Something that a page wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// The answer of `dashi status --json`.
    Status,
    /// The websites: `{"websites":[{"id":…,"name":…,"domain":…}]}`.
    Websites,
    /// A page of `dashi dead-letters list --json`.
    DeadLetters {
        /// The place of the last letter of the page before.
        after: Option<String>,
        /// Those that were discarded, instead of those that were not.
        discarded: bool,
    },
    /// The letter at a place, such as `3:4711`, as `dashi dead-letters show --json` prints it.
    DeadLetter(String),
    /// Has the letter at a place tried again or discarded: `{"partition":…,"offset":…}`, the place of the command in the log.
    /// It changes something.
    Decide {
        /// The letter, such as `3:4711`.
        place: String,
        /// What is to be done.
        decision: Decision,
    },
}

/// What is to be done with a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is tried again.
    Retry,
    /// Nobody has to look at it any more.
    Discard,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// There is no such thing.
    NotFound(String),
    /// The question is no question; the text names the part.
    Bad(String),
    /// Log or store do not answer; the same question may have an answer later.
    Unavailable(String),
}

/// The work on a question.
type Asking = Pin<Box<dyn Future<Output = Result<String, Failure>> + Send>>;

/// Answers a question with JSON.
pub type Ask = Arc<dyn Fn(Question) -> Asking + Send + Sync>;

/// Asks the process within limits.
pub(crate) struct Answers {
    ask: Ask,
    turns: Semaphore,
    /// Longest time for an answer.
    limit: Duration,
    /// The last answer about the state. Its lock is held while the next one is made, so that pages share it.
    status: Mutex<Option<(Instant, Arc<str>)>>,
}

impl Answers {
    pub(crate) fn new(ask: Ask) -> Self {
        Self { ask, turns: Semaphore::new(AT_ONCE), limit: ANSWER, status: Mutex::new(None) }
    }

    /// The answer, in bounded time.
    pub(crate) async fn answer(&self, question: Question) -> Result<Arc<str>, Failure> {
        let answered = tokio::time::timeout(self.limit, async {
            if question != Question::Status {
                return self.work(question).await;
            }
            let mut status = self.status.lock().await;
            if let Some((at, known)) = &*status
                && at.elapsed() < STATUS_FRESH
            {
                return Ok(Arc::clone(known));
            }
            let answer = self.work(question).await?;
            *status = Some((Instant::now(), Arc::clone(&answer)));
            Ok(answer)
        });
        answered.await.unwrap_or_else(|_| {
            Err(Failure::Unavailable(format!("log and store did not answer within {:?}", self.limit)))
        })
    }

    async fn work(&self, question: Question) -> Result<Arc<str>, Failure> {
        let closed = |_| Failure::Unavailable("the process stops".to_owned());
        let _turn = self.turns.acquire().await.map_err(closed)?;
        (self.ask)(question).await.map(Arc::from)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn counting(counter: &Arc<AtomicUsize>) -> Answers {
        let counter = Arc::clone(counter);
        Answers::new(Arc::new(move |question| {
            let number = counter.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                tokio::task::yield_now().await;
                match question {
                    Question::DeadLetter(place) => Err(Failure::NotFound(place)),
                    _ => Ok(number.to_string()),
                }
            })
        }))
    }

    #[tokio::test]
    async fn pages_that_ask_for_the_state_together_share_an_answer() {
        let asked = Arc::new(AtomicUsize::new(0));
        let answers = counting(&asked);
        let (first, second) =
            tokio::join!(answers.answer(Question::Status), answers.answer(Question::Status));
        assert_eq!((first.as_deref(), second.as_deref()), (Ok("0"), Ok("0")));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        for _ in 0..2 {
            let letters = Question::DeadLetters { after: None, discarded: false };
            answers.answer(letters).await.unwrap();
        }
        assert_eq!(asked.load(Ordering::Relaxed), 3, "other answers are made for each");
    }

    #[tokio::test]
    async fn a_failure_is_told_and_not_kept() {
        let answers = counting(&Arc::default());
        let letter = Question::DeadLetter("3:4711".to_owned());
        assert_eq!(answers.answer(letter).await, Err(Failure::NotFound("3:4711".to_owned())));
        let failing: Ask =
            Arc::new(|_| Box::pin(async { Err(Failure::Unavailable("the store is away".to_owned())) }));
        let answers = Answers::new(failing);
        for _ in 0..2 {
            assert!(answers.answer(Question::Status).await.is_err());
        }
        assert!(answers.status.lock().await.is_none());
    }

    #[tokio::test]
    async fn a_process_that_hangs_is_waited_for_so_long() {
        let hanging: Ask = Arc::new(|_| Box::pin(std::future::pending()));
        let answers = Answers { limit: Duration::from_millis(20), ..Answers::new(hanging) };
        let failure = answers.answer(Question::Status).await.unwrap_err();
        assert_eq!(failure, Failure::Unavailable("log and store did not answer within 20ms".to_owned()));
    }
}
