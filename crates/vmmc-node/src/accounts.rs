//! What the users of the host's service may take of it, so that none leaves nothing for the others.
//!
//! Nothing is booked: what a user has is counted when somebody asks, so no account can get out of step. The service of one user
//! has no accounts, nor have root and the service's own user in the host's.

use std::collections::HashMap;

use vmmc_os::user_id;

use crate::clients::{Client, Clients};
use crate::policy::Limits;

/// Messages of one user read before the others have their turn.
const TURN: u32 = 128;

/// The limits, and who has had its turn.
#[derive(Debug)]
pub(crate) struct Accounts {
    limits: Option<Limits>,
    spoken: HashMap<u32, u32>,
}

/// What a user may have a limited number of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Item {
    Process,
    Export,
    Import,
    Pair,
    Offer,
}

impl Accounts {
    /// Of the host's service; without limits, of one user's.
    pub(crate) fn new(limits: Option<Limits>) -> Self {
        Self { limits, spoken: HashMap::new() }
    }

    /// The limits of this user.
    pub(crate) fn limits(&self, uid: u32) -> Option<&Limits> {
        self.limits.as_ref().filter(|_| is_stranger(uid))
    }

    /// Whether the user may have one more.
    pub(crate) fn admits(&self, clients: &Clients, uid: u32, item: Item) -> bool {
        let Some(limits) = self.limits(uid) else { return true };
        let (most, of): (u32, fn(&Client) -> usize) = match item {
            Item::Process => (limits.processes, |_| 1),
            Item::Export => (limits.exports, |client| client.exports.len()),
            Item::Import => (limits.imports, |client| client.imports.len()),
            Item::Pair => (limits.pairs, |client| client.holds.len()),
            Item::Offer => (limits.offers, |client| client.offers.len()),
        };
        clients.of_user(uid).map(of).sum::<usize>() < most as usize
    }

    /// Whether so many bytes that are kept for the user are too many.
    pub(crate) fn is_over(&self, uid: u32, bytes: u64) -> bool {
        self.limits(uid).is_some_and(|limits| bytes > limits.unread_bytes)
    }

    /// One more message of the user is read, if it is still its turn.
    pub(crate) fn may_speak(&mut self, uid: u32) -> bool {
        if self.limits(uid).is_none() {
            return true;
        }
        let spoken = self.spoken.entry(uid).or_default();
        *spoken += 1;
        *spoken <= TURN
    }

    /// Everybody may speak again.
    pub(crate) fn next_turn(&mut self) {
        self.spoken.clear();
    }
}

/// Whether a user is neither root nor the service's own.
pub(crate) fn is_stranger(uid: u32) -> bool {
    uid != 0 && uid != user_id()
}
