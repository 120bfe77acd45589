//! A clock that all processes of a host have in common and that costs no system call.

/// The time stamp counter. Only differences mean something.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
pub fn ticks() -> u64 {
    // SAFETY: the instruction has no preconditions.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Since this process asked first: there is no counter. What other processes say of the time is then far from it.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
#[inline]
pub fn ticks() -> u64 {
    use std::time::Instant;
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64 * 3
}

/// About one microsecond in [`ticks`] (counters run at 2 to 4 GHz; nothing here needs more precision).
pub const MICROSECOND: u64 = 3_000;
