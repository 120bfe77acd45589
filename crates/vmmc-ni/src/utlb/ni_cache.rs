//! The network interface's own cache of translations, as the paper's adapter has one in its memory: direct-mapped, filled by
//! the engine from the table, cleared by the host when a page is unpinned.

use super::sync::{AtomicU64, Ordering, fence};

/// Translations that the engine need not look up in the table.
#[derive(Debug)]
pub(super) struct NiCache {
    slots: Box<[Slot]>,
    pub(super) lookups: AtomicU64,
    pub(super) misses: AtomicU64,
}

#[derive(Debug)]
struct Slot {
    /// The page's number plus one; 0: empty.
    tag: AtomicU64,
    key: AtomicU64,
}

impl NiCache {
    /// At least `entries` slots, a power of two.
    pub(super) fn new(entries: usize) -> Self {
        let slot = || Slot { tag: AtomicU64::new(0), key: AtomicU64::new(0) };
        Self {
            slots: (0..entries.max(1).next_power_of_two()).map(|_| slot()).collect(),
            lookups: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    fn slot(&self, page: usize) -> &Slot {
        &self.slots[page & (self.slots.len() - 1)]
    }

    /// Only the engine calls it, which is one thread at a time.
    pub(super) fn find(&self, page: usize) -> Option<u64> {
        self.lookups.store(self.lookups.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let slot = self.slot(page);
        if slot.tag.load(Ordering::Acquire) == page as u64 + 1 {
            return Some(slot.key.load(Ordering::Relaxed));
        }
        self.misses.store(self.misses.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        None
    }

    /// Keeps a translation that the engine has just read from the table, if `is_current` says afterwards that it is still true. Only
    /// the engine calls it.
    pub(super) fn fill(&self, page: usize, key: u64, is_current: impl FnOnce() -> bool) -> bool {
        let slot = self.slot(page);
        slot.key.store(key, Ordering::Relaxed);
        slot.tag.store(page as u64 + 1, Ordering::Release);
        // Pairs with the fence in `clear`: either the host finds the slot filled, or we find the generation changed.
        fence(Ordering::SeqCst);
        let current = is_current();
        if !current {
            slot.tag.store(0, Ordering::Relaxed);
        }
        current
    }

    /// The host has unpinned or lost the pages, and changed their generations before.
    pub(super) fn clear(&self, pages: &[usize]) {
        fence(Ordering::SeqCst);
        for page in pages {
            let tag = &self.slot(*page).tag;
            // What the engine puts there meanwhile may go as well: it costs a miss.
            if tag.load(Ordering::Relaxed) == *page as u64 + 1 {
                tag.store(0, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_found_until_cleared_or_displaced() {
        let cache = NiCache::new(3);
        assert_eq!(cache.find(1), None);
        assert!(cache.fill(1, 70, || true));
        assert_eq!(cache.find(1), Some(70));
        cache.clear(&[5]);
        assert_eq!(cache.find(1), Some(70), "the same slot, another page");
        assert!(cache.fill(5, 80, || true));
        assert_eq!((cache.find(1), cache.find(5)), (None, Some(80)));
        assert!(!cache.fill(2, 90, || false));
        assert_eq!(cache.find(2), None);
        cache.clear(&[5]);
        assert_eq!(cache.find(5), None);
        assert_eq!(cache.lookups.load(Ordering::Relaxed), 7);
        assert_eq!(cache.misses.load(Ordering::Relaxed), 4);
    }
}
