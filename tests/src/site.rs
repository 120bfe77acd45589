//! The surroundings of one pair of programs.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::build::{BuildError, release_programs};
use crate::running::{Running, RunningError};

/// Bound on everything that should take an instant.
const SOON: Duration = Duration::from_secs(60);

/// A directory for files, a VMMC runtime directory in it that nobody else uses, and the `vmmc` that is tried.
///
/// Dropping it stops the node service that lives there and removes the files.
#[derive(Debug)]
pub struct Site {
    directory: TempDir,
    programs: PathBuf,
    service: Service,
    /// Whose programs are run; the tester's own, if nobody is named.
    user: Option<u32>,
}

/// The node service that programs of a site use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    /// One that lives in the site.
    Own,
    /// The one that the user has anyway.
    OfUser,
    /// One for the programs of all users, that lives in the site.
    Host,
}

/// Why a site cannot be had, or a server in it does not serve.
#[derive(Debug, thiserror::Error, displaydoc::Display)]
pub enum SiteError {
    /// {0}
    Build(#[from] BuildError),
    /// cannot make a temporary directory: {0}; is the disk full?
    Directory(io::Error),
    /// {0}
    Program(#[from] RunningError),
    /// {program} does not listen on port {port}: {output}
    NotListening {
        /// The command line.
        program: String,
        /// The port that was tried.
        port: u16,
        /// What the program said.
        output: String,
    },
    /// {program} does not say '{text}': {output}
    NotReady {
        /// The command line.
        program: String,
        /// What was waited for.
        text: String,
        /// What the program said instead.
        output: String,
    },
}

impl Site {
    /// A site with a runtime directory of its own.
    pub fn new() -> Result<Self, SiteError> {
        Self::at(release_programs()?, Service::Own)
    }

    /// A site with a runtime directory of its own, and everything in it is `user`'s: for programs that refuse to be root.
    /// Only for root.
    pub fn of_uid(user: u32) -> Result<Self, SiteError> {
        let mut site = Self::new()?;
        site.user = Some(user);
        chown(site.path(), Some(user), Some(user)).map_err(SiteError::Directory)?;
        Ok(site)
    }

    /// A site with a node service for the programs of all users, under this policy. Only for root.
    pub fn of_host(policy: &str) -> Result<Self, SiteError> {
        let site = Self::at(release_programs()?, Service::Host)?;
        std::fs::write(site.path().join("policy.toml"), policy).map_err(SiteError::Directory)?;
        site.start_host()?;
        Ok(site)
    }

    /// Starts the service for all users, unless it runs.
    pub fn start_host(&self) -> Result<(), SiteError> {
        Running::start(self.vmmc().args(["node", "start", "--system"]))?.succeed(SOON)?;
        Ok(())
    }

    /// A site whose programs use the user's own runtime directory and the `vmmc` in `programs`, as a user's would.
    pub fn of_user(programs: &Path) -> Result<Self, SiteError> {
        Self::at(programs, Service::OfUser)
    }

    fn at(programs: &Path, service: Service) -> Result<Self, SiteError> {
        let directory = tempfile::Builder::new()
            .prefix("vmmc-site-")
            .tempdir()
            .map_err(SiteError::Directory)?;
        // Servers that give up root still have to read the files that they serve from here.
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755))
            .map_err(SiteError::Directory)?;
        Ok(Site { directory, programs: programs.to_owned(), service, user: None })
    }

    /// Where the pair's files go. Readable for every user.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The VMMC runtime directory, unless the site uses the user's.
    pub fn runtime_directory(&self) -> Option<PathBuf> {
        match self.service {
            Service::Own => Some(self.path().join("runtime")),
            Service::OfUser => None,
            Service::Host => Some(self.path().join("host")),
        }
    }

    /// The path of a program built from this workspace.
    pub fn built(&self, program: &str) -> PathBuf {
        self.programs.join(program)
    }

    /// A command that runs `program`, under `vmmc run --` if `lifted`.
    pub fn command(&self, lifted: bool, program: impl AsRef<Path>) -> Command {
        let mut command = if lifted {
            let mut command = self.vmmc();
            command.args(["run", "--"]).arg(program.as_ref());
            command
        } else {
            self.plain(program.as_ref())
        };
        command.current_dir(self.path());
        command
    }

    /// A command that runs `vmmc` itself.
    pub fn vmmc(&self) -> Command {
        self.plain(&self.built("vmmc"))
    }

