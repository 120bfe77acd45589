//! Every interleaving of lookups with eviction, forgetting and the loss of memory.
#![cfg(loom)]

use std::ops::Range;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use vmmc_ni::utlb::{
    Access, Located, LookupError, Memory, NoAccount, Options, PinError, Region, Utlb, set_lane,
};

/// Three pages whose pins can be looked at.
#[derive(Debug, Clone)]
struct Pages(Arc<[AtomicBool; 4]>);

impl Pages {
    fn new() -> Self {
        Self(Arc::new(std::array::from_fn(|_| AtomicBool::new(false))))
    }

    fn pinned(&self, page: usize) -> bool {
        self.0[page].load(Ordering::Relaxed)
    }
}

impl Memory for Pages {
    fn pin(&self, pages: Range<usize>, _: Access) -> Result<u64, PinError> {
        pages.for_each(|page| self.0[page].store(true, Ordering::Relaxed));
        Ok(0)
    }

    fn unpin(&self, pages: Range<usize>) {
        pages.for_each(|page| self.0[page].store(false, Ordering::Relaxed));
    }

    fn is_pinned(&self, page: usize) -> bool {
        self.pinned(page)
    }
}

fn address(page: usize) -> *const u8 {
    std::ptr::without_provenance(page * vmmc_os::page_size())
}

/// A table with room for so many pages, all of them trusted as long as the region lives.
fn table(pages: &Pages, limit: usize) -> (Utlb, Region<'static>) {
    let limit = (limit * vmmc_os::page_size()) as u64;
    let options = Options::default().limit(limit).bounce(0).ni_entries(1);
    let utlb = Utlb::with(options, pages.clone(), NoAccount);
    // SAFETY: there is no memory, so nobody unmaps it.
    let region = unsafe { utlb.declare(address(0), 4 * vmmc_os::page_size()) };
    (utlb, region)
}

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(check);
}

/// Looks a page up and, if it gets it, sees that it is pinned and stays so.
fn look_up(utlb: &Utlb, pages: &Pages, page: usize) {
    match utlb.lookup(address(page), 1, Access::Read) {
        Ok(Located::Pinned(hold)) => {
            assert!(pages.pinned(page), "held, but not pinned");
            thread::yield_now();
            assert!(pages.pinned(page), "unpinned in flight");
            assert!(hold.is_current());
        }
        Err(LookupError::Exhausted) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hit_and_an_eviction() {
    model(|| {
        let pages = Pages::new();
        let (utlb, _region) = table(&pages, 1);
        look_up(&utlb, &pages, 1);
        let other = {
            let (utlb, pages) = (utlb.clone(), pages.clone());
            thread::spawn(move || {
                set_lane(1);
                look_up(&utlb, &pages, 2);
            })
        };
        look_up(&utlb, &pages, 1);
        other.join().unwrap();
        assert!(!(pages.pinned(1) && pages.pinned(2)), "over the limit");
    });
}

#[test]
fn a_hit_and_a_forget_without_a_lane() {
    model(|| {
        let pages = Pages::new();
        let (utlb, _region) = table(&pages, 2);
        look_up(&utlb, &pages, 1);
        let other = {
            let utlb = utlb.clone();
            thread::spawn(move || {
                set_lane(2);
                utlb.forget(address(1), 1);
            })
        };
        look_up(&utlb, &pages, 1);
        other.join().unwrap();
    });
}

/// What an engine gets for a page that is forgotten and pinned anew meanwhile is true, or it gets nothing.
#[test]
fn a_translation_and_a_forget() {
    model(|| {
        let pages = Pages::new();
        let (utlb, _region) = table(&pages, 2);
        look_up(&utlb, &pages, 1);
        let other = {
            let utlb = utlb.clone();
            thread::spawn(move || {
                set_lane(1);
                utlb.forget(address(1), 1);
            })
        };
        if let Ok(Located::Pinned(hold)) = utlb.lookup(address(1), 1, Access::Read) {
            let mut engine = utlb.translator().unwrap();
            let mut found = Vec::new();
            assert_eq!(engine.translate(hold.span(), &mut found), Ok(()));
            assert_eq!((found.len(), pages.pinned(1)), (1, true));
        }
        other.join().unwrap();
    });
}
