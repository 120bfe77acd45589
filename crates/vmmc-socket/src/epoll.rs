//! `epoll` with lifted connections in it.
//!
//! The program's epoll object stays the kernel's, and the program's registrations of everything else stay in it, so
//! that nesting, sharing, edges and timers are the kernel's own work. A *lifted* connection is registered there with
//! two descriptors of the layer's meaning: its bell, and its TCP socket (for ends and errors), both edge-triggered and
//! marked; what the program wants of it lives here, where changing it costs no system call.
//!
//! A lifted registration is *hot* while its bytes come often: then `epoll_wait` looks at its ring itself. A *cold* one is
//! announced to the peer, who rings the bell, so that ten thousand idle connections cost nothing. Before it sleeps,
//! and whenever another thread sleeps on the same set, everything hot is made cold.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use crate::descriptor::{self, Kind};
use crate::kernel;
use crate::layer::{self, STRUCTURE};
use crate::local::{self, Local, Parts};
use crate::lock::Lock;
use crate::slot::{self, Phase, Slot, Way, Why};
use crate::thread;

mod bells;
mod registration;
mod registrations;
mod waiting;

pub(crate) use registration::{ended, readiness_beside_the_ring};
use registrations::{Control, Registrations};
pub use waiting::Waiting;

/// Epoll objects of one process that can hold lifted connections.
const SETS: usize = 8 * 1024;

static TABLE: [AtomicPtr<Set>; SETS] = [const { AtomicPtr::new(std::ptr::null_mut()) }; SETS];
static NEXT: AtomicU32 = AtomicU32::new(0);
/// No entry from here on was ever made.
static TOP: AtomicU32 = AtomicU32::new(0);

/// One epoll object of the program.
#[derive(Debug)]
struct Set {
    /// Held for every use of `registrations`.
    lock: Lock,
    registrations: UnsafeCell<Registrations>,
    /// Descriptors of the program for it; none: the entry is free.
    descriptors: AtomicU32,
    /// Threads that sleep in the kernel on it.
    sleepers: AtomicU32,
    /// It came from the parent by fork: the kernel object is the parent's too.
    inherited: AtomicBool,
    /// A thread that does not need the lock is at work in it: whoever else comes is a signal handler on that thread.
    busy: AtomicBool,
}

// SAFETY: `registrations` is used only with `lock` held (`Set::with`).
unsafe impl Sync for Set {}

impl Set {
    fn with<R>(&self, use_it: impl FnOnce(&mut Registrations) -> R) -> R {
        // The lock would keep out threads that do not exist (and lets in this one anyway, from a signal handler).
        let _held = (!thread::alone()).then(|| self.lock.hold());
        let busy = self.busy.load(Ordering::Relaxed);
        self.busy.store(true, Ordering::Relaxed);
        // SAFETY: the lock is held, or not needed; nothing called from within `use_it` comes back to the same set.
        let result = use_it(unsafe { &mut *self.registrations.get() });
        self.busy.store(busy, Ordering::Relaxed);
        result
    }

    /// Whether this very thread is at work in it, further up.
    fn is_mine(&self) -> bool {
        if thread::alone() { self.busy.load(Ordering::Relaxed) } else { self.lock.is_mine() }
    }
}

fn set(number: u32) -> Option<&'static Set> {
    // SAFETY: entries are null or come from a leaked box.
    unsafe { TABLE[number as usize % SETS].load(Ordering::Acquire).as_ref() }
}

/// In marked registrations the upper half of the kernel's data: drawn at random, so that no program's own data is
/// taken for it.
fn mark() -> u32 {
    static MARK: AtomicU32 = AtomicU32::new(0);
    let known = MARK.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let mut mark = 0u32;
    let _ = kernel::call!(SYS_getrandom, &raw mut mark, 4, 0);
    mark |= 0x8000_0001;
    MARK.compare_exchange(0, mark, Ordering::Relaxed, Ordering::Relaxed)
        .map_or_else(|mark| mark, |_| mark)
}

