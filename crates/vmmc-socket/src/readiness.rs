//! `poll` and `select` with lifted connections among the descriptors.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vmmc::stream::announce;

use crate::descriptor::{self, Kind};
use crate::epoll;
use crate::kernel::{self, Errno, Outcome};
use crate::local;
use crate::route::InFlight;
use crate::slot::{self, Phase, Way};
use crate::wait::{self, Direction};
use crate::{lift, spin, transmit};

const IN: i16 = libc::POLLIN | libc::POLLRDNORM;
const OUT: i16 = libc::POLLOUT | libc::POLLWRNORM;
/// How often a spinning poll asks the kernel about everything else.
const KERNEL_LOOK: u64 = 20 * crate::thread::MICROSECOND;

/// Polls `fds` as `ppoll`; `None`: none of them is the layer's business.
///
/// # Safety
/// `mask` is null or points to a signal mask.
pub unsafe fn poll(
    fds: &mut [libc::pollfd],
    timeout: Option<Duration>,
    mask: *const libc::sigset_t,
) -> Option<Outcome> {
    let mut tracked = false;
    for fd in fds.iter() {
        match descriptor::kind(fd.fd) {
            Kind::Connection(_) => tracked = true,
            // An epoll object that is looked at from outside must be true in the kernel.
            Kind::Set(number) => epoll::lower_all(number),
            _ => {}
        }
    }
    if !tracked {
        return None;
    }
    if crate::layer::process().is_some_and(vmmc::Process::has_mail) {
        lift::progress();
    }
    // While this thread may sleep on the TCP socket of a connection that is not lifted, that must not be lifted.
    let mut blind = Vec::new();
    let mut lifted = Vec::new();
    for (n, fd) in fds.iter().enumerate() {
        let Some(index) = descriptor::connection(fd.fd) else { continue };
        let slot = slot::get(index);
        match (slot.phase() != Phase::Attached)
            .then(|| InFlight::begin(fd.fd, index, slot, Direction::In))
            .flatten()
        {
            Some(call) => blind.push(call),
            None => lifted.push((n, index)),
        }
    }
    if lifted.is_empty() {
        let outcome = kernel::poll(fds, timeout, mask);
        drop(blind);
        return Some(outcome);
    }
    Some(Polling { fds, lifted, mask, rung: false }.wait(timeout))
}

struct Polling<'a> {
    fds: &'a mut [libc::pollfd],
    /// Place in `fds` and slot of those that are lifted.
    lifted: Vec<(usize, u32)>,
    mask: *const libc::sigset_t,
    /// The last sleep was ended by a bell, which says so until it is silenced.
    rung: bool,
}

