//! Where C meets the layer.

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

use vmmc_socket::kernel::{Errno, Outcome};
use vmmc_socket::signals::have_interrupted;
use vmmc_socket::{InFlight, Route, Sleep, Transfer};

/// The function that the C library (or whoever comes next in the search order) has under this name.
macro_rules! next {
    ($name:ident: fn($($type:ty),* $(,)?) -> $result:ty) => {{
        // SAFETY: nothing but values of this type is in the section.
        #[unsafe(link_section = "vmmc_next")]
        static NEXT: $crate::boundary::Next = $crate::boundary::Next::named(concat!(stringify!($name), "\0"));
        // SAFETY: the symbol of this name has this C signature; `get` never returns null.
        unsafe { std::mem::transmute::<*mut libc::c_void, unsafe extern "C-unwind" fn($($type),*) -> $result>(NEXT.get()) }
    }};
}
pub(crate) use next;

/// What [`next!`] names, looked up when it is first called. All of them stand in a section of their own.
pub(crate) struct Next {
    name: &'static str,
    found: AtomicPtr<c_void>,
}

impl Next {
    pub(crate) const fn named(name: &'static str) -> Self {
        Self { name, found: AtomicPtr::new(std::ptr::null_mut()) }
    }

    #[inline]
    pub(crate) fn get(&self) -> *mut c_void {
        let found = self.found.load(Ordering::Relaxed);
        if found.is_null() { self.find() } else { found }
    }

    #[cold]
    fn find(&self) -> *mut c_void {
        let found = look_up(self.name);
        self.found.store(found, Ordering::Relaxed);
        found
    }
}

/// Looks up everything that was not yet called: what a child of fork finds found it need not look up, each child again for itself
/// (eight page faults for the first one, in the linker's tables; here all of them take 25 µs).
pub(crate) fn look_up_all() {
    // The linker gives these names to the ends of the section.
    unsafe extern "C" {
        #[link_name = "__start_vmmc_next"]
        static START: u8;
        #[link_name = "__stop_vmmc_next"]
        static STOP: u8;
    }
    let (start, stop) = ((&raw const START).cast::<Next>(), (&raw const STOP).cast::<Next>());
    // SAFETY: between the two is the section, an array of such values that live as long as the library.
    let all = unsafe { std::slice::from_raw_parts(start, stop.offset_from_unsigned(start)) };
    for next in all.iter().filter(|next| next.found.load(Ordering::Relaxed).is_null()) {
        next.found.store(look_up_optional(next.name), Ordering::Relaxed);
    }
}

/// The next definition of the symbol `name` (which ends with a NUL).
pub(crate) fn look_up(name: &'static str) -> *mut libc::c_void {
    let found = look_up_optional(name);
    if found.is_null() {
        // A symbol that this C library does not have was called through this library: there is nothing to go on with.
        std::process::abort();
    }
    found
}

/// As [`look_up`], for what is in a library that need not be there; null if it is not.
pub(crate) fn look_up_optional(name: &'static str) -> *mut libc::c_void {
    debug_assert!(name.ends_with('\0'));
    #[cfg(target_arch = "x86_64")]
    let dlsym = crate::lookup::native_dlsym();
    #[cfg(not(target_arch = "x86_64"))]
    let dlsym = libc::dlsym;
    // SAFETY: `name` is NUL-terminated.
    unsafe { dlsym(libc::RTLD_NEXT, name.as_ptr().cast()) }
}

/// Calls `layer`; if it panics, the answer is `fallback`.
#[inline]
pub(crate) fn catch<R>(fallback: R, layer: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(layer)).unwrap_or(fallback)
}

/// Does the call that `begin` prepares: in the layer, sleeping outside of it where it says so, or by `kernel`.
#[inline]
pub(crate) fn transfer<T: Transfer>(
    mut begin: impl FnMut() -> Result<T, Option<InFlight>>,
    kernel: impl FnOnce() -> isize,
) -> isize {
    loop {
        let mut call = match catch(Err(None), &mut begin) {
            Ok(call) => call,
            Err(in_flight) => return by_kernel(in_flight, kernel),
        };
        let route = go_on(&mut call);
        catch((), || call.leave());
        if !matches!(route, Route::Anew) {
            return follow(|| route, kernel);
        }
    }
}

/// Until it is over for the layer.
#[inline]
fn go_on(call: &mut impl Transfer) -> Route {
    loop {
        match catch(Route::Kernel(None), || call.go()) {
            Route::Sleep(mut sleep) => {
                let outcome = doze(&mut sleep);
                if let Some(outcome) = catch(None, || call.woken(&sleep, outcome)) {
                    return Route::Done(outcome);
                }
            }
            route => return route,
        }
    }
}

/// What a sleep comes to that a handler has ended before it began.
pub(crate) const INTERRUPTED: Outcome = Err(Errno(libc::EINTR));

/// Sleeps as a call on one connection does.
fn doze(sleep: &mut Sleep) -> Outcome {
    if have_interrupted() {
        return INTERRUPTED;
    }
    let outcome = poll_natively(&mut sleep.fds, sleep.timeout, std::ptr::null());
    if outcome != Err(Errno(libc::EINVAL)) {
        return outcome;
    }
    let time = sleep.timeout.map(timespec);
    let limit = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the time lives on this frame.
    natively(|| unsafe { doze_by_select(sleep, limit) })
}

