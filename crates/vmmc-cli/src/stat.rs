//! `vmmc stat`: which connections of which programs are lifted, and how the paths to other nodes are.

use std::process::ExitCode;

use vmmc::paths::{self, PathInfo};
use vmmc::{ExportInfo, ImportSource, Process, ProcessId, ProcessInfo, Rights};
use vmmc_socket::board::{self, Connection};

/// For each program under `vmmc run`: its connections, whether they are lifted, what went over them, and why not. For each with imports from,
/// or by, processes of other nodes: the paths of its own engine.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, serde::Serialize)]
struct Program {
    #[serde(skip)]
    id: ProcessId,
    pid: u32,
    name: String,
    connections: Vec<Connection>,
    paths: Vec<Path>,
}

/// A path of a program's own engine, as it is printed.
#[derive(Debug, serde::Serialize)]
struct Path {
    peer: std::net::SocketAddr,
    path: u8,
    up: bool,
    round_trip_us: f64,
    window_bytes: u64,
    in_flight_bytes: u64,
    mtu: u16,
    packets_sent: u64,
    packets_lost: u64,
}

impl From<PathInfo> for Path {
    fn from(info: PathInfo) -> Path {
        Path {
            peer: info.peer,
            path: info.path,
            up: info.up,
            round_trip_us: info.round_trip as f64 / 1e3,
            window_bytes: info.window,
            in_flight_bytes: info.in_flight,
            mtu: info.mtu,
            packets_sent: info.packets_sent,
            packets_lost: info.packets_lost,
        }
    }
}

pub(crate) fn run(args: Args) -> ExitCode {
    match programs() {
        Ok(programs) if args.json => {
            println!("{}", serde_json::json!({ "processes": programs }));
            ExitCode::SUCCESS
        }
        Ok(programs) => {
            show(&programs);
            ExitCode::SUCCESS
        }
        Err(message) => {
            complain!("vmmc: {message}");
            ExitCode::FAILURE
        }
    }
}

fn programs() -> Result<Vec<Program>, String> {
    let opened = Process::options().start_service(false).watcher(false).name("vmmc stat").open();
    let process = match opened {
        Ok(process) => process,
        // Without a service nothing can be lifted or asked.
        Err(vmmc::OpenError::NoService(_) | vmmc::OpenError::NoHostService(_)) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error.to_string()),
    };
    let known = process.processes().map_err(|error| error.to_string())?;
    let exports = process.exports().map_err(|error| error.to_string())?;
    let mut programs: Vec<Program> = Vec::new();
    for export in exports {
        let owner = known.iter().find(|process| process.id == export.id.process);
        if let Some(owner) = owner.filter(|_| [board::NAME, paths::NAME].contains(&&*export.name)) {
            tell(&process, owner, &export, &mut programs);
        }
    }
    programs.sort_by_key(|program| program.pid);
    Ok(programs)
}

/// Adds what one board tells.
fn tell(process: &Process, owner: &ProcessInfo, export: &ExportInfo, programs: &mut Vec<Program>) {
    let import = process.import(ImportSource::Id(export.id)).rights(Rights::READ).open();
    let Ok(import) = import else { return };
    let (mut connections, mut paths) = (Vec::new(), Vec::new());
    match import.as_ptr() {
        None => return,
        // SAFETY: a mapped import of this length, page-aligned; it lives until the end of this function.
        Some(memory) if export.name == board::NAME => unsafe {
            connections = board::read(memory, import.len());
        },
        Some(_) => paths = paths::read(&import).into_iter().map(Path::from).collect(),
    }
    match programs.iter_mut().find(|program| program.id == owner.id) {
        Some(known) => {
            known.connections.append(&mut connections);
            known.paths.append(&mut paths);
        }
        None => {
            let ProcessInfo { id, pid, name, .. } = owner.clone();
            programs.push(Program { id, pid, name, connections, paths });
        }
    }
}

fn show(programs: &[Program]) {
    if programs.is_empty() {
        println!("no program runs under vmmc, or none has had a connection worth lifting yet");
    }
    for program in programs {
        match program.pid {
            0 => println!(
                "{} (in a process namespace that the node service does not see)",
                program.name
            ),
            pid => println!("{} ({pid})", program.name),
        }
        for connection in &program.connections {
            let address = |address: Option<std::net::SocketAddr>| {
                address.map_or("-".into(), |a| a.to_string())
            };
            println!(
                "  {:>5}  {:<8} {:>21} - {:<21}  sent {:>12}  received {:>12}  slept {:>8}  {}",
                connection.fd,
                connection.state,
                address(connection.local),
                address(connection.peer),
                connection.sent,
                connection.received,
                connection.slept,
                connection.why.unwrap_or_default(),
            );
        }
        for path in &program.paths {
            let Path { peer, path: number, window_bytes, in_flight_bytes, mtu, .. } = path;
            let (sent, lost) = (path.packets_sent, path.packets_lost);
            println!(
                "  path {number} to {peer}: {}, round trip {:.1} us, {in_flight_bytes} of {window_bytes} bytes in flight, datagrams of {mtu} bytes, {lost} of {sent} packets lost",
                if path.up { "up" } else { "silent" },
                path.round_trip_us,
            );
        }
    }
}
