//! Two players on their channels, and any number of programs played by them one after the other.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use vmmc_tests::{Connection, Running, RunningError, Site, StatError, Way};

use crate::generate::Program;
use crate::player::Player;
use crate::step::{Action, Actor, NAMES, Step};
use crate::world::World;

/// How long a step may take; a player that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(20);

/// How long warming up may take until a connection is lifted.
const LIFTING: Duration = Duration::from_secs(60);

/// Round trips of one warm-up; lifting takes some eight calls and a moment of the node service.
const ROUNDS: usize = 12;

/// Two processes of the player, in one way, ready for the next program.
#[derive(Debug)]
pub struct Stage<'a> {
    site: &'a Site,
    way: Way,
    directory: TempDir,
    listener: UnixListener,
    channels: [Option<Channel>; NAMES.len()],
    port: u16,
    programs: [Running; 2],
    /// Who is in a call that sleeps, and so can be asked nothing.
    asleep: Option<Actor>,
}

/// What became of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Played {
    /// For each step taken its number, the step as a text, and the answers of all that took part.
    pub lines: Vec<Line>,
    /// Why the connections were not made, or not all lifted that should be.
    pub not_ready: Option<String>,
    /// Whether the stage can be used for another program.
    pub usable: bool,
}

/// A step and its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The step's place in the program of its seed.
    pub number: usize,
    /// The step.
    pub step: String,
    /// What the players answered.
    pub answer: String,
}

/// Why no program can be played.
#[derive(Debug, thiserror::Error, displaydoc::Display)]
pub enum StageError {
    /// {0}
    Start(#[from] RunningError),
    /// the channel to a player cannot be made: {0}; is the disk full, or are descriptors exhausted?
    Channel(#[from] io::Error),
    /// a player does not begin: {0}
    Begin(Fault),
}

/// What a player did instead of answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, displaydoc::Display)]
pub enum Fault {
    /// (no answer)
    Silent,
    /// (gone)
    Gone,
}

#[derive(Debug)]
struct Channel {
    pid: Pid,
    input: BufReader<UnixStream>,
}

impl Channel {
    fn tell(&mut self, line: &str) -> Result<(), Fault> {
        self.input.get_mut().write_all(format!("{line}\n").as_bytes()).map_err(|_| Fault::Gone)
    }

    fn hear(&mut self) -> Result<String, Fault> {
        let mut line = String::new();
        match self.input.read_line(&mut line) {
            Ok(_) if line.ends_with('\n') => Ok(line.trim_end().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Fault::Silent),
            _ => Err(Fault::Gone),
        }
    }

    fn ask(&mut self, line: &str) -> Result<String, Fault> {
        self.tell(line)?;
        self.hear()
    }

    /// Waits until the process sleeps in the kernel, seen in several looks one after the other.
    fn await_asleep(&self) -> Result<(), Fault> {
        let end = Instant::now() + LIMIT;
        let path = format!("/proc/{}/stat", self.pid.as_raw_nonzero());
        let mut quiet = 0;
        while quiet < 3 {
            let stat = fs::read_to_string(&path).map_err(|_| Fault::Gone)?;
            let sleeps = stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" S"));
            quiet = if sleeps { quiet + 1 } else { 0 };
            if Instant::now() > end {
                return Err(Fault::Silent);
            }
            thread::sleep(Duration::from_micros(150));
        }
        Ok(())
    }
}

impl<'a> Stage<'a> {
    /// Starts two players in `way` (`b` is the server). They die with the thread that calls this.
    pub fn start(site: &'a Site, player: &Player, way: Way) -> Result<Self, StageError> {
        let directory = tempfile::Builder::new().prefix("stage-").tempdir_in(site.path())?;
        let listener = UnixListener::bind(directory.path().join("control"))?;
        listener.set_nonblocking(true)?;
        let start = |lifted, name| {
            let mut command = site.command(lifted, player.path());
            Running::start(command.arg(directory.path()).arg(name))
        };
        let programs = [start(way.lifts_client(), "a")?, start(way.lifts_server(), "b")?];
        let channels = [const { None }; NAMES.len()];
        let mut stage =
            Stage { site, way, directory, listener, channels, port: 0, programs, asleep: None };
        stage.meet(2)?;
        let port = stage.ask(1, "listen").map_err(StageError::Begin)?;
        stage.port = port.parse().map_err(|_| StageError::Begin(Fault::Silent))?;
        Ok(stage)
    }

