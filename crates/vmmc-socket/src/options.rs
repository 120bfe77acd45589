//! Options of a socket that the kernel has, and that what goes through the rings has to follow.

use crate::{cork, receive, transmit};

/// The program has set an option on `fd`.
pub fn option_is_set(fd: i32, level: i32, name: i32) {
    match (level, name) {
        (libc::IPPROTO_TCP, receive::TCP_INQ) => receive::left_is_told_or_not(fd),
        (libc::IPPROTO_TCP, libc::TCP_CORK | libc::TCP_NODELAY) => cork::option_is_set(fd, name),
        (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT)
        | (libc::SOL_SOCKET, libc::SO_SNDBUF | libc::SO_SNDBUFFORCE | transmit::SO_BUF_LOCK) => {
            transmit::send_buffer_is_set(fd);
        }
        _ => {}
    }
}

/// Whether an option changes what is sent or received, or how, in a way that the rings do not follow.
pub fn is_not_carried(level: i32, name: i32) -> bool {
    // The libc crate has one number for each: which of the two depends on the width of its time.
    const SO_TIMESTAMP_NEW: i32 = 63;
    const SO_TIMESTAMPNS_NEW: i32 = 64;
    const SO_TIMESTAMPING_NEW: i32 = 65;
    const TCP_ULP: i32 = 31;
    match level {
        libc::SOL_SOCKET => matches!(
            name,
            libc::SO_TIMESTAMP
                | libc::SO_TIMESTAMPNS
                | libc::SO_TIMESTAMPING
                | libc::SO_RCVLOWAT
                | libc::SO_ZEROCOPY
                | libc::SO_PEEK_OFF
                | libc::SO_MAX_PACING_RATE
                | SO_TIMESTAMP_NEW
                | SO_TIMESTAMPNS_NEW
                | SO_TIMESTAMPING_NEW
        ),
        libc::IPPROTO_TCP => matches!(name, TCP_ULP | libc::TCP_REPAIR),
        _ => false,
    }
}

/// Whether to ask for an option is to receive what has arrived on TCP.
pub fn asks_for_bytes(level: i32, name: i32) -> bool {
    const TCP_ZEROCOPY_RECEIVE: i32 = 35;
    (level, name) == (libc::IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE)
}
