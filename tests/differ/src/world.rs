//! What the kernel would know while a program runs: as much of it as decides whether a step's answer can be told in
//! advance from the steps before it. The answers themselves are nobody's business here; the kernel gives them.

mod loans;

pub(crate) use loans::Loan;

use crate::step::{Action, Actor, NAMES, PLACES, Place, Step};
use loans::Lent;

/// Bytes that may lie unread in a direction, so that no sending call ever waits for room.
const ROOM: usize = 48_000;

/// What a descriptor refers to: one end of a connection (its peer is the number with the last bit flipped), or an
/// epoll object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Object {
    End(usize),
    Set(usize),
}

#[derive(Debug, Clone, Default)]
pub(crate) struct End {
    pub(crate) unread: usize,
    /// The peer's direction has ended.
    pub(crate) ended: bool,
    /// This end's own sending direction was shut down.
    finished: bool,
    /// This end's receiving direction was shut down.
    deaf: bool,
    pub(crate) reset: bool,
    closed: bool,
    pub(crate) nonblocking: bool,
    lingers_zero: bool,
    /// Both directions were shut down while bytes were unread: documented, what the peer sends then is not refused.
    mute: bool,
    /// Documented: edge-triggered and one-shot registrations of a connection that is lifted only now, or goes back to TCP, report
    /// once more what they had reported.
    restless: bool,
    /// The peer did something that may not have arrived yet.
    pub(crate) news: bool,
    reserved: Option<Lent>,
    borrowed: Option<Lent>,
}

impl End {
    /// What is sent to it is answered with a reset.
    fn refuses(&self) -> bool {
        self.closed || self.deaf && self.finished
    }
}

/// A look that waits for more beside bytes that it leaves where they are: the layer leaves that to the kernel.
fn is_peek_for_all(call: &Action) -> bool {
    matches!(call, Action::Receive { flags, .. } if flags.has("PEEK") && flags.has("WAITALL"))
}

/// A loan of as much as is waited for has got nothing until it has all, so that a signal does not end it half-way.
fn is_loan_of_all(call: &Action) -> bool {
    matches!(call, Action::Receive { call, flags, .. } if *call == "in_place" && flags.has("WAITALL"))
}

#[derive(Debug, Clone)]
struct Registration {
    set: usize,
    end: usize,
    place: Place,
    by: Actor,
    input: bool,
    output: bool,
    oneshot: bool,
    edge: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) ends: Vec<End>,
    sets: usize,
    /// Sets that a child has got too. Looking at such a one brings what is in it back to TCP.
    inherited: Vec<usize>,
    registrations: Vec<Registration>,
    tables: [Option<[Option<Object>; PLACES]>; NAMES.len()],
    pub(crate) parents: [Option<Actor>; NAMES.len()],
    restarts: bool,
}

/// What has to be seen at an end before a step that looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) place: Place,
    pub(crate) unread: usize,
    pub(crate) events: &'static str,
}

impl World {
    /// `a` and `b` hold the two ends of each connection, at the place of the connection's number; those that are `warm` are lifted.
    pub(crate) fn new(warm: &[bool], restarts: bool) -> Self {
        let mut tables = [const { None }; NAMES.len()];
        for (side, table) in tables.iter_mut().enumerate().take(2) {
            let mut places = [None; PLACES];
            for (n, place) in places.iter_mut().enumerate().take(warm.len()) {
                *place = Some(Object::End(2 * n + side));
            }
            *table = Some(places);
        }
        World {
            ends: warm
                .iter()
                .flat_map(|warm| std::iter::repeat_n(End { restless: !warm, ..End::default() }, 2))
                .collect(),
            sets: 0,
            inherited: Vec::new(),
            registrations: Vec::new(),
            tables,
            parents: [None; NAMES.len()],
            restarts,
        }
    }

    pub(crate) fn lives(&self, actor: Actor) -> bool {
        self.tables[actor].is_some()
    }

    pub(crate) fn at(&self, actor: Actor, place: Place) -> Option<Object> {
        self.tables[actor].and_then(|table| table[place])
    }

    pub(crate) fn end_at(&self, actor: Actor, place: Place) -> Option<usize> {
        match self.at(actor, place) {
            Some(Object::End(end)) => Some(end),
            _ => None,
        }
    }

