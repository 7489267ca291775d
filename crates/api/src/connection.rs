//! What a stream needs of the connection that carries it.

use std::sync::Arc;

use tokio::sync::oneshot;

/// The sending side of a connection.
pub trait Connection: Send + Sync {
    /// Has `receipt` sent once the operating system has taken everything that the connection holds, the frame included
    /// that the answer's body yields now: it is called while it does. The receipt is dropped if the connection ends.
    fn when_taken(&self, receipt: oneshot::Sender<()>);

    /// Closes the connection now.
    fn end(&self);
}

/// A request's connection, among the extensions of every request that [`crate::Api::router`] gets.
#[derive(Clone)]
pub struct Client(pub Arc<dyn Connection>);
