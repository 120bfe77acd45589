//! Containers made by hand: what `docker run` gives a program, without an image.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::program::find_program;
use crate::running::{Running, RunningError};
use crate::site::Site;

/// Mount, process, IPC and network namespaces of their own, in which the files of the host are seen, but not the site's: only
/// its runtime directory, under another name. Ends with its owner, and everything in it.
#[derive(Debug)]
pub struct Container {
    keeper: Running,
    /// The process number, here, of the container's first process.
    first: u32,
    vmmc: PathBuf,
}

/// Why there is no container.
#[derive(Debug, thiserror::Error, displaydoc::Display)]
pub enum ContainerError {
    /// {0}
    Program(#[from] RunningError),
    /// the container does not start: {0}
    Start(String),
    /// the container's processes cannot be found: {0}
    Processes(io::Error),
}

const SOON: Duration = Duration::from_secs(60);
/// Where programs in a container find the runtime directory: a directory that every system has.
const RUNTIME: &str = "/mnt";

impl Container {
    /// Whether there can be containers here. If not, says on standard error that `test` is skipped, and why.
    pub fn possible(test: &str) -> bool {
        let missing = ["unshare", "nsenter", "ip"].into_iter().find(|p| find_program(p).is_none());
        let reason = match missing {
            _ if !rustix::process::geteuid().is_root() => "needs root".to_owned(),
            Some(program) => format!("not installed: {program}"),
            None => return true,
        };
        let _ = writeln!(io::stderr(), "SKIPPED: {test}: {reason}");
        false
    }

    /// A container that shares with the host, and with others of the site, nothing but the runtime directory.
    pub fn new(site: &Site) -> Result<Self, ContainerError> {
        let runtime = site.path().join("runtime");
        std::fs::create_dir_all(&runtime).map_err(ContainerError::Processes)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&runtime, mode).map_err(ContainerError::Processes)?;
        let set_up = format!(
            "mount --bind '{}' {RUNTIME} && mount -t tmpfs none '{}' && mount -t tmpfs none /dev/shm && \
             ip link set lo up && echo ready && exec sleep infinity",
            runtime.display(),
            site.path().display(),
        );
        let mut keeper = Running::start(
            Command::new("unshare")
                .args([
                    "--mount",
                    "--pid",
                    "--ipc",
                    "--net",
                    "--fork",
                    "--kill-child",
                    "--mount-proc",
                ])
                .args(["sh", "-c", &set_up]),
        )?;
        let end = Instant::now() + SOON;
        while !keeper.output_so_far().contains("ready") {
            if Instant::now() > end || !keeper.is_running() {
                return Err(ContainerError::Start(keeper.kill().stderr));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let pid = keeper.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
            .map_err(ContainerError::Processes)?;
        let first = children.trim().parse().map_err(|_| ContainerError::Start(children))?;
        Ok(Self { keeper, first, vmmc: site.built("vmmc") })
    }

    /// Joins two containers by a cable, whose ends have these addresses (as `10.0.0.1/24`).
    pub fn join(
        &self,
        name: &str,
        own: &str,
        other: &Self,
        others: &str,
    ) -> Result<(), ContainerError> {
        let (mine, theirs) = (self.first.to_string(), other.first.to_string());
        let words = ["link", "add", name, "netns", &mine, "type", "veth", "peer", "name", name];
        Running::start(Command::new("ip").args(words).args(["netns", &theirs]))?.succeed(SOON)?;
        for (container, address) in [(self, own), (other, others)] {
            container.succeed(&["ip", "address", "add", address, "dev", name])?;
            container.succeed(&["ip", "link", "set", name, "up"])?;
        }
        Ok(())
    }

    /// Runs a short program in the container and demands success.
    pub fn succeed(&self, command: &[&str]) -> Result<String, ContainerError> {
        let mut inside = self.enter();
        Ok(Running::start(inside.args(command))?.succeed(SOON)?.stdout)
    }

    /// A command that runs `program` in the container, under `vmmc run --` if `lifted`.
    pub fn command(&self, lifted: bool, program: impl AsRef<Path>) -> Command {
        let mut command = self.enter();
        if lifted {
            command.arg(&self.vmmc).args(["run", "--"]);
        }
        command.arg(program.as_ref());
        command
    }

    /// A command that runs `vmmc` itself in the container.
    pub fn vmmc(&self) -> Command {
        let mut command = self.enter();
        command.arg(&self.vmmc);
        command
    }

    /// Ends everything in it.
    pub fn end(mut self) {
        self.keeper.kill();
    }

    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--pid", "--ipc", "--net", "--target", &self.first.to_string()])
            .env_remove("LD_PRELOAD")
            .env_remove("VMMC_DISABLE")
            .env_remove("VMMC_NODE_PROGRAM")
            .env("VMMC_RUNTIME_DIR", RUNTIME);
        command
    }
}
