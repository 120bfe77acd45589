//! What each descriptor number of this process is to the layer: one word a number, looked up without a lock.

use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vmmc::descriptor::Descriptor;

use crate::kernel::{self, Errno};
use crate::layer::STRUCTURE;
use crate::{layer, own_numbers, thread, visit};

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

/// Nothing or kind in the three top bits, index below. Nothing, and below the number of a thread: that thread has the kernel give the number another meaning just now.
const CONNECTION: u32 = 1 << 29;
const SET: u32 = 2 << 29;
const OWN: u32 = 3 << 29;
const RING: u32 = 4 << 29;
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
    /// An io_uring of the program's that is followed, by its place.
    Ring(u32),
    /// The layer's own: the program must not close it.
    Own,
}

/// What `fd` is.
#[inline]
pub(crate) fn kind(fd: i32) -> Kind {
    Kind::of(meant(fd, entered(fd)))
}

/// What stands in the table, which is about the descriptors of the process that the layer is at home in.
#[inline]
fn entered(fd: i32) -> u32 {
    TABLE.get(fd as usize).map_or(0, |entry| entry.load(Ordering::Acquire))
}

/// What the number is to this process, which may be a child of vfork, if it is `word` in the table.
#[inline]
fn meant(fd: i32, word: u32) -> u32 {
    if visit::may_be() && visit::is_other(fd, Kind::of(word)) { 0 } else { word }
}

impl Kind {
    fn of(word: u32) -> Self {
        match word & !INDEX {
            CONNECTION => Self::Connection(word & INDEX),
            SET => Self::Set(word & INDEX),
            RING => Self::Ring(word & INDEX),
            OWN => Self::Own,
            _ => Self::Other,
        }
    }

    /// As it stands in the table.
    fn word(self) -> u32 {
        match self {
            Self::Other => 0,
            Self::Connection(index) => CONNECTION | index,
            Self::Set(index) => SET | index,
            Self::Ring(index) => RING | index,
            Self::Own => OWN,
        }
    }
}

/// The slot of the connection `fd`, if it is one.
#[inline]
pub(crate) fn connection(fd: i32) -> Option<u32> {
    let word = entered(fd);
    (word & !INDEX == CONNECTION && meant(fd, word) == word).then_some(word & INDEX)
}

/// As [`connection`], for a call that begins: what another thread is about to make of the number is waited for. In the kernel the call would meet what the number
/// is then; for bytes on TCP it would wait in vain where those come by a ring.
#[inline]
pub(crate) fn connection_called(fd: i32) -> Option<u32> {
    match kind_called(fd) {
        Kind::Connection(index) => Some(index),
        _ => None,
    }
}

/// As [`kind`], for a call that begins; see [`connection_called`].
#[inline]
pub(crate) fn kind_called(fd: i32) -> Kind {
    let Some(entry) = TABLE.get(fd as usize) else { return Kind::Other };
    let word = entry.load(Ordering::Acquire);
    Kind::of(meant(fd, if is_changing(word) { await_change(entry) } else { word }))
}

#[inline]
fn is_changing(word: u32) -> bool {
    word & !INDEX == 0 && word != 0
}

/// What the number means then.
#[cold]
fn await_change(entry: &AtomicU32) -> u32 {
    /// A thread that has left its `close` by `longjmp` says no more that it is done.
    const PATIENCE: Duration = Duration::from_secs(1);
    const PAUSE: Duration = Duration::from_micros(50);
    let begin = Instant::now();
    loop {
        let word = entry.load(Ordering::Acquire);
        // This thread's own: a signal handler in the middle of its `close`.
        if !is_changing(word) || word == thread::id() || layer::confined() {
            return word;
        }
        if begin.elapsed() > PATIENCE {
            let _ = entry.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed);
            return 0;
        }
        kernel::pause(PAUSE);
    }
}

/// The numbers from `first` to `last` are about to mean something else; until this is dropped calls that begin on what they meant to the layer wait.
#[derive(Debug)]
#[must_use = "keep it until the kernel has closed or replaced them"]
pub struct Changing {
    first: i32,
    last: i32,
    /// Who waits waits for this thread; 0: there is nobody to wait.
    thread: u32,
}

impl Changing {
    /// They mean nothing to the layer.
    pub(crate) fn nothing() -> Self {
        Self { first: 0, last: -1, thread: 0 }
    }

    pub(crate) fn between(first: i32, last: i32) -> Self {
        let alone = thread::alone() || layer::confined();
        Self { first, last, thread: if alone { 0 } else { thread::id() } }
    }

    /// Takes out `fd`, which is among the numbers, as [`remove`] does.
    pub(crate) fn begin(&self, fd: i32, was: Kind) -> bool {
        replace(fd, was, self.thread)
    }

