//! What the program wants of the connections in one epoll object.

use std::sync::atomic::Ordering;

use super::bells::{Rung, SetBells};
use super::{BELL_EVENTS, Phase, Slot, TCP_EVENTS, Way, kernel, local, marked, slot};
use crate::kernel::{Errno, Outcome};
use crate::local::Ends;
use crate::{lower, receive, repeat, thread, wait};
use vmmc::stream::announce;

const EDGE: u32 = libc::EPOLLET as u32;
const ONE_SHOT: u32 = libc::EPOLLONESHOT as u32;
const IN: u32 = (libc::EPOLLIN | libc::EPOLLRDNORM) as u32;
const OUT: u32 = (libc::EPOLLOUT | libc::EPOLLWRNORM) as u32;
const RDHUP: u32 = libc::EPOLLRDHUP as u32;
/// Always reported, asked for or not.
const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;

/// One connection in one epoll object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registration {
    fd: i32,
    pub(super) slot: u32,
    events: u32,
    data: u64,
    /// Where its bell stands among those of the set that are shared, and its place there.
    seat: Option<(u32, u32)>,
    /// The program has it registered. The entry outlives that, for programs that delete and add all the time; a lifted
    /// one stays in the kernel too.
    active: bool,
    /// Not lifted: the kernel was not told of the last changes yet, and still has it as `told`.
    pending: bool,
    told: (u32, u64),
    lifted: bool,
    hot: bool,
    /// Looks in a row that found nothing.
    idle: u32,
    /// A one-shot registration that has shot, as far as the layer knows: while it is the kernel's, only that does.
    spent: bool,
    /// The program is just arming it.
    arming: bool,
    /// Edge-triggered: what was already reported.
    seen_tail: u64,
    seen_collisions: u32,
    /// Edge-triggered: report whatever is there, whether it was reported or not.
    fresh: bool,
}

/// All connections in one epoll object.
#[derive(Debug, Default)]
pub(super) struct Registrations {
    epfd: Option<i32>,
    entries: Vec<Option<Registration>>,
    /// Numbers in `entries` that are free.
    free: Vec<u32>,
    by_fd: Numbers,
    /// Numbers of the registrations to look at.
    hot: Vec<u32>,
    cursor: usize,
    pub(super) lifted: usize,
    pub(super) last_kernel_look: u64,
    /// Somebody looks at the kernel object without the layer: nothing in it is lifted.
    pub(super) refuse_lifting: bool,
    /// Numbers of the registrations that may be pending.
    pending: Vec<u32>,
    /// Times that the program waited on the set, up to [`ACCUSTOMED`].
    waits: u32,
    /// The kernel object is not this process's alone: it must be true at all times.
    eager: bool,
    /// Bells that several of the connections share.
    bells: SetBells,
    /// Descriptors and slots of connections whose peers went back to TCP without a byte that would lead after them.
    left: Vec<(i32, u32)>,
}

/// Waits after which a set is taken to be looked at by waiting only.
const ACCUSTOMED: u32 = 16;

/// Registration numbers by descriptor: one word a descriptor, because programs change registrations at every request.
#[derive(Debug, Default)]
struct Numbers(Vec<u32>);

impl Numbers {
    #[inline]
    fn get(&self, fd: i32) -> Option<u32> {
        self.0.get(fd as usize)?.checked_sub(1)
    }

    fn insert(&mut self, fd: i32, number: u32) {
        if self.0.len() <= fd as usize {
            self.0.resize(fd as usize + 1, 0);
        }
        self.0[fd as usize] = number + 1;
    }

    fn remove(&mut self, fd: i32) {
        if let Some(word) = self.0.get_mut(fd as usize) {
            *word = 0;
        }
    }
}

/// What `epoll_ctl` comes to: done (with the number of a new registration), failed, or to be done by the kernel.
type Control = Result<Option<u32>, Option<Errno>>;

impl Registrations {
    /// Of the set with this number.
    pub(super) fn of_set(number: u32) -> Self {
        Self { bells: SetBells::of_set(number), ..Self::default() }
    }

    pub(super) fn epfd(&self) -> Option<i32> {
        self.epfd
    }

