//! Which steps can be taken: those whose answer depends on the steps before them alone, and that lead to no difference which
//! is documented.

use super::{End, Object, ROOM, World, is_peek_for_all};
use crate::step::{Action, Actor, PLACES, Place, Step};

/// A loan of as much as is waited for has got nothing until it has all, so that a signal does not end it half-way.
fn is_loan_of_all(call: &Action) -> bool {
    matches!(call, Action::Receive { call, flags, .. } if *call == "in_place" && flags.has("WAITALL"))
}

impl World {
    /// Whether the step can be taken now, and its answer depends on the steps before it alone.
    pub(crate) fn admits(&self, step: &Step) -> bool {
        self.lives(step.by) && self.admits_action(step.by, &step.action)
    }

    fn admits_action(&self, by: Actor, action: &Action) -> bool {
        let is_end = |place: &Place| self.end_at(by, *place).is_some();
        match action {
            Action::Send { place, call, count, .. } => {
                self.end_at(by, *place).is_some_and(|end| self.can_send(end, call, *count))
            }
            Action::Receive { place, .. } => {
                self.end_at(by, *place).is_some_and(|end| self.can_receive(end, action))
                    && !self.sleeps(by, action)
            }
            Action::Reserve { place, count } => {
                self.end_at(by, *place).is_some_and(|end| self.can_reserve(end, *count))
            }
            Action::Commit { place, count, .. } => self.can_commit(by, *place, *count),
            Action::Borrow { place, .. } => {
                self.end_at(by, *place).is_some_and(|end| self.can_borrow(end))
            }
            Action::Release { place, count } => self.can_release(by, *place, *count),
            Action::Stream { place, to, into, .. } => self.can_stream(by, *place, *to, *into),
            Action::Poll { wait, wanted, .. } => {
                !wait && wanted.iter().all(|(place, _)| is_end(place))
            }
            Action::EpollCreate { place } => self.at(by, *place).is_none() && self.sets < 3,
            Action::EpollCtl { set, place, events, .. } => {
                let calm = |end: &End| !end.restless && !self.is_inherited(by, *set);
                // Documented: a program's own shutdown is no edge to it, nor is what the kernel makes of it later.
                let told = |end: usize| {
                    let end = &self.ends[end];
                    !(end.finished && events.has("ET"))
                        && (calm(end) || !events.has("ET") && !events.has("ONESHOT"))
                };
                self.can_look_at(by, *set)
                    && self
                        .end_at(by, *place)
                        .is_some_and(|end| self.can_go_to_others(end) && told(end))
            }
            Action::EpollWait { set, wait, .. } => !wait && self.can_look_at(by, *set),
            Action::Shutdown { place, .. } => {
                self.end_at(by, *place).is_some_and(|end| self.can_shut_down(end))
            }
            Action::Ask { place, .. }
            | Action::Linger { place, .. }
            | Action::Nonblocking { place, .. } => is_end(place),
            Action::Close { place } => self.at(by, *place).is_some() && self.can_close(by, *place),
            Action::Dup { call, from, to } => {
                from != to
                    && self.at(by, *from).is_some()
                    && (self.at(by, *to).is_none() || matches!(*call, "dup2" | "dup3"))
                    && self.can_close(by, *to)
            }
            Action::Pass { place, to, into } => {
                self.end_at(by, *place).is_some_and(|end| self.can_go_to_others(end))
                    && self.lives(*to)
                    && self.at(*to, *into).is_none()
            }
            Action::Fork { child } => *child >= 2 && !self.lives(*child),
            Action::Exec | Action::Spawn => (0..PLACES)
                .filter_map(|place| self.end_at(by, place))
                .all(|end| self.can_go_to_others(end)),
            Action::Leave { .. } => by >= 2 && self.can_leave(by),
            Action::Signal { .. } => false,
            Action::Sleep { call, wakers } => self.can_be_woken(by, call, wakers),
        }
    }

