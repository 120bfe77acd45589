//! The table over pages that only count, with threads, against what it promises.
#![cfg(not(loom))]

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vmmc_ni::utlb::{
    Access, Account, Located, LookupError, Memory, NoAccount, Options, PinError, Policy, Utlb,
};

const PAGES: usize = 64;

/// Pages that fail the test when they are unpinned under somebody.
#[derive(Debug, Clone)]
struct Counted(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pinned: Mutex<HashSet<usize>>,
    most: AtomicU64,
    /// Who uses each page now, as the users themselves say.
    users: [AtomicI64; PAGES],
    /// Pages that cannot be pinned.
    missing: Mutex<HashSet<usize>>,
    /// What the system allows.
    allowed: AtomicU64,
    broken: AtomicBool,
    keys: AtomicU64,
}

impl Counted {
    fn new() -> Self {
        Self(Arc::new(Inner {
            pinned: Mutex::default(),
            most: AtomicU64::new(0),
            users: std::array::from_fn(|_| AtomicI64::new(0)),
            missing: Mutex::default(),
            allowed: AtomicU64::new(u64::MAX),
            broken: AtomicBool::new(false),
            keys: AtomicU64::new(0),
        }))
    }

    fn pinned(&self) -> usize {
        self.0.pinned.lock().unwrap().len()
    }

    fn most(&self) -> u64 {
        self.0.most.load(Ordering::Relaxed)
    }
}

impl Memory for Counted {
    fn pin(&self, pages: Range<usize>, _: Access) -> Result<u64, PinError> {
        if pages.clone().any(|page| self.0.missing.lock().unwrap().contains(&page)) {
            return Err(PinError::NotMapped);
        }
        let mut pinned = self.0.pinned.lock().unwrap();
        let after = (pinned.len() + pages.len()) as u64;
        if after > self.0.allowed.load(Ordering::Relaxed) {
            return Err(PinError::Limit);
        }
        pinned.extend(pages);
        self.0.most.fetch_max(pinned.len() as u64, Ordering::Relaxed);
        Ok(self.0.keys.fetch_add(1000, Ordering::Relaxed) + 1000)
    }

    fn unpin(&self, pages: Range<usize>) {
        let mut pinned = self.0.pinned.lock().unwrap();
        for page in pages {
            let used = self.0.users[page].load(Ordering::SeqCst) > 0;
            if used || !pinned.remove(&page) {
                self.0.broken.store(true, Ordering::Relaxed);
            }
        }
    }

    fn is_pinned(&self, page: usize) -> bool {
        self.0.pinned.lock().unwrap().contains(&page)
    }
}

fn address(page: usize) -> *const u8 {
    std::ptr::without_provenance(page * vmmc_os::page_size())
}

fn bytes(pages: usize) -> usize {
    pages * vmmc_os::page_size()
}

fn table(memory: &Counted, limit: usize, policy: Policy) -> Utlb {
    let options = Options::default().limit(bytes(limit) as u64).policy(policy).bounce(0);
    Utlb::with(options, memory.clone(), NoAccount)
}

/// Random lookups of ranges, some kept for a while, some forgotten, from four threads.
fn storm(policy: Policy, limit: usize, trusted: bool, steps: u32) {
    let memory = Counted::new();
    let utlb = table(&memory, limit, policy);
    // SAFETY: there is no memory, so nobody unmaps it.
    let region = trusted.then(|| unsafe { utlb.declare(address(0), bytes(PAGES)) });
    let looked_up = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 1..=4u64 {
            let (memory, utlb, looked_up) = (&memory, &utlb, &looked_up);
            scope.spawn(move || {
                let mut random = thread.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mut next = |below: usize| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    usize::try_from(random % below as u64).unwrap()
                };
                let mut kept = Vec::new();
                for _ in 0..steps {
                    let first = next(PAGES - 8);
                    let (count, access) = (1 + next(8), [Access::Read, Access::Write][next(2)]);
                    if next(16) == 0 {
                        utlb.forget(address(first), bytes(count));
                    }
                    looked_up.fetch_add(1, Ordering::Relaxed);
                    match utlb.lookup(address(first), bytes(count), access) {
                        Ok(Located::Pinned(hold)) => {
                            let pages = hold.len() / vmmc_os::page_size();
                            assert!(pages >= 1 && pages <= count);
                            let users = &memory.0.users[first..first + pages];
                            users.iter().for_each(|users| {
                                users.fetch_add(1, Ordering::SeqCst);
                            });
                            for page in first..first + pages {
                                assert!(memory.is_pinned(page), "held, but not pinned");
                            }
                            assert!(hold.is_current());
                            kept.push((first, pages, hold.into_owned()));
                        }
                        Err(LookupError::Exhausted) => {}
                        other => panic!("{other:?}"),
                    }
                    while kept.len() > next(6) {
                        let (first, pages, hold) = kept.swap_remove(next(kept.len()));
                        memory.0.users[first..first + pages].iter().for_each(|users| {
                            users.fetch_sub(1, Ordering::SeqCst);
                        });
                        drop(hold);
                    }
                }
                for (first, pages, hold) in kept {
                    memory.0.users[first..first + pages].iter().for_each(|users| {
                        users.fetch_sub(1, Ordering::SeqCst);
                    });
                    drop(hold);
                }
            });
        }
    });
    assert!(!memory.0.broken.load(Ordering::Relaxed), "unpinned in flight, or twice");
    assert!(memory.most() <= limit as u64, "over the limit");
    let counters = utlb.counters();
    assert_eq!(counters.lookups, looked_up.load(Ordering::Relaxed));
    assert_eq!(counters.pinned_bytes, bytes(memory.pinned()) as u64);
    assert_eq!(
        counters.pages_pinned - counters.pages_unpinned,
        memory.pinned() as u64,
        "{counters:?}"
    );
    drop(region);
    drop(utlb);
    assert_eq!(memory.pinned(), 0, "pins left behind");
    assert!(!memory.0.broken.load(Ordering::Relaxed));
}

