//! Ends of connections that addresses cannot bring together: their networks differ (containers), or a translation of addresses
//! lies between them.
//!
//! What a socket says of its addresses proves nothing there: every container may have the same, and whoever has a network
//! namespace of his own can make a socket with any. But the two ends of a connection agree in two numbers of 32 bits: what the
//! one has received up to is what the other has sent, or knows to have arrived; and so in the other direction. Both
//! numbers began at random when the connection was made, and the kernel keeps them to itself and the two ends ([`SequenceReader`]).
//! Two sockets that agree in both *at one reading* are ends of one connection, but for once in 2^62 comparisons; no segment
//! that somebody forges changes what is read, and a translation of addresses leaves the numbers as they are. If bytes are just
//! under way the numbers differ: then they are read again, a little later.

use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use vmmc_os::{Sequence, SequenceError, SequenceReader};
use vmmc_shm::table::Networks;

use crate::clients::ClientKey;
use crate::offers::{Offer, OfferKey};

/// An end that waits to be recognised.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Apart {
    pub(crate) key: OfferKey,
    pub(crate) offer: Offer,
    /// Its process is told when it was not recognised, and will offer it again later.
    pub(crate) told: bool,
    until: Instant,
}

/// All ends that wait to be recognised, and the networks that there are.
#[derive(Debug, Default)]
pub(crate) struct ApartEnds {
    /// How many processes are in which network.
    networks: HashMap<u64, usize>,
    /// Opened when there is a second network.
    reader: Option<Result<SequenceReader, SequenceError>>,
    /// By the sockets' cookies.
    waiting: HashMap<u64, Apart>,
    /// In the order in which they came, all and those of each process; both may name some that no longer wait.
    in_order: VecDeque<u64>,
    of_client: HashMap<ClientKey, VecDeque<u64>>,
    /// Not before, lest looking take a noticeable share of a processor.
    may_look: Option<Instant>,
    next_look: Option<Instant>,
    pause: Duration,
}

impl ApartEnds {
    /// How long an end waits. Then its process is to offer it again, after more traffic.
    const PATIENCE: Duration = Duration::from_secs(2);
    /// Most that wait at a time, all and of one process: the last that came.
    const MAX_WAITING: usize = 4096;
    const MAX_OF_CLIENT: usize = 1024;
    /// Between two looks: at least, and, when nobody new has come, at most.
    const PAUSES: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(100)];
    /// A look may take one part of so many.
    const SHARE: u32 = 20;

    /// A process of this network has come.
    pub(crate) fn enter(&mut self, network: u64) {
        *self.networks.entry(network).or_default() += 1;
        if self.networks.len() > 1 && self.reader.is_none() {
            self.reader = Some(SequenceReader::open());
        }
    }

    /// A process of this network has gone, and its ends with it.
    pub(crate) fn leave(&mut self, network: u64, client: ClientKey) {
        if let Some(count) = self.networks.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                self.networks.remove(&network);
            }
        }
        for cookie in self.of_client.remove(&client).into_iter().flatten() {
            if self.waiting.get(&cookie).is_some_and(|apart| apart.offer.client == client) {
                self.forget(cookie);
            }
        }
    }

    /// Networks in which there are processes.
    pub(crate) fn network_count(&self) -> usize {
        self.networks.len()
    }

    /// What processes are told about the networks.
    pub(crate) fn networks(&self) -> Networks {
        match &self.reader {
            _ if self.networks.len() < 2 => Networks::One,
            Some(Ok(_)) => Networks::Several,
            _ => Networks::Separate,
        }
    }

    /// An end of which the other was not shown yet, or is in another network. Returns those that do not wait, or no longer: it, if
    /// nobody can be recognised; or those that have waited longest, if there are too many.
    pub(crate) fn wait(
        &mut self,
        socket: BorrowedFd<'_>,
        key: OfferKey,
        offer: Offer,
        told: bool,
    ) -> Vec<Apart> {
        let now = Instant::now();
        let apart = Apart { key, offer, told, until: now + Self::PATIENCE };
        let Some(Ok(reader)) = self.reader.as_ref().filter(|_| self.networks.len() > 1) else {
            return vec![apart];
        };
        if reader.show(socket, offer.cookie, Self::PATIENCE).is_err() {
            return vec![apart];
        }
        self.waiting.insert(offer.cookie, apart);
        let own = self.of_client.entry(offer.client).or_default();
        let mut crowded_out = Vec::new();
        for (line, most) in [(own, Self::MAX_OF_CLIENT), (&mut self.in_order, Self::MAX_WAITING)] {
            line.push_back(offer.cookie);
            if line.len() > most {
                crowded_out.extend(line.pop_front());
            }
        }
        let [least, _] = Self::PAUSES;
        self.pause = least;
        self.next_look = self.may_look.max(Some(now));
        crowded_out.into_iter().filter_map(|cookie| self.forget(cookie)).collect()
    }

    /// An end need not wait any longer.
    pub(crate) fn forget(&mut self, cookie: u64) -> Option<Apart> {
        self.waiting.remove(&cookie)
    }

    /// When to call [`Self::look`] at the latest; `None` while nobody waits.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        let first = self.in_order.iter().find_map(|cookie| self.waiting.get(cookie))?;
        let look = self.next_look.filter(|_| self.waiting.len() > 1);
        let next = look.map_or(first.until, |look| look.min(first.until));
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Compares all that wait, if it is time: who was recognised, the one that waits longer first; and who has waited long enough.
    pub(crate) fn look(&mut self) -> (Vec<[Apart; 2]>, Vec<Apart>) {
        if self.in_order.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let now = Instant::now();
        let due = self.waiting.len() > 1 && self.next_look.is_some_and(|next| next <= now);
        let recognised = if due { self.compare(now) } else { Vec::new() };
        let mut over = Vec::new();
        while let Some(cookie) = self.in_order.front().copied() {
            if self.waiting.get(&cookie).is_some_and(|first| first.until > now) {
                break;
            }
            self.in_order.pop_front();
            over.extend(self.forget(cookie));
        }
        (recognised, over)
    }

    fn compare(&mut self, start: Instant) -> Vec<[Apart; 2]> {
        let read = self.reader.as_ref().and_then(|reader| reader.as_ref().ok()?.read().ok());
        let mut recognised = Vec::new();
        for cookies in pairs(&read.unwrap_or_default()) {
            let [Some(a), Some(b)] = cookies.map(|cookie| self.waiting.get(&cookie).copied())
            else {
                continue;
            };
            for cookie in cookies {
                self.forget(cookie);
            }
            recognised.push(if a.until <= b.until { [a, b] } else { [b, a] });
        }
        let [least, most] = Self::PAUSES;
        let took = start.elapsed();
        self.may_look = Some(start + least.max(Self::SHARE * took));
        self.next_look = self.may_look.max(Some(start + self.pause));
        self.pause = (2 * self.pause).min(most);
        recognised
    }
}

