//! Closing a descriptor on which another thread is in a call.
//!
//! The kernel's open file stays until that call is over: it gets what comes, and the peer sees an end only afterwards. So the connection
//! gets a number of the layer's own, under which the call goes on, and which it closes in the end.
//!
//! A call holds its direction's lock while it is at work, and notes itself before it lets go of it without being done, to wait or for a moment.
//! So who has had both locks knows of every call. One that the kernel does notes itself before ([`crate::route::InFlight`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::descriptor::{self, Kind};
use crate::kernel::Doing;
use crate::layer::STRUCTURE;
use crate::local::Local;
use crate::wait::Direction;
use crate::{closing, kernel, layer, local, own_numbers, slot, thread};

/// In what kind of call a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stay {
    /// That receives, or sends.
    Moving(Direction),
    /// `poll`, or `select`: it takes no lock.
    Polling,
}

impl Stay {
    /// Of the calls under way that this is counted among.
    pub(crate) fn direction(self) -> Direction {
        match self {
            Self::Moving(direction) => direction,
            Self::Polling => Direction::In,
        }
    }
}

const STAYS: [Stay; 3] = [Stay::Moving(Direction::In), Stay::Moving(Direction::Out), Stay::Polling];

/// Threads that are in calls of one kind which go on without the lock: their [`Guest`]s as words, 0 for none. Of more than there is room for some are not noted.
#[derive(Debug, Default)]
pub(crate) struct Guests([AtomicU64; 4]);

/// A thread, and what it sleeps on, if it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Guest {
    thread: u32,
    fd: i32,
}

impl Guest {
    fn of(word: u64) -> Self {
        Self { thread: (word >> 32) as u32, fd: word as u32 as i32 }
    }

    fn word(self) -> u64 {
        u64::from(self.thread) << 32 | u64::from(self.fd as u32)
    }
}

impl Guests {
    fn enter(&self, guest: Guest) {
        let is_mine =
            |place: &&AtomicU64| Guest::of(place.load(Ordering::Relaxed)).thread == guest.thread;
        let word = guest.word();
        match self.0.iter().find(is_mine) {
            Some(place) => place.store(word, Ordering::Release),
            None if thread::alone() => self.0[0].store(word, Ordering::Release),
            None => {
                let take = |place: &AtomicU64| {
                    place.compare_exchange(0, word, Ordering::SeqCst, Ordering::Relaxed).is_ok()
                };
                if !self.0.iter().any(take) {
                    // Perhaps in the place of one that left by `longjmp`.
                    self.0[0].store(word, Ordering::SeqCst);
                }
            }
        }
    }

