//! The layer as one process has it: on or off, its connection to the node service, and which descriptors belong to
//! which connection.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, Ordering};

use vmmc::{Heir, PairError, PairId, Process};

use crate::bells::Bells;
use crate::descriptor::{self, Kind};
use crate::guarded::Guarded;
use crate::handing::Handing;
use crate::slot::{self, Why};
use crate::tcp::Opening;
use crate::tenure::Seen;
use crate::{
    board, closing, ending, epoll, explain, family, handing, heap, kernel, lift, local,
    own_numbers, park, policy, service, spin,
};

static ENABLED: AtomicBool = AtomicBool::new(false);
static CONFINED: AtomicBool = AtomicBool::new(false);
static CRAMPED: AtomicBool = AtomicBool::new(false);
static PROCESS: AtomicPtr<Process> = AtomicPtr::new(std::ptr::null_mut());
/// The descriptor of [`PROCESS`], which a forked child can have without a lock; 0: none.
static LINK: AtomicI32 = AtomicI32::new(0);
/// What a forked child has of its parent until it opens a connection of its own; see [`Heir`].
static HEIR: AtomicPtr<Heir> = AtomicPtr::new(std::ptr::null_mut());
static PROCESS_ID: AtomicU32 = AtomicU32::new(0);

/// What changes rarely, behind one lock.
pub(crate) static STRUCTURE: Guarded<Structure> = Guarded::new(Structure::new());

/// See [`STRUCTURE`].
#[derive(Debug)]
pub(crate) struct Structure {
    /// Slot and serial of each offer that was not answered.
    pub(crate) offers: BTreeMap<u64, (u32, u32)>,
    /// Each question who has a connection that was not answered.
    pub(crate) inquiries: BTreeMap<u64, Inquiry>,
    /// Slot and serial of each pair.
    pub(crate) pairs: BTreeMap<u64, (u32, u32)>,
    pub(crate) bells: Bells,
    /// The child of the fork that is under way.
    heir: Option<Heir>,
}

/// A question to the node service, and what was known of the slot when it was asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inquiry {
    pub(crate) index: u32,
    pub(crate) tenure: Seen,
    pub(crate) handed: u32,
}

impl Structure {
    const fn new() -> Self {
        Self {
            offers: BTreeMap::new(),
            inquiries: BTreeMap::new(),
            pairs: BTreeMap::new(),
            bells: Bells::new(),
            heir: None,
        }
    }

    /// Nothing that was asked will be answered.
    pub(crate) fn forget_questions(&mut self) {
        self.offers.clear();
        self.inquiries.clear();
    }

    /// The connection to the node service, opened when it is first needed; it is not started from inside a program.
    pub(crate) fn process(&mut self) -> Option<&'static Process> {
        if let Some(process) = process() {
            return Some(process);
        }
        if confined() || service::absent() {
            return None;
        }
        let options = Process::options()
            .place(service::place().clone())
            .start_service(false)
            .watcher(false)
            .descriptor_floor(own_numbers::floor())
            .name(&program_name());
        let options = match heir() {
            Some(heir) => options.heir(heir),
            None => options,
        };
        let Ok(process) = options.open_for_pairing() else {
            service::missing();
            return None;
        };
        if forget_heir() && !process.has_inherited() {
            family::hold_none();
        }
        service::present();
        let process: &'static Process = Box::leak(Box::new(process));
        for fd in process.owned_fds() {
            descriptor::enter(fd, Kind::Own);
            LINK.store(fd, Ordering::Relaxed);
        }
        board::publish(process);
        PROCESS.store(std::ptr::from_ref(process).cast_mut(), Ordering::Release);
        Some(process)
    }

    /// Opens the connection to the node service, if this is a forked child that has something of its parent.
    pub(crate) fn claim(&mut self) {
        if heir().is_some() {
            self.process();
        }
    }

    /// Before a fork: announces the child, if the service has anything of this process that the child will have too.
    pub(crate) fn expect_heir(&mut self) {
        self.claim();
        self.heir = process().and_then(|process| process.pair_heir().ok());
        if let Some(heir) = &self.heir {
            descriptor::enter(heir.raw_fd(), Kind::Own);
        }
    }

    /// After the fork, in the parent.
    pub(crate) fn leave_to_heir(&mut self) {
        if let Some(heir) = self.heir.take() {
            descriptor::remove(heir.raw_fd(), Kind::Own);
        }
    }

    /// After the fork, in the child; whether it is expected.
    pub(crate) fn become_heir(&mut self) -> bool {
        let Some(heir) = self.heir.take() else { return false };
        HEIR.store(Box::into_raw(Box::new(heir)), Ordering::Release);
        true
    }

    /// The connection to the service is gone: forget it (a few bytes stay) and everything that was asked over it.
    pub(crate) fn lose_process(&mut self) {
        let old = PROCESS.swap(std::ptr::null_mut(), Ordering::AcqRel);
        LINK.store(0, Ordering::Relaxed);
        // SAFETY: the pointer came from a leaked box; it is never freed.
        if let Some(old) = unsafe { old.as_ref() } {
            for fd in old.owned_fds() {
                descriptor::remove(fd, Kind::Own);
            }
        }
        service::missing();
        self.forget_questions();
    }
}

