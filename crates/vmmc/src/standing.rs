//! How an import stands with the current service.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use vmmc_proto::{ExportId, Grant, Request, Rights, Target};
use vmmc_shm::table::{ExportState, state_of};

use crate::connection::Table;
use crate::process::lock;

/// The state word of an import's export. A new service has a new table, so what to look at may change while others look.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) export: ExportId,
    terms: Terms,
    len: u64,
    handle: AtomicU64,
    seat: AtomicPtr<Seat>,
    /// Every seat that `seat` ever pointed to: another thread may still look at it.
    /// In an `Arc`, which may be moved while others have a pointer to what is in it; a `Box` may not.
    seats: Mutex<Vec<Arc<Seat>>>,
}

/// What an import was asked for with, and is asked for again.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) node: Option<String>,
    pub(crate) rights: Rights,
    pub(crate) key: Option<[u8; 16]>,
}

/// A word and what it holds while the export is live; never changed.
#[derive(Debug)]
struct Seat {
    word: *const AtomicU64,
    live: u64,
    /// Keeps the word mapped, unless it is a static.
    _table: Option<Arc<Table>>,
}

// SAFETY: the word is an atomic in a table that is kept mapped together with the seat; a seat is never changed.
unsafe impl Send for Seat {}
// SAFETY: as above.
unsafe impl Sync for Seat {}

/// Generation 0 (which no slot has) in state dead, and what it would be if it were live.
static DEAD: AtomicU64 = AtomicU64::new(3);
const DEAD_LIVE: u64 = 1;

impl Standing {
    /// As granted; `None` when the service names a word that does not exist.
    pub(crate) fn new(table: &Arc<Table>, grant: &Grant, terms: Terms) -> Option<Self> {
        table.view().state(grant.slot)?;
        let standing = Self {
            export: grant.export,
            terms,
            len: grant.len,
            handle: AtomicU64::new(grant.handle),
            seat: AtomicPtr::new(std::ptr::null_mut()),
            seats: Mutex::new(Vec::new()),
        };
        standing.renew(table, grant);
        Some(standing)
    }

    /// The export's state: two loads that only ever hit the cache, and one of the word.
    #[inline]
    pub(crate) fn state(&self) -> ExportState {
        // SAFETY: `seat` always points into an `Arc` in `seats`, which lives as long as `self`; its word is in a table kept
        // there too, or is a static.
        let (live, found) = unsafe {
            let seat = &*self.seat.load(Ordering::Acquire);
            (seat.live, (*seat.word).load(Ordering::Acquire))
        };
        state_of(live, found)
    }

    /// Names the import in requests to the current service.
    pub(crate) fn handle(&self) -> u64 {
        self.handle.load(Ordering::Relaxed)
    }

    /// Whether the export is on another node.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.terms.node.is_some()
    }

    /// Asks a new service to grant it again.
    pub(crate) fn request(&self, seq: u32) -> Request {
        let Terms { node, rights, key } = self.terms.clone();
        Request::Import { seq, node, target: Target::Id(self.export), rights, key, again: true }
    }

    /// A new service granted it again: look there from now on. An export of another length is another export.
    pub(crate) fn renew(&self, table: &Arc<Table>, grant: &Grant) {
        match table.view().state(grant.slot) {
            Some(word) if grant.len == self.len => {
                self.handle.store(grant.handle, Ordering::Relaxed);
                self.sit(Seat { word, live: grant.live, _table: Some(Arc::clone(table)) });
            }
            _ => self.declare_dead(),
        }
    }

    /// The exporter did not come back.
    pub(crate) fn declare_dead(&self) {
        self.sit(Seat { word: &raw const DEAD, live: DEAD_LIVE, _table: None });
    }

    fn sit(&self, seat: Seat) {
        let mut seats = lock(&self.seats);
        let seat = Arc::new(seat);
        let pointer = Arc::as_ptr(&seat).cast_mut();
        seats.push(seat);
        self.seat.store(pointer, Ordering::Release);
    }
}