fn marked(registration: u32) -> u64 {
    u64::from(mark()) << 32 | u64::from(registration)
}

/// What marked data of the kernel's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marked {
    /// A registration: its TCP socket or its bell.
    Registration(u32),
    /// A bell that several of the set's registrations share.
    Bell(u32),
}

/// In the lower half: a shared bell is named.
const SHARED: u32 = 1 << 31;

fn marked_bell(number: u32) -> u64 {
    marked(SHARED | number)
}

fn unmark(data: u64) -> Option<Marked> {
    let number = data as u32;
    (data >> 32 == u64::from(mark())).then_some(match number & SHARED {
        0 => Marked::Registration(number),
        _ => Marked::Bell(number & !SHARED),
    })
}

/// What the layer itself listens for on the TCP socket of a lifted connection. Room in it matters as long as the sending
/// direction has not switched: a program that found the socket full before waits for just that.
const TCP_EVENTS: u32 =
    (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLPRI | libc::EPOLLET) as u32;
const BELL_EVENTS: u32 = (libc::EPOLLIN | libc::EPOLLET) as u32;

/// The kernel has made the epoll object `fd`.
pub fn created(fd: i32) {
    if !layer::enabled() || descriptor::kind(fd) != Kind::Other || !layer::at_home() {
        return;
    }
    for _ in 0..SETS {
        let number = NEXT.fetch_add(1, Ordering::Relaxed) % SETS as u32;
        let entry = &TABLE[number as usize];
        if entry.load(Ordering::Acquire).is_null() {
            let fresh = Box::into_raw(Box::new(Set {
                lock: Lock::new(),
                registrations: UnsafeCell::default(),
                descriptors: AtomicU32::new(0),
                sleepers: AtomicU32::new(0),
                inherited: AtomicBool::new(false),
                busy: AtomicBool::new(false),
            }));
            if entry
                .compare_exchange(std::ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
            {
                // SAFETY: never shared.
                drop(unsafe { Box::from_raw(fresh) });
                continue;
            }
            TOP.fetch_max(number + 1, Ordering::AcqRel);
        }
        let Some(set) = set(number) else { continue };
        if set.descriptors.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            set.with(|registrations| *registrations = Registrations::of_set(number));
            set.inherited.store(false, Ordering::Relaxed);
            set.busy.store(false, Ordering::Relaxed);
            descriptor::enter(fd, Kind::Set(number));
            return;
        }
    }
}

pub(crate) fn duplicated(number: u32, new: i32) {
    if let Some(set) = set(number) {
        set.descriptors.fetch_add(1, Ordering::AcqRel);
        descriptor::enter(new, Kind::Set(number));
    }
}

pub(crate) fn closing(fd: i32, number: u32) {
    let Some(set) = set(number) else { return };
    if !descriptor::remove(fd, Kind::Set(number)) || set.descriptors.load(Ordering::Acquire) > 1 {
        let mut numbers = descriptor::between(0, i32::MAX);
        if let Some((other, _)) = numbers.find(|(_, kind)| *kind == Kind::Set(number)) {
            set.with(|registrations| registrations.go_on_as(fd, other));
        }
        set.descriptors.fetch_sub(1, Ordering::AcqRel);
        return;
    }
    // Registrations of the layer's in the kernel object vanish with it.
    let members = set.with(|registrations| std::mem::take(registrations).into_members());
    STRUCTURE.briefly(|_| {
        for (slot, registration) in members {
            // SAFETY: the structure's lock is held.
            let parts = unsafe { local::get(slot).parts() };
            parts.members.retain(|&member| member != (number, registration));
        }
    });
    set.descriptors.fetch_sub(1, Ordering::AcqRel);
}

