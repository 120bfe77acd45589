//! `loans`: the pair of `sockets`, with messages that are produced and consumed whole: by ordinary calls out of and into a
//! buffer, and in place (`vmmc-loan`), plain and under `vmmc run`.
//!
//! Every byte of a message of a stream is made by its sender and looked at by its receiver, so a copy is what the ordinary
//! calls have on top. Plain, the loans come of a buffer too: that is what a program pays for having one way for both.

use std::net::TcpStream;

use vmmc_loan::{Incoming, Outgoing};

use crate::BenchError;
use crate::buffer::Buffer;
use crate::exchange::{Exchange, check, mark};
use crate::flow::{Flow, Meter, Timing};
use crate::memory::read_all;
use crate::path::Path;
use crate::socket::{Connected, Stream};

/// Both directions of a connection, in place.
#[derive(Debug)]
pub(crate) struct InPlace<'a> {
    outgoing: Outgoing<&'a TcpStream>,
    incoming: Incoming<&'a TcpStream>,
}

fn failed(cause: std::io::Error) -> BenchError {
    BenchError::os("move bytes in place", cause)
}

impl<'a> InPlace<'a> {
    pub(crate) fn new(socket: &'a TcpStream) -> InPlace<'a> {
        InPlace { outgoing: Outgoing::new(socket), incoming: Incoming::new(socket) }
    }

    /// Produces all messages of `flow` where they are sent from.
    pub(crate) fn produce(mut self, flow: Flow) -> Result<Timing, BenchError> {
        let mut meter = Meter::start(flow.turn());
        for number in 0..flow.count {
            let mut space = self.outgoing.reserve(flow.size, flow.size).map_err(failed)?;
            // SAFETY: the peer is this very program, which writes nothing there.
            unsafe { space.slices() }.for_each(|piece| produce(piece, flow.first + number));
            space.commit(flow.size).map_err(failed)?;
            meter.message();
        }
        Ok(meter.stop())
    }

    /// Looks at all messages of `flow` where they have arrived.
    pub(crate) fn consume(mut self, flow: Flow) -> Result<(), BenchError> {
        for number in 0..flow.count {
            let bytes = self.incoming.borrow(flow.size, flow.size).map_err(failed)?;
            if bytes.len() < flow.size {
                return Err(BenchError::PeerLost);
            }
            let mut stamp = [0; 4];
            bytes.copy_out(0, &mut stamp);
            check(&stamp, flow.first + number, Path::TcpBlocking)?;
            // SAFETY: as in `produce`.
            unsafe { bytes.slices() }.for_each(|piece| _ = read_all(piece));
            bytes.release(flow.size).map_err(failed)?;
        }
        Ok(())
    }
}

impl Exchange for InPlace<'_> {
    #[inline]
    fn post(&mut self, payload: &mut [u8], stamp: u64) -> Result<(), BenchError> {
        let len = payload.len();
        let mut space = self.outgoing.reserve(len, len).map_err(failed)?;
        mark(payload, stamp);
        space.copy_in(0, payload);
        space.commit(len).map_err(failed)
    }

    #[inline]
    fn take(&mut self, payload: &mut [u8], stamp: u64) -> Result<(), BenchError> {
        let len = payload.len();
        let bytes = self.incoming.borrow(len, len).map_err(failed)?;
        if bytes.len() < len {
            return Err(BenchError::PeerLost);
        }
        // SAFETY: as in `InPlace::produce`.
        unsafe { bytes.slices() }.for_each(|piece| _ = read_all(piece));
        let mut begin = [0; 4];
        bytes.copy_out(0, &mut begin);
        bytes.release(len).map_err(failed)?;
        check(&begin, stamp, Path::TcpBlocking)
    }
}

/// Makes the bytes of message `number`.
fn produce(bytes: &mut [u8], number: u64) {
    let word = number.to_ne_bytes();
    let mut words = bytes.chunks_exact_mut(8);
    for place in &mut words {
        place.copy_from_slice(&word);
    }
    let rest = words.into_remainder();
    let len = rest.len();
    rest.copy_from_slice(&word[..len]);
}

/// Produces all messages of `flow` in a buffer, and writes them.
pub(crate) fn write<S: Connected>(flow: Flow, mut to: Stream<'_, S>) -> Result<Timing, BenchError> {
    let mut buffer = Buffer::filled(0, flow.size);
    let mut meter = Meter::start(flow.turn());
    for number in 0..flow.count {
        produce(&mut buffer, flow.first + number);
        to.write_all(&buffer)?;
        meter.message();
    }
    Ok(meter.stop())
}

/// Reads all messages of `flow` into a buffer, and looks at them.
pub(crate) fn read<S: Connected>(flow: Flow, mut from: Stream<'_, S>) -> Result<(), BenchError> {
    let mut buffer = Buffer::filled(0, flow.size);
    for number in 0..flow.count {
        from.read_exact(&mut buffer)?;
        check(&buffer[..4], flow.first + number, Path::TcpBlocking)?;
        read_all(&buffer);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::spin::Spin;

    #[test]
    fn messages_arrive_whole_in_place_and_by_ordinary_calls() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (there, _) = listener.accept().unwrap();
        for size in [4, 1000, 100_000] {
            let spin = Spin::new(true);
            let flow = Flow { path: Path::TcpBlocking, size, first: 7, count: 20, spin };
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    InPlace::new(&there).consume(flow).unwrap();
                    read(flow, Stream::new(&there, None).unwrap()).unwrap();
                });
                write(flow, Stream::new(&here, None).unwrap()).unwrap();
                InPlace::new(&here).produce(flow).unwrap();
            });
        }
    }
}
