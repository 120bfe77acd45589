//! What a link can do whose engine is polled by the processes that wait: one thread a node, memory of its own, no service.
//! `ceiling OWN PEER first|second plaintext|encrypted MTU` on both nodes at once, addresses as `IP:PORT`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use vmmc_link::{Binding, Buffer, Config, Event, ImportId, Keys, Memory, Refusal, Secret, Time};
use vmmc_ni::fabric::UdpFabric;
use vmmc_ni::port::{Host, LinkNumber, Port};

const LEN: usize = 8 << 20;
const BINDING: Binding = Binding { export: 1, capability: 7 };

struct Bytes {
    exported: Vec<u8>,
    local: Vec<u8>,
}

impl Bytes {
    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.exported[at..at + 8].try_into().unwrap_or_default())
    }
}

impl Memory for Bytes {
    fn place(&mut self, _: &Binding, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let start = usize::try_from(offset).map_err(|_| Refusal::Bounds)?;
        self.exported
            .get_mut(start..)
            .and_then(|rest| rest.get_mut(..bytes.len()))
            .ok_or(Refusal::Bounds)?
            .copy_from_slice(bytes);
        Ok(())
    }
    fn signal(&mut self, target: &Binding, offset: u64, value: u64) -> Result<(), Refusal> {
        self.place(target, offset, &value.to_le_bytes())
    }
    fn notify(&mut self, _: &Binding, _: u64, _: u64, _: u64) -> Result<(), Refusal> {
        Ok(())
    }
    fn read(&mut self, _: &Binding, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        into.copy_from_slice(&self.exported[offset as usize..][..into.len()]);
        Ok(())
    }
    fn gather(&mut self, _: Buffer, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        into.copy_from_slice(&self.local[offset as usize..][..into.len()]);
        Ok(())
    }
    fn scatter(&mut self, _: Buffer, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.local[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

impl Host for Bytes {
    fn turn_to(&mut self, _: LinkNumber) {}
}

struct Node {
    port: Port<UdpFabric>,
    bytes: Bytes,
    link: LinkNumber,
    import: ImportId,
    start: Instant,
    completed: u64,
}

impl Node {
    fn poll(&mut self) {
        let now = Time::from_nanos(self.start.elapsed().as_nanos() as u64);
        self.port.poll(now, &mut self.bytes);
        while let Some((_, event)) = self.port.poll_event() {
            if let Event::Completed { through, .. } = event {
                self.completed = through.0;
            }
        }
    }

    fn send(&mut self, len: u64, word: u64, flush: bool) -> u64 {
        let link = self.port.link(self.link).unwrap();
        link.send(self.import, 64, Buffer(0), 0, len).unwrap();
        let ticket = link.signal(self.import, 0, word).unwrap();
        if flush {
            link.flush();
        }
        ticket.0
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [own, peer, role, protection, mtu] = &arguments[..] else { panic!("see the source") };
    let first = role == "first";
    let (own, peer): (SocketAddr, SocketAddr) = (own.parse().unwrap(), peer.parse().unwrap());
    let keys = match protection.as_str() {
        "plaintext" => Keys::Plaintext,
        _ => {
            let (send, receive) = if first { (1, 2) } else { (2, 1) };
            Keys::Encrypted { send: Secret([send; 32]), receive: Secret([receive; 32]) }
        }
    };
    let mut port = Port::new(vec![UdpFabric::bind(own).unwrap()]);
    let link = port.reserve().unwrap();
    let start = Instant::now();
    let config = Config { max_mtu: mtu.parse::<u16>().unwrap() - 28, ..Config::default() };
    port.open(link, config, &keys, vec![peer], Time::ZERO).unwrap();
    port.settle_peers();
    let import = port.link(link).unwrap().import(BINDING).unwrap();
    let bytes = Bytes { exported: vec![0; LEN], local: vec![7; LEN] };
    let mut node = Node { port, bytes, link, import, start, completed: 0 };
    let rounds = 20_000_u64;
    for flush in [false, true] {
        let base = if flush { rounds } else { 0 };
        let mut samples = Vec::new();
        for round in base + 1..=base + rounds {
            let from = Instant::now();
            if first {
                node.send(64, round, flush);
            }
            while node.bytes.word(0) < round {
                node.poll();
            }
            if !first {
                node.send(64, round, flush);
                node.poll();
            }
            samples.push(from.elapsed());
        }
        samples.sort();
        let at = |part: usize| samples[samples.len() * part / 1000].as_nanos() as f64 / 2000.0;
        if first {
            println!("64 B one way, flush {flush}: {:.2} us, 99 % {:.2}", at(500), at(990));
        }
    }
    // Streams: a megabyte each, four on their way.
    let streams = 4000;
    let base = 2 * rounds;
    if first {
        let before = Instant::now();
        let cpu = cpu();
        let mut tickets = std::collections::VecDeque::new();
        for round in 1..=streams {
            tickets.push_back(node.send(1 << 20, base + round, false));
            while tickets.len() >= 4 {
                node.poll();
                while tickets.front().is_some_and(|ticket| *ticket <= node.completed) {
                    tickets.pop_front();
                }
            }
        }
        while tickets.back().is_some_and(|ticket| *ticket > node.completed) {
            node.poll();
        }
        let seconds = before.elapsed().as_secs_f64();
        println!(
            "1 MB sends: {:.2} GB/s, cpu s/GB {:.2}",
            (streams << 20) as f64 / seconds / 1e9,
            (self::cpu() - cpu).as_secs_f64() / ((streams << 20) as f64 / 1e9)
        );
        println!("{:?}", node.port.link(node.link).unwrap().stats());
    } else {
        while node.bytes.word(0) < base + streams {
            node.poll();
        }
    }
    let end = Instant::now();
    while end.elapsed() < Duration::from_millis(300) {
        node.poll();
    }
}

fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: u64 = fields
        .get(11..13)
        .map_or(0, |pair| pair.iter().map(|n| n.parse::<u64>().unwrap_or(0)).sum());
    Duration::from_millis(ticks * 10)
}
