//! Which page goes when another must come.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::str::FromStr;

use super::sync::Ordering;
use super::table::{Entry, PINNED, Table};

/// Which pinned page is unpinned first, of those that no transfer uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// The one whose last use is longest ago.
    #[default]
    Lru,
    /// The one used last: for loops over more than fits.
    Mru,
    /// The one used least often since it was pinned; of equals, the one pinned first.
    Lfu,
    /// The one pinned first.
    Fifo,
    /// Any.
    Random,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Lru, Self::Mru, Self::Lfu, Self::Fifo, Self::Random];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Mru => "mru",
            Self::Lfu => "lfu",
            Self::Fifo => "fifo",
            Self::Random => "random",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// no such policy: lru, mru, lfu, fifo or random
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub struct ParsePolicyError;

impl FromStr for Policy {
    type Err = ParsePolicyError;

    fn from_str(name: &str) -> Result<Self, ParsePolicyError> {
        Self::ALL.into_iter().find(|policy| policy.name() == name).ok_or(ParsePolicyError)
    }
}

/// The pinned pages in the order of a policy. Which of them are pinned and used when, the table's entries know.
#[derive(Debug)]
pub(super) enum Residents {
    /// Kept in order: for policies whose key of a page only grows while the page is used, so that a key noted
    /// earlier is a lower bound. The first page whose noted key is still true is the first of all.
    Ordered { heap: BinaryHeap<Reverse<Admission>>, by_use: ByUse, admissions: u64, live: usize },
    /// In no order.
    Loose { pages: Vec<usize>, index: HashMap<usize, usize>, choice: Choice },
}

/// What [`Residents::Ordered`] goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByUse {
    Last,
    Count,
    Never,
}

/// How [`Residents::Loose`] chooses.
#[derive(Debug, Clone, Copy)]
pub(super) enum Choice {
    LatestUse,
    /// The state of a xorshift generator.
    Any(u64),
}

/// An admission of a page; another generation is another admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Admission {
    key: u64,
    admission: u64,
    page: usize,
    generation: u32,
}

impl Residents {
    pub(super) fn new(policy: Policy) -> Self {
        let ordered =
            |by_use| Self::Ordered { heap: BinaryHeap::new(), by_use, admissions: 0, live: 0 };
        let loose = |choice| Self::Loose { pages: Vec::new(), index: HashMap::new(), choice };
        match policy {
            Policy::Lru => ordered(ByUse::Last),
            Policy::Lfu => ordered(ByUse::Count),
            Policy::Fifo => ordered(ByUse::Never),
            Policy::Mru => loose(Choice::LatestUse),
            Policy::Random => loose(Choice::Any(0x9e37_79b9_7f4a_7c15)),
        }
    }

    /// A page was pinned, and its use noted.
    pub(super) fn admit(&mut self, table: &Table, page: usize, entry: &Entry) {
        match self {
            Self::Ordered { heap, by_use, admissions, live } => {
                if heap.len() > 2 * *live + 64 {
                    heap.retain(|Reverse(place)| place.is_current(table));
                }
                *live += 1;
                *admissions += 1;
                let (key, generation) = (by_use.key(entry), entry.generation());
                heap.push(Reverse(Admission { key, admission: *admissions, page, generation }));
            }
            Self::Loose { pages, index, .. } => {
                index.insert(page, pages.len());
                pages.push(page);
            }
        }
    }

    /// A page was lost or unpinned otherwise than by [`Self::evict`].
    pub(super) fn remove(&mut self, page: usize) {
        match self {
            // Its generation tells that its place in the heap is out of date.
            Self::Ordered { live, .. } => *live -= 1,
            Self::Loose { pages, index, .. } => {
                if let Some(place) = index.get(&page).copied() {
                    remove_loose(pages, index, place);
                }
            }
        }
    }