    /// As [`Changing::begin`], of the one number, which has been nothing.
    pub(crate) fn begin_use(&self) {
        if let Some(entry) = TABLE.get(self.first as usize) {
            TOP.fetch_max(self.last + 1, Ordering::Relaxed);
            let _ = entry.compare_exchange(0, self.thread, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        if self.thread == 0 {
            return;
        }
        let end = TOP.load(Ordering::Relaxed).min(self.last.saturating_add(1)).max(0);
        for entry in TABLE.iter().take(end as usize).skip(self.first.max(0) as usize) {
            if entry.load(Ordering::Relaxed) == self.thread {
                let _ = entry.compare_exchange(self.thread, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }
}

/// Enters `fd`; false if the number is out of the table's range.
pub(crate) fn enter(fd: i32, kind: Kind) -> bool {
    let word = kind.word();
    let Some(entry) = TABLE.get(fd as usize) else { return false };
    TOP.fetch_max(fd + 1, Ordering::Relaxed);
    if kind == Kind::Own {
        own_numbers::note(fd);
    }
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

/// From now on each number may mean something else.
pub(crate) fn mean_anew() {
    CHANGES.fetch_add(1, Ordering::Release);
}

/// How many are the layer's own.
pub(crate) fn owned() -> usize {
    OWNED.load(Ordering::Relaxed)
}

/// Takes `fd` out if it still is `was`: one of two threads that close the same number does it.
pub(crate) fn remove(fd: i32, was: Kind) -> bool {
    replace(fd, was, 0)
}

fn replace(fd: i32, was: Kind, new: u32) -> bool {
    let word = was.word();
    if was == Kind::Other {
        return false;
    }
    TABLE.get(fd as usize).is_some_and(|entry| {
        let removed =
            entry.compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed).is_ok();
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
    if let Some(Ok(high)) = STRUCTURE.with_unless_borrowed(|_| above(low as i32)) {
        let _ = kernel::call!(SYS_close, high);
    }
    let _ = kernel::call!(SYS_close, low);
}

/// Whether the kernel's table has been made to reach the layer's own numbers.
pub(crate) fn is_reached() -> bool {
    REACHES.load(Ordering::Relaxed)
}

/// A child of fork begins with a table as large as its open descriptors need.
pub(crate) fn forked() {
    REACHES.store(false, Ordering::Relaxed);
}

/// The number of a new descriptor for the same open file, where the layer keeps its own. The structure's lock is held.
///
/// # Errors
/// If there is no number left there.
pub(crate) fn above(fd: i32) -> Result<i32, Errno> {
    // SAFETY: a number that is not negative, for the calls of this function.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let made = Descriptor::duplicate_above(fd, own_numbers::floor())
        .map_err(|error| Errno(error.raw_os_error()))?;
    let made = OwnedFd::from(made).into_raw_fd();
    own_numbers::note(made);
    Ok(made)
}

/// A descriptor that only the layer uses; closed when dropped.
#[derive(Debug)]
pub(crate) struct Own(i32);

impl Own {
    /// Moves what the kernel has just made to where the layer keeps its own. The structure's lock is held, or who closes all that is there could come between.
    ///
    /// # Errors
    /// If there is no number left there; `low` is closed.
    pub(crate) fn raise(low: usize) -> Result<Self, Errno> {
        let high = above(low as i32);
        let _ = kernel::call!(SYS_close, low);
        let fd = high?;
        enter(fd, Kind::Own);
        Ok(Self(fd))
    }

    pub(crate) fn number(&self) -> i32 {
        self.0
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let changing = Changing::between(self.0, self.0);
        changing.begin(self.0, Kind::Own);
        let _ = kernel::call!(SYS_close, self.0);
    }
}

/// All entered numbers from `first` to `last` with what they are, though to a child of vfork they may be something else.
pub(crate) fn between(first: i32, last: i32) -> impl Iterator<Item = (i32, Kind)> {
    let top = TOP.load(Ordering::Relaxed).min(last.saturating_add(1));
    (first.max(0)..top)
        .map(|fd| (fd, Kind::of(entered(fd))))
        .filter(|(_, kind)| *kind != Kind::Other)
}

/// The numbers from `first` to `last` that may mean something to the layer.
pub(crate) fn numbers(first: u32, last: u32) -> impl Iterator<Item = i32> {
    let top = TOP.load(Ordering::Relaxed);
    let [first, end] = [first, last.saturating_add(1)]
        .map(|number| i32::try_from(number).map_or(top, |number| number.min(top)));
    first..end
}

/// Whether another thread gives the number another meaning just now.
pub(crate) fn is_changing_elsewhere(fd: i32) -> bool {
    TABLE.get(fd as usize).is_some_and(|entry| {
        let word = entry.load(Ordering::Acquire);
        is_changing(word) && word != thread::id()
    })
}
