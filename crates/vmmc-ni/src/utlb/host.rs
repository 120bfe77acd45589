//! Misses: what happens under the lock.

use std::ops::Range;
use std::time::Instant;

use super::memory::{Access, PinError};
use super::policy::{Policy, Residents};
use super::sync::{MutexGuard, Ordering, lock};
use super::table::{Entry, TRUSTED, WRITABLE};
use super::{ATTENTION, Counters, LookupError, Place, STAMP, Shared, Span, flags};

/// What the lock guards.
#[derive(Debug)]
pub(super) struct Host {
    residents: Residents,
    /// Pinned pages, bounce buffers not counted.
    pinned: usize,
    peak: usize,
    /// What the system lets us pin, as far as we have found out; at most the limit.
    ceiling: usize,
    /// What the account grants, bounce buffers not counted.
    reserved: usize,
    misses_until_retry: u32,
    /// Lanes that may hold pages.
    open: Vec<usize>,
    /// Holds that found no place in a lane: first page and pages.
    elsewhere: Vec<(usize, usize)>,
    /// Empty: kept for its capacity, as a small unpin would spend more on allocating than on all else.
    room: Vec<usize>,
    tally: Counters,
}

/// Pages that the account grants at a time.
const STEP: usize = 256;
/// Misses after which the system is asked again whether it lets us pin more.
const RETRY: u32 = 1024;

impl Host {
    pub(super) fn new(policy: Policy, limit: usize) -> Self {
        Self {
            residents: Residents::new(policy),
            pinned: 0,
            peak: 0,
            ceiling: limit,
            reserved: 0,
            misses_until_retry: RETRY,
            open: Vec::new(),
            elsewhere: Vec::new(),
            room: Vec::new(),
            tally: Counters::default(),
        }
    }
}

/// A lookup on its way.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// Pages that it has.
    span: Span,
    /// Where these are noted as held.
    place: Place,
    access: Access,
    stamp: u64,
    /// A page was not pinned, or not for writing.
    missed: bool,
}

impl Shared {
    /// Holds pages, as many of them from the first on as can be had; none if there is no room at all.
    pub(super) fn hold(
        &self,
        first: usize,
        pages: usize,
        access: Access,
    ) -> Result<(Place, Span), LookupError> {
        let (sync, lane) = (self.sync.load(Ordering::Acquire), self.lanes.own());
        let mut span = Span { first, pages: 0, generations: 0 };
        let Some(place) = self.lanes.take(lane, first, pages) else {
            let place = Place::ELSEWHERE;
            return self.complete(pages, Wanted { span, place, access, stamp: 0, missed: false });
        };
        if sync & super::SUSPECT == 0 {
            for page in first..first + pages {
                let Some(generation) = self.check(page, access) else { break };
                span.extend(generation);
            }
        }
        let stamp = self.lanes.tick(lane, sync >> STAMP, pages as u64);
        if span.pages < pages {
            return self.complete(pages, Wanted { span, place, access, stamp, missed: false });
        }
        self.note_use(span, stamp);
        Ok((place, span))
    }

    /// The generation of a page that is pinned, and there.
    fn check(&self, page: usize, access: Access) -> Option<u32> {
        let entry = self.table.entry(page)?;
        entry.check(flags(access) | TRUSTED).or_else(|| {
            let generation = entry.check(flags(access))?;
            self.is_there(page).then_some(generation)
        })
    }

    /// Asks the system about a page that could be lost without our hearing of it.
    fn is_there(&self, page: usize) -> bool {
        self.verifications.fetch_add(1, Ordering::Relaxed);
        self.memory.is_pinned(page)
    }

    fn note_use(&self, span: Span, stamp: u64) {
        for entry in span.numbers().filter_map(|page| self.table.entry(page)) {
            entry.used(stamp);
        }
    }

    /// Gives a hold back.
    #[inline]
    pub(super) fn release(&self, place: Place, span: Span) {
        if place == Place::ELSEWHERE {
            self.release_elsewhere(span);
        } else {
            self.lanes.release(place);
        }
    }

    #[cold]
    fn release_elsewhere(&self, span: Span) {
        if span.pages > 0 {
            let elsewhere = &mut lock(&self.host).elsewhere;
            let held = elsewhere.iter().position(|held| *held == (span.first, span.pages));
            held.map(|held| elsewhere.swap_remove(held));
        }
    }

