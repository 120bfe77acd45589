//! A standing question to the kernel: whether any of some sockets has something to read or has ended. While the answer is no,
//! asking again costs a load from memory and no system call.
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
//! Only a process with one thread has a standing question: the ring belongs to the thread that made it. Where io_uring is not to be
//! had (Linux before 6.1, `kernel.io_uring_disabled`) or a filter of system calls may not know it, every question is asked by a call.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use libc::pollfd;
use smallvec::SmallVec;

use crate::descriptor::{self, Kind};
use crate::kernel::{self, Errno};
use crate::{layer, policy, thread};

/// Descriptors of a standing question at the most.
const MOST: usize = 16;
/// So often in a row the same is asked in vain before the question is left with the kernel, which costs about as much as ten times.
const PATIENCE: u32 = 64;
/// What the kernel tells of unasked as soon as it is true: to be written to, say, it tells only those who found no room.
const TOLD: i16 = libc::POLLIN | libc::POLLRDNORM | libc::POLLRDBAND | libc::POLLRDHUP;

/// The process's only question.
static QUESTION: Alone =
    Alone { busy: AtomicBool::new(false), question: UnsafeCell::new(Question::new()) };

/// A value of the only thread's, which a signal handler on it does not find half changed.
struct Alone {
    busy: AtomicBool,
    question: UnsafeCell<Question>,
}

// SAFETY: the question is reached only by the only thread, and only once at a time (`Alone::with`).
unsafe impl Sync for Alone {}

impl Alone {
    /// `None`: there are other threads, or this is a signal handler that came in between.
    #[inline]
    fn with<R>(&self, use_it: impl FnOnce(&mut Question) -> R) -> Option<R> {
        if !thread::alone() || self.busy.swap(true, Ordering::Acquire) {
            return None;
        }
        // SAFETY: there is no other thread, and a handler on this one finds it busy.
        let result = use_it(unsafe { &mut *self.question.get() });
        self.busy.store(false, Ordering::Release);
        Some(result)
    }
}

/// Whether the kernel is known to have nothing to say of what is `asked`.
#[inline]
pub(crate) fn is_silent(asked: &[pollfd]) -> bool {
    QUESTION.with(|question| question.stands_for(asked)).unwrap_or(false)
}

/// The kernel was asked, and had nothing to say.
pub(crate) fn was_silent(asked: &[pollfd]) {
    QUESTION.with(|question| question.was_silent(asked));
}

/// In a new child of fork: the ring is the parent's.
pub(crate) fn forked() {
    QUESTION.with(Question::forget);
}

#[derive(Debug)]
struct Question {
    asked: SmallVec<[(i32, i16); MOST]>,
    /// [`descriptor::changes`] when it was asked first: the numbers mean the same files since then.
    changes: u32,
    /// So often in a row.
    times: u32,
    /// The kernel has it, and its flag tells the answer.
    stands: bool,
    kernels: Option<Asker>,
    /// The kernel does not take it, or may not be asked to.
    impossible: bool,
}

impl Question {
    const fn new() -> Self {
        Self {
            asked: SmallVec::new_const(),
            changes: 0,
            times: 0,
            stands: false,
            kernels: None,
            impossible: false,
        }
    }

    #[inline]
    fn stands_for(&self, asked: &[pollfd]) -> bool {
        let silent = |asker: &Asker| asker.ring.is_silent() && asker.is_mine();
        self.stands && self.kernels.as_ref().is_some_and(silent) && self.is_about(asked)
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
            self.stands = false;
            self.times = 0;
            self.changes = descriptor::changes();
            self.asked.clear();
            self.asked.extend(parts(asked).filter(|_| few));
            return;
        }
        self.times += 1;
        if self.times >= PATIENCE {
            self.times = 0;
            self.stands = self.ask();
        }
    }

    /// Leaves the question with the kernel.
    #[cold]
    fn ask(&mut self) -> bool {
        if layer::confined() || policy::was_filtered() || !layer::at_home() {
            return false;
        }
        let followed = |&(fd, events): &(i32, i16)| {
            events & !TOLD == 0 && matches!(descriptor::kind(fd), Kind::Connection(_))
        };
        if self.asked.is_empty() || !self.asked.iter().all(followed) {
            return false;
        }
        if self.kernels.is_none() {
            self.kernels = (!policy::is_filtered()).then(Asker::new).and_then(Result::ok);
            self.impossible = self.kernels.is_none();
        }
        let Some(asker) = self.kernels.as_mut().filter(|asker| asker.is_mine()) else {
            self.kernels = None;
            return false;
        };
        let asked = asker.ask(&self.asked, self.changes);
        if asked.is_err() {
            self.kernels = None;
        }
        asked == Ok(true)
    }

    fn forget(&mut self) {
        *self = Self { impossible: self.impossible, ..Self::new() };
    }
}

