//! What the service reads of the rings of a connection: how it ended, when a process has died.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

use vmmc_os::{Access, Descriptor, Mapping};
use vmmc_proto::PAGE_SIZE;
use vmmc_shm::stream::{Standing, Words};

/// The words at the start of a stream memory.
#[derive(Debug)]
pub(crate) struct StreamWords(Mapping);

/// How the socket of a process that has died is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndOnTcp {
    /// As the kernel closes it.
    Plain,
    /// With a reset: bytes were left unread.
    Reset,
    /// The same, behind the end of its stream, of which the kernel does not know.
    EndThenReset,
}

/// How many are mapped. The kernel lets a process have some 65,000 mappings, and the service has others too.
static MAPPED: AtomicUsize = AtomicUsize::new(0);
const MOST: usize = 32 * 1024;

impl StreamWords {
    /// `None` where there are too many already. The memory has been checked: it has a page at least, and keeps it.
    pub(crate) fn of(memory: &Descriptor) -> Option<Self> {
        if MAPPED.fetch_add(1, Ordering::Relaxed) < MOST
            && let Ok(mapping) = Mapping::new(memory, 0, PAGE_SIZE, Access::ReadOnly)
        {
            return Some(Self(mapping));
        }
        MAPPED.fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// As they are now; `None` where their page cannot be had: a client may have given it back. A load would end the service then.
    fn words(&self) -> Option<Words> {
        let mut words = MaybeUninit::<Words>::zeroed();
        let start = words.as_mut_ptr().cast::<u8>();
        // SAFETY: the value's own bytes, all initialised.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start, size_of::<Words>()) };
        self.0.copy_out(bytes).ok()?;
        // SAFETY: initialised, and of numbers alone, which any bytes are.
        Some(unsafe { words.assume_init() })
    }

    /// These are those of the process that has died. Both may have been written by anybody who wants his own connection reset.
    pub(crate) fn end_with(&self, peers: &Self) -> EndOnTcp {
        let (Some(own), Some(peers)) = (self.words(), peers.words()) else {
            return EndOnTcp::Plain;
        };
        let Standing { unread, ended, peer_ended } = own.standing(&peers);
        match (unread, ended, peer_ended) {
            (false, ..) | (_, true, true) => EndOnTcp::Plain,
            (true, false, _) => EndOnTcp::Reset,
            (true, true, false) => EndOnTcp::EndThenReset,
        }
    }
}

impl Drop for StreamWords {
    fn drop(&mut self) {
        MAPPED.fetch_sub(1, Ordering::Relaxed);
    }
}
