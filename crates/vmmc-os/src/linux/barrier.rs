//! Memory barriers made by one thread for all threads of the process, so that the others need none.

use rustix::thread::{MembarrierCommand, membarrier};

/// Makes [`process_barrier`] possible; `false` where the system does not offer it.
pub fn enable_process_barrier() -> bool {
    // Miri does not know the call.
    !cfg!(miri) && membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
}

/// When it returns, each thread of the process has passed a full memory barrier since the call. A system call of 0.2 µs, and some
/// microseconds when other threads run. Needs [`enable_process_barrier`].
pub fn process_barrier() {
    // It fails only where enabling it fails.
    let _ = membarrier(MembarrierCommand::PrivateExpedited);
}
