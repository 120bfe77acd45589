//! Playing one scenario once.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use vmmc_tests::{Finished, Running, RunningError, Site, Way};

use crate::actor::Actor;

/// After this much time both sides are killed, with everything they started in their process groups.
const LIMIT: Duration = Duration::from_secs(40);

/// How long the runner looks for a lifted connection; the actor's warm-up gives up a little later.
const LIFTING: Duration = Duration::from_millis(8000);

/// What one side wrote, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// The transcript, line by line, and as the last line how the process ended.
    pub lines: Vec<String>,
    /// Its standard error, which is not compared.
    pub errors: String,
}

/// One scenario, played once.
#[derive(Debug, Clone)]
pub struct Played {
    /// The way in which it was played.
    pub way: Way,
    /// The server's side.
    pub server: Side,
    /// The client's side.
    pub client: Side,
    /// Whether both had ended by themselves within the limit.
    pub in_time: bool,
    /// Whether `vmmc stat` showed a lifted connection of the client while it warmed up. Only looked for when both ends
    /// are lifted.
    pub seen_lifted: bool,
}

/// Why a scenario could not even be started.
#[derive(Debug, thiserror::Error, displaydoc::Display)]
pub enum PlayError {
    /// {0}
    Start(#[from] RunningError),
    /// cannot connect the two actors: {0}; are descriptors exhausted?
    Channel(#[from] io::Error),
}

/// Plays `scenario` once in `way`, for at most forty seconds.
///
/// With both ends lifted the warm-up goes on until `vmmc stat` shows the client's connection lifted, so that what
/// follows is about lifted connections. Must be called and return on one thread: the programs die with it.
pub fn play(site: &Site, actor: &Actor, scenario: &str, way: Way) -> Result<Played, PlayError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let gate = site.path().join(format!("gate-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    let (server_channel, client_channel) = UnixStream::pair()?;
    let start = |lifted, role, channel: UnixStream| {
        let mut command = site.command(lifted, actor.path());
        command.args([scenario, role]);
        command.env_remove("ACTOR_WARM_GATE");
        if way == Way::BothLifted {
            command.env("ACTOR_WARM_GATE", &gate);
        }
        if let Some(seconds) = park_after(scenario) {
            command.env("VMMC_PARK_AFTER", seconds);
        }
        Running::start_with_input(&mut command, OwnedFd::from(channel))
    };
    let begun = Instant::now();
    let mut server = start(way.lifts_server(), "server", server_channel)?;
    let mut client = start(way.lifts_client(), "client", client_channel)?;

    let mut seen_lifted = false;
    // How often the connection was seen lifted, and parked.
    let mut turns = 0;
    let mut looks = (way == Way::BothLifted).then_some(Duration::ZERO);
    while (server.is_running() || client.is_running()) && begun.elapsed() < LIMIT {
        if let Some(next) = looks.filter(|next| begun.elapsed() >= *next) {
            looks = Some(begun.elapsed().max(next) + Duration::from_millis(20));
            let expected = if turns % 2 == 0 { Seen::Lifted } else { Seen::Parked };
            let seen = has_connection(site, client.pid(), expected);
            seen_lifted |= seen && turns == 0;
            if seen || turns == 0 && begun.elapsed() > LIFTING {
                let gate = if turns == 0 { gate.clone() } else { numbered(&gate, turns) };
                File::create(gate)?;
                turns += 1;
                looks = looks.filter(|_| park_after(scenario).is_some());
            }
        }
        thread::sleep(Duration::from_millis(2));
    }
    let in_time = !server.is_running() && !client.is_running();
    Ok(Played {
        way,
        server: side(server.kill()),
        client: side(client.kill()),
        in_time,
        seen_lifted,
    })
}

fn side(finished: Finished) -> Side {
    let mut lines: Vec<_> = finished.stdout.lines().map(str::to_owned).collect();
    lines.push(format!("ended with {}", finished.status));
    Side { lines, errors: finished.stderr }
}

/// After how many seconds idle connections are parked, where that is what a scenario is about.
fn park_after(scenario: &str) -> Option<&'static str> {
    match scenario {
        "parked_race" => Some("0.003"),
        name if name.starts_with("parked_") => Some("0.1"),
        _ => None,
    }
}

fn numbered(gate: &Path, turn: u32) -> PathBuf {
    let mut name = gate.as_os_str().to_owned();
    name.push(format!(".{turn}"));
    name.into()
}

/// What the runner looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Lifted,
    Parked,
}

/// Whether `vmmc stat` shows such a connection of process `pid`; false also when it shows nothing at all.
fn has_connection(site: &Site, pid: u32, seen: Seen) -> bool {
    let Ok(stat) = Running::start(site.vmmc().args(["stat", "--json"]))
        .and_then(|mut stat| stat.succeed(Duration::from_secs(5)))
    else {
        return false;
    };
    let Ok(stat) = serde_json::from_str::<Value>(&stat.stdout) else { return false };
    let lists = |value: &Value| value.as_array().cloned().unwrap_or_default();
    lists(&stat["processes"])
        .iter()
        .filter(|process| process["pid"] == pid)
        .flat_map(|process| lists(&process["connections"]))
        .any(|connection| match seen {
            Seen::Lifted => connection["state"] == "lifted",
            Seen::Parked => {
                let why = connection["why"].as_str().unwrap_or_default();
                connection["state"] == "tcp" && why.starts_with("idle")
            }
        })
}
