//! Transfer redirection: a receiver posts memory for a range of its export, and what arrives there goes to it directly.
//!
//! Who wins which race is decided in [`vmmc_shm::redirection`]; here is the memory. An export that is
//! [redirectable](crate::ExportOptions::redirectable) has a second shared memory, which importers that may write map
//! beside it:
//!
//! ```text
//! pool: posted memory, handed out in whole pages | one page: the table of postings
//! ```

use std::collections::{BTreeMap, HashMap};
use std::iter::once;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmmc_os::{
    Access, Descriptor, Mapping, OsError, create_memory, detach_in_place, page_size, reserve_memory,
};
use vmmc_proto::PAGE_SIZE;
use vmmc_shm::copy;
use vmmc_shm::redirection::{MAX_POSTED, PIECE, POSTINGS, Place, Table, Withdrawn};

use crate::export::{AccessError, Export};
use crate::process::lock;

/// How long a receiver waits for arrivals that are being copied into posted memory, before it replaces its pages. A
/// piece takes some 20 µs; longer takes only a sender that lost its core.
const PATIENCE: Duration = Duration::from_millis(1);

/// Why memory cannot be posted, or a posting not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
#[non_exhaustive]
pub enum RedirectError {
    /// the export cannot be redirected: create it with `.redirectable(bytes)`
    NotRedirectable,
    /// outside the export, empty, or 2 GiB and more: check offset and length
    Range,
    /// another posting covers part of the range: finish it first
    Overlap,
    /// seven buffers of the pool are posted already: finish one first
    Postings,
    /// no room in the pool: drop buffers, or create the export with a larger pool
    Pool,
    /// the buffer or posting is another export's: use it with that one
    Foreign,
    /// a sender stopped while it wrote, and its pages cannot be replaced ({0}): free memory; the buffer is given up
    StillShared(OsError),
}

/// A buffer that could not be posted, and why.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotPosted {
    /// Why.
    pub error: RedirectError,
    /// The buffer, as it was.
    pub buffer: PostedBuffer,
}

/// Memory that arrivals can be redirected to.
#[derive(Debug)]
pub enum PostedBuffer {
    /// Of the export's pool: importers reach it, and bytes come without a second copy.
    Shared(RedirectBuffer),
    /// Any other memory, which importers cannot reach: bytes lie in the default buffer until
    /// [`Export::finish`] copies them, once.
    Private(Vec<u8>),
}

/// Memory of an export's pool, whole pages; see [`Export::redirect_buffer`].
///
/// Importers may write to it at any time, as to the export, until it is [detached](Self::detach): copy, then check.
#[derive(Debug)]
pub struct RedirectBuffer {
    pool: Arc<Pool>,
    start: usize,
    len: usize,
}

/// A posting; see [`Export::post`]. Dropping it withdraws it, and gives the buffer up.
#[derive(Debug)]
#[must_use = "a posting that is dropped is withdrawn"]
pub struct Posting {
    pool: Arc<Pool>,
    generation: u64,
    /// `None` once it is finished.
    buffer: Option<PostedBuffer>,
}

/// What [`Export::finish`] gives back.
#[derive(Debug)]
pub struct Redirected {
    /// The buffer; all its bytes are those that arrived for its range.
    pub buffer: PostedBuffer,
    /// The ranges of the buffer that arrived in it directly, in order. All else was copied from the default buffer.
    pub redirected: Vec<Range<usize>>,
}

impl Export {
    /// Takes `len` bytes out of the pool; zero when they are used for the first time.
    ///
    /// # Errors
    /// [`RedirectError::NotRedirectable`], [`RedirectError::Range`] or [`RedirectError::Pool`].
    pub fn redirect_buffer(&self, len: usize) -> Result<RedirectBuffer, RedirectError> {
        let pool = self.pool.as_ref().ok_or(RedirectError::NotRedirectable)?;
        if len == 0 || len > pool.len {
            return Err(if len == 0 { RedirectError::Range } else { RedirectError::Pool });
        }
        let size = len.next_multiple_of(page_size());
        let start = lock(&pool.state).take(pool.len, size).ok_or(RedirectError::Pool)?;
        Ok(RedirectBuffer { pool: Arc::clone(pool), start, len })
    }

