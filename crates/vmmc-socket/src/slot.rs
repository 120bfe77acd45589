//! The state of a connection that the processes of one fork family share: they inherit the same kernel connection, so
//! they must agree on how far its bytes were read and written. It lies in shared anonymous memory, never seen by a peer.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use vmmc::stream::{Receiver, Transmitter};

use crate::loan::Loan;
use crate::lock::Lock;
use crate::members::Members;
use crate::tcp::Opening;
use crate::tenure::Tenure;
use crate::{explain, kernel};

/// Connections a fork family can track; more stay on TCP.
pub(crate) const SLOTS: usize = 32 * 1024;

/// How far the lifting of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Phase {
    /// On TCP: young, or back from VMMC ([`Slot::returned`]).
    Tcp = 0,
    /// Shown to the node service; the other end was not shown yet.
    Offered = 1,
    /// Both ends were shown; memory is being exchanged.
    Exchanged = 2,
    /// Both memories are mapped: calls go through the layer, each direction in its own [`Way`].
    Attached = 3,
    /// On TCP for good, because of [`Slot::why`], which does not pass ([`Why::passes`]).
    Stay = 4,
    /// On TCP with both directions, but what it was lifted by is not given back: other processes of the family have it too, or
    /// have gone without a word. Whoever is found to be alone with it makes it young.
    Retired = 5,
}

/// Where the bytes of one direction go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Way {
    /// TCP: not switched yet.
    Tcp = 0,
    /// The ring.
    Ring = 1,
    /// Sending only: the reader froze the ring; TCP may be used when its unread bytes are on TCP.
    Handover = 2,
    /// TCP again.
    Lowered = 3,
}

/// Why a connection is on TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Why {
    /// Nothing hinders it: it had too little traffic yet.
    Young = 0,
    /// The other end was not shown to this host's node service.
    PeerNotLifted = 1,
    /// There is no node service.
    NoService = 2,
    /// Descriptors are short.
    Descriptors = 3,
    /// Memory or another resource is short, or the service refused.
    Refused = 4,
    /// Several processes hold it.
    Shared = 5,
    /// Another program inherited it, or it was inherited from one without the layer.
    Exec = 6,
    /// Its descriptor was passed to another process.
    Passed = 7,
    /// A call that the layer does not carry: urgent data, splice, stdio and the like.
    Call = 8,
    /// The other end lowered it.
    Peer = 9,
    /// The other end died or broke the rules.
    Broken = 10,
    /// It sits in an epoll object that the layer cannot follow.
    Set = 11,
    /// The other end may be in another network namespace, where the node service recognises nobody.
    Separate = 12,
    /// The policy does not let this program be lifted.
    Program = 13,
    /// The policy does not let connections with these ports be lifted.
    Port = 14,
    /// The other end is another user's, and the host's policy does not let the two be lifted to each other.
    User = 15,
    /// The other end is another user's, whom this process has no safe way to wake.
    Bell = 16,
    /// It was idle, and its memory was given back.
    Parked = 17,
    /// The program has it as a standard stream, which the C library may use where nobody sees it.
    Standard = 18,
    /// The program has put itself under a filter of system calls, which may not know the layer's.
    Filtered = 19,
    /// The program has an io_uring, whose queues carry calls past the layer.
    Uring = 20,
}

impl Why {
    /// Whether the connection may be lifted again. What a program has done once to a connection, it will do again; but who
    /// has got the descriptor besides may let go of it, which is asked before it is lifted ([`Slot::handed`]).
    pub(crate) fn passes(self) -> bool {
        matches!(
            self,
            Self::Young
                | Self::PeerNotLifted
                | Self::Filtered
                | Self::NoService
                | Self::Descriptors
                | Self::Refused
                | Self::Exec
                | Self::Passed
                | Self::Peer
                | Self::Parked
        )
    }

    /// Whether what the program sends afterwards still passes through the layer, in this process and in no other.
    pub(crate) fn leaves_sending(self) -> bool {
        matches!(self, Self::Call | Self::Set)
    }
}

