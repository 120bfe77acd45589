//! An ordinary client and server over TCP, written with `std::net` alone.
//!
//! It stands for any socket program that never heard of VMMC. The demo and the tests run it plain and under `vmmc run`.
//!
//! ```text
//! echo-pair serve 127.0.0.1:0
//! echo-pair ping  127.0.0.1:7000 --size 64 --count 20000
//! echo-pair up    127.0.0.1:7000 --bytes 1000000000
//! echo-pair down  127.0.0.1:7000 --bytes 1000000000
//! ```
//!
//! A client prints one `key value` pair a line. `bytes` and `digest` depend only on the arguments, so two runs can be
//! compared; the other keys are measurements. A connection starts with one byte that tells what the client wants:
//!
//! | first byte | then |
//! |---|---|
//! | `e` | the server returns every byte until the client shuts its direction down |
//! | `u` | the client sends, shuts its direction down, and gets the count and the digest of what arrived |
//! | `d` | the client sends a length, and the server sends that many bytes |

mod client;
mod digest;
mod pattern;
mod server;

use std::env;
use std::io;
use std::process::ExitCode;
use std::str::FromStr;

const USAGE: &str = "usage: echo-pair serve ADDRESS | ping ADDRESS [--size N] [--count N] [--pause-at N] | \
                     up ADDRESS [--bytes N] [--expect DIGEST] | down ADDRESS [--bytes N]";

fn main() -> ExitCode {
    match run(&env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo-pair: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> io::Result<()> {
    let [what, address, options @ ..] = args else {
        return Err(io::Error::other(USAGE));
    };
    let bytes = || option(options, "--bytes", 100_000_000);
    match what.as_str() {
        "serve" => server::serve(address),
        "ping" => client::ping(
            address,
            option(options, "--size", 64)?,
            option(options, "--count", 20_000)?,
            option(options, "--pause-at", usize::MAX)?,
        ),
        "up" => client::up(address, bytes()?, option(options, "--expect", Hexadecimal(None))?.0),
        "down" => client::down(address, bytes()?),
        _ => Err(io::Error::other(USAGE)),
    }
}

fn option<T: FromStr>(options: &[String], name: &str, default: T) -> io::Result<T> {
    let Some(at) = options.iter().position(|word| word == name) else {
        return Ok(default);
    };
    options
        .get(at + 1)
        .and_then(|value| value.parse().ok())
        .ok_or_else(|| io::Error::other(format!("{name} needs a number; {USAGE}")))
}

/// A digest as the clients print it.
struct Hexadecimal(Option<u64>);

impl FromStr for Hexadecimal {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(|number| Hexadecimal(Some(number)))
    }
}
