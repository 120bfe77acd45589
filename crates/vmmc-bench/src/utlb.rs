//! `utlb`: what a lookup in the translation table costs (the paper's table 2 and section 5.2): a hit, beside a hit of UCX's
//! registration cache; pin and unpin of some pages beside the bare system calls; a miss that has to make room.

use std::hint::black_box;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::ptr;
use std::time::{Duration, Instant};

use rustix::mm::{self, MapFlags, ProtFlags};
use vmmc::Process;
use vmmc::utlb::{Access, Located, Options as UtlbOptions, Utlb};

use crate::BenchError;
use crate::clock::Clock;
use crate::machine::{Machine, pin};
use crate::options::{Bench, Options};
use crate::progress::Progress;
use crate::report::{Row, Unit};
use crate::statistics::{Samples, median};

/// Hits timed together.
const BATCH: u64 = 1000;
/// Pages that a table holds when it has to make room.
const FULL: usize = 1024;

pub(crate) fn run(
    options: &Options,
    machine: &Machine,
    notes: &mut Vec<String>,
) -> Result<Vec<Row>, BenchError> {
    let sizes = options.sizes_for(Bench::Utlb)?;
    let rounds = options.rounds_of(Bench::Utlb);
    let slice = options.slice(Bench::Utlb, sizes.len() + 2)?;
    let progress = Progress::new(options.progress, "utlb", rounds * (sizes.len() + 2));
    pin(machine.pinned[0])?;
    let ucx = Ucx::build(notes);
    let page = rustix::param::page_size();
    let arena = Arena::new((2 * FULL).max(sizes.iter().max().unwrap_or(&0).div_ceil(page)) * page)?;

    let names = ["vmmc", "ucx-rcache"];
    let mut hits = names.map(|name| Series::new(name, 8, "hit"));
    let make = |size| {
        let series = |path, part| Series::new(path, size, part);
        [
            series("vmmc", "pin"),
            series("system-call", "pin"),
            series("vmmc", "unpin"),
            series("system-call", "unpin"),
        ]
    };
    let mut pins: Vec<_> = sizes.iter().map(|size| make(*size)).collect();
    let mut misses =
        ["vmmc", "system-call"].map(|path| Series::new(path, page, "miss-with-eviction"));
    for _ in 0..rounds {
        hits[0].add(arena.hits(slice)?);
        if let Some(ucx) = &ucx {
            hits[1].add(ucx.hits(slice)?);
        }
        progress.advance();
        for (size, pins) in sizes.iter().zip(&mut pins) {
            for (series, round) in pins.iter_mut().zip(arena.pins(slice, *size)?) {
                series.add(round);
            }
            progress.advance();
        }
        for (series, round) in misses.iter_mut().zip(arena.misses(slice, page)?) {
            series.add(round);
        }
        progress.advance();
    }
    let [ours, theirs] = hits;
    let all = [ours, theirs].into_iter().chain(pins.into_iter().flatten()).chain(misses);
    Ok(all.filter(|series| !series.middles.is_empty()).map(Series::row).collect())
}

/// One path, one part, over all rounds; samples in ticks.
struct Series {
    path: &'static str,
    size: usize,
    part: &'static str,
    middles: Vec<f64>,
    all: Samples,
}

impl Series {
    fn new(path: &'static str, size: usize, part: &'static str) -> Series {
        Series { path, size, part, middles: Vec::new(), all: Samples::new() }
    }

    fn add(&mut self, round: Samples) {
        self.middles.push(round.quantile(0.5));
        self.all.merge(&round);
    }

    fn row(self) -> Row {
        let clock = Clock::calibrated();
        let figure = |ticks: f64| clock.nanoseconds(ticks);
        let tails = (figure(self.all.quantile(0.99)), figure(self.all.quantile(0.999)));
        Row::new(self.path, self.size, Unit::Nanoseconds, figure(median(&self.middles)))
            .tails(tails.0, tails.1, self.all.len())
            .part(self.part)
    }
}