#[test]
fn four_threads_stay_below_the_limit_and_lose_no_page_in_flight() {
    let less = if cfg!(miri) { 2000 } else { 1 };
    for policy in Policy::ALL {
        storm(policy, 16, true, 20_000 / less);
    }
    storm(Policy::Lru, 16, false, 5_000 / less);
    storm(Policy::Lru, 3, true, 5_000 / less);
}

#[derive(Debug, Clone)]
enum Step {
    Lookup(usize, usize),
    Hold(usize),
    Release,
    Forget(usize, usize),
    Allow(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..PAGES - 8, 1..9usize);
    prop_oneof![
        6 => range().prop_map(|(first, count)| Step::Lookup(first, count)),
        2 => (0..PAGES - 8).prop_map(Step::Hold),
        2 => Just(Step::Release),
        1 => range().prop_map(|(first, count)| Step::Forget(first, count)),
        1 => (0..20u64).prop_map(Step::Allow),
    ]
}

proptest! {
    /// With a system that allows now more, now less: what is looked up is pinned, or there really is no room.
    #[test]
    fn limits_hold_at_every_step(limit in 1..20usize, steps in prop::collection::vec(step(), 1..150)) {
        let memory = Counted::new();
        let utlb = table(&memory, limit, Policy::Lru);
        let mut holds = Vec::new();
        for step in steps {
            match step {
                Step::Lookup(first, count) => match utlb.lookup(address(first), bytes(count), Access::Read) {
                    Ok(Located::Pinned(hold)) => {
                        let pages = hold.len() / vmmc_os::page_size();
                        prop_assert!((first..first + pages).all(|page| memory.is_pinned(page)));
                    }
                    Err(LookupError::Exhausted) => {
                        let held: HashSet<usize> = holds.iter().map(|(page, _)| *page).collect();
                        let room = memory.0.allowed.load(Ordering::Relaxed).min(limit as u64);
                        prop_assert!(held.len() as u64 >= room, "{} held, room for {room}", held.len());
                    }
                    other => prop_assert!(false, "{other:?}"),
                },
                Step::Hold(page) => {
                    if let Ok(Located::Pinned(hold)) = utlb.lookup(address(page), 1, Access::Read) {
                        memory.0.users[page].fetch_add(1, Ordering::SeqCst);
                        holds.push((page, hold));
                    }
                }
                Step::Release => {
                    if let Some((page, hold)) = holds.pop() {
                        memory.0.users[page].fetch_sub(1, Ordering::SeqCst);
                        drop(hold);
                    }
                }
                Step::Forget(first, count) => {
                    let held: HashSet<usize> = holds.iter().map(|(page, _)| *page).collect();
                    let busy = (first..first + count).filter(|page| held.contains(page)).count();
                    prop_assert_eq!(utlb.forget(address(first), bytes(count)), busy);
                }
                // Less than is pinned already would be no limit of any system.
                Step::Allow(allowed) => {
                    let allowed = allowed.max(memory.pinned() as u64);
                    memory.0.allowed.store(allowed, Ordering::Relaxed);
                }
            }
            prop_assert!(memory.pinned() <= limit);
            prop_assert_eq!(utlb.counters().pinned_bytes, bytes(memory.pinned()) as u64);
            prop_assert!(!memory.0.broken.load(Ordering::Relaxed));
        }
    }
}

