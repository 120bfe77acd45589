//! Opening VMMC in a process.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmmc_os::{
    OsError, RuntimeDirError, ServiceOf, ServicePlace, StartError, find_program, start_and_wait,
};
use vmmc_proto::HeirId;

use crate::connection::Connection;
use crate::lanes::Lanes;
use crate::{Heir, Process};

/// How to open VMMC; see [`Process::options`].
#[derive(Debug, Clone)]
pub struct OpenOptions {
    pub(crate) place: Option<ServicePlace>,
    pub(crate) start_service: bool,
    pub(crate) watcher: bool,
    pub(crate) pairing_only: bool,
    pub(crate) hosts_engine: bool,
    pub(crate) descriptor_floor: RawFd,
    pub(crate) name: String,
    pub(crate) heir: Option<HeirId>,
    pub(crate) utlb: crate::utlb::Options,
}

/// Why VMMC cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
#[non_exhaustive]
pub enum OpenError {
    /// {0}
    RuntimeDir(RuntimeDirError),
    /// no node service runs in {0:?}: start one with `vmmc node start`
    NoService(PathBuf),
    /// the host's node service is not there ({0:?}): its administrator starts it with `vmmc node start --system`, or set VMMC_SERVICE=own
    NoHostService(PathBuf),
    /// no program to start the node service with: install the `vmmc` command, or set VMMC_NODE_PROGRAM to it
    NoProgram,
    /// the node service could not be started: {0}
    Start(StartError),
    /// the node service does not answer: it is stopped or overloaded; see `vmmc node status`
    Unresponsive,
    /// the node service in {path:?} belongs to user {uid}: remove its socket, or set VMMC_RUNTIME_DIR to another directory
    ForeignService {
        /// The runtime directory.
        path: PathBuf,
        /// The service's user.
        uid: u32,
    },
    /// the node service speaks another version: end it with `vmmc node stop`, a new one starts by itself
    Version,
    /// the node service admits no more processes: raise its descriptor limit, or end some processes
    Limit,
    /// this process or the service has no descriptors or memory left ({0}): raise `ulimit -n` or close some
    Exhausted(OsError),
    /// cannot connect to {path:?} ({cause}): if the path is longer than 107 bytes, set VMMC_RUNTIME_DIR to a shorter one
    Connect {
        /// The service's socket.
        path: PathBuf,
        /// What the system said.
        cause: OsError,
    },
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            place: None,
            start_service: true,
            watcher: true,
            pairing_only: false,
            hosts_engine: true,
            descriptor_floor: 0,
            name: String::new(),
            heir: None,
            utlb: crate::utlb::Options::default(),
        }
    }
}

impl OpenOptions {
    /// The directory of a node service of this user's own. By default the environment says where the service is: in
    /// `VMMC_RUNTIME_DIR`; else the host's service (`/run/vmmc`) if there is one; else in `vmmc` in `XDG_RUNTIME_DIR`, else in
    /// `/tmp/vmmc-<uid>`.
    #[must_use]
    pub fn runtime_dir(self, dir: impl Into<PathBuf>) -> Self {
        self.place(ServicePlace::of_user(dir))
    }

    /// Where the node service is, the host's or one's own; see [`OpenOptions::runtime_dir`].
    #[must_use]
    pub fn place(mut self, place: ServicePlace) -> Self {
        self.place = Some(place);
        self
    }

    /// Whether to start a service when none runs. Default: yes.
    #[must_use]
    pub fn start_service(mut self, start: bool) -> Self {
        self.start_service = start;
        self
    }

    /// Whether a thread watches the service: reads what it sends, and returns to a new service when it dies. Default: yes.
    ///
    /// Without it (*polled mode*) the library starts no thread at all, and only opening, exporting, importing and
    /// reconnecting wait, at most 200 ms each (and a start of the service); the owner calls
    /// [`Process::poll`] when [`Process::has_mail`], and [`Process::reconnect`] after [`crate::PairingEvent::ServiceLost`].
    #[must_use]
    pub fn watcher(mut self, watcher: bool) -> Self {
        self.watcher = watcher;
        self
    }

