//! What the program wants of the connections in one epoll object.

use std::sync::atomic::Ordering;

use super::bells::SetBells;
use super::registration::{EDGE, ONE_SHOT, Registration};
use super::{BELL_EVENTS, TCP_EVENTS, kernel, local, marked};
use crate::kernel::{Errno, Outcome};
use crate::thread;

mod ready;

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
    /// When the kernel was asked; long ago if it had something or may have.
    pub(super) last_kernel_look: u64,
    /// What it said has filled all the room that there was.
    pub(super) kernel_filled: bool,
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
    left: Vec<Left>,
    /// Numbers of registrations that were made cold while the peer held something back.
    corked: Vec<u32>,
}

/// A connection that was brought back to TCP without a byte that would lead after who did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) fd: i32,
    pub(super) slot: u32,
    /// It was passed over, so nothing was told of it.
    untold: bool,
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

/// What `epoll_ctl` comes to: done, failed, or to be done by the kernel.
pub(super) type Control = Result<(), Option<Errno>>;

impl Registrations {
    /// Of the set with this number.
    pub(super) fn of_set(number: u32) -> Self {
        Self { bells: SetBells::of_set(number), ..Self::default() }
    }

    pub(super) fn epfd(&self) -> Option<i32> {
        self.epfd
    }

    /// The kernel has something to tell, or may have: the next call asks it, whatever the rings have.
    pub(super) fn look_soon(&mut self) {
        self.last_kernel_look = 0;
    }

    /// The kernel may have something to tell of a connection that is not lifted.
    pub(super) fn look_soon_unless(&mut self, lifted: bool) {
        if !lifted {
            self.look_soon();
        }
    }

    /// Whether `fd` is registered as the connection `slot`.
    pub(super) fn knows(&self, fd: i32, slot: u32) -> bool {
        let entry = self.by_fd.get(fd).and_then(|number| self.entries[number as usize].as_ref());
        entry.is_some_and(|entry| entry.slot == slot)
    }

    /// Whether `fd` is registered as the connection `slot`, and lifted.
    pub(super) fn has_lifted(&self, fd: i32, slot: u32) -> bool {
        let entry = self.by_fd.get(fd).and_then(|number| self.entries[number as usize].as_ref());
        entry.is_some_and(|entry| entry.slot == slot && entry.lifted)
    }

    /// Whether the program has `fd` registered, as the connection `slot`.
    pub(super) fn has_active(&self, fd: i32, slot: u32) -> bool {
        let entry = self.by_fd.get(fd).and_then(|number| self.entries[number as usize].as_ref());
        entry.is_some_and(|entry| entry.slot == slot && entry.active)
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
        self.look_soon();
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

    /// The number of the registration, if it is new.
    pub(super) fn add(
        &mut self,
        epfd: i32,
        fd: i32,
        slot: u32,
        lifted: bool,
        events: u32,
        data: u64,
    ) -> Result<Option<u32>, Option<Errno>> {
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

    pub(super) fn modify(&mut self, epfd: i32, fd: i32, events: u32, data: u64) -> Control {
        self.epfd = Some(epfd);
        let Some(number) = self.by_fd.get(fd) else { return Err(None) };
        self.tell(epfd, number);
        let entry = self.entries[number as usize].as_mut().expect("the index names live entries");
        entry.arming = false;
        if !entry.lifted {
            kernel::epoll_ctl(epfd, libc::EPOLL_CTL_MOD, fd, events, data).map_err(Some)?;
            entry.want(events, data);
            entry.told = (events, data);
            return Ok(());
        }
        if !entry.active {
            return Err(Some(Errno(libc::ENOENT)));
        }
        entry.want(events, data);
        self.heat(number);
        Ok(())
    }

    pub(super) fn delete(&mut self, epfd: i32, fd: i32) -> Control {
        let Some(number) = self.by_fd.get(fd) else { return Err(None) };
        self.tell(epfd, number);
        let entry = self.entries[number as usize].as_mut().expect("the index names live entries");
        if !entry.lifted {
            kernel::epoll_ctl(epfd, libc::EPOLL_CTL_DEL, fd, 0, 0).map_err(Some)?;
            entry.active = false;
            return Ok(());
        }
        if !std::mem::replace(&mut entry.active, false) {
            return Err(Some(Errno(libc::ENOENT)));
        }
        Ok(())
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
            entry.seen_tail = 0;
            self.lifted += 1;
            self.heat(number);
        }
    }

    /// Whether the program is just changing the registration.
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
        // Who arms it may be the one who was told last: nobody else is before it is armed.
        entry.spent |= entry.arming && entry.events & ONE_SHOT != 0;
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
        self.look_soon();
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
}