/// Polls by the C library, which makes it a cancellation point. `errno` stays as it was.
pub(crate) fn poll_natively(
    list: &mut [libc::pollfd],
    limit: Option<Duration>,
    mask: *const libc::sigset_t,
) -> Outcome {
    let native = next!(ppoll: fn(*mut libc::pollfd, libc::nfds_t, *const libc::timespec, *const libc::sigset_t) -> libc::c_int);
    let time = limit.map(timespec);
    let limit = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the time lives on this frame; the mask is the program's, or null.
    natively(|| unsafe { native(list.as_mut_ptr(), list.len() as _, limit, mask) })
}

/// What a function of the C library does. `errno` stays as it was.
pub(crate) fn natively(call: impl FnOnce() -> libc::c_int) -> Outcome {
    // SAFETY: the C library's own variable of this thread.
    let errno = unsafe { *libc::__errno_location() };
    let found = call();
    // SAFETY: as above.
    let error = std::mem::replace(unsafe { &mut *libc::__errno_location() }, errno);
    if found < 0 { Err(Errno(error)) } else { Ok(found as usize) }
}

pub(crate) fn timespec(time: Duration) -> libc::timespec {
    libc::timespec { tv_sec: time.as_secs() as _, tv_nsec: time.subsec_nanos() as _ }
}

/// Sleeps where a process may not poll two descriptors, because it may have fewer (`RLIMIT_NOFILE`): `pselect` does not ask for that.
///
/// # Safety
/// `limit` is null or points to a time.
#[cold]
unsafe fn doze_by_select(sleep: &mut Sleep, limit: *const libc::timespec) -> libc::c_int {
    /// Numbers beyond are not waited for so: the call fails.
    const NUMBERS: usize = 1 << 16;
    let native = next!(pselect: fn(libc::c_int, *mut libc::fd_set, *mut libc::fd_set, *mut libc::fd_set, *const libc::timespec, *const libc::sigset_t) -> libc::c_int);
    let place = |fd: libc::c_int| usize::try_from(fd).ok().map(|fd| (fd / 64, 1u64 << (fd % 64)));
    let top = sleep.fds.iter().map(|one| one.fd).max().unwrap_or(-1);
    if top >= NUMBERS as libc::c_int {
        return -1;
    }
    let (mut read, mut write) = ([0u64; NUMBERS / 64], [0u64; NUMBERS / 64]);
    for one in &sleep.fds {
        if let Some((word, bit)) = place(one.fd) {
            read[word] |= if one.events & !libc::POLLOUT != 0 { bit } else { 0 };
            write[word] |= if one.events & libc::POLLOUT != 0 { bit } else { 0 };
        }
    }
    let sets = [&mut read, &mut write].map(|set| set.as_mut_ptr().cast::<libc::fd_set>());
    let none = std::ptr::null_mut();
    let found = native(top + 1, sets[0], sets[1], none, limit, std::ptr::null());
    for one in &mut sleep.fds {
        let Some((word, bit)) = place(one.fd).filter(|_| found > 0) else { continue };
        one.revents |= if read[word] & bit != 0 { libc::POLLIN } else { 0 };
        one.revents |= if write[word] & bit != 0 { libc::POLLOUT } else { 0 };
    }
    found
}

/// Does what the layer says: its own outcome, or `kernel`'s.
#[inline]
pub(crate) fn follow(route: impl FnOnce() -> Route, kernel: impl FnOnce() -> isize) -> isize {
    match catch(Route::Kernel(None), route) {
        Route::Done(outcome) => result(outcome),
        Route::Kernel(in_flight) => by_kernel(in_flight, kernel),
        Route::Sleep(_) | Route::Anew => kernel(),
    }
}

fn by_kernel(in_flight: Option<InFlight>, kernel: impl FnOnce() -> isize) -> isize {
    let Some(call) = in_flight else { return kernel() };
    // Not dropped if the thread is cancelled or jumps out of the call: the connection then just stays on TCP.
    let call = ManuallyDrop::new(call);
    let result = kernel();
    keep_errno(|| catch((), || ManuallyDrop::into_inner(call).end(result)));
    result
}

/// As C functions give it: -1 and `errno` for an error.
#[inline]
pub(crate) fn result(outcome: Outcome) -> isize {
    match outcome {
        Ok(value) => value as isize,
        Err(Errno(error)) => {
            // SAFETY: the C library's own variable of this thread.
            unsafe { *libc::__errno_location() = error };
            -1
        }
    }
}

/// Calls `act`, which may use the C library, without a trace in `errno`.
#[inline]
pub(crate) fn keep_errno<R>(act: impl FnOnce() -> R) -> R {
    // SAFETY: the C library's own variable of this thread.
    let errno = unsafe { *libc::__errno_location() };
    let result = act();
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    result
}

/// A list of pieces as a slice; empty if the count is one that the kernel refuses (which then says so).
///
/// # Safety
/// As for `readv` and its like.
pub(crate) unsafe fn pieces<'a>(
    list: *const libc::iovec,
    count: usize,
) -> Option<&'a [libc::iovec]> {
    if count == 0 {
        return Some(&[]);
    }
    // SAFETY: the caller's promise.
    (count <= 1024 && !list.is_null()).then(|| unsafe { std::slice::from_raw_parts(list, count) })
}
