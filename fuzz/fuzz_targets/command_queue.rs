//! A command queue in memory that both sides scribble in: neither reaches a slot that is not there, and the engine takes
//! at most one command a look.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmmc_shm::command::{Claim, Command, CommandQueue, Direction, Outcome, SLOTS, Taker};

#[repr(align(128))]
struct Memory([u8; CommandQueue::LEN]);

#[derive(Debug, arbitrary::Arbitrary)]
enum Act {
    Claim,
    Post {
        handle: u64,
        offset: u64,
        len: u64,
        signal: Option<(u64, u64)>,
    },
    Reap {
        slot: usize,
    },
    /// The engine takes one command and completes it.
    Execute {
        done: bool,
    },
    Sleep,
    /// Bytes that the other side writes somewhere.
    Scribble {
        at: u16,
        bytes: Vec<u8>,
    },
}

fuzz_target!(|acts: Vec<Act>| {
    let mut memory = Box::new(Memory([0; CommandQueue::LEN]));
    let start = memory.0.as_mut_ptr();
    // SAFETY: as large and aligned as a queue has to be, and it outlives every use of this reference.
    let queue = unsafe { CommandQueue::at(start) };
    let mut taker = Taker::default();
    let mut claims: Vec<Claim> = Vec::new();
    for act in acts {
        match act {
            Act::Claim => claims.extend(queue.claim()),
            Act::Post { handle, offset, len, signal } => {
                if let Some(claim) = claims.pop() {
                    assert!(claim.slot() < SLOTS);
                    let command = Command {
                        direction: Direction::Send,
                        handle,
                        offset,
                        len,
                        local: 0,
                        signal,
                        notify: None,
                    };
                    let _ = queue.post(claim, &command);
                }
            }
            Act::Reap { slot } => drop(queue.reap(slot, |outcome| outcome)),
            Act::Execute { done } => {
                if let Some((slot, _)) = queue.take(&taker) {
                    assert!(slot < SLOTS);
                    queue.complete(&mut taker, if done { Outcome::Done } else { Outcome::Range });
                    let _ = queue.announce_completions();
                }
            }
            Act::Sleep => drop(queue.announce_sleep(&taker)),
            Act::Scribble { at, bytes } => {
                let at = usize::from(at) % CommandQueue::LEN;
                let len = bytes.len().min(CommandQueue::LEN - at);
                // SAFETY: the range lies inside the memory; nobody else runs.
                unsafe { start.add(at).copy_from_nonoverlapping(bytes.as_ptr(), len) };
            }
        }
    }
});
