//! A buffer that stays at one address while others use its bytes.

use std::fmt;
use std::ptr::NonNull;

/// As a `Box`, but moving it says nothing about what it holds: bytes that somebody reads or writes by their address meanwhile stay theirs.
pub(crate) struct Parcel<B>(NonNull<B>);

// SAFETY: it owns the value.
unsafe impl<B: Send> Send for Parcel<B> {}
// SAFETY: as above; shared, it gives shared references only.
unsafe impl<B: Sync> Sync for Parcel<B> {}

impl<B> Parcel<B> {
    pub(crate) fn new(value: B) -> Self {
        Self(NonNull::from(Box::leak(Box::new(value))))
    }

    /// What is in it. Only to be read while others read its bytes.
    pub(crate) fn get(&self) -> &B {
        // SAFETY: the value is ours and alive until `self` goes.
        unsafe { self.0.as_ref() }
    }

    /// What is in it, while nobody else uses it.
    pub(crate) fn get_mut(&mut self) -> &mut B {
        // SAFETY: as in `get`.
        unsafe { self.0.as_mut() }
    }

    /// Takes it out.
    pub(crate) fn open(self) -> B {
        let value = self.0;
        std::mem::forget(self);
        // SAFETY: it came out of a `Box`, and nobody else will free it.
        *unsafe { Box::from_raw(value.as_ptr()) }
    }
}

impl<B> Drop for Parcel<B> {
    fn drop(&mut self) {
        // SAFETY: as in `open`, which does not come here.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl<B> fmt::Debug for Parcel<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Parcel").finish_non_exhaustive()
    }
}
