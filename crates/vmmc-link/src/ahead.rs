//! Where bytes lie that were placed ahead of a gap: whatever comes late leaves the newer alone.
//!
//! A peer chooses the places and how many there are. A look costs the logarithm of their number and never finds more than the bytes that are looked at; a
//! change moves those behind it, of which there are at most so many that it is done in a microsecond or two. In the steady state nothing is allocated.

use std::ops::Range;

/// Parts that are remembered of an import.
const MOST_PARTS: usize = 4096;

/// Parts of an export, none of which overlap: each belongs to the newest bytes there.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// In the order of their places.
    parts: Vec<Part>,
    /// How many there were when those that nothing comes late for any more were last taken out.
    kept: usize,
}

/// Bytes that were sent one behind the other.
#[derive(Debug, Clone, Copy)]
struct Part {
    start: u64,
    end: u64,
    /// Sequence number behind the last of them: all of them are placed.
    sequence: u64,
}

impl Ahead {
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.parts.len() >= MOST_PARTS
    }

    /// How many parts there are: what it costs.
    pub(crate) fn count(&self) -> usize {
        self.parts.len()
    }

    /// The first part that reaches into `range` and is newer than bytes with this sequence number.
    pub(crate) fn newer(&self, range: Range<u64>, sequence: u64) -> Option<Range<u64>> {
        let from = self.parts.partition_point(|part| part.end <= range.start);
        let mut reaching = self.parts[from..].iter().take_while(|part| part.start < range.end);
        reaching.find(|part| part.sequence > sequence).map(|part| part.start..part.end)
    }

    /// Notes bytes that were placed around what is newer; `sequence` is behind the last of them.
    pub(crate) fn insert(&mut self, range: Range<u64>, sequence: u64) {
        let mut start = range.start;
        while start < range.end {
            let newer = self.newer(start..range.end, sequence);
            let end = newer.as_ref().map_or(range.end, |newer| newer.start);
            if start < end {
                self.cover(Part { start, end, sequence: sequence - (range.end - end) });
            }
            start = newer.map_or(range.end, |newer| newer.end);
        }
    }

    /// Everything below a sequence number is placed, so what lies there is newer than nothing that may come. Takes it out once it may be much.
    pub(crate) fn forget(&mut self, reached: u64) {
        if self.parts.len() > 2 * self.kept + 64 {
            self.forget_now(reached);
        }
    }

    pub(crate) fn forget_now(&mut self, reached: u64) {
        self.parts.retain(|part| part.sequence > reached);
        self.kept = self.parts.len();
    }

    pub(crate) fn clear(&mut self) {
        self.parts.clear();
        self.kept = 0;
    }

    /// Takes the bytes of a part from all others.
    fn cover(&mut self, part: Part) {
        let from = self.parts.partition_point(|other| other.end <= part.start);
        let to = from + self.parts[from..].partition_point(|other| other.start < part.end);
        let covered = &self.parts[from..to];
        let before = covered.first().filter(|first| first.start < part.start);
        let before = before.map(|first| Part { end: part.start, ..*first });
        let behind = covered.last().filter(|last| last.end > part.end);
        let behind = behind.map(|last| Part { start: part.end, ..*last });
        // A run is one part.
        if let (true, Some(last)) = (from == to, from.checked_sub(1)) {
            let (last, len) = (&mut self.parts[last], part.end - part.start);
            if last.end == part.start && last.sequence + len == part.sequence {
                (last.end, last.sequence) = (part.end, part.sequence);
                return;
            }
        }
        self.parts.splice(from..to, before.into_iter().chain([part]).chain(behind));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against one number for each byte. The sequence numbers of what is inserted never overlap, as on a channel.
        #[test]
        fn it_knows_the_newest_at_each_byte(
            sends in proptest::collection::vec((0..100_u64, 1..30_u64, any::<u64>()), 1..40)
        ) {
            let mut sequence = 0;
            let mut pieces: Vec<_> = sends.iter().map(|&(place, len, key)| {
                sequence += len + 1;
                (key, place, len, sequence)
            }).collect();
            pieces.sort_unstable();
            let (mut ahead, mut plain) = (Ahead::default(), [0_u64; 200]);
            for (at, &(_, place, len, end)) in pieces.iter().enumerate() {
                let range = place..place + len;
                let newer = range.clone().find(|&byte| plain[byte as usize] > end);
                let found = ahead.newer(range.clone(), end - len);
                prop_assert_eq!(found.as_ref().map(|found| found.start.max(place)), newer);
                if let Some(found) = found {
                    prop_assert!(found.clone().all(|byte| plain[byte as usize] > end));
                }
                ahead.insert(range.clone(), end);
                for byte in range {
                    plain[byte as usize] = plain[byte as usize].max(end);
                }
                if at % 8 == 7 {
                    // As if everything in front of the oldest that is still to come were placed.
                    let reached = pieces[at + 1..].iter().map(|piece| piece.3 - piece.2).min().unwrap_or(sequence);
                    ahead.forget_now(reached);
                    plain.iter_mut().filter(|newest| **newest <= reached).for_each(|newest| *newest = 0);
                    let bytes: u64 = ahead.parts.iter().map(|part| part.end - part.start).sum();
                    prop_assert_eq!(bytes, plain.iter().filter(|newest| **newest > 0).count() as u64);
                }
            }
        }
    }

    #[test]
    fn a_run_is_one_part_and_a_hole_makes_two() {
        let mut ahead = Ahead::default();
        for step in 0..10 {
            ahead.insert(step * 100..(step + 1) * 100, 5000 + (step + 1) * 100);
        }
        assert_eq!(ahead.count(), 1);
        ahead.insert(450..460, 9000);
        assert_eq!(ahead.count(), 3);
        assert_eq!(ahead.newer(0..1000, 7000), Some(450..460));
        assert_eq!(ahead.newer(0..1000, 9000), None);
        ahead.forget(5950);
        assert_eq!(ahead.count(), 3, "not worth it");
        ahead.forget_now(6000);
        assert_eq!(ahead.count(), 1);
    }
}
