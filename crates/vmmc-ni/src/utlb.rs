//! The user-managed translation table (UTLB): pins local pages when they are first used, unpins by policy under a limit.
//!
//! An engine may use a page of a process only while the page is *pinned*. Pinning costs a system call; so a process keeps pages
//! pinned for as long as it may, and this table says which they are. A lookup of pages that are pinned takes no lock, makes no system
//! call, and costs some nanoseconds. (The paper's section 3.1; its tables 2 to 4 give the costs.)
//!
//! ```
//! use vmmc_ni::utlb::{Access, Located, Options, Utlb};
//!
//! let utlb = Utlb::new(Options::default().limit(1 << 20));
//! let buffer = vec![7u8; 10_000];
//! let region = utlb.region(&buffer); // the buffer stays where it is as long as the region lives
//! let mut rest = &buffer[..];
//! while !rest.is_empty() {
//!     let len = match utlb.lookup(rest.as_ptr(), rest.len(), Access::Read)? {
//!         Located::Pinned(hold) => hold.len(), // pinned until `hold` is dropped: transmit from here
//!         Located::Bounce(mut bounce) => {
//!             let len = bounce.len();
//!             bounce.bytes().copy_from_slice(&rest[..len]); // transmit the copy
//!             len
//!         }
//!     };
//!     rest = &rest[len..];
//! }
//! drop(region);
//! assert_eq!(utlb.counters().pinned_bytes, utlb.counters().bounce_bytes);
//! # Ok::<(), vmmc_ni::utlb::LookupError>(())
//! ```
//!
//! # What a translation is
//!
//! In the paper it is a physical address for the adapter's DMA. Here the engine is software in this process and uses virtual
//! addresses; what it needs is that the page is there and stays while a transfer runs. So an entry holds whether the page is
//! pinned, how many transfers use it, its *generation*, and one opaque word, the key, that a fabric's [`Memory`] gives for the
//! page; for [`LocalMemory`] it is the page's number. A [`Translator`] is the engine's side: a small cache of keys before the table.
//!
//! # Promises
//!
//! - **Limits.** Pinned bytes, bounce buffers included, never exceed [`Options::limit`], nor what the [`Account`] grants.
//! - **In flight.** A page under a [`Hold`] is never unpinned.
//! - **Never failing for want of room.** When the limit is reached, pages go by [`Policy`]. When none can go, the lookup gives a
//!   bounce buffer. Only when each of those is in use too, it says so: [`LookupError::Exhausted`], back-pressure.
//! - **Never silently wrong.** Nothing is intercepted: no malloc, no munmap. A page counts as pinned without asking the system only
//!   while the table knows that it cannot go unnoticed: in a [`Region`], whose memory is borrowed, and in a [`Buffer`],
//!   which the system watches for us. Any other page costs each lookup one system call of about 0.2 µs, which finds memory that was
//!   unmapped, or replaced at the same address. What was translated before is stale then ([`Hold::is_current`]), and the
//!   lookup translates what is there now, or refuses.
//!
//! # Limits of it
//!
//! Locks do not nest in Linux: memory that the program has locked itself is unlocked when the table unpins it. A forked child has none of
//! its parent's pins, though its copy of the table says so: it opens VMMC anew.
//!
//! # Threads
//!
//! Everything may be called from every thread. Lookups that hit do not wait for each other, nor for a miss; misses wait for each other.
//! The order of [`Policy::Lru`] and [`Policy::Mru`] is exact for the lookups of one thread, and between threads exact from
//! one miss to the next.

mod bounce;
mod counters;
mod host;
mod lanes;
mod memory;
mod ni_cache;
mod policy;
mod region;
mod replay;
mod sync;
mod table;
pub mod trace;
mod translator;

use std::fmt;
use std::sync::Arc;

