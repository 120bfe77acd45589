//! One thing found.

use std::fmt;

use serde::Serialize;

/// How good what was found is for VMMC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// All that VMMC can use.
    Good,
    /// VMMC works, with less.
    Limited,
    /// VMMC cannot work.
    Unusable,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Finding {
    pub(super) name: &'static str,
    pub(super) state: State,
    /// What the probe found.
    pub(super) found: String,
    /// What follows from it.
    pub(super) follows: String,
    /// How to change it; nothing where it is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) change: Option<String>,
}

impl Finding {
    pub(super) fn good(
        name: &'static str,
        found: impl Into<String>,
        follows: impl Into<String>,
    ) -> Finding {
        let (found, follows) = (found.into(), follows.into());
        Finding { name, state: State::Good, found, follows, change: None }
    }

    pub(super) fn limited(
        name: &'static str,
        found: impl Into<String>,
        follows: impl Into<String>,
        change: impl Into<String>,
    ) -> Finding {
        let state = State::Limited;
        Finding { change: Some(change.into()), state, ..Finding::good(name, found, follows) }
    }

    pub(super) fn unusable(
        name: &'static str,
        found: impl Into<String>,
        follows: impl Into<String>,
        change: impl Into<String>,
    ) -> Finding {
        let state = State::Unusable;
        Finding { change: Some(change.into()), state, ..Finding::good(name, found, follows) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.state {
            State::Good => "ok",
            State::Limited => "--",
            State::Unusable => "!!",
        };
        writeln!(f, "{mark} {:<20} {}", self.name, self.found)?;
        writeln!(f, "{:24}{}", "", self.follows)?;
        match &self.change {
            Some(change) => writeln!(f, "{:24}to change it: {change}", ""),
            None => Ok(()),
        }
    }
}
