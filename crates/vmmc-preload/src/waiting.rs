//! Waiting for many descriptors.

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use libc::{c_int, epoll_event, fd_set, nfds_t, pollfd, sigset_t, timespec, timeval};
use smallvec::SmallVec;
use vmmc_socket::Step;
use vmmc_socket::epoll::{self, Waiting};
use vmmc_socket::kernel::{self, Errno, Outcome, may_be_memory};
use vmmc_socket::readiness::{Limit, Polling, Room};
use vmmc_socket::signals::have_interrupted;

use crate::boundary::{
    INTERRUPTED, catch, follow, keep_errno, look_up_optional, natively, next, poll_natively, result,
};

fn milliseconds(timeout: c_int) -> Option<Duration> {
    u64::try_from(timeout).ok().map(Duration::from_millis)
}

/// `None`: no limit; the inner `None`: not a valid time, which the kernel shall refuse.
pub(crate) unsafe fn time(time: *const timespec) -> Option<Option<Duration>> {
    if time.is_null() {
        return Some(None);
    }
    if !may_be_memory(time) {
        return None;
    }
    let valid = (*time).tv_sec >= 0 && (0..1_000_000_000).contains(&(*time).tv_nsec);
    valid.then(|| Some(Duration::new((*time).tv_sec as u64, (*time).tv_nsec as u32)))
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn poll(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: c_int,
) -> c_int {
    let native = next!(poll: fn(*mut pollfd, nfds_t, c_int) -> c_int);
    let mut limit = Limit::new(milliseconds(timeout));
    match layer_poll(fds, count, &mut limit, std::ptr::null()) {
        Some(outcome) => result(outcome) as c_int,
        None => native(fds, count, timeout),
    }
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn ppoll(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    let native = next!(ppoll: fn(*mut pollfd, nfds_t, *const timespec, *const sigset_t) -> c_int);
    match time(timeout).and_then(|time| layer_poll(fds, count, &mut Limit::new(time), mask)) {
        Some(outcome) => result(outcome) as c_int,
        None => native(fds, count, timeout, mask),
    }
}

unsafe fn layer_poll(
    fds: *mut pollfd,
    count: nfds_t,
    limit: &mut Limit,
    mask: *const sigset_t,
) -> Option<Outcome> {
    if !may_be_memory(fds) || count == 0 || count > 1 << 20 {
        return None;
    }
    // Not dropped if the thread is cancelled or jumps out of the sleep.
    let mut room = ManuallyDrop::new(Room::default());
    let fds = std::slice::from_raw_parts_mut(fds, count as usize);
    let outcome = poll_through_layer(fds, Some(&mut room), limit, mask);
    ManuallyDrop::drop(&mut room);
    outcome
}

/// Polls in the layer, and sleeps outside of it; `None`: the kernel shall do it.
unsafe fn poll_through_layer(
    fds: &mut [pollfd],
    room: Option<&mut Room>,
    limit: &mut Limit,
    mask: *const sigset_t,
) -> Option<Outcome> {
    // Not dropped if the thread is cancelled or jumps out of the sleep; over, it holds nothing.
    let mut call = ManuallyDrop::new(Polling::new(fds, room, limit, mask));
    let mut slept = None;
    loop {
        match catch(Step::Kernel, || keep_errno(|| call.go(slept))) {
            Step::Done(outcome) => return Some(outcome),
            Step::Kernel => return None,
            Step::Sleep => {
                let (list, time, mask) = call.sleep();
                slept = Some(match have_interrupted() {
                    true => INTERRUPTED,
                    false => poll_natively(list, time, mask),
                });
            }
        }
    }
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn __poll_chk(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: c_int,
    room: usize,
) -> c_int {
    if room / size_of::<pollfd>() < count as usize {
        return next!(__poll_chk: fn(*mut pollfd, nfds_t, c_int, usize) -> c_int)(
            fds, count, timeout, room,
        );
    }
    poll(fds, count, timeout)
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn __ppoll_chk(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
    room: usize,
) -> c_int {
    if room / size_of::<pollfd>() < count as usize {
        let native = next!(__ppoll_chk: fn(*mut pollfd, nfds_t, *const timespec, *const sigset_t, usize) -> c_int);
        return native(fds, count, timeout, mask, room);
    }
    ppoll(fds, count, timeout, mask)
}

/// The three sets of `select` as one list for `poll`.
struct Selection {
    sets: [*mut fd_set; 3],
    count: c_int,
    /// On the stack for the sizes that programs have: `select` may be called where nobody may allocate.
    list: SmallVec<[pollfd; 64]>,
}

/// What each set asks for, and what of the answer counts for it (as the kernel's own select does it).
const ASKED: [i16; 3] = [
    libc::POLLIN | libc::POLLRDNORM | libc::POLLRDBAND,
    libc::POLLOUT | libc::POLLWRNORM,
    libc::POLLPRI,
];
const COUNTS: [i16; 3] = [
    ASKED[0] | libc::POLLHUP | libc::POLLERR | libc::POLLNVAL,
    ASKED[1] | libc::POLLERR | libc::POLLNVAL,
    ASKED[2] | libc::POLLNVAL,
];

impl Selection {
    unsafe fn new(count: c_int, sets: [*mut fd_set; 3]) -> Self {
        let mut list = SmallVec::new();
        for fd in 0..count {
            let mut events = 0;
            for (set, asked) in sets.iter().zip(ASKED) {
                if !set.is_null() && bit(*set, fd) {
                    events |= asked;
                }
            }
            if events != 0 {
                list.push(pollfd { fd, events, revents: 0 });
            }
        }
        Self { sets, count, list }
    }

    /// Whether the layer has to do with any of it.
    fn concerns_layer(&self) -> bool {
        self.list.iter().any(|fd| vmmc_socket::is_tracked(fd.fd))
    }

    unsafe fn wait(&mut self, limit: &mut Limit, mask: *const sigset_t) -> Option<Outcome> {
        let tracked = |fd: &&pollfd| vmmc_socket::is_tracked(fd.fd);
        // Of these too one may be none any more in the end, closed by another thread: then it counts as ready.
        let open: SmallVec<[c_int; 16]> =
            self.list.iter().filter(tracked).map(|fd| fd.fd).collect();
        let found = poll_through_layer(&mut self.list, None, limit, mask)?;
        let was_closed = |fd: &pollfd| fd.revents & libc::POLLNVAL != 0 && !open.contains(&fd.fd);
        Some(found.and_then(|_| match self.list.iter().any(was_closed) {
            true => Err(Errno(libc::EBADF)),
            false => Ok(self.answer()),
        }))
    }

    fn lower(&self) {
        self.list.iter().for_each(|fd| vmmc_socket::lower_descriptor(fd.fd));
    }

    unsafe fn answer(&self) -> usize {
        let mut found = 0;
        for (set, (asked, counts)) in self.sets.iter().zip(ASKED.into_iter().zip(COUNTS)) {
            if set.is_null() {
                continue;
            }
            // In whole words, as the kernel does.
            for fd in (0..self.count).step_by(64) {
                *word(*set, fd).0 = 0;
            }
            for fd in
                self.list.iter().filter(|fd| fd.events & asked != 0 && fd.revents & counts != 0)
            {
                put(*set, fd.fd);
                found += 1;
            }
        }
        found
    }
}

/// As many numbers as `select` would look at without this library: the program may have told of more than its sets have room for, as the kernel looks at
/// no more than it has descriptors.
fn within_table(count: c_int) -> c_int {
    if count <= libc::FD_SETSIZE as c_int || !vmmc_socket::is_table_enlarged() {
        return count;
    }
    keep_errno(|| catch(count, || vmmc_socket::size_of_table(count)))
}

/// Whether the layer has to do with any of so many. Looks at no bits but those of numbers that it knows, which each set has room for.
unsafe fn concerns_layer(count: c_int, sets: [*mut fd_set; 3]) -> bool {
    vmmc_socket::tracked_below(count)
        .any(|fd| sets.iter().any(|set| !set.is_null() && bit(*set, fd)))
}

// Sets may be longer than `FD_SETSIZE` when a program allocates them so; these know no limit.

unsafe fn word(set: *mut fd_set, fd: c_int) -> (*mut u64, u64) {
    (set.cast::<u64>().add(fd as usize / 64), 1 << (fd as usize % 64))
}

unsafe fn bit(set: *mut fd_set, fd: c_int) -> bool {
    let (word, mask) = word(set, fd);
    *word & mask != 0
}

unsafe fn put(set: *mut fd_set, fd: c_int) {
    let (word, mask) = word(set, fd);
    *word |= mask;
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn select(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    let native =
        next!(select: fn(c_int, *mut fd_set, *mut fd_set, *mut fd_set, *mut timeval) -> c_int);
    let count = within_table(count);
    // More than a second's microseconds are seconds; only what is negative is wrong.
    let is_wrong = |timeout: *const timeval| {
        !may_be_memory(timeout) || (*timeout).tv_sec < 0 || (*timeout).tv_usec < 0
    };
    if !timeout.is_null() && is_wrong(timeout) {
        return native(count, read, write, except, timeout);
    }
    let time = (!timeout.is_null()).then(|| {
        let seconds = Duration::from_secs((*timeout).tv_sec as u64);
        seconds.saturating_add(Duration::from_micros((*timeout).tv_usec as u64))
    });
    let mut limit = Limit::new(time);
    match layer_select(count, [read, write, except], &mut limit, std::ptr::null()) {
        Some(outcome) => {
            if let Some(left) = limit.left() {
                *timeout =
                    timeval { tv_sec: left.as_secs() as _, tv_usec: left.subsec_micros() as _ };
            }
            result(outcome) as c_int
        }
        None => native(count, read, write, except, timeout),
    }
}

unsafe fn layer_select(
    count: c_int,
    sets: [*mut fd_set; 3],
    limit: &mut Limit,
    mask: *const sigset_t,
) -> Option<Outcome> {
    let may_be_set = |set: &*mut fd_set| set.is_null() || may_be_memory(*set);
    if count < 0 || !sets.iter().all(may_be_set) {
        return None;
    }
    let mut count = count;
    if count > libc::FD_SETSIZE as c_int {
        if !concerns_layer(count, sets) {
            return None;
        }
        count = catch(count, || vmmc_socket::size_of_table(count));
    }
    // Not dropped if the thread is cancelled.
    let mut selection = ManuallyDrop::new(Selection::new(count, sets));
    let outcome = select_through_layer(&mut selection, limit, mask);
    ManuallyDrop::drop(&mut selection);
    outcome
}

unsafe fn select_through_layer(
    selection: &mut Selection,
    limit: &mut Limit,
    mask: *const sigset_t,
) -> Option<Outcome> {
    if !selection.concerns_layer() {
        return None;
    }
    let outcome = selection.wait(limit, mask)?;
    if outcome == Err(Errno(libc::EINVAL)) {
        // Of more descriptors than it may have a process may still ask `select`, but not the `poll` that stands for it here.
        catch((), || selection.lower());
        return None;
    }
    Some(outcome)
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn pselect(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    let native = next!(pselect: fn(c_int, *mut fd_set, *mut fd_set, *mut fd_set, *const timespec, *const sigset_t) -> c_int);
    let count = within_table(count);
    let select = |limit| layer_select(count, [read, write, except], &mut Limit::new(limit), mask);
    match time(timeout).and_then(select) {
        Some(outcome) => result(outcome) as c_int,
        None => native(count, read, write, except, timeout, mask),
    }
}

/// The system calls behind `ppoll` and `pselect`: they say in `timeout` what is left of it. `None`: the kernel shall do it.
pub(crate) unsafe fn wait_by_system_call(
    number: libc::c_long,
    [a, b, c, d, e, f]: [usize; 6],
) -> Option<libc::c_long> {
    let polls = number == libc::SYS_ppoll;
    let timeout = (if polls { c } else { e }) as *mut timespec;
    let mut limit = Limit::new(time(timeout)?);
    let outcome = if polls {
        layer_poll(a as *mut pollfd, b as nfds_t, &mut limit, d as *const sigset_t)
    } else {
        // The last argument points to the mask and its size.
        let mask = if f == 0 { std::ptr::null() } else { *(f as *const *const sigset_t) };
        let sets = [b, c, d].map(|set| set as *mut fd_set);
        layer_select(within_table(a as c_int), sets, &mut limit, mask)
    }?;
    if let Some(left) = limit.left() {
        *timeout = timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ };
    }
    Some(result(outcome) as libc::c_long)
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn epoll_create(size: c_int) -> c_int {
    let native = next!(epoll_create: fn(c_int) -> c_int);
    made(native(size))
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn epoll_create1(flags: c_int) -> c_int {
    let native = next!(epoll_create1: fn(c_int) -> c_int);
    made(native(flags))
}

fn made(fd: c_int) -> c_int {
    if fd >= 0 {
        keep_errno(|| catch((), || epoll::created(fd)));
    }
    fd
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn epoll_ctl(
    set: c_int,
    operation: c_int,
    fd: c_int,
    event: *mut epoll_event,
) -> c_int {
    let native = next!(epoll_ctl: fn(c_int, c_int, c_int, *mut epoll_event) -> c_int);
    let wanted = may_be_memory(event).then(|| {
        let event = event.read_unaligned();
        (event.events, event.u64)
    });
    let route = || keep_errno(|| epoll::control(set, operation, fd, wanted));
    follow(route, || native(set, operation, fd, event) as isize) as c_int
}

/// Waits in the layer, and sleeps outside of it; `None`: the kernel shall do it.
unsafe fn layer_epoll(
    set: c_int,
    events: *mut epoll_event,
    most: c_int,
    limit: Option<Duration>,
    mask: *const sigset_t,
) -> Option<Outcome> {
    if !may_be_memory(events) || most <= 0 {
        return None;
    }
    let mut call = None;
    let mut step = catch(Step::Kernel, || {
        keep_errno(|| match Waiting::new(set, events, most as usize, limit, mask) {
            Some(waiting) => call.insert(waiting).go(None),
            None => Step::Kernel,
        })
    });
    loop {
        match (step, &mut call) {
            (Step::Done(outcome), _) => return Some(outcome),
            (Step::Sleep, Some(call)) => {
                let slept = match have_interrupted() {
                    true => INTERRUPTED,
                    false => natively(|| sleep_on_set(set, events, most, call.time(), mask)),
                };
                step = catch(Step::Kernel, || keep_errno(|| call.go(Some(slept))));
            }
            _ => return None,
        }
    }
}

type WaitFinely = unsafe extern "C-unwind" fn(
    c_int,
    *mut epoll_event,
    c_int,
    *const timespec,
    *const sigset_t,
) -> c_int;

/// The kernel (before Linux 5.11), or who stands for it (valgrind), has no `epoll_pwait2`.
static COARSE: AtomicBool = AtomicBool::new(false);

/// `epoll_pwait2`, which the C library has from glibc 2.35 on.
pub(crate) fn wait_finely() -> Option<WaitFinely> {
    if COARSE.load(Ordering::Relaxed) {
        return None;
    }
    /// Looked up by whoever finds this; there is no lock that a fork could leave taken in the child.
    const UNKNOWN: usize = usize::MAX;
    static FOUND: AtomicUsize = AtomicUsize::new(UNKNOWN);
    let mut found = FOUND.load(Ordering::Relaxed);
    if found == UNKNOWN {
        found = look_up_optional("epoll_pwait2\0").addr();
        FOUND.store(found, Ordering::Relaxed);
    }
    // SAFETY: null, or the function of this name, which has this signature.
    unsafe { std::mem::transmute::<usize, Option<WaitFinely>>(found) }
}

unsafe fn sleep_on_set(
    set: c_int,
    events: *mut epoll_event,
    most: c_int,
    limit: Option<Duration>,
    mask: *const sigset_t,
) -> c_int {
    let native =
        next!(epoll_pwait: fn(c_int, *mut epoll_event, c_int, c_int, *const sigset_t) -> c_int);
    let Some(limit) = limit else { return native(set, events, most, -1, mask) };
    if let Some(native) = wait_finely().filter(|_| !limit.is_zero()) {
        let time = crate::boundary::timespec(limit);
        let found = native(set, events, most, &raw const time, mask);
        if found >= 0 || *libc::__errno_location() != libc::ENOSYS {
            return found;
        }
        COARSE.store(true, Ordering::Relaxed);
    }
    native(set, events, most, kernel::milliseconds(limit), mask)
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn epoll_wait(
    set: c_int,
    events: *mut epoll_event,
    most: c_int,
    timeout: c_int,
) -> c_int {
    let native = next!(epoll_wait: fn(c_int, *mut epoll_event, c_int, c_int) -> c_int);
    match layer_epoll(set, events, most, milliseconds(timeout), std::ptr::null()) {
        Some(outcome) => result(outcome) as c_int,
        None => native(set, events, most, timeout),
    }
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn epoll_pwait(
    set: c_int,
    events: *mut epoll_event,
    most: c_int,
    timeout: c_int,
    mask: *const sigset_t,
) -> c_int {
    let native =
        next!(epoll_pwait: fn(c_int, *mut epoll_event, c_int, c_int, *const sigset_t) -> c_int);
    match layer_epoll(set, events, most, milliseconds(timeout), mask) {
        Some(outcome) => result(outcome) as c_int,
        None => native(set, events, most, timeout, mask),
    }
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn epoll_pwait2(
    set: c_int,
    events: *mut epoll_event,
    most: c_int,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    let native = next!(epoll_pwait2: fn(c_int, *mut epoll_event, c_int, *const timespec, *const sigset_t) -> c_int);
    match time(timeout).and_then(|limit| layer_epoll(set, events, most, limit, mask)) {
        Some(outcome) => result(outcome) as c_int,
        None => native(set, events, most, timeout, mask),
    }
}