    /// The rest of a lookup that did not find all its pages, or no place to hold them.
    #[cold]
    fn complete(&self, pages: usize, mut wanted: Wanted) -> Result<(Place, Span), LookupError> {
        let began = self.measure.then(Instant::now);
        let mut host = lock(&self.host);
        let lane = self.lanes.own();
        if self.lanes.open(lane) {
            host.open.push(lane);
        }
        let latest = self.sync.load(Ordering::Relaxed) >> STAMP;
        if wanted.place == Place::ELSEWHERE {
            wanted.stamp = self.lanes.tick(lane, latest, pages as u64);
            // The lane may just have been opened.
            let place = self.lanes.take(lane, wanted.span.first, 0);
            wanted.place = place.unwrap_or(Place::ELSEWHERE);
        }
        let result = self.pin_missing(&mut host, pages, &mut wanted);
        let (place, span) = (wanted.place, wanted.span);
        if place != Place::ELSEWHERE {
            if result.is_err() || span.pages == 0 {
                self.lanes.release(place);
            } else {
                self.lanes.change(place, span.first, span.pages);
            }
        } else if result.is_ok() && span.pages > 0 {
            host.elsewhere.push((span.first, span.pages));
        }
        host.tally.check_misses += u64::from(wanted.missed);
        host.tally.without_room += u64::from(span.pages == 0 && result.is_ok());
        host.tally.miss_ns += nanoseconds(began);
        // Whatever comes after this miss is later than what came before it, in all threads that see it.
        let attention = self.sync.load(Ordering::Relaxed) & ATTENTION;
        self.sync.store(latest.max(wanted.stamp) << STAMP | attention, Ordering::Release);
        result?;
        self.note_use(span, wanted.stamp);
        Ok((place, span))
    }

    /// Extends `wanted.span` to up to `pages` pages.
    fn pin_missing(
        &self,
        host: &mut MutexGuard<'_, Host>,
        pages: usize,
        wanted: &mut Wanted,
    ) -> Result<(), LookupError> {
        let end = wanted.span.first + pages;
        loop {
            let next = wanted.span.numbers().end;
            if next == end {
                return Ok(());
            }
            let entry = self.table.entry_or_new(next).ok_or(LookupError::NotMapped)?;
            if let Some(generation) = self.hold_present(host, next, entry, wanted)? {
                wanted.span.extend(generation);
                continue;
            }
            wanted.missed = true;
            // All missing pages in a row are pinned by one call.
            let missing = |page: &usize| {
                self.table.entry(*page).is_none_or(|entry| !entry.has(super::PINNED))
            };
            let run = 1 + (next + 1..end).take_while(missing).count();
            let run = self.make_room(host, run, wanted);
            if run == 0 || !self.pin_run(host, next..next + run, wanted)? {
                return Ok(());
            }
        }
    }

    /// The generation of a page that is pinned: one that turned up meanwhile, that must be verified, or that must become writable.
    fn hold_present(
        &self,
        host: &mut MutexGuard<'_, Host>,
        page: usize,
        entry: &Entry,
        wanted: &mut Wanted,
    ) -> Result<Option<u32>, LookupError> {
        let Some(generation) = entry.check(super::PINNED) else { return Ok(None) };
        if !entry.has(TRUSTED) && !self.is_there(page) {
            self.lose(host, page..page + 1);
            return Ok(None);
        }
        if wanted.access == Access::Write && !entry.has(WRITABLE) {
            wanted.missed = true;
            match self.memory.pin(page..page + 1, Access::Write) {
                Ok(_) => entry.allow_writing(),
                Err(_) => return Err(LookupError::NotMapped),
            }
        }
        Ok(Some(generation))
    }

