//! Options of the sockets to the database. The driver has no word for them and does not hand its sockets out, so they are
//! found among this process's file descriptors by the port of their other end.
//!
//! They are a second line. The first is that every wait has a bound of its own (see [`super::pool`]); these let the kernel
//! notice a peer that vanished while nobody waits for it, and end the connection.

use std::time::Duration;

/// Sets keepalive probes, and a bound on how long sent data may stay unacknowledged, on all connections of this process
/// to a port. Where the system does not allow it, the connections work without.
pub(super) async fn set_options(port: u16, unacknowledged_max: Duration) {
    #[cfg(target_os = "linux")]
    {
        // Reading the list of descriptors is file I/O.
        let set = tokio::task::spawn_blocking(move || linux::set_options(port, unacknowledged_max)).await;
        if let Ok(Err(error)) = set {
            tracing::debug!(error = %error, "the sockets to the database have the system's own keepalive");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (port, unacknowledged_max);
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::time::Duration;

    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    use socket2::{SockRef, TcpKeepalive};

    /// How long a connection may be silent before the kernel asks whether its peer is there; how long each question waits,
    /// and how many stay unanswered before the connection ends: a minute in all, as on the server's side.
    const IDLE: Duration = Duration::from_secs(30);
    const INTERVAL: Duration = Duration::from_secs(10);
    const PROBES: u32 = 3;

    /// Returns how many connections there are.
    pub fn set_options(port: u16, unacknowledged_max: Duration) -> io::Result<usize> {
        let keepalive = TcpKeepalive::new().with_time(IDLE).with_interval(INTERVAL).with_retries(PROBES);
        let process = pidfd_open(getpid(), PidfdFlags::empty())?;
        let mut set = 0;
        for entry in std::fs::read_dir("/proc/self/fd")? {
            let entry = entry?;
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let is_socket = |target: std::path::PathBuf| target.to_string_lossy().starts_with("socket:");
            if !std::fs::read_link(entry.path()).is_ok_and(is_socket) {
                continue;
            }
            // A copy of the descriptor: the number may be closed, and another file's, at any moment.
            let copy = match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
                Ok(copy) => copy,
                Err(rustix::io::Errno::BADF) => continue,
                Err(error) => return Err(error.into()),
            };
            let socket = SockRef::from(&copy);
            let peer = socket.peer_addr().ok().and_then(|address| address.as_socket());
            if peer.is_some_and(|peer| peer.port() == port) {
                socket.set_tcp_keepalive(&keepalive)?;
                socket.set_tcp_user_timeout(Some(unacknowledged_max))?;
                set += 1;
            }
        }
        Ok(set)
    }

    #[cfg(test)]
    mod tests {
        use std::net::{TcpListener, TcpStream};

        use super::*;

        #[test]
        fn connections_to_the_port_have_the_options_and_others_have_not() {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let other = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let to_port: Vec<_> =
                (0..2).map(|_| TcpStream::connect(listener.local_addr().unwrap()).unwrap()).collect();
            let elsewhere = TcpStream::connect(other.local_addr().unwrap()).unwrap();
            assert_eq!(set_options(port, Duration::from_secs(7)).unwrap(), 2);
            for stream in &to_port {
                let socket = SockRef::from(stream);
                assert!(socket.keepalive().unwrap());
                assert_eq!(socket.tcp_keepalive_time().unwrap(), IDLE);
                assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(7)));
            }
            assert!(!SockRef::from(&elsewhere).keepalive().unwrap());
        }
    }
}
