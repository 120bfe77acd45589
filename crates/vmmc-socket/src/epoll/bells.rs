//! Bells in one epoll object that several of its connections share.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{BELL_EVENTS, marked_bell};
use crate::bells::{Seat, SharedBell};
use crate::{kernel, layer};

/// The shared bells of a set.
#[derive(Debug, Default)]
pub(super) struct SetBells {
    set: u32,
    /// By the number that the kernel's data has.
    bells: Vec<Option<SetBell>>,
}

#[derive(Debug)]
struct SetBell {
    bell: Arc<SharedBell>,
    /// This set in this process, as it has claimed the marks.
    listener: u64,
    /// The registration at each place, plus one.
    at_place: Vec<u32>,
    taken: usize,
}

/// What a ring says of a registration.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rung {
    /// It was rung for.
    Marked(u32),
    /// It may have been: others hear the bell too, so nobody takes the marks.
    Perhaps(u32),
}

impl SetBells {
    pub(super) fn of_set(set: u32) -> Self {
        Self { set, bells: Vec::new() }
    }

    fn listener(&self) -> u64 {
        (u64::from(layer::process_number()) << 32) | (u64::from(self.set) + 1)
    }

    /// A registration sits down, whose bell is heard from now on.
    pub(super) fn sit(&mut self, epfd: i32, seat: Seat, registration: u32) -> (u32, u32) {
        let is_it = |known: &Option<SetBell>| {
            known.as_ref().is_some_and(|known| Arc::ptr_eq(&known.bell, &seat.bell))
        };
        let at = match self.bells.iter().position(is_it) {
            Some(at) => at,
            None => self.listen(epfd, seat.bell),
        };
        let place = seat.place as usize;
        if let Some(known) = &mut self.bells[at] {
            if known.at_place.len() <= place {
                known.at_place.resize(place + 1, 0);
            }
            known.at_place[place] = registration + 1;
            known.taken += 1;
        }
        (at as u32, seat.place)
    }

    fn listen(&mut self, epfd: i32, bell: Arc<SharedBell>) -> usize {
        let listener = self.listener();
        let at = self.bells.iter().position(Option::is_none).unwrap_or_else(|| {
            self.bells.push(None);
            self.bells.len() - 1
        });
        // Before the first ring: whoever takes the marks now takes none of this set's.
        bell.marks().claim(listener);
        let data = marked_bell(at as u32);
        let _ = kernel::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, bell.fd(), BELL_EVENTS, data);
        self.bells[at] = Some(SetBell { bell, listener, at_place: Vec::new(), taken: 0 });
        at
    }

    /// A registration leaves its seat. A bell at which none sits is heard no more.
    pub(super) fn rise(&mut self, epfd: i32, (at, place): (u32, u32)) {
        let mine = self.listener();
        let Some(entry) = self.bells.get_mut(at as usize) else { return };
        let Some(known) = entry else { return };
        if let Some(registration) = known.at_place.get_mut(place as usize) {
            *registration = 0;
        }
        known.taken -= 1;
        if known.taken > 0 {
            return;
        }
        // An inherited object is the parent's too, who has other connections at this bell.
        if known.listener == mine {
            known.bell.marks().renounce(mine);
            let _ = kernel::epoll_ctl(epfd, libc::EPOLL_CTL_DEL, known.bell.fd(), 0, 0);
        }
        *entry = None;
    }

    /// The set is no more.
    pub(super) fn clear(&mut self) {
        let mine = self.listener();
        for known in self.bells.drain(..).flatten().filter(|known| known.listener == mine) {
            known.bell.marks().renounce(mine);
        }
    }

    /// The registrations that a ring may be about.
    pub(super) fn rung(&self, bell: u32) -> SmallVec<[Rung; 16]> {
        let mut rung = SmallVec::new();
        let Some(Some(known)) = self.bells.get(bell as usize) else { return rung };
        let marks = known.bell.marks();
        let at = |registration: &u32| registration.checked_sub(1);
        if !marks.is_claimed_by(self.listener()) {
            rung.extend(known.at_place.iter().filter_map(at).map(Rung::Perhaps));
            return rung;
        }
        marks.take(|place| {
            rung.extend(known.at_place.get(place as usize).and_then(at).map(Rung::Marked));
        });
        rung
    }
}
