//! How bytes get from here to one export and back: what an import and its asynchronous operations share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use vmmc_os::Mapping;
use vmmc_proto::{Request, Rights};
use vmmc_shm::copy;
use vmmc_shm::table::ExportState;

use crate::by_engine::Finish;
use crate::operation::Stop;
use crate::process::{Inner, lock};
use crate::redirection::Redirection;
use crate::standing::Standing;
use crate::transfer::TransferError;

/// Bytes that an asynchronous operation copies before it looks again whether it was cancelled or the export revoked.
const STEP: usize = 128 * 1024;

/// The way to an export. The import is given back to the service when nobody uses this any more.
#[derive(Debug)]
pub(crate) struct Route {
    /// First mapped byte; null on the engine path.
    pub(crate) start: *mut u8,
    pub(crate) len: usize,
    pub(crate) rights: Rights,
    pub(crate) standing: Arc<Standing>,
    pub(crate) redirection: Option<Redirection>,
    pub(crate) process: Arc<Inner>,
    pub(crate) mapping: Option<Mapping>,
    /// A pair's memory is given back with the pair.
    pub(crate) pair: bool,
    /// Asynchronous operations that were posted and are not over.
    pub(crate) pending: AtomicUsize,
}

// SAFETY: `start` points into `mapping`, which lives as long as `self`; all access is by copies and atomics.
unsafe impl Send for Route {}
// SAFETY: as above; methods that take `&self` only copy bytes that other processes may change anyway.
unsafe impl Sync for Route {}

impl Route {
    /// Writes bytes, then the signal word.
    #[inline]
    pub(crate) fn send(
        &self,
        offset: usize,
        bytes: &[u8],
        signal: Option<(usize, u64)>,
    ) -> Result<(), TransferError> {
        self.check(offset, bytes.len(), Rights::WRITE)?;
        if let Some((offset, _)) = signal {
            self.check_word(offset)?;
        }
        if self.start.is_null() {
            let finish = Finish { signal, notify: None };
            return self.send_by_engine([(offset, bytes)].into_iter(), finish, &Stop::never());
        }
        // SAFETY: `check` saw that the range is inside the mapping and writable.
        unsafe { self.place(offset, bytes) };
        if let Some((offset, value)) = signal {
            self.store_word(offset, value);
        }
        Ok(())
    }

    /// Reads bytes.
    #[inline]
    pub(crate) fn fetch(&self, offset: usize, bytes: &mut [u8]) -> Result<(), TransferError> {
        self.check(offset, bytes.len(), Rights::READ)?;
        if self.start.is_null() {
            return self.fetch_by_engine(offset, bytes);
        }
        // SAFETY: it is mapped; `check` saw that the range is inside; `bytes` is memory of its own.
        unsafe { copy(self.start.add(offset), bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Writes pieces, each as if by [`Route::send`], until it is told to stop.
    pub(crate) fn send_pieces<'b>(
        &self,
        pieces: impl Iterator<Item = (usize, &'b [u8])> + Clone,
        signal: Option<(usize, u64)>,
        stop: &Stop,
    ) -> Result<(), TransferError> {
        self.check_pieces(pieces.clone(), signal)?;
        if self.start.is_null() {
            return self.send_by_engine(pieces, Finish { signal, notify: None }, stop);
        }
        for (offset, bytes) in pieces {
            // Once more: the iterator may ask the program's own code for the bytes, which need not be those that were checked.
            self.check(offset, bytes.len(), Rights::WRITE)?;
            for (step, bytes) in bytes.chunks(STEP).enumerate() {
                stop.check()?;
                self.live()?;
                // SAFETY: `check` saw that these very bytes are inside the mapping and writable.
                unsafe { self.place(offset + step * STEP, bytes) };
            }
        }
        if let Some((offset, value)) = signal {
            stop.check()?;
            self.store_word(offset, value);
        }
        Ok(())
    }

    /// Reads one piece in steps, until it is told to stop.
    pub(crate) fn fetch_piece(
        &self,
        offset: usize,
        bytes: &mut [u8],
        stop: &Stop,
    ) -> Result<(), TransferError> {
        self.check(offset, bytes.len(), Rights::READ)?;
        for (step, bytes) in bytes.chunks_mut(STEP).enumerate() {
            stop.check()?;
            self.fetch(offset + step * STEP, bytes)?;
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn check(
        &self,
        offset: usize,
        len: usize,
        right: Rights,
    ) -> Result<(), TransferError> {
        if offset > self.len || len > self.len - offset {
            return Err(TransferError::Range);
        }
        if !self.rights.contains(right) {
            return Err(TransferError::Rights);
        }
        self.live()
    }

    /// All pieces of a send, and its signal word.
    pub(crate) fn check_pieces<'b>(
        &self,
        mut pieces: impl Iterator<Item = (usize, &'b [u8])>,
        signal: Option<(usize, u64)>,
    ) -> Result<(), TransferError> {
        self.live()?;
        pieces.try_for_each(|(offset, bytes)| self.check(offset, bytes.len(), Rights::WRITE))?;
        signal.map_or(Ok(()), |(offset, _)| self.check_word(offset))
    }

    #[inline]
    pub(crate) fn live(&self) -> Result<(), TransferError> {
        match self.standing.state() {
            ExportState::Live => Ok(()),
            ExportState::Revoked => Err(TransferError::Revoked),
            ExportState::Dead => Err(TransferError::Dead),
        }
    }

    #[inline]
    pub(crate) fn check_word(&self, offset: usize) -> Result<(), TransferError> {
        if !offset.is_multiple_of(8) {
            return Err(TransferError::Unaligned);
        }
        if offset > self.len || 8 > self.len - offset {
            return Err(TransferError::Range);
        }
        Ok(())
    }

    /// Copies bytes to where they belong: into the export, or into memory that is posted for them.
    ///
    /// # Safety
    /// The range is inside the mapping and writable.
    #[inline]
    pub(crate) unsafe fn place(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: the caller's promise; `bytes` is memory of its own.
        unsafe {
            match &self.redirection {
                Some(redirection) if !redirection.is_idle(bytes.len()) => {
                    redirection.place(self.start, offset, bytes);
                }
                _ => copy(bytes.as_ptr(), self.start.add(offset), bytes.len()),
            }
        }
    }

    /// The word was checked, the import is mapped and may write.
    #[inline]
    fn store_word(&self, offset: usize, value: u64) {
        // SAFETY: inside the mapping and aligned (`check_word`; the mapping is page-aligned), writable (`check`).
        unsafe { &*self.start.add(offset).cast::<AtomicU64>() }.store(value, Ordering::Release);
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        // A forked child only unmaps its copy: the import is its parent's. A pair is given back by `pair_drop`.
        if self.pair || self.process.is_forked() {
            return;
        }
        let place = Arc::as_ptr(&self.standing).addr();
        lock(&self.process.standings).remove(&place);
        let handle = self.standing.handle();
        self.process.lanes.forget(handle);
        // If the service is too busy to be told, it keeps one entry until this process ends.
        let _ = self.process.connection().post(&Request::Unimport { handle }, &[]);
    }
}