/// Memory that is there, as that of a program that communicates is, in a process with a table of its own.
struct Arena {
    process: Process,
    start: *mut u8,
    len: usize,
}

impl Arena {
    fn new(len: usize) -> Result<Arena, BenchError> {
        // No bounce buffers: the table pins the arena's pages only.
        let utlb =
            UtlbOptions::default().limit((FULL * rustix::param::page_size()) as u64).bounce(0);
        let process = Process::options().name("vmmc bench").utlb(utlb).open();
        let process = process.map_err(|cause| BenchError::vmmc("open", cause))?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address the system chooses overlaps nothing.
        let start = unsafe { mm::mmap_anonymous(ptr::null_mut(), len, protection, flags) }
            .map_err(|cause| BenchError::os("map memory", cause))?;
        Ok(Arena { process, start: start.cast(), len })
    }

    fn utlb(&self) -> &Utlb {
        self.process.utlb()
    }

    /// Lookups of eight bytes that are pinned, each until it is not held any more.
    fn hits(&self, slice: Duration) -> Result<Samples, BenchError> {
        // SAFETY: the arena stays mapped as long as `self`.
        let _region = unsafe { self.utlb().declare(self.start, self.len) };
        let (clock, began, mut samples) = (Clock::calibrated(), Instant::now(), Samples::new());
        let utlb = self.utlb();
        look_up(utlb, self.start, 8)?;
        while samples.len() < 10 || began.elapsed() < slice {
            let from = clock.now();
            for _ in 0..BATCH {
                match utlb.lookup(black_box(self.start), 8, Access::Read) {
                    Ok(Located::Pinned(hold)) => {
                        black_box(hold.span());
                    }
                    other => return Err(BenchError::vmmc("look up", format!("{other:?}"))),
                }
            }
            samples.record(clock.ticks_between(from, clock.now()) as f64 / BATCH as f64);
        }
        Ok(samples)
    }

    /// Ours and the bare calls in turns, on the same pages.
    fn pins(&self, slice: Duration, size: usize) -> Result<[Samples; 4], BenchError> {
        // SAFETY: the arena stays mapped as long as `self`.
        let _region = unsafe { self.utlb().declare(self.start, self.len) };
        let (clock, began) = (Clock::calibrated(), Instant::now());
        let mut samples = [(); 4].map(|()| Samples::new());
        while samples[0].len() < 10 || began.elapsed() < slice {
            let stamps = [
                clock.now(),
                {
                    look_up(self.utlb(), self.start, size)?;
                    clock.now()
                },
                {
                    self.utlb().forget(self.start, size);
                    clock.now()
                },
                {
                    lock(self.start, size)?;
                    clock.now()
                },
                {
                    unlock(self.start, size)?;
                    clock.now()
                },
            ];
            let ticks = |at: usize| clock.ticks_between(stamps[at], stamps[at + 1]) as f64;
            for (part, at) in [0, 2, 1, 3].into_iter().enumerate() {
                samples[part].record(ticks(at));
            }
        }
        Ok(samples)
    }

