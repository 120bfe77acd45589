//! How the paths to other nodes are, as a process's own engine sees them.
//!
//! A process with lanes exports a page for others of its user, named [`NAME`]; [`read`] reads it. `vmmc stat` does so. The page is brought up
//! to date every 50 ms while bytes move, and when nobody has looked for a while.

use vmmc_proto::Rights;
use vmmc_shm::paths::PathBoard;
pub use vmmc_shm::paths::PathInfo;

use crate::import::Import;
use crate::process::Process;

/// The name of such exports.
pub const NAME: &str = "vmmc paths";

/// What a process tells of its paths; nothing if the import is none of such an export, or is not mapped.
pub fn read(import: &Import) -> Vec<PathInfo> {
    match import.as_ptr() {
        Some(start) if import.len() >= PathBoard::LEN && import.rights().contains(Rights::READ) => {
            // SAFETY: a mapped import is page-aligned, is that long, and lives as long as `import`; nothing is told.
            unsafe { PathBoard::at(start) }.read()
        }
        _ => Vec::new(),
    }
}

impl Process {
    /// The paths of this process's own engine.
    pub fn paths(&self) -> Vec<PathInfo> {
        self.inner.lanes.paths()
    }
}
