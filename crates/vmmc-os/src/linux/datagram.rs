//! Sockets for datagrams to other hosts.

use std::os::fd::{AsFd, AsRawFd};

use rustix::net::sockopt;

/// Has the kernel hold up to `bytes` for a socket in either direction: root gets it, others as much as `net.core.rmem_max` and `wmem_max`
/// allow. What does not fit is lost, as on any network.
pub fn enlarge_socket_buffers(socket: impl AsFd, bytes: usize) {
    if sockopt::set_socket_recv_buffer_size_force(&socket, bytes).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(&socket, bytes);
    }
    let _ = sockopt::set_socket_send_buffer_size(&socket, bytes);
}

/// Has the kernel leave out what it would tell beside each datagram of a UDP socket: the address it was sent to, and its traffic class.
pub fn quiet_datagrams(socket: impl AsFd) {
    let off: libc::c_int = 0;
    for (level, option) in [
        (libc::IPPROTO_IP, libc::IP_PKTINFO),
        (libc::IPPROTO_IP, libc::IP_RECVTOS),
        (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    ] {
        // One that the socket's family does not have was not on either.
        // SAFETY: the descriptor is open, and `off` is a value of the length that is told.
        unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                level,
                option,
                (&raw const off).cast(),
                size_of_val(&off) as libc::socklen_t,
            )
        };
    }
}