    fn set_at(&self, actor: Actor, place: Place) -> Option<usize> {
        match self.at(actor, place) {
            Some(Object::Set(set)) => Some(set),
            _ => None,
        }
    }

    fn place_of(&self, actor: Actor, object: Object) -> Option<Place> {
        self.tables[actor].and_then(|table| table.iter().position(|held| *held == Some(object)))
    }

    fn holders(&self, object: Object) -> usize {
        self.tables.iter().flatten().flatten().filter(|held| **held == Some(object)).count()
    }

    fn held_by(&self, actor: Actor, object: Object) -> usize {
        self.tables[actor].iter().flatten().filter(|held| **held == Some(object)).count()
    }

    /// Nothing to read, no end, no error: whoever waits for that sleeps.
    fn quiet(&self, end: usize) -> bool {
        let end = &self.ends[end];
        end.unread == 0 && !end.ended && !end.deaf && !end.reset
    }

    /// The arrivals that `step` depends on; they count as seen from then on.
    pub(crate) fn arrivals(&mut self, step: &Step) -> Vec<Arrival> {
        let by = step.by;
        let mut places: Vec<Place> = match &step.action {
            Action::Send { place, .. }
            | Action::Receive { place, .. }
            | Action::Reserve { place, .. }
            | Action::Commit { place, .. }
            | Action::Borrow { place, .. }
            | Action::Release { place, .. }
            | Action::Stream { place, .. }
            | Action::Shutdown { place, .. }
            | Action::Ask { place, .. }
            | Action::Close { place }
            | Action::Linger { place, .. }
            | Action::Pass { place, .. }
            | Action::EpollCtl { place, .. } => vec![*place],
            Action::Dup { from, to, .. } => vec![*from, *to],
            Action::Poll { wanted, .. } => wanted.iter().map(|(place, _)| *place).collect(),
            Action::EpollWait { set, .. } => self.registered_places(by, *set),
            Action::Leave { .. } | Action::Exec | Action::Spawn => (0..PLACES).collect(),
            Action::Sleep { call, .. } => {
                return self.arrivals(&Step { by, action: (**call).clone() });
            }
            Action::EpollCreate { .. }
            | Action::Nonblocking { .. }
            | Action::Fork { .. }
            | Action::Signal { .. } => Vec::new(),
        };
        places.dedup();
        let mut arrivals = Vec::new();
        for place in places {
            let Some(end) = self.end_at(by, place) else { continue };
            let end = &mut self.ends[end];
            if std::mem::take(&mut end.news) {
                let events = match () {
                    () if end.reset || end.ended && end.finished => "HUP",
                    () if end.ended => "RDHUP",
                    () => "0",
                };
                arrivals.push(Arrival { place, unread: end.unread, events });
            }
        }
        arrivals
    }

    fn registered_places(&self, by: Actor, set: Place) -> Vec<Place> {
        let Some(set) = self.set_at(by, set) else { return Vec::new() };
        let ends = self.registrations.iter().filter(|one| one.set == set).map(|one| one.end);
        ends.filter_map(|end| self.place_of(by, Object::End(end))).collect()
    }

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
    fn takes(&self, number: usize, call: &str, count: usize) -> bool {
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
                let (Some(set), Some(end)) = (self.set_at(by, *set), self.end_at(by, *place))
                else {
                    return;
                };
                let new = Registration {
                    set,
                    end,
                    place: *place,
                    by,
                    input: events.has("IN"),
                    output: events.has("OUT"),
                    oneshot: events.has("ONESHOT"),
                    edge: events.has("ET"),
                };
                let same =
                    |one: &Registration| one.set == set && one.end == end && one.place == *place;
                let there = self.registrations.iter().position(same);
                match (*what, there) {
                    ("add", None) => self.registrations.push(new),
                    ("mod", Some(n)) => self.registrations[n] = new,
                    ("del", Some(n)) => {
                        self.registrations.remove(n);
                    }
                    _ => {}
                }
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

    /// Whether closing the end resets the connection.
    fn aborts(&self, number: usize) -> bool {
        let end = &self.ends[number];
        let over = end.reset || end.finished && end.ended;
        !over && (end.unread > 0 || end.lingers_zero)
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
