//! A byte stream whose peer writes what it likes into the words: whatever they say, this side stays inside its rings.

#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use vmmc_shm::stream::{Receiver, Ring, Tier, Transmitter, Words};

#[derive(Debug, arbitrary::Arbitrary)]
enum Act {
    Send {
        len: u32,
        corked: bool,
    },
    Grow,
    Finish,
    Freeze,
    Receive {
        most: u32,
    },
    Settle,
    /// The peer writes into this side's words; most attacks are near what was there.
    Lie {
        at: u8,
        value: u64,
        relative: bool,
    },
}

/// A stream memory, and what bytes are copied from and to. What lies in the rings does not matter, so only the words
/// are made new for each input.
struct Memory {
    bytes: Vec<u64>,
}

thread_local! {
    static MEMORIES: RefCell<[Memory; 2]> = RefCell::new([Memory::new(), Memory::new()]);
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; Tier::Bulk.capacity()]);
}

impl Memory {
    fn new() -> Memory {
        // A line more than is needed, so that it can begin on one.
        Memory { bytes: vec![0; Tier::MEMORY / 8 + 8] }
    }

    fn start_anew(&mut self) -> *mut u8 {
        let start = self.bytes.as_mut_ptr().cast::<u8>();
        // SAFETY: at most 63 bytes on, which `new` has added.
        let start = unsafe { start.add(start.align_offset(64)) };
        // SAFETY: the words lie at the start, and zero is valid for them.
        unsafe { start.write_bytes(0, size_of::<Words>()) };
        start
    }
}

fuzz_target!(|acts: Vec<Act>| {
    MEMORIES.with_borrow_mut(|[mine, theirs]| {
        BUFFER.with_borrow_mut(|buffer| play(acts, mine.start_anew(), theirs.start_anew(), buffer));
    });
});

/// Both pointers are starts of stream memories; `buffer` is as long as the largest ring.
fn play(acts: Vec<Act>, mine: *mut u8, theirs: *mut u8, buffer: &mut [u8]) {
    // SAFETY: both memories are as large and aligned as a stream's, zero is valid, and they outlive the references.
    let (my_words, their_words) = unsafe { (&*mine.cast::<Words>(), &*theirs.cast::<Words>()) };
    let (sender, receiver) = (Transmitter::default(), Receiver::default());
    for act in acts {
        match act {
            Act::Send { len, corked } => {
                let tier = sender.tier();
                let len = sender.room(my_words, len as usize).min(len as usize);
                assert!(len <= tier.capacity());
                // SAFETY: the memory has room for every tier.
                let ring = unsafe { Ring::new(theirs, tier) };
                // SAFETY: `len` is at most the capacity.
                unsafe { ring.copy_in(sender.position(), buffer.as_ptr(), len) };
                let next = ring.advance(sender.position(), len);
                let _ = if corked {
                    sender.publish_corked(their_words, len, next)
                } else {
                    sender.publish(their_words, len, next)
                };
            }
            Act::Grow => drop(sender.grow(their_words)),
            Act::Finish => sender.finish(their_words),
            Act::Freeze => {
                receiver.freeze(my_words);
            }
            Act::Receive { most } => {
                let Ok(arrived) = receiver.arrived(my_words) else { continue };
                let tier = receiver.tier();
                assert!(arrived.len <= tier.capacity());
                let len = arrived.len.min(most as usize);
                // SAFETY: the memory has room for every tier.
                let ring = unsafe { Ring::new(mine, tier) };
                // SAFETY: `len` is at most the capacity, and so is the buffer's length.
                unsafe { ring.copy_out(receiver.position(), buffer.as_mut_ptr(), len) };
                receiver.consume(their_words, len, ring.advance(receiver.position(), len));
            }
            Act::Settle => {
                for piece in sender.unread_pieces(my_words) {
                    assert!(piece.len <= piece.tier.capacity());
                    // SAFETY: the memory has room for every tier.
                    let ring = unsafe { Ring::new(theirs, piece.tier) };
                    // SAFETY: `len` is at most the capacity, and so is the buffer's length.
                    unsafe { ring.copy_out(piece.position, buffer.as_mut_ptr(), piece.len) };
                }
            }
            Act::Lie { at, value, relative } => {
                let at = usize::from(at) % (size_of::<Words>() / 8);
                // SAFETY: inside the words, aligned; nobody else runs.
                unsafe {
                    let word = mine.cast::<u64>().add(at);
                    let before = if relative { word.read() } else { 0 };
                    word.write(before.wrapping_add(value));
                }
            }
        }
    }
}
