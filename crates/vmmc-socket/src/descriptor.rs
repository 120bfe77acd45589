//! What each descriptor number of this process is to the layer: one word a number, looked up without a lock.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};

use crate::kernel::{self, Errno};
use crate::layer;

/// Numbers from here on are never lifted (`fs.nr_open` is 1,048,576 by default).
const NUMBERS: usize = 1 << 20;

/// Entries are zero (nothing to us) until set, so the table costs only the pages that are used.
static TABLE: [AtomicU32; NUMBERS] = [const { AtomicU32::new(0) }; NUMBERS];

/// No number from here on was ever entered.
static TOP: AtomicI32 = AtomicI32::new(0);

/// Counts entries and removals.
static CHANGES: AtomicU32 = AtomicU32::new(0);

/// How many are the layer's own.
static OWNED: AtomicUsize = AtomicUsize::new(0);

/// The kernel's table of this process's descriptors reaches the layer's own numbers.
static REACHES: AtomicBool = AtomicBool::new(false);

/// Nothing or kind in the two top bits, index below.
const CONNECTION: u32 = 1 << 30;
const SET: u32 = 2 << 30;
const OWN: u32 = 3 << 30;
const INDEX: u32 = CONNECTION - 1;

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not the layer's business.
    Other,
    /// A TCP connection, by its slot.
    Connection(u32),
    /// An epoll object, by its number among the sets.
    Set(u32),
    /// The layer's own: the program must not close it.
    Own,
}

/// What `fd` is.
#[inline]
pub(crate) fn kind(fd: i32) -> Kind {
    let Some(entry) = TABLE.get(fd as usize) else { return Kind::Other };
    let word = entry.load(Ordering::Acquire);
    match word & !INDEX {
        CONNECTION => Kind::Connection(word & INDEX),
        SET => Kind::Set(word & INDEX),
        OWN => Kind::Own,
        _ => Kind::Other,
    }
}

/// The slot of the connection `fd`, if it is one.
#[inline]
pub(crate) fn connection(fd: i32) -> Option<u32> {
    let word = TABLE.get(fd as usize)?.load(Ordering::Acquire);
    (word & !INDEX == CONNECTION).then_some(word & INDEX)
}

/// Enters `fd`; false if the number is out of the table's range.
pub(crate) fn enter(fd: i32, kind: Kind) -> bool {
    let word = match kind {
        Kind::Other => 0,
        Kind::Connection(index) => CONNECTION | index,
        Kind::Set(index) => SET | index,
        Kind::Own => OWN,
    };
    let Some(entry) = TABLE.get(fd as usize) else { return false };
    TOP.fetch_max(fd + 1, Ordering::Relaxed);
    let was = entry.swap(word, Ordering::AcqRel);
    CHANGES.fetch_add(1, Ordering::Release);
    count(was, -1);
    count(word, 1);
    true
}

fn count(word: u32, change: isize) {
    if word == OWN {
        OWNED.fetch_add(change as usize, Ordering::Relaxed);
    }
}

/// While it is the same, each number means what it did.
#[inline]
pub(crate) fn changes() -> u32 {
    CHANGES.load(Ordering::Acquire)
}

/// How many are the layer's own.
pub(crate) fn owned() -> usize {
    OWNED.load(Ordering::Relaxed)
}

/// Takes `fd` out if it still is `was`: one of two threads that close the same number does it.
pub(crate) fn remove(fd: i32, was: Kind) -> bool {
    let word = match was {
        Kind::Connection(index) => CONNECTION | index,
        Kind::Set(index) => SET | index,
        Kind::Own => OWN,
        Kind::Other => return false,
    };
    TABLE.get(fd as usize).is_some_and(|entry| {
        let removed = entry.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if removed {
            CHANGES.fetch_add(1, Ordering::Release);
            count(word, -1);
        }
        removed
    })
}

/// Lets the kernel's table of descriptors grow to the layer's own numbers, once.
///
/// The table grows as the highest number demands and never shrinks. In a process of one thread that takes 20 µs; with more it
/// waits until no processor can read the old table (`expand_fdtable` in the kernel's `fs/file.c`), 15 to 30 ms measured, which the
/// first lifted connection would wait too.
pub(crate) fn reach() {
    if REACHES.swap(true, Ordering::Relaxed) {
        return;
    }
    // What every filter of system calls lets through, and what no lock hangs on.
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    let opened = kernel::call!(SYS_openat, libc::AT_FDCWD, c"/".as_ptr(), flags, 0);
    let Ok(low) = opened else { return };
    if let Ok(high) = kernel::call!(SYS_fcntl, low, libc::F_DUPFD_CLOEXEC, layer::floor()) {
        let _ = kernel::call!(SYS_close, high);
    }
    let _ = kernel::call!(SYS_close, low);
}

/// A child of fork begins with a table as large as its open descriptors need.
pub(crate) fn forked() {
    REACHES.store(false, Ordering::Relaxed);
}

/// A descriptor that only the layer uses; closed when dropped.
#[derive(Debug)]
pub(crate) struct Own(i32);

impl Own {
    /// Moves what the kernel has just made to where the layer keeps its own.
    ///
    /// # Errors
    /// If there is no number left there; `low` is closed.
    pub(crate) fn raise(low: usize) -> Result<Self, Errno> {
        let high = kernel::call!(SYS_fcntl, low, libc::F_DUPFD_CLOEXEC, layer::floor());
        let _ = kernel::call!(SYS_close, low);
        let fd = high? as i32;
        enter(fd, Kind::Own);
        Ok(Self(fd))
    }

    pub(crate) fn number(&self) -> i32 {
        self.0
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        remove(self.0, Kind::Own);
        let _ = kernel::call!(SYS_close, self.0);
    }
}

/// All entered numbers from `first` to `last` with what they are.
pub(crate) fn between(first: i32, last: i32) -> impl Iterator<Item = (i32, Kind)> {
    let top = TOP.load(Ordering::Relaxed).min(last.saturating_add(1));
    (first.max(0)..top).map(|fd| (fd, kind(fd))).filter(|(_, kind)| *kind != Kind::Other)
}
