//! `idle`: what connections cost that nobody uses: plain, lifted, and lifted before and parked since.
//!
//! Two programs on `std::net` hold many connections, each used enough to be lifted. Compared is what all memory comes to with
//! one connection and with all of them: `lifted` is so before anything is parked, which never happens there, `parked` when
//! `vmmc stat` shows nothing lifted any more. `processes` is what is resident of the two programs and of the node service,
//! shared pages divided among those who map them; `kernel` is what the whole machine's kernel objects and
//! page tables grew by, so nothing else should run beside it (the kernel's caches of names and of files that nobody has open are
//! emptied before, where the user may do that). `cpu_us` is the processor time of all three
//! in one second in which nothing happens.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{
    Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit,
};

use crate::BenchError;
use crate::options::{Bench, Options, PeerProgram};
use crate::progress::Progress;
use crate::report::{Row, Unit};
use crate::socket::{accept, connect, listen};
use crate::statistics::median;

pub(crate) const ROLES: [&str; 2] = [LISTENER, CALLER];
const LISTENER: &str = "idle-listener";
const CALLER: &str = "idle-caller";

/// Round trips on each connection before it is left alone: more than lifting takes.
const WARM_UP: u64 = 40;
/// After every so many of them the caller leaves the processor to the node service, which may have no other.
const IN_A_ROW: u64 = 10;
const PAUSE: Duration = Duration::from_micros(200);
/// Descriptors that a lifted connection takes in the node service, which has the sockets of both ends; it takes fewer in the programs.
const DESCRIPTORS: u64 = 2;
/// How long it may take until all are parked.
const PARKING: Duration = Duration::from_secs(60);
/// For what goes on behind the last round trip.
const SETTLE: Duration = Duration::from_millis(300);

/// What one round found, for one connection: KiB, and for all together microseconds of processor time in a second.
#[derive(Debug, Clone, Copy)]
struct Cost {
    processes: f64,
    kernel: f64,
    cpu: f64,
    /// How many were lifted at that time.
    lifted: usize,
}

/// Measures plain and lifted.
pub(crate) fn run(options: &Options, notes: &mut Vec<String>) -> Result<Vec<Row>, BenchError> {
    let count = options.connections.max(1);
    allow_descriptors(count as u64 * DESCRIPTORS + 2000);
    let rounds = options.rounds_of(Bench::Idle);
    let progress = Progress::new(options.progress, "idle", rounds * STATES.len());
    let mut costs = STATES.map(|_| Vec::new());
    for _ in 0..rounds {
        for (state, costs) in STATES.into_iter().zip(&mut costs) {
            costs.push(cost(options, state, count)?);
            progress.advance();
        }
    }
    let lifted = costs[1].iter().map(|cost| cost.lifted).min().unwrap_or_default();
    let rows: Vec<Row> = STATES
        .into_iter()
        .zip(costs)
        .flat_map(|(state, costs)| rows(state.path(), count, &costs))
        .collect();
    let all = |path| rows.iter().rfind(|row| row.path == path).map_or(0.0, |row| row.p50);
    let [plain, lifting, parked] = STATES.map(|state| all(state.path()));
    if lifted < count {
        notes.push(format!(
            "only {lifted} of {count} could be lifted at a time (raise the limit of descriptors); `lifted` is for each of all"
        ));
    }
    notes.push(format!(
        "a connection, both ends of it, takes {plain:.1} KiB; lifted {:.1} more; parked {:.2} times as much",
        lifting - plain,
        parked / plain,
    ));
    Ok(rows)
}

/// What becomes of the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Plain,
    Lifted,
    Parked,
}

const STATES: [State; 3] = [State::Plain, State::Lifted, State::Parked];

impl State {
    fn path(self) -> &'static str {
        match self {
            State::Plain => "tcp",
            State::Lifted => "lifted",
            State::Parked => "parked",
        }
    }

    fn command(self, options: &Options) -> Command {
        if self == State::Plain {
            let mut command = Command::new(&options.peer.program);
            command.env("VMMC_DISABLE", "1");
            return command;
        }
        let mut command = Command::new(&options.vmmc);
        command.args(["run", "--"]).arg(&options.peer.program);
        command.env("VMMC_PARK_AFTER", if self == State::Parked { "1" } else { "0" });
        command
    }
}

fn rows(path: &str, count: usize, costs: &[Cost]) -> [Row; 3] {
    let row = |part, figure: &dyn Fn(&Cost) -> f64| {
        let mut figures: Vec<f64> = costs.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        let worst = figures.last().copied().unwrap_or_default();
        Row::new(path, count, Unit::Kibibytes, median(&figures))
            .tails(worst, worst, figures.len() as u64)
            .part(part)
    };
    let cpu = median(&costs.iter().map(|cost| cost.cpu).collect::<Vec<_>>());
    [
        row("processes", &|cost| cost.processes),
        row("kernel", &|cost| cost.kernel),
        Row { cpu_us: Some(cpu), ..row("all", &|cost| cost.processes + cost.kernel) },
    ]
}

