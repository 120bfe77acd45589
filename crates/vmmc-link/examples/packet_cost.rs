//! What the protocol costs for each packet, without any network: one link hands its datagrams straight to another.
//!
//! `cargo run --release -p vmmc-link --example packet_cost`
//!
//! "send" is everything from the command to the datagram, "receive" everything from the datagram to the bytes in place, "acknowledge" what the
//! sender does with the answers; each divided by the data packets.

use std::time::{Duration, Instant};

use vmmc_link::{Binding, Buffer, Config, Event, Keys, Link, Memory, Refusal, Secret, Time};

const LEN: u64 = 1 << 20;
const MESSAGES: u64 = 4000;
const ROUNDS: usize = 5;

struct Plain {
    bytes: Vec<u8>,
    copies: bool,
}

impl Memory for Plain {
    fn place(&mut self, _: &Binding, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        if self.copies {
            self.bytes[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        }
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
        if self.copies {
            into.copy_from_slice(&self.bytes[offset as usize..offset as usize + into.len()]);
        }
        Ok(())
    }
    fn scatter(&mut self, _: Buffer, _: u64, _: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }
}

#[derive(Default, Clone, Copy)]
struct Cost {
    send: Duration,
    receive: Duration,
    acknowledge: Duration,
    packets: u32,
}

fn measure(encrypted: bool, mtu: u16, copies: bool, len: u64) -> Cost {
    let keys = |send: u8, receive: u8| match encrypted {
        true => Keys::Encrypted { send: Secret([send; 32]), receive: Secret([receive; 32]) },
        false => Keys::Plaintext,
    };
    let config = Config { max_mtu: mtu, ..Config::default() };
    let mut sender = Link::new(config.clone(), &keys(1, 2), Time::ZERO).expect("keys");
    let mut receiver = Link::new(config, &keys(2, 1), Time::ZERO).expect("keys");
    let mut memory = [0, 1].map(|_| Plain { bytes: vec![1; LEN as usize], copies });
    let import = sender.import(Binding { export: 0, capability: 0 }).expect("an import");
    let mut buffer = vec![0; 64 << 10];
    let (mut now, mut given, mut done, mut cost) = (Time::ZERO, 0, 0, Cost::default());
    let total = MESSAGES * LEN / len.max(4096);
    while done < total {
        while given < total && given < done + 16 {
            let at = Instant::now();
            sender.send(import, 0, Buffer(0), 0, len).expect("accepted");
            cost.send += at.elapsed();
            given += 1;
        }
        let at = Instant::now();
        let sent =
            sender.poll_transmit(now, &mut buffer, (64 << 10) / usize::from(mtu), &mut memory[0]);
        let between = Instant::now();
        cost.send += between - at;
        if let Some(sent) = sent {
            for datagram in buffer[..sent.len].chunks_mut(sent.segment) {
                receiver.handle_datagram(now, datagram, &mut memory[1]).expect("taken");
                cost.packets += 1;
            }
            cost.receive += between.elapsed();
        }
        now = now + Duration::from_micros(10);
        for link in [&mut sender, &mut receiver] {
            if link.poll_timeout().is_some_and(|at| at <= now) {
                link.handle_timeout(now);
            }
        }
        loop {
            let at = Instant::now();
            let Some(ack) = receiver.poll_transmit(now, &mut buffer, 1, &mut memory[1]) else {
                break;
            };
            let between = Instant::now();
            cost.receive += between - at;
            sender.handle_datagram(now, &mut buffer[..ack.len], &mut memory[0]).expect("taken");
            cost.acknowledge += between.elapsed();
        }
        while let Some(event) = sender.poll_event() {
            if let Event::Completed { through, .. } = event {
                done = through.0;
            }
        }
    }
    cost
}

fn main() {
    println!(
        "{:>10} {:>6} {:>8} {:>8}  {:>8} {:>8} {:>8}   ns a packet",
        "", "mtu", "message", "copies", "send", "receive", "ack"
    );
    for (len, mtu) in [(LEN, 1472), (LEN, 8972), (64, 1472)] {
        for (encrypted, copies) in [(false, false), (true, false), (true, true)] {
            let mut rounds: Vec<Cost> =
                (0..ROUNDS).map(|_| measure(encrypted, mtu, copies, len)).collect();
            rounds.sort_by_key(|cost| (cost.send + cost.receive) / cost.packets);
            let cost = rounds[ROUNDS / 2];
            let each = |time: Duration| time.as_nanos() as f64 / f64::from(cost.packets);
            println!(
                "{:>10} {:>6} {:>8} {:>8}  {:>8.0} {:>8.0} {:>8.0}",
                if encrypted { "encrypted" } else { "plaintext" },
                mtu,
                len,
                copies,
                each(cost.send),
                each(cost.receive),
                each(cost.acknowledge)
            );
        }
    }
}
