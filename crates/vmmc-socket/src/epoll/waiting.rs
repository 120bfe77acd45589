//! `epoll_wait` on an object with lifted connections.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::registrations::Left;
use super::{Marked, Registrations, Set, lower_all, set, unmark};
use crate::descriptor::{self, Kind};
use crate::kernel::{self, Errno, Outcome};
use crate::route::Step;
use crate::thread::{self, MICROSECOND};
use crate::{explain, lift, lower, rest, signals, spin};

/// However busy the rings are, the kernel is asked this often: listeners, timers and ends must not starve.
const KERNEL_LOOK: u64 = 30 * MICROSECOND;

/// An `epoll_pwait2` under way.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    set: &'static Set,
    epfd: i32,
    out: *mut libc::epoll_event,
    most: usize,
    timeout: Option<Duration>,
    mask: *const libc::sigset_t,
    deadline: Option<Instant>,
    /// What was left of the time when the sleep began.
    left: Option<Duration>,
    /// For how long it may last.
    time: Option<Duration>,
    /// When it began, if that is measured.
    since: Option<u64>,
    /// The set was told that the program waits.
    begun: bool,
}

/// What one look at the set gave.
struct Look {
    found: usize,
    left: Vec<Left>,
    /// Nothing was found, but something may come soon: one more than the processor that it comes from, or 0.
    peer: Option<u32>,
}

impl Waiting {
    /// `None`: the kernel shall do it alone.
    ///
    /// # Safety
    /// As long as this is used `out` is valid for writing `most` events, and `mask` null or a signal mask.
    pub unsafe fn new(
        epfd: i32,
        out: *mut libc::epoll_event,
        most: usize,
        timeout: Option<Duration>,
        mask: *const libc::sigset_t,
    ) -> Option<Self> {
        let Kind::Set(number) = descriptor::kind(epfd) else { return None };
        let set = set(number)?;
        if most == 0 || most > i32::MAX as usize / size_of::<libc::epoll_event>() {
            return None;
        }
        let inherited = set.inherited.load(Ordering::Relaxed);
        if inherited && set.with(|registrations| registrations.lifted > 0) {
            lower_all(number);
        }
        let (deadline, left, time, since, begun) = (None, None, None, None, false);
        Some(Self { set, epfd, out, most, timeout, mask, deadline, left, time, since, begun })
    }

    /// For how long to sleep, when that is due.
    pub fn time(&self) -> Option<Duration> {
        self.time
    }

    /// Goes on, after a sleep that ended so if there was one.
    pub fn go(&mut self, slept: Option<Outcome>) -> Step {
        let first = match slept {
            None => {
                signals::forget_handled();
                if crate::layer::has_mail() {
                    lift::progress();
                }
                Ok(None)
            }
            Some(outcome) => self.woken(outcome),
        };
        let found = match first {
            Ok(None) => self.wait(),
            found => found,
        };
        found.map_or_else(
            |error| Step::Done(Err(error)),
            |found| found.map_or(Step::Sleep, |found| Step::Done(Ok(found))),
        )
    }

    /// What is found; `None`: a sleep is due.
    fn wait(&mut self) -> Result<Option<usize>, Errno> {
        // With a signal mask of its own the call belongs to the kernel: a signal that the mask lets through must end it.
        let masked = !self.mask.is_null();
        let at_once = self.timeout == Some(Duration::ZERO);
        let mut ask_kernel = masked || at_once;
        loop {
            // With nothing lifted in the set the kernel is asked once, as the program would.
            if let Some(Look { found, left, peer }) = self.look(ask_kernel)? {
                left.iter().for_each(|left| lower::follow(left.fd, left.slot));
                if found > 0 {
                    return Ok(Some(found + self.tell_of(&left, found)));
                }
                if !left.is_empty() {
                    ask_kernel = true;
                    continue;
                }
                if at_once {
                    return Ok(Some(0));
                }
                ask_kernel = masked;
                if !masked && peer.is_some_and(|peer| self.spin(peer)) {
                    continue;
                }
            }
            self.left = self.timeout.map(|timeout| {
                let now = Instant::now();
                self.deadline = self.deadline.or_else(|| now.checked_add(timeout));
                self.deadline.map_or(timeout, |end| end.saturating_duration_since(now))
            });
            if self.lies_down() {
                return Ok(None);
            }
        }
    }

    /// What is ready now, in the rings and, at times, in the kernel; `None`: nothing is lifted.
    fn look(&mut self, ask_kernel: bool) -> Result<Option<Look>, Errno> {
        let begins = !std::mem::replace(&mut self.begun, true);
        self.set.with(|registrations| {
            if begins {
                registrations.before_wait(self.epfd);
            }
            if registrations.lifted == 0 {
                return Ok(None);
            }
            let now = thread::ticks();
            let due = now.wrapping_sub(registrations.last_kernel_look) > KERNEL_LOOK;
            let asks = ask_kernel || due || !registrations.hot();
            // Who filled all the room last time comes last now: there may be room for one only, at every call.
            let kernel_last = asks && std::mem::take(&mut registrations.kernel_filled);
            let mut found = 0;
            if asks && !kernel_last {
                found = self.ask_kernel(registrations, 0)?;
                registrations.kernel_filled = found == self.most;
            }
            // SAFETY: `found` is at most `most`.
            found += registrations.collect(unsafe { self.out.add(found) }, self.most - found);
            if kernel_last && found < self.most {
                // What the rings have told stands, whatever the kernel says.
                found += self.ask_kernel(registrations, found).unwrap_or(0);
            }
            self.on_return(registrations, found > 0 || self.timeout == Some(Duration::ZERO));
            let spins = found == 0 && registrations.hot();
            let peer = spins.then(|| registrations.peer_processor());
            Ok(Some(Look { found, left: registrations.take_left(), peer }))
        })
    }

