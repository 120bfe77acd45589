//! Sockets for datagrams to other hosts.

use std::os::fd::AsFd;

use rustix::net::sockopt;

/// Has the kernel hold up to `bytes` of what comes for a socket: root gets it, others as much as `net.core.rmem_max` allows. What does not fit is
/// lost, as on any network.
pub fn enlarge_receive_buffer(socket: impl AsFd, bytes: usize) {
    if sockopt::set_socket_recv_buffer_size_force(&socket, bytes).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(&socket, bytes);
    }
}

/// Has the kernel hold at most `bytes` that a socket sends before they leave this host: others than root get no more than `net.core.wmem_max`.
pub fn set_send_buffer(socket: impl AsFd, bytes: usize) {
    if sockopt::set_socket_send_buffer_size_force(&socket, bytes).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(&socket, bytes);
    }
}
