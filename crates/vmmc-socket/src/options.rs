//! Options of a socket that the kernel has, and that what goes through the rings has to follow.

use crate::{cork, kernel, receive, transmit};

// The libc crate has one number for each: which of the two depends on the width of its time.
const SO_TIMESTAMP_NEW: i32 = 63;
const SO_TIMESTAMPNS_NEW: i32 = 64;
const SO_TIMESTAMPING_NEW: i32 = 65;

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

/// Whether an option is set to a time limit that is less than nothing: no call waits then, and the kernel says of it what it says of no limit.
///
/// # Safety
/// `value` points to `len` bytes.
pub unsafe fn forbids_waiting(level: i32, name: i32, value: *const u8, len: usize) -> bool {
    const SO_RCVTIMEO_NEW: i32 = 66;
    const SO_SNDTIMEO_NEW: i32 = 67;
    let limits = [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO, SO_RCVTIMEO_NEW, SO_SNDTIMEO_NEW];
    level == libc::SOL_SOCKET
        && limits.contains(&name)
        && len >= size_of::<libc::timeval>()
        && kernel::may_be_memory(value)
        // SAFETY: as promised.
        && unsafe { value.cast::<libc::timeval>().read_unaligned() }.tv_sec < 0
}

/// Of those that are not carried, and that a socket may have from the one that it came by, or from another program that has it, how each is unless it is set.
/// `SO_ZEROCOPY` is none: it only lets calls have a flag, which lowers.
const HANDED_DOWN: [(i32, i32); 9] = [
    (libc::SO_RCVLOWAT, 1),
    (libc::SO_TIMESTAMP, 0),
    (libc::SO_TIMESTAMPNS, 0),
    (libc::SO_TIMESTAMPING, 0),
    (SO_TIMESTAMP_NEW, 0),
    (SO_TIMESTAMPNS_NEW, 0),
    (SO_TIMESTAMPING_NEW, 0),
    (libc::SO_PEEK_OFF, -1),
    (libc::SO_MAX_PACING_RATE, -1),
];

/// Whether an option that is not carried goes from a listening socket to the connections that it accepts.
pub fn is_handed_down(level: i32, name: i32) -> bool {
    level == libc::SOL_SOCKET && HANDED_DOWN.iter().any(|&(one, _)| one == name)
}

/// Whether some option of `fd` is set that is not carried.
pub fn has_not_carried(fd: i32) -> bool {
    HANDED_DOWN.iter().any(|&(name, default)| {
        let value = kernel::option::<i32>(fd, libc::SOL_SOCKET, name);
        value.is_some_and(|value| value != default)
    })
}

/// Whether to ask for an option is to receive what has arrived on TCP.
pub fn asks_for_bytes(level: i32, name: i32) -> bool {
    const TCP_ZEROCOPY_RECEIVE: i32 = 35;
    (level, name) == (libc::IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE)
}
