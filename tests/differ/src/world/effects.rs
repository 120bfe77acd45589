//! What becomes of the world by a step.

use super::{Loan, Object, Registration, World, is_peek_for_all};
use crate::step::{Action, Actor, Names, PLACES, Place, Step};

impl World {
    /// Takes the step.
    pub(crate) fn apply(&mut self, step: &Step) {
        let by = step.by;
        match &step.action {
            Action::Send { place, count, .. } => self.send(by, *place, *count),
            Action::Receive { place, call, count, flags } => {
                if let Some(end) = self.end_at(by, *place).filter(|_| is_peek_for_all(&step.action))
                {
                    self.unsettle(end);
                }
                if let Some(end) = self.end_at(by, *place).filter(|_| !flags.has("PEEK")) {
                    // An error may have come first.
                    if *call == "recvmmsg" && self.ends[end].reset {
                        return;
                    }
                    let end = &mut self.ends[end];
                    end.unread -= end.unread.min(*count);
                }
            }
            Action::Reserve { place, count } => self.lend(by, *place, *count, Loan::Reserved),
            Action::Borrow { place, count } => self.lend(by, *place, *count, Loan::Borrowed),
            Action::Commit { place, count, .. } => {
                self.give_back(by, *place, Loan::Reserved);
                if *count > 0 {
                    self.send(by, *place, *count);
                }
            }
            Action::Release { place, count } => {
                self.give_back(by, *place, Loan::Borrowed);
                if let Some(end) = self.end_at(by, *place) {
                    self.ends[end].unread -= *count;
                }
            }
            Action::EpollCreate { place } => {
                let set = Object::Set(self.sets);
                self.sets += 1;
                self.put(by, *place, Some(set));
            }
            Action::EpollCtl { set, what, place, events } => {
                self.unsettle_inside(by, *set);
                self.register(by, *set, what, *place, events);
            }
            Action::Shutdown { place, what } => self.shutdown(by, *place, what),
            Action::Linger { place, on } => {
                if let Some(end) = self.end_at(by, *place) {
                    self.ends[end].lingers_zero = *on;
                }
            }
            Action::Nonblocking { place, on, .. } => {
                if let Some(end) = self.end_at(by, *place) {
                    self.ends[end].nonblocking = *on;
                }
            }
            Action::Close { place } => self.put(by, *place, None),
            Action::Dup { from, to, .. } => self.put(by, *to, self.at(by, *from)),
            Action::Pass { place, to, into } => {
                if let Some(end) = self.end_at(by, *place) {
                    self.unsettle(end);
                }
                self.put(*to, *into, self.at(by, *place));
            }
            Action::Fork { child } => {
                let sets = self.tables[by].into_iter().flatten().filter_map(|held| match held {
                    Some(Object::Set(set)) => Some(set),
                    _ => None,
                });
                self.inherited.extend(sets);
                self.tables[*child] = self.tables[by];
                self.parents[*child] = Some(by);
            }
            Action::Exec => {
                self.unsettle_all(by);
                self.forget_loans(by);
            }
            Action::Spawn => self.unsettle_all(by),
            Action::EpollWait { set, .. } => self.unsettle_inside(by, *set),
            Action::Leave { .. } => {
                self.forget_loans(by);
                for place in 0..PLACES {
                    self.put(by, place, None);
                }
                self.tables[by] = None;
                self.parents.iter_mut().filter(|one| **one == Some(by)).for_each(|one| *one = None);
            }
            Action::Sleep { call, wakers } => {
                wakers.iter().for_each(|waker| self.apply(waker));
                self.apply(&Step { by, action: (**call).clone() });
            }
            Action::Stream { place, .. } => {
                // Nothing of it is left, but it was news.
                if let Some(end) = self.end_at(by, *place) {
                    self.ends[end ^ 1].news = true;
                }
            }
            Action::Poll { .. } | Action::Ask { .. } | Action::Signal { .. } => {}
        }
    }

    fn send(&mut self, by: Actor, place: Place, count: usize) {
        let Some(end) = self.end_at(by, place) else { return };
        let peer = end ^ 1;
        if self.ends[end].finished || self.ends[end].reset {
            return;
        }
        if self.ends[peer].refuses() {
            for end in [end, peer] {
                self.ends[end].reset = true;
                self.ends[end].news = true;
            }
        } else {
            self.ends[peer].unread += count;
            self.ends[peer].news = true;
        }
    }

    fn register(&mut self, by: Actor, set: Place, what: &str, place: Place, events: &Names) {
        let (Some(set), Some(end)) = (self.set_at(by, set), self.end_at(by, place)) else {
            return;
        };
        let new = Registration {
            set,
            end,
            place,
            by,
            input: events.has("IN"),
            output: events.has("OUT"),
            oneshot: events.has("ONESHOT"),
            edge: events.has("ET"),
        };
        let same = |one: &Registration| one.set == set && one.end == end && one.place == place;
        let there = self.registrations.iter().position(same);
        match (what, there) {
            ("add", None) => self.registrations.push(new),
            ("mod", Some(n)) => self.registrations[n] = new,
            ("del", Some(n)) => {
                self.registrations.remove(n);
            }
            _ => {}
        }
    }

    fn shutdown(&mut self, by: Actor, place: Place, what: &str) {
        let Some(end) = self.end_at(by, place) else { return };
        if what != "write" {
            self.ends[end].deaf = true;
        }
        if what != "read" && !self.ends[end].finished && !self.ends[end].reset {
            self.ends[end].finished = true;
            self.ends[end ^ 1].ended = true;
            self.ends[end ^ 1].news = true;
        }
        let unread = self.ends[end].unread + self.ends[end ^ 1].unread > 0;
        self.ends[end].mute |= unread && self.ends[end].refuses();
    }

    /// Puts something, or nothing, in the place of what is there, which is closed.
    fn put(&mut self, actor: Actor, place: Place, object: Option<Object>) {
        let Some(table) = &mut self.tables[actor] else { return };
        let old = std::mem::replace(&mut table[place], object);
        match old {
            Some(gone) if self.holders(gone) == 0 => match gone {
                Object::End(end) => self.close(end),
                Object::Set(set) => self.registrations.retain(|one| one.set != set),
            },
            _ => {}
        }
    }

    /// The connection goes back to TCP.
    fn unsettle(&mut self, end: usize) {
        self.ends[end].restless = true;
        self.ends[end ^ 1].restless = true;
    }

    fn unsettle_all(&mut self, by: Actor) {
        (0..PLACES).for_each(|place| {
            if let Some(end) = self.end_at(by, place) {
                self.unsettle(end);
            }
        });
    }

    /// Looking at a set that was inherited.
    fn unsettle_inside(&mut self, by: Actor, place: Place) {
        let Some(set) = self.set_at(by, place).filter(|set| self.inherited.contains(set)) else {
            return;
        };
        let inside = self.registrations.iter().filter(|one| one.set == set);
        let ends: Vec<usize> = inside.map(|one| one.end).collect();
        ends.into_iter().for_each(|end| self.unsettle(end));
    }

    fn close(&mut self, number: usize) {
        self.registrations.retain(|one| one.end != number);
        let abortive = self.aborts(number);
        let end = &mut self.ends[number];
        end.closed = true;
        if end.reset || end.finished && end.ended {
            return;
        }
        let peer = &mut self.ends[number ^ 1];
        peer.news = true;
        peer.reset |= abortive;
        peer.ended |= !abortive;
    }
}
