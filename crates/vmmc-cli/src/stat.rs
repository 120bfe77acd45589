//! `vmmc stat`: which connections of which programs are lifted.

use std::process::ExitCode;

use vmmc::{ImportSource, Process, Rights};
use vmmc_socket::board::{self, Connection};

/// For each program under `vmmc run`: its connections, whether they are lifted, what went over them, and why not.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, serde::Serialize)]
struct Program {
    pid: u32,
    name: String,
    connections: Vec<Connection>,
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
            eprintln!("vmmc: {message}");
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
    let boards = exports.into_iter().filter(|export| export.name == board::NAME);
    let mut programs: Vec<_> = boards
        .filter_map(|export| {
            let owner = known.iter().find(|process| process.id == export.id.process)?;
            let import =
                process.import(ImportSource::Id(export.id)).rights(Rights::READ).open().ok()?;
            let memory = import.as_ptr()?;
            // SAFETY: a mapped import of this length, page-aligned; it lives until the end of this closure.
            let connections = unsafe { board::read(memory, import.len()) };
            Some(Program { pid: owner.pid, name: owner.name.clone(), connections })
        })
        .collect();
    programs.sort_by_key(|program| program.pid);
    Ok(programs)
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
    }
}
