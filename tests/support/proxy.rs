//! A TCP proxy between Dashi and a server of its, which freezes, drops and delays connections.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The treatment of bytes on their way. A connection that was frozen stays so, as one does whose other end has gone.
#[derive(Debug, Clone, Copy)]
struct Weather {
    /// Connections with a number below this one are silent for good.
    frozen_below: u64,
    /// Connections with a number below this one are cut.
    cut_below: u64,
    /// New connections are taken, and nothing passes.
    takes_nothing: bool,
    delay: Duration,
}

/// See the module's text. Ends with this value.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    weather: Arc<watch::Sender<Weather>>,
    next: Arc<std::sync::atomic::AtomicU64>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port for connections to `target`, a `host:port`.
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let port = listener.local_addr().expect("it listens").port();
        let calm = Weather { frozen_below: 0, cut_below: 0, takes_nothing: false, delay: Duration::ZERO };
        let weather = Arc::new(watch::Sender::new(calm));
        let next = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let (target, of_task, numbers) = (target.to_owned(), Arc::clone(&weather), Arc::clone(&next));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = numbers.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let weather = of_task.subscribe();
                if weather.borrow().takes_nothing {
                    of_task
                        .send_modify(|weather| weather.frozen_below = weather.frozen_below.max(number + 1));
                }
                let Ok(server) = TcpStream::connect(&target).await else { continue };
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(pipe(from_client, to_server, number, weather.clone()));
                tokio::spawn(pipe(from_server, to_client, number, weather));
            }
        });
        Self { port, weather, next, task }
    }

    /// `host:port` that it listens on.
    pub fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Makes open connections silent for good; new ones work.
    pub fn freeze_open(&self) {
        let next = self.next.load(std::sync::atomic::Ordering::SeqCst);
        self.weather.send_modify(|weather| weather.frozen_below = next);
    }

    /// Makes open connections silent for good, and new ones, too.
    pub fn freeze(&self) {
        self.freeze_open();
        self.weather.send_modify(|weather| weather.takes_nothing = true);
    }

    /// Lets new connections work again.
    pub fn thaw(&self) {
        self.weather.send_modify(|weather| weather.takes_nothing = false);
    }

    /// Cuts open connections.
    pub fn cut(&self) {
        let next = self.next.load(std::sync::atomic::Ordering::SeqCst);
        self.weather.send_modify(|weather| weather.cut_below = next);
    }

    /// Holds up all that passes for so long, each way.
    pub fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes bytes on for as long as the weather lets it.
async fn pipe(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    number: u64,
    mut weather: watch::Receiver<Weather>,
) {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let read = tokio::select! {
            read = from.read(&mut bytes) => read,
            changed = weather.wait_for(|weather| number < weather.cut_below) => {
                // The sender's end is the proxy's.
                drop(changed);
                return;
            }
        };
        let Ok(read @ 1..) = read else { return };
        let delay = weather.borrow().delay;
        tokio::time::sleep(delay).await;
        if number < weather.borrow().frozen_below {
            // Bytes are acknowledged by the kernel, and go nowhere; the connection stays open until it is cut.
            let cut = weather.wait_for(|weather| number < weather.cut_below).await;
            drop(cut);
            return;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
