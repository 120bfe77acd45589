//! Who pins, and who keeps the account.

use std::fmt::Debug;
use std::ops::Range;
use std::panic::{RefUnwindSafe, UnwindSafe};

pub use vmmc_os::PinError;

/// What an engine will do with the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read them: the source of a send.
    Read,
    /// Write them: the destination of a fetch or of a redirected arrival.
    Write,
}

/// Makes pages usable for an engine, and takes that back. [`LocalMemory`] is the one there is for an engine in software;
/// a fabric with registration puts its own in front.
pub trait Memory: Debug + Send + Sync + UnwindSafe + RefUnwindSafe {
    /// Pins all pages (numbers, not addresses) and returns the word by which the fabric knows the first of them; that of the next
    /// page is one more. All or none.
    ///
    /// # Errors
    /// See [`PinError`].
    fn pin(&self, pages: Range<usize>, access: Access) -> Result<u64, PinError>;

    /// Unpins pages; some of them may be gone.
    fn unpin(&self, pages: Range<usize>);

    /// Whether the page that was pinned is still there, and still pinned.
    fn is_pinned(&self, page: usize) -> bool;
}

/// Memory of this process, pinned by the system. The engine runs in this process and uses addresses, so the fabric's word for
/// a page is the page's number.
#[derive(Debug, Clone, Copy)]
pub struct LocalMemory {
    page_size: usize,
}

impl LocalMemory {
    /// This process's.
    pub fn new() -> Self {
        Self { page_size: vmmc_os::page_size() }
    }
}

impl Default for LocalMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory for LocalMemory {
    fn pin(&self, pages: Range<usize>, access: Access) -> Result<u64, PinError> {
        let (start, len) = (pages.start * self.page_size, pages.len() * self.page_size);
        vmmc_os::pin(start, len, access == Access::Write)?;
        Ok(pages.start as u64)
    }

    fn unpin(&self, pages: Range<usize>) {
        vmmc_os::unpin(pages.start * self.page_size, pages.len() * self.page_size);
    }

    fn is_pinned(&self, page: usize) -> bool {
        vmmc_os::is_pinned(page * self.page_size)
    }
}

/// The account that a node keeps of what its processes have pinned. Asked in large steps, never on the fast path.
pub trait Account: Debug + Send + Sync + UnwindSafe + RefUnwindSafe {
    /// The process wants to have up to `bytes` pinned from now on, more or fewer than before. Returns how many it may: as many
    /// as asked for, or fewer when the node has no more.
    fn reserve(&self, bytes: u64) -> u64;
}

/// No account: as much as the process's own limit allows.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoAccount;

impl Account for NoAccount {
    fn reserve(&self, bytes: u64) -> u64 {
        bytes
    }
}