use bounce::Pool;
pub use counters::Counters;
use host::Host;
#[cfg(loom)]
pub use lanes::set_lane;
use lanes::{Lanes, MOST_PAGES, Place};
pub use memory::{Access, Account, LocalMemory, Memory, NoAccount, PinError};
use ni_cache::NiCache;
pub use policy::{ParsePolicyError, Policy};
use region::Detector;
pub use region::{AllocateError, Buffer, Detection, Region};
pub use replay::{Replay, ReplayError, Replayed};
use sync::{AtomicU64, Mutex, Ordering};
use table::{PINNED, TRUSTED, Table, WRITABLE};
use trace::{Kind, Recorder};
pub use translator::{Stale, Translation, Translator};

/// How a table is to be.
#[derive(Debug, Clone, Default)]
pub struct Options {
    limit: Option<u64>,
    policy: Policy,
    bounce: Option<usize>,
    ni_entries: Option<usize>,
    trace: Option<Arc<Recorder>>,
    measure: bool,
}

impl Options {
    /// The most bytes pinned at once, bounce buffers included. Default: what the system lets this process pin (`ulimit -l`), or
    /// an eighth of the machine's memory if it sets no limit.
    #[must_use]
    pub fn limit(mut self, bytes: u64) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// Which pages go first. Default: [`Policy::Lru`].
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Bytes of bounce buffers, in pieces of 64 KiB; at most half of the limit. Default: 256 KiB. With 0, a lookup that finds no
    /// room is [`LookupError::Exhausted`].
    #[must_use]
    pub fn bounce(mut self, bytes: usize) -> Self {
        self.bounce = Some(bytes);
        self
    }

    /// Entries of the engine's own cache, made a power of two. Default: 1024.
    #[must_use]
    pub fn ni_entries(mut self, entries: usize) -> Self {
        self.ni_entries = Some(entries);
        self
    }

    /// Record lookups. Each then costs a lock.
    #[must_use]
    pub fn trace(mut self, recorder: Arc<Recorder>) -> Self {
        self.trace = Some(recorder);
        self
    }

    /// Take the time of misses, pins and unpins; each then costs some 0.1 µs more. Default: no.
    #[must_use]
    pub fn measure(mut self, measure: bool) -> Self {
        self.measure = measure;
        self
    }
}

/// Why a lookup gives nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
#[non_exhaustive]
pub enum LookupError {
    /// part of the buffer is not mapped, or may not be accessed like that: pass memory that is there, and writable for a fetch
    NotMapped,
    /// all that may be pinned and all bounce buffers are in use: let a transfer complete, or raise the limit
    Exhausted,
}

/// Where an engine finds the bytes.
#[derive(Debug)]
pub enum Located<'a> {
    /// In place.
    Pinned(Hold<'a>),
    /// In a buffer between: copy a source there before the transfer, or out of it after a fetch.
    Bounce(Bounce),
}

/// The table of a process. A clone is the same table.
#[derive(Debug, Clone)]
pub struct Utlb {
    shared: Arc<Shared>,
}

/// What clones share.
pub(crate) struct Shared {
    table: Table,
    lanes: Lanes,
    /// What a hit has to know: [`TRACED`], [`SUSPECT`], and above them the stamp of the last miss.
    sync: AtomicU64,
    ni: NiCache,
    memory: Box<dyn Memory>,
    account: Box<dyn Account>,
    host: Mutex<Host>,
    pool: Pool,
    /// Pages that may be pinned beside the bounce buffers.
    limit: usize,
    measure: bool,
    verifications: AtomicU64,
    /// Whether an engine has the translator.
    translator: AtomicU64,
    trace: Option<Arc<Recorder>>,
    detector: Detector,
}

/// Memory was lost and the table does not know yet which: lookups go through the lock.
const SUSPECT: u64 = 1;
/// Lookups are recorded.
const TRACED: u64 = 2;
const ATTENTION: u64 = SUSPECT | TRACED;
const STAMP: u32 = 2;

impl Utlb {
    /// A table of this process's memory, without an account.
    pub fn new(options: Options) -> Self {
        Self::with(options, LocalMemory::new(), NoAccount)
    }