    /// Whether `fd` is registered as the connection `slot`.
    pub(super) fn knows(&self, fd: i32, slot: u32) -> bool {
        let entry = self.by_fd.get(fd).and_then(|number| self.entries[number as usize].as_ref());
        entry.is_some_and(|entry| entry.slot == slot)
    }

    /// Passes a change of a known registration that is not lifted on to the kernel; `None` if it is not such.
    ///
    /// Programs delete and add again between two waits, which is two system calls for what is one change or none. A
    /// process with one thread and a set of its own can see the kernel object only by waiting, so there the kernel is
    /// told before the wait. Not if the thread `sleeps`: then this is a signal handler.
    #[inline]
    pub(super) fn pass(
        &mut self,
        epfd: i32,
        operation: i32,
        fd: i32,
        slot: u32,
        event: Option<(u32, u64)>,
        sleeps: bool,
    ) -> Option<Outcome> {
        let refused = self.refuse_lifting && operation == libc::EPOLL_CTL_ADD;
        let number = self.by_fd.get(fd).filter(|_| !refused)?;
        let lazy = self.waits == ACCUSTOMED && !self.eager && !sleeps && thread::alone();
        let entry = self.own(number, slot).filter(|entry| !entry.lifted)?;
        let (events, data) = match (operation, event) {
            (libc::EPOLL_CTL_DEL, _) => (0, 0),
            (_, event) => event?,
        };
        let adds = operation == libc::EPOLL_CTL_ADD;
        let deletes = operation == libc::EPOLL_CTL_DEL;
        let known =
            matches!(operation, libc::EPOLL_CTL_ADD | libc::EPOLL_CTL_MOD | libc::EPOLL_CTL_DEL);
        // The kernel has it, and would accept the change.
        if lazy && known && (entry.active || entry.pending) && entry.active != adds {
            let listed = std::mem::replace(&mut entry.pending, true);
            entry.active = !deletes;
            if !deletes {
                entry.want(events, data);
            }
            if !listed {
                self.pending.push(number);
            }
            self.epfd = Some(epfd);
            return Some(Ok(0));
        }
        self.tell(epfd, number);
        if let Err(error) = kernel::epoll_ctl(epfd, operation, fd, events, data) {
            return Some(Err(error));
        }
        let entry = self.own(number, slot)?;
        entry.active = !deletes;
        if entry.active {
            entry.want(events, data);
            entry.told = (events, data);
        }
        self.epfd = Some(epfd);
        Some(Ok(0))
    }

    /// The program begins to wait.
    #[inline]
    pub(super) fn before_wait(&mut self, epfd: i32) {
        self.waits = (self.waits + 1).min(ACCUSTOMED);
        self.catch_up(epfd);
    }

    /// Tells the kernel what it was not told yet.
    #[inline]
    pub(super) fn catch_up(&mut self, epfd: i32) {
        while let Some(number) = self.pending.pop() {
            self.tell(epfd, number);
        }
    }

    /// From now on the kernel is told of every change at once.
    pub(super) fn be_eager(&mut self) {
        self.eager = true;
        if let Some(epfd) = self.epfd {
            self.catch_up(epfd);
        }
    }

    /// Tells the kernel what one registration has come to.
    fn tell(&mut self, epfd: i32, number: u32) {
        let Some(entry) = self.entries.get_mut(number as usize).and_then(Option::as_mut) else {
            return;
        };
        if !std::mem::replace(&mut entry.pending, false) || entry.lifted {
            return;
        }
        let wanted = (entry.events, entry.data);
        if !entry.active {
            let _ = kernel::epoll_ctl(epfd, libc::EPOLL_CTL_DEL, entry.fd, 0, 0);
        } else if wanted != entry.told || entry.events & (EDGE | ONE_SHOT) != 0 {
            let _ = kernel::epoll_ctl(epfd, libc::EPOLL_CTL_MOD, entry.fd, wanted.0, wanted.1);
            entry.told = wanted;
        }
    }

    /// The descriptor is about to be closed, which the kernel must not find registered if the program deleted it.
    pub(super) fn before_close(&mut self, slot: u32, number: u32) {
        if let Some(epfd) = self.epfd.filter(|_| self.own(number, slot).is_some()) {
            self.tell(epfd, number);
        }
    }