/// One round.
fn cost(options: &Options, state: State, count: usize) -> Result<Cost, BenchError> {
    let peer = &options.peer;
    let mut listener = Program::start(state.command(options), peer, LISTENER)?;
    let address = listener.hear()?;
    let mut caller = Program::start(state.command(options), peer, CALLER)?;
    caller.say(&address)?;
    let ends = [listener.child.id(), caller.child.id()];
    // Of these the node service is one, when it takes part.
    let mut pids = ends.to_vec();
    let mut open = |count| -> Result<usize, BenchError> {
        caller.open(count)?;
        match state {
            State::Plain => Ok(0),
            State::Lifted => lifted(&options.vmmc, ends),
            State::Parked => wait_until_parked(&options.vmmc, ends),
        }
    };
    open(1)?;
    if state != State::Plain {
        pids.push(service_pid(&options.vmmc)?);
    }
    let sum = |figure: fn(u32) -> Result<f64, BenchError>| -> Result<f64, BenchError> {
        pids.iter().map(|pid| figure(*pid)).sum()
    };
    let (processes, kernel) = (sum(resident)?, kernel_memory()?);
    let lifted = open(count)?;
    let each = |memory: f64| memory / count as f64;
    let (processes, kernel) = (each(sum(resident)? - processes), each(kernel_memory()? - kernel));
    let used = sum(processor_time)?;
    std::thread::sleep(Duration::from_secs(1));
    Ok(Cost { processes, kernel, cpu: sum(processor_time)? - used, lifted })
}

/// How many connections the two programs have lifted, each counting its own ends; the smaller number.
fn lifted(vmmc: &Path, ends: [u32; 2]) -> Result<usize, BenchError> {
    let stat = ask(vmmc, &["stat", "--json"])?;
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let processes = list(&stat["processes"]);
    let of = |pid: u32| {
        let own = processes.iter().filter(|process| process["pid"] == pid);
        own.flat_map(|process| list(&process["connections"]))
            .filter(|connection| connection["state"] != "tcp")
            .count()
    };
    let counts = ends.map(of);
    Ok(counts[0].min(counts[1]))
}

/// Waits until none is lifted.
fn wait_until_parked(vmmc: &Path, ends: [u32; 2]) -> Result<usize, BenchError> {
    let start = Instant::now();
    while lifted(vmmc, ends)? > 0 {
        if start.elapsed() > PARKING {
            let cause = "connections stay lifted though nobody uses them".to_owned();
            return Err(BenchError::Program { program: "vmmc run", cause });
        }
        std::thread::sleep(SETTLE);
    }
    std::thread::sleep(SETTLE);
    Ok(0)
}

/// One of the two programs, ended with this value.
#[derive(Debug)]
struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start(mut command: Command, peer: &PeerProgram, role: &str) -> Result<Program, BenchError> {
        command.args(&peer.arguments).args(["--peer", role]);
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|cause| BenchError::Start { program, cause })?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => {
                Ok(Program { child, input, output: BufReader::new(output) })
            }
            _ => Err(BenchError::PeerLost),
        }
    }

    /// Lets the caller open so many connections more, and use them.
    fn open(&mut self, count: usize) -> Result<(), BenchError> {
        self.say(&count.to_string())?;
        self.hear()?;
        std::thread::sleep(SETTLE);
        Ok(())
    }

    fn say(&mut self, line: &str) -> Result<(), BenchError> {
        writeln!(self.input, "{line}").map_err(|_| BenchError::PeerLost)
    }

    fn hear(&mut self) -> Result<String, BenchError> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(1..) => Ok(line.trim_end().to_owned()),
            _ => Err(BenchError::PeerLost),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The programs themselves.
pub(crate) fn serve(role: &str) -> Result<(), BenchError> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|cause| BenchError::os("tie a process's life to its parent's", cause))?;
    match role {
        LISTENER => hold_accepted(),
        _ => hold_connected(),
    }
}

fn hold_accepted() -> Result<(), BenchError> {
    let (listener, address) = listen()?;
    println!("{address}");
    let mut held = Vec::new();
    loop {
        sleep_until_readable(listener.as_fd(), held.last())?;
        let mut socket = accept(&listener)?;
        for _ in 0..WARM_UP {
            let mut payload = [0; 8];
            socket.read_exact(&mut payload).map_err(lost)?;
            socket.write_all(&payload).map_err(lost)?;
        }
        held.push(socket);
    }
}

