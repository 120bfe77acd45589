//! Packets with descriptors between processes: `AF_UNIX`, `SOCK_SEQPACKET`.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::Path;

use rustix::fs::Mode;
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    sockopt,
};

use super::descriptor::with_numbers_above;
use crate::{Descriptor, OsError};

/// Most descriptors beside a packet, as the kernel has it (`SCM_MAX_FD`). It would close itself what there is no room for, on this thread.
const DESCRIPTORS: usize = 253;

/// A packet that came.
#[derive(Debug)]
pub struct Received {
    /// Bytes; 0 means that the other side has closed.
    pub len: usize,
    /// What came beside them, close-on-exec.
    pub descriptors: Vec<Descriptor>,
    /// Bytes or descriptors were lost: the packet was too long, or this process has no descriptor left.
    pub truncated: bool,
}

/// Connects to the socket at `path`, without blocking; the result does not block either.
///
/// # Errors
/// `AGAIN` when the listener's queue is full, `CONNREFUSED` or `NOENT` when nobody listens, `NAMETOOLONG` for paths
/// over 107 bytes.
pub fn connect_packets(path: &Path) -> Result<Descriptor, OsError> {
    let socket = packet_socket()?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Listens at `path`, which must not exist; for this user's processes, or for all. The result does not block.
///
/// # Errors
/// As `bind`; `NAMETOOLONG` for paths over 107 bytes.
pub fn listen_packets(path: &Path, all_users: bool) -> Result<Descriptor, OsError> {
    let socket = packet_socket()?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let own = Mode::RUSR | Mode::WUSR;
    let all = own | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH;
    rustix::fs::chmod(path, if all_users { all } else { own })?;
    net::listen(&socket, 4096)?;
    Ok(socket)
}

/// Takes the next connection.
///
/// # Errors
/// `AGAIN` when there is none, `MFILE` or `NFILE` when descriptors are exhausted.
pub fn accept_packets(listener: impl AsFd) -> Result<Descriptor, OsError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    net::accept_with(listener, flags).map(Descriptor::from)
}

/// Two sockets that are connected with each other; neither blocks.
///
/// # Errors
/// When descriptors or memory are exhausted.
pub fn packet_pair() -> Result<(Descriptor, Descriptor), OsError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (one, other) = net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok((one.into(), other.into()))
}

/// As [`packet_pair`], for a process that may have used up the numbers which it may have: then they are taken at `floor` or beyond, if the limit may be
/// raised for that moment, as in [`Descriptor::duplicate_above`].
///
/// # Errors
/// As of `socketpair`.
pub fn packet_pair_above(floor: RawFd) -> Result<(Descriptor, Descriptor), OsError> {
    match packet_pair() {
        Err(OsError::MFILE) => with_numbers_above(floor, packet_pair),
        made => made,
    }
}

/// Whether a descriptor is such a socket. Waits for nobody.
pub fn is_packet_socket(fd: BorrowedFd<'_>) -> bool {
    sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(fd) == Ok(SocketType::SEQPACKET)
}

/// Sends one packet, whole or not at all, without blocking and without SIGPIPE.
///
/// # Errors
/// `AGAIN` when the socket is full, `PIPE` or `CONNRESET` when the other side has closed, `TOOMANYREFS` when too many
/// descriptors are on their way.
pub fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), OsError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(OsError::INVAL);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        match net::sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut ancillary, flags) {
            Ok(_) => return Ok(()),
            Err(OsError::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Receives one packet without blocking.
///
/// # Errors
/// `AGAIN` when there is none. `CONNRESET`, once, when the other side has closed and left packets unread: those that it sent before can still be
/// received.
pub fn receive(socket: impl AsFd, bytes: &mut [u8]) -> Result<Received, OsError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = loop {
        let mut slices = [IoSliceMut::new(bytes)];
        match net::recvmsg(socket.as_fd(), &mut slices, &mut ancillary, flags) {
            Err(OsError::INTR) => {}
            other => break other?,
        }
    };
    let mut descriptors = Vec::new();
    for control in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = control {
            descriptors.extend(rights.map(Descriptor::from));
        }
    }
    let truncated = message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok(Received { len: message.bytes, descriptors, truncated })
}

/// Bytes of all packets that wait to be received.
pub fn waiting_bytes(socket: impl AsFd) -> u64 {
    // Fails only for what is no socket.
    rustix::io::ioctl_fionread(socket).unwrap_or(0)
}

fn packet_socket() -> Result<Descriptor, OsError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map(Descriptor::from)
}