    fn can_send(&self, number: usize, call: &str, count: usize) -> bool {
        self.ends[number].reserved.is_none() && self.takes(number, call, count)
    }

    /// Whether the connection gives a sending call an answer that does not depend on time.
    pub(super) fn takes(&self, number: usize, call: &str, count: usize) -> bool {
        let (end, peer) = (&self.ends[number], &self.ends[number ^ 1]);
        // The second message may or may not meet the answer to the first.
        let in_time = call != "sendmmsg" || !peer.refuses();
        // To an end that does not listen any more the peer's end cannot be seen to arrive.
        let seen = !(end.deaf && peer.closed);
        end.finished || end.reset || in_time && seen && !peer.mute && peer.unread + count <= ROOM
    }

    /// Documented: what is unread when the peer is gone, and its socket with it, cannot come back to TCP.
    fn can_be_lowered(&self, end: usize) -> bool {
        let end = &self.ends[end];
        end.unread == 0 || !end.reset
    }

    /// Documented: the kernel does not know of an end as long as this side has bytes to read that it does not listen for any
    /// more, and so cannot keep another program from sending behind it.
    fn can_go_to_others(&self, number: usize) -> bool {
        let end = &self.ends[number];
        let withheld = end.finished && end.deaf && end.unread > 0;
        // Documented: edge-triggered and one-shot registrations do not survive as they were.
        let delicate = self
            .registrations
            .iter()
            .any(|one| (one.end == number || one.end == number ^ 1) && (one.oneshot || one.edge));
        self.can_be_lowered(number) && !withheld && !delicate && !self.ends_once_more(number)
    }

    /// Whether the connection gives a receiving call an answer that is the same on both ways, and may do to it what the layer does then.
    fn can_receive(&self, number: usize, call: &Action) -> bool {
        !self.ends[number].withholds(call)
            && (!is_peek_for_all(call) || self.can_go_to_others(number))
    }

    /// Whether a receiving call would find less than it waits for.
    fn sleeps(&self, by: Actor, action: &Action) -> bool {
        let Action::Receive { place, count, flags, .. } = action else { return false };
        let Some(number) = self.end_at(by, *place) else { return false };
        let end = &self.ends[number];
        let over = end.ended || end.deaf || end.reset;
        let wanted = if flags.has("WAITALL") { *count } else { 1 };
        !over && end.unread < wanted && !end.nonblocking && !flags.has("DONTWAIT")
    }

    fn can_stream(&self, by: Actor, place: Place, to: Actor, into: Place) -> bool {
        let (Some(from), Some(end)) = (self.end_at(by, place), self.end_at(to, into)) else {
            return false;
        };
        let free = |end: &End| !end.finished && !end.deaf && !end.reset && !end.ended;
        from ^ 1 == end
            && by != to
            && free(&self.ends[from])
            && free(&self.ends[end])
            && self.ends[end].unread == 0
            && self.ends[from].reserved.is_none()
            // How often room is short, and so how often it is news that there is some, depends on time.
            && !self.registrations.iter().any(|one| one.end == from && one.output)
    }

    /// Everything in the set has to be held by who looks, who has to wait for its arrival. And documented: a set that
    /// several processes have is not the same to all of them.
    fn can_look_at(&self, by: Actor, place: Place) -> bool {
        self.set_at(by, place).is_some_and(|set| {
            let object = Object::Set(set);
            let mut inside = self.registrations.iter().filter(|one| one.set == set);
            let inherited = self.inherited.contains(&set);
            self.holders(object) == self.held_by(by, object)
                && inside.all(|one| {
                    self.held_by(by, Object::End(one.end)) > 0
                        && (!inherited || self.can_go_to_others(one.end))
                })
        })
    }

    fn is_inherited(&self, by: Actor, place: Place) -> bool {
        self.set_at(by, place).is_some_and(|set| self.inherited.contains(&set))
    }

