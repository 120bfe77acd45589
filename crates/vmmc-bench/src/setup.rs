//! `setup`: what export, import, unimport and unexport cost (the paper's section 5.1: 43 µs and 68 µs
//! for one page).
//!
//! Exports and imports are made one after the other and *kept*, up to a thousand, and then given back
//! one by one; so `thousandth` beside `first` shows whether the cost grows with what there is already. The row
//! `shared-memory` does by hand what a mapping costs at least: sealed nameless memory made and
//! mapped, mapped in the other process, unmapped in both, without anybody checking anything.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use vmmc::{Export, Import, Rights};

use crate::BenchError;
use crate::clock::Clock;
use crate::links::{Links, Peer};
use crate::machine::Machine;
use crate::options::{Bench, Options};
use crate::path::Path;
use crate::peer::Order;
use crate::progress::Progress;
use crate::report::{Row, Unit};
use crate::statistics::{Samples, median};
use crate::vmmc_memory::import;

/// What the second process is to import.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SetupOrder {
    path: Path,
    size: usize,
}

/// What the first process says meanwhile.
#[derive(Debug, Serialize, Deserialize)]
enum Step {
    Import(String),
    Unimport,
    Finished,
}

const PATHS: [Path; 2] = [Path::Vmmc, Path::SharedMemory];
const PARTS: [&str; 4] = ["export", "import", "unimport", "unexport"];

/// Exports alive at once at most.
const MOST: usize = 1000;

/// The times of one round in ticks, in the order they were made: for each of [`PARTS`].
type Times = [Vec<u64>; 4];

/// Measures both paths at all sizes.
pub(crate) fn run(options: &Options, machine: &Machine) -> Result<Vec<Row>, BenchError> {
    let sizes = options.sizes_for(Bench::Setup)?;
    let slice = options.slice(Bench::Setup, sizes.len() * PATHS.len())?;
    let rounds = options.rounds_of(Bench::Setup);
    let progress = Progress::new(options.progress, "setup", sizes.len() * PATHS.len() * rounds);
    let mut peer = Peer::start(&options.peer, machine)?;
    raise_descriptor_limit()?;
    let mut rows = Vec::new();
    for size in sizes {
        let mut found: [Vec<(Times, f64)>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (path, found) in PATHS.into_iter().zip(&mut found) {
                found.push(round(&mut peer, path, size, slice)?);
                progress.advance();
            }
        }
        for (path, found) in PATHS.into_iter().zip(&found) {
            rows.extend((0..PARTS.len()).map(|part| row(path, size, part, found)));
        }
    }
    Ok(rows)
}

fn row(path: Path, size: usize, part: usize, rounds: &[(Times, f64)]) -> Row {
    let clock = Clock::calibrated();
    let (mut all, mut middles) = (Samples::new(), Vec::new());
    for (times, _) in rounds {
        let mut round = Samples::new();
        times[part].iter().for_each(|ticks| round.record(*ticks as f64));
        middles.push(round.quantile(0.5));
        all.merge(&round);
    }
    let nth = |n: usize| {
        let times: Vec<f64> =
            rounds.iter().filter_map(|(times, _)| Some(*times[part].get(n)? as f64)).collect();
        (!times.is_empty()).then(|| clock.microseconds(median(&times)))
    };
    let microseconds = |ticks: f64| clock.microseconds(ticks);
    let row = Row::new(path.name(), size, Unit::Microseconds, microseconds(median(&middles)))
        .tails(microseconds(all.quantile(0.99)), microseconds(all.quantile(0.999)), all.len())
        .part(PARTS[part]);
    // Processor time is known for the four together; it is told with the first.
    let cpu = median(&rounds.iter().map(|(_, cpu)| *cpu).collect::<Vec<f64>>());
    Row { first: nth(0), thousandth: nth(MOST - 1), cpu_us: (part == 0).then_some(cpu), ..row }
}

/// Up to [`MOST`] exports and imports as far as the time goes, at least ten.
fn round(
    peer: &mut Peer,
    path: Path,
    size: usize,
    slice: Duration,
) -> Result<(Times, f64), BenchError> {
    let order = Order::Setup(SetupOrder { path, size });
    let most = match path {
        // Some room for what is exported besides.
        Path::Vmmc => MOST.min(peer.links.vmmc.process.info().max_exports.saturating_sub(8)),
        _ => MOST,
    };
    let (times, cpu) = peer.together(&order, |links| exporting(links, path, size, most, slice))?;
    let made = times[0].len().max(1) as f64;
    Ok((times, cpu as f64 / 1000.0 / made))
}

