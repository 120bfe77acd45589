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
    /// there is no runtime directory {path:?} ({cause}): no service runs there
    Missing {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        cause: OsError,
    },
}

/// `$VMMC_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/vmmc`, else `/tmp/vmmc-<uid>`.
pub fn default_runtime_dir() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(dir) = variable("VMMC_RUNTIME_DIR") {
        return dir.into();
    }
    if let Some(dir) = variable("XDG_RUNTIME_DIR") {
        return Path::new(&dir).join("vmmc");
    }
    format!("/tmp/vmmc-{}", user_id()).into()
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
