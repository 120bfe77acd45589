//! Going into namespaces.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use vmmc_os::OsError;

/// Why a namespace cannot be entered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum NamespaceError {
    /// cannot open the namespace {path:?} ({cause}): the testbed has lost a part, run `vmmc testbed down`
    Open {
        /// Where the kernel shows it.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// cannot go into the namespace {path:?} ({cause}): it needs root, or the user who made the testbed
    Enter {
        /// Where the kernel shows it.
        path: PathBuf,
        /// What the system said.
        cause: OsError,
    },
}

/// Moves this thread into a node's network; what it starts is there too.
pub(crate) fn enter_network(namespace: &str) -> Result<(), NamespaceError> {
    let path = Path::new("/run/netns").join(namespace);
    let file = open(&path)?;
    join(&file, &path, LinkNameSpaceType::Network)
}

/// Has what this thread starts see the devices of its network under `/sys`.
pub(crate) fn show_devices() -> Result<(), OsError> {
    // SAFETY: mounts belong to no memory or descriptor of this process, and nothing but them is parted.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    // What is mounted here is seen by nobody else.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("sysfs", "/sys", "sysfs", flags, None)
}

/// Moves this process into the namespaces of another: also its network's, because `ip` may go back only to one of which it is root. It must
/// have one thread only.
pub(crate) fn enter_keeper(pid: u32) -> Result<(), NamespaceError> {
    let at = |kind: &str| PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
    let kinds = [
        ("user", LinkNameSpaceType::User),
        ("mnt", LinkNameSpaceType::Mount),
        ("net", LinkNameSpaceType::Network),
    ];
    // All are opened first: seen from inside, the keeper is nobody that we may look at.
    let files: Vec<_> = kinds.iter().map(|(name, _)| open(&at(name))).collect::<Result<_, _>>()?;
    kinds.iter().zip(&files).try_for_each(|((name, kind), file)| join(file, &at(name), *kind))
}

fn open(path: &Path) -> Result<File, NamespaceError> {
    File::open(path)
        .map_err(|cause| NamespaceError::Open { path: path.into(), cause: cause.to_string() })
}

fn join(file: &File, path: &Path, kind: LinkNameSpaceType) -> Result<(), NamespaceError> {
    move_into_link_name_space(file.as_fd(), Some(kind))
        .map_err(|cause| NamespaceError::Enter { path: path.into(), cause })
}
