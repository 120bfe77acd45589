//! UDP, with segmentation offload both ways.

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Socket, Type};
use vmmc_os::{Inlet, enlarge_receive_buffer, set_send_buffer};

use super::datagrams::{disconnect, quiet_datagrams, receive_datagrams, send_datagrams};
use super::{Fabric, Sent};

/// Bytes of the largest super-packet, sent or received.
const SUPER_PACKET: usize = 65_535;
/// Most bytes of a super-packet's payload: IPv4's length field counts two headers too.
const MOST_SENT: usize = SUPER_PACKET - 20 - 8;
/// What the kernel may hold for us: some windows of a fast link.
const KERNEL_BUFFER: usize = 4 << 20;
/// What it may hold on the way out at first, and always.
const FIRST_ALLOWED: u64 = 64 << 10;
const LEAST_ALLOWED: u64 = 16 << 10;
/// With an inlet that is open the socket is looked at each time for so long after something came there, and else at every so manieth look only: it
/// costs a system call.
const NEAR: u32 = 16;
const SELDOM: u32 = 4;

/// A UDP socket at one address of this node.
pub struct UdpFabric {
    socket: UdpSocket,
    state: UdpSocketState,
    /// Whom the socket is connected to: the kernel knows the way then.
    peer: Option<SocketAddr>,
    /// Bytes that the kernel may hold on the way out.
    allowed: usize,
    /// One super-packet, which stays in the second-level cache.
    buffer: Vec<u8>,
    /// Where small datagrams come while somebody looks.
    inlet: Option<Inlet>,
    /// Looks since something came by the socket.
    looks: u32,
}

/// Why a fabric cannot be had at an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum BindError {
    /// {address} is no address of this host, or is taken ({cause}): correct node.toml, or end the other service
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        cause: String,
    },
}

impl UdpFabric {
    /// Listens at an address. Port 0 takes any that is free.
    ///
    /// # Errors
    /// When the address is not this host's, or is taken.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let open = |address: SocketAddr| -> io::Result<Self> {
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            enlarge_receive_buffer(&socket, KERNEL_BUFFER);
            socket.bind(&address.into())?;
            Self::over(socket.into())
        };
        // The kernel takes a port that it chose itself away from a socket that is no longer connected: so it is asked for by its number.
        let mut tries = 0..16;
        let opened = loop {
            let opened = open(address);
            let Some(fabric) = opened.as_ref().ok().filter(|_| address.port() == 0) else {
                break opened;
            };
            let chosen = fabric.address();
            drop(opened);
            match chosen.and_then(&open) {
                Err(cause)
                    if cause.kind() == io::ErrorKind::AddrInUse && tries.next().is_some() => {}
                opened => break opened,
            }
        };
        opened.map_err(|cause| BindError::Bind { address, cause: cause.to_string() })
    }

    /// A fabric over a UDP socket that is bound already, perhaps by another process.
    ///
    /// # Errors
    /// When the descriptor is no such socket.
    pub fn over(socket: OwnedFd) -> io::Result<Self> {
        let socket = UdpSocket::from(socket);
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // Nobody asks for it, and it costs a tenth of a microsecond each time.
        quiet_datagrams(&socket);
        let buffer = vec![0; SUPER_PACKET];
        let mut fabric =
            Self { socket, state, peer: None, allowed: 0, buffer, inlet: None, looks: 0 };
        fabric.allow(FIRST_ALLOWED);
        Ok(fabric)
    }

    /// Gives it a short way in for what comes to its socket.
    pub fn shorten(&mut self, inlet: Inlet) {
        self.inlet = Some(inlet);
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Never for a socket that is bound, unless the system is out of memory.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl Fabric for UdpFabric {
    fn batch(&self, segment: usize) -> usize {
        self.state.max_gso_segments().min(MOST_SENT / segment.max(1)).max(1)
    }

    fn send(&mut self, to: SocketAddr, bytes: &[u8], segment: usize) -> Sent {
        // Without an address the kernel need not look for the way.
        if self.peer == Some(to) {
            if bytes.len() <= segment {
                return sent(self.socket.send(bytes).map(drop));
            }
            let size = u16::try_from(segment).unwrap_or(u16::MAX);
            match send_datagrams(&self.socket, bytes, size) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {}
                result => return sent(result),
            }
            // Perhaps the device lost its offload: then it is done, and remembered, below.
        }
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: bytes,
            segment_size: (segment < bytes.len()).then_some(segment),
            src_ip: None,
        };
        sent(self.state.try_send(UdpSockRef::from(&self.socket), &transmit))
    }

    fn allow(&mut self, bytes: u64) -> bool {
        let bytes = bytes.clamp(LEAST_ALLOWED, KERNEL_BUFFER as u64) as usize;
        // It costs a system call, and need not be exact.
        if bytes.abs_diff(self.allowed) <= self.allowed / 8 {
            return false;
        }
        set_send_buffer(&self.socket, bytes);
        std::mem::replace(&mut self.allowed, bytes) < bytes
    }

    fn only(&mut self, peer: Option<SocketAddr>) {
        if peer == self.peer {
            return;
        }
        let done = match peer {
            Some(peer) => self.socket.connect(peer).is_ok(),
            None => disconnect(&self.socket).is_ok(),
        };
        // One that cannot be connected works all the same; one that stays connected goes on serving its peer.
        if done {
            self.peer = peer;
        }
    }

    fn attend(&mut self, attended: bool) -> bool {
        let Some(inlet) = &mut self.inlet else { return false };
        match attended {
            true => inlet.open(),
            false => inlet.close(),
        }
        inlet.has_some()
    }

    fn is_quiet(&self) -> bool {
        let quiet = |inlet: &Inlet| inlet.is_open() && !inlet.has_some();
        self.looks > NEAR && self.inlet.as_ref().is_some_and(quiet)
    }

    fn receive(&mut self, mut take: impl FnMut(&mut [u8])) -> usize {
        let Some(inlet) = &mut self.inlet else { return self.receive_by_socket(take) };
        let count = inlet.take(&mut take);
        self.looks = self.looks.wrapping_add(1);
        if inlet.is_open() && self.looks > NEAR && !self.looks.is_multiple_of(SELDOM) {
            return count;
        }
        count + self.receive_by_socket(take)
    }
}