    /// The number `closed` of the object is closed; it has this one too.
    pub(super) fn go_on_as(&mut self, closed: i32, other: i32) {
        if self.epfd == Some(closed) {
            self.epfd = Some(other);
        }
    }

    pub(super) fn add(
        &mut self,
        epfd: i32,
        fd: i32,
        slot: u32,
        lifted: bool,
        events: u32,
        data: u64,
    ) -> Control {
        self.epfd = Some(epfd);
        if let Some(number) = self.by_fd.get(fd) {
            self.tell(epfd, number);
            let entry =
                self.entries[number as usize].as_mut().expect("the index names live entries");
            if entry.slot == slot && entry.active && entry.lifted {
                return Err(Some(Errno(libc::EEXIST)));
            }
            if entry.slot == slot && entry.lifted {
                entry.want(events, data);
                entry.active = true;
                self.heat(number);
                return Ok(None);
            }
            if entry.slot == slot {
                // Deleted before, or the kernel knows it and will say so.
                kernel::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, fd, events, data).map_err(Some)?;
                entry.want(events, data);
                entry.told = (events, data);
                entry.active = true;
                return Ok(None);
            }
            // The number was closed and means another connection now.
            self.vacate(number);
        }
        if !lifted {
            kernel::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, fd, events, data).map_err(Some)?;
        }
        let number = self.enter(Registration {
            fd,
            slot,
            events,
            data,
            seat: None,
            active: true,
            pending: false,
            told: (events, data),
            lifted: false,
            hot: false,
            idle: 0,
            spent: false,
            arming: false,
            seen_tail: 0,
            seen_collisions: 0,
            fresh: true,
        });
        if lifted {
            kernel::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, fd, TCP_EVENTS, marked(number)).map_err(
                |error| {
                    self.vacate(number);
                    Some(error)
                },
            )?;
            self.lift(epfd, number);
        }
        Ok(Some(number))
    }

    pub(super) fn modify(
        &mut self,
        epfd: i32,
        fd: i32,
        _lifted: bool,
        events: u32,
        data: u64,
    ) -> Control {
        self.epfd = Some(epfd);
        let Some(number) = self.by_fd.get(fd) else { return Err(None) };
        self.tell(epfd, number);
        let entry = self.entries[number as usize].as_mut().expect("the index names live entries");
        if !entry.lifted {
            kernel::epoll_ctl(epfd, libc::EPOLL_CTL_MOD, fd, events, data).map_err(Some)?;
            entry.want(events, data);
            entry.told = (events, data);
            return Ok(None);
        }
        if !entry.active {
            return Err(Some(Errno(libc::ENOENT)));
        }
        entry.want(events, data);
        self.heat(number);
        Ok(None)
    }

    pub(super) fn delete(&mut self, epfd: i32, fd: i32) -> Control {
        let Some(number) = self.by_fd.get(fd) else { return Err(None) };
        self.tell(epfd, number);
        let entry = self.entries[number as usize].as_mut().expect("the index names live entries");
        if !entry.lifted {
            kernel::epoll_ctl(epfd, libc::EPOLL_CTL_DEL, fd, 0, 0).map_err(Some)?;
            entry.active = false;
            return Ok(None);
        }
        if !std::mem::replace(&mut entry.active, false) {
            return Err(Some(Errno(libc::ENOENT)));
        }
        Ok(None)
    }

    fn enter(&mut self, registration: Registration) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.by_fd.insert(registration.fd, number);
        self.entries[number as usize] = Some(registration);
        number
    }

    fn vacate(&mut self, number: u32) {
        if self.entries[number as usize].is_some_and(|entry| entry.lifted) {
            self.unlift(number);
        }
        if let Some(entry) = self.entries[number as usize].take() {
            if self.by_fd.get(entry.fd) == Some(number) {
                self.by_fd.remove(entry.fd);
            }
            self.free.push(number);
        }
    }

    fn own(&mut self, number: u32, slot: u32) -> Option<&mut Registration> {
        self.entries.get_mut(number as usize)?.as_mut().filter(|entry| entry.slot == slot)
    }

    /// Its TCP socket stands in the kernel's object already.
    fn lift(&mut self, epfd: i32, number: u32) {
        if let Some(entry) = &mut self.entries[number as usize] {
            let local = local::get(entry.slot);
            entry.seat = local.seat().map(|seat| self.bells.sit(epfd, seat, number));
            if entry.seat.is_none() {
                let (bell, data) = (local.bell.load(Ordering::Acquire), marked(number));
                let _ = kernel::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, bell, BELL_EVENTS, data);
            }
            entry.lifted = true;
            entry.fresh = true;
            self.lifted += 1;
            self.heat(number);
        }
    }

    /// The program begins or ends to change the registration.
    pub(super) fn set_arming(&mut self, fd: i32, slot: u32, on: bool) {
        if let Some(number) = self.by_fd.get(fd)
            && let Some(entry) = self.own(number, slot)
        {
            entry.arming = on;
        }
    }

    pub(super) fn may_have_shot(&mut self, slot: u32, number: u32) -> bool {
        self.own(number, slot).is_some_and(|entry| {
            let kernels = entry.active && !entry.lifted && entry.events & ONE_SHOT != 0;
            kernels && !entry.arming
        })
    }

    pub(super) fn adopt(&mut self, epfd: i32, slot: u32, number: u32) {
        self.tell(epfd, number);
        let Some(entry) = self.own(number, slot).filter(|entry| !entry.lifted) else { return };
        let operation = if entry.active { libc::EPOLL_CTL_MOD } else { libc::EPOLL_CTL_ADD };
        let _ = kernel::epoll_ctl(epfd, operation, entry.fd, TCP_EVENTS, marked(number));
        self.lift(epfd, number);
    }

    /// Gives the registration back to the kernel; false if there is nothing left of it.
    pub(super) fn release(&mut self, epfd: i32, slot: u32, number: u32, bell: i32) -> bool {
        let Some(entry) = self.own(number, slot) else { return false };
        if !entry.lifted {
            return true;
        }
        let entry = *entry;
        self.silence(epfd, number, bell);
        if entry.active {
            let events = if entry.spent { 0 } else { entry.events };
            let _ = kernel::epoll_ctl(epfd, libc::EPOLL_CTL_MOD, entry.fd, events, entry.data);
            self.note_told(number, events);
        } else {
            let _ = kernel::epoll_ctl(epfd, libc::EPOLL_CTL_DEL, entry.fd, 0, 0);
        }
        self.unlift(number);
        true
    }

    pub(super) fn release_all(&mut self) {
        let Some(epfd) = self.epfd else { return };
        for number in 0..self.entries.len() {
            if let Some(Registration { slot, lifted: true, .. }) = self.entries[number] {
                let bell = local::get(slot).bell.load(Ordering::Acquire);
                self.release(epfd, slot, number as u32, bell);
            }
        }
    }

    /// The connection is about to be closed. The kernel forgets the socket by itself, unless others hold it.
    pub(super) fn remove(
        &mut self,
        epfd: i32,
        slot: u32,
        number: u32,
        bell: i32,
        others_hold: bool,
    ) {
        let Some(entry) = self.own(number, slot).copied() else { return };
        if entry.lifted {
            self.silence(epfd, number, bell);
        }
        if entry.lifted || others_hold {
            let _ = kernel::epoll_ctl(epfd, libc::EPOLL_CTL_DEL, entry.fd, 0, 0);
        }
        self.vacate(number);
    }

    /// The registration's bell is not to be heard any more in this set.
    fn silence(&mut self, epfd: i32, number: u32, bell: i32) {
        let Some(entry) = &mut self.entries[number as usize] else { return };
        match entry.seat.take() {
            Some(seat) => self.bells.rise(epfd, seat),
            None => drop(kernel::epoll_ctl(epfd, libc::EPOLL_CTL_DEL, bell, 0, 0)),
        }
    }

    fn note_told(&mut self, number: u32, events: u32) {
        if let Some(entry) = &mut self.entries[number as usize] {
            entry.told = (events, entry.data);
        }
    }

    fn unlift(&mut self, number: u32) {
        self.lifted -= 1;
        self.hot.retain(|&other| other != number);
        if let Some(entry) = &mut self.entries[number as usize] {
            entry.lifted = false;
            entry.hot = false;
        }
    }

    pub(super) fn into_members(mut self) -> Vec<(u32, u32)> {
        self.bells.clear();
        let numbered = self.entries.into_iter().enumerate();
        numbered.filter_map(|(number, entry)| Some((entry?.slot, number as u32))).collect()
    }

    pub(super) fn all(&self) -> Vec<(i32, u32)> {
        self.entries.iter().flatten().map(|entry| (entry.fd, entry.slot)).collect()
    }

    /// A bell or the TCP socket of the registration has something to say.
    pub(super) fn stir(&mut self, number: u32, events: u32) {
        let Some(Some(entry)) = self.entries.get_mut(number as usize) else { return };
        if !entry.lifted {
            return;
        }
        // The two descriptors carry the same mark, and only TCP says more than IN; a bell without news looks the same
        // as a byte on TCP, so an empty ring is the reason to look there.
        let slot = slot::get(entry.slot);
        let ends = local::get(entry.slot).ends();
        let ring = ends.is_some_and(|ends| slot.inward.stream.stirred(ends.mine));
        let tcp = events & !IN != 0;
        let news = if tcp { events & !OUT != 0 } else { !ring };
        if news {
            slot.look.store(true, Ordering::Release);
        }
        let old = ends.is_some_and(|ends| {
            events & !(IN | OUT) == 0 && repeat::nothing_else(entry.fd, slot, ends)
                || entry.has_ended(events, slot, ends)
        });
        entry.fresh |= tcp && !old;
        if entry.peer_has_left() && !self.left.contains(&(entry.fd, entry.slot)) {
            self.left.push((entry.fd, entry.slot));
        }
        self.heat(number);
    }

    /// A bell that several registrations share was rung.
    pub(super) fn hear(&mut self, bell: u32) {
        for rung in self.bells.rung(bell) {
            match rung {
                Rung::Marked(number) => self.stir(number, IN),
                Rung::Perhaps(number) => self.look_at(number),
            }
        }
    }

    /// The registration may have news.
    fn look_at(&mut self, number: u32) {
        let Some(Some(entry)) = self.entries.get(number as usize) else { return };
        if entry.peer_has_left() && !self.left.contains(&(entry.fd, entry.slot)) {
            self.left.push((entry.fd, entry.slot));
        }
        self.heat(number);
    }

    fn heat(&mut self, number: u32) {
        if let Some(entry) = &mut self.entries[number as usize] {
            entry.idle = 0;
            if !entry.hot {
                entry.hot = true;
                self.hot.push(number);
            }
        }
    }

    /// Whether there is anything to look at.
    pub(super) fn hot(&self) -> bool {
        !self.hot.is_empty()
    }

    /// Whether `collect` would report something.
    pub(super) fn anything(&self) -> bool {
        self.hot.iter().any(|&number| {
            let entry = self.entries[number as usize].filter(|entry| entry.active && !entry.spent);
            entry.is_some_and(|mut probe| probe.report() != 0)
        })
    }

    /// The processor of some hot peer, plus one.
    pub(super) fn peer_processor(&self) -> u32 {
        let entry = self.hot.first().and_then(|&number| self.entries[number as usize].as_ref());
        let ends = entry.and_then(|entry| local::get(entry.slot).ends());
        ends.map_or(0, |ends| ends.mine.cpu.load(Ordering::Relaxed))
    }

    /// Looks once at each hot registration, and reports up to `most` that have events. Where it ends, the next call begins.
    pub(super) fn collect(&mut self, out: *mut libc::epoll_event, most: usize) -> usize {
        /// Looks without news after which a registration is made cold.
        const PATIENCE: u32 = 4096;
        let (mut found, mut cooled) = (0, false);
        for _ in 0..self.hot.len() {
            if found == most {
                break;
            }
            if self.cursor >= self.hot.len() {
                self.cursor = 0;
            }
            let number = self.hot[self.cursor];
            self.cursor += 1;
            let Some(entry) = self.entries[number as usize].as_mut() else { continue };
            if !entry.active || entry.spent {
                (entry.hot, cooled) = (false, true);
                continue;
            }
            // A relative has brought it back to TCP: the kernel tells of it.
            if slot::get(entry.slot).phase() != Phase::Attached {
                self.left.push((entry.fd, entry.slot));
                (entry.hot, cooled) = (false, true);
                continue;
            }
            let events = entry.report();
            if events != 0 {
                // SAFETY: the program's array has room for `most` events; `found` is less. It may be unaligned.
                unsafe {
                    out.add(found).write_unaligned(libc::epoll_event { events, u64: entry.data })
                };
                found += 1;
                entry.idle = 0;
                entry.spent = entry.events & ONE_SHOT != 0;
            } else {
                entry.idle += 1;
                if entry.idle > PATIENCE && entry.cool() {
                    (entry.hot, cooled) = (false, true);
                }
            }
        }
        if cooled {
            self.keep_hot();
        }
        found
    }

    /// Takes what is not hot any more off the list, which stays in its order: who was looked at is behind the cursor.
    fn keep_hot(&mut self) {
        let (mut place, mut seen) = (0, 0);
        self.hot.retain(|&number| {
            let hot = self.entries[number as usize].is_some_and(|entry| entry.hot);
            seen += usize::from(hot && place < self.cursor);
            place += 1;
            hot
        });
        self.cursor = seen;
    }

    /// Connections that have to go after their peers, once.
    pub(super) fn take_left(&mut self) -> Vec<(i32, u32)> {
        std::mem::take(&mut self.left)
    }

    /// Others sleep on the set, and this thread will not look at it: everything is made cold, so that the peers wake them, and they
    /// are woken at once if there is something to report already.
    pub(super) fn leave_to_others(&mut self) {
        if self.cool_all() {
            return;
        }
        let entry = self.hot.first().and_then(|&number| self.entries[number as usize]);
        if let Some(entry) = entry {
            local::get(entry.slot).ring_own();
        }
    }

    /// Makes everything cold. False if something has come meanwhile that `collect` would report.
    pub(super) fn cool_all(&mut self) -> bool {
        let (entries, left) = (&mut self.entries, &mut self.left);
        self.hot.retain(|&number| match &mut entries[number as usize] {
            Some(entry) if entry.active && !entry.spent => {
                entry.hot = !entry.cool();
                if entry.peer_has_left() {
                    left.push((entry.fd, entry.slot));
                }
                entry.hot
            }
            Some(entry) => {
                entry.hot = false;
                false
            }
            None => false,
        });
        // What stayed hot without having news is edge-triggered and was reported; it is announced all the same.
        self.hot.is_empty()
    }
}

