//! The directory where the node service and its clients meet.

use std::path::{Path, PathBuf};

use rustix::fs::{self, FileType, Mode};

use crate::{OsError, user_id};

/// Why a runtime directory cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum RuntimeDirError {
    /// cannot create the runtime directory {path:?} ({cause}): set VMMC_RUNTIME_DIR to a directory that you may write
    Create {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        cause: OsError,
    },
    /// runtime directory {path:?} is not a directory: remove it, or set VMMC_RUNTIME_DIR to another
    NotDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// runtime directory {path:?} belongs to user {owner}: set VMMC_RUNTIME_DIR to a directory of your own
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// runtime directory {path:?} is open to other users (mode {mode:o}): run chmod 700 on it
    Insecure {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// the host's runtime directory {path:?} can be written by others than its owner (mode {mode:o}): run chmod 755 on it
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// there is no runtime directory {path:?} ({cause}): no service runs there
    Missing {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        cause: OsError,
    },
}

/// Where a node service and its clients meet, and whose service it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePlace {
    /// The runtime directory.
    pub dir: PathBuf,
    /// Whose service.
    pub of: ServiceOf,
}

/// Whom a node service serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceOf {
    /// One user, in a directory that nobody else can enter.
    User,
    /// All users of the host, in a directory that only the service's user can write.
    Host,
}

impl ServicePlace {
    /// A directory of one user's.
    pub fn of_user(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), of: ServiceOf::User }
    }

    /// The host's directory: `$VMMC_SYSTEM_DIR`, else `/run/vmmc`.
    pub fn of_host() -> Self {
        let dir = variable("VMMC_SYSTEM_DIR").unwrap_or_else(|| SYSTEM_DIR.into());
        Self { dir: dir.into(), of: ServiceOf::Host }
    }

    /// Where this process's service is: in `$VMMC_RUNTIME_DIR` if that is set; at the host's place if there is one, whether or not its
    /// service answers at the moment, so that all processes of a user decide alike; else in the user's own directory. `VMMC_SERVICE=own` and
    /// `VMMC_SERVICE=system` decide otherwise.
    pub fn of_environment() -> Self {
        let host = Self::of_host();
        let wanted = variable("VMMC_SERVICE");
        let wanted = wanted.as_deref().and_then(|wanted| wanted.to_str());
        let at_host = match wanted {
            _ if variable("VMMC_RUNTIME_DIR").is_some() => false,
            Some("system") => true,
            Some("own") => false,
            _ => host.check(false).is_ok(),
        };
        if at_host { host } else { Self::of_user(default_runtime_dir()) }
    }

    /// The service's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("node.sock")
    }

    /// Checks that nobody but who may could put a service there; with `create`, makes the directory if it is missing. The user that the
    /// service must have (root's is as good).
    ///
    /// # Errors
    /// When it cannot be made, is missing, is no directory, or others own it or have access to it.
    pub fn check(&self, create: bool) -> Result<u32, RuntimeDirError> {
        match self.of {
            ServiceOf::User => prepare_runtime_dir(&self.dir, create).map(|()| user_id()),
            ServiceOf::Host => prepare_system_dir(&self.dir, create),
        }
    }
}

/// The host's directory.
const SYSTEM_DIR: &str = "/run/vmmc";

fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The directory of a user's own service: `$VMMC_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/vmmc`, else `/tmp/vmmc-<uid>`.
pub fn default_runtime_dir() -> PathBuf {
    if let Some(dir) = variable("VMMC_RUNTIME_DIR") {
        return dir.into();
    }
    if let Some(dir) = variable("XDG_RUNTIME_DIR") {
        return Path::new(&dir).join("vmmc");
    }
    format!("/tmp/vmmc-{}", user_id()).into()
}

/// As [`prepare_runtime_dir`] for the host's directory: its owner's. It is trusted if that is root or this user, or whoever root let make a
/// directory in one of root's own.
fn prepare_system_dir(path: &Path, create: bool) -> Result<u32, RuntimeDirError> {
    let everybody = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
    if create {
        match fs::mkdir(path, everybody) {
            // Whatever the umask says: all users have to get in.
            Ok(()) => drop(fs::chmod(path, everybody)),
            Err(OsError::EXIST) => {}
            Err(cause) => return Err(RuntimeDirError::Create { path: path.into(), cause }),
        }
    }
    let missing = |cause| RuntimeDirError::Missing { path: path.into(), cause };
    let stat = fs::lstat(path).map_err(missing)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(RuntimeDirError::NotDirectory { path: path.into() });
    }
    let above = fs::stat(path.parent().unwrap_or(path)).map_err(missing)?;
    let roots_own = above.st_uid == 0 && above.st_mode & 0o022 == 0;
    if ![0, user_id()].contains(&stat.st_uid) && !roots_own {
        return Err(RuntimeDirError::Foreign { path: path.into(), owner: stat.st_uid });
    }
    let mode = stat.st_mode & 0o7777;
    if mode & 0o022 != 0 {
        return Err(RuntimeDirError::Writable { path: path.into(), mode });
    }
    Ok(stat.st_uid)
}

/// Checks that the directory is ours and nobody else's; with `create`, makes it (mode 0700) if it is missing.
///
/// # Errors
/// When it cannot be made, is missing, is no directory, or other users own it or have access to it.
pub fn prepare_runtime_dir(path: &Path, create: bool) -> Result<(), RuntimeDirError> {
    if create {
        match fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(OsError::EXIST) => {}
            Err(cause) => return Err(RuntimeDirError::Create { path: path.into(), cause }),
        }
    }
    // `lstat`: a symbolic link in a directory that everybody may write could lead anywhere.
    let stat =
        fs::lstat(path).map_err(|cause| RuntimeDirError::Missing { path: path.into(), cause })?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(RuntimeDirError::NotDirectory { path: path.into() });
    }
    if stat.st_uid != user_id() {
        return Err(RuntimeDirError::Foreign { path: path.into(), owner: stat.st_uid });
    }
    let mode = stat.st_mode & 0o7777;
    if mode & 0o077 != 0 {
        return Err(RuntimeDirError::Insecure { path: path.into(), mode });
    }
    Ok(())
}
