//! The path that is measured: an export of ours and an import of the other's, by the `vmmc` library.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fmt, ptr};

use vmmc::{Export, ExportId, Import, ImportSource, Notify, Process, Rights, WaitError};

use crate::BenchError;
use crate::memory::{INBOX, Memory};
use crate::spin::PATIENCE;

/// Our export, before the other's is known.
pub(crate) struct VmmcInbox {
    process: Process,
    export: Export,
}

impl VmmcInbox {
    /// Opens VMMC (which starts the node service if there is none) and exports an inbox.
    pub(crate) fn new() -> Result<VmmcInbox, BenchError> {
        let process = Process::options()
            .name("vmmc bench")
            .open()
            .map_err(|cause| BenchError::vmmc("open", cause))?;
        let export = process
            .export(INBOX)
            .rights(Rights::READ_WRITE)
            .notify(Notify::Event)
            .create()
            .map_err(|cause| BenchError::vmmc("export an inbox", cause))?;
        // SAFETY: the export's own memory, which nobody has imported yet; touching it puts its pages in place.
        unsafe { ptr::write_bytes(export.as_ptr(), 0, INBOX) };
        Ok(VmmcInbox { process, export })
    }

    /// What the other process imports it by.
    pub(crate) fn name(&self) -> String {
        self.export.id().to_string()
    }

    /// Imports the inbox of a process on another node.
    pub(crate) fn connect_to_node(
        self,
        theirs: &str,
        node: &str,
    ) -> Result<VmmcMemory, BenchError> {
        let import = self
            .process
            .import(ImportSource::Id(parse(theirs)?))
            .node(node)
            .open()
            .map_err(|cause| BenchError::vmmc("import from the other node", cause))?;
        Ok(VmmcMemory {
            inbox: self.export.as_ptr(),
            process: self.process,
            export: self.export,
            import,
            elsewhere: Some(Cell::default()),
        })
    }

    /// Imports the other's inbox, named by its [`VmmcInbox::name`].
    pub(crate) fn connect(self, theirs: &str) -> Result<VmmcMemory, BenchError> {
        let import = import(&self.process, theirs)?;
        let mapped = import.as_ptr().ok_or_else(|| {
            BenchError::vmmc("map an inbox", "the import goes through the engine")
        })?;
        touch(mapped);
        Ok(VmmcMemory {
            inbox: self.export.as_ptr(),
            process: self.process,
            export: self.export,
            import,
            elsewhere: None,
        })
    }
}

/// Imports an export for reading and writing.
pub(crate) fn import(process: &Process, id: &str) -> Result<Import, BenchError> {
    process
        .import(ImportSource::Id(parse(id)?))
        .rights(Rights::READ_WRITE)
        .open()
        .map_err(|cause| BenchError::vmmc("import", cause))
}

fn parse(id: &str) -> Result<ExportId, BenchError> {
    id.parse().map_err(|_| BenchError::OutOfStep(format!("{id} is no export")))
}

/// Reads a word of every page, so that no page fault falls into a measurement.
fn touch(mapped: *mut u8) {
    for at in (0..INBOX).step_by(4096) {
        // SAFETY: in the mapping, which is `INBOX` long, aligned, and accessed atomically.
        unsafe { AtomicU64::from_ptr(mapped.add(at).cast()) }.fetch_add(0, Ordering::Relaxed);
    }
}

/// Both inboxes through VMMC.
pub(crate) struct VmmcMemory {
    inbox: *mut u8,
    pub(crate) process: Process,
    export: Export,
    pub(crate) import: Import,
    /// The other process is on another node: whoever finds a word as it was lets the engine work. Where it looked last, and what it found.
    elsewhere: Option<Cell<(usize, u64)>>,
}

impl VmmcMemory {
    /// Copies `bytes` into the other's inbox, and notifies it.
    pub(crate) fn send_notify(&self, at: usize, bytes: &[u8]) -> Result<(), BenchError> {
        self.import.send_notify(at, bytes).map_err(failed)
    }

    /// Waits until the other has notified us.
    pub(crate) fn wait(&self) -> Result<(), BenchError> {
        match self.export.wait(PATIENCE) {
            Ok(_) => Ok(()),
            Err(WaitError::Timeout) => Err(BenchError::Stalled),
            Err(cause) => Err(failed(cause)),
        }
    }