fn parts(asked: &[pollfd]) -> impl Iterator<Item = (i32, i16)> {
    asked.iter().filter(|one| one.fd >= 0).map(|one| (one.fd, one.events))
}

/// The kernel's side of a question: an epoll object with the sockets in it, and a ring that waits for the object.
#[derive(Debug)]
struct Asker {
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

impl Asker {
    fn new() -> Result<Self, Errno> {
        let ring = Ring::new()?;
        let set = Own::new(kernel::call!(SYS_epoll_create1, libc::EPOLL_CLOEXEC)?)?;
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

    /// Has the kernel wait for any of these, as they are since `changes`; false if it has something to say already. After an error nothing is known of what
    /// the kernel waits for.
    fn ask(&mut self, sockets: &[(i32, i16)], changes: u32) -> Result<bool, Errno> {
        if *self.members != *sockets || self.changes != changes {
            for (fd, _) in self.members.drain(..) {
                // Not there: the number means another file by now, and the old one, if it lives, stays in the object.
                kernel::epoll_ctl(self.set.0, libc::EPOLL_CTL_DEL, fd, 0, 0)?;
            }
            for &(fd, events) in sockets {
                kernel::epoll_ctl(self.set.0, libc::EPOLL_CTL_ADD, fd, events as u32, 0)?;
            }
            self.members.extend_from_slice(sockets);
            self.changes = changes;
        }
        if self.waits && !self.ring.is_silent() {
            self.waits = !self.ring.take()?;
        }
        if !self.waits {
            self.ring.wait_for(self.set.0)?;
            self.waits = true;
        }
        Ok(self.ring.is_silent())
    }
}

/// As much of io_uring as it takes to wait for one file: a queue of one entry, and its answers.
#[derive(Debug)]
struct Ring {
    fd: Own,
    queues: Mapping,
    entries: Mapping,
    offsets: Offsets,
}

/// Where in `queues` the words stand, in bytes.
#[derive(Clone, Copy, Debug)]
struct Offsets {
    submitted: u32,
    flags: u32,
    answered: u32,
    taken: u32,
}

const SINGLE_MAPPING: u32 = 1;
const TASKRUN_FLAG: u32 = 1 << 9;
const SINGLE_ISSUER: u32 = 1 << 12;
const DEFER_TASKRUN: u32 = 1 << 13;
const QUEUES: usize = 0;
const ENTRIES: usize = 0x1000_0000;
const POLL_ADD: u8 = 6;
const GET_EVENTS: u32 = 1;
/// In the flags: there is something to be fetched by a call.
const SOMETHING: u32 = 1 << 1 | 1 << 2;

/// `struct io_uring_params`.
#[repr(C)]
#[derive(Debug, Default)]
struct Parameters {
    entries: u32,
    answers: u32,
    flags: u32,
    thread: [u32; 2],
    features: u32,
    reserved: [u32; 4],
    /// Head, tail, mask, entries, flags, dropped, array, reserved, address.
    submission: [u32; 10],
    /// Head, tail, mask, entries, overflow, entries, flags, reserved, address.
    completion: [u32; 10],
}

/// `struct io_uring_sqe`, as far as `POLL_ADD` uses it.
#[repr(C)]
#[derive(Debug)]
struct Entry {
    operation: u8,
    flags: u8,
    priority: u16,
    fd: i32,
    unused: [u64; 2],
    length: u32,
    events: u32,
    more: [u64; 4],
}

impl Ring {
    fn new() -> Result<Self, Errno> {
        let flags = SINGLE_ISSUER | DEFER_TASKRUN | TASKRUN_FLAG;
        let mut parameters = Parameters { flags, ..Parameters::default() };
        let fd = Own::new(kernel::call!(SYS_io_uring_setup, 1, &raw mut parameters)?)?;
        let Parameters { submission, completion, features, .. } = parameters;
        if features & SINGLE_MAPPING == 0 {
            return Err(Errno(libc::ENOSYS));
        }
        let (array, answers) = (submission[6], completion[5]);
        // One entry of four bytes in the array, answers of 16 bytes.
        let size = (array as usize + 4).max(answers as usize + 16 * parameters.answers as usize);
        let queues = Mapping::new(fd.0, QUEUES, size)?;
        let entries = Mapping::new(fd.0, ENTRIES, size_of::<Entry>())?;
        let offsets = Offsets {
            submitted: submission[1],
            flags: submission[4],
            answered: completion[1],
            taken: completion[0],
        };
        queues.word(array).store(0, Ordering::Relaxed);
        Ok(Self { fd, queues, entries, offsets })
    }

    /// Whether nothing has come of what it waits for.
    #[inline]
    fn is_silent(&self) -> bool {
        let Offsets { flags, answered, taken, .. } = self.offsets;
        let word = |at| self.queues.word(at).load(Ordering::Acquire);
        word(flags) & SOMETHING == 0 && word(answered) == word(taken)
    }

