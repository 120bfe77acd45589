//! The two-level table from virtual page to entry.
//!
//! ```text
//! page number   | directory index (18 bits) | leaf index (18 bits) |
//! directory     2^18 pointers; a leaf is made when the first page in it is asked for, and stays
//! leaf          2^18 entries of 32 bytes: 1 GiB of addresses with pages of 4 KiB
//! ```
//!
//! Directory and leaves come from the system as zero pages that cost memory only where they are touched: 32 bytes of
//! table for a page that was ever used, in steps of a page.
//!
//! ```text
//! flags, 64 bits | 63..40 trust | 39..3 - | 2 WRITABLE | 1 TRUSTED | 0 PINNED |
//! ```
//!
//! Lookups read the flags; they change under the table's lock only. Who holds a page is noted in the [lanes](super::lanes).

use super::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// The engine may use the page.
pub(super) const PINNED: u64 = 1;
/// The page cannot go without the table hearing of it, so that no system call is needed to be sure.
pub(super) const TRUSTED: u64 = 2;
/// The engine may also write the page.
pub(super) const WRITABLE: u64 = 4;
/// One reason to trust the page.
const TRUST: u64 = 1 << 40;

#[cfg(not(loom))]
const LEVEL_BITS: u32 = if cfg!(miri) { 8 } else { 18 };
#[cfg(loom)]
const LEVEL_BITS: u32 = 1;
const LEVEL: usize = 1 << LEVEL_BITS;

/// What is known of one page.
#[derive(Debug)]
#[repr(C, align(32))]
pub(super) struct Entry {
    flags: AtomicU64,
    /// When it was used last, by the table's clock.
    pub(super) stamp: AtomicU64,
    /// What the engine's hardware, if it has any, calls the page.
    pub(super) key: AtomicU64,
    /// How often the page was unpinned or lost: what was translated before is stale.
    generation: AtomicU32,
    /// How often it was used since it was pinned. Uses by several threads at one instant may count as one.
    uses: AtomicU32,
}

impl Entry {
    /// The generation, if all flags in `need` are set. The page stays pinned if the caller noted its hold before.
    #[inline]
    pub(super) fn check(&self, need: u64) -> Option<u32> {
        // Before the flags: a page lost in between has a newer generation, and the hold is found stale.
        // Acquire: pairs with the release in `lose`.
        let generation = self.generation.load(Ordering::Acquire);
        // Acquire: pairs with the release in `settle`, so that the entry's key is seen.
        (self.flags.load(Ordering::Acquire) & need == need).then_some(generation)
    }

