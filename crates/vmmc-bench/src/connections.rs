//! `connections`: what a short connection takes: it is made, carries one request and its answer, and is closed.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use crate::BenchError;
use crate::clock::Clock;
use crate::socket::{Stream, accept, connect, listen};
use crate::statistics::Samples;

/// Bytes of a request. It begins with a number, which the answer begins with too.
const REQUEST: usize = 64;
const STAMP: usize = 8;

/// Answers of `size` bytes on `count` connections, to whoever learns over `line` where to.
pub(crate) fn answer(line: &TcpStream, size: usize, count: u64) -> Result<(), BenchError> {
    let (listener, address) = listen()?;
    Stream::new(line, None)?.write_all(&address.port().to_ne_bytes())?;
    let (mut request, mut answer) = ([0; REQUEST], vec![0; size.max(STAMP)]);
    for _ in 0..count {
        let mut socket = accept(&listener)?;
        socket.read_exact(&mut request).map_err(failed)?;
        answer[..STAMP].copy_from_slice(&request[..STAMP]);
        socket.write_all(&answer).map_err(failed)?;
        // Until the other end closes.
        let _ = socket.read(&mut request);
    }
    Ok(())
}

/// Makes the connections that [`answer`] serves, numbered from `first` on. A sample is one of them, from making to closing it.
pub(crate) fn ask(
    line: &TcpStream,
    size: usize,
    first: u64,
    count: u64,
) -> Result<Samples, BenchError> {
    let mut port = [0; 2];
    Stream::new(line, None)?.read_exact(&mut port)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, u16::from_ne_bytes(port)));
    let (mut request, mut answer) = ([0; REQUEST], vec![0; size.max(STAMP)]);
    let (clock, mut samples) = (Clock::calibrated(), Samples::new());
    for number in first..first + count {
        request[..STAMP].copy_from_slice(&number.to_ne_bytes());
        let start = clock.now();
        let mut socket = connect(address)?;
        socket.write_all(&request).map_err(failed)?;
        socket.read_exact(&mut answer).map_err(failed)?;
        drop(socket);
        samples.record(clock.ticks_between(start, clock.now()) as f64);
        if answer[..STAMP] != request[..STAMP] {
            return Err(BenchError::OutOfStep(format!("not the answer to request {number}")));
        }
    }
    Ok(samples)
}

fn failed(cause: io::Error) -> BenchError {
    BenchError::os("move bytes over a short connection", cause)
}
