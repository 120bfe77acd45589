//! Fork, exec and exit: how connections go on when processes multiply, change and end.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::descriptor::{self, Kind};
use crate::handing::Handing;
use crate::layer::{self, STRUCTURE, Structure};
use crate::slot::{self, Phase, Why};
use crate::{
    armed_poll, board, busy, ending, epoll, explain, heap, kernel, lift, loan, local, lower,
    policy, service, thread,
};

/// Numbers that this process has as connections.
fn connections() -> impl Iterator<Item = (i32, u32)> {
    descriptor::between(0, i32::MAX).filter_map(|(fd, kind)| match kind {
        Kind::Connection(index) => Some((fd, index)),
        _ => None,
    })
}

fn distinct_connections() -> Vec<u32> {
    let mut all: Vec<_> = connections().map(|(_, index)| index).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Before a fork: nothing may be half done in the copy.
pub fn before_fork() {
    if layer::enabled() {
        hold_for_fork();
    }
    // Behind all else, which takes memory.
    heap::hold_for_fork();
    // The C library takes its own locks now.
    if layer::enabled() {
        STRUCTURE.lend();
        epoll::lend();
    }
}

fn hold_for_fork() {
    // In the order in which every other thread takes the two.
    STRUCTURE.hold_for_fork(|structure| {
        lift::before_fork(structure);
        if attached().next().is_some() {
            structure.expect_heir();
        }
    });
    epoll::hold_for_fork();
    slot::before_fork(distinct_connections());
}

/// After a fork, in the parent.
pub fn after_fork_in_parent() {
    heap::release_after_fork();
    if !layer::enabled() {
        return;
    }
    slot::after_fork_in_parent();
    STRUCTURE.release_after_fork();
    epoll::release_after_fork(false);
    STRUCTURE.with(Structure::leave_to_heir);
}

/// The descriptors of lifted connections, with their slots.
fn attached() -> impl Iterator<Item = (i32, u32)> {
    connections().filter(|&(_, index)| slot::get(index).phase() == Phase::Attached)
}

/// The node service knows of none of the connections that this process has.
pub(crate) fn hold_none() {
    connections().for_each(|(_, index)| local::get(index).held.store(false, Ordering::Release));
}

/// Before a thread is started: what is cheap in a process of one thread is done now.
pub fn before_thread() {
    if layer::enabled() && !layer::confined() && !service::absent() {
        descriptor::reach();
    }
}

/// After a fork, in the child: it holds every connection too, and is a process of its own to the node service.
pub fn after_fork_in_child() {
    heap::release_after_fork();
    if !layer::enabled() {
        return;
    }
    thread::forked();
    layer::moved();
    armed_poll::forked();
    descriptor::forked();
    slot::after_fork_in_child();
    ENDED_BY.store(0, Ordering::Relaxed);
    STRUCTURE.release_after_fork();
    epoll::release_after_fork(true);
    layer::forget_process();
    let shown: Vec<_> = connections()
        .filter(|&(fd, index)| board::shows(index, fd))
        .map(|(fd, index)| (fd, index, board::known(index)))
        .collect();
    board::forked();
    explain::forked();
    let expected = STRUCTURE.with(|structure| {
        structure.forget_questions();
        structure.bells.forget();
        structure.become_heir()
    });
    if !expected {
        hold_none();
        attached().for_each(|(fd, index)| lift::hold(fd, slot::get(index), local::get(index)));
    }
    for (fd, index, known) in shown {
        board::open(index, fd);
        board::know(index, known);
        board::update(index, slot::get(index));
    }
    busy::forked();
}

/// The fork that [`before_fork`] prepared has failed.
pub fn fork_failed() {
    if layer::enabled() {
        slot::fork_failed();
    }
}

/// Before the program changes its user or root directory: afterwards the node service may be out of reach.
pub fn before_confinement() {
    if layer::enabled() && layer::at_home() {
        STRUCTURE.with(|structure| structure.process());
    }
}

/// The program has put itself under seccomp: no call of the layer's own shall end it. Nothing is lifted any more, and what is whole in the
/// kernel the layer does not know any more.
pub fn after_sandboxing() {
    layer::confine();
    let is_whole = |index| slot::get(index).phase() != Phase::Attached;
    let all_whole = connections().all(|(_, index)| is_whole(index));
    for (fd, kind) in descriptor::between(0, i32::MAX) {
        let goes = match kind {
            Kind::Connection(index) => is_whole(index),
            Kind::Set(_) | Kind::Ring(_) => all_whole,
            Kind::Own | Kind::Other => false,
        };
        if goes {
            descriptor::remove(fd, kind);
        }
    }
    if all_whole {
        layer::stop();
    }
}

/// Before the program puts itself under a filter of system calls: one that does not know those by which the layer sleeps and
/// wakes would kill it. Waits a little for the peers, who may have something to read in the rings yet.
pub fn before_filter() {
    const PATIENCE: u32 = 20;
    if !layer::enabled() || !layer::at_home() {
        return;
    }
    for (fd, index) in connections() {
        // A relative that is under no filter may lift the others, and these again.
        if matches!(slot::get(index).phase(), Phase::Attached | Phase::Offered | Phase::Exchanged) {
            lower::lower(fd, index, Why::Filtered);
        }
    }
    policy::be_filtered();
    epoll::be_eager();
    for _ in 0..PATIENCE {
        if attached().next().is_none() {
            break;
        }
        kernel::pause(Duration::from_millis(1));
        attached().for_each(|(fd, index)| lower::follow(fd, index));
    }
}

/// Before the program limits its address space: what its peers send must still be readable.
pub fn before_limited_address_space() {
    if !layer::enabled() || !layer::at_home() {
        return;
    }
    layer::limit_address_space();
    for (_, index) in attached() {
        let _inward = slot::get(index).inward.lock.hold();
        local::get(index).map_all_in();
    }
}

/// The connection with this cookie, of those that were handed over and that this process has.
pub(crate) fn handed_connection(cookie: u64) -> Option<u32> {
    let mut all = connections().map(|(_, index)| index);
    all.find(|index| {
        let slot = slot::get(*index);
        slot.handed.load(Ordering::Relaxed) != 0 && slot.cookie.load(Ordering::Relaxed) == cookie
    })
}

/// Learns the kernel's names of those connections that have none yet.
pub(crate) fn identify_connections() {
    for (fd, index) in connections() {
        if slot::get(index).cookie.load(Ordering::Relaxed) != 0 {
            continue;
        }
        STRUCTURE.briefly(|_| {
            // Another thread may have closed it, and only with this lock.
            if descriptor::connection(fd) == Some(index)
                && let Some(cookie) = cookie(fd)
            {
                slot::get(index).cookie.store(cookie, Ordering::Relaxed);
            }
        });
    }
}

/// Lowers every connection that this process has now.
pub(crate) fn lower_all(why: Why) {
    connections().for_each(|(fd, index)| lower::lower(fd, index, why));
}

/// Before another program takes this process's place. As [`before_spawn`]; and the epoll objects that it inherits must be true
/// in the kernel, also of connections that it does not get.
pub fn before_exec() -> Handing {
    if layer::enabled() && layer::at_home() {
        let sets = descriptor::between(0, i32::MAX).filter_map(|(fd, kind)| match kind {
            Kind::Set(number) if is_inherited(fd) => Some(number),
            _ => None,
        });
        sets.for_each(epoll::hand_over);
    }
    before_spawn()
}

/// Before another program is started: what it inherits must be whole in the kernel. If it is not started after all, that is to be
/// taken back.
pub fn before_spawn() -> Handing {
    let mut handing = Handing::new();
    if !layer::enabled() {
        return handing;
    }
    let home = layer::at_home();
    if home {
        epoll::be_eager();
    }
    // A child of vfork has descriptors of its own but its parent's table: it may have put a connection on any of the
    // standard ones.
    let standard = (0..=2).filter(|_| !home);
    // What else it has under a number of another connection it has marked and lowered when it put it there.
    let same = |&(fd, index): &(i32, u32)| home || descriptor::connection(fd) == Some(index);
    for fd in standard.chain(connections().filter(same).map(|(fd, _)| fd)) {
        if is_inherited(fd) {
            handing.hand(fd);
            lower_inherited(fd, home);
        } else if let (true, Some(index)) = (home, descriptor::connection(fd)) {
            // The rest of the family shall not wait for what the next program does not know of.
            loan::abandon(slot::get(index));
        }
    }
    handing
}

/// Whether the next program gets the descriptor.
fn is_inherited(fd: i32) -> bool {
    kernel::descriptor_flags(fd).is_some_and(|flags| flags & libc::FD_CLOEXEC == 0)
}

fn lower_inherited(fd: i32, home: bool) {
    if home {
        lower::lower_for(fd, Why::Exec);
        return;
    }
    // What the child duplicated was lowered then; the numbers are its parent's but for those.
    if let Some(index) = descriptor::connection(fd)
        && matches!(slot::get(index).phase(), Phase::Tcp | Phase::Offered | Phase::Exchanged)
    {
        return lower::lower(fd, index, Why::Exec);
    }
    let Some(cookie) = cookie(fd) else { return };
    let same = connections().find(|&(_, index)| {
        let slot = slot::get(index);
        slot.phase() == Phase::Attached && slot.cookie.load(Ordering::Relaxed) == cookie
    });
    if let Some((_, index)) = same {
        lower::lower(fd, index, Why::Exec);
    }
}

fn cookie(fd: i32) -> Option<u64> {
    kernel::option::<u64>(fd, libc::SOL_SOCKET, libc::SO_COOKIE)
}

/// The process ends by `exit`, and has nothing left to run but that: the peers shall not wait for the kernel to tell them.
pub fn at_exit() {
    if end(ending::AtExit::Whole) {
        explain::tell();
    }
}

/// The process ends by `_exit`, which a handler of a signal may do: no memory is taken, and nothing is waited for.
pub fn at_bare_exit() {
    if !layer::confined() {
        end(ending::AtExit::Bare);
    }
}

/// This thread ends by its system call: with it the process, if there is no other.
pub fn at_thread_exit() {
    if thread::alone() {
        at_bare_exit();
    }
}

/// Whether it had not ended before.
fn end(how: ending::AtExit) -> bool {
    if !layer::enabled() || !layer::at_home() {
        return false;
    }
    let first =
        ENDED_BY.compare_exchange(0, thread::id(), Ordering::SeqCst, Ordering::Relaxed).is_ok();
    if !first {
        return false;
    }
    let mut ended = [0u64; slot::SLOTS / 64];
    for (fd, index) in connections() {
        let (word, bit) = (&mut ended[index as usize / 64], 1 << (index % 64));
        if *word & bit == 0 {
            *word |= bit;
            ending::end_at_exit(fd, index, how);
        }
    }
    true
}

/// The thread that has ended all connections, as the process is about to; 0: none has.
static ENDED_BY: AtomicU32 = AtomicU32::new(0);

/// On the kernel's TCP connections end together with the threads that use them. So a thread to which the layer would tell what only
/// came of its own goodbye (a broken pipe, an end, a reset) does not live to hear of it.
#[inline]
pub(crate) fn outlive_no_goodbye() {
    if ENDED_BY.load(Ordering::Acquire) != 0 {
        await_death();
    }
}

/// Not for ever: what the program still runs, past all destructors, may wait for this very thread.
#[cold]
fn await_death() {
    const ROUNDS: u32 = 100;
    let by = ENDED_BY.load(Ordering::Acquire);
    if by == thread::id() {
        return;
    }
    for _ in 0..ROUNDS {
        kernel::futex_wait(&ENDED_BY, by, Duration::from_millis(100));
    }
}
