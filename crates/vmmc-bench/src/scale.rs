//! `scale`: whether the node service is as fast with a thousand processes and a hundred thousand imports as with none.
//!
//! Each operation that goes through the service is timed in a process beside the crowd: `empty` before the crowd has come and
//! after it has gone, `vmmc-loaded` while it is there. The crowd are real processes. Each exports a page, imports those of its
//! neighbours, and waits. `service-memory` is the resident memory of the service's process; its size is the number of processes.
//!
//! | part | operation |
//! |---|---|
//! | `open`, `close` | a process comes, and goes (the time to tell the service) |
//! | `export`, `import`, `import-by-name`, `unimport`, `unexport` | of one page |
//! | `engine-send` | 8 bytes by a write-only import, which the service writes |

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use vmmc::{Export, ImportSource, Process, Rights};

use crate::BenchError;
use crate::clock::Clock;
use crate::control::Control;
use crate::links::Reaped;
use crate::machine::{Machine, pin};
use crate::options::{Bench, Options};
use crate::progress::Progress;
use crate::report::{Row, Unit};
use crate::setup::raise_descriptor_limit;
use crate::statistics::{Samples, median};
use crate::vmmc_memory::import;

/// The role of a process of the crowd; its line to the first process is standard input.
pub(crate) const MEMBER: &str = "scale-member";

const PAGE: usize = 4096;
/// The processes that a member imports from, at most; with more imports it imports them again.
const NEIGHBOURS: usize = 500;
/// How long the service may take to notice that the crowd has gone.
const PATIENCE: Duration = Duration::from_secs(30);

const PARTS: [&str; 8] =
    ["open", "close", "export", "import", "import-by-name", "unimport", "unexport", "engine-send"];

/// What a member is to import.
#[derive(Debug, Serialize, Deserialize)]
struct Neighbours {
    exports: Vec<String>,
    imports: usize,
}

/// For each of [`PARTS`], in ticks; and the median of each round.
#[derive(Debug)]
struct Times(Vec<(Samples, Vec<f64>)>);

