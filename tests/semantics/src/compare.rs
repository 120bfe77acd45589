//! Comparing a transcript with the oracle.

use std::fmt;

use vmmc_tests::Way;

use crate::play::{Played, Side};

/// The first line in which a transcript departs from the oracle's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The way that differs.
    pub way: Way,
    /// `server` or `client`.
    pub side: &'static str,
    /// Counted from 1.
    pub line: usize,
    /// The oracle's line; none if it had ended.
    pub oracle: Option<String>,
    /// The other's line; none if it had ended.
    pub other: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |line: &Option<String>| line.clone().unwrap_or_else(|| "(nothing)".into());
        let Difference { way, side, line, .. } = self;
        writeln!(f, "{way}: the {side}'s line {line} differs")?;
        writeln!(f, "  kernel: {}", shown(&self.oracle))?;
        write!(f, "  here:   {}", shown(&self.other))
    }
}

/// Where each side of `other` first departs from `oracle`; empty if the transcripts are equal.
pub fn differences(oracle: &Played, other: &Played) -> Vec<Difference> {
    let sides =
        [("server", &oracle.server, &other.server), ("client", &oracle.client, &other.client)];
    sides
        .into_iter()
        .filter_map(|(side, oracle, found)| {
            let (line, oracle, found) = first_difference(oracle, found)?;
            Some(Difference { way: other.way, side, line, oracle, other: found })
        })
        .collect()
}

/// What is wrong with a transcript whatever the oracle says: lines that begin with `!`, and not ending in time.
pub fn complaints(played: &Played) -> Vec<String> {
    let mut found = Vec::new();
    for (name, side) in [("server", &played.server), ("client", &played.client)] {
        for line in side.lines.iter().filter(|line| line.starts_with('!')) {
            found.push(format!("{}: {name}: {line}", played.way));
        }
    }
    if !played.in_time {
        found.push(format!("{}: killed, because it did not end", played.way));
    }
    found
}

type Line = Option<String>;

fn first_difference(oracle: &Side, other: &Side) -> Option<(usize, Line, Line)> {
    let count = oracle.lines.len().max(other.lines.len());
    (0..count).map(|index| (index, oracle.lines.get(index), other.lines.get(index))).find_map(
        |(index, oracle, other)| {
            (oracle != other).then(|| (index + 1, oracle.cloned(), other.cloned()))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::{complaints, differences};
    use crate::play::{Played, Side};
    use vmmc_tests::Way;

    fn played(way: Way, server: &[&str], client: &[&str]) -> Played {
        let side = |lines: &[&str]| Side {
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
            errors: String::new(),
        };
        Played {
            way,
            server: side(server),
            client: side(client),
            in_time: true,
            seen_lifted: false,
        }
    }

    #[test]
    fn names_the_first_line_that_differs_on_each_side() {
        let oracle = played(Way::Plain, &["a", "b", "c"], &["x"]);
        let same = played(Way::BothLifted, &["a", "b", "c"], &["x"]);
        assert!(differences(&oracle, &same).is_empty());

        let other = played(Way::ServerLifted, &["a", "B", "C"], &["x", "y"]);
        let found = differences(&oracle, &other);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].side, found[0].line), ("server", 2));
        assert_eq!((found[1].side, found[1].line), ("client", 2));
        assert_eq!(found[1].oracle, None);
        assert_eq!(found[1].other.as_deref(), Some("y"));
    }

    #[test]
    fn complains_of_marked_lines_and_of_not_ending() {
        let mut bad = played(Way::Plain, &["a", "! lost a byte"], &["x"]);
        assert_eq!(complaints(&bad), ["both plain: server: ! lost a byte"]);
        bad.in_time = false;
        assert_eq!(complaints(&bad).len(), 2);
        assert!(complaints(&played(Way::Plain, &["a"], &["x"])).is_empty());
    }
}