    /// Posts memory for `buffer.len()` bytes from `offset` on: what is sent there from now on goes to `buffer`. The sender does not
    /// know. A send in progress is redirected from its next 128 KiB on. Signal words are not redirected, and a fetch
    /// reads the default buffer. No system call.
    ///
    /// # Errors
    /// See [`RedirectError`]; the buffer comes back.
    pub fn post(
        &self,
        offset: usize,
        buffer: impl Into<PostedBuffer>,
    ) -> Result<Posting, NotPosted> {
        let buffer = buffer.into();
        match self.try_post(offset, &buffer) {
            Ok((pool, generation)) => Ok(Posting { pool, generation, buffer: Some(buffer) }),
            Err(error) => Err(NotPosted { error, buffer }),
        }
    }

    /// Ends a posting and copies what lies in the default buffer: the buffer then holds whatever arrived for the range. A send that is not
    /// complete (no signal or notification came) may come in part, and the rest of it lies in the
    /// default buffer later. Waits at most about a millisecond for senders that are copying; a sender that takes longer, or died, no longer
    /// reaches the buffer, whose pages are replaced.
    ///
    /// # Errors
    /// [`RedirectError::Foreign`] or [`RedirectError::StillShared`]; the posting is over all the same.
    pub fn finish(&self, mut posting: Posting) -> Result<Redirected, RedirectError> {
        if !self.pool.as_ref().is_some_and(|pool| Arc::ptr_eq(pool, &posting.pool)) {
            return Err(RedirectError::Foreign);
        }
        let Some(mut buffer) = posting.buffer.take() else { return Err(RedirectError::Foreign) };
        let (offset, redirected) = posting.pool.withdraw(posting.generation, &buffer)?;
        let mut at = 0;
        for range in redirected.iter().cloned().chain(once(buffer.len()..buffer.len())) {
            let count = range.start - at;
            // SAFETY: `post` checked that the buffer's length from `offset` on is inside the export, and the ranges are
            // inside the buffer; the two are different memory, mapped as long as `self` and `buffer`.
            unsafe { copy(self.as_ptr().add(offset + at), buffer.start().add(at), count) };
            at = range.end;
        }
        Ok(Redirected { buffer, redirected })
    }

    fn try_post(
        &self,
        offset: usize,
        buffer: &PostedBuffer,
    ) -> Result<(Arc<Pool>, u64), RedirectError> {
        let pool = self.pool.as_ref().ok_or(RedirectError::NotRedirectable)?;
        let len = buffer.len();
        if len == 0 || len as u64 > MAX_POSTED || offset > self.len() || len > self.len() - offset {
            return Err(RedirectError::Range);
        }
        let destination = match buffer {
            PostedBuffer::Private(_) => None,
            PostedBuffer::Shared(shared) if !Arc::ptr_eq(&shared.pool, pool) => {
                return Err(RedirectError::Foreign);
            }
            PostedBuffer::Shared(shared) => Some(shared.start),
        };
        let generation = pool.post(offset..offset + len, destination)?;
        Ok((Arc::clone(pool), generation))
    }
}

impl Posting {
    /// The ranges of the buffer that were redirected so far, in order; empty for private memory.
    pub fn redirected(&self) -> Vec<Range<usize>> {
        let state = lock(&self.pool.state);
        let open = state.open.get(&self.generation);
        let Some((index, open)) = open.and_then(|open| Some((open.index?, open))) else {
            return Vec::new();
        };
        to_usize(self.pool.table().redirected(index, open.range.len() as u64))
    }
}

impl Drop for Posting {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            let _ = self.pool.withdraw(self.generation, &buffer);
        }
    }
}

impl PostedBuffer {
    /// Bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        match self {
            Self::Shared(buffer) => buffer.len,
            Self::Private(bytes) => bytes.len(),
        }
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// When the range is outside.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), AccessError> {
        if offset > self.len() || bytes.len() > self.len() - offset {
            return Err(AccessError::Range);
        }
        let start = match self {
            Self::Shared(buffer) => buffer.as_ptr().cast_const(),
            Self::Private(bytes) => bytes.as_ptr(),
        };
        // SAFETY: the range was checked; `bytes` is memory of its own.
        unsafe { copy(start.add(offset), bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn start(&mut self) -> *mut u8 {
        match self {
            Self::Shared(buffer) => buffer.as_ptr(),
            Self::Private(bytes) => bytes.as_mut_ptr(),
        }
    }
}

impl From<RedirectBuffer> for PostedBuffer {
    fn from(buffer: RedirectBuffer) -> Self {
        Self::Shared(buffer)
    }
}

impl From<Vec<u8>> for PostedBuffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Private(bytes)
    }
}

