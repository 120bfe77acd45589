//! Replaying a trace under another limit or policy, with real memory and real pins, into the rows of the paper's tables 3 and 4.

use std::hint::black_box;
use std::time::Instant;

use vmmc_os::PrivateMemory;

use super::memory::{Access, LocalMemory, Memory};
use super::trace::{Kind, Trace};
use super::{Counters, Located, LookupError, Options, Utlb};

/// How to replay.
#[derive(Debug, Clone)]
pub struct Replay {
    /// As for the table that it is replayed through.
    pub options: Options,
}

/// What a replay has found. Times are averages in nanoseconds, of this machine and run.
#[derive(Debug, Clone)]
pub struct Replayed {
    /// Bytes of the distinct pages that the trace looks up: the tables' "memory footprint".
    pub footprint: u64,
    /// Bytes that could be pinned: the "memory constraint".
    pub limit: u64,
    /// The counts.
    pub counters: Counters,
    /// Lookups that found all pages pinned, of all.
    pub hit_rate: f64,
    /// Pages a lookup.
    pub lookup_pages: f64,
    /// Pin operations a lookup.
    pub pin_rate: f64,
    /// Unpin operations a lookup.
    pub unpin_rate: f64,
    /// Pages a pin operation.
    pub pages_per_pin: f64,
    /// Pages that the engine's cache did not have, of all that it translated.
    pub ni_miss_rate: f64,
    /// A lookup that hits.
    pub hit_ns: f64,
    /// A pin operation.
    pub pin_ns: f64,
    /// An unpin operation.
    pub unpin_ns: f64,
    /// A lookup that misses.
    pub miss_ns: f64,
    /// A lookup.
    pub host_ns: f64,
    /// What [`Self::miss_ns`] would be if pins and unpins cost what the bare system calls do: the paper's way to predict.
    pub predicted_miss_ns: f64,
    /// The same for [`Self::host_ns`].
    pub predicted_host_ns: f64,
}

/// Why a trace cannot be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
#[non_exhaustive]
pub enum ReplayError {
    /// the trace holds no lookup: does the recorded program use the library, or run lifted?
    Empty,
    /// the trace touches {0} bytes, more than half of this machine's memory: replay it on a larger one
    Memory(u64),
    /// {0}
    Lookup(LookupError),
}

/// An operation on the pages of the arena.
#[derive(Debug, Clone, Copy)]
struct Step {
    kind: Kind,
    first: u32,
    pages: u32,
}

impl Replay {
    /// Replays. Takes about as long as the recorded program's lookups did, twice.
    ///
    /// # Errors
    /// See [`ReplayError`].
    pub fn run(&self, trace: &Trace) -> Result<Replayed, ReplayError> {
        let (steps, footprint_pages) = in_arena(trace)?;
        let page = vmmc_os::page_size();
        let footprint = footprint_pages as u64 * page as u64;
        let arena = PrivateMemory::new(footprint_pages * page)
            .map_err(|_| ReplayError::Memory(footprint))?;
        let start = arena.as_ptr().addr();
        // The recorded program's pages were there, with its data in them.
        for at in (0..arena.len()).step_by(page) {
            // SAFETY: in bounds of the arena, which nobody else uses.
            unsafe { arena.as_ptr().add(at).write_volatile(1) };
        }

        let began = Instant::now();
        for step in &steps {
            black_box((start + step.first as usize * page, step.pages as usize * page, step.kind));
        }
        let loop_ns = began.elapsed().as_nanos() as f64;

        let utlb = Utlb::new(self.options.clone().measure(true));
        // SAFETY: the arena is unmapped after the region is gone.
        let region = unsafe { utlb.declare(arena.as_ptr(), arena.len()) };
        let began = Instant::now();
        run_through(&utlb, start, page, &steps, |_| {})?;
        let total_ns = began.elapsed().as_nanos() as f64 - loop_ns;
        let mut counters = utlb.counters();
        drop(region);

        let engine = self.engine_misses(&arena, &steps)?;
        (counters.ni_lookups, counters.ni_misses) = (engine.ni_lookups, engine.ni_misses);
        let bare = BareCosts::measure(&arena);
        Ok(Replayed::new(footprint, utlb.limit(), counters, total_ns, bare))
    }

    /// The same once more, with an engine that translates what was looked up: apart, so that its time does not count.
    fn engine_misses(
        &self,
        arena: &PrivateMemory,
        steps: &[Step],
    ) -> Result<Counters, ReplayError> {
        let utlb = Utlb::new(self.options.clone());
        // SAFETY: the arena is unmapped after the region is gone.
        let _region = unsafe { utlb.declare(arena.as_ptr(), arena.len()) };
        let (mut engine, mut found) = (utlb.translator(), Vec::new());
        run_through(&utlb, arena.as_ptr().addr(), vmmc_os::page_size(), steps, |located| {
            if let (Located::Pinned(hold), Some(engine)) = (located, &mut engine) {
                found.clear();
                let _ = engine.translate(hold.span(), &mut found);
            }
        })?;
        Ok(utlb.counters())
    }
}