fn exporting(
    links: &Links,
    path: Path,
    size: usize,
    most: usize,
    slice: Duration,
) -> Result<Times, BenchError> {
    let (start, clock) = (Instant::now(), Clock::calibrated());
    let mut times = Times::default();
    let mut kept = Vec::new();
    // Half of the time for making: what was made must be given back as well.
    while kept.len() < most && (kept.len() < 10 || start.elapsed() < slice / 2) {
        let from = clock.now();
        let exported = Exported::new(links, path, size)?;
        times[0].push(clock.ticks_between(from, clock.now()));
        exported.announce(links)?;
        kept.push(exported);
        times[1].push(links.control.hear()?);
    }
    for _ in 0..kept.len() {
        links.control.say(&Step::Unimport)?;
        times[2].push(links.control.hear()?);
    }
    links.control.say(&Step::Finished)?;
    for exported in kept {
        let from = clock.now();
        exported.give_back()?;
        times[3].push(clock.ticks_between(from, clock.now()));
    }
    Ok(times)
}

/// The second process's side.
pub(crate) fn take_part(order: &SetupOrder, links: &Links) -> Result<(), BenchError> {
    raise_descriptor_limit()?;
    let clock = Clock::calibrated();
    let mut kept = std::collections::VecDeque::new();
    loop {
        let (step, file) = links.control.hear_either()?;
        let from = clock.now();
        match step {
            Step::Import(id) => {
                let imported = Imported::new(links, &id, file, order.size)?;
                let ticks = clock.ticks_between(from, clock.now());
                kept.push_back(imported);
                links.control.say(&ticks)?;
            }
            Step::Unimport => {
                if let Some(imported) = kept.pop_front() {
                    imported.give_back();
                }
                links.control.say(&clock.ticks_between(from, clock.now()))?;
            }
            Step::Finished => return Ok(()),
        }
    }
}

/// Something exported, by VMMC or by hand.
#[derive(Debug)]
enum Exported {
    Vmmc(Export),
    ByHand(OwnedFd, Mapped),
}

impl Exported {
    fn new(links: &Links, path: Path, size: usize) -> Result<Exported, BenchError> {
        if path == Path::Vmmc {
            let export = links.vmmc.process.export(size).rights(Rights::READ_WRITE).create();
            return Ok(Exported::Vmmc(export.map_err(|cause| BenchError::vmmc("export", cause))?));
        }
        let make = || {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = memfd_create("vmmc-bench", flags)?;
            ftruncate(&file, size as u64)?;
            fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK)?;
            Ok(file)
        };
        let file = make().map_err(|cause: rustix::io::Errno| {
            BenchError::os("make sealed nameless memory", cause)
        })?;
        let mapped = Mapped::of(&file, size)?;
        Ok(Exported::ByHand(file, mapped))
    }

    fn announce(&self, links: &Links) -> Result<(), BenchError> {
        match self {
            Exported::Vmmc(export) => links.control.say(&Step::Import(export.id().to_string())),
            Exported::ByHand(file, _) => {
                links.control.say_with(&Step::Import(String::new()), file.as_fd())
            }
        }
    }

    fn give_back(self) -> Result<(), BenchError> {
        match self {
            Exported::Vmmc(export) => {
                export.unexport().map_err(|cause| BenchError::vmmc("unexport", cause))
            }
            Exported::ByHand(file, mapped) => {
                drop((file, mapped));
                Ok(())
            }
        }
    }
}

/// Something imported, by VMMC or by hand.
#[derive(Debug)]
enum Imported {
    Vmmc(Import),
    ByHand(Mapped),
}

impl Imported {
    fn new(
        links: &Links,
        id: &str,
        file: Option<OwnedFd>,
        size: usize,
    ) -> Result<Imported, BenchError> {
        match file {
            None => Ok(Imported::Vmmc(import(&links.vmmc.process, id)?)),
            Some(file) => Ok(Imported::ByHand(Mapped::of(file, size)?)),
        }
    }

    fn give_back(self) {
        match self {
            Imported::Vmmc(import) => import.unimport(),
            Imported::ByHand(mapped) => drop(mapped),
        }
    }
}

/// A mapping whose pages come when they are touched, as those of an export do.
#[derive(Debug)]
struct Mapped {
    start: *mut std::ffi::c_void,
    len: usize,
}

impl Mapped {
    fn of(file: impl AsFd, len: usize) -> Result<Mapped, BenchError> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address the system chooses overlaps nothing.
        let start =
            unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file, 0) }
                .map_err(|cause| BenchError::os("map shared memory", cause))?;
        Ok(Mapped { start, len })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are a mapping that only this value owns and nobody refers to. It
        // can only fail for arguments that mmap would not have given.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}

/// A thousand exports need some thousand descriptors.
pub(crate) fn raise_descriptor_limit() -> Result<(), BenchError> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised)
        .map_err(|cause| BenchError::os("raise the limit of descriptors", cause))
}
