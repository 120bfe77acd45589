//! The kernel's paths: a connected stream socket, waited for asleep or spinning.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

use crate::BenchError;
use crate::spin::Spin;

/// A connected stream, and how to wait for it.
#[derive(Debug)]
pub(crate) struct Stream<'a, S> {
    socket: &'a S,
    /// How to wait without the kernel; `None` waits in the kernel.
    spin: Option<Spin>,
}

/// What TCP and AF_UNIX streams share.
pub(crate) trait Connected {
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()>;
    fn take(&self, into: &mut [u8]) -> io::Result<usize>;
    fn give(&self, bytes: &[u8]) -> io::Result<usize>;
}

impl Connected for TcpStream {
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        TcpStream::set_nonblocking(self, nonblocking)
    }
    #[inline]
    fn take(&self, into: &mut [u8]) -> io::Result<usize> {
        (&*self).read(into)
    }
    #[inline]
    fn give(&self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }
}

impl Connected for UnixStream {
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        UnixStream::set_nonblocking(self, nonblocking)
    }
    #[inline]
    fn take(&self, into: &mut [u8]) -> io::Result<usize> {
        (&*self).read(into)
    }
    #[inline]
    fn give(&self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }
}

impl<'a, S: Connected> Stream<'a, S> {
    /// Takes `socket` for one measurement, and sets the way of waiting on it.
    pub(crate) fn new(socket: &'a S, spin: Option<Spin>) -> Result<Stream<'a, S>, BenchError> {
        socket
            .set_nonblocking(spin.is_some())
            .map_err(|cause| BenchError::os("set a socket's way of waiting", cause))?;
        Ok(Stream { socket, spin })
    }

    /// Writes all of `bytes`.
    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> Result<(), BenchError> {
        let mut written = 0;
        while written < bytes.len() {
            written += self.wait_for(|socket| socket.give(&bytes[written..]))?;
        }
        Ok(())
    }

    /// Fills all of `into`.
    pub(crate) fn read_exact(&mut self, into: &mut [u8]) -> Result<(), BenchError> {
        let mut filled = 0;
        while filled < into.len() {
            filled += self.read(&mut into[filled..])?;
        }
        Ok(())
    }

    /// Reads what is there, at least one byte.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> Result<usize, BenchError> {
        match self.wait_for(|socket| socket.take(into))? {
            0 => Err(BenchError::PeerLost),
            read => Ok(read),
        }
    }

    #[inline]
    fn wait_for(&self, mut call: impl FnMut(&S) -> io::Result<usize>) -> Result<usize, BenchError> {
        let mut outcome = Ok(0);
        let mut attempt = || {
            outcome = call(self.socket);
            !matches!(&outcome, Err(e) if e.kind() == ErrorKind::WouldBlock)
        };
        match self.spin {
            Some(spin) => spin.until(&mut attempt)?,
            None => while !attempt() {},
        }
        match outcome {
            Err(cause) if cause.kind() == ErrorKind::Interrupted => self.wait_for(call),
            Err(cause) => Err(BenchError::os("move bytes over a socket", cause)),
            Ok(moved) => Ok(moved),
        }
    }
}

/// A listener on a free port of the loopback interface, and its address.
pub(crate) fn listen() -> Result<(TcpListener, SocketAddr), BenchError> {
    let make = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    make().map_err(|cause: io::Error| BenchError::os("listen on the loopback interface", cause))
}

/// The listener's next connection, without delay for small writes.
pub(crate) fn accept(listener: &TcpListener) -> Result<TcpStream, BenchError> {
    let make = || {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    make().map_err(|cause: io::Error| BenchError::os("accept on the loopback interface", cause))
}

/// A connection to `address`, without delay for small writes.
pub(crate) fn connect(address: SocketAddr) -> Result<TcpStream, BenchError> {
    let make = || {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    make().map_err(|cause: io::Error| BenchError::os("connect on the loopback interface", cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back<S: Connected + Sync>(ours: &S, theirs: &S, spin: Option<Spin>) {
        let sent: Vec<u8> = (0..300_000u32).map(|i| (i * 7) as u8).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| Stream::new(theirs, spin).unwrap().write_all(&sent).unwrap());
            let mut received = vec![0; sent.len()];
            Stream::new(ours, spin).unwrap().read_exact(&mut received).unwrap();
            assert!(received == sent);
        });
    }

    #[test]
    fn bytes_arrive_whole_whichever_way_we_wait() {
        let (listener, address) = listen().unwrap();
        let ours = connect(address).unwrap();
        let theirs = accept(&listener).unwrap();
        let (left, right) = UnixStream::pair().unwrap();
        for spin in [None, Some(Spin::new(true))] {
            there_and_back(&ours, &theirs, spin);
            there_and_back(&left, &right, spin);
        }
    }

    #[test]
    fn a_closed_connection_is_a_lost_peer() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let mut stream = Stream::new(&ours, None).unwrap();
        assert!(matches!(stream.read_exact(&mut [0; 1]), Err(BenchError::PeerLost)));
    }
}