    /// Takes up to `wanted` pages out, best first, of those for which `take` says yes; it says no for pages that are held.
    pub(super) fn evict(
        &mut self,
        table: &Table,
        wanted: usize,
        take: impl Fn(usize, &Entry) -> bool,
    ) -> Vec<usize> {
        let take = |page: usize| table.entry(page).is_some_and(|entry| take(page, entry));
        let mut taken = Vec::with_capacity(wanted);
        match self {
            Self::Ordered { heap, by_use, live, .. } => {
                evict_in_order(heap, *by_use, table, (wanted, &mut taken), take);
                *live -= taken.len();
            }
            Self::Loose { pages, index, choice: Choice::LatestUse } => {
                let stamp = |page: &usize| {
                    table.entry(*page).map_or(0, |entry| entry.stamp.load(Ordering::Relaxed))
                };
                let mut latest: BinaryHeap<(u64, usize)> =
                    pages.iter().map(|page| (stamp(page), *page)).collect();
                while taken.len() < wanted
                    && let Some((_, page)) = latest.pop()
                {
                    if take(page) {
                        taken.push(page);
                    }
                }
                for page in &taken {
                    if let Some(place) = index.get(page).copied() {
                        remove_loose(pages, index, place);
                    }
                }
            }
            Self::Loose { pages, index, choice: Choice::Any(state) } => {
                // Held pages are put behind `left`.
                let mut left = pages.len();
                while taken.len() < wanted && left > 0 {
                    *state ^= *state << 13;
                    *state ^= *state >> 7;
                    *state ^= *state << 17;
                    #[allow(clippy::cast_possible_truncation)]
                    let place = (*state % left as u64) as usize;
                    let page = pages[place];
                    left -= 1;
                    pages.swap(place, left);
                    index.insert(pages[place], place);
                    index.insert(page, left);
                    if take(page) {
                        taken.push(page);
                        remove_loose(pages, index, left);
                    }
                }
            }
        }
        taken
    }

    /// All pages that are pinned, in no order; none is known any more afterwards.
    pub(super) fn drain(&mut self, table: &Table) -> Vec<usize> {
        match self {
            Self::Ordered { heap, live, .. } => {
                *live = 0;
                let places = std::mem::take(heap).into_iter().map(|Reverse(place)| place);
                places.filter(|place| place.is_current(table)).map(|place| place.page).collect()
            }
            Self::Loose { pages, index, .. } => {
                index.clear();
                std::mem::take(pages)
            }
        }
    }
}

impl ByUse {
    fn key(self, entry: &Entry) -> u64 {
        match self {
            Self::Last => entry.stamp.load(Ordering::Relaxed),
            Self::Count => u64::from(entry.uses()),
            Self::Never => 0,
        }
    }
}

impl Admission {
    fn is_current(&self, table: &Table) -> bool {
        table
            .entry(self.page)
            .is_some_and(|entry| entry.generation() == self.generation && entry.has(PINNED))
    }
}

fn evict_in_order(
    heap: &mut BinaryHeap<Reverse<Admission>>,
    by_use: ByUse,
    table: &Table,
    (wanted, taken): (usize, &mut Vec<usize>),
    take: impl Fn(usize) -> bool,
) {
    let mut held = Vec::new();
    // Other threads may go on using pages while this one looks for an unused one.
    let mut patience = 2 * heap.len() + 64;
    while taken.len() < wanted
        && let Some(Reverse(place)) = heap.pop()
    {
        let Some(entry) = table.entry(place.page).filter(|_| place.is_current(table)) else {
            continue;
        };
        let key = by_use.key(entry);
        if key != place.key && patience > 0 {
            patience -= 1;
            heap.push(Reverse(Admission { key, ..place }));
        } else if take(place.page) {
            taken.push(place.page);
        } else {
            held.push(Reverse(place));
        }
    }
    heap.extend(held);
}