/// The open connection to the node service.
#[inline]
pub(crate) fn process() -> Option<&'static Process> {
    // SAFETY: the pointer is null or came from a leaked box.
    unsafe { PROCESS.load(Ordering::Acquire).as_ref() }
}

/// Whether the node service may have something to say; to a forked child it says so when that has a connection.
#[inline]
pub(crate) fn has_mail() -> bool {
    match process() {
        Some(process) => process.has_mail(),
        None => heir().is_some() && !confined() && !service::absent(),
    }
}

/// Says to the service that this process no longer holds the end `pair`; with `linger` the peer has not read everything.
pub(crate) fn drop_pair(pair: PairId, linger: bool) {
    say(
        |process| if linger { process.pair_linger(pair) } else { process.pair_drop(pair) },
        |heir| heir.pair_drop(pair, linger),
    );
}

/// As [`drop_pair`], lingering, where no memory can be taken.
pub(crate) fn drop_pair_at_end(pair: PairId) {
    say(|process| process.pair_linger_at_end(pair), |heir| heir.pair_drop(pair, true));
}

/// Says to the service that the peer's end need not linger.
pub(crate) fn settle_pair(pair: PairId) {
    say(|process| process.pair_settle(pair), |heir| heir.pair_settle(pair));
}

/// Says something to the service, if there is a way to: by the connection, or by what a forked child has of its parent.
fn say(
    by_process: impl FnOnce(&Process) -> Result<(), PairError>,
    by_heir: impl FnOnce(&Heir) -> Result<(), PairError>,
) {
    let _ = match (process(), heir()) {
        (Some(process), _) => by_process(process),
        (None, Some(heir)) => by_heir(heir),
        (None, None) => Ok(()),
    };
}

/// What this process has of its parent, and no connection of its own yet.
#[cold]
fn heir() -> Option<&'static Heir> {
    // SAFETY: the pointer is null or came from a leaked box.
    unsafe { HEIR.load(Ordering::Acquire).as_ref() }
}

/// The heir's socket is needed no longer (a few bytes stay); whether there was one.
fn forget_heir() -> bool {
    let heir = heir();
    HEIR.store(std::ptr::null_mut(), Ordering::Release);
    if let Some(heir) = heir {
        descriptor::remove(heir.raw_fd(), Kind::Own);
        let _ = kernel::call!(SYS_close, heir.raw_fd());
    }
    heir.is_some()
}

/// Gives up the parent's connection, in a forked child: the service shall see its end when the parent becomes another program.
pub(crate) fn forget_process() {
    PROCESS.store(std::ptr::null_mut(), Ordering::Release);
    let link = LINK.swap(0, Ordering::Relaxed);
    if link != 0 {
        descriptor::remove(link, Kind::Own);
        let _ = kernel::call!(SYS_close, link);
    }
}

/// The larger rings of what the peers send are mapped when a connection is lifted: later there may be no address space for them.
pub(crate) fn limit_address_space() {
    CRAMPED.store(true, Ordering::Relaxed);
}

/// Whether this process's address space is limited.
pub(crate) fn has_limited_address_space() -> bool {
    CRAMPED.load(Ordering::Relaxed)
}

fn program_name() -> String {
    let name = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    name.trim_end().to_owned()
}

