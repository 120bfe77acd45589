//! A file that one process at a time can hold.

use std::path::{Path, PathBuf};

use rustix::fs::{self, FlockOperation, Mode, OFlags};

use crate::{Descriptor, OsError};

/// A held lock file; released when dropped or when the process ends, removed by [`LockFile::remove`].
#[derive(Debug)]
pub struct LockFile {
    file: Descriptor,
    path: PathBuf,
}

impl LockFile {
    /// Takes the lock without waiting; `None` when another process holds it.
    ///
    /// # Errors
    /// When the file can be neither opened nor made.
    pub fn try_take(path: &Path) -> Result<Option<Self>, OsError> {
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = Descriptor::from(fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
            match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(OsError::WOULDBLOCK) => return Ok(None),
                Err(OsError::INTR) => continue,
                Err(error) => return Err(error),
            }
            // The holder before us may have removed the file between our open and our lock: then we hold a lock
            // that nobody else can see, and try again.
            let held = fs::fstat(&file)?;
            let named = fs::stat(path);
            if named.is_ok_and(|named| (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)) {
                return Ok(Some(Self { file, path: path.into() }));
            }
        }
    }

    /// Removes the file and lets go of the lock.
    pub fn remove(self) {
        // In this order: whoever opens the file before it is removed sees it locked, or finds it gone.
        let _ = fs::unlink(&self.path);
        drop(self.file);
    }
}

/// Removes a file if it is there.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove_file(path: &Path) -> Result<(), OsError> {
    match fs::unlink(path) {
        Ok(()) | Err(OsError::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}
