//! UDP sockets as the kernel has them on Linux, where nothing else offers it: super-packets received by one call.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Has the kernel leave out what it would tell beside each datagram of a UDP socket: when it came, the address it was sent to, and its traffic class.
pub(super) fn quiet_datagrams(socket: impl AsFd) {
    let off: libc::c_int = 0;
    for (level, option) in [
        (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS),
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

/// Datagrams that came together from one sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Datagrams {
    /// Bytes of all, one behind the other.
    pub(super) len: usize,
    /// Bytes of each; only the last may be shorter.
    pub(super) segment: usize,
}

/// Receives what the kernel has put together (`UDP_GRO`), without blocking; an empty datagram is one too.
///
/// # Errors
/// Among others when there is nothing.
pub(super) fn receive_datagrams(socket: impl AsFd, into: &mut [u8]) -> io::Result<Datagrams> {
    #[repr(C, align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut slice = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: a header of zeros is one without name, buffers and control data.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len();
    // SAFETY: the descriptor is open; the header names one buffer and the room for control data, which outlive the call.
    let received =
        unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) };
    let Ok(len) = usize::try_from(received) else {
        return Err(io::Error::last_os_error());
    };
    let mut segment = len;
    // SAFETY: the kernel filled the control data in, and told its length; these walk within it.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&raw const header);
        while !message.is_null() {
            if (*message).cmsg_level == libc::SOL_UDP && (*message).cmsg_type == libc::UDP_GRO {
                let told = libc::CMSG_DATA(message).cast::<libc::c_int>().read_unaligned();
                segment = usize::try_from(told).unwrap_or(len);
            }
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }
    Ok(Datagrams { len, segment: segment.max(1) })
}

/// Sends datagrams of `segment` bytes each, of which the last may be shorter, to a UDP socket's peer, without blocking (`UDP_SEGMENT`).
///
/// # Errors
/// Among others when there is no room, or the way there has no segmentation offload.
pub(super) fn send_datagrams(socket: impl AsFd, bytes: &[u8], segment: u16) -> io::Result<()> {
    #[repr(C, align(8))]
    struct Control([u8; 32]);
    let mut control = Control([0; 32]);
    let mut slice =
        libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: a header of zeros is one without name, buffers and control data.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: the room for control data is aligned, and longer than one message with two bytes takes, which is what is written.
    unsafe {
        header.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as u32) as usize;
        let message = libc::CMSG_FIRSTHDR(&raw const header);
        (*message).cmsg_level = libc::SOL_UDP;
        (*message).cmsg_type = libc::UDP_SEGMENT;
        (*message).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as usize;
        libc::CMSG_DATA(message).cast::<u16>().write_unaligned(segment);
    }
    // SAFETY: the descriptor is open; the header names bytes that are only read, and control data, which outlive the call.
    let sent =
        unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, libc::MSG_DONTWAIT) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes a UDP socket's peer away; it stays bound where it was bound.
///
/// # Errors
/// When the kernel has no memory.
pub(super) fn disconnect(socket: impl AsFd) -> io::Result<()> {
    // SAFETY: an address of zeros is valid, and is one of no family.
    let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open; the address is valid, and as long as is said.
    let done = unsafe {
        libc::connect(
            socket.as_fd().as_raw_fd(),
            &raw const nobody,
            size_of_val(&nobody) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