/// See the module's text. One cache line for each rhythm.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Slot {
    /// The processes that have it open; none: the slot is free.
    pub(crate) tenure: Tenure,
    phase: AtomicU32,
    why: AtomicU32,
    /// The open file's `O_NONBLOCK`.
    pub(crate) nonblocking: AtomicBool,
    /// The program ended its sending direction.
    pub(crate) finished: AtomicBool,
    /// It did, and the connection was lowered before the kernel could be told: the layer has to keep it ended.
    pub(crate) mute: AtomicBool,
    /// The program ended its receiving direction.
    pub(crate) deaf: AtomicBool,
    /// The kernel connection has something to say beside the ring: an end, an error, or bytes.
    pub(crate) look: AtomicBool,
    /// The words of readiness were told to the peer ([`vmmc::stream::READY`]).
    pub(crate) ready: AtomicBool,
    /// Receiving calls tell how much is left to read (`TCP_INQ`); known from the exchange of memories on.
    pub(crate) tells_left: AtomicBool,
    /// The program has corked the connection (`TCP_CORK`); known as long.
    pub(crate) corked: AtomicBool,
    /// The node service was shown the socket, and may have it a moment longer than the program.
    pub(crate) shown: AtomicBool,
    /// It has not answered to that, or not as if it would let go of the socket: that may lie in its queue, or be with it.
    pub(crate) unanswered: AtomicBool,
    pub(crate) pair: AtomicU64,
    /// The kernel's name of the connection, known once it is paired or handed over, or a child of vfork may ask for it; 0: not yet.
    pub(crate) cookie: AtomicU64,
    /// How often it was handed to others than this family, or came from them; 0: nobody else has it.
    pub(crate) handed: AtomicU32,
    pub(crate) calls: AtomicU32,
    /// When it was last offered for lifting, in ticks.
    pub(crate) offered: AtomicU64,
    /// Which end began the connection.
    opening: AtomicU32,
    /// How often it came back to TCP from being lifted, without having carried much: so long it waits to be lifted again.
    /// 0: it was never lifted.
    pub(crate) returned: AtomicU32,
    /// How often it was put off, and the second of real time until which it is.
    pub(crate) put_off: AtomicU32,
    pub(crate) put_off_until: AtomicU32,
    /// Calls that are under way in the kernel, or asleep, and may rely on TCP: no direction switches under them.
    pub(crate) receiving: AtomicU32,
    pub(crate) sending: AtomicU32,
    /// The threads that sleep in a receiving and in a sending call on this end's bell.
    pub(crate) receiver_asleep: AtomicU32,
    pub(crate) sender_asleep: AtomicU32,
    pub(crate) inward: Inward,
    pub(crate) outward: Outward,
}

/// The receiving direction; changed with its lock held.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Inward {
    pub(crate) lock: Lock,
    way: AtomicU32,
    pub(crate) stream: Receiver,
    /// Bytes passed over on TCP that the ring had given already ([`vmmc::stream::Repeat`]); [`Inward::NOTHING_REPEATED`]
    /// if whatever the peer says of such is void.
    pub(crate) passed: AtomicU64,
    /// Bytes that were received in the rings of earlier liftings.
    pub(crate) past: AtomicU64,
    /// Bytes that this lifting took out of the ring unread, which come by TCP too.
    pub(crate) taken_out: AtomicU64,
    /// Bytes that the program looks at where they lie.
    pub(crate) loan: Loan,
}

/// The sending direction; changed with its lock held.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Outward {
    pub(crate) lock: Lock,
    way: AtomicU32,
    /// A full ring was met this often: an edge for edge-triggered waiters when there is room again.
    pub(crate) collisions: AtomicU32,
    /// Bytes that were sent in the rings of earlier liftings.
    pub(crate) past: AtomicU64,
    /// Bytes of this lifting's ring that were written to TCP too.
    pub(crate) twice: AtomicU64,
    pub(crate) stream: Transmitter,
    /// Space that the program fills where it lies.
    pub(crate) loan: Loan,
}

macro_rules! word_of {
    ($name:ident, $set:ident, $type:ident, [$($variant:ident),*]) => {
        #[inline]
        pub(crate) fn $name(&self) -> $type {
            match self.$name.load(Ordering::SeqCst) {
                $(x if x == $type::$variant as u32 => $type::$variant,)*
                _ => unreachable!("only variants are stored"),
            }
        }
        pub(crate) fn $set(&self, value: $type) {
            self.$name.store(value as u32, Ordering::SeqCst);
        }
    };
}

impl Inward {
    pub(crate) const NOTHING_REPEATED: u64 = u64::MAX;

    word_of!(way, set_way, Way, [Tcp, Ring, Handover, Lowered]);

    /// Bytes that were read and came in this lifting's ring only.
    pub(crate) fn carried(&self) -> u64 {
        let passed = match self.passed.load(Ordering::Relaxed) {
            Self::NOTHING_REPEATED => 0,
            passed => passed,
        };
        self.stream.head().saturating_sub(passed + self.taken_out.load(Ordering::Relaxed))
    }
}

impl Outward {
    word_of!(way, set_way, Way, [Tcp, Ring, Handover, Lowered]);

    /// Bytes that were sent in this lifting's ring only.
    pub(crate) fn carried(&self) -> u64 {
        self.stream.tail().saturating_sub(self.twice.load(Ordering::Relaxed))
    }
}