/// `epoll_ctl` on the object `epfd`: whether the layer did it, or the kernel shall.
pub fn control(epfd: i32, operation: i32, fd: i32, event: Option<(u32, u64)>) -> crate::Route {
    let not_ours = crate::Route::Kernel(None);
    let Kind::Set(number) = descriptor::kind(epfd) else {
        // An object that came from elsewhere: the layer cannot keep its registrations true.
        crate::lower::lower_for(fd, Why::Set);
        return not_ours;
    };
    let Some(set) = set(number) else { return not_ours };
    let exclusive = event.is_some_and(|(events, _)| events & libc::EPOLLEXCLUSIVE as u32 != 0);
    if exclusive && operation == libc::EPOLL_CTL_MOD {
        // The kernel refuses it.
        return not_ours;
    }
    let index = match descriptor::kind_called(fd) {
        Kind::Connection(index) => index,
        other => {
            if let Kind::Set(inner) = other {
                // A nested object: whoever waits on the outer one must see the inner one's true state.
                lower_all(inner);
            }
            set.with(Registrations::look_soon);
            return not_ours;
        }
    };
    if set.inherited.load(Ordering::Relaxed) {
        lower_all(number);
    }
    let slot = slot::get(index);
    // By far the most frequent on TCP: the program changes what it wants of a connection that it had registered before.
    if slot.phase() != Phase::Attached && !exclusive {
        let pass = |registrations: &mut Registrations| {
            let sleeps = set.sleepers.load(Ordering::Relaxed) != 0;
            registrations.pass(epfd, operation, fd, index, event, sleeps)
        };
        let mut outcome = set.with(pass);
        if outcome.is_none() && set.with(|registrations| registrations.has_lifted(fd, index)) {
            // A relative has brought it back to TCP, and so to the kernel's object where that is shared.
            crate::lower::follow(fd, index);
            outcome = set.with(pass);
        }
        if let Some(outcome) = outcome {
            return crate::Route::Done(outcome);
        }
    }
    if slot.phase() == Phase::Attached && !slot.ready.load(Ordering::Acquire) {
        let arms = operation == libc::EPOLL_CTL_MOD && event.is_some();
        set.with(|registrations| registrations.set_arming(fd, index, arms));
        crate::lift::retry_ready(index, slot);
    }
    let outcome = match (operation, event) {
        (libc::EPOLL_CTL_ADD, Some(event)) => add(number, set, epfd, fd, index, exclusive, event),
        (libc::EPOLL_CTL_MOD, Some((events, data))) => set.with(|registrations| {
            registrations.look_soon_unless(is_lifted(slot));
            registrations.modify(epfd, fd, events, data)
        }),
        (libc::EPOLL_CTL_DEL, _) => set.with(|registrations| {
            registrations.look_soon_unless(is_lifted(slot));
            registrations.delete(epfd, fd)
        }),
        _ => Err(None),
    };
    if outcome.is_ok() && set.sleepers.load(Ordering::SeqCst) > 0 {
        set.with(Registrations::leave_to_others);
    }
    match outcome {
        Ok(()) => crate::Route::Done(Ok(0)),
        Err(Some(error)) => crate::Route::Done(Err(error)),
        Err(None) => not_ours,
    }
}

fn is_lifted(slot: &Slot) -> bool {
    slot.phase() == Phase::Attached && slot.ready.load(Ordering::Acquire)
}

/// Registers a connection.
fn add(
    number: u32,
    set: &Set,
    epfd: i32,
    fd: i32,
    index: u32,
    exclusive: bool,
    (events, data): (u32, u64),
) -> Control {
    let refuses = |registrations: &Registrations| exclusive || registrations.refuse_lifting;
    let enter = |registrations: &mut Registrations| {
        let lifted = is_lifted(slot::get(index));
        registrations.look_soon_unless(lifted);
        registrations.add(epfd, fd, index, lifted, events, data)
    };
    // Programs delete and add at every request.
    let again = set.with(|registrations| {
        let known = registrations.knows(fd, index) && !refuses(registrations);
        known.then(|| enter(registrations))
    });
    if let Some(outcome) = again {
        return outcome.map(drop);
    }
    // As soon as the kernel knows of a new one another thread may be told of it, and close it: that waits until everybody else
    // knows of it too.
    let carried = STRUCTURE.briefly(|_| {
        if descriptor::kind(fd) != Kind::Connection(index) {
            return None;
        }
        // SAFETY: the structure's lock is held.
        let members = &mut unsafe { local::get(index).parts() }.members;
        // What the layer does not carry: one connection under two numbers in one set, exclusive wake-ups.
        let twice = members.iter().any(|&(other, _)| other == number);
        set.with(|registrations| {
            if refuses(registrations) || twice && !registrations.knows(fd, index) {
                return None;
            }
            let added = enter(registrations);
            Some(added.map(|new| members.extend(new.map(|registration| (number, registration)))))
        })
    });
    carried.unwrap_or_else(|| {
        crate::lower::lower_for(fd, Why::Set);
        Err(None)
    })
}

