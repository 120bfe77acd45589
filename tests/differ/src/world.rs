//! What the kernel would know while a program runs: as much of it as decides whether a step's answer can be told in
//! advance from the steps before it. The answers themselves are nobody's business here; the kernel gives them.

mod admission;
mod effects;
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

    /// Whether closing the end resets the connection.
    fn aborts(&self, number: usize) -> bool {
        let end = &self.ends[number];
        let over = end.reset || end.finished && end.ended;
        !over && (end.unread > 0 || end.lingers_zero)
    }
}
