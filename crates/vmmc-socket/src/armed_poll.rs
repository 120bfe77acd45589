//! A poll that stays armed in the kernel: whether any of some sockets has something to read or has ended. While none has, asking again
//! costs a load from memory and no system call.
//!
//! A program that moves bulk between `select`s asks about the same few descriptors hundred thousands of times a second: of the lifted
//! connection the rings tell, of its TCP socket and of everything beside it only the kernel does. Asked often enough in vain, the
//! question is left with the kernel: the sockets stand in an epoll object, and a `POLL_ADD` of io_uring's on that object waits for
//! whatever comes to any of them. Its ring is made so (`DEFER_TASKRUN`, `TASKRUN_FLAG`) that the kernel interrupts nobody when it
//! comes, but sets a flag in the ring's memory, from within the call that delivers: whoever sees what came after sees the flag.
//!
//! What the ring waits for, it holds. It holds the epoll object, which does not hold the sockets: they are closed when the program
//! closes them.
//!
//! Only a process with one thread arms a poll: the ring belongs to the thread that made it. Where io_uring is not to be
//! had (Linux before 6.1, `kernel.io_uring_disabled`) or a filter of system calls may not know it, every question is asked by a call.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence};

use libc::pollfd;
use smallvec::SmallVec;

use crate::descriptor::{self, Kind, Own};
use crate::kernel::{self, Errno};
use crate::layer::{self, STRUCTURE};
use crate::{policy, thread};

mod uring;

use uring::Ring;

/// Descriptors of an armed poll at the most.
const MOST: usize = 16;
/// So often in a row the same is asked in vain before the poll is armed, which costs about as much as ten times.
const PATIENCE: u32 = 64;
/// What the kernel tells of unasked as soon as it is true: to be written to, say, it tells only those who found no room.
const TOLD: i16 = libc::POLLIN | libc::POLLRDNORM | libc::POLLRDBAND | libc::POLLRDHUP;

/// The process's only one.
static POLL: Alone =
    Alone { busy: AtomicBool::new(false), poll: UnsafeCell::new(ArmedPoll::new()) };

/// A value of the only thread's, which a signal handler on it does not find half changed.
struct Alone {
    busy: AtomicBool,
    poll: UnsafeCell<ArmedPoll>,
}

// SAFETY: the poll is reached only by the only thread, and only once at a time (`Alone::with`).
unsafe impl Sync for Alone {}

impl Alone {
    /// `None`: there are other threads, or this is a signal handler that came in between.
    #[inline]
    fn with<R>(&self, use_it: impl FnOnce(&mut ArmedPoll) -> R) -> Option<R> {
        if !thread::alone() || self.busy.load(Ordering::Relaxed) {
            return None;
        }
        // A handler that comes in before this store leaves all as it found it, and `busy` false.
        self.busy.store(true, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        // SAFETY: there is no other thread, and a handler on this one finds it busy.
        let result = use_it(unsafe { &mut *self.poll.get() });
        compiler_fence(Ordering::SeqCst);
        self.busy.store(false, Ordering::Relaxed);
        Some(result)
    }
}

/// Whether the kernel is known to have nothing to say of what is `asked`.
#[inline]
pub(crate) fn is_silent(asked: &[pollfd]) -> bool {
    POLL.with(|poll| poll.is_armed_and_silent(asked)).unwrap_or(false)
}

/// The kernel was asked, and had nothing to say.
pub(crate) fn was_silent(asked: &[pollfd]) {
    POLL.with(|poll| poll.was_silent(asked));
}

/// In a new child of fork: the ring is the parent's.
pub(crate) fn forked() {
    POLL.with(ArmedPoll::forget);
}

#[derive(Debug)]
struct ArmedPoll {
    asked: SmallVec<[(i32, i16); MOST]>,
    /// [`descriptor::changes`] when it was asked first: the numbers mean the same files since then.
    changes: u32,
    /// So often in a row.
    times: u32,
    /// The kernel has it, and the ring's flag tells the answer.
    armed: bool,
    watch: Option<Watch>,
    /// The kernel does not take it, or may not be asked to.
    impossible: bool,
}

impl ArmedPoll {
    const fn new() -> Self {
        Self {
            asked: SmallVec::new_const(),
            changes: 0,
            times: 0,
            armed: false,
            watch: None,
            impossible: false,
        }
    }

    #[inline]
    fn is_armed_and_silent(&self, asked: &[pollfd]) -> bool {
        let silent = |watch: &Watch| watch.ring.is_silent() && watch.is_mine();
        self.armed && self.watch.as_ref().is_some_and(silent) && self.is_about(asked)
    }

    #[inline]
    fn is_about(&self, asked: &[pollfd]) -> bool {
        self.changes == descriptor::changes() && self.asked.iter().copied().eq(parts(asked))
    }

    fn was_silent(&mut self, asked: &[pollfd]) {
        if self.impossible {
            return;
        }
        if !self.is_about(asked) {
            let few = parts(asked).count() <= MOST;
            self.armed = false;
            self.times = 0;
            self.changes = descriptor::changes();
            self.asked.clear();
            self.asked.extend(parts(asked).filter(|_| few));
            return;
        }
        self.times += 1;
        if self.times >= PATIENCE {
            self.times = 0;
            self.armed = self.arm();
        }
    }

