//! Packets of the link: parsing never panics, what nobody protected has no effect, and a link that is shown anything at all
//! goes on working.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmmc_link::wire::{Frames, Header};
use vmmc_link::{Binding, Buffer, Config, Keys, Link, Memory, Refusal, Secret, Time};

/// Memory in which nothing may happen.
struct Untouched;

impl Memory for Untouched {
    fn place(&mut self, _: &Binding, _: u64, _: &[u8]) -> Result<(), Refusal> {
        panic!("bytes that nobody protected were placed");
    }
    fn signal(&mut self, _: &Binding, _: u64, _: u64) -> Result<(), Refusal> {
        panic!("a word that nobody protected was written");
    }
    fn notify(&mut self, _: &Binding, _: u64, _: u64, _: u64) -> Result<(), Refusal> {
        panic!("a notification that nobody protected came through");
    }
    fn read(&mut self, _: &Binding, _: u64, _: &mut [u8]) -> Result<(), Refusal> {
        panic!("a fetch that nobody protected was answered");
    }
    fn gather(&mut self, _: Buffer, _: u64, into: &mut [u8]) -> Result<(), Refusal> {
        into.fill(7);
        Ok(())
    }
    fn scatter(&mut self, _: Buffer, _: u64, _: &[u8]) -> Result<(), Refusal> {
        panic!("an answer that nobody protected was taken");
    }
}

fuzz_target!(|datagrams: Vec<Vec<u8>>| {
    let keys = Keys::Encrypted { send: Secret([1; 32]), receive: Secret([2; 32]) };
    let mut link = Link::new(Config::default(), &keys, Time::ZERO).expect("the keys are keys");
    let mut buffer = vec![0; 1500];
    for mut datagram in datagrams {
        let _ = Header::parse(&datagram);
        for frame in Frames::new(&datagram) {
            if frame.is_err() {
                break;
            }
        }
        let _ = link.handle_datagram(Time::ZERO, &mut datagram, &mut Untouched);
        while link.poll_transmit(Time::ZERO, &mut buffer, 1, &mut Untouched).is_some() {}
        while link.poll_event().is_some() {}
    }
});
