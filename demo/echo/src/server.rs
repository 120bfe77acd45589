//! The serving side: one thread a connection.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use crate::digest::Digest;
use crate::pattern::{self, CHUNK};

/// Serves for ever; prints the address that it listens on first, so that port 0 can be asked for.
pub(crate) fn serve(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening on {}", listener.local_addr()?);
    io::stdout().flush()?;
    for connection in listener.incoming() {
        let connection = connection?;
        thread::spawn(move || {
            if let Err(error) = answer(connection) {
                eprintln!("echo-pair: connection ended early: {error}");
            }
        });
    }
    Ok(())
}

fn answer(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut wish = [0];
    if connection.read(&mut wish)? == 0 {
        return Ok(()); // somebody only looked whether we listen
    }
    match wish[0] {
        b'e' => echo(&mut connection),
        b'u' => swallow(&mut connection),
        b'd' => produce(&mut connection),
        other => Err(io::Error::other(format!("unknown wish {other:#x}"))),
    }
}

fn echo(connection: &mut TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match connection.read(&mut buffer)? {
            0 => return Ok(()),
            got => connection.write_all(&buffer[..got])?,
        }
    }
}

fn swallow(connection: &mut TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut digest = Digest::new();
    loop {
        match connection.read(&mut buffer)? {
            0 => break,
            got => digest.update(&buffer[..got]),
        }
    }
    connection.write_all(&digest.length().to_le_bytes())?;
    connection.write_all(&digest.finish().to_le_bytes())
}

fn produce(connection: &mut TcpStream) -> io::Result<()> {
    let mut length = [0; 8];
    connection.read_exact(&mut length)?;
    pattern::for_each_chunk(u64::from_le_bytes(length), |chunk| connection.write_all(chunk))
}