    /// Pins pages in a row, as many as the system lets us, and adds them to the span; `false` if these are not all.
    fn pin_run(
        &self,
        host: &mut MutexGuard<'_, Host>,
        mut run: Range<usize>,
        wanted: &mut Wanted,
    ) -> Result<bool, LookupError> {
        let all = run.end;
        let key = loop {
            let began = self.measure.then(Instant::now);
            let pinned = self.memory.pin(run.clone(), wanted.access);
            host.tally.pin_ns += nanoseconds(began);
            match pinned {
                Ok(key) => break key,
                Err(PinError::NotMapped) => return Err(LookupError::NotMapped),
                // The system's limit is lower than ours, or others in this process pin as well.
                Err(PinError::Limit) => {
                    host.ceiling = host.pinned;
                    if self.evict(host, run.len(), wanted) == 0 {
                        run.end = run.start + run.len() / 2;
                    }
                    if run.is_empty() {
                        return Ok(false);
                    }
                }
            }
        };
        host.pinned += run.len();
        host.peak = host.peak.max(host.pinned);
        host.ceiling = host.ceiling.max(host.pinned);
        host.tally.pins += 1;
        host.tally.pages_pinned += run.len() as u64;
        for (page, key) in run.clone().zip(key..) {
            let Some(entry) = self.table.entry_or_new(page) else { continue };
            wanted.span.extend(entry.generation());
            entry.settle(key, wanted.access == Access::Write);
            entry.used(wanted.stamp);
            host.residents.admit(&self.table, page, entry);
        }
        Ok(run.end == all)
    }

    /// Makes room for so many more pages, or for fewer; how many.
    fn make_room(&self, host: &mut MutexGuard<'_, Host>, more: usize, wanted: &Wanted) -> usize {
        host.misses_until_retry -= 1;
        if host.misses_until_retry == 0 {
            (host.misses_until_retry, host.ceiling) = (RETRY, self.limit);
        }
        let more = more.min(self.limit);
        let short = (host.pinned + more).saturating_sub(host.ceiling);
        if short > 0 {
            self.evict(host, short, wanted);
        }
        if host.pinned + more > host.reserved {
            self.reserve(host, more);
        }
        let short = (host.pinned + more).saturating_sub(host.reserved);
        if short > 0 {
            self.evict(host, short, wanted);
        }
        if host.ceiling <= host.pinned && host.ceiling < self.limit {
            // Before giving up: the system may allow more than it did.
            host.ceiling = host.pinned + 1;
        }
        more.min(host.ceiling.min(host.reserved).saturating_sub(host.pinned))
    }

    /// Asks the account for room for `more` pages than are pinned now, in steps.
    fn reserve(&self, host: &mut MutexGuard<'_, Host>, more: usize) {
        let pages =
            (host.pinned + more).next_multiple_of(STEP).min(self.limit) + self.bounce_pages();
        let granted = self.account.reserve((pages as u64) << self.table.shift);
        let granted = usize::try_from(granted >> self.table.shift).unwrap_or(usize::MAX);
        host.reserved = granted.saturating_sub(self.bounce_pages());
    }

    pub(super) fn bounce_pages(&self) -> usize {
        if self.pool.pinned { self.pool.bytes() >> self.table.shift } else { 0 }
    }

    /// Unpins up to `count` pages that no transfer uses, and this lookup has not; how many.
    fn evict(&self, host: &mut MutexGuard<'_, Host>, count: usize, wanted: &Wanted) -> usize {
        // Until now its place may have stood for pages that it does not have.
        self.lanes.change(wanted.place, wanted.span.first, wanted.span.pages);
        host.elsewhere.push((wanted.span.first, wanted.span.pages));
        let held = self.held(host);
        let free = |page: usize| !held.iter().any(|held| held.contains(&page));
        let take = |page: usize, entry: &Entry| free(page) && entry.hide();
        let hidden = host.residents.evict(&self.table, count, take);
        let unpinned = self.unpin_unheld(host, hidden, |host, page, entry| {
            host.residents.admit(&self.table, page, entry);
        });
        host.elsewhere.pop();
        unpinned
    }

    /// What transfers hold, as far as this thread can see now.
    fn held(&self, host: &Host) -> Vec<Range<usize>> {
        let elsewhere = host.elsewhere.iter().filter(|(_, pages)| *pages > 0);
        let mut held: Vec<_> = elsewhere.map(|(first, pages)| *first..first + pages).collect();
        host.open.iter().for_each(|lane| self.lanes.held(*lane, &mut held));
        held
    }

    /// Unpins hidden pages, but shows those again that turn out to be held; how many were unpinned.
    fn unpin_unheld(
        &self,
        host: &mut MutexGuard<'_, Host>,
        mut hidden: Vec<usize>,
        again: impl Fn(&mut Host, usize, &Entry),
    ) -> usize {
        if hidden.is_empty() {
            return 0;
        }
        // Holds of this thread itself were seen before the pages were hidden, and others there are none.
        if host.open != [self.lanes.own()] {
            self.lanes.barrier();
            let held = self.held(host);
            hidden.retain(|page| {
                let Some(entry) = self.table.entry(*page) else { return false };
                let is_held = held.iter().any(|held| held.contains(page));
                if is_held {
                    entry.show();
                    again(host, *page, entry);
                }
                !is_held
            });
        }
        for entry in hidden.iter().filter_map(|page| self.table.entry(*page)) {
            entry.lose();
        }
        let count = hidden.len();
        self.unpin(host, hidden);
        count
    }