impl RedirectBuffer {
    /// Bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// First byte; valid for [`Self::len`] bytes as long as `self`. Importers may write there: use volatile or atomic
    /// access, or copies, never references.
    pub fn as_ptr(&self) -> *mut u8 {
        // SAFETY: the buffer lies inside the mapping.
        unsafe { self.pool.area.as_ptr().add(self.start) }
    }

    /// Makes the memory private, at the same address with the same contents: no importer reaches it any more, and what is
    /// posted with it is copied by [`Export::finish`]. Copies it once.
    ///
    /// # Errors
    /// When memory is exhausted; it is still shared then.
    pub fn detach(&mut self) -> Result<&mut [u8], OsError> {
        self.pool.detach(&mut lock(&self.pool.state), self.start)?;
        // SAFETY: nobody else has these pages now, and the borrow of `self` is exclusive.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len) })
    }
}

impl Drop for RedirectBuffer {
    fn drop(&mut self) {
        let mut state = lock(&self.pool.state);
        if state.taken.get(&self.start).is_some_and(|taken| !taken.retired) {
            state.taken.remove(&self.start);
        }
    }
}

/// The receiver's side: posted memory, and what is posted.
#[derive(Debug)]
pub(crate) struct Pool {
    area: Mapping,
    /// Bytes before the table, whole pages.
    len: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Of the last posting.
    generation: u64,
    open: HashMap<u64, Open>,
    /// By start, in whole pages.
    taken: BTreeMap<usize, Taken>,
}

#[derive(Debug)]
struct Open {
    /// Of the export.
    range: Range<usize>,
    /// In the table; none for memory that importers cannot reach.
    index: Option<usize>,
}

#[derive(Debug)]
struct Taken {
    end: usize,
    /// Other pages lie here than importers see.
    private: bool,
    /// Was to become private, whatever came of it: not posted and not handed out again, for a sender may still write to it.
    retired: bool,
}

impl State {
    /// The first gap of `size` bytes.
    fn take(&mut self, len: usize, size: usize) -> Option<usize> {
        let mut start = 0;
        for (next, taken) in &self.taken {
            if next - start >= size {
                break;
            }
            start = taken.end;
        }
        let end = start.checked_add(size).filter(|end| *end <= len)?;
        self.taken.insert(start, Taken { end, private: false, retired: false });
        Some(start)
    }
}

impl Pool {
    /// A pool of at least `len` bytes, and its memory.
    pub(crate) fn new(len: usize, floor: i32) -> Result<(Self, Descriptor), OsError> {
        let len = len.next_multiple_of(page_size());
        let memory = create_memory(len + PAGE_SIZE)?.raise(floor)?;
        reserve_memory(&memory, len as u64, PAGE_SIZE as u64)?;
        let area = Mapping::new(&memory, 0, len + PAGE_SIZE, Access::ReadWrite)?;
        Ok((Self { area, len, state: Mutex::new(State::default()) }, memory))
    }

    /// Bytes of posted memory.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Makes all memory that was handed out private: the export is revoked.
    pub(crate) fn detach_all(&self) -> Result<(), OsError> {
        let mut state = lock(&self.state);
        let starts: Vec<usize> = state.taken.keys().copied().collect();
        starts.into_iter().try_for_each(|start| self.detach(&mut state, start))
    }

    fn post(&self, range: Range<usize>, destination: Option<usize>) -> Result<u64, RedirectError> {
        let mut state = lock(&self.state);
        let meets = |open: &Open| open.range.start < range.end && range.start < open.range.end;
        if state.open.values().any(meets) {
            return Err(RedirectError::Overlap);
        }
        let reachable = |start: &usize| state.taken.get(start).is_some_and(|taken| !taken.retired);
        let destination = destination.filter(reachable);
        let mut index = None;
        if destination.is_some() {
            let free = |index: &usize| state.open.values().all(|open| open.index != Some(*index));
            index = Some((0..POSTINGS).find(free).ok_or(RedirectError::Postings)?);
        }
        state.generation += 1;
        let generation = state.generation;
        if let (Some(index), Some(to)) = (index, destination) {
            let (start, len) = (range.start as u64, range.len() as u64);
            self.table().post(index, generation, start, len, to as u64);
        }
        state.open.insert(generation, Open { range, index });
        Ok(generation)
    }

