//! The processes that live in a namespace, and their end.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

/// How long processes may take to leave when they are asked to.
const GRACE: Duration = Duration::from_secs(2);
/// How long killed processes may take to be gone.
const LAST: Duration = Duration::from_secs(5);

/// Namespaces as the kernel numbers them.
#[derive(Debug, Default)]
pub(crate) struct Namespaces(HashSet<u64>);

impl Namespaces {
    /// The number of the namespace that a path shows.
    pub(crate) fn number(path: &Path) -> Option<u64> {
        std::fs::metadata(path).ok().map(|found| found.ino())
    }

    /// One namespace.
    pub(crate) fn of(number: u64) -> Self {
        Self(HashSet::from([number]))
    }

    /// Adds the namespace that a path shows, if it shows one.
    pub(crate) fn add(&mut self, path: &Path) {
        self.0.extend(Self::number(path));
    }

    /// Whether the process that runs this is in one of them, by `kind` (`net`, `user`).
    pub(crate) fn hold_us(&self, kind: &str) -> bool {
        Self::number(Path::new(&format!("/proc/self/ns/{kind}")))
            .is_some_and(|number| self.0.contains(&number))
    }

    /// Ends all processes in these namespaces: asks, then kills, until there are none.
    pub(crate) fn clear(&self, kind: &str) {
        if self.0.is_empty() {
            return;
        }
        let start = Instant::now();
        while start.elapsed() < GRACE + LAST {
            let asked = start.elapsed() < GRACE;
            let left = self.signal_all(kind, if asked { Signal::TERM } else { Signal::KILL });
            if left == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// How many processes were there to be signalled.
    fn signal_all(&self, kind: &str, signal: Signal) -> usize {
        let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
        let mut found = 0;
        for entry in entries.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
            else {
                continue;
            };
            // Whoever clears away what it has just made is in there itself.
            let Some(pid) = Pid::from_raw(pid).filter(|pid| *pid != getpid()) else { continue };
            // The descriptor is taken before the look, so that the signal cannot reach a successor of the same number.
            let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            let inside = Self::number(&entry.path().join("ns").join(kind))
                .is_some_and(|number| self.0.contains(&number));
            if inside && pidfd_send_signal(&process, signal).is_ok() {
                found += 1;
            }
        }
        found
    }
}