/// A descriptor of the connection is about to be closed. The structure's lock is held.
pub(crate) fn before_close(index: u32, parts: &Parts) {
    for &(number, registration) in &parts.members {
        if let Some(set) = set(number) {
            set.with(|registrations| registrations.before_close(index, registration));
        }
    }
}

/// Other processes will see the kernel objects: they must be true from now on.
pub(crate) fn be_eager() {
    sets()
        .filter(|set| set.descriptors.load(Ordering::Acquire) > 0)
        .for_each(|set| set.with(Registrations::be_eager));
}

/// Whether a registration of the connection may have shot, which only the kernel knows: it becomes the layer's when it is armed
/// again. The structure's lock is held.
pub(crate) fn may_have_shot(index: u32, parts: &Parts) -> bool {
    parts.members.iter().any(|&(number, registration)| {
        set(number).is_some_and(|set| set.with(|all| all.may_have_shot(index, registration)))
    })
}

/// The connection's bell was silenced. Whether a thread sleeps in one of its sets that has something to tell of it; for any that sleeps there it is
/// announced first. Who waits on the others later looks at it.
pub(crate) fn sleeps_beside_news(index: u32, announce: impl Fn()) -> bool {
    let has_news = |number, registration| {
        let Some(set) = set(number) else { return false };
        let sleeps = || set.sleepers.load(Ordering::SeqCst) > 0;
        if !sleeps() {
            set.with(|registrations| registrations.unhear(index, registration));
            // One that has lain down before that sleeps on what was announced.
            if !sleeps() {
                return false;
            }
        }
        announce();
        set.with(|registrations| registrations.has_news(index, registration))
    };
    STRUCTURE.briefly(|_| {
        // SAFETY: the structure's lock is held.
        let members = &unsafe { local::get(index).parts() }.members;
        // Each is looked at.
        members.iter().filter(|&&(number, registration)| has_news(number, registration)).count() > 0
    })
}

/// The connection has been lifted: its registrations become the layer's. The structure's lock is held.
pub(crate) fn adopt(index: u32, parts: &Parts) {
    for &(number, registration) in &parts.members {
        let (Some(set), Some(epfd)) = (set(number), descriptor_of(number)) else { continue };
        set.with(|registrations| {
            registrations.adopt(epfd, index, registration);
            if set.sleepers.load(Ordering::SeqCst) > 0 {
                registrations.leave_to_others();
            }
        });
    }
}

/// The number `fd` of the connection is about to be closed, and the connection has others: what the program has registered under it stays in the
/// kernel's objects, which nobody can change any more. So that it stays true all of the connection goes back to TCP.
#[cold]
pub(crate) fn before_number_goes(fd: i32, index: u32) {
    let is_registered = STRUCTURE.briefly(|_| {
        // SAFETY: the structure's lock is held.
        let parts = unsafe { local::get(index).parts() };
        parts.descriptors.len() > 1
            && parts.members.iter().any(|&(number, _)| {
                set(number).is_some_and(|set| set.with(|all| all.has_active(fd, index)))
            })
    });
    if !is_registered {
        return;
    }
    crate::lower::lower(fd, index, Why::Set);
    crate::lower::follow(fd, index);
    let bell = local::get(index).bell.load(Ordering::Acquire);
    // SAFETY: the structure's lock is held.
    STRUCTURE.briefly(|_| release(index, bell, unsafe { local::get(index).parts() }));
}