/// Switches the layer on for this process. Call once, before the program runs.
pub fn start() {
    if std::env::var_os("VMMC_DISABLE").is_some_and(|value| !value.is_empty() && value != "0") {
        return;
    }
    explain::remember();
    if !slot::prepare() {
        return;
    }
    own_numbers::begin();
    if let Some(microseconds) = std::env::var("VMMC_SPIN").ok().and_then(|value| value.parse().ok())
    {
        spin::set_budget(microseconds);
    }
    if let Some(calls) = std::env::var("VMMC_LIFT_AFTER").ok().and_then(|value| value.parse().ok())
    {
        lift::set_calls(calls);
    }
    if let Some(seconds) =
        std::env::var("VMMC_PARK_AFTER").ok().and_then(|value| value.parse().ok())
    {
        park::set_after(seconds);
    }
    let unlimited = |(limit, _)| limit == libc::RLIM_INFINITY;
    CRAMPED.store(!kernel::limits(libc::RLIMIT_AS).is_some_and(unlimited), Ordering::Relaxed);
    service::remember();
    policy::remember();
    PROCESS_ID.store(kernel::process_id(), Ordering::Relaxed);
    ENABLED.store(true, Ordering::Release);
    handing::find_inherited();
}

/// Tracks no new connections.
pub(crate) fn stop() {
    ENABLED.store(false, Ordering::Release);
}

/// Sets out for nothing that takes system calls which the program would not make.
pub(crate) fn confine() {
    CONFINED.store(true, Ordering::Relaxed);
}

/// Whether only the program's own system calls may be made for it.
pub fn confined() -> bool {
    CONFINED.load(Ordering::Relaxed)
}

/// Whether the layer is on.
#[inline]
pub(crate) fn enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// Whether this is the process that the layer's tables describe: not a child of vfork, which shares its parent's memory
/// but has descriptors of its own.
pub(crate) fn at_home() -> bool {
    kernel::process_id() == PROCESS_ID.load(Ordering::Relaxed)
}

/// This process's number, as the layer last learnt it.
#[inline]
pub(crate) fn process_number() -> u32 {
    PROCESS_ID.load(Ordering::Relaxed)
}

/// This process is another than before: a child of fork.
pub(crate) fn moved() {
    PROCESS_ID.store(kernel::process_id(), Ordering::Relaxed);
}

/// A TCP socket that the program has just opened as `fd`: it may become a connection, and be registered in epoll objects
/// before.
pub fn opened(fd: i32, nonblocking: bool) {
    if is_new(fd) && is_tcp(fd) {
        follow(fd, Some(nonblocking), false);
    }
}

/// A connection that the kernel has just given to the program as `fd`, from the queue of `listener`.
pub fn accepted(listener: i32, fd: i32, nonblocking: bool) {
    // What comes from a socket that is followed is what that is.
    if is_new(fd) && (is_connection(listener) || is_tcp(fd)) {
        follow(fd, Some(nonblocking), true);
    }
    made(fd, Opening::Passive);
}

/// The program has begun to make a TCP connection of `fd`.
pub fn connecting(fd: i32) {
    match descriptor::connection(fd) {
        Some(index) => board::open(index, fd),
        // Where it comes from nobody saw, nor who else has it.
        None => drop(handing::found(fd, false)),
    }
    made(fd, Opening::Active);
}

fn made(fd: i32, opening: Opening) {
    if let Some(index) = descriptor::connection(fd) {
        slot::get(index).set_opening(opening);
        lift::made(fd, index, slot::get(index));
    }
}

/// Follows `fd`, which this process has from elsewhere.
pub(crate) fn adopt(fd: i32) -> Option<u32> {
    if is_new(fd) && is_tcp(fd) {
        follow(fd, None, board::address(fd, true).is_some());
    }
    descriptor::connection(fd)
}

/// Whether the layer may follow `fd`, and does not yet.
fn is_new(fd: i32) -> bool {
    enabled() && descriptor::kind(fd) == Kind::Other
}

fn is_tcp(fd: i32) -> bool {
    kernel::option::<i32>(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL) == Some(libc::IPPROTO_TCP)
}