    /// A table over other ways to pin, and with an account.
    pub fn with(
        options: Options,
        memory: impl Memory + 'static,
        account: impl Account + 'static,
    ) -> Self {
        let page = vmmc_os::page_size();
        let limit = options.limit.unwrap_or_else(default_limit);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX) / page;
        let bounce = options.bounce.unwrap_or(256 << 10) / page;
        let mut bounce = bounce.min(limit / 2);
        let granted = account.reserve((bounce * page) as u64);
        bounce = bounce.min(usize::try_from(granted).unwrap_or(usize::MAX) / page);
        let pool = Pool::new(bounce * page, &memory);
        let used = if pool.pinned { pool.bytes() / page } else { 0 };
        let traced = if options.trace.is_some() { TRACED } else { 0 };
        let shared = Shared {
            table: Table::new(page),
            lanes: Lanes::new(),
            sync: AtomicU64::new(traced),
            ni: NiCache::new(options.ni_entries.unwrap_or(1024)),
            memory: Box::new(memory),
            account: Box::new(account),
            host: Mutex::new(Host::new(options.policy, limit - used)),
            pool,
            limit: limit - used,
            measure: options.measure,
            verifications: AtomicU64::new(0),
            translator: AtomicU64::new(0),
            trace: options.trace,
            detector: Detector::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Finds the bytes at `start` for an engine, pinning what is not pinned: as many of the `len` bytes as can be had at once, at
    /// least one; look up the rest when those are done. The memory is not touched otherwise than by bringing it in; any address
    /// may be asked for.
    ///
    /// A hit takes no lock, makes no system call and allocates nothing.
    ///
    /// # Errors
    /// See [`LookupError`].
    #[inline]
    pub fn lookup(
        &self,
        start: *const u8,
        len: usize,
        access: Access,
    ) -> Result<Located<'_>, LookupError> {
        let shared = &self.shared;
        let (start, shift) = (start.addr(), shared.table.shift);
        let last = start.wrapping_add(len.wrapping_sub(1));
        let sync = shared.sync.load(Ordering::Acquire);
        // One page: written out, as it is what most lookups are.
        if sync & ATTENTION == 0
            && (start ^ last) >> shift == 0
            && len != 0
            && let page = start >> shift
            && let Some(entry) = shared.table.entry(page)
            && let lane = shared.lanes.own()
            && let Some(place) = shared.lanes.take(lane, page, 1)
        {
            if let Some(generation) = entry.check(flags(access) | TRUSTED) {
                entry.used(shared.lanes.tick(lane, sync >> STAMP, 1));
                let span = Span { first: page, pages: 1, generations: u64::from(generation) };
                return Ok(Located::Pinned(Hold { shared, place, span, len }));
            }
            shared.lanes.release(place);
        }
        self.lookup_range(start, len, access)
    }

    #[inline(never)]
    fn lookup_range(
        &self,
        start: usize,
        len: usize,
        access: Access,
    ) -> Result<Located<'_>, LookupError> {
        let shared = &self.shared;
        let shift = shared.table.shift;
        if let Some(recorder) = &shared.trace {
            recorder.record(Kind::Lookup(access), start, len);
        }
        if len == 0 {
            let (place, span) = (Place::ELSEWHERE, Span::default());
            return Ok(Located::Pinned(Hold { shared, place, span, len: 0 }));
        }
        let last = start.checked_add(len - 1).ok_or(LookupError::NotMapped)?;
        let first = start >> shift;
        let pages = ((last >> shift) - first + 1).min(MOST_PAGES);
        let (place, span) = shared.hold(first, pages, access)?;
        if span.pages > 0 {
            let covered = ((first + span.pages) << shift) - start;
            return Ok(Located::Pinned(Hold { shared, place, span, len: covered.min(len) }));
        }
        let (number, start, size) = shared.pool.take().ok_or(LookupError::Exhausted)?;
        let shared = Arc::clone(shared);
        Ok(Located::Bounce(Bounce { shared, number, start, len: len.min(size) }))
    }

    /// Unpins what a range touches, because its memory will be unmapped or used otherwise. What was translated is stale; pages
    /// that a transfer uses stay, and their number is returned.
    pub fn forget(&self, start: *const u8, len: usize) -> usize {
        if let Some(recorder) = &self.shared.trace {
            recorder.record(Kind::Forget, start.addr(), len);
        }
        self.shared.forget(self.shared.pages(start.addr(), len))
    }

    /// The most bytes pinned at once.
    pub fn limit(&self) -> u64 {
        ((self.shared.limit + self.shared.bounce_pages()) as u64) << self.shared.table.shift
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.shared.counters()
    }
}