fn remove_loose(pages: &mut Vec<usize>, index: &mut HashMap<usize, usize>, place: usize) {
    index.remove(&pages.swap_remove(place));
    if let Some(moved) = pages.get(place) {
        index.insert(*moved, place);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        /// Pin the page, or use it if it is pinned.
        Use(usize),
        Hold(usize),
        Release(usize),
        Lose(usize),
        Evict(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let page = 0..12usize;
        prop_oneof![
            8 => page.clone().prop_map(Step::Use),
            1 => page.clone().prop_map(Step::Hold),
            2 => page.clone().prop_map(Step::Release),
            1 => page.prop_map(Step::Lose),
            3 => (1..4usize).prop_map(Step::Evict),
        ]
    }

    /// What a page is in the model.
    #[derive(Debug, Clone, Default)]
    struct Known {
        admitted: u64,
        last: u64,
        uses: u64,
        held: u64,
    }

    impl Known {
        fn key(&self, policy: Policy) -> (i128, u64) {
            match policy {
                Policy::Lru => (i128::from(self.last), 0),
                Policy::Mru => (-i128::from(self.last), 0),
                Policy::Lfu => (i128::from(self.uses), self.admitted),
                Policy::Fifo | Policy::Random => (0, self.admitted),
            }
        }
    }

    fn run(policy: Policy, steps: &[Step]) {
        let table = Table::new(4096);
        let mut residents = Residents::new(policy);
        let mut model: BTreeMap<usize, Known> = BTreeMap::new();
        for (now, step) in (1..).zip(steps) {
            match *step {
                Step::Use(page) => {
                    let entry = table.entry_or_new(page).unwrap();
                    if let Some(known) = model.get_mut(&page) {
                        entry.used(now);
                        (known.last, known.uses) = (now, known.uses + 1);
                    } else {
                        entry.settle(0, false);
                        entry.used(now);
                        residents.admit(&table, page, entry);
                        let known = Known { admitted: now, last: now, uses: 1, held: 0 };
                        model.insert(page, known);
                    }
                }
                Step::Hold(page) => {
                    if let Some(known) = model.get_mut(&page) {
                        known.held += 1;
                    }
                }
                Step::Release(page) => {
                    if let Some(known) = model.get_mut(&page).filter(|known| known.held > 0) {
                        known.held -= 1;
                    }
                }
                Step::Lose(page) => {
                    if model.remove(&page).is_some() {
                        assert!(table.entry(page).unwrap().lose());
                        residents.remove(page);
                    }
                }
                Step::Evict(wanted) => {
                    let take = |page: usize, entry: &Entry| model[&page].held == 0 && entry.hide();
                    let evicted = residents.evict(&table, wanted, take);
                    for page in &evicted {
                        table.entry(*page).unwrap().lose();
                    }
                    let idle = model.values().filter(|known| known.held == 0).count();
                    assert_eq!(evicted.len(), wanted.min(idle));
                    for page in evicted {
                        let known = model.remove(&page).expect("pinned");
                        assert_eq!(known.held, 0, "in flight");
                        let better = model.values().filter(|other| other.held == 0);
                        if policy != Policy::Random {
                            let mut better = better;
                            assert!(
                                better.all(|other| known.key(policy) <= other.key(policy)),
                                "{policy} took {page} before {model:?}"
                            );
                        }
                    }
                }
            }
        }
        let mut left = residents.drain(&table);
        left.sort_unstable();
        assert_eq!(left, model.keys().copied().collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        #[cfg_attr(miri, ignore = "one thread without unsafe code: only slow")]
        fn policies_choose_as_the_model_does(steps in prop::collection::vec(step(), 0..200)) {
            for policy in Policy::ALL {
                run(policy, &steps);
            }
        }
    }

    #[test]
    fn random_takes_every_page_sooner_or_later() {
        let table = Table::new(4096);
        let mut first = std::collections::HashSet::new();
        let mut residents = Residents::new(Policy::Random);
        for page in 0..8 {
            let entry = table.entry_or_new(page).unwrap();
            entry.settle(0, false);
            residents.admit(&table, page, entry);
        }
        for _ in 0..if cfg!(miri) { 100 } else { 500 } {
            let page = residents.evict(&table, 1, |_, entry| entry.hide())[0];
            first.insert(page);
            let entry = table.entry_or_new(page).unwrap();
            entry.lose();
            entry.settle(0, false);
            residents.admit(&table, page, entry);
        }
        assert_eq!(first.len(), 8);
    }

    #[test]
    fn names_are_read_back() {
        for policy in Policy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert_eq!("best".parse::<Policy>(), Err(ParsePolicyError));
    }
}
