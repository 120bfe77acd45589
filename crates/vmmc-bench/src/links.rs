//! Everything the two processes are connected by, made once a run and the same on both sides.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::control::Control;
use crate::machine::{Machine, pin};
use crate::memory::INBOX;
use crate::options::PeerProgram;
use crate::peer::{Order, Outcome, SECOND};
use crate::shared_memory::{SharedMemory, nameless_memory};
use crate::socket;
use crate::spin::Spin;
use crate::vmmc_memory::{ByHand, VmmcInbox, VmmcMemory};
use crate::{BenchError, clock};

/// What connects this process with the other.
#[derive(Debug)]
pub(crate) struct Links {
    pub(crate) control: Control,
    pub(crate) spin: Spin,
    pub(crate) shared_memory: SharedMemory,
    pub(crate) vmmc: VmmcMemory,
    pub(crate) by_hand: ByHand,
    pub(crate) tcp: TcpStream,
    pub(crate) unix: UnixStream,
}

/// Runs one of two blocks for a path: over memory or over a stream socket.
macro_rules! over {
    ($links:expr, $path:expr, |$memory:ident| $in_memory:expr, |$stream:ident| $in_kernel:expr) => {{
        use $crate::path::Path;
        use $crate::socket::Stream;
        let links = $links;
        match $path {
            Path::Vmmc | Path::VmmcWaiting | Path::VmmcAsync => {
                let $memory = &links.vmmc;
                $in_memory
            }
            Path::SharedMemory | Path::Line => {
                let $memory = &links.shared_memory;
                $in_memory
            }
            Path::Memcpy => {
                let $memory = &links.by_hand;
                $in_memory
            }
            Path::TcpBlocking => {
                let $stream = Stream::new(&links.tcp, None)?;
                $in_kernel
            }
            Path::TcpSpinning => {
                let $stream = Stream::new(&links.tcp, Some(links.spin))?;
                $in_kernel
            }
            Path::UnixBlocking => {
                let $stream = Stream::new(&links.unix, None)?;
                $in_kernel
            }
            Path::UnixSpinning => {
                let $stream = Stream::new(&links.unix, Some(links.spin))?;
                $in_kernel
            }
        }
    }};
}
pub(crate) use over;

/// The second process; ended when dropped.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) links: Links,
    child: Reaped,
    numbers: u64,
}

/// What the first process tells the second to begin with.
#[derive(Debug, Serialize, Deserialize)]
struct Introduction {
    core: usize,
    one_core: bool,
    tcp: SocketAddr,
    export: String,
}

impl Peer {
    /// Starts the second process, connects with it in every way, and pins both.
    pub(crate) fn start(program: &PeerProgram, machine: &Machine) -> Result<Peer, BenchError> {
        // Before pinning: whatever VMMC starts (its node service outlives us) must not inherit it.
        let inbox = VmmcInbox::new()?;
        let (control, theirs) = Control::pair()?;
        let child = Reaped::start(program, SECOND, theirs)?;
        let (listener, tcp) = socket::listen()?;
        control.say(&Introduction {
            core: machine.pinned[1],
            one_core: machine.one_core(),
            tcp,
            export: inbox.name(),
        })?;
        // Hearing from it first: a process that ended already would never connect.
        control.hear::<String>()?;
        let tcp = socket::accept(&listener)?;
        let files = [nameless_memory(INBOX)?, nameless_memory(INBOX)?];
        files.iter().try_for_each(|file| control.say_with(&"memory", file.as_fd()))?;
        let (unix, their_unix) =
            UnixStream::pair().map_err(|cause| BenchError::os("make a pair of sockets", cause))?;
        control.say_with(&"unix", their_unix.as_fd())?;
        let vmmc = inbox.connect(&control.hear::<String>()?)?;
        control.say(&"connected")?;
        control.hear::<String>()?;
        let links = Links {
            spin: Spin::new(machine.one_core()),
            shared_memory: SharedMemory::new(&files[0], &files[1])?,
            by_hand: vmmc.by_hand(),
            vmmc,
            control,
            tcp,
            unix,
        };
        pin(machine.pinned[0])?;
        Ok(Peer { links, child, numbers: 1 })
    }

    /// Numbers for so many messages, never used before and rising.
    pub(crate) fn numbers(&mut self, count: u64) -> u64 {
        let first = self.numbers;
        self.numbers += count + 1;
        first
    }

    /// Has the second process carry out `order` while this one does `part`. Returns what `part` returns,
    /// and the processor time both have used meanwhile, in nanoseconds.
    pub(crate) fn together<T>(
        &mut self,
        order: &Order,
        part: impl FnOnce(&Links) -> Result<T, BenchError>,
    ) -> Result<(T, u64), BenchError> {
        self.links.control.say(order)?;
        let before = clock::cpu_time();
        let ours = part(&self.links);
        let cpu = clock::cpu_time() - before;
        if matches!(ours, Err(BenchError::Stalled)) {
            self.child.kill();
        }
        // The peer's own failure explains ours, so it goes first.
        match self.links.control.hear() {
            Ok(Outcome::Failed(why)) => Err(BenchError::PeerFailed(why)),
            Ok(Outcome::Done { cpu: theirs }) => Ok((ours?, cpu + theirs)),
            Err(cause) => ours.and(Err(cause)),
        }
    }
}

impl Links {
    /// The second process's side of [`Peer::start`].
    pub(crate) fn join(control: Control) -> Result<Links, BenchError> {
        let introduction: Introduction = control.hear()?;
        let inbox = VmmcInbox::new()?;
        let tcp = socket::connect(introduction.tcp)?;
        control.say(&"tcp")?;
        let (_, theirs): (String, OwnedFd) = control.hear_with()?;
        let (_, ours): (String, OwnedFd) = control.hear_with()?;
        let (_, unix): (String, OwnedFd) = control.hear_with()?;
        control.say(&inbox.name())?;
        let vmmc = inbox.connect(&introduction.export)?;
        control.hear::<String>()?;
        let links = Links {
            spin: Spin::new(introduction.one_core),
            shared_memory: SharedMemory::new(&ours, &theirs)?,
            by_hand: vmmc.by_hand(),
            vmmc,
            control,
            tcp,
            unix: unix.into(),
        };
        pin(introduction.core)?;
        links.control.say(&"connected")?;
        Ok(links)
    }
}

/// A child that is waited for, and killed if it does not end by itself when its line is closed.
#[derive(Debug)]
pub(crate) struct Reaped {
    child: Child,
    /// How long it may take to end by itself.
    grace: Duration,
}

impl Reaped {
    /// Starts a peer in `role`, with `line` as its standard input.
    pub(crate) fn start(
        program: &PeerProgram,
        role: &str,
        line: OwnedFd,
    ) -> Result<Reaped, BenchError> {
        let child = Command::new(&program.program)
            .args(&program.arguments)
            .args(["--peer", role])
            .stdin(Stdio::from(line))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|cause| BenchError::Start {
                program: program.program.display().to_string(),
                cause,
            })?;
        Ok(Reaped { child, grace: Duration::from_secs(1) })
    }

    fn kill(&mut self) {
        self.grace = Duration::ZERO;
        // It fails only for a child that has ended already.
        let _ = self.child.kill();
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        let start = Instant::now();
        while start.elapsed() < self.grace {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.kill();
        let _ = self.child.wait();
    }
}
