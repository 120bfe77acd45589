//! The data path: send, signal, fetch. See `docs/hot-path.md` for its budget.

use std::sync::atomic::{AtomicU64, Ordering};

use vmmc_proto::Rights;

use crate::by_engine::Finish;
use crate::import::Import;
use crate::operation::Stop;

/// Why bytes were not transferred. Unless the message says otherwise nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
#[non_exhaustive]
pub enum TransferError {
    /// outside the export: check offset and length against `len()`
    Range,
    /// a signal word lies at a multiple of 8: align the offset
    Unaligned,
    /// the exporter took the export back; of a transfer that had begun part may be written: import another
    Revoked,
    /// the exporter's process is dead; of a transfer that had begun part may be written: import from its successor
    Dead,
    /// the import does not have this right: import with more rights
    Rights,
    /// the export takes no notifications: the exporter must ask for them
    NoNotifications,
    /// the node service, which this write-only import needs, is gone; part may be written: try again when a new one runs
    ServiceLost,
    /// the node service, which this write-only import needs, does not answer; part may be written
    Timeout,
    /// the system has no memory for the exporter's pages; part may be written: free memory
    Exhausted,
    /// the asynchronous transfer was cancelled; of one that had begun part may be written: transfer again
    Cancelled,
}

impl Import {
    /// Writes bytes at `offset` of the export. When it returns, the bytes are in the exporter's memory, but only a later
    /// signal or notification of this import says so to the exporter. Zero bytes are a check of the state.
    ///
    /// # Errors
    /// See [`TransferError`]. A revocation at the same moment may go unnoticed once: the bytes then reach nobody.
    #[inline]
    pub fn send(&self, offset: usize, bytes: &[u8]) -> Result<(), TransferError> {
        self.route.send(offset, bytes, None)
    }

    /// Writes bytes, then the signal word: whoever loads the word's new value sees the bytes, and all sent before on this import
    /// by this thread.
    ///
    /// # Errors
    /// See [`TransferError`].
    #[inline]
    pub fn send_signal(
        &self,
        offset: usize,
        bytes: &[u8],
        signal_offset: usize,
        value: u64,
    ) -> Result<(), TransferError> {
        self.route.send(offset, bytes, Some((signal_offset, value)))
    }

    /// Writes the signal word at `offset`, a multiple of 8 (release): it becomes visible after all earlier sends on this import by
    /// this thread, and never by halves.
    ///
    /// # Errors
    /// See [`TransferError`].
    #[inline]
    pub fn signal(&self, offset: usize, value: u64) -> Result<(), TransferError> {
        self.route.send(offset, &[], Some((offset, value)))
    }

    /// Writes bytes, then notifies the exporter of them: its handler runs, or a thread that waits on the export wakes. Two system
    /// calls if the exporter announced that it sleeps, else none.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub fn send_notify(&self, offset: usize, bytes: &[u8]) -> Result<(), TransferError> {
        self.route.check(offset, bytes.len(), Rights::WRITE)?;
        if !self.notifies {
            return Err(TransferError::NoNotifications);
        }
        if self.route.start.is_null() {
            let notify = Some((offset as u64, bytes.len() as u64));
            let (piece, finish) = ([(offset, bytes)], Finish { signal: None, notify });
            return self.route.send_by_engine(piece.into_iter(), finish, &Stop::never());
        }
        if let Some(mailbox) = self.mailbox() {
            mailbox.expect_push();
        }
        // SAFETY: `check` saw that the range is inside the mapping and writable.
        unsafe { self.route.place(offset, bytes) };
        self.tell(offset, bytes);
        Ok(())
    }

    /// Copies bytes out of the export; the exporter takes no part. Bytes that somebody is writing may come half old, half
    /// new.
    ///
    /// # Errors
    /// See [`TransferError`].
    #[inline]
    pub fn fetch(&self, offset: usize, bytes: &mut [u8]) -> Result<(), TransferError> {
        self.route.fetch(offset, bytes)
    }

    /// Loads a signal word of the export (acquire): what was stored before it is visible to a fetch now.
    ///
    /// # Errors
    /// See [`TransferError`].
    #[inline]
    pub fn load_signal(&self, offset: usize) -> Result<u64, TransferError> {
        self.route.check(offset, 8, Rights::READ)?;
        self.route.check_word(offset)?;
        if self.route.start.is_null() {
            let mut word = [0; 8];
            self.route.fetch(offset, &mut word)?;
            return Ok(u64::from_le_bytes(word));
        }
        // SAFETY: it is mapped; the word is inside the mapping and aligned (checked).
        Ok(unsafe { &*self.route.start.add(offset).cast::<AtomicU64>() }.load(Ordering::Acquire))
    }

    /// Writes pieces, each at its own offset of the export: a gathering [`Import::send`]. All pieces are checked before the
    /// first is written; they are written in their order.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub fn send_vectored(&self, pieces: &[(usize, &[u8])]) -> Result<(), TransferError> {
        self.route.send_pieces(pieces.iter().copied(), None, &Stop::never())
    }

    /// Copies pieces out of the export, each from its own offset: a scattering [`Import::fetch`]. All pieces are checked before the
    /// first is read.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub fn fetch_vectored(&self, pieces: &mut [(usize, &mut [u8])]) -> Result<(), TransferError> {
        self.route.live()?;
        for (offset, bytes) in &*pieces {
            self.route.check(*offset, bytes.len(), Rights::READ)?;
        }
        pieces.iter_mut().try_for_each(|(offset, bytes)| self.route.fetch(*offset, bytes))
    }
}
