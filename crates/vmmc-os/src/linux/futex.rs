//! Sleeping on a word of shared memory.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use rustix::thread::futex::{Flags, Timespec, wait, wake};

use crate::OsError;

/// Sleeps while `word` holds `expected`, at most `timeout`. Returns also on a signal or for no reason: check the word.
///
/// # Errors
/// When the time is over.
pub fn futex_wait(
    word: &AtomicU32,
    expected: u32,
    timeout: Option<Duration>,
) -> Result<(), OsError> {
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    match wait(word, Flags::empty(), expected, timeout.as_ref()) {
        Err(OsError::TIMEDOUT) => Err(OsError::TIMEDOUT),
        _ => Ok(()),
    }
}

/// Wakes up to `count` sleepers, of any process that maps the word; how many there were.
pub fn futex_wake(word: &AtomicU32, count: u32) -> usize {
    wake(word, Flags::empty(), count).unwrap_or(0)
}
