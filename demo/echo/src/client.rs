//! The asking side: each function is one connection, and prints what it found.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::digest::Digest;
use crate::pattern::{self, CHUNK};

/// Sends `count` messages of `size` bytes one after the other and waits for each to come back unchanged.
///
/// After message `pause_at` it prints `paused` and sends only now and then until the end of its standard input.
pub(crate) fn ping(address: &str, size: usize, count: usize, pause_at: usize) -> io::Result<()> {
    if size == 0 || count == 0 {
        return Err(io::Error::other("--size and --count must be at least 1"));
    }
    let mut connection = connect(address, b'e')?;
    let mut sent: Vec<u8> = (0..size).map(|at| at as u8).collect();
    let mut got = vec![0; size];
    let mut digest = Digest::new();
    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        let stamp = number.to_le_bytes();
        let stamped = size.min(stamp.len());
        sent[..stamped].copy_from_slice(&stamp[..stamped]);
        let start = Instant::now();
        connection.write_all(&sent)?;
        connection.read_exact(&mut got)?;
        times.push(start.elapsed());
        if got != sent {
            return Err(io::Error::other(format!("message {number} came back changed")));
        }
        digest.update(&got);
        if number == pause_at {
            println!("paused");
            io::stdout().flush()?;
            let told = thread::spawn(|| io::copy(&mut io::stdin(), &mut io::sink()));
            while !told.is_finished() {
                connection.write_all(&sent)?;
                connection.read_exact(&mut got)?;
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
    connection.shutdown(Shutdown::Write)?;
    if connection.read(&mut got)? != 0 {
        return Err(io::Error::other("bytes came after the last echo"));
    }
    times.sort_unstable();
    let microseconds = |part: f64| times[((count - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    print_stream(digest);
    println!("p50_us {:.3}\np99_us {:.3}", microseconds(0.5), microseconds(0.99));
    Ok(())
}

/// Sends `length` bytes and has the server say what it received.
///
/// The digest that must come back is computed first, unless it is given: then the run spends no time on that.
pub(crate) fn up(address: &str, length: u64, expected: Option<u64>) -> io::Result<()> {
    let expected = expected.unwrap_or_else(|| pattern::digest(length));
    let mut connection = connect(address, b'u')?;
    let start = Instant::now();
    pattern::for_each_chunk(length, |chunk| connection.write_all(chunk))?;
    connection.shutdown(Shutdown::Write)?;
    let mut answer = [0; 16];
    connection.read_exact(&mut answer)?;
    let time = start.elapsed();
    let (arrived, digest) = answer.split_at(8);
    let arrived = u64::from_le_bytes(arrived.try_into().expect("eight bytes"));
    let digest = u64::from_le_bytes(digest.try_into().expect("eight bytes"));
    check(length, expected, arrived, digest)?;
    print_throughput(length, time);
    Ok(())
}

/// Asks the server for `length` bytes.
pub(crate) fn down(address: &str, length: u64) -> io::Result<()> {
    let expected = pattern::digest(length);
    let mut connection = connect(address, b'd')?;
    let start = Instant::now();
    connection.write_all(&length.to_le_bytes())?;
    let mut buffer = vec![0; CHUNK];
    let mut digest = Digest::new();
    loop {
        match connection.read(&mut buffer)? {
            0 => break,
            got => digest.update(&buffer[..got]),
        }
    }
    let time = start.elapsed();
    check(length, expected, digest.length(), digest.finish())?;
    print_throughput(length, time);
    Ok(())
}

fn connect(address: &str, wish: u8) -> io::Result<TcpStream> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_nodelay(true)?;
    connection.write_all(&[wish])?;
    Ok(connection)
}

fn check(length: u64, expected: u64, arrived: u64, digest: u64) -> io::Result<()> {
    println!("bytes {arrived}\ndigest {digest:016x}");
    if (arrived, digest) == (length, expected) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{arrived} bytes with digest {digest:016x} arrived instead of {length} with {expected:016x}"
    )))
}

fn print_stream(digest: Digest) {
    println!("bytes {}\ndigest {:016x}", digest.length(), digest.finish());
}

fn print_throughput(length: u64, time: Duration) {
    println!("gigabytes_per_second {:.4}", length as f64 / time.as_secs_f64() / 1e9);
}