/// Whether this thread is at work in one of the sets, further up: then it is a signal handler that asks. The structure's
/// lock is held.
pub(crate) fn interrupted(parts: &Parts) -> bool {
    parts.members.iter().any(|&(number, _)| set(number).is_some_and(Set::is_mine))
}

/// The connection is on TCP again: its registrations become the kernel's. The structure's lock is held.
pub(crate) fn release(index: u32, bell: i32, parts: &mut Parts) {
    parts.members.retain(|&(number, registration)| {
        let (Some(set), Some(epfd)) = (set(number), descriptor_of(number)) else { return false };
        set.with(|registrations| registrations.release(epfd, index, registration, bell))
    });
}

/// The connection is about to be closed, or its number: the layer's registrations go, which the kernel would not remove by itself
/// while the peer holds the bell and the service the socket.
pub(crate) fn leave(index: u32, local: &Local, others_hold: bool) {
    let bell = local.bell.load(Ordering::Acquire);
    STRUCTURE.briefly(|_| {
        // SAFETY: the structure's lock is held.
        let parts = unsafe { local.parts() };
        for (number, registration) in parts.members.drain(..) {
            let (Some(set), Some(epfd)) = (set(number), descriptor_of(number)) else { continue };
            // The kernel object of an inherited set is the parent's too, who may go on with the connection.
            let epfd = if set.inherited.load(Ordering::Relaxed) { -1 } else { epfd };
            set.with(|registrations| {
                registrations.remove(epfd, index, registration, bell, others_hold)
            });
        }
    });
}

/// The object in which a connection stands, that connections may share a bell in: this process has made it.
pub(crate) fn home(parts: &Parts) -> Option<u32> {
    let mut sets = parts.members.iter().map(|&(number, _)| number);
    sets.find(|&number| set(number).is_some_and(|set| !set.inherited.load(Ordering::Relaxed)))
}

/// Some descriptor of the program for the set.
fn descriptor_of(number: u32) -> Option<i32> {
    set(number)?.with(|registrations| registrations.epfd())
}

/// Brings every connection in the set back to TCP: somebody will look at the kernel object without the layer.
pub fn lower_all(number: u32) {
    let Some(set) = set(number) else { return };
    let lifted = set.with(|registrations| {
        registrations.refuse_lifting = true;
        registrations.be_eager();
        registrations.all()
    });
    for (fd, index) in lifted {
        crate::lower::lower(fd, index, Why::Set);
        crate::lower::follow(fd, index);
    }
}

/// The next program inherits an object that this process has made: it gets the kernel's registrations, also of connections that
/// are not whole on TCP yet.
pub(crate) fn hand_over(number: u32) {
    let Some(set) = set(number).filter(|set| !set.inherited.load(Ordering::Relaxed)) else {
        return;
    };
    lower_all(number);
    set.with(Registrations::release_all);
}

/// As [`lower_all`], if `fd` is an epoll object of the program's.
pub fn lower_set(fd: i32) {
    if let Kind::Set(number) = descriptor::kind(fd) {
        lower_all(number);
    }
}

fn sets() -> impl Iterator<Item = &'static Set> {
    let made = TABLE.iter().take(TOP.load(Ordering::Acquire) as usize);
    // SAFETY: entries are null or come from a leaked box.
    made.filter_map(|entry| unsafe { entry.load(Ordering::Acquire).as_ref() })
}

/// Keeps all sets still while the process forks.
pub(crate) fn hold_for_fork() {
    // A child that waits on an object of both sees what the parent has put there for what it is.
    mark();
    be_eager();
    sets().for_each(|set| set.lock.keep());
}

/// While the C library's `fork` waits for locks: see [`crate::lock::Lock::lend`].
pub(crate) fn lend() {
    sets().for_each(|set| set.lock.lend());
}

/// After the fork, in parent and child.
pub(crate) fn release_after_fork(child: bool) {
    for set in sets() {
        if child {
            set.inherited.store(true, Ordering::Relaxed);
            set.sleepers.store(0, Ordering::Relaxed);
        }
        set.lock.break_open();
    }
}