    /// Notes a use at the time `stamp`.
    #[inline]
    pub(super) fn used(&self, stamp: u64) {
        self.stamp.store(stamp, Ordering::Relaxed);
        self.uses.store(self.uses.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn uses(&self) -> u32 {
        self.uses.load(Ordering::Relaxed)
    }

    /// Whether all flags are set.
    pub(super) fn has(&self, flags: u64) -> bool {
        self.flags.load(Ordering::Acquire) & flags == flags
    }

    /// Under the lock, so nobody else changes them.
    fn set(&self, flags: u64) {
        self.flags.store(flags, Ordering::Release);
    }

    fn now(&self) -> u64 {
        self.flags.load(Ordering::Relaxed)
    }

    /// The page was pinned: lets lookups find it. Under the lock.
    pub(super) fn settle(&self, key: u64, writable: bool) {
        self.key.store(key, Ordering::Relaxed);
        self.uses.store(0, Ordering::Relaxed);
        self.set(self.now() | if writable { PINNED | WRITABLE } else { PINNED });
    }

    /// The page turned out to be writable as well. Under the lock.
    pub(super) fn allow_writing(&self) {
        self.set(self.now() | WRITABLE);
    }

    /// Takes a pinned page from the lookups; afterwards the caller finds out who holds it, and calls [`Self::show`] or
    /// [`Self::lose`]. `false` if it was not pinned. Under the lock.
    pub(super) fn hide(&self) -> bool {
        let flags = self.now();
        self.set(flags & !PINNED);
        flags & PINNED != 0
    }

    /// The hidden page is held after all. Under the lock.
    pub(super) fn show(&self) {
        self.set(self.now() | PINNED);
    }

    /// The page is not pinned any more, because it was hidden and nobody holds it, or because its memory is gone: whatever was
    /// translated is stale. `false` if lookups did not find it anyway. Under the lock.
    pub(super) fn lose(&self) -> bool {
        let flags = self.now();
        self.set(flags & !(PINNED | WRITABLE));
        // After the flag: whoever sees the new generation does not see the old flag.
        let generation = self.generation.load(Ordering::Relaxed);
        self.generation.store(generation.wrapping_add(1), Ordering::Release);
        flags & PINNED != 0
    }

    /// One reason more to trust the page. Under the lock.
    pub(super) fn trust(&self) {
        self.set((self.now() + TRUST) | TRUSTED);
    }

    /// Other memory may be here now, of which nobody would hear when it goes. Under the lock.
    pub(super) fn doubt(&self) {
        self.set(self.now() & !TRUSTED);
    }

    /// One reason less. Under the lock.
    pub(super) fn distrust(&self) {
        let flags = self.now() - TRUST;
        self.set(if flags < TRUST { flags & !TRUSTED } else { flags });
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct Table {
    /// Page size as a power of two.
    pub(super) shift: u32,
    directory: Box<[AtomicPtr<Entry>]>,
}

impl Table {
    pub(super) fn new(page_size: usize) -> Self {
        Self { shift: page_size.trailing_zeros(), directory: zeroed(AtomicPtr::default) }
    }

    /// The entry of a page that was asked for before.
    #[inline]
    pub(super) fn entry(&self, page: usize) -> Option<&Entry> {
        // Acquire: pairs with the release in `entry_or_new`.
        let leaf = self.directory.get(page >> LEVEL_BITS)?.load(Ordering::Acquire);
        if leaf.is_null() {
            return None;
        }
        // SAFETY: a pointer in the directory came from `entry_or_new`: a leaf of `LEVEL` initialised entries, which lives as
        // long as the table; the index is less than `LEVEL`.
        Some(unsafe { &*leaf.add(page & (LEVEL - 1)) })
    }

    /// The entry of any page; `None` for a page that no process has. Under the lock, as two leaves for one place would lose one.
    pub(super) fn entry_or_new(&self, page: usize) -> Option<&Entry> {
        let place = self.directory.get(page >> LEVEL_BITS)?;
        if place.load(Ordering::Relaxed).is_null() {
            let leaf = Box::into_raw(zeroed(Entry::unused)).cast::<Entry>();
            place.store(leaf, Ordering::Release);
        }
        self.entry(page)
    }

    /// The first page from `page` on that may have an entry.
    pub(super) fn skip_unused(&self, page: usize) -> usize {
        if self.entry(page).is_some() { page } else { (page | (LEVEL - 1)) + 1 }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        for place in &self.directory {
            let leaf = place.load(Ordering::Relaxed);
            if !leaf.is_null() {
                let leaf = std::ptr::slice_from_raw_parts_mut(leaf, LEVEL);
                // SAFETY: made by `Box::into_raw` in `entry_or_new` from a slice of this length, and nobody has the table any more.
                drop(unsafe { Box::from_raw(leaf) });
            }
        }
    }
}

impl Entry {
    fn unused() -> Self {
        Self {
            flags: AtomicU64::new(0),
            stamp: AtomicU64::new(0),
            key: AtomicU64::new(0),
            generation: AtomicU32::new(0),
            uses: AtomicU32::new(0),
        }
    }
}

/// A level of the table, untouched: the system's zero pages stand for what `_empty` makes, whose bytes are all zero.
#[cfg(not(loom))]
fn zeroed<T>(_empty: impl Fn() -> T) -> Box<[T]> {
    let Ok(layout) = std::alloc::Layout::array::<T>(LEVEL) else { return Box::default() };
    // SAFETY: the layout is not empty. Both element types consist of atomics, for which all zero is a valid value (a null
    // pointer, a zero); the memory comes from the global allocator with the layout of a boxed slice of this length.
    unsafe {
        let start = std::alloc::alloc_zeroed(layout).cast::<T>();
        if start.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        Box::from_raw(std::ptr::slice_from_raw_parts_mut(start, LEVEL))
    }
}

#[cfg(loom)]
fn zeroed<T>(empty: impl Fn() -> T) -> Box<[T]> {
    (0..LEVEL).map(|_| empty()).collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_hidden_before_it_is_retired_and_a_lost_one_is_stale() {
        let table = Table::new(4096);
        assert!(table.entry(5).is_none());
        let entry = table.entry_or_new(5).unwrap();
        assert_eq!(entry.check(PINNED), None);
        assert!(!entry.hide());
        entry.settle(9, false);
        assert_eq!(entry.check(PINNED | WRITABLE), None);
        assert_eq!(entry.check(PINNED), Some(0));
        assert!(entry.hide());
        assert_eq!(entry.check(PINNED), None);
        entry.show();
        assert_eq!(entry.check(PINNED), Some(0), "as before");
        assert!(entry.hide());
        assert!(!entry.lose());
        assert_eq!(entry.generation(), 1);
        entry.settle(10, true);
        assert_eq!(entry.check(PINNED | WRITABLE), Some(1));
        assert!(entry.lose());
        assert_eq!((entry.generation(), entry.check(PINNED)), (2, None));
        assert!(!entry.lose());
        entry.settle(11, false);
        assert!(!entry.has(WRITABLE), "asked for anew");
    }

    #[test]
    fn trust_ends_with_its_last_reason() {
        let table = Table::new(4096);
        let entry = table.entry_or_new(1).unwrap();
        entry.settle(0, false);
        entry.trust();
        entry.trust();
        entry.distrust();
        assert!(entry.has(TRUSTED | PINNED));
        entry.distrust();
        assert!(!entry.has(TRUSTED) && entry.has(PINNED));
        entry.trust();
        assert!(entry.has(TRUSTED));
    }

    #[test]
    fn pages_that_no_process_has_are_refused() {
        let table = Table::new(4096);
        assert!(table.entry_or_new(usize::MAX >> 12).is_none());
        let last = (1 << (2 * LEVEL_BITS)) - 1;
        assert!(table.entry_or_new(last).is_some(), "of 48 bits of address");
        assert_eq!(table.skip_unused(7), LEVEL);
        assert_eq!(table.skip_unused(last - 8), last - 8);
    }
}
