//! The data path: send, signal, fetch. See `docs/hot-path.md` for its budget.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vmmc_proto::Rights;
use vmmc_shm::command::{Command, Direction, Outcome, PIECE};
use vmmc_shm::copy;
use vmmc_shm::mailbox::{Mailbox, Note};
use vmmc_shm::table::ExportState;

use crate::commands::{Flight, Stalled};
use crate::connection::RequestError;
use crate::import::Import;

/// Why bytes were not transferred. Unless the variant says otherwise nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
#[non_exhaustive]
pub enum TransferError {
    /// outside the export: check offset and length against `len()`
    Range,
    /// a signal word lies at a multiple of 8: align the offset
    Unaligned,
    /// the exporter took the export back: import another
    Revoked,
    /// the exporter's process is dead: import from its successor
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
}

impl Import {
    /// Writes bytes at `offset` of the export. When it returns, the bytes are in the exporter's memory, but only a later
    /// signal or notification of this import says so to the exporter. Zero bytes are a check of the state.
    ///
    /// # Errors
    /// See [`TransferError`]. A revocation at the same moment may go unnoticed once: the bytes then reach nobody.
    #[inline]
    pub fn send(&self, offset: usize, bytes: &[u8]) -> Result<(), TransferError> {
        self.check(offset, bytes.len(), Rights::WRITE)?;
        if self.start.is_null() {
            return self.send_by_engine(offset, bytes, None, None);
        }
        // SAFETY: `check` saw that the range is inside the mapping and writable; `bytes` is memory of its own.
        unsafe { self.place(offset, bytes) };
        Ok(())
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
        self.check(offset, bytes.len(), Rights::WRITE)?;
        self.check_word(signal_offset)?;
        if self.start.is_null() {
            return self.send_by_engine(offset, bytes, Some((signal_offset, value)), None);
        }
        // SAFETY: as in `send`.
        unsafe { self.place(offset, bytes) };
        self.store_word(signal_offset, value);
        Ok(())
    }

    /// Writes the signal word at `offset`, a multiple of 8 (release): it becomes visible after all earlier sends on this import by
    /// this thread, and never by halves.
    ///
    /// # Errors
    /// See [`TransferError`].
    #[inline]
    pub fn signal(&self, offset: usize, value: u64) -> Result<(), TransferError> {
        self.check(offset, 8, Rights::WRITE)?;
        self.check_word(offset)?;
        if self.start.is_null() {
            return self.send_by_engine(offset, &[], Some((offset, value)), None);
        }
        self.store_word(offset, value);
        Ok(())
    }

