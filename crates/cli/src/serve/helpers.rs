//! Tasks that the roles rely on.

use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

/// Tasks that the roles rely on, so they stop after the roles.
#[derive(Default)]
pub struct Helpers {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Helpers {
    /// Starts a helper. It must end soon after the token that it gets is cancelled.
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        helper: impl FnOnce(CancellationToken) -> F,
    ) {
        self.tasks.push(tokio::spawn(helper(self.stop.clone())));
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