/// The first line says where to; every other one, how many connections more.
fn hold_connected() -> Result<(), BenchError> {
    let input = std::io::stdin().as_fd().try_clone_to_owned().map_err(lost)?;
    let mut input = BufReader::new(File::from(input));
    let wrong = |line: &str| BenchError::OutOfStep(line.to_owned());
    let mut held: Vec<TcpStream> = Vec::new();
    let mut next_line = |held: &[TcpStream]| -> Result<Option<String>, BenchError> {
        if input.buffer().is_empty() {
            sleep_until_readable(input.get_ref().as_fd(), held.last())?;
        }
        let mut line = String::new();
        let count = input.read_line(&mut line).map_err(lost)?;
        Ok((count > 0).then(|| line.trim_end().to_owned()))
    };
    let address = next_line(&held)?.ok_or(BenchError::PeerLost)?;
    let address: SocketAddr = address.parse().map_err(|_| wrong(&address))?;
    while let Some(line) = next_line(&held)? {
        let count: usize = line.parse().map_err(|_| wrong(&line))?;
        for _ in 0..count {
            let mut socket = connect(address)?;
            for number in 0..WARM_UP {
                if number % IN_A_ROW == 0 {
                    std::thread::sleep(PAUSE);
                }
                let mut payload = number.to_ne_bytes();
                socket.write_all(&payload).map_err(lost)?;
                socket.read_exact(&mut payload).map_err(lost)?;
            }
            held.push(socket);
        }
        println!("{}", held.len());
    }
    Ok(())
}

/// Sleeps as programs do that hold connections: in a call that has one of them in its list.
fn sleep_until_readable(fd: BorrowedFd<'_>, held: Option<&TcpStream>) -> Result<(), BenchError> {
    let number = |held: &TcpStream| held.as_raw_fd();
    let mut list = [fd.as_raw_fd(), held.map_or(-1, number)].map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    while list[0].revents == 0 {
        // SAFETY: the list is an array of this length; the C library's own function, which programs call.
        let found = unsafe { libc::poll(list.as_mut_ptr(), list.len() as libc::nfds_t, -1) };
        let cause = std::io::Error::last_os_error();
        if found < 0 && cause.kind() != std::io::ErrorKind::Interrupted {
            return Err(lost(cause));
        }
        if list[1].revents != 0 && list[0].revents == 0 {
            return Err(BenchError::PeerLost);
        }
    }
    Ok(())
}

fn lost(cause: std::io::Error) -> BenchError {
    BenchError::os("move bytes over a socket", cause)
}

/// Lets the programs that are started from here open so many; if that is not allowed, they say so.
fn allow_descriptors(wanted: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        let current = limit.maximum.map_or(wanted, |maximum| wanted.min(maximum));
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(current), ..limit });
    }
}

fn service_pid(vmmc: &Path) -> Result<u32, BenchError> {
    let status = ask(vmmc, &["node", "status", "--json"])?;
    let pid = status["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    pid.ok_or_else(|| BenchError::Program {
        program: "vmmc",
        cause: "no service is running".to_owned(),
    })
}

/// What `vmmc` answers.
fn ask(vmmc: &Path, arguments: &[&str]) -> Result<serde_json::Value, BenchError> {
    let failed = |cause: String| BenchError::Program { program: "vmmc", cause };
    let answer = Command::new(vmmc).args(arguments).output();
    let answer = answer.map_err(|cause| failed(cause.to_string()))?;
    serde_json::from_slice(&answer.stdout).map_err(|cause| failed(cause.to_string()))
}

/// What is resident of a process in KiB, shared pages divided among those who map them.
fn resident(pid: u32) -> Result<f64, BenchError> {
    kibibytes(&format!("/proc/{pid}/smaps_rollup"), &["Pss:"])
}

/// The kernel's objects and page tables, of the whole machine, in KiB.
fn kernel_memory() -> Result<f64, BenchError> {
    const NAMES_AND_FILES: &str = "2";
    let _ = std::fs::write("/proc/sys/vm/drop_caches", NAMES_AND_FILES);
    kibibytes("/proc/meminfo", &["Slab:", "PageTables:"])
}

/// The sum of the fields of these names.
fn kibibytes(file: &str, names: &[&str]) -> Result<f64, BenchError> {
    let text = read(file)?;
    let field = |line: &str| {
        let (name, rest) = line.split_once(char::is_whitespace)?;
        let value = rest.trim().strip_suffix("kB")?.trim();
        names.contains(&name).then(|| value.parse::<f64>().ok()).flatten()
    };
    Ok(text.lines().filter_map(field).sum())
}

/// Processor time of all threads of a process so far, in microseconds.
fn processor_time(pid: u32) -> Result<f64, BenchError> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"))
        .map_err(|cause| BenchError::os("look at a process's threads", cause))?;
    let mut nanoseconds = 0.0;
    for thread in threads.flatten() {
        let text = read(&thread.path().join("schedstat").to_string_lossy())?;
        nanoseconds += text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0);
    }
    Ok(nanoseconds / 1000.0)
}

fn read(file: &str) -> Result<String, BenchError> {
    std::fs::read_to_string(file)
        .map_err(|cause| BenchError::os("read what /proc says of a process", cause))
}