    /// Single pages in turn, twice as many as the table may pin: each lookup unpins one and pins one.
    fn misses(&self, slice: Duration, page: usize) -> Result<[Samples; 2], BenchError> {
        let (clock, mut samples) = (Clock::calibrated(), [Samples::new(), Samples::new()]);
        let at = |number: usize| self.start.wrapping_add(number % (2 * FULL) * page);
        {
            // SAFETY: the arena stays mapped as long as `self`.
            let _region = unsafe { self.utlb().declare(self.start, self.len) };
            (0..FULL).try_for_each(|number| look_up(self.utlb(), at(number), 8))?;
            let began = Instant::now();
            for number in FULL.. {
                let from = clock.now();
                look_up(self.utlb(), at(number), 8)?;
                samples[0].record(clock.ticks_between(from, clock.now()) as f64);
                if samples[0].len() >= 10 && began.elapsed() > slice / 2 {
                    break;
                }
            }
        }
        (0..FULL).try_for_each(|number| lock(at(number), page))?;
        let began = Instant::now();
        for number in FULL.. {
            let from = clock.now();
            unlock(at(number - FULL), page)?;
            lock(at(number), page)?;
            samples[1].record(clock.ticks_between(from, clock.now()) as f64);
            if samples[1].len() >= 10 && began.elapsed() > slice / 2 {
                break;
            }
        }
        unlock(self.start, self.len)?;
        Ok(samples)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody refers to it any more. It can only fail for arguments that mmap would not have given.
        let _ = unsafe { mm::munmap(self.start.cast(), self.len) };
    }
}

fn look_up(utlb: &Utlb, start: *const u8, len: usize) -> Result<(), BenchError> {
    match utlb.lookup(start, len, Access::Read) {
        Ok(Located::Pinned(hold)) if hold.len() == len => Ok(()),
        Ok(_) => Err(BenchError::vmmc(
            "pin",
            "the system lets this process pin too little: raise `ulimit -l`",
        )),
        Err(cause) => Err(BenchError::vmmc("look up", cause)),
    }
}

fn lock(start: *mut u8, len: usize) -> Result<(), BenchError> {
    // SAFETY: locking changes no byte and no address.
    unsafe { mm::mlock(start.cast(), len) }.map_err(|cause| BenchError::os("pin pages", cause))
}

fn unlock(start: *mut u8, len: usize) -> Result<(), BenchError> {
    // SAFETY: unlocking changes no byte and no address.
    unsafe { mm::munlock(start.cast(), len) }.map_err(|cause| BenchError::os("unpin pages", cause))
}

/// A program that uses UCX's registration cache, compiled where UCX's headers are installed.
struct Ucx {
    directory: PathBuf,
}

impl Ucx {
    fn build(notes: &mut Vec<String>) -> Option<Ucx> {
        let ucx = Ucx {
            directory: std::env::temp_dir().join(format!("vmmc-bench-{}", std::process::id())),
        };
        let source = ucx.directory.join("ucx_rcache.c");
        let build = || {
            std::fs::create_dir(&ucx.directory).ok()?;
            std::fs::write(&source, include_str!("ucx_rcache.c")).ok()?;
            let mut compile = Command::new("cc");
            compile.args(["-O2", "-o"]).arg(ucx.program()).arg(&source).args(["-lucs", "-lucm"]);
            compile.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            compile.status().ok()?.success().then_some(())
        };
        if build().is_none() {
            let note = "UCX's registration cache cannot be built (Debian packages gcc, libucx-dev): no row ucx-rcache";
            notes.push(note.to_owned());
            return None;
        }
        Some(ucx)
    }

    fn program(&self) -> PathBuf {
        self.directory.join("ucx_rcache")
    }

    /// On this thread's core.
    fn hits(&self, slice: Duration) -> Result<Samples, BenchError> {
        let failed = |cause: String| BenchError::Program { program: "ucx_rcache", cause };
        // About 0.5 ms each.
        let batches = (slice.as_micros() / 500).clamp(10, 100_000).to_string();
        let mut command = Command::new(self.program());
        command.arg(batches).env("UCX_LOG_LEVEL", "error").env("VMMC_DISABLE", "1");
        let output = command.output().map_err(|cause| failed(cause.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let (clock, mut samples) = (Clock::calibrated(), Samples::new());
        let second = clock.ticks(Duration::from_secs(1)) as f64;
        for nanoseconds in text.lines().filter_map(|line| line.parse::<f64>().ok()) {
            samples.record(nanoseconds * second / 1e9);
        }
        if !output.status.success() || samples.len() == 0 {
            return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        Ok(samples)
    }
}

impl Drop for Ucx {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
