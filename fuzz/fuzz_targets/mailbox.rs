//! A mailbox that senders scribble in: its owner takes in bounded work, and at most as much as there is room for.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmmc_shm::mailbox::{Mailbox, Note};

#[repr(align(64))]
struct Memory([u8; Mailbox::LEN]);

#[derive(Debug, arbitrary::Arbitrary)]
enum Act {
    Push {
        offset: u64,
        len: u64,
        last_word: u64,
    },
    Take,
    /// The exporter is about to sleep.
    Sleep {
        generation: u64,
    },
    /// Bytes that a hostile sender writes somewhere.
    Scribble {
        at: u16,
        bytes: Vec<u8>,
    },
}

fuzz_target!(|acts: Vec<Act>| {
    let mut memory = Box::new(Memory([0; Mailbox::LEN]));
    let start = memory.0.as_mut_ptr();
    // SAFETY: as large and aligned as a mailbox has to be, and it outlives every use of this reference.
    let mailbox = unsafe { Mailbox::at(start) };
    for act in acts {
        match act {
            Act::Push { offset, len, last_word } => {
                if let Some(sleep) = mailbox.push(Note { offset, len, last_word }) {
                    mailbox.rung(sleep);
                }
            }
            Act::Sleep { generation } => mailbox.announce_sleep(generation),
            Act::Take => drop(mailbox.take()),
            Act::Scribble { at, bytes } => {
                let at = usize::from(at) % Mailbox::LEN;
                let len = bytes.len().min(Mailbox::LEN - at);
                // SAFETY: the range lies inside the memory; nobody else runs.
                unsafe { start.add(at).copy_from_nonoverlapping(bytes.as_ptr(), len) };
            }
        }
    }
});
