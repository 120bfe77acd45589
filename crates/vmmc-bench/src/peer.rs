//! The second process: does what the first one orders, over the path it names.

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use crate::congestion::Swallow;
use crate::control::Control;
use crate::exchange::{OverMemory, answer};
use crate::fetching::{self, Refill};
use crate::flow::Flow;
use crate::links::{Links, over};
use crate::notify::{self, NotifyOrder};
use crate::path::Path;
use crate::redirection::{self, RedirectionOrder};
use crate::setup::{self, SetupOrder};
use crate::{BenchError, clock, idle, scale, sockets};

/// What the second process is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Answer `count` payloads of `size` bytes with payloads of `answer` bytes.
    Answer { path: Path, size: usize, answer: usize, first: u64, count: u64 },
    /// Receive a stream.
    Receive { path: Path, size: usize, first: u64, count: u64 },
    /// Offer a stream to be fetched.
    Offer { path: Path, size: usize, first: u64, count: u64 },
    /// Write the slots of our inbox anew whenever asked to.
    Refill { path: Path, size: usize, refill: Refill },
    /// Be notified.
    Notify(NotifyOrder),
    /// Receive a stream, redirected or not.
    Redirection(RedirectionOrder),
    /// Take part in setting up.
    Setup(SetupOrder),
    /// Receive a stream over a TCP connection of its own (between nodes only).
    Swallow(Swallow),
}

/// How it went.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// Done, with so many nanoseconds of processor time used.
    Done { cpu: u64 },
    /// Not done; why.
    Failed(String),
}

/// Runs another process of a measurement; `vmmc bench --peer ROLE` calls this, nobody else.
///
/// It returns when the first process has finished, and does not outlive it.
pub fn serve_peer(role: &str) -> ExitCode {
    let outcome = match role {
        SECOND => serve(),
        scale::MEMBER => scale::serve(),
        _ if idle::ROLES.contains(&role) => idle::serve(role),
        _ => sockets::serve(role),
    };
    match outcome {
        Ok(()) | Err(BenchError::PeerLost) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("vmmc bench: second process: {cause}");
            ExitCode::FAILURE
        }
    }
}

/// The role of the second process; its line to the first one is standard input.
pub(crate) const SECOND: &str = "second";

fn serve() -> Result<(), BenchError> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|cause| BenchError::os("tie a process's life to its parent's", cause))?;
    let line = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|cause| BenchError::os("take the line to the first process", cause))?;
    let links = Links::join(Control::from_descriptor(line))?;
    loop {
        let order: Order = links.control.hear()?;
        let before = clock::cpu_time();
        let outcome = match carry_out(&order, &links) {
            Ok(()) => Outcome::Done { cpu: clock::cpu_time() - before },
            Err(cause) => Outcome::Failed(cause.to_string()),
        };
        links.control.say(&outcome)?;
    }
}

fn carry_out(order: &Order, links: &Links) -> Result<(), BenchError> {
    let spin = links.spin;
    match *order {
        Order::Answer { path, size, answer: reply, first, count } => over!(
            links,
            path,
            |memory| answer(OverMemory { memory, spin, path }, size, reply, first, count),
            |stream| answer(stream, size, reply, first, count)
        ),
        Order::Receive { path, size, first, count } => {
            let flow = Flow { path, size, first, count, spin };
            over!(links, path, |memory| flow.receive(memory), |stream| flow.read(stream)).map(drop)
        }
        Order::Offer { path, size, first, count } => {
            let flow = Flow { path, size, first, count, spin };
            over!(links, path, |memory| flow.offer(memory), |stream| flow.write(stream)).map(drop)
        }
        Order::Refill { path, size, refill } => over!(
            links,
            path,
            |memory| fetching::refill(memory, size, refill, spin),
            |_stream| Err(BenchError::OutOfStep("sockets have no slots".to_owned()))
        ),
        Order::Notify(ref order) => notify::be_notified(order, links),
        Order::Redirection(ref order) => redirection::receive(order, links),
        Order::Setup(ref order) => setup::take_part(order, links),
        Order::Swallow(_) => {
            Err(BenchError::OutOfStep("this is measured between nodes".to_owned()))
        }
    }
}
