//! Packets are hostile: parsing never panics, and nothing that the peer did not protect has an effect.

use proptest::prelude::*;
use vmmc_link::wire::{Frame, Frames, Header};
use vmmc_link::{
    Binding, Buffer, Config, Dropped, Event, Keys, Link, Memory, Refusal, Secret, Time,
};

/// One export of 64 KiB, and local buffers of zeroes.
struct Plain {
    bytes: Vec<u8>,
    placed: usize,
}

const CAPABILITY: u128 = 0x1234_5678_9abc_def0_1234_5678_9abc_def0;

impl Plain {
    fn new() -> Plain {
        Plain { bytes: vec![0; 65_536], placed: 0 }
    }

    fn reach(&mut self, target: &Binding, offset: u64, len: usize) -> Result<&mut [u8], Refusal> {
        if target.export != 1 || target.capability != CAPABILITY {
            return Err(Refusal::Revoked);
        }
        let start = usize::try_from(offset).map_err(|_| Refusal::Bounds)?;
        let end = start.checked_add(len).ok_or(Refusal::Bounds)?;
        self.bytes.get_mut(start..end).ok_or(Refusal::Bounds)
    }
}

impl Memory for Plain {
    fn place(&mut self, target: &Binding, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.placed += bytes.len();
        self.reach(target, offset, bytes.len()).map(|place| place.copy_from_slice(bytes))
    }
    fn signal(&mut self, target: &Binding, offset: u64, value: u64) -> Result<(), Refusal> {
        self.placed += 8;
        self.reach(target, offset, 8).map(|place| place.copy_from_slice(&value.to_le_bytes()))
    }
    fn notify(&mut self, target: &Binding, offset: u64, len: u64, _: u64) -> Result<(), Refusal> {
        self.reach(target, offset, usize::try_from(len).unwrap_or(usize::MAX)).map(drop)
    }
    fn read(&mut self, target: &Binding, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        let len = into.len();
        self.reach(target, offset, len).map(|place| into.copy_from_slice(place))
    }
    fn gather(&mut self, _: Buffer, _: u64, into: &mut [u8]) -> Result<(), Refusal> {
        into.fill(7);
        Ok(())
    }
    fn scatter(&mut self, _: Buffer, _: u64, _: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }
}

fn secret(byte: u8) -> Secret {
    Secret([byte; 32])
}

fn encrypted(send: u8, receive: u8) -> Keys {
    Keys::Encrypted { send: secret(send), receive: secret(receive) }
}

fn link(keys: &Keys) -> Link {
    Link::new(Config::default(), keys, Time::ZERO).unwrap()
}

/// All datagrams that a link wants to send now.
fn datagrams(link: &mut Link) -> Vec<Vec<u8>> {
    let (mut sent, mut buffer) = (Vec::new(), vec![0; 1500]);
    while let Some(transmit) = link.poll_transmit(Time::ZERO, &mut buffer, 1, &mut Plain::new()) {
        sent.push(buffer[..transmit.len].to_vec());
    }
    sent
}

/// Datagrams of a link that sends 3,000 bytes and a signal to an export.
fn traffic(keys: &Keys, binding: Binding, offset: u64) -> Vec<Vec<u8>> {
    let mut sender = link(keys);
    let import = sender.import(binding).unwrap();
    sender.send(import, offset, Buffer(0), 0, 3000).unwrap();
    sender.signal(import, 65_528, 9).unwrap();
    datagrams(&mut sender)
}

const GRANTED: Binding = Binding { export: 1, capability: CAPABILITY };

#[test]
fn a_replayed_packet_is_refused() {
    let mut receiver = link(&encrypted(2, 1));
    let mut memory = Plain::new();
    let sent = traffic(&encrypted(1, 2), GRANTED, 0);
    for datagram in &sent {
        receiver.handle_datagram(Time::ZERO, &mut datagram.clone(), &mut memory).unwrap();
    }
    let placed = memory.placed;
    assert_eq!(placed, 3008);
    for datagram in &sent {
        let again = receiver.handle_datagram(Time::ZERO, &mut datagram.clone(), &mut memory);
        assert_eq!(again, Err(Dropped::Repeated));
    }
    assert_eq!(memory.placed, placed);
}

#[test]
fn what_was_not_granted_is_refused_and_the_sender_learns_why() {
    let foreign = Binding { export: 2, capability: CAPABILITY };
    let guessed = Binding { export: 1, capability: CAPABILITY ^ 1 };
    for (binding, offset, reason) in [
        (foreign, 0, Refusal::Revoked),
        (guessed, 0, Refusal::Revoked),
        (GRANTED, 64_000, Refusal::Bounds),
        (GRANTED, u64::MAX - 4000, Refusal::Bounds),
    ] {
        let (mut sender, mut receiver) = (link(&encrypted(1, 2)), link(&encrypted(2, 1)));
        let mut memory = Plain::new();
        let import = sender.import(binding).unwrap();
        sender.send(import, offset, Buffer(0), 0, 3000).unwrap();
        for mut datagram in datagrams(&mut sender) {
            let _ = receiver.handle_datagram(Time::ZERO, &mut datagram, &mut memory);
        }
        for mut datagram in datagrams(&mut receiver) {
            sender.handle_datagram(Time::ZERO, &mut datagram, &mut memory).unwrap();
        }
        assert_eq!(sender.poll_event(), Some(Event::Refused { import, reason }));
    }
}

