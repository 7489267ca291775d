//! Ending a long command by Ctrl-C.

use tokio_util::sync::CancellationToken;

/// A token that is cancelled by an interrupt (Ctrl-C). From now on an interrupt does not end the process by itself.
pub fn token() -> CancellationToken {
    let stop = CancellationToken::new();
    tokio::spawn({
        let stop = stop.clone();
        async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                stop.cancel();
            }
        }
    });
    stop
}
