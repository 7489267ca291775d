//! Tasks that the roles rely on.

use std::sync::Arc;

use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::serve::alive::Alive;

/// Tasks that the roles rely on, so they stop after the roles.
pub struct Helpers {
    alive: Arc<Alive>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Helpers {
    /// No helpers yet. Each will be watched.
    pub fn new(alive: Arc<Alive>) -> Self {
        Self { alive, stop: CancellationToken::new(), tasks: Vec::new() }
    }

    /// Starts a helper; `name` is a noun with its article. It must end soon after the token that it gets is cancelled.
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        name: &'static str,
        helper: impl FnOnce(CancellationToken) -> F,
    ) {
        self.tasks.push(self.alive.spawn(name, helper(self.stop.clone())));
    }

    /// The token that stops the helpers.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Stops all helpers and waits for their ends.
    pub async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            log_panic("a helper", task.await);
        }
    }
}

/// Logs that a task ended with a panic, if it did.
pub fn log_panic(task: &str, ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(error = %error, "{task} ended with a panic");
    }
}