#[test]
fn a_peer_that_sends_nothing_but_gaps_is_remembered_within_bounds_and_may_close_them() {
    let (mut receiver, mut memory) = (link(&Keys::Plaintext), Plain::new());
    let mut number = 0;
    let mut send = |receiver: &mut Link, places: &[u64]| {
        let header = Header {
            key_phase: 0,
            ack_now: false,
            plaintext: true,
            path: 0,
            link: 0,
            incarnation: 0,
            number,
        };
        number += 1;
        let mut datagram = header.encode().to_vec();
        for place in places {
            // A send of one byte, whose sequence number is its place.
            datagram.extend([0x11, 0, 0, 0, 0, 0, 0]);
            datagram.extend(place.to_le_bytes());
            datagram.extend(GRANTED.export.to_le_bytes());
            datagram.extend(GRANTED.capability.to_le_bytes());
            datagram.extend(place.to_le_bytes());
            datagram.extend([1, 0, 9]);
        }
        datagram.extend(crc64(&datagram).to_le_bytes());
        receiver.handle_datagram(Time::ZERO, &mut datagram, &mut memory)
    };
    let odd: Vec<u64> = (0..10_000).map(|at| 2 * at + 1).collect();
    let refused =
        odd.chunks(20).filter(|places| send(&mut receiver, places) == Err(Dropped::NoRoom));
    assert!(refused.count() > 300);
    assert!((4000..4200).contains(&receiver.remembered()), "{} entries", receiver.remembered());
    // In order, everything finds room.
    for at in 0..10_000 {
        send(&mut receiver, &[2 * at, 2 * at + 1]).unwrap();
    }
    assert_eq!(receiver.remembered(), 0);
    assert_eq!(receiver.reached().next(), Some((0, 20_000)));
    assert!(memory.bytes[..20_000].iter().all(|byte| *byte == 9));
}

#[test]
fn plaintext_is_refused_where_encryption_was_agreed_and_the_other_way_round() {
    let mut memory = Plain::new();
    for (keys, traffic) in [
        (encrypted(2, 1), traffic(&Keys::Plaintext, GRANTED, 0)),
        (Keys::Plaintext, traffic(&encrypted(1, 2), GRANTED, 0)),
    ] {
        let mut receiver = link(&keys);
        for mut datagram in traffic {
            let dropped = receiver.handle_datagram(Time::ZERO, &mut datagram, &mut memory);
            assert_eq!(dropped, Err(Dropped::WrongMode));
        }
    }
    assert_eq!(memory.placed, 0);
}

proptest! {
    #[test]
    fn noise_is_parsed_without_panic(noise in proptest::collection::vec(any::<u8>(), 0..1600)) {
        let _ = Header::parse(&noise);
        for frame in Frames::new(&noise) {
            if let Ok(Frame::Ack(ack)) = frame {
                let mut last = None;
                for range in ack.ranges() {
                    prop_assert!(range.start() <= range.end());
                    prop_assert!(last.is_none_or(|lower| *range.end() < lower));
                    last = Some(*range.start());
                }
            }
        }
    }

    /// Frames of an authentic but hostile peer: a checksum is no secret.
    #[test]
    fn a_hostile_peer_reaches_nothing_and_is_remembered_within_bounds(
        packets in proptest::collection::vec(proptest::collection::vec(
            prop_oneof![Just(0x11_u8), Just(0x13), Just(0x15), Just(0x17), Just(2), Just(0x20), Just(0x24), any::<u8>()],
            1..200), 1..40),
        fields in proptest::collection::vec(any::<u8>(), 64),
    ) {
        let mut receiver = link(&Keys::Plaintext);
        let mut memory = Plain::new();
        let mut twin = link(&Keys::Plaintext);
        let import = twin.import(GRANTED).unwrap();
        for (count, noise) in packets.iter().enumerate() {
            // A real packet whose payload is exchanged for noise behind real beginnings of frames.
            twin.signal(import, 0, 1).unwrap();
            let Some(mut datagram) = datagrams(&mut twin).pop() else { continue };
            let head = datagram[..20].to_vec();
            datagram.clear();
            datagram.extend_from_slice(&head);
            datagram.extend_from_slice(noise);
            datagram.extend_from_slice(&fields[count % 32..]);
            let sum = crc64(&datagram);
            datagram.extend_from_slice(&sum.to_le_bytes());
            let _ = receiver.handle_datagram(Time::ZERO, &mut datagram, &mut memory);
            let _ = datagrams(&mut receiver);
        }
        prop_assert!(receiver.remembered() <= 16 << 10);
        prop_assert!(receiver.ended().is_none() || receiver.poll_event().is_some());
    }

    /// One bit is enough.
    #[test]
    fn an_altered_or_truncated_packet_has_no_effect(at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<bool>(), plain in any::<bool>()) {
        let (ours, theirs) = match plain {
            true => (Keys::Plaintext, Keys::Plaintext),
            false => (encrypted(1, 2), encrypted(2, 1)),
        };
        let mut receiver = link(&theirs);
        let mut memory = Plain::new();
        for mut datagram in traffic(&ours, GRANTED, 0) {
            let index = at.index(datagram.len());
            match cut {
                true => datagram.truncate(index),
                false => datagram[index] ^= 1 << bit,
            }
            prop_assert!(receiver.handle_datagram(Time::ZERO, &mut datagram, &mut memory).is_err());
        }
        prop_assert_eq!(memory.placed, 0);
        prop_assert_eq!(receiver.stats().packets_received, 0);
    }
}

/// CRC-64/NVME, bit by bit, to be sure of the other one.
fn crc64(bytes: &[u8]) -> u64 {
    let mut crc = u64::MAX;
    for &byte in bytes {
        crc ^= u64::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x9a6c_9329_ac4b_c9b5 } else { 0 };
        }
    }
    !crc
}
