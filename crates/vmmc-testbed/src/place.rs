//! Where a testbed is kept: its files, and who may make its namespaces.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vmmc_os::{LockFile, OsError, RuntimeDirError, prepare_runtime_dir, user_id};

use crate::namespace::{NamespaceError, enter_keeper};
use crate::occupants::Namespaces;

/// Why there is no place for a testbed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum PlaceError {
    /// {0:?} is no name for a testbed: use up to 32 small letters, digits and dashes
    Name(String),
    /// {0}
    Directory(RuntimeDirError),
    /// another `vmmc testbed` makes or removes this testbed at the moment: try again
    Busy,
    /// cannot write in {path:?} ({cause}): check its permissions
    Files {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// no user namespace can be made ({0}): run it as root, or allow them (user.max_user_namespaces, kernel.unprivileged_userns_clone)
    Keeper(String),
    /// {0}
    Namespace(NamespaceError),
}

/// A testbed's place. As root there is no keeper: the namespaces have names that the whole host knows.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) name: String,
    base: PathBuf,
    needs_keeper: bool,
}

impl Place {
    pub(crate) fn new(name: &str) -> Result<Self, PlaceError> {
        let fits = (1..=32).contains(&name.len())
            && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if !fits {
            return Err(PlaceError::Name(name.to_owned()));
        }
        let needs_keeper = user_id() != 0;
        let base = match needs_keeper {
            false => "/run/vmmc-testbed".into(),
            true => PathBuf::from(format!("/tmp/vmmc-testbed-{}", user_id())),
        };
        prepare_runtime_dir(&base, true).map_err(PlaceError::Directory)?;
        Ok(Self { name: name.to_owned(), base, needs_keeper })
    }

    /// Keeps others from making or removing this testbed meanwhile.
    pub(crate) fn lock(&self) -> Result<LockFile, PlaceError> {
        match LockFile::try_take(&self.file("lock")) {
            Ok(Some(lock)) => Ok(lock),
            Ok(None) => Err(PlaceError::Busy),
            Err(cause) => Err(self.failed(&cause)),
        }
    }

    /// What says that the testbed is complete.
    pub(crate) fn record(&self) -> PathBuf {
        self.file("json")
    }

    /// A node's own directory: its service's, and its `node.toml`.
    pub(crate) fn node_dir(&self, node: u8) -> PathBuf {
        self.nodes().join(format!("node{node}"))
    }

    pub(crate) fn make_dir(&self, path: &Path) -> Result<(), PlaceError> {
        prepare_runtime_dir(path, true).map_err(PlaceError::Directory)
    }

    pub(crate) fn make_nodes(&self) -> Result<(), PlaceError> {
        self.make_dir(&self.nodes())
    }

    /// Removes all files but the lock.
    pub(crate) fn remove_files(&self) {
        for file in [self.record(), self.file("keeper")] {
            let _ = std::fs::remove_file(file);
        }
        let _ = std::fs::remove_dir_all(self.nodes());
        let _ = std::fs::remove_dir(self.file("run"));
    }

    /// Writes a file that nobody else can read, so that it is there whole or not at all.
    pub(crate) fn write(&self, path: &Path, text: &str) -> Result<(), PlaceError> {
        let draft = path.with_extension("draft");
        let write = || {
            let mut options = OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
            file.write_all(text.as_bytes())?;
            std::fs::rename(&draft, path)
        };
        write().map_err(|cause| PlaceError::Files { path: path.into(), cause: cause.to_string() })
    }

    /// Whether the keeper lives; `None` where none is needed.
    pub(crate) fn is_kept(&self) -> Option<bool> {
        let lives = |(pid, namespace)| {
            // Its number may have come to somebody else; and one that nobody has buried yet has no mounts any more.
            let number = |kind| Namespaces::number(Path::new(&format!("/proc/{pid}/ns/{kind}")));
            number("user") == Some(namespace) && number("mnt").is_some()
        };
        self.needs_keeper.then(|| self.keeper().is_some_and(lives))
    }

    /// Goes to where the namespaces' names are known; `false` when nobody keeps that place any more. This process must have one thread only.
    pub(crate) fn enter(&self) -> Result<bool, PlaceError> {
        match (self.is_kept(), self.keeper()) {
            (None, _) => Ok(true),
            (Some(true), Some((pid, _))) => {
                enter_keeper(pid).map(|()| true).map_err(PlaceError::Namespace)
            }
            _ => Ok(false),
        }
    }

    /// Makes the place and goes there.
    pub(crate) fn make(&self) -> Result<(), PlaceError> {
        if self.needs_keeper {
            self.start_keeper()?;
            self.enter()?;
        }
        Ok(())
    }

    /// Ends the keeper and every process in its user namespace: with the last of them all its namespaces are gone.
    pub(crate) fn dissolve(&self) {
        if let Some((_, namespace)) = self.keeper() {
            Namespaces::of(namespace).clear("user");
        }
    }

    /// Starts a process that sleeps in a user namespace of its own, in which we may do what root may. The names of network namespaces live
    /// below `/run`, so it gets one of its own, with the directories of the real one in it.
    fn start_keeper(&self) -> Result<(), PlaceError> {
        const SCRIPT: &str = r#"
            set -e
            mkdir -p "$1"
            mount --rbind /run "$1"
            mount -t tmpfs -o mode=755 vmmc-testbed /run
            mkdir /run/netns
            for entry in "$1"/*; do
                target="/run/${entry##*/}"
                if [ -d "$entry" ] && [ ! -e "$target" ]; then
                    mkdir "$target" && mount --rbind "$entry" "$target"
                fi
            done
            echo ready
            read -r _
            exec sleep infinity"#;
        let failed = |cause: std::io::Error| PlaceError::Keeper(cause.to_string());
        let mut keeper = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "--net", "sh", "-c", SCRIPT, "sh"])
            .arg(self.file("run"))
            .current_dir("/")
            .env_remove("LD_PRELOAD")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let mut line = String::new();
        if let Some(stdout) = keeper.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
        }
        if line != "ready\n" {
            let output = keeper.wait_with_output().map_err(failed)?;
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(PlaceError::Keeper(said.lines().next().unwrap_or("it ended").to_owned()));
        }
        let pid = keeper.id();
        let namespace = Namespaces::number(Path::new(&format!("/proc/{pid}/ns/user")));
        let namespace = namespace.ok_or_else(|| PlaceError::Keeper("it ended".to_owned()))?;
        self.write(&self.file("keeper"), &format!("{pid} {namespace}\n"))?;
        // Only now may it go on: one that nobody knows ends at the end of its input.
        let told = keeper.stdin.take().map(|mut stdin| stdin.write_all(b"\n"));
        told.transpose().map(drop).map_err(failed)
    }

    /// The keeper's process number, and that of its user namespace, as they were noted.
    fn keeper(&self) -> Option<(u32, u64)> {
        let noted = std::fs::read_to_string(self.file("keeper")).ok()?;
        let (pid, namespace) = noted.trim().split_once(' ')?;
        Some((pid.parse().ok()?, namespace.parse().ok()?))
    }

    fn nodes(&self) -> PathBuf {
        self.base.join(&self.name)
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.base.join(format!("{}.{extension}", self.name))
    }

    fn failed(&self, cause: &OsError) -> PlaceError {
        PlaceError::Files { path: self.base.clone(), cause: cause.to_string() }
    }
}
