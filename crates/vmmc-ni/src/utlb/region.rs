//! Memory whose pages count as pinned without asking the system: regions and buffers.

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock, Weak};

use vmmc_os::{Event, MemoryWatch, OsError, PrivateMemory, start_thread, wait_readable};

use super::sync::{Ordering, lock};
use super::{SUSPECT, Shared, Utlb};

/// Memory that is known to stay mapped as long as this exists. When it is dropped its pages are unpinned, as far as no transfer uses them.
#[derive(Debug)]
pub struct Region<'a> {
    shared: Arc<Shared>,
    start: usize,
    len: usize,
    memory: PhantomData<&'a [u8]>,
}

impl Utlb {
    /// Looks up a buffer's pages at the cost of a hit from now on: it is borrowed, so it cannot be freed meanwhile.
    pub fn region<'a>(&self, memory: &'a [u8]) -> Region<'a> {
        // SAFETY: borrowed for `'a`, which the region does not outlive.
        unsafe { self.declare(memory.as_ptr(), memory.len()) }
    }

    /// As [`Self::region`], for memory that others write meanwhile. Any range may be declared, also before it is mapped; it
    /// costs 32 bytes of table for each page.
    ///
    /// # Safety
    /// The caller does not unmap or replace a page of the range while the region lives.
    pub unsafe fn declare<'a>(&self, start: *const u8, len: usize) -> Region<'a> {
        let region = Region {
            shared: Arc::clone(&self.shared),
            start: start.addr(),
            len,
            memory: PhantomData,
        };
        region.shared.trust(region.start, len);
        region
    }

    /// Memory of the library's own, zeroed, for transfers. The system tells the table when somebody unmaps, empties or moves
    /// it all the same, if it allows that: see [`Self::detection`].
    ///
    /// # Errors
    /// See [`AllocateError`].
    pub fn allocate(&self, len: usize) -> Result<Buffer, AllocateError> {
        let memory = PrivateMemory::new(len).map_err(AllocateError)?;
        let (start, mapped) = (memory.as_ptr().addr(), memory.len());
        let watched = match self.shared.detector.watch(&self.shared) {
            Ok(watch) => watch.watch(start, mapped).is_ok(),
            Err(_) => false,
        };
        if watched {
            self.shared.trust(start, mapped);
        }
        Ok(Buffer { shared: Arc::clone(&self.shared), memory: Some(memory), len, watched })
    }

    /// Whether the system tells us of lost [`Buffer`]s.
    pub fn detection(&self) -> Detection {
        match self.shared.detector.watch(&self.shared) {
            Ok(_) => Detection::Events,
            Err(cause) => Detection::AskEachTime(cause),
        }
    }
}

/// How the loss of a [`Buffer`]'s memory is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detection {
    /// The system reports it (userfaultfd events).
    Events,
    /// The system does not report it, for this reason: each lookup asks, which costs a system call. Remedy: allow userfaultfd
    /// (see `vmmc doctor`).
    AskEachTime(OsError),
}

/// no memory for the buffer ({0}): ask for at least one byte, or free some address space
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub struct AllocateError(OsError);

impl Drop for Region<'_> {
    fn drop(&mut self) {
        self.shared.distrust(self.start, self.len);
        self.shared.forget(self.shared.pages(self.start, self.len));
    }
}

/// Memory of the library's own. Unmapped when dropped and no transfer uses it any more.
pub struct Buffer {
    shared: Arc<Shared>,
    /// Always there until dropped.
    memory: Option<PrivateMemory>,
    len: usize,
    watched: bool,
}

impl Buffer {
    /// First byte; valid for `len()` bytes as long as the buffer lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.as_ref().map_or(std::ptr::null_mut(), PrivateMemory::as_ptr)
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Its bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped, zeroed at first, and borrowed from `self`; an engine that writes it at the same time does so on behalf
        // of a fetch whose destination the caller has lent out.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let (start, len) = (memory.as_ptr().addr(), memory.len());
        if self.watched {
            // Before unmapping: nobody has to be told of our own doing.
            if let Ok(watch) = self.shared.detector.watch(&self.shared) {
                watch.unwatch(start, len);
            }
            self.shared.distrust(start, len);
        }
        let mut left = lock(&self.shared.detector.left);
        left.push(memory);
        // A transfer may still use this buffer, or one of those that were left before.
        left.retain(|memory| {
            let pages = self.shared.pages(memory.as_ptr().addr(), memory.len());
            self.shared.forget(pages) > 0
        });
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Shared {
    fn trust(&self, start: usize, len: usize) {
        let _host = lock(&self.host);
        for page in self.pages(start, len) {
            if let Some(entry) = self.table.entry_or_new(page) {
                entry.trust();
            }
        }
    }

    fn distrust(&self, start: usize, len: usize) {
        let _host = lock(&self.host);
        self.each_entry(self.pages(start, len), |_, entry| entry.distrust());
    }
}

/// Hears of lost memory in a thread of its own, which starts with the first buffer.
#[derive(Debug, Default)]
pub(super) struct Detector {
    hearing: OnceLock<Result<Hearing, OsError>>,
    /// Buffers that were dropped while a transfer used them.
    left: super::Mutex<Vec<PrivateMemory>>,
}

/// What the thread and the table share.
#[derive(Debug, Clone)]
struct Hearing {
    watch: Arc<MemoryWatch>,
    stop: Arc<Event>,
}

impl Detector {
    fn watch(&self, shared: &Arc<Shared>) -> Result<&MemoryWatch, OsError> {
        let hearing = self.hearing.get_or_init(|| {
            let watch = Arc::new(MemoryWatch::new()?);
            let hearing = Hearing { watch, stop: Arc::new(Event::new()?) };
            let (weak, thread) = (Arc::downgrade(shared), hearing.clone());
            start_thread("vmmc-utlb", move || hear(&weak, &thread.watch, &thread.stop))?;
            Ok(hearing)
        });
        hearing.as_ref().map(|hearing| &*hearing.watch).map_err(|cause| *cause)
    }

    pub(super) fn stop(&self) {
        if let Some(Ok(hearing)) = self.hearing.get() {
            hearing.stop.signal();
        }
    }
}

/// Notes each loss *before* the call that caused it returns: that call ends when its event is read, and no lookup hits from
/// before the reading until the loss is noted.
fn hear(shared: &Weak<Shared>, watch: &MemoryWatch, stop: &Event) {
    loop {
        let ready = wait_readable(&[watch.as_fd(), stop.as_fd()], None).unwrap_or(0);
        if ready & 2 != 0 {
            return;
        }
        let Some(shared) = shared.upgrade() else { return };
        let mut host = lock(&shared.host);
        shared.sync.fetch_or(SUSPECT, Ordering::SeqCst);
        while let Some(lost) = watch.next_lost() {
            let pages = shared.pages(lost.start, lost.len());
            shared.each_entry(pages.clone(), |_, entry| entry.doubt());
            shared.lose(&mut host, pages);
        }
        shared.sync.fetch_and(!SUSPECT, Ordering::SeqCst);
    }
}