impl Slot {
    word_of!(phase, set_phase, Phase, [Tcp, Offered, Exchanged, Attached, Stay, Retired]);
    word_of!(
        why,
        set_why,
        Why,
        [
            Young,
            PeerNotLifted,
            NoService,
            Descriptors,
            Refused,
            Shared,
            Exec,
            Passed,
            Call,
            Peer,
            Broken,
            Set,
            Separate,
            Program,
            Port,
            User,
            Bell,
            Parked,
            Standard,
            Filtered,
            Uring
        ]
    );

    word_of!(opening, set_opening, Opening, [Unseen, Active, Passive]);

    /// Whether nobody has it but one process, as far as this family knows.
    pub(crate) fn is_alone(&self) -> bool {
        self.tenure.holders() == 1 && self.handed.load(Ordering::Acquire) == 0
    }

    /// Whether a thread is in a call on it, or was when it was closed.
    fn is_in_call(&self) -> bool {
        let calls = [&self.receiving, &self.sending, &self.receiver_asleep, &self.sender_asleep];
        calls.into_iter().any(|count| count.load(Ordering::Relaxed) != 0)
    }

    /// Leaves the connection on TCP.
    pub(crate) fn stay(&self, why: Why) {
        self.set_why(why);
        self.set_phase(Phase::Stay);
    }

    fn renew(&self) {
        self.set_phase(Phase::Tcp);
        self.set_why(Why::Young);
        self.set_opening(Opening::Unseen);
        let flags = [&self.nonblocking, &self.finished, &self.mute, &self.deaf, &self.look];
        for flag in flags.into_iter().chain([
            &self.ready,
            &self.tells_left,
            &self.corked,
            &self.shown,
            &self.unanswered,
        ]) {
            flag.store(false, Ordering::Relaxed);
        }
        self.pair.store(0, Ordering::Relaxed);
        self.cookie.store(0, Ordering::Relaxed);
        let numbers =
            [&self.calls, &self.returned, &self.handed, &self.put_off, &self.put_off_until];
        let numbers = numbers.into_iter().chain([&self.receiving, &self.sending]);
        for number in numbers.chain([&self.receiver_asleep, &self.sender_asleep]) {
            number.store(0, Ordering::Relaxed);
        }
        self.inward.past.store(0, Ordering::Relaxed);
        self.outward.past.store(0, Ordering::Relaxed);
        self.begin_streams();
    }

    /// Back to TCP, whole, after having been lifted; perhaps to be lifted again. Both directions' locks are held.
    pub(crate) fn come_back(&self) {
        /// A lifting that carried so much was worth it; so was one that ended only because nothing more came.
        const MUCH: u64 = 1 << 20;
        let (received, sent) = (self.inward.carried(), self.outward.carried());
        self.inward.past.fetch_add(received, Ordering::Relaxed);
        self.outward.past.fetch_add(sent, Ordering::Relaxed);
        let times = self.returned.load(Ordering::Relaxed);
        let times = match received + sent {
            MUCH.. => 1,
            1.. if self.why() == Why::Parked => times.max(1),
            _ => times + 1,
        };
        self.returned.store(times, Ordering::Relaxed);
        self.ready.store(false, Ordering::Relaxed);
        self.look.store(false, Ordering::Relaxed);
        self.calls.store(0, Ordering::Relaxed);
        self.pair.store(0, Ordering::Relaxed);
        self.begin_streams();
        self.set_phase(Phase::Tcp);
    }

    /// Both directions at the start of fresh rings.
    pub(crate) fn begin_streams(&self) {
        self.inward.set_way(Way::Tcp);
        self.inward.stream.reset();
        self.inward.passed.store(0, Ordering::Relaxed);
        self.inward.taken_out.store(0, Ordering::Relaxed);
        self.inward.loan.end();
        self.outward.set_way(Way::Tcp);
        self.outward.collisions.store(0, Ordering::Relaxed);
        self.outward.twice.store(0, Ordering::Relaxed);
        self.outward.stream.reset();
        self.outward.loan.end();
    }
}

/// Slots that are used as long as most of them are free.
const FIRST: u32 = 256;

#[derive(Debug)]
struct Table {
    next: AtomicU32,
    /// Slots are taken in turn out of the first so many, a power of two.
    span: AtomicU32,
    slots: [Slot; SLOTS],
    members: Members,
}

static TABLE: OnceLock<Option<&'static Table>> = OnceLock::new();

fn table() -> Option<&'static Table> {
    *TABLE.get_or_init(|| {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let address = kernel::call!(
            SYS_mmap,
            0,
            size_of::<Table>(),
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1isize,
            0
        );
        // SAFETY: a fresh mapping of the right size that is never unmapped; zero is valid for all fields, all of which
        // are atomics, so that sharing it between threads and processes is sound.
        address.ok().map(|address| unsafe { &*(address as *const Table) })
    })
}