impl Polling<'_> {
    fn wait(&mut self, timeout: Option<Duration>) -> Outcome {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut asleep = self.mask.is_null() && timeout != Some(Duration::ZERO) && self.spin();
        loop {
            let found = self.kernel(Some(Duration::ZERO), false)?;
            if found > 0 || timeout == Some(Duration::ZERO) {
                return Ok(found);
            }
            if std::mem::take(&mut asleep) {
                continue;
            }
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            let found = self.kernel(left, true)?;
            if found > 0 || left.is_some_and(|left| left.is_zero()) {
                return Ok(found);
            }
        }
    }

    /// Looks for a bounded time at the rings, and now and then at all else; true if something may be there.
    fn spin(&mut self) -> bool {
        let peer = self.lifted.iter().find_map(|&(_, index)| {
            local::get(index).pin().map(|pin| pin.ends().mine.cpu.load(Ordering::Relaxed))
        });
        let mut last = crate::thread::ticks();
        let others = self.lifted.len() < self.fds.len();
        spin::until(
            || peer.unwrap_or(0),
            || {
                if self.lifted.iter().any(|&(n, index)| self.ready(n, index) != 0) {
                    return true;
                }
                let now = crate::thread::ticks();
                if others && now.wrapping_sub(last) > KERNEL_LOOK {
                    last = now;
                    let mut rest: Vec<_> = self.fds.to_vec();
                    for &(n, _) in &self.lifted {
                        rest[n].fd = -1;
                    }
                    return matches!(
                        kernel::poll(&mut rest, Some(Duration::ZERO), std::ptr::null()),
                        Ok(1..)
                    );
                }
                false
            },
        )
    }

    /// The wanted events of a lifted connection that are there.
    fn ready(&self, n: usize, index: u32) -> i16 {
        let wanted = self.fds[n].events | libc::POLLERR | libc::POLLHUP;
        let fd = self.fds[n].fd;
        let (slot, local) = (slot::get(index), local::get(index));
        let Some(pin) = local.pin() else { return kernel::pending(fd, self.fds[n].events) };
        let ends = pin.ends();
        let mut now = 0;
        if slot.inward.way() != Way::Ring || slot.look.load(Ordering::Acquire) {
            now |= epoll::readiness_beside_the_ring(fd, slot, ends) as i16;
        } else if slot.inward.stream.stirred(ends.mine) {
            now |= if slot.inward.stream.frozen(ends.mine) {
                epoll::readiness_beside_the_ring(fd, slot, ends) as i16
            } else {
                IN
            };
        }
        now |= epoll::ended(fd, slot, ends) as i16;
        if wanted & OUT != 0 {
            let out = match slot.outward.way() {
                _ if slot.finished.load(Ordering::Relaxed) => true,
                Way::Ring => wait::can_send(slot, ends),
                Way::Handover => wait::handover_answered(ends),
                Way::Tcp | Way::Lowered => kernel::pending(fd, libc::POLLOUT) & libc::POLLOUT != 0,
            };
            if out {
                now |= OUT;
            }
        }
        now & wanted
    }

    /// Asks the kernel, for the lifted connections by their bells and TCP sockets; with `announced` after telling the
    /// peers that this side sleeps. Fills in the answers.
    fn kernel(&mut self, left: Option<Duration>, announced: bool) -> Outcome {
        let mut list: Vec<libc::pollfd> = self.fds.to_vec();
        let mut immediate = 0;
        let mut bells = Vec::new();
        for &(n, index) in &self.lifted {
            let (slot, local) = (slot::get(index), local::get(index));
            if !slot.ready.load(Ordering::Relaxed) {
                lift::retry_ready(index, slot);
            }
            if announced {
                self.announce(n, index, &mut bells);
            }
            let events = self.ready(n, index);
            self.fds[n].revents = events;
            immediate += usize::from(events != 0);
            // Of TCP itself only ends and errors are news; its readiness to send always holds.
            let ring_out = matches!(slot.outward.way(), Way::Ring | Way::Handover);
            // Where the peer froze the ring, its next bytes come by TCP.
            let frozen = local.ends().is_some_and(|ends| slot.inward.stream.frozen(ends.mine));
            let ring_in = slot.inward.way() == Way::Ring && !frozen;
            let ended = slot.look.load(Ordering::Relaxed);
            let urgent = self.fds[n].events & libc::POLLPRI;
            list[n].events = urgent
                | match (ring_in, ring_out) {
                    (true, true) if ended && events == 0 => 0,
                    (true, true) => libc::POLLIN | libc::POLLRDHUP,
                    (true, false) => self.fds[n].events & !IN | libc::POLLRDHUP,
                    (false, true) => self.fds[n].events & !OUT | libc::POLLIN,
                    (false, false) => self.fds[n].events,
                };
        }
        if announced {
            self.rung = false;
        }
        let time = if immediate > 0 { Some(Duration::ZERO) } else { left };
        let lifted_at = list.len();
        list.extend(bells.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }));
        let outcome = kernel::poll(&mut list, time, self.mask);
        self.rung |= list[lifted_at..].iter().any(|bell| bell.revents != 0);
        if outcome.is_err() && immediate == 0 {
            return outcome;
        }
        let mut is_lifted = vec![false; lifted_at];
        for &(n, index) in &self.lifted {
            is_lifted[n] = true;
            if list[n].revents != 0 {
                slot::get(index).look.store(true, Ordering::Release);
            }
            self.fds[n].revents = self.ready(n, index);
        }
        let mut found = 0;
        for (n, fd) in self.fds.iter_mut().enumerate() {
            if !is_lifted[n] {
                fd.revents = list[n].revents;
            }
            found += usize::from(fd.revents != 0);
        }
        Ok(found)
    }

    fn announce(&self, n: usize, index: u32, bells: &mut Vec<i32>) {
        let local = local::get(index);
        let Some(pin) = local.pin() else { return };
        let theirs = pin.ends().theirs;
        let bell = local.bell.load(Ordering::Acquire);
        let (wanted, reader, writer) =
            (self.fds[n].events, &theirs.reader_waiting, &theirs.writer_waiting);
        let due = self.rung
            || wanted & IN != 0 && reader.load(Ordering::Relaxed) == 0
            || wanted & OUT != 0 && writer.load(Ordering::Relaxed) == 0;
        if due {
            let other = if wanted & OUT != 0 { wait::Direction::In } else { wait::Direction::Out };
            wait::silence(bell, other, slot::get(index), pin.ends());
        }
        if wanted & (IN | libc::POLLRDHUP) != 0 {
            announce(reader);
        }
        if wanted & OUT != 0 {
            announce(writer);
        }
        transmit::say_where(pin.ends());
        bells.push(bell);
    }
}

/// `select` by `poll`: what of `fds` (with wanted events) is ready, as [`poll`] says it.
///
/// # Errors
/// `EBADF` if a descriptor is not open, as `select` demands.
pub fn check_open(fds: &[libc::pollfd]) -> Result<(), Errno> {
    if fds.iter().any(|fd| fd.revents & libc::POLLNVAL != 0) {
        Err(Errno(libc::EBADF))
    } else {
        Ok(())
    }
}