    /// Documented: an entry of an epoll object is gone with the last descriptor of the process, though another process
    /// still holds the connection; and it tells nothing of TCP when its own number is closed.
    fn can_close(&self, by: Actor, place: Place) -> bool {
        let Some(end) = self.end_at(by, place) else { return true };
        if self.lends_elsewhere(by, place) {
            return false;
        }
        let object = Object::End(end);
        let peer = &self.ends[end ^ 1];
        // Of a reset nothing can be seen at once where everything has ended already.
        if self.holders(object) == 1 && peer.deaf && peer.finished && self.aborts(end) {
            return false;
        }
        let last = self.held_by(by, object) == 1;
        !self
            .registrations
            .iter()
            .any(|one| one.end == end && self.holders(object) > 1 && (last || one.place == place))
    }

    /// Documented: a program's own shutdown is no edge to it.
    fn can_shut_down(&self, end: usize) -> bool {
        !self.registrations.iter().any(|one| one.end == end && one.edge)
    }

    /// Documented: the end of a direction that was shut down before may be reported as one more edge, where the kernel learns
    /// of it.
    fn ends_once_more(&self, end: usize) -> bool {
        self.ends[end].finished
            && self.registrations.iter().any(|one| one.end == end ^ 1 && one.edge)
    }

    fn can_leave(&self, by: Actor) -> bool {
        (0..PLACES).all(|place| self.can_close(by, place))
            && !self.registrations.iter().any(|one| {
                let (end, set) = (Object::End(one.end), Object::Set(one.set));
                one.by == by
                    && self.holders(end) > self.held_by(by, end)
                    && self.holders(set) > self.held_by(by, set)
            })
    }

    fn can_be_woken(&self, by: Actor, call: &Action, wakers: &[Step]) -> bool {
        let watched: Vec<usize> = match call {
            Action::Receive { place, .. } if self.sleeps(by, call) => {
                let end = self.end_at(by, *place);
                end.filter(|end| self.can_receive(*end, call)).into_iter().collect()
            }
            Action::Poll { wait: true, wanted, .. } => {
                wanted.iter().filter_map(|(place, _)| self.end_at(by, *place)).collect()
            }
            Action::EpollWait { set, wait: true, .. } => {
                let Some(set) = self.set_at(by, *set).filter(|_| self.can_look_at(by, *set)) else {
                    return false;
                };
                let mut inside = self.registrations.iter().filter(|one| one.set == set);
                if !inside.all(|one| one.input && !one.output && !one.oneshot) {
                    return false;
                }
                let inside = self.registrations.iter().filter(|one| one.set == set);
                inside.map(|one| one.end).collect()
            }
            _ => return false,
        };
        let receives = matches!(call, Action::Receive { .. });
        if watched.is_empty() || !receives && !watched.iter().all(|end| self.quiet(*end)) {
            return false;
        }
        let mut after = self.clone();
        for (n, waker) in wakers.iter().enumerate() {
            let woken = match (call, &waker.action) {
                // A signal ends the call, unless handlers restart it.
                (_, Action::Signal { to }) if *to == by => {
                    if is_peek_for_all(call) || is_loan_of_all(call) {
                        return false;
                    }
                    // A call that has got something returns it, whatever handlers do.
                    let got = receives && watched.iter().any(|end| after.ends[*end].unread > 0);
                    if !(receives && self.restarts) || got {
                        return n + 1 == wakers.len();
                    }
                    continue;
                }
                _ if waker.by == by || !after.admits(waker) => return false,
                (Action::Receive { .. }, _) => {
                    after.apply(waker);
                    !after.sleeps(by, call)
                }
                _ => {
                    after.apply(waker);
                    watched.iter().any(|end| !after.quiet(*end))
                }
            };
            if woken {
                return n + 1 == wakers.len();
            }
        }
        false
    }
}