/// Makes the table; before the first fork of a family that shall share it.
pub(crate) fn prepare() -> bool {
    let Some(table) = table() else { return false };
    // What became of a connection is to be told at the end, and stands in its place until another gets that.
    let span = if explain::asked() { SLOTS as u32 } else { FIRST };
    table.span.store(span, Ordering::Relaxed);
    table.members.found();
    true
}

/// The slot of this index.
#[inline]
pub(crate) fn get(index: u32) -> &'static Slot {
    let table = TABLE.get().copied().flatten().expect("an index exists only after the table");
    &table.slots[index as usize]
}

/// A free slot, now held by this process.
pub(crate) fn allocate() -> Option<u32> {
    let table = table()?;
    table.take().or_else(|| if table.members.sweep(&table.slots) { table.take() } else { None })
}

/// This process is about to let go of the slot. If it is the last it has to end the connection, and then [`release`] the slot; if not, it holds it no more.
pub(crate) fn set_out(index: u32) -> bool {
    let last = get(index).tenure.set_out();
    if let Some(table) = table().filter(|_| !last) {
        table.members.forget(index);
    }
    last
}

/// This process holds the slot no more.
pub(crate) fn release(index: u32) {
    // Read while it cannot be in another use yet.
    let serial = get(index).tenure.serial();
    if let Some(table) = table() {
        table.members.forget(index);
    }
    get(index).tenure.leave(serial);
}

/// Before a fork: the child will hold these too. Counted before it exists, as the parent may close its own before the child first runs.
pub(crate) fn before_fork(held: impl IntoIterator<Item = u32>) {
    let Some(table) = table() else { return };
    table.members.expect(&table.slots);
    for index in held {
        table.members.note_for_child(index);
        get(index).tenure.join();
    }
}

/// After a fork, in the parent.
pub(crate) fn after_fork_in_parent() {
    if let Some(table) = table() {
        table.members.parted();
    }
}

/// After a fork, in the child.
pub(crate) fn after_fork_in_child() {
    if let Some(table) = table() {
        table.members.born();
    }
}

/// The fork has failed.
pub(crate) fn fork_failed() {
    if let Some(table) = table() {
        table.members.no_child(|index| {
            let tenure = &get(index).tenure;
            tenure.leave(tenure.serial());
        });
    }
}

impl Table {
    /// In turn, so that what comes late for a connection does not meet the next one in its place; out of few, because what a slot
    /// has in all its tables is two dozen cache lines, and at first as many pages.
    fn take(&self) -> Option<u32> {
        let mut held = 0;
        for tried in 0..2 * SLOTS {
            let span = self.span.load(Ordering::Relaxed);
            let index = self.next.fetch_add(1, Ordering::Relaxed) % span;
            let slot = &self.slots[index as usize];
            // Calls that were under way as it was closed; or nobody's, left by a process that was killed.
            let in_call = tried < SLOTS && slot.is_in_call();
            // Noted before it is taken, or another process would free it.
            if slot.tenure.holders() > 0 || in_call || !self.members.note(index) {
                held += 1;
                if held > span / 2 {
                    held = 0;
                    self.widen(span);
                }
                continue;
            }
            if slot.tenure.begin() {
                slot.renew();
                return Some(index);
            }
            self.members.forget(index);
        }
        None
    }

    /// More than half of the first `span` slots are held: goes on behind them.
    fn widen(&self, span: u32) {
        let (wider, order) = (span * 2, Ordering::Relaxed);
        if wider <= SLOTS as u32 && self.span.compare_exchange(span, wider, order, order).is_ok() {
            self.next.store(span, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;

    /// The table of this process, for one test at a time.
    pub(crate) fn fresh_table() -> MutexGuard<'static, ()> {
        static ONE: Mutex<()> = Mutex::new(());
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(prepare());
        alone
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory for processes to share")]
    fn few_slots_take_turns_as_long_as_few_are_held() {
        let _alone = fresh_table();
        let busy = allocate().unwrap();
        get(busy).receiving.store(1, Ordering::Relaxed);
        release(busy);
        for _ in 0..3 * FIRST {
            let index = allocate().unwrap();
            assert!(index < FIRST);
            assert_ne!(index, busy, "a call on its last connection is still under way");
            release(index);
        }
        // Held ones in a row are passed over.
        let mut held: Vec<_> = std::iter::from_fn(allocate).take(FIRST as usize / 16).collect();
        for _ in 0..3 * FIRST {
            let index = allocate().unwrap();
            assert!(index < FIRST);
            release(index);
        }
        held.extend(std::iter::from_fn(allocate).take(2 * FIRST as usize - held.len()));
        held.sort_unstable();
        held.dedup();
        assert_eq!(held.len(), 2 * FIRST as usize);
        assert!(held.iter().all(|index| *index < 4 * FIRST));
        held.into_iter().for_each(release);
        get(busy).receiving.store(0, Ordering::Relaxed);
    }
}
