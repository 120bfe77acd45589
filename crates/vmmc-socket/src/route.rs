//! How a call that the program made goes on.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::busy::{self, Stay};
use crate::kernel::{Errno, Outcome};
use crate::slot::{self, Phase, Slot};
use crate::wait::Direction;
use crate::{descriptor, lift, thread};

/// What is to be done about a call.
#[derive(Debug)]
pub enum Route {
    /// The layer did it.
    Done(Outcome),
    /// Let the kernel do it, and keep this until it has.
    Kernel(Option<InFlight>),
    /// Sleep in the kernel, then go on.
    Sleep(Sleep),
    /// Before the call was under way the number came to mean something else: make it again.
    Anew,
}

/// A sleep on a bell and a TCP socket. The caller does it, with the C library's own `ppoll` and outside of the layer: a
/// thread may be cancelled there, and a signal handler may leave by `longjmp`.
#[derive(Clone, Copy, Debug)]
pub struct Sleep {
    /// What to poll.
    pub fds: [libc::pollfd; 2],
    /// For how long at the most.
    pub timeout: Option<Duration>,
}

/// How a call that waits for many descriptors goes on.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// It is over.
    Done(Outcome),
    /// It is none of the layer's business.
    Kernel,
    /// Sleep as the call says, with the C library's own function and outside of the layer, then go on.
    Sleep,
}

/// A call that may have to sleep and go on.
pub trait Transfer {
    /// Does what can be done now. Called again after [`Transfer::woken`].
    fn go(&mut self) -> Route;

    /// The sleep that was asked for has ended. The call's result, if that ends it.
    fn woken(&mut self, sleep: &Sleep, outcome: Outcome) -> Option<Outcome>;

    /// The call is over.
    fn leave(&mut self);
}

/// A kernel call under way on a tracked connection that is not lifted: nothing switches under it.
#[derive(Debug)]
pub struct InFlight {
    fd: i32,
    index: u32,
    direction: Direction,
    /// Noted as a guest of the connection's ([`crate::busy`]), which may be lifted before the call is over.
    stay: Option<Stay>,
}

impl InFlight {
    /// `None`: the connection has just been lifted.
    #[inline]
    pub(crate) fn begin(fd: i32, index: u32, slot: &Slot, stay: Stay) -> Option<Self> {
        let call = Self::counted(fd, index, slot, stay.direction());
        (slot.phase() != Phase::Attached).then(|| call.staying(slot, stay))
    }

    /// A call of the kernel's that sends, on a connection whose sending direction is on TCP, lifted or not.
    pub(crate) fn sending(fd: i32, index: u32, slot: &Slot) -> Self {
        let call = Self::counted(fd, index, slot, Direction::Out);
        call.staying(slot, Stay::Moving(Direction::Out))
    }

    /// A call that waits, lifted or not.
    #[inline]
    pub(crate) fn counted(fd: i32, index: u32, slot: &Slot, direction: Direction) -> Self {
        count(slot, direction, 1);
        Self { fd, index, direction, stay: None }
    }

    /// Has the open file stay while the kernel is about the call, whoever closes the number. Who does not block is not there for long, and
    /// what is never lifted the kernel looks after.
    #[inline]
    fn staying(mut self, slot: &Slot, stay: Stay) -> Self {
        let may_sleep = stay == Stay::Polling || !slot.nonblocking.load(Ordering::Relaxed);
        if !thread::alone() && may_sleep && slot.phase() != Phase::Stay {
            busy::enter(self.fd, self.index, stay);
            self.stay = Some(stay);
        }
        self
    }

    /// The call moved `result` bytes (or failed).
    #[inline]
    pub fn end(self, result: isize) {
        let Self { fd, index, .. } = self;
        drop(self);
        // Another thread may have closed it.
        if result > 0 && (thread::alone() || descriptor::connection(fd) == Some(index)) {
            lift::moved(fd, index, slot::get(index));
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        count(slot::get(self.index), self.direction, u32::MAX);
        if let Some(stay) = self.stay {
            busy::leave(self.index, stay);
        }
    }
}

/// Adds to the calls under way of a direction; without an atomic addition where nobody else counts, which makes a call 10 ns cheaper.
#[inline]
pub(crate) fn count(slot: &Slot, direction: Direction, change: u32) {
    let calls = direction.in_flight(slot);
    if thread::alone() && slot.tenure.holders() == 1 {
        calls.store(calls.load(Ordering::Relaxed).wrapping_add(change), Ordering::Relaxed);
    } else {
        calls.fetch_add(change, Ordering::SeqCst);
    }
}

/// The result of a call that stops with `error` after it moved `moved` bytes: those count.
pub(crate) fn part(moved: usize, error: Errno) -> Outcome {
    if moved > 0 { Ok(moved) } else { Err(error) }
}
