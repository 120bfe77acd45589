//! A bound on how long a test may take.

use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// Aborts the test process when it is not dropped in time, so that no test can hang.
///
/// The programs that the test started die with it: see [`Running`](crate::Running).
#[derive(Debug)]
pub struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    /// Starts the bound; `what` is named in the message.
    pub fn new(what: &str, limit: Duration) -> Self {
        let (alive, dropped) = channel::<()>();
        let what = what.to_owned();
        thread::spawn(move || {
            if dropped.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                let _ =
                    writeln!(std::io::stderr(), "{what}: not finished after {limit:?}, aborted");
                std::process::abort();
            }
        });
        Watchdog { _alive: alive }
    }
}
