//! `vmmc node`: starting, stopping and asking the node service.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Subcommand;
use vmmc_node::{
    ClaimError, ClusterConfig, ClusterKey, PathStatus, Policy, ServeError, ServeOptions, TAKEN,
    serve, start, status, stop,
};
use vmmc_os::{ServiceOf, ServicePlace, close_inherited, detach};

/// The node service of this user, or of the whole host.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The host's service, in /run/vmmc, for the programs of all users; as long as its directory is there, they use it
    #[arg(long, global = true)]
    system: bool,

    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Start the service in the background, unless it runs; return when it answers
    Start {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Ask the service to leave, and wait until it has
    Stop {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether the service runs, and what it knows
    Status {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a new cluster key, for a file that only you can read
    Key,
    /// Be the service, in the foreground
    Serve {
        /// Leave terminal, session and inherited descriptors behind
        #[arg(long, hide = true)]
        detached: bool,
    },
}

impl Args {
    /// Whether this process becomes the service.
    pub(crate) fn serves(&self) -> bool {
        matches!(self.action, Action::Serve { .. })
    }
}

/// How long the service may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

pub(crate) fn run(args: Args) -> ExitCode {
    let place = if args.system { ServicePlace::of_host() } else { ServicePlace::of_environment() };
    let mut failure = ExitCode::FAILURE;
    let result = match args.action {
        Action::Start { json } => start_service(&place, json),
        Action::Stop { json } => match stop(&place, PATIENCE) {
            Ok(was_running) => {
                if place.of == ServiceOf::Host {
                    // As long as it is there, programs wait for the host's service. It stays if somebody else is about to serve there.
                    let _ = std::fs::remove_dir(&place.dir);
                }
                if json {
                    println!("{}", serde_json::json!({ "running": false, "stopped": was_running }));
                } else {
                    println!("{}", if was_running { "stopped" } else { "no service was running" });
                }
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        },
        Action::Status { json } => show_status(&place, json),
        Action::Key => {
            println!("{}", ClusterKey::random().to_hex());
            Ok(())
        }
        Action::Serve { detached } => serve_options(place, detached).and_then(|options| {
            serve(&options).map_err(|error| {
                if matches!(error, ServeError::Claim(ClaimError::Taken(_))) {
                    failure = TAKEN.into();
                }
                error.to_string()
            })
        }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain!("vmmc: {error}");
            failure
        }
    }
}

/// Starts the service of the environment unless it runs; the host's is its administrator's to start. The service is no child of this
/// process, which becomes a program that may wait for all children it has.
pub(crate) fn ensure() -> Result<(), String> {
    let place = ServicePlace::of_environment();
    if status(&place, PATIENCE).map_err(|error| error.to_string())?.is_some() {
        return Ok(());
    }
    if place.of == ServiceOf::Host {
        return Err(format!(
            "the host's node service in {} does not run: its administrator starts it with `vmmc node start --system`",
            place.dir.display()
        ));
    }
    let mut starter = Command::new(this_program()?);
    starter.args(["node", "start"]).stdin(Stdio::null()).env_remove("LD_PRELOAD");
    let ended = starter.output().map_err(|error| format!("cannot start the service ({error})"))?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    let line = said.lines().last().unwrap_or("the node service could not be started");
    Err(line.strip_prefix("vmmc: ").unwrap_or(line).to_owned())
}

fn this_program() -> Result<PathBuf, String> {
    std::env::current_exe()
        .map_err(|error| format!("cannot find this program ({error}): run it by its full path"))
}

fn start_at(place: &ServicePlace) -> Result<(u32, bool), String> {
    let program = this_program()?;
    let system: &[&str] = if place.of == ServiceOf::Host { &["--system"] } else { &[] };
    let arguments = [&["node", "serve", "--detached"], system].concat();
    start(place, &program, &arguments, PATIENCE).map_err(|error| error.to_string())
}

fn start_service(place: &ServicePlace, json: bool) -> Result<(), String> {
    let (pid, new) = start_at(place)?;
    if json {
        println!("{}", serde_json::json!({ "running": true, "pid": pid, "started": new }));
    } else if new {
        println!("started, {}", process(pid));
    } else {
        println!("already running, {}", process(pid));
    }
    Ok(())
}

/// The service's process, as it is seen from here.
pub(crate) fn process(pid: u32) -> String {
    if pid == 0 { "in another process namespace".into() } else { format!("process {pid}") }
}

fn show_status(place: &ServicePlace, json: bool) -> Result<(), String> {
    let dir = &place.dir;
    let status = status(place, PATIENCE).map_err(|error| error.to_string())?;
    match (status, json) {
        (None, true) => println!("{}", serde_json::json!({ "running": false })),
        (None, false) => println!("no service runs in {}", dir.display()),
        (Some(status), true) => {
            let answer = serde_json::json!({
                "running": true,
                "pid": status.pid,
                "node": format!("{:x}", status.node),
                "uptime_seconds": status.uptime_seconds,
                "processes": status.processes,
                "exports": status.exports,
                "imports": status.imports,
                "offers": status.offers,
                "pairs": status.pairs,
                "networks": status.networks,
                "networks_meet": status.networks_meet,
                "reserved_bytes": status.reserved_bytes,
                "pinned_limit": status.pinned_limit,
                "runtime_dir": dir,
                "paths": status.paths.iter().map(path_json).collect::<Vec<_>>(),
            });
            println!("{answer}");
        }
        (Some(status), false) => {
            println!("service      {}, up {} s", process(status.pid), status.uptime_seconds);
            println!("node         {:x}", status.node);
            println!("directory    {}", dir.display());
            println!("processes    {}", status.processes);
            println!("exports      {}", status.exports);
            println!("imports      {}", status.imports);
            println!("offers       {}", status.offers);
            println!("pairs        {}", status.pairs);
            let meet = match status.networks {
                0 | 1 => "",
                _ if status.networks_meet => ", connections between them are lifted",
                _ => ", between which nothing is lifted (see vmmc doctor)",
            };
            println!("networks     {}{meet}", status.networks);
            let (reserved, limit) = (status.reserved_bytes >> 20, status.pinned_limit >> 20);
            println!("pinned       {reserved} MiB reserved of {limit} MiB");
            status.paths.iter().for_each(show_path);
        }
    }
    Ok(())
}

fn path_json(path: &PathStatus) -> serde_json::Value {
    serde_json::json!({
        "node": path.node,
        "path": path.path,
        "up": path.up,
        "round_trip_us": path.round_trip as f64 / 1e3,
        "window_bytes": path.window,
        "in_flight_bytes": path.in_flight,
        "mtu": path.mtu,
        "packets_sent": path.packets_sent,
        "packets_lost": path.packets_lost,
    })
}

fn show_path(path: &PathStatus) {
    let PathStatus { node, path: number, window, in_flight, mtu, .. } = path;
    let (sent, lost) = (path.packets_sent, path.packets_lost);
    let round_trip = path.round_trip as f64 / 1e3;
    let up = if path.up { "up" } else { "silent" };
    println!(
        "path         {node}, {number}: {up}, round trip {round_trip:.1} us, {in_flight} of {window} bytes in flight, datagrams of {mtu} bytes, {lost} of {sent} packets lost"
    );
}

/// How to serve at `place`, as the environment says; this process leaves its starter first if it is to be `detached`.
fn serve_options(mut place: ServicePlace, detached: bool) -> Result<ServeOptions, String> {
    // A relative directory would mean another one after `detach`.
    place.dir = std::path::absolute(&place.dir).map_err(|error| {
        format!("cannot find the current directory ({error}): set VMMC_RUNTIME_DIR to a full path")
    })?;
    if detached {
        // SAFETY: this process has just started and has opened nothing yet; whatever is open above the standard streams was
        // inherited, and nobody here knows of it.
        unsafe { close_inherited(3) };
        detach().map_err(|error| format!("cannot detach ({error}): is /dev/null missing?"))?;
    }
    let seconds = std::env::var("VMMC_NODE_IDLE_SECONDS").ok();
    let seconds = match seconds.as_deref().map(str::parse::<f64>) {
        // The host's stays: nobody but its administrator would start it again.
        None if place.of == ServiceOf::Host => 1e9,
        None => 10.0,
        Some(Ok(seconds)) if (0.0..1e9).contains(&seconds) => seconds,
        Some(_) => return Err("VMMC_NODE_IDLE_SECONDS is not a number of seconds".into()),
    };
    let idle = Duration::from_secs_f64(seconds);
    let pinned_limit = match std::env::var("VMMC_NODE_PINNED_BYTES").map(|bytes| bytes.parse()) {
        Err(_) => vmmc_os::total_memory() / 4,
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => return Err("VMMC_NODE_PINNED_BYTES is not a number of bytes".into()),
    };
    let cluster = cluster(&place.dir)?;
    let policy = match place.of {
        ServiceOf::Host => Policy::of_host().map_err(|error| error.to_string())?,
        ServiceOf::User => Policy::default(),
    };
    Ok(ServeOptions { place, policy, idle, pinned_limit, cluster })
}

/// The other nodes: `$VMMC_NODE_CONFIG`, else `node.toml` in the runtime directory if there is one.
pub(crate) fn cluster(dir: &std::path::Path) -> Result<Option<ClusterConfig>, String> {
    let beside = dir.join("node.toml");
    let path = match std::env::var_os("VMMC_NODE_CONFIG").filter(|path| !path.is_empty()) {
        Some(path) => path.into(),
        None if beside.exists() => beside,
        None => return Ok(None),
    };
    ClusterConfig::read(&path).map(Some).map_err(|error| error.to_string())
}