impl Registration {
    fn want(&mut self, events: u32, data: u64) {
        self.events = events;
        self.data = data;
        self.spent = false;
        self.fresh = true;
    }

    /// The events to report now; none for an edge that was already reported.
    #[inline]
    fn report(&mut self) -> u32 {
        let slot = slot::get(self.slot);
        let Some(ends) = local::get(self.slot).ends() else { return 0 };
        let now = self.now(slot, ends);
        if now == 0 || self.events & EDGE == 0 {
            return now;
        }
        let (tail, collisions) = (
            // That the stream goes on elsewhere is no edge; what comes there is one.
            ends.mine.tail.load(Ordering::Acquire) & !vmmc::stream::FROZEN,
            slot.outward.collisions.load(Ordering::Relaxed),
        );
        // As in the kernel, whatever arrives has all be told that is true by then, also if what arrived was read already: bytes
        // tell those that want bytes, an end tells everybody.
        let ended = (tail ^ self.seen_tail) & vmmc::stream::FIN != 0;
        let arrived = ended || tail != self.seen_tail && self.events & IN != 0;
        let room = collisions != self.seen_collisions && now & OUT != 0;
        if !(self.fresh || arrived || room) {
            return 0;
        }
        self.fresh = false;
        self.seen_tail = tail;
        // A writer that was told of something else while there was no room has still to be told of the room.
        if now & OUT != 0 {
            self.seen_collisions = collisions;
        }
        now
    }

