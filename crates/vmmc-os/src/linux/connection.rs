//! What the kernel says about a TCP connection.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::net::{AddressFamily, SocketType, getpeername, getsockname, ipproto, sockopt};

use crate::OsError;

/// One end of a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionIdentity {
    /// The network namespace's cookie.
    pub network: u64,
    /// The socket's cookie: never used twice while the system runs.
    pub cookie: u64,
    /// This end; an IPv4 address mapped into IPv6 is written as IPv4.
    pub local: SocketAddr,
    /// The other end, likewise.
    pub peer: SocketAddr,
    /// Both sides have shaken hands and nobody has closed.
    pub established: bool,
}

/// Why a descriptor is not an end of a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum IdentityError {
    /// not a TCP socket: show the connection's own socket
    NotTcp,
    /// not connected: show the socket after connect or accept
    NotConnected,
    /// the kernel tells no socket or namespace cookie: Linux 5.14 or later is needed
    NoCookie,
}

impl ConnectionIdentity {
    /// Whether the addresses say that the other end is on this host and in this network: both are the same, or the other is a
    /// loopback address.
    pub fn stays_here(&self) -> bool {
        self.peer.ip().is_loopback() || self.peer.ip() == self.local.ip()
    }
}

/// The network namespace of a socket; of a local one that was accepted, that of the process that connected.
///
/// # Errors
/// On kernels before 5.14.
pub fn network_of(socket: impl AsFd) -> Result<u64, OsError> {
    netns_cookie(socket.as_fd()).ok_or(OsError::NOPROTOOPT)
}

/// Looks at a TCP socket.
///
/// # Errors
/// When it is not a TCP socket, or not connected.
pub fn connection_identity(socket: BorrowedFd<'_>) -> Result<ConnectionIdentity, IdentityError> {
    let domain = sockopt::socket_domain(socket).map_err(|_| IdentityError::NotTcp)?;
    let kind = sockopt::socket_type(socket).map_err(|_| IdentityError::NotTcp)?;
    let protocol = sockopt::socket_protocol(socket).map_err(|_| IdentityError::NotTcp)?;
    let internet = domain == AddressFamily::INET || domain == AddressFamily::INET6;
    if !internet || kind != SocketType::STREAM || protocol != Some(ipproto::TCP) {
        return Err(IdentityError::NotTcp);
    }
    let local = getsockname(socket).map_err(|_| IdentityError::NotConnected)?;
    let peer = getpeername(socket).map_err(|_| IdentityError::NotConnected)?;
    let local = SocketAddr::try_from(local).map_err(|_| IdentityError::NotConnected)?;
    let peer =
        peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(IdentityError::NotConnected)?;
    Ok(ConnectionIdentity {
        network: netns_cookie(socket).ok_or(IdentityError::NoCookie)?,
        cookie: sockopt::socket_cookie(socket).map_err(|_| IdentityError::NoCookie)?,
        local: normalised(local),
        peer: normalised(peer),
        established: tcp_state(socket) == Some(TCP_ESTABLISHED),
    })
}

const TCP_ESTABLISHED: u8 = 1;

fn normalised(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn netns_cookie(socket: BorrowedFd<'_>) -> Option<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = [0u8; 8];
    let len = socket_option(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut cookie)?;
    (len == 8).then(|| u64::from_ne_bytes(cookie))
}

fn tcp_state(socket: BorrowedFd<'_>) -> Option<u8> {
    // The state is the first byte of `struct tcp_info`; the kernel cuts the rest off.
    let mut state = [0u8; 1];
    socket_option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut state)?;
    Some(state[0])
}

fn socket_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &mut [u8],
) -> Option<usize> {
    let mut len = libc::socklen_t::try_from(value.len()).ok()?;
    // SAFETY: the kernel writes at most `len` bytes to `value`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    (result == 0).then_some(len as usize)
}

/// Writes what fits into a TCP connection without blocking, whatever mode its socket is in, and without SIGPIPE.
///
/// # Errors
/// `AGAIN` when nothing fits, `PIPE` or `CONNRESET` when the connection is gone.
pub fn send_stream(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, OsError> {
    use rustix::net::SendFlags;
    loop {
        match rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Err(OsError::INTR) => {}
            other => return other,
        }
    }
}

/// Ends the sending direction of a connection. One that is gone already needs no end.
pub fn end_stream(socket: BorrowedFd<'_>) {
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
}

/// Has the last close of a connection reset it.
pub fn reset_at_close(socket: BorrowedFd<'_>) {
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(std::time::Duration::ZERO));
}

/// Ends both directions of a connection, so that the other end notices although the descriptor stays open.
pub fn end_both(socket: BorrowedFd<'_>) {
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
}
