//! The kernel's socket calls without the C library: what a hooked call does must not come back through the hooks,
//! set `errno`, or be a cancellation point.

use std::arch::asm;
use std::fmt;
use std::io::Write;
use std::time::Duration;

/// An `errno` value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Resource temporarily unavailable.
    pub const AGAIN: Self = Self(libc::EAGAIN);
    /// Interrupted by a signal handler.
    pub const INTR: Self = Self(libc::EINTR);
}

/// What a call gives.
pub type Outcome = Result<usize, Errno>;

/// A system call with up to six arguments.
///
/// # Safety
/// As for the call itself: pointers among the arguments must be valid for what the kernel does with them.
#[inline]
pub unsafe fn system_call(number: libc::c_long, a: [usize; 6]) -> Outcome {
    let result: isize;
    #[cfg(chaos)]
    vmmc::chaos::pause(40);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel's calling convention; rcx and r11 are its only clobbers beside the result and memory.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
             in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the kernel's calling convention; only x0 changes beside memory.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a[0] => result, in("x1") a[1], in("x2") a[2], in("x3") a[3],
             in("x4") a[4], in("x5") a[5], options(nostack));
    }
    #[cfg(chaos)]
    vmmc::chaos::pause(40);
    if (-4095..0).contains(&result) { Err(Errno(-result as i32)) } else { Ok(result as usize) }
}

macro_rules! call {
    ($number:ident $(, $argument:expr)* $(,)?) => {{
        let given: &[usize] = &[$($argument as usize),*];
        let mut arguments = [0usize; 6];
        arguments[..given.len()].copy_from_slice(given);
        // SAFETY: every caller below passes pointers to live values of its own, of the size the call expects, or
        // pointers that its own caller vouches for.
        unsafe { $crate::kernel::system_call(libc::$number, arguments) }
    }};
}
pub(crate) use call;

/// `recvmsg` with only data. `pieces` must be writable ranges.
pub fn receive(fd: i32, pieces: &[libc::iovec], flags: i32) -> Outcome {
    let message = data_message(pieces);
    call!(SYS_recvmsg, fd, &raw const message, flags)
}

/// `sendmsg` with only data; never raises SIGPIPE (the hook does where the native call would).
pub fn send(fd: i32, pieces: &[libc::iovec], flags: i32) -> Outcome {
    let message = data_message(pieces);
    call!(SYS_sendmsg, fd, &raw const message, flags | libc::MSG_NOSIGNAL)
}

pub(crate) fn data_message(pieces: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr (null pointers with length zero).
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_ptr().cast_mut();
    message.msg_iovlen = pieces.len() as _;
    message
}

/// Bytes written to a TCP socket that the peer's host has not acknowledged (`SIOCOUTQ`).
pub(crate) fn queued(fd: i32) -> i32 {
    let mut count = 0i32;
    let asked = call!(SYS_ioctl, fd, libc::TIOCOUTQ, &raw mut count);
    if asked.is_ok() { count.max(0) } else { 0 }
}

/// Whether a pointer may be one to the program's memory. The kernel says `EFAULT` to those that are not, like null, or -1.
#[inline]
pub fn may_be_memory<T>(pointer: *const T) -> bool {
    (0x1000..1 << 56).contains(&pointer.addr())
}

/// `ppoll` with the caller's signal mask, or the one given.
pub fn poll(
    fds: &mut [libc::pollfd],
    timeout: Option<Duration>,
    mask: *const libc::sigset_t,
) -> Outcome {
    let time = timeout
        .map(|t| libc::timespec { tv_sec: t.as_secs() as _, tv_nsec: t.subsec_nanos() as _ });
    let pointer = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    call!(SYS_ppoll, fds.as_mut_ptr(), fds.len(), pointer, mask, 8)
}

/// The events of `wanted` (and errors) that are pending on `fd` right now.
pub fn pending(fd: i32, wanted: i16) -> i16 {
    let mut one = [libc::pollfd { fd, events: wanted, revents: 0 }];
    match poll(&mut one, Some(Duration::ZERO), std::ptr::null()) {
        Ok(1..) => one[0].revents,
        _ => 0,
    }
}