impl UdpFabric {
    fn receive_by_socket(&mut self, mut take: impl FnMut(&mut [u8])) -> usize {
        let Ok(received) = receive_datagrams(&self.socket, &mut self.buffer) else { return 0 };
        self.looks = 0;
        let mut count = 0;
        for datagram in self.buffer[..received.len].chunks_mut(received.segment) {
            take(datagram);
            count += 1;
        }
        // An empty datagram is one too: there may be more behind it.
        count.max(1)
    }
}

fn sent(result: io::Result<()>) -> Sent {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Full,
        // No route, a size that the device does not carry, nobody there: a network that loses packets looks no different.
        _ => Sent::Gone,
    }
}

impl AsFd for UdpFabric {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for UdpFabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpFabric").field("socket", &self.socket).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::{Duration, Instant};

    use super::*;

    /// Receives until `wanted` datagrams have come.
    fn receive(fabric: &mut UdpFabric, wanted: usize) -> Vec<Vec<u8>> {
        let limit = Instant::now() + Duration::from_secs(10);
        let mut found = Vec::new();
        while found.len() < wanted {
            assert!(Instant::now() < limit, "{} of {wanted} datagrams came", found.len());
            fabric.receive(|datagram| found.push(datagram.to_vec()));
        }
        found
    }

    fn datagrams_keep_their_sizes(address: &str) {
        let mut from = UdpFabric::bind(address.parse().unwrap()).unwrap();
        let mut to = UdpFabric::bind(address.parse().unwrap()).unwrap();
        let target = to.address().unwrap();
        for (len, segment) in [(1, 1400), (1400, 1400), (14_001, 1400), (60_000, 1400)] {
            let bytes: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
            let most = from.batch(segment) * segment;
            let chunks: Vec<_> = bytes.chunks(most).collect();
            for chunk in &chunks {
                assert_eq!(from.send(target, chunk, segment), Sent::Gone);
            }
            let expected: Vec<_> = bytes.chunks(segment).map(<[u8]>::to_vec).collect();
            assert_eq!(receive(&mut to, expected.len()), expected);
        }
        assert_eq!(to.receive(|_| panic!("nothing was sent")), 0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs sockets")]
    fn datagrams_keep_their_sizes_over_ipv4() {
        datagrams_keep_their_sizes("127.0.0.1:0");
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs sockets")]
    fn datagrams_keep_their_sizes_over_ipv6() {
        if std::net::UdpSocket::bind("[::1]:0").is_err() {
            eprintln!("left out: this host has no IPv6");
            return;
        }
        datagrams_keep_their_sizes("[::1]:0");
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs sockets")]
    fn a_fabric_with_one_peer_takes_another_later() {
        let bind = || UdpFabric::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (mut here, mut first, mut second) = (bind(), bind(), bind());
        let addresses = [&here, &first, &second].map(|fabric| fabric.address().unwrap());
        here.only(Some(addresses[1]));
        assert_eq!(here.send(addresses[1], b"one", 1400), Sent::Gone);
        assert_eq!(receive(&mut first, 1), [b"one"]);
        second.send(addresses[0], b"lost", 1400);
        first.send(addresses[0], b"two", 1400);
        assert_eq!(receive(&mut here, 1), [b"two"]);
        here.only(None);
        assert_eq!(here.address().unwrap(), addresses[0], "where it was");
        second.send(addresses[0], b"three", 1400);
        assert_eq!(receive(&mut here, 1), [b"three"]);
        assert_eq!(here.send(addresses[2], b"four", 1400), Sent::Gone);
        assert_eq!(receive(&mut second, 1), [b"four"]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs sockets")]
    fn small_and_large_datagrams_come_whether_or_not_somebody_attends() {
        let test = "small_and_large_datagrams_come_whether_or_not_somebody_attends";
        let mut from = UdpFabric::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut to = UdpFabric::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let target = to.address().unwrap();
        let inlets = vmmc_os::Inlets::open().and_then(|mut inlets| {
            let ring = inlets.admit(target)?;
            Ok((inlets, ring))
        });
        let (_inlets, ring) = match inlets {
            Ok(found) => found,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {error}");
                return;
            }
        };
        to.shorten(Inlet::over(&ring).unwrap());
        for attended in [false, true, false, true, true] {
            assert!(!to.attend(attended), "nothing was sent");
            for len in [1, 240, 241, 1400, 60] {
                let bytes = vec![len as u8; len];
                assert_eq!(from.send(target, &bytes, 1400), Sent::Gone);
                assert_eq!(receive(&mut to, 1), [bytes]);
            }
        }
        assert_eq!(from.send(target, b"left", 1400), Sent::Gone);
        assert!(!to.is_quiet(), "it lies in the inlet");
        assert!(to.attend(false), "what lies in the inlet is told of");
        assert_eq!(receive(&mut to, 1), [b"left"]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs sockets")]
    fn an_address_that_is_not_ours_is_named() {
        let error = UdpFabric::bind("192.0.2.1:7411".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("192.0.2.1:7411"), "{error}");
    }
}
