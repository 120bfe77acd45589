//! The program's io_urings.
//!
//! A ring carries calls past every hook, so a program that has one is not lifted, with one exception. libuv (Node, uvloop, Neovim,
//! `named`) makes a ring for each of its loops and has nothing but `epoll_ctl` done by it. Such a ring is *followed*: the entries that are about to
//! be submitted are looked through, the layer does what they say of its connections, as it does for the call, and leaves in their
//! places entries that come to the same result. The first entry that says anything else is the end of that, for all of the program.
//!
//! Only a ring that the kernel reads when it is told to, by a `syscall` that this layer sees, can be followed.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::descriptor::{self, Kind};
use crate::kernel::{self, Errno};
use crate::lower::{lower_for, lower_for_uring};
use crate::slot::Why;
use crate::{epoll, layer};

pub(crate) mod memory;

pub use memory::Parameters;
use memory::{ARRAY, ENTRIES, Entry, HEAD, Mapping, QUEUES, TAIL};

/// Rings of one process that are followed at the same time.
const RINGS: usize = 256;
const ENTRIES_AT_MOST: u32 = 32 * 1024;

static TABLE: [Place; RINGS] = [const { Place::new() }; RINGS];

/// What `IORING_SETUP_` flags may say of a ring that is followed: its size, and how its answers come.
const KNOWN: u32 = NO_ARRAY | 1 << 3 | 1 << 4 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 12 | 1 << 13;
const NO_ARRAY: u32 = 1 << 16;

/// Flag of `io_uring_enter`: its number is none of a descriptor.
const REGISTERED: u32 = 1 << 4;

const NOP: u8 = 0;
/// Of what does not exist: `ENOENT`.
const CANCEL: u8 = 14;
const EPOLL_CTL: u8 = 29;

/// What `io_uring_register` may do to a ring that is followed: an `eventfd` for its answers, and questions.
const HARMLESS: [u32; 4] = [4, 5, 7, 8];

/// Where one ring stands in the table.
#[derive(Debug)]
struct Place {
    /// Who uses the ring, one of them the descriptor; 0: the place is free.
    users: AtomicU32,
    ring: UnsafeCell<Option<Ring>>,
}

// SAFETY: `ring` is written by whoever has made `users` not zero, or has just left as the last, and read by users only.
unsafe impl Sync for Place {}

/// The last user of a place clears it.
const CLEARING: u32 = u32::MAX;

impl Place {
    const fn new() -> Self {
        Self { users: AtomicU32::new(0), ring: UnsafeCell::new(None) }
    }

    fn fill(&self, ring: Ring) -> Result<(), Ring> {
        let taken =
            self.users.compare_exchange(0, CLEARING, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if !taken {
            return Err(ring);
        }
        // SAFETY: nobody else is here before the count says so.
        unsafe { *self.ring.get() = Some(ring) };
        self.users.store(1, Ordering::Release);
        Ok(())
    }

    /// Uses the ring, unless it has just been closed.
    fn with<R>(&self, use_it: impl FnOnce(&Ring) -> R) -> Option<R> {
        let more = |users| (users != 0 && users != CLEARING).then(|| users + 1);
        self.users.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).ok()?;
        // SAFETY: this is a user.
        let result = unsafe { &*self.ring.get() }.as_ref().map(use_it);
        self.leave();
        result
    }

    fn leave(&self) {
        let less = |users| Some(if users == 1 { CLEARING } else { users - 1 });
        if self.users.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less) == Ok(1) {
            // SAFETY: the last user has left, and nobody comes before the place is free.
            drop(unsafe { (*self.ring.get()).take() });
            self.users.store(0, Ordering::Release);
        }
    }
}

/// A ring of the program's that is followed.
#[derive(Debug)]
struct Ring {
    queues: Mapping,
    entries: Mapping,
    head: u32,
    tail: u32,
    /// Where the entries' order stands, unless they are in order.
    array: Option<u32>,
    mask: u32,
}

