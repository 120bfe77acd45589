//! Packets of the link, from two kinds of enemies. A stranger has no key: whatever he sends, nothing happens. A hostile peer has it, or there is
//! none: he reaches nothing that was not granted, is remembered within bounds, and the link goes on working.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmmc_link::wire::{Frames, Header};
use vmmc_link::{Binding, Buffer, Config, Keys, Link, Memory, Refusal, Secret, Time};

/// What the peer may reach: some bytes of one export. `None`: nothing may happen at all.
struct Guarded(Option<[u8; 4096]>);

const GRANTED: Binding = Binding { export: 5, capability: 0x0123_4567_89ab_cdef };

impl Guarded {
    fn reach(&mut self, target: &Binding, offset: u64, len: u64) -> Result<&mut [u8], Refusal> {
        let bytes = self.0.as_mut().expect("what nobody protected had an effect");
        if *target != GRANTED {
            return Err(Refusal::Revoked);
        }
        let end = offset.checked_add(len).ok_or(Refusal::Bounds)?;
        bytes.get_mut(offset as usize..end as usize).ok_or(Refusal::Bounds)
    }
}

impl Memory for Guarded {
    fn place(&mut self, target: &Binding, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.reach(target, offset, bytes.len() as u64)?.copy_from_slice(bytes);
        Ok(())
    }
    fn signal(&mut self, target: &Binding, offset: u64, value: u64) -> Result<(), Refusal> {
        assert!(offset.is_multiple_of(8), "an unaligned word");
        self.place(target, offset, &value.to_le_bytes())
    }
    fn notify(&mut self, target: &Binding, offset: u64, len: u64, _: u64) -> Result<(), Refusal> {
        self.reach(target, offset, len).map(drop)
    }
    fn read(&mut self, target: &Binding, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        into.copy_from_slice(self.reach(target, offset, into.len() as u64)?);
        Ok(())
    }
    fn gather(&mut self, _: Buffer, _: u64, into: &mut [u8]) -> Result<(), Refusal> {
        into.fill(7);
        Ok(())
    }
    fn scatter(&mut self, _: Buffer, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        assert!(self.0.is_some(), "an answer that nobody protected was taken");
        assert!(offset + bytes.len() as u64 <= 10_000, "an answer beyond what was asked for");
        Ok(())
    }
}

#[derive(Debug, arbitrary::Arbitrary)]
enum Act {
    /// A datagram as it is.
    Datagram(Vec<u8>),
    /// Frames of a peer with the right header.
    Frames {
        path: bool,
        number: u16,
        frames: Vec<u8>,
    },
    /// One frame with real beginnings and a few fields.
    Frame {
        number: u16,
        kind: u8,
        channel: u8,
        generation: u8,
        sequence: u32,
        offset: u16,
        rest: Vec<u8>,
    },
    Wait {
        micros: u16,
    },
    Send {
        len: u16,
    },
    Fetch {
        len: u16,
    },
    Close,
}

fuzz_target!(|input: (bool, Vec<Act>)| {
    let (stranger, acts) = input;
    let keys = match stranger {
        true => Keys::Encrypted { send: Secret([1; 32]), receive: Secret([2; 32]) },
        false => Keys::Plaintext,
    };
    let config = Config { paths: 2, ..Config::default() };
    let mut link = Link::new(config, &keys, Time::ZERO).expect("the keys are keys");
    let mut memory = Guarded((!stranger).then_some([0; 4096]));
    let import = link.import(Binding { export: 0, capability: 0 }).expect("the first import");
    let (mut now, mut buffer) = (Time::ZERO, vec![0; 1500]);
    for act in acts {
        let mut datagram = match act {
            Act::Datagram(datagram) => datagram,
            Act::Frames { path, number, frames } => packet(path, number, &frames),
            Act::Frame { number, kind, channel, generation, sequence, offset, rest } => {
                packet(false, number, &frame(kind, channel, generation, sequence, offset, &rest))
            }
            Act::Wait { micros } => {
                now = Time::from_nanos(now.as_nanos() + u64::from(micros) * 1000);
                link.handle_timeout(now);
                Vec::new()
            }
            Act::Send { len } => {
                let _ = link.send(import, 0, Buffer(0), 0, u64::from(len));
                Vec::new()
            }
            Act::Fetch { len } => {
                let _ = link.fetch(import, 0, Buffer(0), 0, u64::from(len % 10_000));
                Vec::new()
            }
            Act::Close => {
                let _ = link.close_import(import);
                Vec::new()
            }
        };
        let _ = Header::parse(&datagram);
        for frame in Frames::new(&datagram) {
            if frame.is_err() {
                break;
            }
        }
        let _ = link.handle_datagram(now, &mut datagram, &mut memory);
        while link.poll_transmit(now, &mut buffer, 1, &mut memory).is_some() {}
        while link.poll_event().is_some() {}
        assert!(link.remembered() <= 16 << 10);
        let _ = link.poll_timeout();
    }
});

/// A packet of the peer, with the checksum of plaintext.
fn packet(path: bool, number: u16, frames: &[u8]) -> Vec<u8> {
    let header = Header {
        key_phase: 0,
        ack_now: false,
        plaintext: true,
        path: u8::from(path),
        link: 0,
        incarnation: 0,
        number: u64::from(number),
    };
    let mut datagram = header.encode().to_vec();
    datagram.extend_from_slice(frames);
    let sum = crc64(&datagram);
    datagram.extend_from_slice(&sum.to_le_bytes());
    datagram
}

fn frame(
    kind: u8,
    channel: u8,
    generation: u8,
    sequence: u32,
    offset: u16,
    rest: &[u8],
) -> Vec<u8> {
    const KINDS: [u8; 9] = [0x11, 0x13, 0x15, 0x17, 0x10, 0x12, 0x20, 0x22, 0x24];
    let kind = KINDS[usize::from(kind) % KINDS.len()];
    let mut frame = vec![kind];
    frame.extend_from_slice(&u16::from(channel % 4).to_le_bytes());
    frame.extend_from_slice(&u32::from(generation % 4).to_le_bytes());
    if kind < 0x22 {
        frame.extend_from_slice(&u64::from(sequence).to_le_bytes());
        if kind < 0x20 && kind & 1 == 1 {
            frame.extend_from_slice(&GRANTED.export.to_le_bytes());
            frame.extend_from_slice(&GRANTED.capability.to_le_bytes());
        }
        if kind < 0x20 {
            frame.extend_from_slice(&u64::from(offset).to_le_bytes());
        }
        if matches!(kind, 0x10 | 0x11 | 0x20) {
            frame.extend_from_slice(&(rest.len() as u16).to_le_bytes());
        }
    }
    frame.extend_from_slice(rest);
    frame
}

/// CRC-64/NVME, bit by bit.
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
