//! A link over UDP and nothing else: no services, no memory of other processes. It tells every tenth of a second what the congestion control
//! makes of the wire.
//!
//! ```text
//! vmmc testbed up -n 2 --rate 1gbit
//! vmmc testbed run --node 2 -- wire 10.77.1.2:9000 10.77.1.1:9000
//! vmmc testbed run --node 1 -- wire 10.77.1.1:9000 10.77.1.2:9000 SECONDS [go-back-n] [encrypted]
//! ```

use std::time::{Duration, Instant};

use vmmc_link::{Binding, Buffer, Config, Event, Keys, Memory, Recovery, Refusal, Secret, Time};
use vmmc_ni::fabric::UdpFabric;
use vmmc_ni::port::{Host, LinkNumber, Port};

const LEN: u64 = 1 << 20;

struct Bytes(Vec<u8>);

impl Memory for Bytes {
    fn place(&mut self, _: &Binding, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let place = self.0.get_mut(offset as usize..offset as usize + bytes.len());
        place.ok_or(Refusal::Bounds)?.copy_from_slice(bytes);
        Ok(())
    }
    fn signal(&mut self, _: &Binding, _: u64, _: u64) -> Result<(), Refusal> {
        Ok(())
    }
    fn notify(&mut self, _: &Binding, _: u64, _: u64, _: u64) -> Result<(), Refusal> {
        Ok(())
    }
    fn read(&mut self, _: &Binding, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        self.gather(Buffer(0), offset, into)
    }
    fn gather(&mut self, _: Buffer, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        let place = self.0.get(offset as usize..offset as usize + into.len());
        into.copy_from_slice(place.ok_or(Refusal::Bounds)?);
        Ok(())
    }
    fn scatter(&mut self, _: Buffer, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.place(&Binding { export: 0, capability: 0 }, offset, bytes)
    }
}

impl Host for Bytes {
    fn turn_to(&mut self, _: LinkNumber) {}
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (own, peer) = (words[0].parse()?, words[1].parse()?);
    let seconds: Option<f64> = words.get(2).map(|seconds| seconds.parse()).transpose()?;
    let has = |word: &str| words.iter().any(|found| found == word);
    let config = Config {
        recovery: if has("go-back-n") { Recovery::GoBackN } else { Recovery::Selective },
        ..Config::default()
    };
    let keys = match has("encrypted") {
        true => Keys::Encrypted { send: Secret([1; 32]), receive: Secret([1; 32]) },
        false => Keys::Plaintext,
    };
    let mut port = Port::new(vec![UdpFabric::bind(own)?]);
    let start = Instant::now();
    let now = || Time::from_nanos(start.elapsed().as_nanos() as u64);
    let number = port.reserve()?;
    port.open(number, config, &keys, vec![peer], now())?;
    port.settle_peers();
    let mut memory = Bytes(vec![7; LEN as usize]);
    let Some(seconds) = seconds else {
        loop {
            if !port.poll(now(), &mut memory) {
                std::thread::yield_now();
            }
        }
    };
    let import =
        port.link(number).ok_or("no link")?.import(Binding { export: 0, capability: 0 })?;
    let (mut given, mut done, mut told, mut told_at) = (0, 0, 0, Instant::now());
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        while given < done + 4 {
            let link = port.link(number).ok_or("no link")?;
            given = link.send(import, 0, Buffer(0), 0, LEN)?.0;
        }
        if !port.poll(now(), &mut memory) {
            std::thread::yield_now();
        }
        while let Some((_, event)) = port.poll_event() {
            match event {
                Event::Completed { through, .. } => done = through.0,
                event => println!("{:?} {event:?}", start.elapsed()),
            }
        }
        if told_at.elapsed() > Duration::from_millis(100) {
            let link = port.link(number).ok_or("no link")?;
            let rate =
                (done - told) as f64 * LEN as f64 * 8.0 / told_at.elapsed().as_secs_f64() / 1e9;
            println!(
                "{:6.2} s {rate:7.3} Gbit/s {:?} {:?}",
                start.elapsed().as_secs_f64(),
                link.path(0),
                link.stats()
            );
            (told, told_at) = (done, Instant::now());
        }
    }
    println!(
        "total {:.3} Gbit/s",
        done as f64 * LEN as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9
    );
    Ok(())
}
