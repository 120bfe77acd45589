//! What the figures were measured on, and the cores the two processes are held to.

use std::fs;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use crate::BenchError;

/// The machine, as far as it decides the figures.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Cores this process may run on.
    pub cores: usize,
    /// Release of the operating system's kernel.
    pub kernel: String,
    /// Model of the processor as it names itself.
    pub cpu: String,
    /// Core of the first process (the one that takes the time) and of the second. Equal when only one may be used.
    pub pinned: [usize; 2],
}

impl Machine {
    /// Looks at the machine this process runs on.
    ///
    /// # Errors
    /// [`BenchError::Os`] if the set of usable cores cannot be read.
    pub fn look() -> Result<Machine, BenchError> {
        let usable = usable_cores()?;
        let first = usable.first().copied().unwrap_or(0);
        Ok(Machine {
            cores: usable.len(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpu: cpu_model(),
            pinned: [first, usable.get(1).copied().unwrap_or(first)],
        })
    }

    /// Whether both processes must share one core, which makes every spinning figure meaningless.
    pub fn one_core(&self) -> bool {
        self.pinned[0] == self.pinned[1]
    }
}

/// Holds the calling thread to one core; threads that exist already are not touched.
pub(crate) fn pin(core: usize) -> Result<(), BenchError> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).map_err(|cause| BenchError::os("hold a thread to a core", cause))
}

fn usable_cores() -> Result<Vec<usize>, BenchError> {
    let set = sched_getaffinity(None)
        .map_err(|cause| BenchError::os("read the set of usable cores", cause))?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
}

fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_cores_and_a_name() {
        let machine = Machine::look().unwrap();
        assert!(machine.cores >= 1);
        assert!(!machine.kernel.is_empty() && !machine.cpu.is_empty());
        assert_eq!(machine.one_core(), machine.cores == 1);
    }

    #[test]
    fn pinning_leaves_one_core() {
        std::thread::spawn(|| {
            let core = usable_cores().unwrap()[0];
            pin(core).unwrap();
            assert_eq!(usable_cores().unwrap(), [core]);
        })
        .join()
        .unwrap();
    }
}
