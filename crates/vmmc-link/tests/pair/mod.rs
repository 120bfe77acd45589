//! Two links with a wire between them, for tests of what happens in the long run.

use std::time::Duration;

use vmmc_link::{Binding, Buffer, Config, Keys, Link, Memory, Refusal, Secret, Time};

/// Memory of which nobody looks at the bytes.
struct Anything;

impl Memory for Anything {
    fn place(&mut self, _: &Binding, _: u64, _: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }
    fn signal(&mut self, _: &Binding, _: u64, _: u64) -> Result<(), Refusal> {
        Ok(())
    }
    fn notify(&mut self, _: &Binding, _: u64, _: u64, _: u64) -> Result<(), Refusal> {
        Ok(())
    }
    fn read(&mut self, _: &Binding, _: u64, into: &mut [u8]) -> Result<(), Refusal> {
        into.fill(1);
        Ok(())
    }
    fn gather(&mut self, _: Buffer, _: u64, into: &mut [u8]) -> Result<(), Refusal> {
        into.fill(2);
        Ok(())
    }
    fn scatter(&mut self, _: Buffer, _: u64, _: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }
}

/// Two links whose wire takes 20 µs and loses every `lose`th datagram.
pub(crate) struct Pair {
    pub(crate) links: [Link; 2],
    now: Time,
    lose: u64,
    sent: u64,
    buffer: Vec<u8>,
}

impl Pair {
    pub(crate) fn new(config: &Config, lose: u64) -> Pair {
        let keys = |send: u8, receive: u8| Keys::Encrypted {
            send: Secret([send; 32]),
            receive: Secret([receive; 32]),
        };
        let link = |keys: Keys| Link::new(config.clone(), &keys, Time::ZERO).unwrap();
        Pair {
            links: [link(keys(1, 2)), link(keys(2, 1))],
            now: Time::ZERO,
            lose,
            sent: 0,
            buffer: vec![0; 16 * 1500],
        }
    }

    /// Everything that wants to go goes, and 20 µs pass.
    pub(crate) fn step(&mut self) {
        for from in 0..2 {
            while let Some(sent) =
                self.links[from].poll_transmit(self.now, &mut self.buffer, 16, &mut Anything)
            {
                for datagram in self.buffer[..sent.len].chunks_mut(sent.segment) {
                    self.sent += 1;
                    if !self.sent.is_multiple_of(self.lose) {
                        let _ =
                            self.links[1 - from].handle_datagram(self.now, datagram, &mut Anything);
                    }
                }
            }
        }
        self.now = self.now + Duration::from_micros(20);
        for link in &mut self.links {
            if link.poll_timeout().is_some_and(|at| at <= self.now) {
                link.handle_timeout(self.now);
            }
            while link.poll_event().is_some() {}
        }
    }
}
