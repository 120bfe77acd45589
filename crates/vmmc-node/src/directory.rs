//! One service in a runtime directory.

use std::path::PathBuf;

use vmmc_os::{
    Descriptor, LockFile, OsError, RuntimeDirError, ServiceOf, ServicePlace, listen_packets,
    remove_file,
};

/// Why the service cannot have the directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum ClaimError {
    /// {0}
    Directory(RuntimeDirError),
    /// another service already runs in {0:?}: use it, or end it with `vmmc node stop`
    Taken(PathBuf),
    /// cannot lock {path:?} ({cause}): check that the directory can be written
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        cause: OsError,
    },
    /// cannot listen at {path:?} ({cause}): if the path is longer than 107 bytes, set VMMC_RUNTIME_DIR to a shorter one
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        cause: OsError,
    },
}

/// A claimed directory with a listening socket.
#[derive(Debug)]
pub(crate) struct Directory {
    lock: LockFile,
    socket: PathBuf,
    pub(crate) listener: Descriptor,
}

impl Directory {
    /// Takes the lock, replaces the socket of a service that was killed, and listens.
    pub(crate) fn claim(place: &ServicePlace) -> Result<Self, ClaimError> {
        place.check(true).map_err(ClaimError::Directory)?;
        let lock_path = place.dir.join("node.lock");
        let lock = match LockFile::try_take(&lock_path) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Err(ClaimError::Taken(place.dir.clone())),
            Err(cause) => return Err(ClaimError::Lock { path: lock_path, cause }),
        };
        let socket = place.socket();
        let all_users = place.of == ServiceOf::Host;
        let listening = remove_file(&socket).and_then(|()| listen_packets(&socket, all_users));
        match listening {
            Ok(listener) => Ok(Self { lock, socket, listener }),
            Err(cause) => {
                lock.remove();
                Err(ClaimError::Listen { path: socket, cause })
            }
        }
    }

    /// Leaves nothing behind. Connections that wait in the queue are cut; their processes try again.
    pub(crate) fn release(self) {
        let _ = remove_file(&self.socket);
        drop(self.listener);
        self.lock.remove();
    }
}
