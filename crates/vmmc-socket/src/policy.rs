//! What of this program may be lifted: read from the environment when it begins, where `vmmc run` has put what the files say.

use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use vmmc::stream::Tier;

use crate::slot::Why;
use crate::{board, kernel};

#[derive(Debug)]
struct Policy {
    /// The program itself may be lifted.
    program: bool,
    ports: Option<Vec<RangeInclusive<u16>>>,
    not_ports: Vec<RangeInclusive<u16>>,
    largest: Tier,
}

static POLICY: OnceLock<Policy> = OnceLock::new();
/// The program has an io_uring, which carries any call past every hook.
static URING: AtomicBool = AtomicBool::new(false);
/// The program has put itself under a filter of system calls, or was started under one.
static FILTERED: AtomicBool = AtomicBool::new(false);

/// Reads the environment, before the program can change it.
pub(crate) fn remember() {
    let value = |name| std::env::var(name).ok();
    let ports = |name| value(name).map(|list| ports(&list));
    let largest = match value("VMMC_RING").as_deref() {
        Some("3.5K") => Tier::Page,
        Some("64K") => Tier::Medium,
        _ => Tier::Bulk,
    };
    let own = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    let names = |name| value(name).map(|list| is_listed(&own, &list));
    let _ = POLICY.set(Policy {
        program: names("VMMC_PROGRAMS").unwrap_or(true)
            && !names("VMMC_NOT_PROGRAMS").unwrap_or(false),
        ports: ports("VMMC_PORTS"),
        not_ports: ports("VMMC_NOT_PORTS").unwrap_or_default(),
        largest,
    });
}

/// Why the connection `fd` must stay on TCP; `None` where it may be lifted.
pub(crate) fn forbids(fd: i32) -> Option<Why> {
    if URING.load(Ordering::Relaxed) {
        return Some(Why::Uring);
    }
    let policy = POLICY.get()?;
    if !policy.program {
        return Some(Why::Program);
    }
    if policy.ports.is_none() && policy.not_ports.is_empty() {
        return None;
    }
    let ends = [board::address(fd, false), board::address(fd, true)];
    policy.forbids_ports(ends.map(|end| end.map_or(0, |end| end.port()))).then_some(Why::Port)
}

/// From now on nothing of this program may be lifted: it has an io_uring. Whether that is news.
pub(crate) fn forbid_for_uring() -> bool {
    !URING.swap(true, Ordering::Relaxed)
}

/// Whether a stream may go over from this ring to the next larger one.
pub(crate) fn may_grow(tier: Tier) -> bool {
    let largest = POLICY.get().map_or(Tier::Bulk, |policy| policy.largest);
    tier.larger().is_some() && tier.capacity() < largest.capacity()
}

/// Whether connections to other users' programs can be lifted: their bells are rung by calls that a filter of system calls may not know.
pub(crate) fn can_meet_strangers() -> bool {
    !was_filtered() && !is_filtered() && vmmc::bell::strangers_can_be_rung()
}

/// Whether the program has put itself under a filter of system calls.
pub(crate) fn was_filtered() -> bool {
    FILTERED.load(Ordering::Relaxed)
}

/// The program is about to put itself under a filter of system calls.
pub(crate) fn be_filtered() {
    FILTERED.store(true, Ordering::Relaxed);
}

/// Whether this process is under a filter now.
pub(crate) fn is_filtered() -> bool {
    let mut status = [0u8; 4096];
    // Who hides what it is may be anything.
    let Some(status) = kernel::read_text(format_args!("/proc/self/status"), &mut status) else {
        return true;
    };
    let mut lines = status.split(|&byte| byte == b'\n');
    !lines.any(|line| line.strip_prefix(b"Seccomp:").is_some_and(|mode| mode.trim_ascii() == b"0"))
}

impl Policy {
    fn forbids_ports(&self, ends: [u16; 2]) -> bool {
        let in_any = |rows: &Vec<RangeInclusive<u16>>| {
            ends.iter().any(|port| rows.iter().any(|row| row.contains(port)))
        };
        self.ports.as_ref().is_some_and(|only| !in_any(only)) || in_any(&self.not_ports)
    }
}

/// `6379,8000-8999`; what is no port is left out, `vmmc run` has complained of it.
fn ports(list: &str) -> Vec<RangeInclusive<u16>> {
    let row = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    list.split(',').filter_map(row).collect()
}

/// Whether a program is named, by its whole path or by its name, in a list with colons.
fn is_listed(program: &Path, list: &str) -> bool {
    let name = program.file_name().unwrap_or_default().as_bytes();
    list.split(':').map(str::as_bytes).any(|listed| {
        listed == name || listed.contains(&b'/') && listed == program.as_os_str().as_bytes()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_named_by_name_or_path() {
        let curl = Path::new("/usr/bin/curl");
        assert!(is_listed(curl, "redis-server:curl") && is_listed(curl, "/usr/bin/curl"));
        assert!(!is_listed(curl, "/bin/curl:cur:curling") && !is_listed(curl, ""));
    }

    #[test]
    fn ports_count_at_either_end() {
        let policy = |only: Option<&str>, not: &str| Policy {
            program: true,
            ports: only.map(ports),
            not_ports: ports(not),
            largest: Tier::Bulk,
        };
        let only = policy(Some("6379,8000-8002"), "8001,nonsense,22-");
        for allowed in [[6379, 40_000], [40_000, 8000]] {
            assert!(!only.forbids_ports(allowed));
        }
        for forbidden in [[1, 40_000], [8001, 40_000], [6379, 8001]] {
            assert!(only.forbids_ports(forbidden), "{forbidden:?}");
        }
        assert!(policy(Some(""), "").forbids_ports([1, 2]), "an empty list names none");
        assert!(!policy(None, "").forbids_ports([1, 2]));
    }
}
