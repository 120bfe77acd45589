//! How bytes get from here to one export and back: what an import and its asynchronous operations share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use vmmc_os::Mapping;
use vmmc_proto::{Request, Rights};
use vmmc_shm::command::{Command, Direction, Outcome, PIECE};
use vmmc_shm::copy;
use vmmc_shm::table::ExportState;

use crate::commands::{Flight, Stalled};
use crate::connection::RequestError;
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
            return self.send_by_engine([(offset, bytes)], signal, None, &Stop::never());
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
        self.live()?;
        for (offset, bytes) in pieces.clone() {
            self.check(offset, bytes.len(), Rights::WRITE)?;
        }
        if let Some((offset, _)) = signal {
            self.check_word(offset)?;
        }
        if self.start.is_null() {
            return self.send_by_engine(pieces, signal, None, stop);
        }
        for (offset, bytes) in pieces {
            for (step, bytes) in bytes.chunks(STEP).enumerate() {
                stop.check()?;
                self.live()?;
                // SAFETY: `check` saw that the piece is inside the mapping and writable.
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

    /// Write-only imports: the service's engine writes. The commands are in its queue together; signal and notification go with the
    /// last, and only when those before it have arrived.
    #[cold]
    pub(crate) fn send_by_engine<'b>(
        &self,
        pieces: impl IntoIterator<Item = (usize, &'b [u8])>,
        signal: Option<(usize, u64)>,
        notify: Option<(u64, u64)>,
        stop: &Stop,
    ) -> Result<(), TransferError> {
        let (connection, commands) = self.process.commands().map_err(TransferError::from)?;
        let patience = self.process.options.patience();
        let flight = Arc::new(Flight::default());
        let arrived = || {
            commands.finish(&connection, patience, &flight).map_err(TransferError::from)?;
            flight.failure().map_or(Ok(()), |outcome| Err(self.engine_failure(outcome)))
        };
        let post = |(offset, bytes): (usize, &[u8]), signal: Option<(usize, u64)>, notify| {
            let command = Command {
                direction: Direction::Send,
                handle: self.standing.handle(),
                offset: offset as u64,
                len: bytes.len() as u64,
                local: 0,
                signal: signal.map(|(offset, value)| (offset as u64, value)),
                notify,
            };
            commands
                .post(&connection, patience, &flight, &command, bytes)
                .map_err(TransferError::from)
        };
        let mut last = None;
        let mut several = false;
        for next in pieces.into_iter().flat_map(in_commands) {
            if let Some(previous) = last.replace(next) {
                if let Err(ended) = stop.check().and_then(|()| self.live()) {
                    // What is in the queue already will still be written: it must not come after the end.
                    return arrived().and(Err(ended));
                }
                post(previous, None, None)?;
                several = true;
            }
        }
        if several && (signal.is_some() || notify.is_some()) {
            arrived()?;
        }
        // Without any piece there may still be a word to write.
        post(last.unwrap_or((0, &[])), signal, notify)?;
        arrived()
    }

    /// Imports from other nodes: the engine fetches. The commands are in its queue together.
    #[cold]
    fn fetch_by_engine(&self, offset: usize, bytes: &mut [u8]) -> Result<(), TransferError> {
        let (connection, commands) = self.process.commands().map_err(TransferError::from)?;
        let patience = self.process.options.patience();
        let flight = Arc::new(Flight::fetching(bytes.len()));
        for start in (0..bytes.len()).step_by(PIECE) {
            let place = start..bytes.len().min(start + PIECE);
            let command = Command {
                direction: Direction::Fetch,
                handle: self.standing.handle(),
                offset: (offset + start) as u64,
                len: place.len() as u64,
                local: 0,
                signal: None,
                notify: None,
            };
            commands.post_fetch(&connection, patience, &flight, &command, place)?;
        }
        commands.finish(&connection, patience, &flight)?;
        if let Some(outcome) = flight.failure() {
            return Err(self.engine_failure(outcome));
        }
        bytes.copy_from_slice(&flight.fetched());
        Ok(())
    }

    fn engine_failure(&self, outcome: Outcome) -> TransferError {
        match (outcome, self.standing.state()) {
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

impl Drop for Route {
    fn drop(&mut self) {
        // A forked child only unmaps its copy: the import is its parent's. A pair is given back by `pair_drop`.
        if self.pair || self.process.is_forked() {
            return;
        }
        let place = Arc::as_ptr(&self.standing).addr();
        lock(&self.process.standings).remove(&place);
        let handle = self.standing.handle();
        // If the service is too busy to be told, it keeps one entry until this process ends.
        let _ = self.process.connection().post(&Request::Unimport { handle }, &[]);
    }
}

/// A piece as commands can carry it: no bytes are one command too, which checks the state.
fn in_commands((offset, bytes): (usize, &[u8])) -> impl Iterator<Item = (usize, &[u8])> {
    let last = bytes.len().saturating_sub(1) / PIECE * PIECE;
    (0..=last)
        .step_by(PIECE)
        .map(move |start| (offset + start, &bytes[start..bytes.len().min(start + PIECE)]))
}

impl From<RequestError> for TransferError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Lost => Self::ServiceLost,
            RequestError::Timeout => Self::Timeout,
            RequestError::Refused(_) | RequestError::Unsendable => Self::Exhausted,
        }
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