fn run_through(
    utlb: &Utlb,
    start: usize,
    page: usize,
    steps: &[Step],
    mut use_it: impl FnMut(&Located<'_>),
) -> Result<(), ReplayError> {
    for step in steps {
        let mut at = start + step.first as usize * page;
        let mut left = step.pages as usize * page;
        match step.kind {
            Kind::Forget => {
                utlb.forget(std::ptr::without_provenance(at), left);
            }
            Kind::Lookup(access) => {
                while left > 0 {
                    let located = utlb
                        .lookup(std::ptr::without_provenance(at), left, access)
                        .map_err(ReplayError::Lookup)?;
                    use_it(&located);
                    let len = match &located {
                        Located::Pinned(hold) => hold.len(),
                        Located::Bounce(bounce) => bounce.len(),
                    };
                    (at, left) = (at + len, left - len);
                }
            }
        }
    }
    Ok(())
}

/// The trace's pages, moved together: neighbours stay neighbours.
fn in_arena(trace: &Trace) -> Result<(Vec<Step>, usize), ReplayError> {
    let lookups = trace.records.iter().filter(|record| record.kind != Kind::Forget);
    let mut ranges: Vec<_> = lookups.map(|record| (record.pages.start, record.pages.end)).collect();
    if ranges.is_empty() {
        return Err(ReplayError::Empty);
    }
    ranges.sort_unstable();
    // Ranges that touch become one; beside each, how many pages come before it.
    let mut joined: Vec<(u64, u64, u64)> = Vec::new();
    for (start, end) in ranges {
        match joined.last_mut() {
            Some((_, last, _)) if start <= *last => *last = end.max(*last),
            _ => {
                let before = joined.last().map_or(0, |(start, end, before)| before + end - start);
                joined.push((start, end, before));
            }
        }
    }
    let all = joined.last().map_or(0, |(start, end, before)| before + end - start);
    let bytes = all.saturating_mul(vmmc_os::page_size() as u64);
    if bytes > vmmc_os::total_memory() / 2 || u32::try_from(all).is_err() {
        return Err(ReplayError::Memory(bytes));
    }
    let place = |page: u64| {
        let at = joined.partition_point(|(start, ..)| *start <= page);
        let (start, end, before) = joined[at.checked_sub(1)?];
        (page < end).then(|| before + page - start)
    };
    let steps = trace.records.iter().filter_map(|record| {
        // What is forgotten need not have been looked up: then there is nothing to forget.
        let (first, last) = (place(record.pages.start)?, place(record.pages.end - 1)?);
        #[allow(clippy::cast_possible_truncation)]
        Some(Step { kind: record.kind, first: first as u32, pages: (last - first + 1) as u32 })
    });
    #[allow(clippy::cast_possible_truncation)]
    Ok((steps.collect(), all as usize))
}

/// Medians of the bare system calls.
#[derive(Debug, Clone, Copy)]
struct BareCosts {
    pin: f64,
    /// For each page after the first.
    pin_more: f64,
    unpin: f64,
}

impl BareCosts {
    /// Pages that are there already, as those of a program that communicates are.
    fn measure(arena: &PrivateMemory) -> Self {
        let page = vmmc_os::page_size();
        let first = arena.as_ptr().addr() / page;
        let many = (arena.len() / page).min(16);
        let memory = LocalMemory::new();
        let middle = |pages: usize| {
            let (mut pins, mut unpins) = (Vec::new(), Vec::new());
            for _ in 0..201 {
                let began = Instant::now();
                let _ = black_box(memory.pin(first..first + pages, Access::Read));
                pins.push(began.elapsed().as_nanos());
                let began = Instant::now();
                memory.unpin(first..first + pages);
                unpins.push(began.elapsed().as_nanos());
            }
            pins.sort_unstable();
            unpins.sort_unstable();
            (pins[100] as f64, unpins[100] as f64)
        };
        let ((pin, unpin), (pin_many, _)) = (middle(1), middle(many));
        let more = (pin_many - pin) / (many.max(2) - 1) as f64;
        Self { pin, pin_more: more.max(0.0), unpin }
    }
}

impl Replayed {
    fn new(footprint: u64, limit: u64, counters: Counters, total_ns: f64, bare: BareCosts) -> Self {
        let per = |what: u64, of: u64| if of == 0 { 0.0 } else { what as f64 / of as f64 };
        let misses = counters.check_misses;
        let hits_ns = (total_ns - counters.miss_ns as f64).max(0.0);
        let hit_ns = if counters.hits() == 0 { 0.0 } else { hits_ns / counters.hits() as f64 };
        let hit_rate = per(counters.hits(), counters.lookups);
        let pages_per_pin = per(counters.pages_pinned, counters.pins);
        let predicted_miss_ns = hit_ns
            + per(counters.pins, misses)
                * (bare.pin + bare.pin_more * (pages_per_pin - 1.0).max(0.0))
            + per(counters.unpins, misses) * bare.unpin;
        Self {
            footprint,
            limit,
            counters,
            hit_rate,
            lookup_pages: per(counters.pages, counters.lookups),
            pin_rate: per(counters.pins, counters.lookups),
            unpin_rate: per(counters.unpins, counters.lookups),
            pages_per_pin,
            ni_miss_rate: per(counters.ni_misses, counters.ni_lookups),
            hit_ns,
            pin_ns: per(counters.pin_ns, counters.pins),
            unpin_ns: per(counters.unpin_ns, counters.unpins),
            miss_ns: per(counters.miss_ns, misses),
            host_ns: total_ns.max(0.0) / counters.lookups.max(1) as f64,
            predicted_miss_ns,
            predicted_host_ns: hit_rate * hit_ns + (1.0 - hit_rate) * predicted_miss_ns,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::utlb::Policy;
    use crate::utlb::trace::Record;

    fn trace(pages: &[(u64, u64)]) -> Trace {
        let records = pages.iter().map(|(first, count)| Record {
            kind: Kind::Lookup(Access::Read),
            pages: *first..first + count,
        });
        Trace { program: "test".into(), pid: 1, page_size: 4096, records: records.collect() }
    }

    fn replay(trace: &Trace, pages: u64, policy: Policy) -> Replayed {
        let limit = pages * vmmc_os::page_size() as u64;
        let options = Options::default().limit(limit).policy(policy).bounce(0);
        Replay { options }.run(trace).unwrap()
    }

    #[test]
    #[cfg_attr(miri, ignore = "pins pages of this process")]
    fn a_loop_over_more_than_fits_has_the_counts_of_each_policy() {
        // Pages 0 to 3 in turn, ten times, room for three.
        let looped = trace(&(0..40).map(|at| (0x7f00 + at % 4, 1)).collect::<Vec<_>>());
        let page = vmmc_os::page_size() as u64;
        let all = replay(&looped, 4, Policy::Lru);
        assert_eq!((all.counters.check_misses, all.counters.pins, all.counters.unpins), (4, 4, 0));
        assert_eq!((all.footprint, all.counters.peak_pinned_bytes), (4 * page, 4 * page));
        for policy in [Policy::Lru, Policy::Fifo] {
            let none = replay(&looped, 3, policy);
            assert_eq!((none.counters.check_misses, none.counters.pages_unpinned), (40, 37));
            assert!(none.hit_rate.abs() < 1e-9);
        }
        // Most recently used keeps two of the others each time: one miss in three.
        let mru = replay(&looped, 3, Policy::Mru);
        assert_eq!(mru.counters.check_misses, 4 + 36 / 3);
        assert_eq!(mru.counters.peak_pinned_bytes, 3 * page);
    }

    #[test]
    #[cfg_attr(miri, ignore = "pins pages of this process")]
    fn runs_are_pinned_by_one_call_and_the_engine_misses_once_a_page() {
        let found = replay(&trace(&[(10, 5), (100, 1), (12, 4), (10, 6)]), 64, Policy::Lru);
        let counters = found.counters;
        // The third lookup has pages 12 to 14 already; page 15 is the only one that is missing.
        assert_eq!((counters.lookups, counters.pages, counters.check_misses), (4, 16, 3));
        assert_eq!((counters.pins, counters.pages_pinned, counters.unpins), (3, 7, 0));
        assert_eq!((counters.ni_lookups, counters.ni_misses), (16, 7));
        assert!((found.lookup_pages - 4.0).abs() < 1e-9);
        assert!(found.hit_ns >= 0.0 && found.miss_ns > 0.0 && found.predicted_host_ns > 0.0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "asks how much memory there is")]
    fn nothing_to_replay_is_said() {
        let options = Options::default();
        assert_eq!(Replay { options }.run(&trace(&[])).unwrap_err(), ReplayError::Empty);
        let huge = trace(&[(0, 1 << 40)]);
        let options = Options::default();
        assert!(matches!(Replay { options }.run(&huge), Err(ReplayError::Memory(_))));
    }
}