    /// Leaves it with the kernel; false if there is something to say already, or nobody to leave it with.
    #[cold]
    fn arm(&mut self) -> bool {
        if layer::confined() || policy::was_filtered() || !layer::at_home() {
            return false;
        }
        let followed = |&(fd, events): &(i32, i16)| {
            events & !TOLD == 0 && matches!(descriptor::kind(fd), Kind::Connection(_))
        };
        if self.asked.is_empty() || !self.asked.iter().all(followed) {
            return false;
        }
        if self.watch.is_none() {
            self.watch = (!policy::is_filtered()).then(Watch::new).and_then(Result::ok);
            self.impossible = self.watch.is_none();
        }
        let Some(watch) = self.watch.as_mut().filter(|watch| watch.is_mine()) else {
            self.watch = None;
            return false;
        };
        let silent = watch.over(&self.asked, self.changes);
        if silent.is_err() {
            self.watch = None;
        }
        silent == Ok(true)
    }

    fn forget(&mut self) {
        *self = Self { impossible: self.impossible, ..Self::new() };
    }
}

fn parts(asked: &[pollfd]) -> impl Iterator<Item = (i32, i16)> {
    asked.iter().filter(|one| one.fd >= 0).map(|one| (one.fd, one.events))
}

/// What the kernel waits for: an epoll object with the sockets in it, and a ring that waits for the object.
#[derive(Debug)]
struct Watch {
    set: Own,
    ring: Ring,
    /// What stands in the object, and [`descriptor::changes`] when it was put there.
    members: SmallVec<[(i32, i16); MOST]>,
    changes: u32,
    /// The ring waits for the object.
    waits: bool,
    /// Whose the ring is.
    thread: u32,
}

impl Watch {
    fn new() -> Result<Self, Errno> {
        STRUCTURE.with(|_| Self::make())
    }

    fn make() -> Result<Self, Errno> {
        let ring = Ring::new()?;
        let set = Own::raise(kernel::call!(SYS_epoll_create1, libc::EPOLL_CLOEXEC)?)?;
        Ok(Self {
            set,
            ring,
            members: SmallVec::new(),
            changes: 0,
            waits: false,
            thread: thread::id(),
        })
    }

    /// Not the parent's, in a child that a signal handler has begun.
    #[inline]
    fn is_mine(&self) -> bool {
        self.thread == thread::id()
    }

    /// Has the kernel wait for any of these, as they are since `changes`; false if it has something to say already. After an error
    /// nothing is known of what it waits for.
    fn over(&mut self, sockets: &[(i32, i16)], changes: u32) -> Result<bool, Errno> {
        if *self.members != *sockets || self.changes != changes {
            for (fd, _) in self.members.drain(..) {
                // Not there: the number means another file by now, and the old one, if it lives, stays in the object.
                kernel::epoll_ctl(self.set.number(), libc::EPOLL_CTL_DEL, fd, 0, 0)?;
            }
            for &(fd, events) in sockets {
                kernel::epoll_ctl(self.set.number(), libc::EPOLL_CTL_ADD, fd, events as u32, 0)?;
            }
            self.members.extend_from_slice(sockets);
            self.changes = changes;
        }
        if self.waits && !self.ring.is_silent() {
            self.waits = !self.ring.take()?;
        }
        if !self.waits {
            self.ring.wait_for(self.set.number())?;
            self.waits = true;
        }
        Ok(self.ring.is_silent())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use super::*;

    /// `None`, and says so, where io_uring is not to be had.
    fn watch() -> Option<Watch> {
        let made = Watch::new();
        if let Err(error) = &made {
            eprintln!("skipped: no io_uring here ({error:?})");
        }
        made.ok()
    }

    #[test]
    fn the_flag_tells_what_comes_without_a_call() {
        let Some(mut watch) = watch() else { return };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let question = [(listener.as_raw_fd(), libc::POLLIN)];
        assert_eq!(watch.over(&question, 0), Ok(true));
        assert!(watch.ring.is_silent());
        for _ in 0..3 {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert!(!watch.ring.is_silent(), "a connection waits to be accepted");
            assert_eq!(watch.over(&question, 0), Ok(false), "it still does");
            drop((listener.accept().unwrap(), stream));
            assert_eq!(watch.over(&question, 0), Ok(true));
        }
    }

    #[test]
    fn a_question_about_others_takes_the_place_of_the_first() {
        let Some(mut watch) = watch() else { return };
        let [first, second] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let question = |of: &TcpListener| [(of.as_raw_fd(), libc::POLLIN)];
        assert_eq!(watch.over(&question(&first), 0), Ok(true));
        assert_eq!(watch.over(&question(&second), 0), Ok(true));
        let _stream = TcpStream::connect(first.local_addr().unwrap()).unwrap();
        assert!(watch.ring.is_silent(), "nobody asks about the first any more");
        let _stream = TcpStream::connect(second.local_addr().unwrap()).unwrap();
        assert!(!watch.ring.is_silent());
        assert_eq!(watch.over(&question(&first), 0), Ok(false));
    }

    #[test]
    fn what_is_asked_about_is_closed_when_the_program_closes_it() {
        let Some(mut watch) = watch() else { return };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, fd) = (listener.local_addr().unwrap(), listener.as_raw_fd());
        assert_eq!(watch.over(&[(fd, libc::POLLIN)], 1), Ok(true));
        drop(listener);
        assert!(TcpStream::connect(address).is_err(), "nobody listens there any more");
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let answer = watch.over(&[(other.as_raw_fd(), libc::POLLIN)], 2);
        assert!(answer.is_err(), "what stands in the object is not known: {answer:?}");
    }
}
