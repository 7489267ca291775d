use std::fmt::Display;
use std::time::{Duration, Instant};

/// The result of one look at an awaited condition: it holds, it does not, or it could not be seen.
pub trait Observation {
    /// `Ok` if the condition holds, else what was seen instead.
    fn held(self) -> Result<(), String>;
}

impl Observation for bool {
    fn held(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("it does not hold".to_owned()) }
    }
}

impl<E: Display> Observation for Result<bool, E> {
    fn held(self) -> Result<(), String> {
        match self {
            Ok(holds) => holds.held(),
            // The alternate form gives the causes of an `anyhow::Error`.
            Err(error) => Err(format!("{error:#}")),
        }
    }
}

impl<E: Display> Observation for Result<(), E> {
    fn held(self) -> Result<(), String> {
        self.map(|()| true).held()
    }
}

/// Waits until `condition` holds, looking every 20 ms. An error counts as "not yet".
///
/// # Panics
/// If it does not hold within `deadline`; the message has `what` and the last observation.
pub async fn eventually<C, O>(deadline: Duration, what: &str, mut condition: C)
where
    C: AsyncFnMut() -> O,
    O: Observation,
{
    let start = Instant::now();
    let mut seen = "one look took longer than the deadline".to_owned();
    loop {
        let left = deadline.saturating_sub(start.elapsed());
        // The limit is for a look that hangs; one that is ready at once counts even after the deadline.
        if let Ok(observation) = tokio::time::timeout(left, condition()).await {
            match observation.held() {
                Ok(()) => return,
                Err(instead) => seen = instead,
            }
        }
        if start.elapsed() >= deadline {
            panic!("waited {deadline:?} in vain until {what}; last seen: {seen}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