    /// Whether the process hosts an engine of its own for what it shares with processes of other nodes: sockets and a thread, once there is
    /// such an import or importer. Without, and without a [watcher](Self::watcher), the node services carry everything: that is slower. Default: yes.
    #[must_use]
    pub fn hosts_engine(mut self, hosts: bool) -> Self {
        self.hosts_engine = hosts;
        self
    }

    /// The library's own descriptors get numbers from here on, so that the program's are what they would be without it. Default: 0.
    #[must_use]
    pub fn descriptor_floor(mut self, floor: RawFd) -> Self {
        self.descriptor_floor = floor;
        self
    }

    /// How the process calls itself in lists; at most 255 bytes count.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        let mut end = name.len().min(vmmc_proto::MAX_NAME);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        self.name = name[..end].into();
        self
    }

    /// The process is the forked child that was announced so: what was kept for it is its own ([`Process::has_inherited`]).
    #[must_use]
    pub fn heir(mut self, heir: &Heir) -> Self {
        self.heir = Some(heir.id());
        self
    }

    /// Limit and policy of the process's translation table; see [`Process::utlb`].
    #[must_use]
    pub fn utlb(mut self, options: crate::utlb::Options) -> Self {
        self.utlb = options;
        self
    }

    /// Opens VMMC.
    ///
    /// # Errors
    /// When there is no service and none can be started, or it is not ours, or does not answer.
    pub fn open(self) -> Result<Process, OpenError> {
        Process::with_options(self, Lanes::new)
    }

    /// Opens VMMC in a process that will only export and pair: the service refuses it imports by name or id, and lists. For one that
    /// will give up rights (change its user) and keeps the connection, which cannot be used to reach what it no longer may; and for
    /// a library that shall be small: such a process hosts no engine.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn open_for_pairing(mut self) -> Result<Process, OpenError> {
        self.pairing_only = true;
        Process::with_options(self, Lanes::none)
    }

    pub(crate) fn meeting(&self) -> ServicePlace {
        self.place.clone().unwrap_or_else(ServicePlace::of_environment)
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.meeting().dir
    }

    /// How long the service may take to answer.
    pub(crate) fn patience(&self) -> Duration {
        if self.watcher { Duration::from_secs(2) } else { Duration::from_millis(200) }
    }

    /// Connects, starting the service if there is none and `start` is set.
    pub(crate) fn connect(
        &self,
        lanes: &Arc<Lanes>,
        start: bool,
        resume: Option<vmmc_proto::ProcessId>,
    ) -> Result<Connection, OpenError> {
        let place = self.meeting();
        match Connection::open(self, lanes, &place, resume) {
            Err(
                OpenError::NoService(_) | OpenError::RuntimeDir(RuntimeDirError::Missing { .. }),
            ) if place.of == ServiceOf::Host => return Err(OpenError::NoHostService(place.dir)),
            Err(
                OpenError::NoService(_) | OpenError::RuntimeDir(RuntimeDirError::Missing { .. }),
            ) if start => {}
            other => return other,
        }
        place.check(true).map_err(OpenError::RuntimeDir)?;
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            start_service(&place.dir)?;
            // The service that answered `start` may have left since, or have been killed: try again.
            match Connection::open(self, lanes, &place, resume) {
                Err(OpenError::NoService(_)) if Instant::now() < deadline => {}
                other => return other,
            }
        }
    }
}

/// How long a start of the service may take.
const START_PATIENCE: Duration = Duration::from_secs(3);

fn start_service(dir: &Path) -> Result<(), OpenError> {
    let program = match std::env::var_os("VMMC_NODE_PROGRAM").filter(|name| !name.is_empty()) {
        Some(program) => program.into(),
        None => find_program("vmmc").ok_or(OpenError::NoProgram)?,
    };
    let environment = [("VMMC_RUNTIME_DIR", dir)];
    start_and_wait(&program, &["node", "start"], &environment, START_PATIENCE)
        .map_err(OpenError::Start)
}
