//! The slow structures of the layer behind one lock, safe against signals and fork.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::lock::Lock;
use crate::{kernel, signals};

/// A value behind a [`Lock`]. While it is borrowed no handler on the same thread can come in; and
/// [`Guarded::hold_for_fork`] keeps it whole in a child.
#[derive(Debug)]
pub(crate) struct Guarded<T> {
    lock: Lock,
    /// Changed with the lock held.
    borrowed: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only with the lock held.
unsafe impl<T: Send> Sync for Guarded<T> {}

impl<T> Guarded<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { lock: Lock::new(), borrowed: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Calls `use_it` with the value, alone. All signals are blocked meanwhile.
    pub(crate) fn with<R>(&self, use_it: impl FnOnce(&mut T) -> R) -> R {
        let _signals = Blocked::all();
        self.borrow(use_it)
    }

    /// As [`Guarded::with`]; `None`: this thread has borrowed it already.
    pub(crate) fn with_unless_borrowed<R>(&self, use_it: impl FnOnce(&mut T) -> R) -> Option<R> {
        let _signals = Blocked::all();
        self.borrow_once(use_it)
    }

    /// As [`Guarded::with`], where `use_it` makes no system call that a signal interrupts: handlers that can be put off are
    /// ([`crate::signals`]), which saves two system calls, 0.4 µs.
    pub(crate) fn briefly<R>(&self, use_it: impl FnOnce(&mut T) -> R) -> R {
        let _signals = (!signals::can_all_be_put_off()).then(Blocked::all);
        self.borrow(use_it)
    }

    /// # Panics
    /// If this thread has borrowed it already, further up: it is in a handler that the program has installed past the C library,
    /// say. Whoever called the layer then has the kernel do it.
    fn borrow<R>(&self, use_it: impl FnOnce(&mut T) -> R) -> R {
        self.borrow_once(use_it).expect("this thread is not at work on it further up")
    }

    /// As [`Guarded::with_unless_borrowed`], without system calls if nobody else is at it.
    pub(crate) fn borrow_once<R>(&self, use_it: impl FnOnce(&mut T) -> R) -> Option<R> {
        // Looked at before: who has the lock gets it again, and would give it back for both.
        if self.borrowed.load(Ordering::Relaxed) && self.lock.is_mine() {
            return None;
        }
        let _held = self.lock.hold();
        let _borrow = Borrow::begin(&self.borrowed);
        // SAFETY: the lock excludes other threads, and what was asserted excludes this one's own borrow further up.
        Some(use_it(unsafe { &mut *self.value.get() }))
    }

    /// Takes the lock until [`Guarded::release_after_fork`], and has the value prepared for that.
    pub(crate) fn hold_for_fork(&self, prepare: impl FnOnce(&mut T)) {
        let _signals = Blocked::all();
        self.lock.keep();
        // SAFETY: as in `with`.
        prepare(unsafe { &mut *self.value.get() });
    }

    /// See [`Lock::lend`].
    pub(crate) fn lend(&self) {
        self.lock.lend();
    }

    /// Gives the lock back, in the parent or in the child.
    pub(crate) fn release_after_fork(&self) {
        self.lock.break_open();
    }
}

/// The value is borrowed until this is dropped.
struct Borrow<'a>(&'a AtomicBool);

impl<'a> Borrow<'a> {
    fn begin(borrowed: &'a AtomicBool) -> Self {
        borrowed.store(true, Ordering::Relaxed);
        Self(borrowed)
    }
}

impl Drop for Borrow<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// All signals are blocked for this thread until this is dropped.
#[derive(Debug)]
struct Blocked(u64);

impl Blocked {
    fn all() -> Self {
        Self(kernel::set_signal_mask(u64::MAX))
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        kernel::set_signal_mask(self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls of its own")]
    fn who_has_it_already_gets_it_no_second_time() {
        let guarded = Guarded::new(vec![1]);
        let again = guarded.briefly(|value| {
            value.push(2);
            catch_unwind(AssertUnwindSafe(|| guarded.with(Vec::clear))).is_ok()
        });
        assert!(!again);
        assert_eq!(guarded.with(|value| value.len()), 2);
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls of its own")]
    fn after_a_panic_it_is_there_for_others() {
        let guarded = Guarded::new(1);
        let panics = || guarded.briefly(|_| panic!("as asked"));
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        assert_eq!(guarded.briefly(|value| *value), 1);
    }
}