/// The flags that a page must have.
#[inline]
fn flags(access: Access) -> u64 {
    match access {
        Access::Read => PINNED,
        Access::Write => PINNED | WRITABLE,
    }
}

fn default_limit() -> u64 {
    vmmc_os::pin_limit().unwrap_or_else(|| vmmc_os::total_memory() / 8)
}

/// Pages as they were when they were looked up: what a command tells an engine. True while the hold exists that it came from, and
/// its memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    first: usize,
    pages: usize,
    /// The sum of the pages' generations: they only grow, so it is the same only while each is.
    generations: u64,
}

/// Pages that stay pinned until this is dropped.
#[derive(Debug)]
pub struct Hold<'a> {
    shared: &'a Arc<Shared>,
    place: Place,
    span: Span,
    len: usize,
}

impl Hold<'_> {
    /// Bytes from the start of the lookup on that are pinned.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The pages.
    #[inline]
    pub fn span(&self) -> Span {
        self.span
    }

    /// `false` once the memory of one of the pages was lost: unmapped, or replaced.
    pub fn is_current(&self) -> bool {
        self.span.is_current(&self.shared.table)
    }

    /// For a transfer that goes on after the call that began it.
    pub fn into_owned(self) -> OwnedHold {
        let hold = std::mem::ManuallyDrop::new(self);
        let (shared, place) = (Arc::clone(hold.shared), hold.place);
        OwnedHold { shared, place, span: hold.span, len: hold.len }
    }
}

impl Drop for Hold<'_> {
    #[inline]
    fn drop(&mut self) {
        self.shared.release(self.place, self.span);
    }
}

/// A [`Hold`] that borrows nothing.
#[derive(Debug)]
pub struct OwnedHold {
    shared: Arc<Shared>,
    place: Place,
    span: Span,
    len: usize,
}

impl OwnedHold {
    /// As [`Hold::len`].
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// As [`Hold::span`].
    pub fn span(&self) -> Span {
        self.span
    }

    /// As [`Hold::is_current`].
    pub fn is_current(&self) -> bool {
        self.span.is_current(&self.shared.table)
    }
}

impl Drop for OwnedHold {
    fn drop(&mut self) {
        self.shared.release(self.place, self.span);
    }
}

impl Span {
    fn numbers(self) -> std::ops::Range<usize> {
        self.first..self.first + self.pages
    }

    fn is_current(self, table: &Table) -> bool {
        let generations = self.numbers().filter_map(|page| table.entry(page));
        generations.map(|entry| u64::from(entry.generation())).sum::<u64>() == self.generations
    }
}

/// A piece of pinned memory between a buffer that could not be pinned and an engine. Free again when dropped.
pub struct Bounce {
    shared: Arc<Shared>,
    number: usize,
    start: *mut u8,
    len: usize,
}

// SAFETY: the memory belongs to the address space, and this value alone uses its piece of it.
unsafe impl Send for Bounce {}
// SAFETY: `&Bounce` gives out only the length.
unsafe impl Sync for Bounce {}

impl Bounce {
    /// Bytes from the start of the lookup on for which it stands.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Its bytes; what is in them at first is left from others.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `Pool::take` gave this piece of mapped memory to nobody else; it stays mapped as long as `shared`.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// Whether the system let us pin it. Else an engine in software can use it nevertheless.
    pub fn is_pinned(&self) -> bool {
        self.shared.pool.pinned
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        self.shared.pool.give_back(self.number);
    }
}

impl fmt::Debug for Bounce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bounce").field("len", &self.len).finish_non_exhaustive()
    }
}

// A panic of a `Memory` or an `Account` leaves the table as it was: what they answer is noted afterwards.
impl std::panic::RefUnwindSafe for Shared {}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("limit", &self.limit).finish_non_exhaustive()
    }
}
