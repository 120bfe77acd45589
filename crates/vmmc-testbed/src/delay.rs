//! Cables that take time. Few kernels have a queue that delays (netem), so a process passes the packets on: each end of such a cable is a TAP
//! device, and what goes to a node waits between them.
//!
//! ```text
//!   node's namespace     relay process            switch's namespace
//!   rail1 (TAP) ──────── at once ───────────────► node1r1 (TAP) ── bridge
//!         ◄───── queue: due after the delay ─────
//! ```
//!
//! The process lives in the switch's namespace and ends with it. Segments of one super-packet stay together (virtio headers).

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::ioctl::{IntegerSetter, Opcode, Setter, ioctl};

use crate::namespace::{NamespaceError, enter_network};
use crate::wiring::{node_namespace, port, switch_namespace};

/// Why there is no delay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum DelayError {
    /// the process that delays packets does not run ({0}): the program must be `vmmc`; without it, leave out --delay
    Start(String),
    /// no TAP device can be made ({0}): --delay needs /dev/net/tun, open to everybody unless it is root who asks; load the module tun, or leave it out
    Device(String),
    /// {0}
    Namespace(NamespaceError),
}

/// What the process says when its cables are there.
const READY: &str = "ready";
/// Bytes that may wait on one cable; more is lost, as in any queue.
const MOST_WAITING: usize = 64 << 20;
/// Packets taken from one cable before the others have their turn.
const TURN: usize = 64;
/// A super-packet with its headers.
const LARGEST: usize = 65_536 + 64;

/// Which cables take how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relay {
    /// Hosts of the testbed.
    pub nodes: u8,
    /// Networks that each of them is on.
    pub rails: u8,
    /// On the way to a node.
    pub delay: Duration,
}

/// Starts the process that delays the cables of a testbed whose namespaces are there and known to us: this program again, as `vmmc testbed relay`.
pub(crate) fn start(name: &str, Relay { nodes, rails, delay }: Relay) -> Result<(), DelayError> {
    let failed = |cause: std::io::Error| DelayError::Start(cause.to_string());
    let program = std::env::current_exe().map_err(failed)?;
    let mut relay = Command::new(program)
        .args(["testbed", "--name", name, "relay"])
        .args([format!("--nodes={nodes}"), format!("--rails={rails}")])
        .arg(format!("--delay={}us", delay.as_micros()))
        .current_dir("/")
        .env_remove("LD_PRELOAD")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut line = String::new();
    if let Some(stdout) = relay.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
    }
    if line.trim() == READY {
        return Ok(());
    }
    let output = relay.wait_with_output().map_err(failed)?;
    let said = String::from_utf8_lossy(&output.stderr);
    Err(DelayError::Start(said.lines().next().unwrap_or("it ended").to_owned()))
}

/// Is the process that delays the cables of a testbed, until it is killed; [`up`](crate::up) starts it, nobody else. It must have one thread only.
///
/// # Errors
/// See [`DelayError`].
pub fn relay(name: &str, Relay { nodes, rails, delay }: Relay) -> Result<(), DelayError> {
    let device = |cause: std::io::Error| DelayError::Device(cause.to_string());
    let cables = || (1..=nodes).flat_map(|node| (1..=rails).map(move |rail| (node, rail)));
    let mut far_ends = Vec::new();
    for (node, rail) in cables() {
        enter_network(&node_namespace(name, node)).map_err(DelayError::Namespace)?;
        far_ends.push(tap(&format!("rail{rail}")).map_err(device)?);
    }
    enter_network(&switch_namespace(name)).map_err(DelayError::Namespace)?;
    let ports = cables().map(|(node, rail)| tap(&port(node, rail)).map_err(device));
    let mut lines: Vec<Line> = ports
        .zip(far_ends)
        .map(|(port, rail)| Ok(Line { port: port?, rail, waiting: VecDeque::new(), bytes: 0 }))
        .collect::<Result<_, _>>()?;
    // Timers of ordinary threads may be 50 µs late. Where it cannot be changed they are.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    println!("{READY}");
    pass_on(&mut lines, delay).map_err(device)
}