    fn leave(&self, thread: u32) {
        for place in &self.0 {
            let word = place.load(Ordering::Relaxed);
            if Guest::of(word).thread != thread {
                continue;
            }
            if thread::alone() {
                place.store(0, Ordering::Relaxed);
            } else {
                let _ = place.compare_exchange(word, 0, Ordering::SeqCst, Ordering::Relaxed);
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = Guest> {
        let words = self.0.iter().map(|place| place.load(Ordering::SeqCst));
        words.filter(|word| *word != 0).map(Guest::of)
    }
}

/// A call on `fd` goes on after it lets go of the direction's lock, which it holds; or a poll is about to sleep.
pub(crate) fn enter(fd: i32, index: u32, stay: Stay) {
    local::get(index).guests(stay).enter(Guest { thread: thread::id(), fd });
}

/// A call that has entered is over.
pub(crate) fn leave(index: u32, stay: Stay) {
    let local = local::get(index);
    local.guests(stay).leave(thread::id());
    if local.kept.load(Ordering::SeqCst) >= 0 && !has_guests(index) {
        let_go(index);
    }
}

/// The program is about to close `fd`, the last number of the connection: has it keep one as long as another thread is in a call on it; whether it does.
pub(crate) fn keep(fd: i32, index: u32) -> bool {
    if thread::alone() || layer::confined() {
        return false;
    }
    await_looks(index);
    let local = local::get(index);
    if !has_guests(index) {
        return false;
    }
    let is_kept = STRUCTURE.with(|_| {
        // SAFETY: the structure's lock is held.
        let descriptors = &mut unsafe { local.parts() }.descriptors;
        if *descriptors != [fd] {
            return false;
        }
        let Ok(kept) = descriptor::above(fd) else { return false };
        descriptors.push(kept);
        descriptor::enter(kept, Kind::Connection(index));
        local.kept.store(kept, Ordering::SeqCst);
        true
    });
    if !is_kept {
        return false;
    }
    // Who has left meanwhile did not see it.
    if !has_guests(index) {
        let_go(index);
    }
    true
}

/// The connection is closed: who is still noted has left, or is not known to be there.
pub(crate) fn ended(index: u32) {
    for stay in STAYS {
        let guests = local::get(index).guests(stay);
        guests.0.iter().for_each(|place| place.store(0, Ordering::Relaxed));
    }
}

/// A number of the connection is none any more, but it has others: when this returns no call uses that one any longer, but to sleep on, and who does looks anew.
pub(crate) fn renumbered(index: u32) {
    if thread::alone() {
        return;
    }
    await_looks(index);
    // Who sleeps already wakes for what comes to the connection, and not before.
    if others(index).any(|(_, guest)| guest.is_seen() != Seen::Asleep) {
        local::get(index).ring_own();
    }
}

/// Waits for the calls that are at work on the connection, as far as they go without letting go of its locks.
fn await_looks(index: u32) {
    let slot = slot::get(index);
    for lock in [&slot.inward.lock, &slot.outward.lock] {
        drop(lock.hold_anew());
    }
}

/// Under which number a call on `fd` goes on, which has entered; `None`: the connection is closed.
pub(crate) fn number_of_guest(fd: i32, index: u32, direction: Direction) -> Option<i32> {
    // Others may have taken its place: then it may be that nobody has kept the connection.
    let mut guests = local::get(index).guests(Stay::Moving(direction)).iter();
    if guests.any(|guest| guest.thread == thread::id()) { number(fd, index) } else { None }
}

/// Under which number a call on `fd` that still counts among those under way goes on; `None`: the connection is closed.
pub(crate) fn number(fd: i32, index: u32) -> Option<i32> {
    if descriptor::connection(fd) == Some(index) {
        return Some(fd);
    }
    // Another number of the program's, or the one that is kept.
    // SAFETY: the structure's lock is held.
    STRUCTURE.briefly(|_| unsafe { local::get(index).parts() }.descriptors.first().copied())
}

/// Whether `fd` is a number that a call has the connection by, of which the program does not know.
pub(crate) fn is_kept(fd: i32, index: u32) -> bool {
    local::get(index).kept.load(Ordering::Relaxed) == fd
}

/// In a child of fork, which has none of the threads.
pub(crate) fn forked() {
    let kept =
        descriptor::between(own_numbers::lowest(), i32::MAX).filter_map(|(fd, kind)| match kind {
            Kind::Connection(index) => is_kept(fd, index).then_some(index),
            _ => None,
        });
    kept.for_each(let_go);
}

fn let_go(index: u32) {
    let kept = local::get(index).kept.swap(Local::NOT_KEPT, Ordering::SeqCst);
    if kept >= 0 {
        let changing = closing::closing(kept);
        let _ = kernel::call!(SYS_close, kept);
        drop(changing);
    }
}

/// Other threads that are noted.
fn others(index: u32) -> impl Iterator<Item = (Stay, Guest)> {
    let noted = move |stay| local::get(index).guests(stay).iter().map(move |guest| (stay, guest));
    STAYS.into_iter().flat_map(noted).filter(|(_, guest)| guest.thread != thread::id())
}

/// Whether another thread of this process is in a call on the connection that goes on without the lock.
fn has_guests(index: u32) -> bool {
    others(index).any(|(stay, guest)| is_there(index, stay, guest))
}

/// Whether the thread is in such a call. One that left it by `longjmp`, or was cancelled, is still noted, so it is seen to have the lock again, or the kernel is asked
/// what it does: it sleeps on the number, as [`crate::wait`] has it sleep or in the kernel's own call, or will in a moment. One that does neither may be anywhere: to keep the
/// connection for it could be for ever.
#[cold]
fn is_there(index: u32, stay: Stay, guest: Guest) -> bool {
    /// So much of a processor, or time asleep elsewhere, it has at the most while it is about to sleep or to leave, or looks whether there is something.
    const TIME: Duration = Duration::from_millis(5);
    /// Where there are more threads than processors it may have to wait for one.
    const PATIENCE: Duration = Duration::from_secs(1);
    const PAUSE: Duration = Duration::from_micros(50);
    let (begin, time) = (Instant::now(), kernel::time_of_thread(guest.thread));
    let has_used_its_time = |guest: Guest| {
        let used = kernel::time_of_thread(guest.thread).zip(time).map(|(now, then)| now - then);
        used.is_none_or(|used| used > TIME) || begin.elapsed() > PATIENCE
    };
    let mut elsewhere = Duration::ZERO;
    loop {
        let mut guests = local::get(index).guests(stay).iter();
        // What it sleeps on may be another number by now.
        let Some(guest) = guests.find(|other| other.thread == guest.thread) else { return false };
        if let Stay::Moving(direction) = stay
            && direction.lock(slot::get(index)).owner() == guest.thread
        {
            return true;
        }
        match guest.is_seen() {
            Seen::Asleep => return true,
            Seen::Never => return false,
            Seen::Elsewhere if elsewhere > TIME => return false,
            Seen::Elsewhere => elsewhere += PAUSE,
            Seen::Awake if has_used_its_time(guest) => return false,
            Seen::Awake => {}
        }
        kernel::pause(PAUSE);
    }
}

/// What a guest is seen to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// It sleeps as noted.
    Asleep,
    Awake,
    /// It is in another call of the kernel's, perhaps one of the layer's.
    Elsewhere,
    /// There is no such thread, or it polls something else.
    Never,
}

impl Guest {
    fn is_seen(self) -> Seen {
        const POLLS: usize = libc::SYS_ppoll as usize;
        match kernel::what_does(self.thread) {
            Some(Doing::Call([POLLS, list, count])) if is_polled(self.fd, list, count) => {
                Seen::Asleep
            }
            Some(Doing::Call([POLLS, ..])) => Seen::Never,
            // The kernel has had its call since before the connection was lifted.
            Some(Doing::Call([_, fd, _])) if fd == self.fd as usize => Seen::Asleep,
            Some(Doing::Call(_)) => Seen::Elsewhere,
            Some(Doing::Running) => Seen::Awake,
            // A process that has become another user may not ask this of itself.
            None if kernel::is_thread(self.thread) => Seen::Asleep,
            None => Seen::Never,
        }
    }
}

/// Whether a list to poll asks for `fd`.
fn is_polled(fd: i32, list: usize, count: usize) -> bool {
    const NONE: libc::pollfd = libc::pollfd { fd: -1, events: 0, revents: 0 };
    let mut part = [NONE; 32];
    for begin in (0..count).step_by(part.len()) {
        let part = &mut part[..(count - begin).min(32)];
        let Some(()) = kernel::copy_poll_list(list + begin * size_of_val(&NONE), part) else {
            return false;
        };
        if part.iter().any(|polled| polled.fd == fd) {
            return true;
        }
    }
    false
}