fn follow(fd: i32, nonblocking: Option<bool>, connected: bool) {
    if !at_home() || heap::is_short() {
        return;
    }
    let nonblocking = nonblocking
        .or_else(|| Some(kernel::status_flags(fd)? & libc::O_NONBLOCK != 0))
        .unwrap_or_default();
    let Some(index) = slot::allocate() else { return };
    slot::get(index).nonblocking.store(nonblocking, Ordering::Relaxed);
    let entered = STRUCTURE.briefly(|_| {
        // SAFETY: the structure's lock is held.
        let parts = unsafe { local::get(index).parts() };
        parts.descriptors.clear();
        parts.members.clear();
        parts.descriptors.push(fd);
        descriptor::enter(fd, Kind::Connection(index))
    });
    match (entered, connected) {
        (true, true) => board::open(index, fd),
        (true, false) => {}
        (false, _) => slot::release(index),
    }
}

/// The C library's streams take `fd` over, and will close it without a word: it is lowered, and no longer followed.
pub fn leave(fd: i32) {
    let Some(index) = descriptor::connection(fd) else { return };
    crate::lower::lower_for_writing(fd);
    if !at_home() {
        return;
    }
    let last = STRUCTURE.briefly(|_| {
        descriptor::remove(fd, Kind::Connection(index));
        // SAFETY: the structure's lock is held.
        let parts = unsafe { local::get(index).parts() };
        epoll::before_close(index, parts);
        parts.descriptors.retain(|&other| other != fd);
        if let Some(other) = parts.descriptors.first() {
            board::renumber(index, fd, *other);
        }
        parts.descriptors.is_empty()
    });
    if last {
        ending::forget(index);
        board::close(index);
        slot::release(index);
    }
}

/// The kernel has given the program a new descriptor `fd`: whatever had that number was closed where nobody saw it.
pub fn renewed(fd: i32) {
    if is_known(fd) {
        drop(closing::closing(fd));
    }
}

/// `new` is the same open file as `old`.
pub fn duplicated(old: i32, new: i32) {
    match descriptor::kind_called(old) {
        Kind::Connection(index) if at_home() => {
            enter_duplicate(index, new);
            // The C library's streams use the standard numbers by calls that nobody sees.
            if new <= libc::STDERR_FILENO {
                crate::lower::lower_for_writing(new);
            }
        }
        // A child of vfork makes it ready for the program that it will become.
        Kind::Connection(index) => {
            handing::note(old);
            // What stands under the standard numbers is marked at `exec`.
            if new > libc::STDERR_FILENO {
                Handing::new().hand(new);
            }
            crate::lower::lower(old, index, Why::Exec);
        }
        Kind::Set(number) if at_home() => epoll::duplicated(number, new),
        // By the other number it could not be told.
        Kind::Ring(_) => crate::lower::lower_for_uring(),
        _ => {}
    }
}

/// `new` is one more descriptor of a connection that this process has.
pub(crate) fn enter_duplicate(index: u32, new: i32) {
    STRUCTURE.briefly(|_| {
        // SAFETY: the structure's lock is held.
        unsafe { local::get(index).parts() }.descriptors.push(new);
        descriptor::enter(new, Kind::Connection(index));
    });
}

/// Whether `fd` is a connection that the layer follows.
#[inline]
pub fn is_connection(fd: i32) -> bool {
    descriptor::connection_called(fd).is_some()
}

/// Whether `fd` is the program's and means anything to the layer.
pub fn is_known(fd: i32) -> bool {
    !matches!(descriptor::kind_called(fd), Kind::Other | Kind::Own)
}

/// Whether `fd` is a connection or an epoll object that the layer follows.
pub fn is_tracked(fd: i32) -> bool {
    matches!(descriptor::kind_called(fd), Kind::Connection(_) | Kind::Set(_))
}

/// The connections and epoll objects that the layer follows, of the numbers below `end`.
pub fn tracked_below(end: i32) -> impl Iterator<Item = i32> {
    let all = descriptor::between(0, end.saturating_sub(1));
    all.filter_map(|(fd, kind)| matches!(kind, Kind::Connection(_) | Kind::Set(_)).then_some(fd))
}

/// The open file behind `fd` was made blocking or non-blocking.
pub fn set_nonblocking(fd: i32, on: bool) {
    if let Some(index) = descriptor::connection(fd) {
        slot::get(index).nonblocking.store(on, Ordering::Relaxed);
    }
}
