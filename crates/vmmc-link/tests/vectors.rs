//! The test vectors of `docs/wire.md`: what stands there is what goes over the wire.

use vmmc_link::wire::{Frame, Frames, Header};
use vmmc_link::{Binding, Buffer, Config, Keys, Link, Memory, Refusal, Secret, Time};

const PAGE: &str = include_str!("../../../docs/wire.md");

/// The bytes of the vector of a name: the hexadecimal block behind its heading.
fn vector(name: &str) -> Vec<u8> {
    let (_, behind) = PAGE.split_once(&format!("### {name}\n")).unwrap();
    let block = behind.split("```").nth(1).unwrap();
    let digits: String = block.chars().filter(char::is_ascii_hexdigit).collect();
    (0..digits.len() / 2)
        .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap())
        .collect()
}

/// Sends bytes that count from zero, and takes nothing.
struct Counting;

impl Memory for Counting {
    fn place(&mut self, _: &Binding, _: u64, _: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }
    fn signal(&mut self, _: &Binding, _: u64, _: u64) -> Result<(), Refusal> {
        Ok(())
    }
    fn notify(&mut self, _: &Binding, _: u64, _: u64, _: u64) -> Result<(), Refusal> {
        Ok(())
    }
    fn read(&mut self, _: &Binding, _: u64, _: &mut [u8]) -> Result<(), Refusal> {
        Ok(())
    }
    fn gather(&mut self, _: Buffer, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        into.iter_mut().zip(offset..).for_each(|(byte, at)| *byte = at as u8);
        Ok(())
    }
    fn scatter(&mut self, _: Buffer, _: u64, _: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }
}

/// The packet of the page: 16 bytes sent, a signal, a notification, a fetch.
fn packet(keys: &Keys) -> Vec<u8> {
    // No larger size to try: the first packet is not a probe.
    let config = Config {
        remote_link: 0x0a0b_0c0d,
        incarnation: 7,
        min_mtu: 1472,
        max_mtu: 1472,
        ..Config::default()
    };
    let mut link = Link::new(config, keys, Time::ZERO).unwrap();
    let import = link.import(Binding { export: 5, capability: 0x0123_4567_89ab_cdef }).unwrap();
    link.send(import, 0x1000, Buffer(0), 0, 16).unwrap();
    link.signal(import, 0x2000, 0xfeed).unwrap();
    link.notify(import, 0x1000, 16, 99).unwrap();
    link.fetch(import, 0x3000, Buffer(1), 0, 4096).unwrap();
    let mut buffer = vec![0; 1472];
    let sent = link.poll_transmit(Time::ZERO, &mut buffer, 1, &mut Counting).unwrap();
    buffer.truncate(sent.len);
    buffer
}

fn keys() -> Keys {
    Keys::Encrypted { send: Secret([0x11; 32]), receive: Secret([0x22; 32]) }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn a_plaintext_packet_is_as_written() {
    let made = packet(&Keys::Plaintext);
    assert_eq!(hex(&vector("Plaintext")), hex(&made));
    let header = Header::parse(&made).unwrap();
    assert_eq!((header.link, header.incarnation, header.number), (0x0a0b_0c0d, 7, 0));
    assert_eq!(header.encode(), made[..20]);
}

#[test]
fn an_encrypted_packet_is_as_written() {
    assert_eq!(hex(&vector("Encrypted")), hex(&packet(&keys())));
}

#[test]
fn an_acknowledgement_reads_as_explained() {
    let bytes = vector("Acknowledgement");
    let Some(Ok(Frame::Ack(ack))) = Frames::new(&bytes).next() else { panic!("not an ack") };
    assert_eq!((ack.path, ack.delay, ack.largest), (1, 50_000, 1000));
    assert_eq!(ack.ranges().collect::<Vec<_>>(), [998..=1000, 990..=995, 5..=5]);
}
