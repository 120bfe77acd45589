//! What a process looks after before it sleeps.

use std::time::Duration;

use crate::{park, shrink};

/// Looks after it; for how long the process may sleep at the most. No lock is held, and nothing pinned.
#[inline]
pub(crate) fn before_sleep() -> Option<Duration> {
    [shrink::rest(), park::rest()].into_iter().flatten().min()
}