/// `epoll_pwait2`: with a nanosecond timeout; none waits for ever.
pub fn epoll_wait(
    set: i32,
    events: *mut libc::epoll_event,
    most: usize,
    timeout: Option<Duration>,
    mask: *const libc::sigset_t,
) -> Outcome {
    match timeout {
        Some(Duration::ZERO) => call!(SYS_epoll_pwait, set, events, most, 0, mask, 8),
        None => call!(SYS_epoll_pwait, set, events, most, -1isize, mask, 8),
        Some(t) => {
            let time = libc::timespec { tv_sec: t.as_secs() as _, tv_nsec: t.subsec_nanos() as _ };
            match call!(SYS_epoll_pwait2, set, events, most, &raw const time, mask, 8) {
                Err(Errno(libc::ENOSYS)) => {
                    let time = milliseconds(t) as isize;
                    call!(SYS_epoll_pwait, set, events, most, time, mask, 8)
                }
                outcome => outcome,
            }
        }
    }
}

/// Milliseconds, not less than the time.
pub fn milliseconds(time: Duration) -> i32 {
    time.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(i32::MAX)
}

/// `epoll_ctl`.
pub fn epoll_ctl(set: i32, operation: i32, fd: i32, events: u32, data: u64) -> Outcome {
    let event = libc::epoll_event { events, u64: data };
    call!(SYS_epoll_ctl, set, operation, fd, &raw const event)
}

/// Rings an event descriptor. A full counter means that it is ringing already.
pub fn ring(event: i32) {
    let one = 1u64;
    let _ = call!(SYS_write, event, &raw const one, 8);
}

/// Takes all rings out of a non-blocking event descriptor.
pub fn silence(event: i32) {
    let mut count = 0u64;
    let _ = call!(SYS_read, event, &raw mut count, 8);
}

/// Takes what has come out of an epoll object with one descriptor.
pub(crate) fn hush(listener: i32) {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    let _ = epoll_wait(listener, &raw mut event, 1, Some(Duration::ZERO), std::ptr::null());
}

/// `pread64`.
pub fn read_at(fd: i32, to: *mut u8, len: usize, offset: i64) -> Outcome {
    call!(SYS_pread64, fd, to, len, offset)
}

/// A socket option of plain type.
pub fn option<T: Copy>(fd: i32, level: i32, name: i32) -> Option<T> {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    call!(SYS_getsockopt, fd, level, name, value.as_mut_ptr(), &raw mut len).ok()?;
    // SAFETY: zeroed before, filled by the kernel as far as it knows the structure; every T used here is plain integers.
    Some(unsafe { value.assume_init() })
}

/// Has TCP acknowledge what is read without waiting for bytes that it could send along: they go another way. The peer's next small
/// write, should it be over TCP after all, would wait for that (Nagle's algorithm), 40 ms or more (`TCP_DELACK_MIN`).
pub(crate) fn acknowledge_at_once(fd: i32) {
    let on = 1i32;
    let size = size_of::<i32>();
    let _ = call!(SYS_setsockopt, fd, libc::IPPROTO_TCP, libc::TCP_QUICKACK, &raw const on, size);
}

/// Whether TCP has bytes that it has not sent yet.
pub(crate) fn holds_back(fd: i32) -> bool {
    /// `linux/sockios.h`; the libc crate does not have it.
    const SIOCOUTQNSD: u32 = 0x894b;
    let mut count = 0i32;
    let asked = call!(SYS_ioctl, fd, SIOCOUTQNSD, &raw mut count);
    asked.is_ok() && count > 0
}

/// Has TCP send what it holds back because it is little (Nagle's algorithm, `TCP_CORK`).
pub fn push(fd: i32) {
    let set =
        |on: i32| call!(SYS_setsockopt, fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &raw const on, 4);
    // Setting the option sends what is there, also where it is set already.
    let on = option::<i32>(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY);
    let _ = set(1);
    if on == Some(0) {
        let _ = set(0);
    }
}

/// Bytes that wait in the kernel's receive queue.
pub fn unread(fd: i32) -> usize {
    let mut count = 0i32;
    let _ = call!(SYS_ioctl, fd, libc::FIONREAD, &raw mut count);
    count.max(0) as usize
}

/// As [`unread`], which ends at an urgent mark, but with what is behind that.
pub(crate) fn unread_beyond_mark(fd: i32) -> usize {
    let keep_inline = |on: i32| {
        let (option, size) = (libc::SO_OOBINLINE, size_of::<i32>());
        let _ = call!(SYS_setsockopt, fd, libc::SOL_SOCKET, option, &raw const on, size);
    };
    if option::<i32>(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE) != Some(0) {
        return unread(fd);
    }
    // An urgent byte that the program takes with the others is none to the count.
    keep_inline(1);
    let count = unread(fd);
    keep_inline(0);
    count
}

