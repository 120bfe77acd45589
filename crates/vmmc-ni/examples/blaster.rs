//! What UDP can carry on a wire at all: super-packets by segmentation offload, put together again by the receiver's kernel, and nothing else: no headers,
//! checksums, losses or congestion. One small datagram back for each. What a link makes of the same wire tells the example `ceiling`.
//!
//! ```text
//! vmmc testbed up -n 2
//! vmmc testbed run --node 2 -- blaster 10.77.1.2:9000 10.77.1.1:9000 1500
//! vmmc testbed run --node 1 -- blaster 10.77.1.1:9000 10.77.1.2:9000 1500 SECONDS [copies]
//! ```
//!
//! With `copies` each end copies every byte once more, between a megabyte and the super-packet, as whoever has headers in front of each packet does.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use vmmc_ni::fabric::{Fabric, Sent, UdpFabric};

const LEN: usize = 1 << 20;
/// Super-packets on their way.
const WINDOW: u64 = 8;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (own, peer, mtu): (SocketAddr, SocketAddr, usize) =
        (words[0].parse()?, words[1].parse()?, words[2].parse()?);
    let seconds: Option<f64> = words.get(3).map(|seconds| seconds.parse()).transpose()?;
    let copies = words.get(4).is_some();
    let mut fabric = UdpFabric::bind(own)?;
    fabric.only(Some(peer));
    let segment = mtu - 28;
    let mut memory = vec![7_u8; LEN];
    let Some(seconds) = seconds else {
        let (mut at, mut come, mut told) = (0, 0_u64, 0);
        loop {
            fabric.receive(|datagram| {
                at = if at + datagram.len() > LEN { 0 } else { at };
                memory[at..at + datagram.len()].copy_from_slice(datagram);
                at += datagram.len();
                come += datagram.len() as u64;
            });
            if come > told {
                told = come;
                fabric.send(peer, &come.to_le_bytes(), segment);
            }
        }
    };
    let batch = fabric.batch(segment) * segment;
    let mut packet = vec![7_u8; batch];
    let (mut at, mut sent, mut arrived) = (0, 0_u64, 0);
    let (start, mut heard) = (Instant::now(), Instant::now());
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        fabric.receive(|answer| {
            let told = answer.try_into().map_or(0, u64::from_le_bytes);
            (arrived, heard) = (told.max(arrived), Instant::now());
        });
        if sent - arrived.min(sent) >= WINDOW * batch as u64 {
            // The first are lost while the kernel asks for the way. Nothing is sent again.
            if heard.elapsed() > Duration::from_millis(10) {
                (sent, heard) = (arrived, Instant::now());
            }
            continue;
        }
        if copies {
            at = if at + batch > LEN { 0 } else { at };
            packet.copy_from_slice(&memory[at..at + batch]);
            at += batch;
        }
        if fabric.send(peer, &packet, segment) == Sent::Gone {
            sent += batch as u64;
        }
    }
    println!("{:.2} GB/s", arrived as f64 / start.elapsed().as_secs_f64() / 1e9);
    Ok(())
}
