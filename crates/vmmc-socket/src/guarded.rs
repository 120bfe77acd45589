//! The slow structures of the layer behind one lock, safe against signals and fork.

use std::cell::UnsafeCell;

use crate::kernel;
use crate::lock::Lock;

/// A value behind a [`Lock`]. While it is borrowed all signals are blocked, so that no handler on the same thread can
/// come in; and [`Guarded::hold_for_fork`] keeps it whole in a child.
#[derive(Debug)]
pub(crate) struct Guarded<T> {
    lock: Lock,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only with the lock held.
unsafe impl<T: Send> Sync for Guarded<T> {}

impl<T> Guarded<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { lock: Lock::new(), value: UnsafeCell::new(value) }
    }

    /// Calls `use_it` with the value, alone.
    pub(crate) fn with<R>(&self, use_it: impl FnOnce(&mut T) -> R) -> R {
        let signals = Blocked::all();
        let held = self.lock.hold();
        // SAFETY: the lock excludes other threads, the blocked signals exclude handlers on this one, and no user calls
        // `with` on the same value from within `use_it`.
        let result = use_it(unsafe { &mut *self.value.get() });
        drop(held);
        drop(signals);
        result
    }

    /// Takes the lock until [`Guarded::release_after_fork`], and has the value prepared for that.
    pub(crate) fn hold_for_fork(&self, prepare: impl FnOnce(&mut T)) {
        let _signals = Blocked::all();
        self.lock.keep();
        // SAFETY: as in `with`.
        prepare(unsafe { &mut *self.value.get() });
    }

    /// Gives the lock back, in the parent or in the child.
    pub(crate) fn release_after_fork(&self) {
        self.lock.break_open();
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
