//! Exported memory.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vmmc_os::{Descriptor, Event, Mapping, OsError, detach_in_place, wait_readable};
use vmmc_proto::{ExportDeclaration, ExportId, Request};

use crate::connection::RequestError;
use crate::lanes::{Look, SPIN};
use crate::notification::{Doorbell, Notification, WaitError};
use crate::notified::Notified;
use crate::process::{Inner, lock};
use crate::range::{ExtendError, Extensions};
use crate::redirection::Pool;

mod options;

pub use options::{ExportError, ExportOptions};

/// Why an export could not be taken back in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
#[non_exhaustive]
pub enum UnexportError {
    /// importers were not told, as the node service does not answer; their sends reach nobody all the same
    NotTold,
    /// memory exported in place is still shared ({0}): free memory, then unmap the range before it is used again
    StillShared(OsError),
}

/// Why a local access failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum AccessError {
    /// outside the export: check offset and length against `len()`
    Range,
    /// a signal word lies at a multiple of 8: align the offset
    Unaligned,
}

/// Memory that other processes may import. Dropping it takes it back, as [`Export::unexport`].
///
/// Importers may write while this process reads: what is read by [`Export::read`] is a copy, to be checked after copying. The
/// only ordering is that of the signal word: after [`Export::load_signal`] has seen a value, everything that the same importer sent
/// before is visible.
#[derive(Debug)]
pub struct Export {
    start: *mut u8,
    len: usize,
    id: ExportId,
    process: Arc<Inner>,
    memory: Memory,
    bell: Bell,
    /// The notification thread knows it.
    handled: AtomicBool,
    extensions: Extensions,
    pub(crate) pool: Option<Arc<Pool>>,
}

#[derive(Debug)]
enum Memory {
    Own(Mapping),
    /// Memory of the program; `len` bytes, whole pages.
    InPlace,
    /// Of a pair: the service is told by `pair_drop`.
    Pair(Mapping),
    Gone,
}

#[derive(Debug)]
enum Bell {
    None,
    Mailbox(Arc<Doorbell>),
    /// Of a pair: the peer rings without a message.
    Bare(Event),
}

// SAFETY: `start` points to memory that `memory` keeps mapped (or, in place, that the creator promised to keep); all
// access through it is by copies and atomics, which any thread may do.
unsafe impl Send for Export {}
// SAFETY: as above; methods that take `&self` only copy bytes that other processes may change anyway.
unsafe impl Sync for Export {}

/// An export as it is announced to services.
#[derive(Debug)]
pub(crate) struct Announced {
    pub(crate) declaration: ExportDeclaration,
    memory: Descriptor,
    notify: Option<(Arc<Doorbell>, Descriptor)>,
    redirection: Option<Descriptor>,
}

impl Announced {
    /// Memory and nothing else.
    pub(crate) fn plain(declaration: ExportDeclaration, memory: Descriptor) -> Self {
        Self { declaration, memory, notify: None, redirection: None }
    }

    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut descriptors = vec![self.memory.as_fd()];
        if let Some((doorbell, mailbox)) = &self.notify {
            descriptors.extend([doorbell.event_fd(), mailbox.as_fd()]);
        }
        descriptors.extend(self.redirection.as_ref().map(AsFd::as_fd));
        descriptors
    }
}

impl Export {
    /// One end of a pair: `capacity` bytes of which `mapping` shows the first. Without an event where several pairs share one.
    pub(crate) fn of_pair(
        process: &Arc<Inner>,
        id: ExportId,
        mapping: Mapping,
        capacity: usize,
        event: Option<Event>,
    ) -> Self {
        Self {
            start: mapping.as_ptr(),
            len: mapping.len(),
            id,
            process: Arc::clone(process),
            memory: Memory::Pair(mapping),
            bell: event.map_or(Bell::None, Bell::Bare),
            handled: AtomicBool::new(false),
            extensions: Extensions::new(capacity),
            pool: None,
        }
    }

    /// Its id, for importers.
    pub fn id(&self) -> ExportId {
        self.id
    }

