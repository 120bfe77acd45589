//! What a packet costs in CPU time, from gathering its bytes to placing them, acknowledgements included: two links in one thread,
//! without a network. `cargo run --release -p vmmc-link --example cost`

use std::time::{Duration, Instant};

use vmmc_link::{
    Binding, Buffer, CommandError, Config, Event, Keys, Link, Memory, Refusal, Secret, Time,
};

/// 1 MiB to send from, and as much to place into.
struct Copies {
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Memory for Copies {
    fn place(&mut self, _: &Binding, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let start = offset as usize;
        self.to.get_mut(start..start + bytes.len()).ok_or(Refusal::Bounds)?.copy_from_slice(bytes);
        Ok(())
    }
    fn signal(&mut self, _: &Binding, _: u64, _: u64) -> Result<(), Refusal> {
        Ok(())
    }
    fn notify(&mut self, _: &Binding, _: u64, _: u64, _: u64) -> Result<(), Refusal> {
        Ok(())
    }
    fn read(&mut self, _: &Binding, _: u64, _: &mut [u8]) -> Result<(), Refusal> {
        Err(Refusal::Rights)
    }
    fn gather(&mut self, _: Buffer, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        let start = offset as usize;
        into.copy_from_slice(self.from.get(start..start + into.len()).ok_or(Refusal::Bounds)?);
        Ok(())
    }
    fn scatter(&mut self, _: Buffer, _: u64, _: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!(
        "{:>10} {:>10}  {:>6}  {:>10}  {:>11}  {:>8}",
        "", "", "MTU", "ns/message", "ns/datagram", "GB/s"
    );
    for mtu in [1472, 8972] {
        for len in [64, 1 << 20] {
            for (name, encrypted) in [("plaintext", false), ("encrypted", true)] {
                measure(name, encrypted, mtu, len)?;
            }
        }
    }
    Ok(())
}

fn measure(
    name: &str,
    encrypted: bool,
    mtu: u16,
    len: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let keys = |send: u8, receive: u8| match encrypted {
        true => Keys::Encrypted { send: Secret([send; 32]), receive: Secret([receive; 32]) },
        false => Keys::Plaintext,
    };
    let config = Config { min_mtu: mtu, max_mtu: mtu, ..Config::default() };
    let mut sender = Link::new(config.clone(), &keys(1, 2), Time::ZERO)?;
    let mut receiver = Link::new(config, &keys(2, 1), Time::ZERO)?;
    let mut memory = Copies { from: vec![1; 1 << 20], to: vec![0; 1 << 20] };
    let mut buffer = vec![0; 64 * usize::from(mtu)];
    let import = sender.import(Binding { export: 0, capability: 1 })?;
    let (mut given, mut complete, mut now) = (0, 0, Time::ZERO);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(1) {
        // Few clock readings: many rounds each.
        for _ in 0..64 {
            let most = complete + if len == 64 { 1024 } else { 8 };
            while given < most {
                match sender.send(import, 0, Buffer(0), 0, len) {
                    Ok(ticket) => given = ticket.0,
                    Err(CommandError::Full) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            now = now + Duration::from_micros(10);
            for forth in [true, false] {
                let (from, to) = match forth {
                    true => (&mut sender, &mut receiver),
                    false => (&mut receiver, &mut sender),
                };
                while let Some(sent) = from.poll_transmit(now, &mut buffer, 44, &mut memory) {
                    for datagram in buffer[..sent.len].chunks_mut(sent.segment) {
                        to.handle_datagram(now, datagram, &mut memory)?;
                    }
                }
                from.handle_timeout(now);
            }
            while let Some(event) = sender.poll_event() {
                if let Event::Completed { through, .. } = event {
                    complete = through.0;
                }
            }
        }
    }
    let nanos = started.elapsed().as_nanos() as f64;
    let datagrams = sender.stats().packets_sent.max(1) as f64;
    println!(
        "{name:>10} {len:>8} B  {mtu:>6}  {:>10.0}  {:>11.0}  {:>8.2}",
        nanos / complete.max(1) as f64,
        nanos / datagrams,
        complete as f64 * len as f64 / nanos
    );
    Ok(())
}