/// Measures with and without the crowd.
pub(crate) fn run(
    options: &Options,
    machine: &Machine,
    notes: &mut Vec<String>,
) -> Result<Vec<Row>, BenchError> {
    let (processes, imports) = (options.processes.max(2), options.imports);
    let rounds = options.rounds_of(Bench::Scale);
    let slice = options.slice(Bench::Scale, 3)?;
    raise_descriptor_limit()?;
    let progress = Progress::new(options.progress, "scale", 3 * rounds + 2);
    let process = open("vmmc bench")?;
    let service = process.info().service_pid;
    let others = present(&process)?;
    let (mut empty, mut loaded) = (Times::new(), Times::new());

    empty.measure(&process, machine, rounds, slice, &progress)?;
    let memory = resident(service)?;
    let crowd = Crowd::gather(options, processes, imports)?;
    progress.advance();
    loaded.measure(&process, machine, rounds, slice, &progress)?;
    let memory_loaded = resident(service)?;
    let descriptors = fs::read_dir(format!("/proc/{service}/fd")).map_or(0, Iterator::count);
    crowd.dismiss();
    progress.advance();
    let began = Instant::now();
    while present(&process)? > others {
        if began.elapsed() > PATIENCE {
            return Err(BenchError::Stalled);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    empty.measure(&process, machine, rounds, slice, &progress)?;

    notes.push(format!(
        "loaded: {processes} processes, {imports} imports; the service has {descriptors} descriptors open"
    ));
    if others > 1 {
        notes.push(format!("{} processes of others are at this service too", others - 1));
    }
    let mut rows = Vec::new();
    for (index, part) in PARTS.into_iter().enumerate() {
        rows.push(loaded.row("vmmc-loaded", index, part));
        rows.push(empty.row("empty", index, part));
    }
    for (path, bytes, crowd) in [("vmmc-loaded", memory_loaded, processes), ("empty", memory, 1)] {
        let figure = bytes as f64 / 1024.0;
        let row = Row::new(path, crowd, Unit::Kibibytes, figure).tails(figure, figure, 1);
        rows.push(row.part("service-memory"));
    }
    Ok(rows)
}

/// Polled mode: no thread of the library's.
fn open(name: &str) -> Result<Process, BenchError> {
    let process = Process::options().name(name).watcher(false).open();
    process.map_err(|cause| BenchError::vmmc("open", cause))
}

/// Processes at the service.
fn present(process: &Process) -> Result<usize, BenchError> {
    let processes = process.processes();
    Ok(processes.map_err(|cause| BenchError::vmmc("list the processes", cause))?.len())
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> Result<u64, BenchError> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm"))
        .map_err(|cause| BenchError::os("read the service's memory", cause))?;
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    Ok(pages.unwrap_or(0) * rustix::param::page_size() as u64)
}

impl Times {
    fn new() -> Times {
        Times(PARTS.iter().map(|_| (Samples::new(), Vec::new())).collect())
    }

    /// Some rounds more, in a thread held to one core.
    fn measure(
        &mut self,
        process: &Process,
        machine: &Machine,
        rounds: usize,
        slice: Duration,
        progress: &Progress,
    ) -> Result<(), BenchError> {
        for _ in 0..rounds {
            let measuring = std::thread::scope(|scope| {
                let thread = scope.spawn(|| {
                    pin(machine.pinned[0])?;
                    operations(process, slice)
                });
                thread.join()
            });
            let round = measuring
                .unwrap_or_else(|_| Err(BenchError::OutOfStep("a thread ended early".into())))?;
            for ((all, middles), samples) in self.0.iter_mut().zip(round) {
                middles.push(samples.quantile(0.5));
                all.merge(&samples);
            }
            progress.advance();
        }
        Ok(())
    }

    fn row(&self, path: &str, index: usize, part: &'static str) -> Row {
        let clock = Clock::calibrated();
        let (all, middles) = &self.0[index];
        let figure = |ticks: f64| clock.microseconds(ticks);
        Row::new(path, PAGE, Unit::Microseconds, figure(median(middles)))
            .tails(figure(all.quantile(0.99)), figure(all.quantile(0.999)), all.len())
            .part(part)
    }
}

/// Every operation in turns, at least ten times; in the order of [`PARTS`].
fn operations(process: &Process, slice: Duration) -> Result<[Samples; 8], BenchError> {
    let (clock, began) = (Clock::calibrated(), Instant::now());
    let mut samples = [(); 8].map(|()| Samples::new());
    let target = export(process, "")?;
    let written = process.import(ImportSource::Id(target.id())).rights(Rights::WRITE).open();
    let written = written.map_err(|cause| BenchError::vmmc("import for writing", cause))?;
    while samples[0].len() < 10 || began.elapsed() < slice {
        let mut stamps = Vec::with_capacity(PARTS.len() + 1);
        let mut stamp = || stamps.push(clock.now());
        stamp();
        let guest = open("vmmc bench guest")?;
        stamp();
        drop(guest);
        stamp();
        let page = export(process, "vmmc-bench-scale")?;
        stamp();
        let by_id = import(process, &page.id().to_string())?;
        stamp();
        let by_name = process.import(ImportSource::Name("vmmc-bench-scale".into())).open();
        let by_name = by_name.map_err(|cause| BenchError::vmmc("import by name", cause))?;
        stamp();
        drop(by_id);
        stamp();
        page.unexport().map_err(|cause| BenchError::vmmc("unexport", cause))?;
        stamp();
        written.send(0, &[1; 8]).map_err(|cause| BenchError::vmmc("send", cause))?;
        stamp();
        drop(by_name);
        for (samples, pair) in samples.iter_mut().zip(stamps.windows(2)) {
            samples.record(clock.ticks_between(pair[0], pair[1]) as f64);
        }
    }
    Ok(samples)
}

fn export(process: &Process, name: &str) -> Result<Export, BenchError> {
    let export = process.export(PAGE).name(name).create();
    export.map_err(|cause| BenchError::vmmc("export", cause))
}

/// The processes that are only there.
#[derive(Debug)]
struct Crowd {
    lines: Vec<Control>,
    members: Vec<Reaped>,
}

impl Crowd {
    /// Starts the processes, and has all of them export and import.
    fn gather(options: &Options, processes: usize, imports: usize) -> Result<Crowd, BenchError> {
        let mut crowd = Crowd { lines: Vec::new(), members: Vec::new() };
        for _ in 0..processes {
            let (ours, theirs) = Control::pair()?;
            crowd.members.push(Reaped::start(&options.peer, MEMBER, theirs)?);
            crowd.lines.push(ours);
        }
        let exports: Vec<String> =
            crowd.lines.iter().map(Control::hear).collect::<Result<_, _>>()?;
        for (index, line) in crowd.lines.iter().enumerate() {
            let next = exports.iter().cycle().skip(index + 1);
            let exports = next.take((processes - 1).min(NEIGHBOURS)).cloned().collect();
            // What does not divide evenly, the first do.
            let imports = imports / processes + usize::from(index < imports % processes);
            line.say(&Neighbours { exports, imports })?;
        }
        for line in &crowd.lines {
            match line.hear::<Result<(), String>>()? {
                Ok(()) => {}
                Err(why) => return Err(BenchError::PeerFailed(why)),
            }
        }
        Ok(crowd)
    }

    /// All end by themselves once their lines are closed.
    fn dismiss(self) {
        drop(self.lines);
        drop(self.members);
    }
}

/// A member of the crowd.
pub(crate) fn serve() -> Result<(), BenchError> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|cause| BenchError::os("tie a process's life to its parent's", cause))?;
    let line = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|cause| BenchError::os("take the line to the first process", cause))?;
    let line = Control::from_descriptor(line);
    let process = open("vmmc bench member")?;
    let export = export(&process, "")?;
    line.say(&export.id().to_string())?;
    let Neighbours { exports, imports } = line.hear()?;
    let imported: Result<Vec<_>, _> =
        exports.iter().cycle().take(imports).map(|id| import(&process, id)).collect();
    line.say(&imported.as_ref().map(drop).map_err(ToString::to_string))?;
    // Until the line is closed.
    line.hear()
}
