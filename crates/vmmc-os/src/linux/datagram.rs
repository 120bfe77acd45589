//! Sockets for datagrams to other hosts.

use std::os::fd::AsFd;

use rustix::net::sockopt;

/// Has the kernel hold up to `bytes` for a socket in either direction: root gets it, others as much as `net.core.rmem_max` and `wmem_max`
/// allow. What does not fit is lost, as on any network.
pub fn enlarge_socket_buffers(socket: impl AsFd, bytes: usize) {
    if sockopt::set_socket_recv_buffer_size_force(&socket, bytes).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(&socket, bytes);
    }
    let _ = sockopt::set_socket_send_buffer_size(&socket, bytes);
}