/// A cable: both of its ends, and what is on its way to the node.
struct Line {
    port: File,
    rail: File,
    waiting: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
}

fn pass_on(lines: &mut [Line], delay: Duration) -> std::io::Result<()> {
    let mut buffer = vec![0; LARGEST];
    // Buffers that are free again.
    let mut spare: Vec<Vec<u8>> = Vec::new();
    loop {
        for line in lines.iter_mut() {
            for _ in 0..TURN {
                let Some(len) = receive(&mut line.rail, &mut buffer)? else { break };
                send(&mut line.port, &buffer[..len]);
            }
            for _ in 0..TURN {
                let Some(len) = receive(&mut line.port, &mut buffer)? else { break };
                if line.bytes + len > MOST_WAITING {
                    continue;
                }
                let mut copy = spare.pop().unwrap_or_default();
                copy.clear();
                copy.extend_from_slice(&buffer[..len]);
                line.bytes += len;
                line.waiting.push_back((Instant::now() + delay, copy));
            }
            let now = Instant::now();
            while line.waiting.front().is_some_and(|(due, _)| *due <= now) {
                let Some((_, packet)) = line.waiting.pop_front() else { break };
                send(&mut line.rail, &packet);
                line.bytes -= packet.len();
                spare.push(packet);
            }
        }
        let due = lines.iter().filter_map(|line| line.waiting.front()).map(|(due, _)| *due).min();
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut ends: Vec<_> = lines
            .iter()
            .flat_map(|line| [&line.port, &line.rail])
            .map(|end| PollFd::new(end, PollFlags::IN))
            .collect();
        match poll(&mut ends, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The next packet from a device, with its header; `None` if there is none.
fn receive(device: &mut File, buffer: &mut [u8]) -> std::io::Result<Option<usize>> {
    match device.read(buffer) {
        Ok(len) => Ok(Some(len)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A device that is down, or has no room, loses it.
fn send(device: &mut File, packet: &[u8]) {
    let _ = device.write(packet);
}

/// Makes a TAP device in the namespace that this thread is in; it is there as long as the file is open.
fn tap(name: &str) -> std::io::Result<File> {
    const TUNSETIFF: Opcode = 0x4004_54ca;
    const TUNSETOFFLOAD: Opcode = 0x4004_54d0;
    /// Ethernet frames, without a header of TAP's own, with one of virtio's.
    const FLAGS: u16 = 0x0002 | 0x1000 | 0x4000;
    /// Checksums may be left out, and TCP and UDP over IPv4 and IPv6 come in super-packets.
    const OFFLOADS: usize = 0x01 | 0x02 | 0x04 | 0x20 | 0x40;
    /// Linux's `ifreq`.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open("/dev/net/tun")?;
    let mut request = Request { name: [0; 16], flags: FLAGS, rest: [0; 22] };
    // Names of testbeds' devices are short; a longer one would lose its end.
    request.name.iter_mut().take(15).zip(name.bytes()).for_each(|(place, byte)| *place = byte);
    // SAFETY: TUNSETIFF reads an `ifreq`, which `Request` is laid out as, on a file of /dev/net/tun.
    unsafe { ioctl(&file, Setter::<TUNSETIFF, Request>::new(request)) }?;
    // SAFETY: TUNSETOFFLOAD takes its flags as a number. A kernel without USO refuses them; then UDP comes in single packets.
    unsafe {
        ioctl(&file, IntegerSetter::<TUNSETOFFLOAD>::new_usize(OFFLOADS))
            .or_else(|_| ioctl(&file, IntegerSetter::<TUNSETOFFLOAD>::new_usize(OFFLOADS & 0x07)))
    }?;
    Ok(file)
}
