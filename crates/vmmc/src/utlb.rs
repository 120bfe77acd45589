//! The process's user-managed translation table: local pages pinned on first use, under limits of the process and the node.
//!
//! ```no_run
//! use vmmc::Process;
//! use vmmc::utlb::{Access, Located, Policy};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let options = vmmc::utlb::Options::default().limit(4 << 20).policy(Policy::Lru);
//! let process = Process::options().utlb(options).open()?;
//! let mut buffer = process.utlb().allocate(1 << 20)?;
//! buffer.bytes()[0] = 1;
//! match process.utlb().lookup(buffer.as_ptr(), buffer.len(), Access::Read)? {
//!     Located::Pinned(hold) => println!("{} bytes stay pinned until the hold is dropped", hold.len()),
//!     Located::Bounce(bounce) => println!("no room: copy {} bytes into it", bounce.len()),
//! }
//! println!("{:?}", process.utlb().counters());
//! # Ok(())
//! # }
//! ```
//!
//! The node service keeps an account of what all processes of the node have pinned (`VMMC_NODE_PINNED_BYTES`). The table asks it
//! for a megabyte at a time, so a miss seldom does and a hit never. When the node has no more, the table makes room among its own pages.
//! What a process had returns when it ends, however it ends. While there is no service, the table goes on with what it has.
//!
//! With `VMMC_UTLB_TRACE=FILE` in the environment the table writes down what is looked up: [`trace`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use vmmc_proto::{Answer, Request};

pub use vmmc_ni::utlb::*;

use crate::Process;
use crate::connection::{Connection, RequestError};
use crate::mail::Mail;
use crate::process::Inner;

impl Process {
    /// The process's table, made at the first call with the options of [`crate::OpenOptions::utlb`].
    pub fn utlb(&self) -> &Utlb {
        let inner = &self.inner;
        inner.utlb.get_or_init(|| {
            let options = inner.options.utlb.clone();
            let options = match trace::Recorder::of_environment() {
                Some(recorder) => options.trace(Arc::clone(recorder)),
                None => options,
            };
            let account = NodeAccount { inner: Arc::downgrade(inner) };
            Utlb::with(options, LocalMemory::new(), account)
        })
    }
}

/// The account that the node service keeps for this process.
#[derive(Debug)]
struct NodeAccount {
    inner: Weak<Inner>,
}

impl Account for NodeAccount {
    fn reserve(&self, bytes: u64) -> u64 {
        let Some(inner) = self.inner.upgrade() else { return 0 };
        let granted = match inner.request(&[], |seq| Request::Reserve { seq, bytes }) {
            Ok((_, Answer::Reserved { bytes, .. }, _)) => bytes,
            // No service: what it granted before stays ours, and less is always allowed.
            _ => bytes.min(inner.pinning.granted.load(Ordering::Relaxed)),
        };
        inner.pinning.granted.store(granted, Ordering::Relaxed);
        granted
    }
}

/// What the node has granted, to be told to a new service.
#[derive(Debug, Default)]
pub(crate) struct Pinning {
    granted: AtomicU64,
}

impl Pinning {
    /// Announces it to a new service. If that grants less, the table hears of it when it asks the next time.
    pub(crate) fn announce(
        &self,
        connection: &Connection,
        mail: &Mail,
        deadline: std::time::Instant,
        reads: bool,
    ) -> Result<(), RequestError> {
        let bytes = self.granted.load(Ordering::Relaxed);
        if bytes == 0 {
            return Ok(());
        }
        let make = |seq| Request::Reserve { seq, bytes };
        match connection.request(mail, deadline, reads, &[], make) {
            Err(error @ (RequestError::Lost | RequestError::Timeout)) => Err(error),
            _ => Ok(()),
        }
    }
}