/// Whether the program may write four bytes at `address`; whatever stands there is gone. `fd` is a TCP connection.
pub fn probe(fd: i32, address: usize) -> Result<(), Errno> {
    match call!(SYS_ioctl, fd, libc::FIONREAD, address) {
        Err(fault @ Errno(libc::EFAULT)) => Err(fault),
        _ => Ok(()),
    }
}

/// Whether the kernel's next byte is the urgent mark.
pub fn at_mark(fd: i32) -> bool {
    const SIOCATMARK: libc::c_ulong = 0x8905;
    let mut at = 0i32;
    let _ = call!(SYS_ioctl, fd, SIOCATMARK, &raw mut at);
    at != 0
}

/// Status flags (`O_NONBLOCK` and others) of an open descriptor.
pub fn status_flags(fd: i32) -> Option<i32> {
    call!(SYS_fcntl, fd, libc::F_GETFL).ok().map(|flags| flags as i32)
}

/// Descriptor flags (`FD_CLOEXEC`) of an open descriptor.
pub fn descriptor_flags(fd: i32) -> Option<i32> {
    call!(SYS_fcntl, fd, libc::F_GETFD).ok().map(|flags| flags as i32)
}

/// What this process may have of a resource, as the kernel counts it, and to how much it may raise that.
pub(crate) fn limits(resource: libc::__rlimit_resource_t) -> Option<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let asked = call!(SYS_prlimit64, 0, resource, 0, &raw mut limit);
    asked.ok().map(|_| (limit.rlim_cur, limit.rlim_max))
}

/// What is done at a signal, as the kernel has it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SignalAction {
    /// The handler, or one of `SIG_DFL` and `SIG_IGN`.
    pub handler: usize,
    /// `SA_RESTART` and others.
    pub flags: usize,
    restorer: usize,
    mask: u64,
}

/// What is done at `signal`.
pub fn signal_action(signal: i32) -> Option<SignalAction> {
    let mut action = SignalAction { handler: 0, flags: 0, restorer: 0, mask: 0 };
    call!(SYS_rt_sigaction, signal, 0, &raw mut action, 8).ok().map(|_| action)
}

/// Changes what is done at `signal`, from what [`signal_action`] has given.
pub fn set_signal_action(signal: i32, action: &SignalAction) {
    let _ = call!(SYS_rt_sigaction, signal, std::ptr::from_ref(action), 0, 8);
}

/// Blocks the signals in `mask`, and no others, for this thread; what it was before.
pub fn set_signal_mask(mask: u64) -> u64 {
    let mut before = 0u64;
    let _ = call!(SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, &raw mut before, 8);
    before
}

/// This thread's id in its namespace.
pub fn thread_id() -> u32 {
    call!(SYS_gettid).unwrap_or(1) as u32
}

/// This process's id, asked of the kernel: a child of vfork or raw clone gives another answer than its parent.
pub fn process_id() -> u32 {
    call!(SYS_getpid).unwrap_or(1) as u32
}

/// This process's parent; 0: one that has no id in this process's namespace.
pub(crate) fn parent_id() -> u32 {
    call!(SYS_getppid).unwrap_or_default() as u32
}

/// The namespace of this process's id; 0: it cannot be known.
pub(crate) fn process_namespace() -> u64 {
    number_in(c"/proc/self/ns/pid")
}

/// Whether `/proc` shows the processes by the ids that this one knows.
pub(crate) fn shows_processes() -> bool {
    number_in(c"/proc/self") == u64::from(process_id())
}