    /// Bytes; of a pair's memory, those mapped at first.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// First byte; valid for [`Export::len`] bytes as long as the export lives. Others write there: use volatile or atomic
    /// access, or copies, never references.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start
    }

    /// Copies bytes out. No system call. Bytes that an importer is writing may come half old, half new.
    ///
    /// # Errors
    /// When the range is outside.
    #[inline]
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), AccessError> {
        let from = self.at(offset, bytes.len())?;
        // SAFETY: `at` checked the range; `bytes` is memory of its own, so the two do not overlap.
        unsafe { vmmc_shm::copy(from, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies bytes in. No system call.
    ///
    /// # Errors
    /// When the range is outside.
    #[inline]
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), AccessError> {
        let to = self.at(offset, bytes.len())?;
        // SAFETY: as in `read`.
        unsafe { vmmc_shm::copy(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    /// Loads a signal word (acquire): what its importer sent before is visible now. No system call.
    ///
    /// # Errors
    /// When the word is outside or not aligned.
    #[inline]
    pub fn load_signal(&self, offset: usize) -> Result<u64, AccessError> {
        let word = self.at(offset, 8)?;
        if !offset.is_multiple_of(8) {
            return Err(AccessError::Unaligned);
        }
        // SAFETY: inside the export (checked), aligned as the start is page-aligned, mapped as long as `self`.
        Ok(unsafe { &*word.cast::<AtomicU64>() }.load(Ordering::Acquire))
    }

    /// Waits for a notification, at most `timeout`. Any number of threads may wait; each notification goes to one. With
    /// [`Duration::ZERO`] it only looks; if it finds none, [`Export::event_fd`] is not readable until one comes.
    ///
    /// # Errors
    /// When none came in time, or the export takes none.
    pub fn wait(&self, timeout: Duration) -> Result<Notification, WaitError> {
        match &self.bell {
            Bell::None => Err(WaitError::NoNotifications),
            Bell::Mailbox(doorbell) if self.process.lanes.is_active() => {
                self.wait_and_poll(doorbell, timeout)
            }
            Bell::Mailbox(doorbell) => doorbell.wait(timeout),
            Bell::Bare(event) => {
                let deadline = Instant::now().checked_add(timeout);
                loop {
                    if let Some(notification) = self.rung(event) {
                        return Ok(notification);
                    }
                    let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
                    if left == Some(Duration::ZERO) {
                        return Err(WaitError::Timeout);
                    }
                    wait_readable(&[event.as_fd()], left).map_err(|_| WaitError::Exhausted)?;
                }
            }
        }
    }

    /// Takes a notification if there is one, without a system call (of a pair: one). For a thread that polls: as long as nobody looks by
    /// [`Export::wait`] or [`Export::notified`], the first importer that notifies makes a system call, and none after it.
    pub fn take_notification(&self) -> Option<Notification> {
        match &self.bell {
            Bell::None => None,
            Bell::Mailbox(doorbell) => doorbell.take(),
            Bell::Bare(event) => self.rung(event),
        }
    }

    /// The next notification as a future, for any executor. It is woken by the library's notification thread, which costs
    /// a wake-up more than a thread in [`Export::wait`]; a runtime that can await descriptors does without it, by
    /// [`Export::event_fd`]. A future that is dropped takes nothing along; of several that wait each notification completes one.
    ///
    /// # Errors
    /// The future's: [`WaitError::NoNotifications`] (pairs included), [`WaitError::NoThread`] or [`WaitError::Exhausted`].
    pub fn notified(&self) -> Notified<'_> {
        Notified::new(self)
    }

    /// Readable while there may be a notification: level-triggered, edge-triggered, in any number of `poll` lists and epoll sets. It stays
    /// readable until [`Export::wait`] finds nothing, so take until it says [`WaitError::Timeout`], then sleep. Reading or
    /// writing the descriptor loses wake-ups.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    ///
    /// let process = vmmc::Process::open()?;
    /// let inbox = process.export(4096).notify(vmmc::Notify::Event).create()?;
    /// let event = inbox.event_fd().expect("it takes notifications"); // into an epoll set, or tokio's AsyncFd
    /// # let sleep_until_readable = |_| {};
    /// loop {
    ///     while let Ok(notification) = inbox.wait(Duration::ZERO) {
    ///         println!("{} bytes at {}", notification.len, notification.offset);
    ///     }
    ///     sleep_until_readable(event);
    /// }
    /// # }
    /// ```
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.bell {
            Bell::None => None,
            Bell::Mailbox(doorbell) => Some(doorbell.event_fd()),
            Bell::Bare(event) => Some(event.as_fd()),
        }
    }

    pub(crate) fn doorbell(&self) -> Option<&Arc<Doorbell>> {
        match &self.bell {
            Bell::Mailbox(doorbell) => Some(doorbell),
            Bell::None | Bell::Bare(_) => None,
        }
    }

    /// Has the notification thread wake the futures of this export.
    pub(crate) fn watch(&self) -> Result<(), WaitError> {
        let doorbell = self.doorbell().ok_or(WaitError::NoNotifications)?;
        if !self.process.options.watcher || self.process.is_forked() {
            return Err(WaitError::NoThread);
        }
        if !self.handled.load(Ordering::Relaxed) {
            let (number, doorbell) = (self.id.number, Arc::clone(doorbell));
            let watched = self.process.with_notifier(|notifier| notifier.watch(number, doorbell));
            watched.map_err(|_| WaitError::Exhausted)?;
            self.handled.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// As [`Doorbell::wait`], by a process whose engine may be what brings the notification.
    fn wait_and_poll(
        &self,
        doorbell: &Doorbell,
        timeout: Duration,
    ) -> Result<Notification, WaitError> {
        let (lanes, start) = (&self.process.lanes, Instant::now());
        let mut slept = false;
        loop {
            if let Some(notification) = doorbell.take() {
                return Ok(notification);
            }
            let look = lanes.look();
            if look == Look::Quiet {
                continue;
            }
            let busy = look == Look::Busy;
            if busy && slept {
                lanes.answer();
            }
            let elapsed = start.elapsed();
            if busy && elapsed < timeout {
                continue;
            }
            if elapsed < timeout.min(SPIN) {
                std::thread::yield_now();
                continue;
            }
            if let Some(notification) = doorbell.take_or_sleep() {
                return Ok(notification);
            }
            let left = timeout.saturating_sub(elapsed);
            if left.is_zero() {
                return Err(WaitError::Timeout);
            }
            lanes.sleep(&[doorbell.event_fd()], Some(left));
            slept = true;
        }
    }

    /// What the bell of a pair says: only that, and how often, the peer rang.
    fn rung(&self, event: &Event) -> Option<Notification> {
        let lost = event.drain();
        let all = Notification { export: self.id, offset: 0, len: self.len, last_word: 0, lost };
        (lost > 0).then_some(all)
    }

    /// Pair memory: maps its first `len` bytes once more and returns the address, valid as long as the export; the old
    /// addresses stay valid. Memory without a system call between two of these is the same memory.
    ///
    /// # Errors
    /// When `len` is zero or more than the memory has, or address space is exhausted.
    pub fn extend(&self, len: usize) -> Result<*mut u8, ExtendError> {
        match &self.memory {
            Memory::Own(mapping) | Memory::Pair(mapping) => self.extensions.add(mapping, len),
            Memory::InPlace | Memory::Gone => Err(ExtendError::Length),
        }
    }

    /// Takes the export back, at once: importers see [`crate::ExportState::Revoked`], and whatever they still write reaches
    /// nobody. Memory exported in place keeps its contents and address.
    ///
    /// # Errors
    /// When the service could not be told, or in-place memory could not be detached.
    pub fn unexport(mut self) -> Result<(), UnexportError> {
        self.revoke()
    }

    #[inline]
    fn at(&self, offset: usize, len: usize) -> Result<*mut u8, AccessError> {
        if offset > self.len || len > self.len - offset {
            return Err(AccessError::Range);
        }
        // SAFETY: `offset` is at most the length of the mapped range.
        Ok(unsafe { self.start.add(offset) })
    }

    fn revoke(&mut self) -> Result<(), UnexportError> {
        let memory = std::mem::replace(&mut self.memory, Memory::Gone);
        if matches!(memory, Memory::Gone | Memory::Pair(_)) || self.process.is_forked() {
            // A forked child only unmaps its copy: the export is its parent's.
            return Ok(());
        }
        let number = self.id.number;
        lock(&self.process.announced).remove(&number);
        // First the importers are told, so that a send that succeeds was delivered.
        let told = self.process.request(&[], |seq| Request::Unexport { seq, number });
        self.process.lanes.withdraw(number);
        if *self.handled.get_mut()
            && let Some(notifier) = &*lock(&self.process.notifier)
        {
            notifier.remove(number);
        }
        let pool = self.pool.as_ref().map_or(Ok(()), |pool| pool.detach_all());
        if matches!(memory, Memory::InPlace) {
            // SAFETY: `create_in_place`'s caller promised that the range stays mapped and that nobody writes it now.
            let detached = unsafe { detach_in_place(self.start, self.len) };
            detached.map_err(UnexportError::StillShared)?;
        }
        pool.map_err(UnexportError::StillShared)?;
        match told {
            // Lost: the service that the importers look at has gone, and the next one is not told of this export.
            Ok(_) | Err(RequestError::Refused(_) | RequestError::Lost) => Ok(()),
            Err(RequestError::Timeout | RequestError::Unsendable) => Err(UnexportError::NotTold),
        }
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let _ = self.revoke();
    }
}