    /// Unpins pages that lookups do not find any more, those in a row by one call.
    fn unpin(&self, host: &mut MutexGuard<'_, Host>, mut pages: Vec<usize>) {
        host.pinned -= pages.len();
        pages.sort_unstable();
        self.ni.clear(&pages);
        for run in pages.chunk_by(|page, next| page + 1 == *next) {
            let began = self.measure.then(Instant::now);
            self.memory.unpin(run[0]..run[0] + run.len());
            host.tally.unpin_ns += nanoseconds(began);
            host.tally.unpins += 1;
            host.tally.pages_unpinned += run.len() as u64;
        }
        pages.clear();
        host.room = pages;
    }

    /// The memory of these pages is gone, and with it the pins.
    pub(super) fn lose(&self, host: &mut MutexGuard<'_, Host>, pages: Range<usize>) {
        self.each_entry(pages, |page, entry| {
            let lost = entry.lose();
            self.ni.clear(&[page]);
            if lost {
                host.residents.remove(page);
                host.pinned -= 1;
                host.tally.lost_pages += 1;
            }
        });
    }

    /// See [`super::Utlb::forget`].
    pub(super) fn forget(&self, pages: Range<usize>) -> usize {
        let mut host = lock(&self.host);
        let held = self.held(&host);
        let (mut hidden, mut busy) = (std::mem::take(&mut host.room), 0);
        self.each_entry(pages, |page, entry| {
            if held.iter().any(|held| held.contains(&page)) {
                busy += usize::from(entry.has(super::PINNED));
            } else if entry.hide() {
                host.residents.remove(page);
                hidden.push(page);
            }
        });
        busy += hidden.len();
        busy -= self.unpin_unheld(&mut host, hidden, |host, page, entry| {
            host.residents.admit(&self.table, page, entry);
        });
        // What others could use goes back to the account, but not at every small change.
        if host.reserved > host.pinned + 3 * STEP {
            self.reserve(&mut host, STEP);
        }
        busy
    }

    /// Calls `each` for the pages that were ever asked for.
    pub(super) fn each_entry(&self, pages: Range<usize>, mut each: impl FnMut(usize, &Entry)) {
        let mut page = pages.start;
        while page < pages.end {
            match self.table.entry(page) {
                Some(entry) => {
                    each(page, entry);
                    page += 1;
                }
                None => page = self.table.skip_unused(page),
            }
        }
    }

    /// The pages that a range of addresses touches.
    pub(super) fn pages(&self, start: usize, len: usize) -> Range<usize> {
        let shift = self.table.shift;
        if len == 0 {
            return 0..0;
        }
        start >> shift..(start.saturating_add(len - 1) >> shift) + 1
    }

    pub(super) fn counters(&self) -> Counters {
        let host = lock(&self.host);
        let (lookups, pages) = self.lanes.counts();
        let bounce_bytes = (self.bounce_pages() as u64) << self.table.shift;
        let bytes = |pages: usize| ((pages as u64) << self.table.shift) + bounce_bytes;
        Counters {
            lookups,
            pages,
            ni_lookups: self.ni.lookups.load(Ordering::Relaxed),
            ni_misses: self.ni.misses.load(Ordering::Relaxed),
            pinned_bytes: bytes(host.pinned),
            peak_pinned_bytes: bytes(host.peak),
            bounce_bytes,
            verifications: self.verifications.load(Ordering::Relaxed),
            ..host.tally
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.detector.stop();
        let mut host = lock(&self.host);
        let pages = host.residents.drain(&self.table);
        self.unpin(&mut host, pages);
        drop(host);
        self.account.reserve(0);
    }
}

impl Span {
    /// One page more, held already.
    fn extend(&mut self, generation: u32) {
        self.pages += 1;
        self.generations += u64::from(generation);
    }
}

fn nanoseconds(began: Option<Instant>) -> u64 {
    began.map_or(0, |began| u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX))
}
