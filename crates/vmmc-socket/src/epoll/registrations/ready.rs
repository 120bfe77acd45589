//! Which of the connections are looked at, and what is told of them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use vmmc::stream::FIN;

use super::{Left, Registrations};
use crate::epoll::bells::Rung;
use crate::epoll::registration::{ALWAYS, EDGE, IN, ONE_SHOT, OUT, RDHUP};
use crate::slot::{self, Phase, Way};
use crate::{kernel, local, repeat, tcp};

impl Registrations {
    /// A bell or the TCP socket of the registration has something to say.
    pub(in crate::epoll) fn stir(&mut self, number: u32, events: u32) {
        let Some(Some(entry)) = self.entries.get_mut(number as usize) else { return };
        if !entry.lifted {
            return;
        }
        // The two descriptors carry the same mark, and only TCP says more than IN; a bell without news looks the same as a byte
        // on TCP that has no room, so an empty ring is the reason to look there, or bytes that come before the ring's.
        let slot = slot::get(entry.slot);
        let ends = local::get(entry.slot).ends();
        let ring = ends.is_some_and(|ends| {
            slot.inward.stream.stirred(ends.mine) || ends.mine.corked_for().is_some()
        });
        let bytes_on_tcp = || slot.inward.way() == Way::Tcp && kernel::unread(entry.fd) > 0;
        let tcp = events & !IN != 0 || bytes_on_tcp();
        let news = if tcp { events & !OUT != 0 } else { !ring };
        if news {
            slot.look.store(true, Ordering::Release);
        }
        let old = ends.is_some_and(|ends| {
            events & !(IN | OUT) == 0 && repeat::nothing_else(entry.fd, slot, ends)
                || entry.has_ended(events, slot, ends)
        });
        if tcp && !old {
            entry.fresh = true;
            // Its peer may be just about to say the same in the ring; unless it is this side that does not listen any more.
            let own = slot.deaf.load(Ordering::Relaxed) && tcp::established(entry.fd);
            entry.seen_tail |= if events & RDHUP != 0 && !own { FIN } else { 0 };
        }
        if entry.peer_has_left() {
            self.left.push(Left { fd: entry.fd, slot: entry.slot, untold: false });
        }
        self.heat(number);
    }

    /// A bell that several registrations share was rung.
    pub(in crate::epoll) fn hear(&mut self, bell: u32) {
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
        if entry.peer_has_left() {
            self.left.push(Left { fd: entry.fd, slot: entry.slot, untold: false });
        }
        self.heat(number);
    }

    /// The bell was silenced by somebody who does not wait on this set, for whom it may have been rung.
    pub(in crate::epoll) fn unhear(&mut self, slot: u32, number: u32) {
        if self.own(number, slot).is_some_and(|entry| entry.lifted && entry.active) {
            self.heat(number);
        }
    }

    pub(super) fn heat(&mut self, number: u32) {
        if let Some(entry) = &mut self.entries[number as usize] {
            entry.idle = 0;
            if !entry.hot {
                entry.hot = true;
                self.hot.push(number);
            }
        }
    }

    /// Whether there is anything to look at.
    pub(in crate::epoll) fn hot(&self) -> bool {
        !self.hot.is_empty()
    }

    /// Whether `collect` would report something.
    pub(in crate::epoll) fn anything(&self) -> bool {
        self.hot.iter().any(|&number| {
            let entry = self.entries[number as usize].filter(|entry| entry.active && !entry.spent);
            entry.is_some_and(|mut probe| probe.report() != 0)
        })
    }

    /// Whether there is something to report of the connection; if not, the peer is told again that this side sleeps.
    pub(in crate::epoll) fn has_news(&mut self, slot: u32, number: u32) -> bool {
        let entry = self.own(number, slot).map(|entry| *entry);
        let entry = entry.filter(|entry| entry.lifted && entry.active && !entry.spent);
        entry.is_some_and(|mut probe| !probe.cool())
    }

    /// The processor of some hot peer, plus one.
    pub(in crate::epoll) fn peer_processor(&self) -> u32 {
        let entry = self.hot.first().and_then(|&number| self.entries[number as usize].as_ref());
        let ends = entry.and_then(|entry| local::get(entry.slot).ends());
        ends.map_or(0, |ends| ends.mine.cpu.load(Ordering::Relaxed))
    }

    /// Looks once at each hot registration, and reports up to `most` that have events. Where it ends, the next call begins.
    pub(in crate::epoll) fn collect(&mut self, out: *mut libc::epoll_event, most: usize) -> usize {
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
                self.left.push(Left { fd: entry.fd, slot: entry.slot, untold: true });
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
                if entry.idle > PATIENCE && entry.corked_for().is_none() && entry.cool() {
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
    pub(in crate::epoll) fn take_left(&mut self) -> Vec<Left> {
        let mut left = std::mem::take(&mut self.left);
        if left.is_empty() {
            return left;
        }
        left.sort_unstable_by_key(|left| (left.fd, left.slot, !left.untold));
        left.dedup_by_key(|left| (left.fd, left.slot));
        left
    }

    /// What is true of a connection whose registration was given back to the kernel. Of an edge, and of what is told once, the kernel tells by itself.
    pub(in crate::epoll) fn on_tcp(&mut self, left: &Left) -> Option<libc::epoll_event> {
        let &Left { fd, slot, untold } = left;
        let number = self.by_fd.get(fd)?;
        let entry = self.own(number, slot)?;
        if !untold || entry.lifted || !entry.active || entry.events & (EDGE | ONE_SHOT) != 0 {
            return None;
        }
        let now = kernel::pending(fd, entry.events as i16) as u16;
        let events = u32::from(now) & (entry.events | ALWAYS);
        (events != 0).then_some(libc::epoll_event { events, u64: entry.data })
    }

    /// Others sleep on the set, and this thread will not look at it: everything is made cold, so that the peers wake them, and they
    /// are woken at once if there is something to report already.
    pub(in crate::epoll) fn leave_to_others(&mut self) {
        self.cool_all();
        let first = self.hot.first().or(self.corked.first());
        let entry = first.and_then(|&number| self.entries[number as usize]);
        if let Some(entry) = entry {
            local::get(entry.slot).ring_own();
        }
    }

    /// For how long a thread may sleep that has made everything cold: nobody rings when what a peer holds back can be read after all.
    pub(in crate::epoll) fn corked_for(&self) -> Option<Duration> {
        let entries = self.corked.iter().filter_map(|&number| self.entries[number as usize]);
        entries.filter_map(|entry| entry.corked_for()).min()
    }

    /// After the sleep, or instead of it: what was held back is looked at again.
    pub(in crate::epoll) fn look_at_corked(&mut self) {
        while let Some(number) = self.corked.pop() {
            self.heat(number);
        }
    }

    /// Makes everything cold. False if something has come meanwhile that `collect` would report.
    pub(in crate::epoll) fn cool_all(&mut self) -> bool {
        let (entries, left, corked) = (&mut self.entries, &mut self.left, &mut self.corked);
        self.hot.retain(|&number| match &mut entries[number as usize] {
            Some(entry) if entry.active && !entry.spent => {
                entry.hot = !entry.cool();
                if entry.corked_for().is_some() {
                    corked.push(number);
                }
                if entry.peer_has_left() {
                    left.push(Left { fd: entry.fd, slot: entry.slot, untold: false });
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