    /// The events that are true now and wanted.
    #[inline]
    fn now(&self, slot: &Slot, ends: Ends) -> u32 {
        let mut now = 0;
        if slot.inward.way() != Way::Ring || slot.look.load(Ordering::Acquire) {
            now |= readiness_beside_the_ring(self.fd, slot, ends);
        } else if slot.inward.stream.stirred(ends.mine) {
            now |= if slot.inward.stream.frozen(ends.mine) {
                readiness_beside_the_ring(self.fd, slot, ends)
            } else {
                IN
            };
        }
        now |= ended(self.fd, slot, ends);
        if self.events & OUT != 0 {
            let out = match slot.outward.way() {
                _ if slot.finished.load(Ordering::Relaxed) => true,
                Way::Ring => wait::can_send(slot, ends),
                Way::Handover => wait::handover_answered(ends),
                Way::Tcp | Way::Lowered => {
                    kernel::pending(self.fd, libc::POLLOUT) & libc::POLLOUT != 0
                }
            };
            if out {
                now |= OUT;
            }
        }
        now & (self.events | ALWAYS)
    }

    /// Whether TCP tells of nothing but an end that the ring had told of before.
    fn has_ended(&self, events: u32, slot: &Slot, ends: Ends) -> bool {
        let room = self.events & OUT != 0 && slot.outward.way() != Way::Ring;
        events & !(IN | OUT | RDHUP) == 0 && !room && ended(self.fd, slot, ends) != 0
    }