impl Ring {
    /// The ring `fd` that the kernel has just made; an error where it cannot be followed.
    fn new(fd: i32, parameters: &Parameters) -> Result<Self, Errno> {
        let Parameters { entries, flags, submission, .. } = *parameters;
        if flags & !KNOWN != 0 || !entries.is_power_of_two() || entries > ENTRIES_AT_MOST {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        let array = (flags & NO_ARRAY == 0).then_some(submission[ARRAY]);
        let words = submission[HEAD].max(submission[TAIL]) + 4;
        let size = array.map_or(words, |array| words.max(array + 4 * entries));
        Ok(Self {
            queues: Mapping::new(fd, QUEUES, size as usize)?,
            entries: Mapping::new(fd, ENTRIES, entries as usize * size_of::<Entry>())?,
            head: submission[HEAD],
            tail: submission[TAIL],
            array,
            mask: entries - 1,
        })
    }

    /// Does what the next `count` entries say of lifted connections. Whether all are such as may be submitted.
    fn look_through(&self, count: u32) -> bool {
        let word = |at| self.queues.word(at).load(Ordering::Acquire);
        let head = word(self.head);
        let count = word(self.tail).wrapping_sub(head).min(count).min(self.mask + 1);
        (0..count).all(|at| {
            let at = head.wrapping_add(at) & self.mask;
            let place = self.array.map_or(at, |array| word(array + 4 * at));
            // The kernel takes no other.
            place > self.mask || carry(self.entries.entry(place))
        })
    }
}

/// Does what the entry says of a lifted connection. Whether it may be submitted.
fn carry(place: *mut Entry) -> bool {
    // SAFETY: in the mapping, aligned; the program writes there and not meanwhile, if it wants it read at all.
    let entry = unsafe { place.read_volatile() };
    let Entry { fd, offset, address, length, name, .. } = entry;
    if entry == (Entry { operation: NOP, name, ..Entry::default() }) {
        return true;
    }
    let plain =
        Entry { operation: EPOLL_CTL, fd, offset, address, length, name, ..Entry::default() };
    if entry != plain {
        return false;
    }
    let event = address as *const libc::epoll_event;
    // SAFETY: the program's event, as for the call.
    let event = kernel::may_be_memory(event)
        .then(|| unsafe { event.read_unaligned() })
        .map(|event| (event.events, event.u64));
    let target = offset as i32;
    let crate::Route::Done(outcome) = epoll::control(fd, length as i32, target, event) else {
        return true;
    };
    let operation = match outcome {
        Ok(_) => NOP,
        Err(Errno(libc::ENOENT)) => CANCEL,
        // The kernel knows it too.
        Err(Errno(libc::EEXIST)) => return true,
        Err(_) => {
            lower_for(target, Why::Set);
            return true;
        }
    };
    // SAFETY: as above.
    unsafe { place.write_volatile(Entry { operation, name, ..Entry::default() }) };
    true
}

/// The kernel has made the ring `fd`. The program does not know its number yet.
pub fn made(fd: i32, parameters: &Parameters) {
    if follow(fd, parameters).is_none() {
        lower_for_uring();
    }
}

fn follow(fd: i32, parameters: &Parameters) -> Option<()> {
    if !layer::at_home() || descriptor::kind(fd) != Kind::Other {
        return None;
    }
    let mut ring = Ring::new(fd, parameters).ok()?;
    for (number, place) in (0..).zip(&TABLE) {
        match place.fill(ring) {
            Ok(()) if descriptor::enter(fd, Kind::Ring(number)) => return Some(()),
            Ok(()) => {
                place.leave();
                return None;
            }
            Err(back) => ring = back,
        }
    }
    None
}

/// The program is about to have the kernel take `count` entries of the ring `fd`.
pub fn entering(fd: i32, count: u32, flags: u32) {
    let knows = match descriptor::kind_called(fd) {
        Kind::Ring(number) if flags & REGISTERED == 0 => {
            TABLE[number as usize].with(|ring| ring.look_through(count))
        }
        _ => None,
    };
    if knows != Some(true) {
        lower_for_uring();
    }
}

/// The program is about to call `io_uring_register` on the ring `fd`.
pub fn registering(operation: u32) {
    if !HARMLESS.contains(&operation) {
        lower_for_uring();
    }
}

/// The number of a ring is about to be closed.
pub(crate) fn closing(fd: i32, number: u32) {
    if descriptor::remove(fd, Kind::Ring(number)) {
        TABLE[number as usize].leave();
    }
}
