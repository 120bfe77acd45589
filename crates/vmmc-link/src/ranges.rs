//! A set of sequence numbers, kept as sorted ranges that neither touch nor overlap.

use std::ops::Range;

/// Sequence numbers, as few sorted half-open ranges. Usually none or one, so a plain vector is the fastest that there is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ranges {
    sorted: Vec<Range<u64>>,
}

impl Ranges {
    pub(crate) fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// How many ranges there are: what the set costs.
    pub(crate) fn count(&self) -> usize {
        self.sorted.len()
    }

    pub(crate) fn first(&self) -> Option<Range<u64>> {
        self.sorted.first().cloned()
    }

    pub(crate) fn clear(&mut self) {
        self.sorted.clear();
    }

    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        match self.sorted.last_mut() {
            Some(last) if last.end == range.start => return last.end = range.end,
            Some(last) if last.end > range.start => {}
            _ => return self.sorted.push(range),
        }
        let from = self.sorted.partition_point(|held| held.end < range.start);
        let to = self.sorted.partition_point(|held| held.start <= range.end);
        if from == to {
            return self.sorted.insert(from, range);
        }
        let merged =
            self.sorted[from].start.min(range.start)..self.sorted[to - 1].end.max(range.end);
        self.sorted[from] = merged;
        self.sorted.drain(from + 1..to);
    }

    pub(crate) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let from = self.sorted.partition_point(|held| held.end <= range.start);
        let to = self.sorted.partition_point(|held| held.start < range.end);
        if from >= to {
            return;
        }
        let left = self.sorted[from].start..range.start;
        let right = range.end..self.sorted[to - 1].end;
        match (left.is_empty(), right.is_empty()) {
            (true, true) => drop(self.sorted.drain(from..to)),
            (false, true) => {
                self.sorted[from] = left;
                self.sorted.drain(from + 1..to);
            }
            (true, false) => {
                self.sorted[to - 1] = right;
                self.sorted.drain(from..to - 1);
            }
            (false, false) if to - from == 1 => {
                self.sorted[from] = left;
                self.sorted.insert(to, right);
            }
            (false, false) => {
                self.sorted[from] = left;
                self.sorted[to - 1] = right;
                self.sorted.drain(from + 1..to - 1);
            }
        }
    }

    /// The part of `range` that is not in the set and comes first, if any.
    pub(crate) fn first_gap(&self, range: Range<u64>) -> Option<Range<u64>> {
        let mut start = range.start;
        let from = self.sorted.partition_point(|held| held.end <= start);
        for held in &self.sorted[from..] {
            if held.start > start {
                return (start < range.end).then(|| start..held.start.min(range.end));
            }
            start = held.end;
        }
        (start < range.end).then_some(start..range.end)
    }

    pub(crate) fn covers(&self, range: Range<u64>) -> bool {
        self.first_gap(range).is_none()
    }

    /// Takes the first range away if it begins at or before `edge`, and returns where it ends.
    pub(crate) fn take_reached(&mut self, edge: u64) -> Option<u64> {
        let first = self.first().filter(|first| first.start <= edge)?;
        self.sorted.remove(0);
        Some(first.end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against the plainest set that there is.
        #[test]
        fn it_is_a_set(steps in proptest::collection::vec((any::<bool>(), 0..80_u64, 0..20_u64), 1..60)) {
            let (mut ranges, mut plain) = (Ranges::default(), BTreeSet::new());
            for (insert, start, len) in steps {
                if insert {
                    ranges.insert(start..start + len);
                    plain.extend(start..start + len);
                } else {
                    ranges.remove(start..start + len);
                    plain.retain(|at| !(start..start + len).contains(at));
                }
                let held: Vec<u64> = ranges.sorted.iter().flat_map(Clone::clone).collect();
                prop_assert_eq!(held, plain.iter().copied().collect::<Vec<_>>());
                prop_assert!(ranges.sorted.windows(2).all(|pair| pair[0].end < pair[1].start));
                let gap = (start..start + len + 3).find(|at| !plain.contains(at));
                prop_assert_eq!(ranges.first_gap(start..start + len + 3).map(|gap| gap.start), gap);
                prop_assert_eq!(ranges.covers(start..start + len + 3), gap.is_none());
            }
        }
    }
}