    /// Accepts the channels of so many new processes.
    fn meet(&mut self, count: usize) -> Result<(), StageError> {
        let end = Instant::now() + LIMIT;
        for _ in 0..count {
            let stream = loop {
                match self.listener.accept() {
                    Ok((stream, _)) => break stream,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if Instant::now() > end {
                            return Err(StageError::Begin(Fault::Silent));
                        }
                        thread::sleep(Duration::from_micros(50));
                    }
                    Err(error) => return Err(error.into()),
                }
            };
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(LIMIT))?;
            let mut input = BufReader::new(stream);
            let mut line = String::new();
            input.read_line(&mut line)?;
            let (name, pid) = line.trim_end().split_once(' ').unwrap_or_default();
            let actor = NAMES.iter().position(|known| *known == name);
            let pid = pid.parse().ok().and_then(Pid::from_raw);
            let (Some(actor), Some(pid)) = (actor, pid) else {
                return Err(StageError::Begin(Fault::Gone));
            };
            self.channels[actor] = Some(Channel { pid, input });
        }
        Ok(())
    }

    fn channel(&mut self, actor: Actor) -> Result<&mut Channel, Fault> {
        self.channels[actor].as_mut().ok_or(Fault::Gone)
    }

    fn ask(&mut self, actor: Actor, line: &str) -> Result<String, Fault> {
        self.channel(actor)?.ask(line)
    }

    /// Plays those steps of the program.
    pub fn play(&mut self, program: &Program, steps: &[(usize, Step)]) -> Played {
        let mut played = Played { lines: Vec::new(), not_ready: None, usable: false };
        match self.set_up(program) {
            Ok(not_ready) => played.not_ready = not_ready,
            Err(fault) => {
                played.not_ready = Some(format!("{fault}"));
                return played;
            }
        }
        let mut world = World::new(&program.warm, program.restarts);
        for (number, step) in steps {
            let mut answers = Vec::new();
            let taken = self.take(&mut world, step, &mut answers);
            if let Err(fault) = taken {
                answers.push(fault.to_string());
            }
            let answer = answers.join("; ");
            played.lines.push(Line { number: *number, step: step.to_string(), answer });
            if taken.is_err() {
                return played;
            }
            world.apply(step);
        }
        played.usable = self.clean_up().is_ok();
        played
    }

    /// Makes the connections, and warms up those that shall be lifted; those that are not then.
    fn set_up(&mut self, program: &Program) -> Result<Option<String>, Fault> {
        let handlers = if program.restarts { "handlers restart" } else { "handlers interrupt" };
        let mut ports = Vec::new();
        for actor in 0..2 {
            self.ask(actor, handlers)?;
        }
        for (place, warm) in program.warm.iter().enumerate() {
            let port = self.ask(0, &format!("connect {place} {}", self.port))?;
            self.ask(1, &format!("accept {place}"))?;
            if *warm {
                ports.push((place, port));
            }
        }
        let end = Instant::now() + LIFTING;
        loop {
            for (place, _) in &ports {
                self.channel(1)?.tell(&format!("ping {place} {ROUNDS} 0"))?;
                self.ask(0, &format!("ping {place} {ROUNDS} 1"))?;
                self.channel(1)?.hear()?;
            }
            let lifted = |(_, port): &(_, String)| self.is_lifted(port);
            if self.way != Way::BothLifted || ports.iter().all(lifted) {
                return Ok(None);
            }
            if Instant::now() > end {
                let ends = ports.iter().map(|(_, port)| self.ends(port));
                return Ok(Some(format!("after {LIFTING:?}: {:#?}", ends.collect::<Vec<_>>())));
            }
        }
    }

    /// Whether `vmmc stat` shows both ends of the connection from this port lifted.
    fn is_lifted(&self, port: &str) -> bool {
        let carries = |end: &&Connection| end.is_lifted() && end.sent > 0 && end.received > 0;
        self.ends(port).is_ok_and(|ends| ends.iter().filter(carries).count() == 2)
    }

    /// What `vmmc stat` tells of the connection from this port to the stage's own: another stage may have one from the same.
    fn ends(&self, port: &str) -> Result<Vec<Connection>, StatError> {
        let mut ends = self.site.connections(port.parse().unwrap_or(0))?;
        let own = format!(":{}", self.port);
        ends.retain(|end| end.local.ends_with(&own) || end.peer.ends_with(&own));
        Ok(ends)
    }

    /// Takes one step and collects the answers; what its answer depends on is waited for first.
    fn take(
        &mut self,
        world: &mut World,
        step: &Step,
        answers: &mut Vec<String>,
    ) -> Result<(), Fault> {
        let by = step.by;
        self.settle(world, step, answers)?;
        match &step.action {
            Action::Sleep { call, wakers } => {
                let mut present = world.clone();
                let sleeper = self.channel(by)?;
                sleeper.tell(&format!("slowly {call}"))?;
                sleeper.hear()?;
                sleeper.await_asleep()?;
                self.asleep = Some(by);
                for waker in wakers {
                    self.take(&mut present, waker, answers)?;
                    present.apply(waker);
                }
                self.asleep = None;
                answers.push(self.channel(by)?.hear()?);
            }
            Action::Stream { place, to, into, count, pieces: [out, into_pieces], stamp } => {
                let line = format!("in {into} {count} {into_pieces}");
                self.channel(*to)?.tell(&line)?;
                answers.push(self.ask(by, &format!("out {place} {count} {out} {stamp}"))?);
                answers.push(self.channel(*to)?.hear()?);
            }
            Action::Pass { place, to, into } => {
                answers.push(self.ask(by, &format!("pass {place} {}", NAMES[*to]))?);
                answers.push(self.ask(*to, &format!("take {into}"))?);
            }
            Action::Fork { child } => {
                answers.push(self.ask(by, &step.action.to_string())?);
                self.meet(1).map_err(|_| Fault::Silent)?;
                answers.push(self.ask(*child, "")?);
            }
            Action::Leave { .. } => self.leave(world, by, &step.action.to_string(), answers)?,
            Action::Signal { to } => {
                let pid = self.channel(*to)?.pid;
                kill_process(pid, Signal::USR1).map_err(|_| Fault::Gone)?;
                // In its call again, or waiting for the next step.
                self.channel(*to)?.await_asleep()?;
            }
            action => answers.push(self.ask(by, &action.to_string())?),
        }
        Ok(())
    }

    fn settle(
        &mut self,
        world: &mut World,
        step: &Step,
        answers: &mut Vec<String>,
    ) -> Result<(), Fault> {
        for arrival in world.arrivals(step) {
            let line = format!("settle {} {} {}", arrival.place, arrival.unread, arrival.events);
            let answer = self.ask(step.by, &line)?;
            if answer != "settled" {
                answers.push(format!("{line}: {answer}"));
            }
        }
        Ok(())
    }

    fn leave(
        &mut self,
        world: &World,
        by: Actor,
        line: &str,
        answers: &mut Vec<String>,
    ) -> Result<(), Fault> {
        self.channel(by)?.tell(line)?;
        if self.channel(by)?.hear() != Err(Fault::Gone) {
            return Err(Fault::Silent);
        }
        self.channels[by] = None;
        let parent = world.parents[by].filter(|parent| world.lives(*parent));
        if let Some(parent) = parent.filter(|parent| self.asleep != Some(*parent)) {
            answers.push(self.ask(parent, "collect")?);
        }
        Ok(())
    }

    fn clean_up(&mut self) -> Result<(), Fault> {
        for child in 2..NAMES.len() {
            if let Some(mut channel) = self.channels[child].take() {
                channel.tell("leave _exit")?;
                if channel.hear() != Err(Fault::Gone) {
                    return Err(Fault::Silent);
                }
            }
        }
        for actor in 0..2 {
            self.ask(actor, "reset")?;
        }
        Ok(())
    }

    /// What the players wrote to standard error, for a report.
    pub fn errors(&mut self) -> String {
        let ended: Vec<_> = self.programs.iter_mut().map(Running::kill).collect();
        let told = ended.iter().zip(NAMES).map(|(end, name)| {
            format!("{name} ended with {}: {}", end.status, end.stderr.trim_end())
        });
        told.collect::<Vec<_>>().join("\n")
    }

    /// Where the players' sockets lie.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }
}