    fn plain(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_remove("LD_PRELOAD").env_remove("VMMC_DISABLE").env_remove("VMMC_NODE_PROGRAM");
        if let Some(user) = self.user {
            command.uid(user).gid(user).env("HOME", self.path());
        }
        // What is lifted must not depend on how long the machine takes, unless it is that which is tried.
        if std::env::var_os("VMMC_PARK_AFTER").is_none() {
            command.env("VMMC_PARK_AFTER", "0");
        }
        match (self.service, self.runtime_directory()) {
            (Service::Host, Some(runtime)) => {
                command.env_remove("VMMC_RUNTIME_DIR").env("VMMC_SYSTEM_DIR", runtime);
                command.env("VMMC_SYSTEM_POLICY", self.path().join("policy.toml"));
                command.env_remove("XDG_CONFIG_HOME").env("HOME", self.path());
            }
            (_, Some(runtime)) => drop(command.env("VMMC_RUNTIME_DIR", runtime)),
            (_, None) => {}
        }
        command
    }

    /// Starts a server and waits until it listens on `port` of 127.0.0.1.
    pub fn serve(&self, command: &mut Command, port: u16) -> Result<Running, SiteError> {
        let mut server = Running::start(command)?;
        if wait_until_listening(&mut server, port) {
            return Ok(server);
        }
        let program = server.to_string();
        let output = server.kill();
        Err(SiteError::NotListening { program, port, output: output.stdout + &output.stderr })
    }

    /// Starts `command` with a pipe as its standard input; closing the returned end is its end of input.
    pub fn start_fed(&self, command: &mut Command) -> Result<(Running, io::PipeWriter), SiteError> {
        let (reader, writer) = io::pipe().map_err(SiteError::Directory)?;
        Ok((Running::start_with_input(command, Stdio::from(reader))?, writer))
    }

    /// Starts a server and waits until it writes `text` to standard output. For servers that take a first connection,
    /// made only to see whether they listen, for a client.
    pub fn serve_when_it_says(
        &self,
        command: &mut Command,
        text: &str,
    ) -> Result<Running, SiteError> {
        let mut server = Running::start(command)?;
        let end = Instant::now() + SOON;
        while Instant::now() < end && server.is_running() {
            if server.output_so_far().contains(text) {
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let program = server.to_string();
        let output = server.kill();
        Err(SiteError::NotReady {
            program,
            text: text.to_owned(),
            output: output.stdout + &output.stderr,
        })
    }

    /// The process id of the site's node service, if one runs.
    pub fn service_pid(&self) -> Option<u32> {
        let status =
            Running::start(self.vmmc().args(["node", "status", "--json"])).ok()?.wait(SOON).ok()?;
        let status: serde_json::Value = serde_json::from_str(&status.stdout).ok()?;
        if status["running"] != true {
            return None;
        }
        u32::try_from(status["pid"].as_u64()?).ok()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.runtime_directory().is_none_or(|runtime| !runtime.exists()) {
            return;
        }
        let pid = self.service_pid();
        let _ =
            Running::start(self.vmmc().args(["node", "stop"])).and_then(|mut stop| stop.wait(SOON));
        // A service that did not stop when told to must not outlive the test that started it.
        if let Some(pid) = pid.and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
            let end = Instant::now() + Duration::from_secs(2);
            while rustix::process::test_kill_process(pid).is_ok() {
                if Instant::now() > end {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// A port of 127.0.0.1 that was free a moment ago, and that the kernel gives to no connection of its own accord: else any of the
/// thousands that other tests make might have it before the server does.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_240;
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let end = first_ephemeral_port().unwrap_or(32_768).max(FIRST + 1000);
    let begin = (std::process::id() * 151 % u32::from(end - FIRST)) as u16;
    loop {
        let number = begin.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + number % (end - FIRST);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// The first of the ports that connections get.
fn first_ephemeral_port() -> Option<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    range.split_whitespace().next()?.parse().ok()
}

/// Whether something accepts connections on `port` of 127.0.0.1.
pub fn connects(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
}

/// Waits until `server` listens on `port`; false if it ends or a minute passes first.
pub fn wait_until_listening(server: &mut Running, port: u16) -> bool {
    let end = Instant::now() + SOON;
    while Instant::now() < end && server.is_running() {
        if connects(port) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}
