//! The options of the proxy's sockets, and its limit on open files.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::table::Limits;

/// Connections that the system may hold until they are accepted. The system's own limit applies too.
const BACKLOG: i32 = 4096;
/// How long a connection is idle until the system checks that the other side still exists.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// The interval of these checks.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// How many of them without an answer end a connection.
const KEEPALIVE_RETRIES: u32 = 4;
/// Open files that are not for connections: listeners, of which every thread has one for each port,
/// logs, the agent's socket.
const FILES_RESERVED: u64 = 1024;
/// Open files of a connection: both sockets.
const FILES_PER_CONNECTION: u64 = 2;
/// A higher limit on open files would only promise memory that the machine does not have.
const FILES_MAX: u64 = 1 << 20;

/// Raises the limit on open files as far as possible, and returns how many connections fit in it.
pub(super) fn limits() -> Limits {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = hard.min(FILES_MAX).max(soft);
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft.min(FILES_MAX));
    limits_for(files)
}

fn limits_for(files: u64) -> Limits {
    // With very few files, half of them are reserved.
    let total = (files - FILES_RESERVED.min(files / 2)) / FILES_PER_CONNECTION;
    let total = usize::try_from(total).unwrap_or(usize::MAX);
    Limits { total, service: total - total / 4 }
}

/// Listens on a port of one address, or of all.
pub(super) fn listen(address: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    match address {
        Some(ip) => listen_on(SocketAddr::new(ip, port)),
        None => match listen_on((Ipv6Addr::UNSPECIFIED, port).into()) {
            // This machine has no IPv6.
            Err(error)
                if [Some(Errno::EAFNOSUPPORT as i32), Some(Errno::EADDRNOTAVAIL as i32)]
                    .contains(&error.raw_os_error()) =>
            {
                listen_on((Ipv4Addr::UNSPECIFIED, port).into())
            }
            result => result,
        },
    }
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Connections of a previous listener do not keep the port.
    socket.set_reuse_address(true)?;
    // Accepted connections inherit these two (tcp(7), Linux).
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive())?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Returns why a port cannot be listened on, for people.
pub(super) fn cannot_listen(address: Option<IpAddr>, port: u16, error: &io::Error) -> String {
    let place = address.map_or_else(String::new, |address| format!(" of {address}"));
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another program listens on port {port}{place}: stop it, or publish the service on another port; podmesh keeps trying"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "the agent's user may not listen on port {port}: run the agent as root, lower net.ipv4.ip_unprivileged_port_start with sysctl, or publish the service on a higher port; podmesh keeps trying"
        ),
        _ => format!("cannot listen on port {port}{place}: {error}; podmesh keeps trying"),
    }
}

/// Connects to an endpoint.
pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_nodelay(true)?;
    SockRef::from(&socket).set_tcp_keepalive(&keepalive())?;
    socket.connect(address).await
}

fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES)
}

/// Returns whether an error means that this machine lacks something, so that another endpoint would
/// not help.
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    let codes = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    error.raw_os_error().is_some_and(|code| codes.contains(&Errno::from_raw(code)))
}

/// Makes the end of a connection an error for the other side (RST), so that nobody takes an
/// incomplete answer for a complete one.
pub(super) fn break_off(stream: TcpStream) {
    // If this fails, the connection ends in the usual way.
    _ = stream.set_zero_linger();
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_sides_of_a_connection_are_checked_when_idle_and_send_at_once() {
        let listener = listen(Some("127.0.0.1".parse().unwrap()), 0).unwrap();
        let ours = connect(listener.local_addr().unwrap()).await.unwrap();
        let theirs = tokio::net::TcpListener::from_std(listener).unwrap().accept().await.unwrap().0;
        for stream in [&ours, &theirs] {
            let socket = SockRef::from(stream);
            assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        }
    }

    #[tokio::test]
    async fn a_listener_on_all_addresses_serves_both_families() {
        let listener = listen(None, 0).unwrap();
        let address = listener.local_addr().unwrap();
        connect((Ipv4Addr::LOCALHOST, address.port()).into()).await.unwrap();
        if address.is_ipv6() {
            connect((Ipv6Addr::LOCALHOST, address.port()).into()).await.unwrap();
        }
    }

    #[test]
    fn connections_fit_into_the_limit_on_open_files() {
        for (files, total, service) in
            [(1024, 256, 192), (20_000, 9_488, 7_116), (64, 16, 12), (2, 0, 0)]
        {
            assert_eq!(limits_for(files), Limits { total, service }, "{files}");
        }
    }
}