    /// Whether the peer has gone back to TCP, or another process of the family has brought the connection back there.
    fn peer_has_left(&self) -> bool {
        if slot::get(self.slot).phase() != Phase::Attached {
            return true;
        }
        let ends = local::get(self.slot).ends();
        ends.is_some_and(|ends| lower::has_left(slot::get(self.slot), ends))
    }

    /// Announces to the peer that this side sleeps; false if there is something to report already.
    fn cool(&mut self) -> bool {
        let slot = slot::get(self.slot);
        let local = local::get(self.slot);
        let Some(ends) = local.ends() else { return true };
        if self.events & (IN | RDHUP) != 0 {
            announce(&ends.theirs.reader_waiting);
        }
        if self.events & OUT != 0 {
            announce(&ends.theirs.writer_waiting);
        }
        let now = self.now(slot, ends);
        if now == 0 {
            return true;
        }
        // Edge-triggered and already reported: the announcement holds, and nothing needs to be looked at.
        let mut probe = *self;
        probe.report() == 0
    }
}

/// Readiness of a connection whose incoming bytes may come from TCP, or that TCP has something to say of.
#[cold]
pub(crate) fn readiness_beside_the_ring(fd: i32, slot: &Slot, ends: Ends) -> u32 {
    if repeat::repeat(slot, ends).is_some() {
        // What was read is no news.
        let _held = slot.inward.lock.hold();
        repeat::pass_over(fd, slot, ends);
    }
    let wanted = libc::POLLIN | libc::POLLRDHUP | libc::POLLPRI;
    let mut events = kernel::pending(fd, wanted);
    for _ in 0..100 {
        // A reset sets the error and the state a moment before the end; the native call is woken after all of them.
        let whole = libc::POLLERR | libc::POLLHUP | libc::POLLIN;
        if events & libc::POLLERR == 0 || events & whole == whole {
            break;
        }
        events = kernel::pending(fd, wanted);
    }
    let events = events as u16 as u32;
    let mut now = events
        & (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLPRI | libc::EPOLLERR | libc::EPOLLHUP)
            as u32;
    if now & libc::EPOLLIN as u32 != 0 {
        now |= IN;
    }
    if slot.inward.stream.unread(ends.mine) > 0 && receive::reaches_ring(fd, slot, ends) {
        now |= IN;
    }
    if slot.deaf.load(Ordering::Relaxed) {
        now |= IN | RDHUP;
    }
    // Of this side's own end the kernel may not know.
    if now & RDHUP != 0 && slot.finished.load(Ordering::Relaxed) {
        now |= libc::EPOLLHUP as u32;
    }
    if events == 0 && slot.inward.way() == Way::Ring && slot.phase() == Phase::Attached {
        // A false alarm: nothing is different on TCP.
        if !slot.deaf.load(Ordering::Relaxed) {
            slot.look.store(false, Ordering::Release);
        }
    }
    now
}

/// What ends that stand in the rings mean for readiness: the kernel may not know of them.
#[inline]
pub(crate) fn ended(fd: i32, slot: &Slot, ends: Ends) -> u32 {
    let word = ends.mine.tail.load(Ordering::Acquire);
    if word & vmmc::stream::FIN == 0 || !receive::reaches_ring(fd, slot, ends) {
        return 0;
    }
    let both = slot.finished.load(Ordering::Relaxed);
    if both { IN | RDHUP | libc::EPOLLHUP as u32 } else { IN | RDHUP }
}
