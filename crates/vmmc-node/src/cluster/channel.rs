//! A connection between two node services: TCP, encrypted and authenticated with the cluster key by the Noise protocol (`NNpsk0`: fresh
//! keys for each connection, and nobody without the cluster key gets past the first message).
//!
//! Never waits. A frame is its length in two bytes, big-endian, and that many bytes of a Noise message.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use serde::Serialize;
use snow::{Builder, HandshakeState, TransportState};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::config::ClusterKey;

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"vmmc cluster 1";
/// Largest Noise message, bytes.
const MAX_FRAME: usize = 65_535;
/// Bytes of a message before it is encrypted.
const MAX_MESSAGE: usize = 48 << 10;
/// More than this unsent, and the peer is taken for stopped.
const MAX_UNSENT: usize = 4 << 20;

/// A connection to another node service.
pub(super) struct Channel {
    stream: TcpStream,
    noise: Noise,
    /// Received, not yet a whole frame.
    inbox: Vec<u8>,
    /// Frames that the kernel had no room for yet.
    outbox: Vec<u8>,
    /// Messages that wait for the end of the handshake.
    waiting: Vec<Vec<u8>>,
}

enum Noise {
    Handshake(Box<HandshakeState>),
    Transport(Box<TransportState>),
    /// Between the two, and for ever if the change failed.
    Spent,
}

/// Why a connection is at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// Never came up, was closed or cut, or the peer reads nothing.
    Connection,
    /// The peer has another cluster key, or is no node at all.
    Key,
}

impl Channel {
    /// Begins to connect; becomes writable when it has, or has failed.
    pub(super) fn connect(address: SocketAddr, key: &ClusterKey) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        match socket.connect(&address.into()) {
            Err(error)
                if error.raw_os_error() != Some(vmmc_os::OsError::INPROGRESS.raw_os_error()) =>
            {
                return Err(error);
            }
            _ => {}
        }
        let mut channel = Self::new(socket.into(), key, true)?;
        channel.shake_hands()?;
        Ok(channel)
    }

    /// Takes a connection that was accepted.
    pub(super) fn accept(stream: TcpStream, key: &ClusterKey) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Self::new(stream, key, false)
    }

    fn new(stream: TcpStream, key: &ClusterKey, calls: bool) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let socket = socket2::SockRef::from(&stream);
        // A node that vanished is found out; a cable that is soon plugged in again does not matter.
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(5))
            .with_interval(Duration::from_secs(2))
            .with_retries(5);
        socket.set_tcp_keepalive(&keepalive)?;
        let builder = || {
            let builder = Builder::new(PATTERN.parse()?);
            let builder = builder.prologue(PROLOGUE)?.psk(0, key.bytes())?;
            if calls { builder.build_initiator() } else { builder.build_responder() }
        };
        let noise = Noise::Handshake(Box::new(builder().map_err(io::Error::other)?));
        Ok(Self { stream, noise, inbox: Vec::new(), outbox: Vec::new(), waiting: Vec::new() })
    }

    /// Whether the peer has proved that it has the cluster key.
    pub(super) fn is_trusted(&self) -> bool {
        matches!(self.noise, Noise::Transport(_))
    }

    /// Whether something waits for room in the kernel.
    pub(super) fn wants_room(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Sends a message, now or when it can go.
    pub(super) fn send(&mut self, message: &impl Serialize) -> Result<(), Lost> {
        let bytes = postcard::to_allocvec(message).map_err(|_| Lost::Connection)?;
        if bytes.len() > MAX_MESSAGE {
            return Err(Lost::Connection);
        }
        self.waiting.push(bytes);
        self.flush()
    }

    /// Writes what the kernel has room for.
    pub(super) fn flush(&mut self) -> Result<(), Lost> {
        if let Noise::Transport(noise) = &mut self.noise {
            for message in self.waiting.drain(..) {
                let mut frame = vec![0; 2 + message.len() + 16];
                let len = noise.write_message(&message, &mut frame[2..]).map_err(|_| Lost::Key)?;
                seal_frame(&mut frame, len);
                self.outbox.extend_from_slice(&frame);
            }
        }
        let waiting: usize = self.waiting.iter().map(Vec::len).sum();
        if self.outbox.len() + waiting > MAX_UNSENT {
            return Err(Lost::Connection);
        }
        while !self.outbox.is_empty() {
            match self.stream.write(&self.outbox) {
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    // Not connected yet, too.
                    ErrorKind::WouldBlock | ErrorKind::NotConnected => return Ok(()),
                    _ => return Err(Lost::Connection),
                },
            }
        }
        Ok(())
    }

    /// Reads what has come; the messages in it, decrypted.
    pub(super) fn receive(&mut self) -> Result<Vec<Vec<u8>>, Lost> {
        let mut messages = Vec::new();
        let mut chunk = [0; 16 << 10];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return self.at_the_end(messages),
                Ok(count) => self.inbox.extend_from_slice(&chunk[..count]),
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => continue,
                    ErrorKind::WouldBlock | ErrorKind::NotConnected => break,
                    _ => return self.at_the_end(messages),
                },
            }
            self.take_frames(&mut messages)?;
        }
        self.flush()?;
        Ok(messages)
    }

    /// What came before the end still counts; the end is told next time.
    fn at_the_end(&self, messages: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, Lost> {
        match (messages.is_empty(), self.is_trusted()) {
            (false, _) => Ok(messages),
            (true, true) => Err(Lost::Connection),
            // Closed in the middle of the handshake: that is how a node answers to a wrong key.
            (true, false) if self.outbox.is_empty() => Err(Lost::Key),
            (true, false) => Err(Lost::Connection),
        }
    }

    fn take_frames(&mut self, messages: &mut Vec<Vec<u8>>) -> Result<(), Lost> {
        let mut done = 0;
        while let Some((len, rest)) = self.inbox[done..].split_first_chunk::<2>() {
            let len = usize::from(u16::from_be_bytes(*len));
            let Some(frame) = rest.get(..len) else { break };
            let mut message = vec![0; len];
            match &mut self.noise {
                Noise::Handshake(noise) => {
                    noise.read_message(frame, &mut message).map_err(|_| Lost::Key)?;
                    self.shake_hands().map_err(|_| Lost::Key)?;
                }
                Noise::Transport(noise) => {
                    let count = noise.read_message(frame, &mut message).map_err(|_| Lost::Key)?;
                    message.truncate(count);
                    messages.push(message);
                }
                Noise::Spent => return Err(Lost::Key),
            }
            done += 2 + len;
        }
        self.inbox.drain(..done);
        Ok(())
    }

    /// Does the next step of the handshake, if it is this side's turn.
    fn shake_hands(&mut self) -> io::Result<()> {
        let Noise::Handshake(noise) = &mut self.noise else { return Ok(()) };
        if noise.is_my_turn() && !noise.is_handshake_finished() {
            let mut frame = vec![0; 2 + 256];
            let len = noise.write_message(&[], &mut frame[2..]).map_err(io::Error::other)?;
            seal_frame(&mut frame, len);
            self.outbox.extend_from_slice(&frame);
        }
        if noise.is_handshake_finished()
            && let Noise::Handshake(noise) = std::mem::replace(&mut self.noise, Noise::Spent)
        {
            let transport = noise.into_transport_mode().map_err(io::Error::other)?;
            self.noise = Noise::Transport(Box::new(transport));
        }
        Ok(())
    }
}