    /// Ends a posting: its offset in the export, and what was redirected.
    fn withdraw(
        &self,
        generation: u64,
        buffer: &PostedBuffer,
    ) -> Result<(usize, Vec<Range<usize>>), RedirectError> {
        let mut state = lock(&self.state);
        let open = state.open.remove(&generation).ok_or(RedirectError::Foreign)?;
        let (Some(index), PostedBuffer::Shared(shared)) = (open.index, buffer) else {
            return Ok((open.range.start, Vec::new()));
        };
        let len = open.range.len() as u64;
        let Withdrawn { redirected, stalled } =
            self.table().withdraw(index, generation, len, patience());
        if stalled {
            self.detach(&mut state, shared.start).map_err(RedirectError::StillShared)?;
        }
        Ok((open.range.start, to_usize(redirected)))
    }

    /// Replaces the pages of a range that was handed out, unless that was done.
    fn detach(&self, state: &mut State, start: usize) -> Result<(), OsError> {
        let Some(taken) = state.taken.get_mut(&start).filter(|taken| !taken.private) else {
            return Ok(());
        };
        taken.retired = true;
        // SAFETY: whole pages of our own mapping, which nobody here holds references to while they are shared; others
        // may write them meanwhile, which the copy tolerates.
        let detached = unsafe { detach_in_place(self.area.as_ptr().add(start), taken.end - start) };
        taken.private = detached.is_ok();
        detached
    }

    fn table(&self) -> &Table {
        // SAFETY: the page behind the pool is mapped and writable as long as `self`; the memory cannot shrink.
        unsafe { Table::at(self.area.as_ptr().add(self.len)) }
    }
}

/// Spins for a moment, then gives way, until the time is over.
fn patience() -> impl FnMut() -> bool {
    let mut until = None;
    let mut looks = 0;
    move || {
        looks += 1;
        if looks < 100 {
            std::hint::spin_loop();
            return true;
        }
        std::thread::yield_now();
        Instant::now() < *until.get_or_insert_with(|| Instant::now() + PATIENCE)
    }
}

#[allow(clippy::cast_possible_truncation, reason = "inside a buffer of this process")]
fn to_usize(ranges: Vec<Range<u64>>) -> Vec<Range<usize>> {
    ranges.into_iter().map(|range| range.start as usize..range.end as usize).collect()
}

/// The sender's side: that of importers, and of the engine that places what other nodes send. The engine has a mapping of its own, as if it were in
/// another process: the pages of the receiver's are replaced where it was too slow.
#[derive(Debug)]
pub(crate) struct Redirection {
    area: Mapping,
    pool: usize,
}

impl Redirection {
    pub(crate) fn map(memory: &Descriptor, pool: usize) -> Result<Self, OsError> {
        let area = Mapping::new(memory, 0, pool + PAGE_SIZE, Access::ReadWrite)?;
        Ok(Self { area, pool })
    }

    /// Whether `len` bytes go to the default buffer in one piece.
    #[inline]
    pub(crate) fn is_idle(&self, len: usize) -> bool {
        len as u64 <= PIECE && self.table().is_idle()
    }

    /// Copies bytes for `offset` of the export, whose first byte is `start`, to wherever they belong.
    ///
    /// # Safety
    /// The export is writable from `start + offset` on for `bytes`, and so mapped here.
    pub(crate) unsafe fn place(&self, start: *mut u8, offset: usize, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let place =
                self.table().place((offset + at) as u64, rest.len() as u64, self.pool as u64);
            #[allow(clippy::cast_possible_truncation, reason = "at most the rest, inside the pool")]
            let (count, to) = match &place {
                Place::Default(count) => (*count as usize, None),
                Place::Posted(claim) => (claim.len() as usize, Some(claim.destination() as usize)),
            };
            if let Some(to) = to {
                // SAFETY: the table only names places inside the pool, which lies before it in the mapping.
                unsafe { copy(rest.as_ptr(), self.area.as_ptr().add(to), count) };
            }
            let accepted = match place {
                Place::Default(_) => false,
                Place::Posted(claim) => claim.commit(),
            };
            if !accepted {
                // SAFETY: the caller's promise; `count` is at most the rest.
                unsafe { copy(rest.as_ptr(), start.add(offset + at), count) };
            }
            at += count;
        }
    }

    #[inline]
    fn table(&self) -> &Table {
        // SAFETY: as in `Pool::table`; the service checked that the memory is that long and cannot shrink.
        unsafe { Table::at(self.area.as_ptr().add(self.pool)) }
    }
}
