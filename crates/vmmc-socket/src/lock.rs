//! The lock of one direction of one connection, in memory that the processes of one fork family share.
//!
//! It must survive what ordinary mutexes do not: its owner may be killed, or, where its signals could not be put off (see
//! [`crate::signals`]), have left by `longjmp` out of a handler, or be this very thread, in a handler that uses the same socket. The
//! word holds the owner's thread id, so all three can be told apart. What the lock protects is transactional (indices are
//! published last), so taking it over from an owner that is gone is harmless, but for what that may have left between two stores
//! ([`Lock::is_orphaned`]).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::kernel::{self, Doing};
use crate::signals::Inside;
use crate::{signals, thread};

const SLEEPERS: u32 = 1 << 31;
/// See [`Lock::lend`].
const LENT: u32 = 1 << 30;

/// See the module's text.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Lock(AtomicU32, AtomicBool);

/// The lock is held until this is dropped, and handlers wait for that (see [`crate::signals`]).
#[derive(Debug)]
pub(crate) struct Held<'a> {
    lock: &'a Lock,
    /// Who gets it back: the word that it was lent with; 0: nobody.
    lender: u32,
    /// Dropped after the lock is free.
    inside: Inside,
}

impl Held<'_> {
    /// See [`crate::signals::forget_handled`].
    #[inline]
    pub(crate) fn forget_handled(&self) {
        self.inside.forget_handled();
    }
}

impl Lock {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0), AtomicBool::new(false))
    }

    /// Frees the lock whoever holds it: after a fork, whose child has none of the parent's threads.
    #[inline]
    pub(crate) fn break_open(&self) {
        if self.0.swap(0, Ordering::Release) & SLEEPERS != 0 {
            kernel::futex_wake(&self.0, 1);
        }
    }

    /// Takes the lock. A thread that holds it already (it left without unlocking, or is in a signal handler that could not
    /// wait) gets it again.
    #[inline]
    pub(crate) fn hold(&self) -> Held<'_> {
        let inside = Inside::enter();
        #[cfg(chaos)]
        vmmc::chaos::pause(20);
        let lender = self.take();
        #[cfg(chaos)]
        vmmc::chaos::pause(20);
        Held { lock: self, lender, inside }
    }

    /// Takes the lock until [`Lock::break_open`].
    pub(crate) fn keep(&self) {
        let _inside = Inside::enter();
        self.take();
    }

    /// From now on the lock, which this thread keeps, is lent to a signal handler that waits for it while this thread sleeps for another lock, of the C library's,
    /// and does not get on: that may be one that the handler's thread had taken before.
    pub(crate) fn lend(&self) {
        self.0.fetch_or(LENT, Ordering::Relaxed);
    }

    /// Takes it; the word of who lends it, or 0.
    #[inline]
    fn take(&self) -> u32 {
        let me = thread::id();
        match self.0.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => 0,
            Err(_) => self.take_contended(me),
        }
    }

    /// As [`Lock::hold`], but not if this thread has it already, further up: what is in use there stays as it is.
    pub(crate) fn hold_anew(&self) -> Option<Held<'_>> {
        (!self.is_mine()).then(|| self.hold())
    }

    /// Whether this thread has it.
    pub(crate) fn is_mine(&self) -> bool {
        self.owner() == thread::id()
    }

    /// The thread that has it; 0: none.
    pub(crate) fn owner(&self) -> u32 {
        self.0.load(Ordering::Relaxed) & !(SLEEPERS | LENT)
    }

    /// Whether the lock was taken over from an owner that is gone since this was last asked. It is held.
    #[inline]
    pub(crate) fn is_orphaned(&self) -> bool {
        self.1.load(Ordering::Relaxed) && self.1.swap(false, Ordering::Relaxed)
    }

    #[cold]
    fn take_contended(&self, me: u32) -> u32 {
        let (mut round, mut stuck) = (0u32, Stuck::default());
        loop {
            let word = self.0.load(Ordering::Relaxed);
            let owner = word & !(SLEEPERS | LENT);
            let gone = owner != 0
                && (owner == me || (round > 64 && round % 64 == 1 && !kernel::exists(owner)));
            let lends = word & LENT != 0
                && (owner == me || round > 64 && signals::is_in_handler() && stuck.is(owner));
            if owner == 0 || gone || lends {
                // Sleepers are presumed: a needless wake-up is cheaper than a lost one.
                if self
                    .0
                    .compare_exchange(word, me | SLEEPERS, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
                {
                    if gone && owner != me {
                        self.1.store(true, Ordering::Relaxed);
                    }
                    return if lends { word } else { 0 };
                }
            } else if round < 64 {
                std::hint::spin_loop();
            } else if word & SLEEPERS != 0
                || self
                    .0
                    .compare_exchange(word, word | SLEEPERS, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
            {
                kernel::futex_wait(&self.0, word | SLEEPERS, Duration::from_millis(2));
            }
            round = round.wrapping_add(1);
        }
    }
}

/// In which lock a thread was seen to sleep, and since when.
#[derive(Default)]
struct Stuck(Option<(u32, usize, Instant)>);

impl Stuck {
    /// Whether the thread of this process sleeps for one lock and has for long: who merely has to wait for it gets it sooner.
    #[cold]
    fn is(&mut self, thread: u32) -> bool {
        const LONG: Duration = Duration::from_millis(20);
        const WAITS: usize = libc::SYS_futex as usize;
        let Some(Doing::Call([WAITS, lock, _])) = kernel::what_does(thread) else {
            self.0 = None;
            return false;
        };
        match self.0 {
            Some((same, at, since)) if (same, at) == (thread, lock) => since.elapsed() > LONG,
            _ => {
                self.0 = Some((thread, lock, Instant::now()));
                false
            }
        }
    }
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.lender == 0 {
            return self.lock.break_open();
        }
        // Unless who has lent it frees it just now: it does not fork before this thread has gone on.
        let mine = self.lock.0.load(Ordering::Relaxed);
        if mine & !SLEEPERS == thread::id() {
            let _ = self.lock.0.compare_exchange(
                mine,
                self.lender | SLEEPERS,
                Ordering::Release,
                Ordering::Relaxed,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::UnsafeCell;

    use super::*;

    #[derive(Default)]
    struct Counted(Lock, UnsafeCell<u64>);
    // SAFETY: the test touches the cell only with the lock held.
    unsafe impl Sync for Counted {}

    impl Counted {
        fn count(&self) {
            let _held = self.0.hold();
            // SAFETY: the lock is held.
            unsafe { *self.1.get() += 1 };
        }
    }

    #[test]
    fn excludes_other_threads() {
        let counted = Counted::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        counted.count();
                    }
                });
            }
        });
        assert_eq!(counted.1.into_inner(), 80_000);
    }

    #[test]
    fn is_taken_over_from_a_thread_that_is_gone() {
        let lock = Lock::default();
        std::thread::scope(|scope| {
            scope.spawn(|| lock.keep());
        });
        drop(lock.hold());
        assert!(lock.is_orphaned());
        drop(lock.hold());
        assert!(!lock.is_orphaned(), "that was from this thread");
    }

    #[test]
    fn can_be_taken_again_by_its_owner() {
        let lock = Lock::default();
        lock.keep();
        assert!(lock.hold_anew().is_none(), "it is this thread's");
        drop(lock.hold());
        assert!(lock.hold_anew().is_some());
    }
}