#[test]
fn lost_memory_makes_translations_stale_and_is_translated_anew() {
    let memory = Counted::new();
    let utlb = table(&memory, 8, Policy::Lru);
    let Ok(Located::Pinned(hold)) = utlb.lookup(address(5), bytes(2), Access::Read) else {
        panic!()
    };
    let (mut engine, mut found) = (utlb.translator().unwrap(), Vec::new());
    assert!(utlb.translator().is_none(), "one engine");
    engine.translate(hold.span(), &mut found).unwrap();
    let keys: Vec<u64> = found.iter().map(|page| page.key).collect();
    assert_eq!(keys, [1000, 1001]);

    // Somebody unmaps page 5, and maps other memory there.
    memory.0.pinned.lock().unwrap().remove(&5);
    let Ok(Located::Pinned(anew)) = utlb.lookup(address(5), 1, Access::Read) else { panic!() };
    assert!(!hold.is_current() && anew.is_current());
    assert!(engine.translate(hold.span(), &mut found).is_err());
    found.clear();
    engine.translate(anew.span(), &mut found).unwrap();
    assert_eq!((found.len(), found[0].key), (1, 2000), "not the old key");
    assert_eq!(utlb.counters().lost_pages, 1);

    // And unmaps it for good.
    drop(anew);
    memory.0.pinned.lock().unwrap().remove(&5);
    memory.0.missing.lock().unwrap().insert(5);
    let refused = utlb.lookup(address(5), 1, Access::Read);
    assert_eq!(refused.unwrap_err(), LookupError::NotMapped);
    let refused = utlb.lookup(address(3), bytes(4), Access::Read);
    assert_eq!(refused.unwrap_err(), LookupError::NotMapped, "in the middle");
    assert!(utlb.lookup(address(6), 1, Access::Read).is_ok());
    let beyond = utlb.lookup(std::ptr::without_provenance(usize::MAX - 10), 100, Access::Read);
    assert_eq!(beyond.unwrap_err(), LookupError::NotMapped);
}

/// A node that grants so many bytes.
#[derive(Debug, Clone)]
struct Node(Arc<AtomicU64>, Arc<AtomicU64>);

impl Account for Node {
    fn reserve(&self, bytes: u64) -> u64 {
        let granted = bytes.min(self.0.load(Ordering::Relaxed));
        self.1.store(granted, Ordering::Relaxed);
        granted
    }
}

#[test]
fn the_account_bounds_what_is_pinned_and_gets_it_back() {
    let memory = Counted::new();
    let node = Node(Arc::new(AtomicU64::new(bytes(4) as u64)), Arc::default());
    let options = Options::default().limit(bytes(PAGES) as u64).bounce(0);
    let utlb = Utlb::with(options, memory.clone(), node.clone());
    for page in 0..16 {
        assert!(matches!(utlb.lookup(address(page), 1, Access::Read), Ok(Located::Pinned(_))));
        assert!(memory.pinned() <= 4);
    }
    node.0.store(0, Ordering::Relaxed);
    let held = utlb.lookup(address(15), 1, Access::Read);
    assert!(held.is_ok(), "pinned already");
    drop(held);
    drop(utlb);
    assert_eq!((node.1.load(Ordering::Relaxed), memory.pinned()), (0, 0));
}

#[test]
#[cfg_attr(miri, ignore = "pins pages of this process")]
fn without_room_there_are_bounce_buffers_and_then_back_pressure() {
    let page = vmmc_os::page_size();
    let utlb = Utlb::new(Options::default().limit(bytes(4) as u64).bounce(bytes(2)));
    assert_eq!(utlb.limit(), bytes(4) as u64);
    let memory = vec![1u8; bytes(12)];
    let _region = utlb.region(&memory);
    let Ok(Located::Pinned(first)) = utlb.lookup(memory.as_ptr(), bytes(8), Access::Read) else {
        panic!()
    };
    assert!(first.len() <= bytes(2) && first.len() > page, "as much as there is room");
    let rest = memory[bytes(6)..].as_ptr();
    let Ok(Located::Bounce(mut bounce)) = utlb.lookup(rest, 100, Access::Read) else { panic!() };
    assert_eq!(bounce.len(), 100);
    bounce.bytes().fill(9);
    assert_eq!(utlb.lookup(rest, 100, Access::Read).unwrap_err(), LookupError::Exhausted);
    drop(bounce);
    assert!(matches!(utlb.lookup(rest, 1 << 20, Access::Read), Ok(Located::Bounce(_))));
    drop(first);
    assert!(matches!(utlb.lookup(rest, 100, Access::Read), Ok(Located::Pinned(_))));
    assert_eq!(utlb.counters().without_room, 3);
}