/// The sockets that agree, each with one other and no third.
fn pairs(read: &[Sequence]) -> Vec<[u64; 2]> {
    let mut by_received: HashMap<u32, Vec<usize>> = HashMap::new();
    for (index, end) in read.iter().enumerate() {
        by_received.entry(end.received).or_default().push(index);
    }
    let peer = |index: usize| {
        let end = &read[index];
        let mut numbers = vec![end.acknowledged, end.sent];
        numbers.dedup();
        let heard = numbers.iter().filter_map(|number| by_received.get(number)).flatten();
        let mut peers = heard.filter(|peer| agree(end, &read[**peer]));
        let first = peers.next();
        first.filter(|_| peers.next().is_none()).copied()
    };
    let couples = (0..read.len()).filter_map(|index| Some((index, peer(index)?)));
    couples
        .filter(|&(index, other)| index < other && peer(other) == Some(index))
        .map(|(index, other)| [read[index].cookie, read[other].cookie])
        .collect()
}

/// Whether each end has received what the other has sent, or knows to have arrived.
fn agree(a: &Sequence, b: &Sequence) -> bool {
    let heard = |from: &Sequence, at: &Sequence| {
        at.received == from.sent || at.received == from.acknowledged
    };
    a.cookie != b.cookie && heard(a, b) && heard(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(cookie: u64, received: u32, acknowledged: u32, sent: u32) -> Sequence {
        Sequence { cookie, received, acknowledged, sent }
    }

    #[test]
    fn ends_at_rest_and_ends_with_bytes_under_way_agree() {
        assert_eq!(pairs(&[end(1, 10, 20, 20), end(2, 20, 10, 10)]), [[1, 2]]);
        // The second has 20..25 not yet; the first does not know yet that 15..20 arrived.
        assert_eq!(pairs(&[end(1, 10, 15, 20), end(2, 20, 10, 10)]), [[1, 2]]);
        assert_eq!(pairs(&[end(1, 10, 20, 25), end(2, 20, 10, 10)]), [[1, 2]]);
        // Numbers wrap.
        assert_eq!(pairs(&[end(1, 3, u32::MAX, 2), end(2, 2, u32::MAX - 7, 3)]), [[1, 2]]);
    }

    #[test]
    fn one_number_is_not_enough() {
        assert!(pairs(&[end(1, 10, 20, 20), end(2, 20, 11, 11)]).is_empty());
        assert!(pairs(&[end(1, 10, 20, 20), end(2, 21, 10, 10)]).is_empty());
        assert!(pairs(&[end(1, 10, 10, 10)]).is_empty());
        assert!(pairs(&[end(1, 10, 10, 10), end(1, 10, 10, 10)]).is_empty());
    }

    #[test]
    fn where_three_agree_nobody_is_recognised_and_others_are() {
        let read = [
            end(1, 10, 20, 20),
            end(2, 20, 10, 10),
            end(3, 20, 10, 10),
            end(4, 1, 2, 2),
            end(5, 2, 1, 1),
        ];
        assert_eq!(pairs(&read), [[4, 5]]);
    }
}
