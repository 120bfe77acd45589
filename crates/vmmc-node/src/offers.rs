//! Ends of TCP connections that wait for their other end.

use std::collections::HashMap;
use std::net::SocketAddr;

use vmmc_os::ConnectionIdentity;
use vmmc_proto::OfferId;

use crate::clients::ClientKey;

/// A connection as one end sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct OfferKey {
    network: u64,
    local: SocketAddr,
    peer: SocketAddr,
}

impl OfferKey {
    pub(crate) fn of(identity: &ConnectionIdentity) -> Self {
        Self { network: identity.network, local: identity.local, peer: identity.peer }
    }

    /// Whether it is of another network.
    pub(crate) fn is_apart(self, other: Self) -> bool {
        self.network != other.network
    }

    /// The ports of the two ends.
    pub(crate) fn ports(self) -> [u16; 2] {
        [self.local.port(), self.peer.port()]
    }

    /// The same connection as the other end sees it.
    pub(crate) fn reversed(self) -> Self {
        Self { network: self.network, local: self.peer, peer: self.local }
    }
}

/// An end that was shown. No descriptor is kept: that would delay its closing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) client: ClientKey,
    pub(crate) uid: u32,
    pub(crate) id: OfferId,
    pub(crate) cookie: u64,
}

/// All waiting offers.
#[derive(Debug, Default)]
pub(crate) struct Offers(HashMap<OfferKey, Offer>);

impl Offers {
    /// Most waiting offers of one process; the oldest goes when there are more.
    pub(crate) const MAX_OF_PROCESS: usize = 16 * 1024;

    /// The other end, if it waits: taken out. A socket does not match itself.
    pub(crate) fn take_match(&mut self, key: OfferKey, offer: &Offer) -> Option<Offer> {
        let other = self.0.get(&key.reversed())?;
        if other.cookie == offer.cookie {
            return None;
        }
        self.0.remove(&key.reversed())
    }

    /// Waits; an older offer with the same addresses belongs to a connection that is gone and is replaced.
    pub(crate) fn wait(&mut self, key: OfferKey, offer: Offer) {
        self.0.insert(key, offer);
    }

    /// Forgets an offer if it is this client's.
    pub(crate) fn forget(&mut self, key: OfferKey, client: ClientKey) {
        if self.0.get(&key).is_some_and(|offer| offer.client == client) {
            self.0.remove(&key);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