    /// Writes bytes, then notifies the exporter of them: its handler runs, or a thread that waits on the export wakes. One system
    /// call.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub fn send_notify(&self, offset: usize, bytes: &[u8]) -> Result<(), TransferError> {
        self.check(offset, bytes.len(), Rights::WRITE)?;
        if !self.notifies {
            return Err(TransferError::NoNotifications);
        }
        if self.start.is_null() {
            let notify = Some((offset as u64, bytes.len() as u64));
            return self.send_by_engine(offset, bytes, None, notify);
        }
        // SAFETY: as in `send`.
        unsafe { self.place(offset, bytes) };
        if let Some(mailbox) = &self.mailbox {
            let tail = &bytes[bytes.len().saturating_sub(8)..];
            let mut word = [0; 8];
            word[..tail.len()].copy_from_slice(tail);
            let note = Note {
                offset: offset as u64,
                len: bytes.len() as u64,
                last_word: u64::from_le_bytes(word),
            };
            // SAFETY: the mapping is page-aligned, a page long (more than a mailbox), writable, and lives as long as `self`;
            // the service checked that the memory cannot shrink.
            unsafe { Mailbox::at(mailbox.as_ptr()) }.push(note);
        }
        if let Some(event) = &self.event {
            event.signal();
        }
        Ok(())
    }

    /// Copies bytes out of the export; the exporter takes no part. Bytes that somebody is writing may come half old, half
    /// new.
    ///
    /// # Errors
    /// See [`TransferError`].
    #[inline]
    pub fn fetch(&self, offset: usize, bytes: &mut [u8]) -> Result<(), TransferError> {
        self.check(offset, bytes.len(), Rights::READ)?;
        // SAFETY: rights to read come only with a mapping; `check` saw that the range is inside; `bytes` is memory of
        // its own.
        unsafe { copy(self.start.add(offset), bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Loads a signal word of the export (acquire): what was stored before it is visible to a fetch now.
    ///
    /// # Errors
    /// See [`TransferError`].
    #[inline]
    pub fn load_signal(&self, offset: usize) -> Result<u64, TransferError> {
        self.check(offset, 8, Rights::READ)?;
        self.check_word(offset)?;
        // SAFETY: rights to read come only with a mapping; the word is inside it and aligned (checked).
        Ok(unsafe { &*self.start.add(offset).cast::<AtomicU64>() }.load(Ordering::Acquire))
    }

    /// Copies bytes to where they belong: into the export, or into memory that is posted for them.
    ///
    /// # Safety
    /// The range is inside the mapping and writable.
    #[inline]
    unsafe fn place(&self, offset: usize, bytes: &[u8]) {
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

    #[inline]
    fn check(&self, offset: usize, len: usize, right: Rights) -> Result<(), TransferError> {
        if offset > self.len || len > self.len - offset {
            return Err(TransferError::Range);
        }
        if !self.rights.contains(right) {
            return Err(TransferError::Rights);
        }
        match self.standing.state() {
            ExportState::Live => Ok(()),
            ExportState::Revoked => Err(TransferError::Revoked),
            ExportState::Dead => Err(TransferError::Dead),
        }
    }

    #[inline]
    fn check_word(&self, offset: usize) -> Result<(), TransferError> {
        if !offset.is_multiple_of(8) {
            return Err(TransferError::Unaligned);
        }
        if offset > self.len || 8 > self.len - offset {
            return Err(TransferError::Range);
        }
        Ok(())
    }

    /// The word was checked, and the import is mapped.
    #[inline]
    fn store_word(&self, offset: usize, value: u64) {
        // SAFETY: inside the mapping and aligned (`check_word`; the mapping is page-aligned), writable (`check`).
        unsafe { &*self.start.add(offset).cast::<AtomicU64>() }.store(value, Ordering::Release);
    }

    /// Write-only imports: the service's engine writes. The pieces are in its queue together; signal and notification go with the
    /// last, and only when those before it have arrived.
    #[cold]
    fn send_by_engine(
        &self,
        offset: usize,
        bytes: &[u8],
        signal: Option<(usize, u64)>,
        notify: Option<(u64, u64)>,
    ) -> Result<(), TransferError> {
        let (connection, commands) = self.process.commands().map_err(engine_error)?;
        let patience = self.process.options.patience();
        let flight = Arc::new(Flight::default());
        let arrived = || {
            commands.finish(&connection, patience, &flight).map_err(TransferError::from)?;
            flight.failure().map_or(Ok(()), |outcome| Err(self.engine_failure(outcome)))
        };
        let last = bytes.len().saturating_sub(1) / PIECE * PIECE;
        for start in (0..=last).step_by(PIECE) {
            let piece = &bytes[start..bytes.len().min(start + PIECE)];
            let tells = start == last && (signal.is_some() || notify.is_some());
            if tells && last > 0 {
                arrived()?;
            }
            let command = Command {
                direction: Direction::Send,
                handle: self.standing.handle(),
                offset: (offset + start) as u64,
                len: piece.len() as u64,
                local: 0,
                signal: signal.filter(|_| tells).map(|(offset, value)| (offset as u64, value)),
                notify: notify.filter(|_| tells),
            };
            commands
                .post(&connection, patience, &flight, &command, piece)
                .map_err(TransferError::from)?;
        }
        arrived()
    }

    fn engine_failure(&self, outcome: Outcome) -> TransferError {
        match (outcome, self.state()) {
            (Outcome::Rights, _) => TransferError::Rights,
            (Outcome::Range, _) => TransferError::Range,
            (Outcome::Gone | Outcome::Unknown, ExportState::Dead) => TransferError::Dead,
            // A new service that has not been asked for this import yet.
            (Outcome::Unknown, ExportState::Live) => TransferError::ServiceLost,
            (Outcome::Gone | Outcome::Unknown, _) => TransferError::Revoked,
            (Outcome::Done | Outcome::Memory, _) => TransferError::Exhausted,
        }
    }
}

fn engine_error(error: RequestError) -> TransferError {
    match error {
        RequestError::Lost => TransferError::ServiceLost,
        RequestError::Timeout => TransferError::Timeout,
        RequestError::Refused(_) | RequestError::Unsendable => TransferError::Exhausted,
    }
}

impl From<Stalled> for TransferError {
    fn from(stalled: Stalled) -> Self {
        match stalled {
            Stalled::Lost => Self::ServiceLost,
            Stalled::Timeout => Self::Timeout,
        }
    }
}