/// The number in what a symbolic link says, such as `pid:[4026531836]`; 0 if there is none.
fn number_in(link: &std::ffi::CStr) -> u64 {
    let mut name = [0u8; 32];
    let read = call!(SYS_readlinkat, libc::AT_FDCWD, link.as_ptr(), name.as_mut_ptr(), name.len());
    let digits = name[..read.unwrap_or(0)].iter().filter(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

/// Opens a file of `/proc` to read it. Takes no memory.
pub(crate) fn open_text(path: fmt::Arguments<'_>) -> Option<usize> {
    let mut name = [0u8; 48];
    let room = name.len() - 1;
    (&mut name[..room]).write_fmt(path).ok()?;
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    call!(SYS_openat, libc::AT_FDCWD, name.as_ptr(), flags, 0).ok()
}

/// The beginning of a file of `/proc`. Takes no memory.
pub(crate) fn read_text<'a>(path: fmt::Arguments<'_>, text: &'a mut [u8]) -> Option<&'a [u8]> {
    let file = open_text(path)?;
    let read = call!(SYS_read, file, text.as_mut_ptr(), text.len());
    let _ = call!(SYS_close, file);
    Some(&text[..read.ok()?])
}

/// What a thread of this process is doing, to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    Running,
    /// It sleeps in a call: its number, and its first two arguments.
    Call([usize; 3]),
}

/// What the thread is doing; `None`: nothing that is known here, as it has ended or there is no `/proc`.
pub(crate) fn what_does(thread: u32) -> Option<Doing> {
    let mut text = [0u8; 160];
    let text = read_text(format_args!("/proc/self/task/{thread}/syscall"), &mut text)?;
    let text = std::str::from_utf8(text).ok()?;
    if text.starts_with("running") {
        return Some(Doing::Running);
    }
    let mut words = text.split_ascii_whitespace();
    let number = words.next()?.parse().ok()?;
    let mut argument = || usize::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    Some(Doing::Call([number, argument()?, argument()?]))
}

/// Lists of `poll` somewhere in this process's memory, where there may be none any more: copies as many entries as `into` has room for.
pub(crate) fn copy_poll_list(address: usize, into: &mut [libc::pollfd]) -> Option<()> {
    let len = size_of_val(into);
    let to = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: len };
    let from = libc::iovec { iov_base: address as *mut _, iov_len: len };
    let (to, from) = (&raw const to, &raw const from);
    let read = call!(SYS_process_vm_readv, process_id(), to, 1, from, 1, 0);
    (read == Ok(len)).then_some(())
}

/// What kind of file a descriptor is of: one of `S_IFMT`, or 0.
pub(crate) fn file_type(fd: i32) -> Option<u32> {
    let mut about = std::mem::MaybeUninit::<libc::stat>::zeroed();
    call!(SYS_fstat, fd, about.as_mut_ptr()).ok()?;
    // SAFETY: zeroes are such a value, and so is what the kernel has written.
    Some(unsafe { about.assume_init() }.st_mode & libc::S_IFMT)
}

/// Whether this process has a thread of this id.
pub(crate) fn is_thread(id: u32) -> bool {
    call!(SYS_tgkill, process_id(), id, 0) != Err(Errno(libc::ESRCH))
}

/// Whether a thread or process of this id exists. One that has ended does not, though its parent may not have asked yet how.
pub fn exists(id: u32) -> bool {
    call!(SYS_kill, id, 0) != Err(Errno(libc::ESRCH)) && !is_zombie(id)
}

fn is_zombie(id: u32) -> bool {
    if crate::layer::confined() {
        return false;
    }
    let mut text = [0u8; 512];
    let Some(text) = read_text(format_args!("/proc/{id}/stat"), &mut text) else { return false };
    // Behind the name, which may be anything. A process whose first thread has ended is no zombie as long as it has others.
    let Some(end) = text.iter().rposition(|byte| *byte == b')') else { return false };
    let mut words = text[end + 1..].split(|byte| *byte == b' ').skip(1);
    let (state, threads) = (words.next(), words.nth(16));
    state == Some(b"Z") && threads.is_some_and(|threads| matches!(threads, b"0" | b"1"))
}

/// How much time of a processor the thread of this process has had.
pub(crate) fn time_of_thread(thread: u32) -> Option<Duration> {
    // Such a clock's number is made of the thread's: the C library has that only for its own handles of threads.
    const CLOCK_OF_THREAD: i32 = 6;
    let clock = !(thread as i32) << 3 | CLOCK_OF_THREAD;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    call!(SYS_clock_gettime, clock, &raw mut time).ok()?;
    Some(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Gives the processor away once.
pub fn give_way() {
    let _ = call!(SYS_sched_yield);
}

/// Sleeps for so long, or until a signal comes. No point at which the thread may be cancelled, as the C library's sleep is.
pub(crate) fn pause(time: Duration) {
    futex_wait(&std::sync::atomic::AtomicU32::new(0), 0, time);
}

/// Sleeps on `word` while it holds `value`, for `most` at the longest.
pub fn futex_wait(word: &std::sync::atomic::AtomicU32, value: u32, most: Duration) {
    let time = libc::timespec { tv_sec: most.as_secs() as _, tv_nsec: most.subsec_nanos() as _ };
    let _ = call!(SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const time);
}

/// Wakes those who sleep on `word`.
pub fn futex_wake(word: &std::sync::atomic::AtomicU32, most: i32) {
    let _ = call!(SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, most);
}