/// Writes the length of a frame's message before it.
fn seal_frame(frame: &mut Vec<u8>, len: usize) {
    debug_assert!(len <= MAX_FRAME);
    frame[..2].copy_from_slice(&(len as u16).to_be_bytes());
    frame.truncate(2 + len);
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Two ends of a connection over loopback.
    fn pair(caller: &ClusterKey, callee: &ClusterKey) -> (Channel, Channel) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let first = Channel::connect(listener.local_addr().unwrap(), caller).unwrap();
        let second = Channel::accept(listener.accept().unwrap().0, callee).unwrap();
        (first, second)
    }

    /// Lets both ends work until `found` has what it looks for in what the second received.
    fn run(first: &mut Channel, second: &mut Channel, wanted: usize) -> Result<Vec<Vec<u8>>, Lost> {
        let start = Instant::now();
        let mut received = Vec::new();
        while received.len() < wanted {
            assert!(start.elapsed() < LIMIT, "nothing comes");
            first.receive()?;
            received.extend(second.receive()?);
        }
        Ok(received)
    }

    #[test]
    fn messages_come_whole_and_in_order() {
        let key = ClusterKey::random();
        let (mut first, mut second) = pair(&key, &key);
        let sent: Vec<Vec<u8>> = (0..200).map(|len| vec![len as u8; len * 200]).collect();
        sent.iter().for_each(|message| first.send(message).unwrap());
        let received = run(&mut first, &mut second, sent.len()).unwrap();
        let received: Vec<Vec<u8>> =
            received.iter().map(|bytes| postcard::from_bytes(bytes).unwrap()).collect();
        assert!(received == sent);
        assert!(first.is_trusted() && second.is_trusted());
        drop(first);
        let start = Instant::now();
        let end = loop {
            assert!(start.elapsed() < LIMIT);
            if let Err(lost) = second.receive() {
                break lost;
            }
        };
        assert_eq!(end, Lost::Connection);
    }

    #[test]
    fn another_key_is_told_by_both_sides() {
        let (mut first, mut second) = pair(&ClusterKey::random(), &ClusterKey::random());
        first.send(&1_u8).unwrap();
        assert_eq!(run(&mut first, &mut second, 1), Err(Lost::Key));
        assert!(!second.is_trusted());
        drop(second);
        let start = Instant::now();
        let end = loop {
            assert!(start.elapsed() < LIMIT);
            if let Err(lost) = first.receive() {
                break lost;
            }
        };
        assert_eq!(end, Lost::Key);
    }

    #[test]
    fn noise_of_a_stranger_ends_the_connection() {
        for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0xff; 70_000]] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut stranger = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let key = ClusterKey::random();
            let mut channel = Channel::accept(listener.accept().unwrap().0, &key).unwrap();
            stranger.write_all(noise).unwrap();
            drop(stranger);
            let start = Instant::now();
            while channel.receive().is_ok() {
                assert!(start.elapsed() < LIMIT);
            }
            assert!(!channel.is_trusted());
        }
    }

    #[test]
    fn a_peer_that_reads_nothing_is_given_up() {
        let key = ClusterKey::random();
        let (mut first, mut second) = pair(&key, &key);
        first.send(&0_u8).unwrap();
        run(&mut first, &mut second, 1).unwrap();
        let large = vec![1_u8; MAX_MESSAGE / 2];
        let most = 64 * MAX_UNSENT / large.len();
        assert!((0..most).any(|_| first.send(&large) == Err(Lost::Connection)));
        assert!(first.send(&vec![1_u8; MAX_MESSAGE + 1]).is_err());
    }
}