    /// The same pages, to be accessed by hand. Must not be used after `self` is gone.
    pub(crate) fn by_hand(&self) -> ByHand {
        ByHand { ours: self.inbox, theirs: self.import.as_ptr().unwrap_or(self.inbox) }
    }
}

impl fmt::Debug for VmmcInbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmmcInbox").field("export", &self.export).finish_non_exhaustive()
    }
}

impl fmt::Debug for VmmcMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmmcMemory").field("import", &self.import).finish_non_exhaustive()
    }
}

#[cold]
pub(crate) fn failed(cause: impl std::fmt::Display) -> BenchError {
    BenchError::vmmc("transfer", cause)
}

impl Memory for VmmcMemory {
    #[inline(always)]
    fn send(&self, at: usize, bytes: &[u8]) -> Result<(), BenchError> {
        self.import.send(at, bytes).map_err(failed)
    }

    #[inline(always)]
    fn signal(&self, at: usize, word: u64) -> Result<(), BenchError> {
        self.import.signal(at, word).map_err(failed)
    }

    #[inline(always)]
    fn send_signal(
        &self,
        at: usize,
        bytes: &[u8],
        word_at: usize,
        word: u64,
    ) -> Result<(), BenchError> {
        self.import.send_signal(at, bytes, word_at, word).map_err(failed)
    }

    #[inline(always)]
    fn fetch(&self, at: usize, into: &mut [u8]) -> Result<(), BenchError> {
        self.import.fetch(at, into).map_err(failed)
    }

    #[inline(always)]
    fn load_signal(&self, at: usize) -> u64 {
        // Our own export cannot be gone, and the words of the measurements lie in it: zero, which no
        // stamp is, would end in `Stalled`.
        let load = || self.export.load_signal(at).unwrap_or(0);
        let word = load();
        match &self.elsewhere {
            Some(last) if last.replace((at, word)) == (at, word) => {
                self.process.progress();
                load()
            }
            _ => word,
        }
    }

    #[inline(always)]
    fn inbox(&self) -> *mut u8 {
        self.inbox
    }
}

/// The pages of a [`VmmcMemory`], copied to and from by hand.
#[derive(Debug)]
pub(crate) struct ByHand {
    ours: *mut u8,
    theirs: *mut u8,
}

impl Memory for ByHand {
    #[inline(always)]
    fn send(&self, at: usize, bytes: &[u8]) -> Result<(), BenchError> {
        debug_assert!(at + bytes.len() <= INBOX);
        // SAFETY: the range is in the other's inbox, mapped as long as the import beside this value
        // lives; the protocol lets nobody else touch it until the next signal word.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.theirs.add(at), bytes.len()) };
        Ok(())
    }

    #[inline(always)]
    fn signal(&self, at: usize, word: u64) -> Result<(), BenchError> {
        debug_assert!(at.is_multiple_of(8) && at + 8 <= INBOX);
        // SAFETY: in the mapping and aligned; both sides access words only atomically.
        unsafe { AtomicU64::from_ptr(self.theirs.add(at).cast()) }.store(word, Ordering::Release);
        Ok(())
    }

    #[inline(always)]
    fn send_signal(
        &self,
        at: usize,
        bytes: &[u8],
        word_at: usize,
        word: u64,
    ) -> Result<(), BenchError> {
        self.send(at, bytes)?;
        self.signal(word_at, word)
    }

    #[inline(always)]
    fn fetch(&self, at: usize, into: &mut [u8]) -> Result<(), BenchError> {
        debug_assert!(at + into.len() <= INBOX);
        // SAFETY: the range is in the other's inbox, which its owner does not write until asked to.
        unsafe { ptr::copy_nonoverlapping(self.theirs.add(at), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    #[inline(always)]
    fn load_signal(&self, at: usize) -> u64 {
        debug_assert!(at.is_multiple_of(8) && at + 8 <= INBOX);
        // SAFETY: as in `signal`, in our own inbox.
        unsafe { AtomicU64::from_ptr(self.ours.add(at).cast()) }.load(Ordering::Acquire)
    }

    #[inline(always)]
    fn inbox(&self) -> *mut u8 {
        self.ours
    }
}
