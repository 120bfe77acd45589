//! Which packets of a path have arrived: refuses repeats, and is what acknowledgements are made of.

use crate::wire::AckRange;

/// Packets behind the newest that can still be told apart; older ones are refused, and the peer sends their content again.
const WINDOW: u64 = 8192;
const WORDS: usize = (WINDOW / 64) as usize;

/// One bit for each of the newest packets, at `number % WINDOW`.
#[derive(Debug)]
pub(crate) struct Seen {
    bits: Box<[u64; WORDS]>,
    /// The largest number that arrived, plus one.
    next: u64,
}

impl Seen {
    pub(crate) fn new() -> Seen {
        Seen { bits: Box::new([0; WORDS]), next: 0 }
    }

    /// The number that would follow without loss or reordering.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Whether a packet of this number is neither a repeat nor too old to know.
    pub(crate) fn is_new(&self, number: u64) -> bool {
        number != u64::MAX
            && (number >= self.next || (number >= self.oldest() && !self.holds(number)))
    }

    /// Notes a packet for which [`Seen::is_new`] was true.
    pub(crate) fn insert(&mut self, number: u64) {
        if number >= self.next {
            if number - self.next >= WINDOW {
                self.bits.fill(0);
            } else {
                for skipped in self.next..=number {
                    self.bits[word(skipped)] &= !bit(skipped);
                }
            }
            self.next = number + 1;
        }
        self.bits[word(number)] |= bit(number);
    }

    /// The runs of packets that arrived, newest first.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = AckRange> + '_ {
        let mut above = self.next;
        std::iter::from_fn(move || {
            let highest = self.down_to(above, true)?;
            let below = self.down_to(highest, false);
            let lowest = below.map_or(self.oldest(), |missing| missing + 1);
            above = lowest;
            Some(lowest..=highest)
        })
    }

    /// The largest number under `above` that arrived (or is missing), within the window. Looks at 64 at a time.
    fn down_to(&self, above: u64, arrived: bool) -> Option<u64> {
        let mut at = above;
        while at > self.oldest() {
            let number = at - 1;
            let bits = self.bits[word(number)];
            let wanted = if arrived { bits } else { !bits };
            let under = wanted << (63 - number % 64);
            if under != 0 {
                let found = number - u64::from(under.leading_zeros());
                return (found >= self.oldest()).then_some(found);
            }
            at = number - number % 64;
        }
        None
    }

    fn oldest(&self) -> u64 {
        self.next.saturating_sub(WINDOW)
    }

    fn holds(&self, number: u64) -> bool {
        self.bits[word(number)] & bit(number) != 0
    }
}

fn word(number: u64) -> usize {
    ((number % WINDOW) / 64) as usize
}

fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a plain set of everything that ever arrived.
        #[test]
        fn repeats_are_refused_and_ranges_tell_what_arrived(
            steps in proptest::collection::vec((0..4_u8, 0..300_u64, 0..20_000_u64), 1..300)
        ) {
            let (mut seen, mut plain) = (Seen::new(), BTreeSet::new());
            for (kind, near, far) in steps {
                let number = match kind {
                    0 => seen.next() + far / 10,
                    1 => seen.next().saturating_sub(near),
                    2 => seen.next().saturating_sub(far),
                    _ => seen.next(),
                };
                let in_window = number >= seen.next().saturating_sub(WINDOW);
                prop_assert_eq!(seen.is_new(number), in_window && !plain.contains(&number));
                if seen.is_new(number) {
                    seen.insert(number);
                    plain.insert(number);
                }
            }
            let oldest = seen.next().saturating_sub(WINDOW);
            let told: Vec<u64> = seen.ranges().flat_map(|range| range.rev()).collect();
            let arrived: Vec<u64> = plain.range(oldest..).rev().copied().collect();
            prop_assert_eq!(told, arrived);
        }
    }
}
