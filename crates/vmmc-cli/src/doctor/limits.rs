//! Cores and the limits of this process.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit};
use rustix::thread::{CpuSet, sched_getaffinity};

use super::finding::Finding;

pub(super) fn findings() -> Vec<Finding> {
    vec![cores(), locked_memory(), descriptors(), mappings()]
}

fn cores() -> Finding {
    let name = "cores";
    match sched_getaffinity(None).map(|set| (0..CpuSet::MAX_CPU).filter(|c| set.is_set(*c)).count())
    {
        Ok(count) if count >= 2 => Finding::good(
            name,
            format!("{count} usable"),
            "two processes can meet without sleeping",
        ),
        Ok(count) => Finding::limited(
            name,
            format!("{count} usable"),
            "processes take turns; waiting gives way instead of spinning",
            "allow a second core (taskset, cpuset of the container)",
        ),
        Err(cause) => Finding::limited(
            name,
            format!("unknown ({cause})"),
            "waiting cannot be adapted to the cores",
            "allow sched_getaffinity in the sandbox",
        ),
    }
}

fn locked_memory() -> Finding {
    let (name, change) = ("memlock", "ulimit -l unlimited, or LimitMEMLOCK= of the service");
    if rustix::process::geteuid().is_root() {
        return Finding::good(
            name,
            format!("{}; root is not bound by it", shown(Resource::Memlock, 1024, " KiB")),
            "any buffer can be pinned",
        );
    }
    match getrlimit(Resource::Memlock).current {
        Some(bytes) if bytes < 64 << 20 => Finding::limited(
            name,
            shown(Resource::Memlock, 1024, " KiB"),
            "buffers beyond it go through bounce buffers when sent to other hosts; nothing on one host",
            change,
        ),
        _ => Finding::good(
            name,
            shown(Resource::Memlock, 1024, " KiB"),
            "large buffers can be pinned",
        ),
    }
}

fn descriptors() -> Finding {
    let (name, found) = ("descriptors", shown(Resource::Nofile, 1, ""));
    match getrlimit(Resource::Nofile).maximum {
        Some(most) if most < 4096 => Finding::limited(
            name,
            found,
            "the service holds a descriptor for each export and for each end of a lifted connection; further ones stay on TCP",
            "ulimit -Hn 65536 as root, or LimitNOFILE= of the service",
        ),
        _ => Finding::good(name, found, "enough for thousands of exports and lifted connections"),
    }
}

fn mappings() -> Finding {
    let (name, path) = ("mappings", "/proc/sys/vm/max_map_count");
    match fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok()) {
        Some(most) if most >= 32_768 => {
            Finding::good(name, format!("{most} a process"), "enough for thousands of imports")
        }
        Some(most) => Finding::limited(
            name,
            format!("{most} a process"),
            "a process can hold about half as many imports or lifted connections",
            "sysctl vm.max_map_count=262144",
        ),
        None => Finding::limited(
            name,
            format!("{path} cannot be read"),
            "how many imports a process can hold is unknown",
            "mount /proc",
        ),
    }
}

fn shown(resource: Resource, divisor: u64, unit: &str) -> String {
    let one = |value: Option<u64>| {
        value.map_or_else(|| "unlimited".to_owned(), |value| format!("{}{unit}", value / divisor))
    };
    let Rlimit { current, maximum } = getrlimit(resource);
    format!("{} (at most {})", one(current), one(maximum))
}