    /// Waits for a hot connection without sleeping; true if something is there.
    fn spin(&self, peer: u32) -> bool {
        let start = explain::clock();
        let found = spin::until(
            || peer,
            || {
                self.set.with(|registrations| {
                    let now = thread::ticks();
                    if now.wrapping_sub(registrations.last_kernel_look) > KERNEL_LOOK {
                        registrations.last_kernel_look = now;
                        if kernel::pending(self.epfd, libc::POLLIN) != 0 {
                            registrations.look_soon();
                            return true;
                        }
                    }
                    registrations.anything()
                })
            },
        );
        explain::spun_since(start);
        found
    }

    /// Prepares a sleep; false if there is something to look at first.
    fn lies_down(&mut self) -> bool {
        let rest = rest::before_sleep();
        self.set.sleepers.fetch_add(1, Ordering::SeqCst);
        let (quiet, corked) = self.set.with(|registrations| {
            registrations.catch_up(self.epfd);
            let quiet = registrations.cool_all();
            if !quiet {
                registrations.look_at_corked();
            }
            (quiet, registrations.corked_for())
        });
        self.time = [self.left, rest, corked].into_iter().flatten().min();
        self.follow_peers();
        self.since = explain::clock().filter(|_| quiet);
        if !quiet {
            self.set.sleepers.fetch_sub(1, Ordering::SeqCst);
        }
        quiet
    }

    /// After the sleep: the number of events if there are any to return, also none at the end of the time.
    fn woken(&self, outcome: Outcome) -> Result<Option<usize>, Errno> {
        explain::slept_since(self.since);
        self.set.sleepers.fetch_sub(1, Ordering::SeqCst);
        self.set.with(|registrations| {
            registrations.look_at_corked();
            let goes = outcome.is_err() && registrations.hot();
            self.on_return(registrations, goes);
        });
        let count = outcome?;
        if crate::layer::has_mail() {
            lift::progress();
        }
        let found = self.set.with(|registrations| sort_out(registrations, self.out, count));
        self.follow_peers();
        self.set.with(|registrations| {
            let mut found = found;
            // A connection may have been lifted during the sleep: what the kernel has just said of it must not be said again
            // from here, so the rings wait for the next call if the kernel had anything.
            if found == 0 {
                found = registrations.collect(self.out, self.most);
            }
            let over = count == 0 && self.left.is_some() && self.time == self.left;
            self.on_return(registrations, found > 0 || over);
            Ok((found > 0 || over).then_some(found))
        })
    }

    /// Goes back to TCP where peers or relatives did.
    fn follow_peers(&self) {
        let left = self.set.with(Registrations::take_left);
        left.iter().for_each(|left| lower::follow(left.fd, left.slot));
    }

    /// Beside `found` others tells of those that have just gone back to TCP: the kernel's object would say it at the next call.
    fn tell_of(&self, left: &[Left], found: usize) -> usize {
        let mut told = 0;
        for left in left {
            if found + told == self.most {
                break;
            }
            let event = self.set.with(|registrations| registrations.on_tcp(left));
            // A child gives its own registrations back in an object that both have: then the kernel has told.
            if let Some(event) = event.filter(|event| !self.has_told(event.u64, found + told)) {
                // SAFETY: the program's array has room for `most` events, of which so many are taken. It may be unaligned.
                unsafe { self.out.add(found + told).write_unaligned(event) };
                told += 1;
            }
        }
        told
    }

    /// Whether there is an event with this data among the first `count`.
    fn has_told(&self, data: u64, count: usize) -> bool {
        // SAFETY: so many events were written, perhaps unaligned.
        (0..count).any(|n| unsafe { self.out.add(n).read_unaligned() }.u64 == data)
    }

    /// Asks the kernel, without waiting, what else there is to tell beside the `found` first events.
    fn ask_kernel(&self, registrations: &mut Registrations, found: usize) -> Outcome {
        // SAFETY: `found` is less than `most`, for which the program's array has room.
        let (out, room) = (unsafe { self.out.add(found) }, self.most - found);
        registrations.last_kernel_look = thread::ticks();
        loop {
            let count = kernel::epoll_wait(self.epfd, out, room, Some(Duration::ZERO), self.mask)?;
            let kept = sort_out(registrations, out, count);
            // The layer's own events, each told once, may have taken the room of the program's.
            if kept > 0 || count < room {
                return Ok(kept);
            }
        }
    }

    /// This thread `goes` away: if another sleeps on the same set, the bells must ring for it.
    fn on_return(&self, registrations: &mut Registrations, goes: bool) {
        if goes && self.set.sleepers.load(Ordering::SeqCst) > 0 {
            registrations.leave_to_others();
        }
    }
}

/// Of `count` events from the kernel at `out` keeps those that are the program's, and notes those that are the layer's.
fn sort_out(registrations: &mut Registrations, out: *mut libc::epoll_event, count: usize) -> usize {
    let mut kept = 0;
    for n in 0..count {
        // SAFETY: the kernel has written `count` events.
        let event = unsafe { out.add(n).read_unaligned() };
        match unmark(event.u64) {
            Some(Marked::Registration(number)) => registrations.stir(number, event.events),
            Some(Marked::Bell(number)) => registrations.hear(number),
            None => {
                // SAFETY: `kept <= n`.
                unsafe { out.add(kept).write_unaligned(event) };
                kept += 1;
            }
        }
    }
    if kept > 0 {
        // What is there will be there at the next call too, unless the program sees to it.
        registrations.look_soon();
    }
    kept
}
