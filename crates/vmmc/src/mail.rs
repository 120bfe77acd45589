//! Mail: what the service sends without being asked, and how to see by one look that there is some.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmmc_os::{Descriptor, LIFE_LOST};
use vmmc_proto::Answer;

use crate::connection::{Connection, Table};

/// A message, or the news that the service is gone.
#[derive(Debug)]
pub(crate) enum Letter {
    Message(Answer, Vec<Descriptor>),
    ServiceLost,
}

/// The queue, and the words of the current service's status table.
///
/// There is mail when the service's count of messages differs from `taken`, the count of letters that were taken, or when
/// the service has died. Letters that are left over from an earlier service are kept in the same account: `taken` starts
/// below zero by their number.
#[derive(Debug)]
pub(crate) struct Mail {
    sent: AtomicPtr<AtomicU64>,
    life: AtomicPtr<AtomicU32>,
    taken: AtomicU64,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    letters: VecDeque<Letter>,
    /// Every table that `sent` and `life` ever pointed to: a thread may still look.
    tables: Vec<Arc<Table>>,
    attached: bool,
}

/// What the words point to while there is no service.
static NOTHING_SENT: AtomicU64 = AtomicU64::new(0);
static NOBODY_DIED: AtomicU32 = AtomicU32::new(0);

impl Mail {
    pub(crate) fn new() -> Self {
        Self {
            sent: AtomicPtr::new((&raw const NOTHING_SENT).cast_mut()),
            life: AtomicPtr::new((&raw const NOBODY_DIED).cast_mut()),
            taken: AtomicU64::new(0),
            queue: Mutex::new(Queue::default()),
        }
    }

    /// Whether there is something to take; may be true a moment early. No system call.
    #[inline]
    pub(crate) fn has_some(&self) -> bool {
        // SAFETY: both pointers are to the statics above or into tables that `queue.tables` keeps mapped as long as
        // `self` lives; both words are atomics that nobody writes through these pointers.
        let (sent, life) =
            unsafe { (&*self.sent.load(Ordering::Acquire), &*self.life.load(Ordering::Acquire)) };
        sent.load(Ordering::Relaxed) != self.taken.load(Ordering::Relaxed)
            || life.load(Ordering::Relaxed) & LIFE_LOST != 0
    }

    /// Looks at this service's words from now on.
    pub(crate) fn attach(&self, connection: &Connection) {
        let mut queue = self.lock();
        let table = connection.table.view();
        let Some(sent) = table.mail(connection.welcome.mail_slot) else { return };
        self.taken.store(0u64.wrapping_sub(queue.letters.len() as u64), Ordering::Relaxed);
        self.sent.store((&raw const *sent).cast_mut(), Ordering::Release);
        self.life.store((&raw const *table.life()).cast_mut(), Ordering::Release);
        queue.tables.push(Arc::clone(&connection.table));
        queue.attached = true;
    }

    /// The service is gone: the last letter says so. Does nothing when that was known.
    pub(crate) fn detach(&self) {
        let mut queue = self.lock();
        if !queue.attached {
            return;
        }
        queue.attached = false;
        queue.letters.push_back(Letter::ServiceLost);
        self.taken.store(0u64.wrapping_sub(queue.letters.len() as u64), Ordering::Relaxed);
        self.sent.store((&raw const NOTHING_SENT).cast_mut(), Ordering::Release);
        self.life.store((&raw const NOBODY_DIED).cast_mut(), Ordering::Release);
    }

    pub(crate) fn push(&self, answer: Answer, descriptors: Vec<Descriptor>) {
        self.lock().letters.push_back(Letter::Message(answer, descriptors));
    }

    pub(crate) fn take(&self) -> Option<Letter> {
        let mut queue = self.lock();
        let letter = queue.letters.pop_front()?;
        self.taken.fetch_add(1, Ordering::Relaxed);
        Some(letter)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