    /// Waits for `fd` to become readable, once.
    fn wait_for(&self, fd: i32) -> Result<(), Errno> {
        let entry = Entry {
            operation: POLL_ADD,
            flags: 0,
            priority: 0,
            fd,
            unused: [0; 2],
            length: 0,
            events: libc::POLLIN as u32,
            more: [0; 4],
        };
        // SAFETY: the mapping is page-aligned, has room for one entry, and the kernel reads it only in the call below.
        unsafe { self.entries.start.cast::<Entry>().write_volatile(entry) };
        self.queues.word(self.offsets.submitted).fetch_add(1, Ordering::Release);
        match kernel::call!(SYS_io_uring_enter, self.fd.0, 1, 0, 0, 0, 0)? {
            1 => Ok(()),
            _ => Err(Errno::AGAIN),
        }
    }

    /// Takes the answer; whether there was one.
    fn take(&self) -> Result<bool, Errno> {
        kernel::call!(SYS_io_uring_enter, self.fd.0, 0, 0, GET_EVENTS, 0, 0)?;
        let answered = self.queues.word(self.offsets.answered).load(Ordering::Acquire);
        Ok(self.queues.word(self.offsets.taken).swap(answered, Ordering::Release) != answered)
    }
}

/// Memory of the kernel's that this process sees.
#[derive(Debug)]
struct Mapping {
    start: *mut u8,
    size: usize,
}

impl Mapping {
    fn new(fd: i32, offset: usize, size: usize) -> Result<Self, Errno> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        let start = kernel::call!(SYS_mmap, 0, size, protection, flags, fd, offset)?;
        Ok(Self { start: start as *mut u8, size })
    }

    /// The word `at` so many bytes.
    #[inline]
    fn word(&self, at: u32) -> &AtomicU32 {
        debug_assert!(at as usize + 4 <= self.size);
        // SAFETY: the kernel says where its words stand: aligned and within the size that follows from them.
        unsafe { AtomicU32::from_ptr(self.start.add(at as usize).cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let _ = kernel::call!(SYS_munmap, self.start, self.size);
    }
}

/// A descriptor of the layer's own.
#[derive(Debug)]
struct Own(i32);

impl Own {
    /// Moves what the kernel has just made to where the layer keeps its own.
    fn new(low: usize) -> Result<Self, Errno> {
        let high = kernel::call!(SYS_fcntl, low, libc::F_DUPFD_CLOEXEC, layer::floor());
        let _ = kernel::call!(SYS_close, low);
        let fd = high? as i32;
        descriptor::enter(fd, Kind::Own);
        Ok(Self(fd))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        descriptor::remove(self.0, Kind::Own);
        let _ = kernel::call!(SYS_close, self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use super::*;

    /// `None`, and says so, where io_uring is not to be had.
    fn asker() -> Option<Asker> {
        let made = Asker::new();
        if let Err(error) = &made {
            eprintln!("skipped: no io_uring here ({error:?})");
        }
        made.ok()
    }

    #[test]
    fn the_flag_tells_what_comes_without_a_call() {
        let Some(mut asker) = asker() else { return };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let question = [(listener.as_raw_fd(), libc::POLLIN)];
        assert_eq!(asker.ask(&question, 0), Ok(true));
        assert!(asker.ring.is_silent());
        for _ in 0..3 {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert!(!asker.ring.is_silent(), "a connection waits to be accepted");
            assert_eq!(asker.ask(&question, 0), Ok(false), "it still does");
            drop((listener.accept().unwrap(), stream));
            assert_eq!(asker.ask(&question, 0), Ok(true));
        }
    }

    #[test]
    fn a_question_about_others_takes_the_place_of_the_first() {
        let Some(mut asker) = asker() else { return };
        let [first, second] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let question = |of: &TcpListener| [(of.as_raw_fd(), libc::POLLIN)];
        assert_eq!(asker.ask(&question(&first), 0), Ok(true));
        assert_eq!(asker.ask(&question(&second), 0), Ok(true));
        let _stream = TcpStream::connect(first.local_addr().unwrap()).unwrap();
        assert!(asker.ring.is_silent(), "nobody asks about the first any more");
        let _stream = TcpStream::connect(second.local_addr().unwrap()).unwrap();
        assert!(!asker.ring.is_silent());
        assert_eq!(asker.ask(&question(&first), 0), Ok(false));
    }

    #[test]
    fn what_is_asked_about_is_closed_when_the_program_closes_it() {
        let Some(mut asker) = asker() else { return };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, fd) = (listener.local_addr().unwrap(), listener.as_raw_fd());
        assert_eq!(asker.ask(&[(fd, libc::POLLIN)], 1), Ok(true));
        drop(listener);
        assert!(TcpStream::connect(address).is_err(), "nobody listens there any more");
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let answer = asker.ask(&[(other.as_raw_fd(), libc::POLLIN)], 2);
        assert!(answer.is_err(), "what stands in the object is not known: {answer:?}");
    }
}
