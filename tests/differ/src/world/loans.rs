//! Memory of a connection on loan from one step to a later one (docs/loans.md): which steps may stand between the two.
//!
//! What the kernel does in place of the loan is the oracle, so between the two steps nobody may do what it would refuse to
//! do: no call moves a direction on that has something on loan.

use super::{End, Object, ROOM, World};
use crate::step::{Action, Actor, PLACES, Place};

/// What is on loan: space for bytes to send, or bytes that have arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loan {
    Reserved,
    Borrowed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lent {
    by: Actor,
    place: Place,
    len: usize,
}

impl End {
    fn lent(&self, loan: Loan) -> Option<Lent> {
        match loan {
            Loan::Reserved => self.reserved,
            Loan::Borrowed => self.borrowed,
        }
    }

    fn lent_mut(&mut self, loan: Loan) -> &mut Option<Lent> {
        match loan {
            Loan::Reserved => &mut self.reserved,
            Loan::Borrowed => &mut self.borrowed,
        }
    }

    /// Whether a receiving call would be told that the direction is busy.
    pub(super) fn withholds(&self, receive: &Action) -> bool {
        let looks_only = matches!(receive, Action::Receive { call, flags, .. }
            if flags.has("PEEK") && *call != "in_place");
        self.borrowed.is_some() && !looks_only
    }
}

impl World {
    /// Where this process has something on loan, and how much.
    pub(crate) fn loan_of(&self, by: Actor, loan: Loan) -> Option<(Place, usize)> {
        let mine = |place: Place| self.lent_at(by, place, loan).map(|lent| (place, lent.len));
        (0..PLACES).find_map(mine)
    }

    fn lent_at(&self, by: Actor, place: Place, loan: Loan) -> Option<Lent> {
        let lent = self.ends[self.end_at(by, place)?].lent(loan)?;
        (lent.by == by && lent.place == place).then_some(lent)
    }

    pub(super) fn can_reserve(&self, number: usize, count: usize) -> bool {
        let (end, peer) = (&self.ends[number], &self.ends[number ^ 1]);
        let open = !end.finished && !end.reset && !peer.closed && !peer.refuses() && !peer.mute;
        open && end.reserved.is_none() && peer.unread + count <= ROOM
    }

    pub(super) fn can_commit(&self, by: Actor, place: Place, count: usize) -> bool {
        let (Some(lent), Some(number)) =
            (self.lent_at(by, place, Loan::Reserved), self.end_at(by, place))
        else {
            return false;
        };
        let end = &self.ends[number];
        // Where the direction has ended, committing is an error; which one, and whether of nothing too, is nobody's promise.
        let open = !end.finished && !end.reset && !self.ends[number ^ 1].refuses();
        open && count <= lent.len && self.takes(number, "in_place", count)
    }

    pub(super) fn can_borrow(&self, number: usize) -> bool {
        // How many bytes are left may not be known after a reset.
        let end = &self.ends[number];
        end.borrowed.is_none() && end.unread > 0 && !end.reset
    }

    pub(super) fn can_release(&self, by: Actor, place: Place, count: usize) -> bool {
        self.lent_at(by, place, Loan::Borrowed).is_some_and(|lent| count <= lent.len)
    }

    /// A loan outlives its place only together with all others that refer to the connection.
    pub(super) fn lends_elsewhere(&self, by: Actor, place: Place) -> bool {
        let lent = |loan| self.lent_at(by, place, loan).is_some();
        let others = self.at(by, place).is_some_and(|object| self.holders(object) > 1);
        others && (lent(Loan::Reserved) || lent(Loan::Borrowed))
    }

    pub(super) fn lend(&mut self, by: Actor, place: Place, count: usize, loan: Loan) {
        let Some(Object::End(number)) = self.at(by, place) else { return };
        let end = &mut self.ends[number];
        let len = if loan == Loan::Borrowed { count.min(end.unread) } else { count };
        *end.lent_mut(loan) = Some(Lent { by, place, len });
    }

    pub(super) fn give_back(&mut self, by: Actor, place: Place, loan: Loan) {
        if let Some(Object::End(number)) = self.at(by, place) {
            *self.ends[number].lent_mut(loan) = None;
        }
    }

    /// A process's loans end with it, and with its memory.
    pub(super) fn forget_loans(&mut self, by: Actor) {
        for end in &mut self.ends {
            for loan in [Loan::Reserved, Loan::Borrowed] {
                let lent = end.lent_mut(loan);
                *lent = lent.filter(|lent| lent.by != by);
            }
        }
    }
}
