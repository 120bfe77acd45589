//! Handlers of signals run between what the layer does, never within it.
//!
//! A handler may send, receive, close, fork or jump away, on the very connection that the layer is at work on. The kernel lets
//! none in while it copies, and neither does the layer: the kernel calls `arrive` in place of what the program installs. That
//! calls the program's handler at once, unless this thread is `Inside`: then it puts the signal off. It sends it to the thread
//! again, with what the kernel told of it, and blocks all signals until the thread comes out. So it is the kernel that keeps
//! and delivers them, with the stack, mask and flags that the program asked for, however many there are. Where no signal
//! arrives that costs three loads and two stores.
//!
//! Not put off are faults, which cannot go on before they are handled; the signals of a program under a system call filter, which
//! may not be allowed to send any; and handlers installed past the functions of the C library.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, compiler_fence};

use libc::siginfo_t;

use crate::kernel;
use crate::layer;

/// What a program has installed for a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handler {
    /// The function.
    pub address: usize,
    /// It asked to be told where the signal comes from (`SA_SIGINFO`).
    pub is_told: bool,
}

/// By signal: the address of the handler, and [`TOLD`].
static HANDLERS: [AtomicUsize; 65] = [const { AtomicUsize::new(0) }; 65];
/// No address has this bit.
const TOLD: usize = 1 << (usize::BITS - 1);

/// The program has perhaps installed a handler that the kernel calls, and not [`door`].
static SOME_PASS_BY: AtomicBool = AtomicBool::new(false);

/// The program installs what may be a handler where the kernel will call it, and not [`door`].
pub fn pass_one_by() {
    SOME_PASS_BY.store(true, Ordering::Relaxed);
}

/// Whether the kernel shall call [`door`] in place of the function at `address`.
pub fn may_wait(signal: c_int, address: usize) -> bool {
    let is_function = ![libc::SIG_DFL, libc::SIG_IGN, libc::SIG_ERR, SIG_HOLD].contains(&address);
    let is_new = is_function && address != door() && (1..65).contains(&signal);
    // A child of vfork has handlers of its own, but not this table; to find out takes a system call.
    let may = is_new && layer::enabled() && !layer::confined() && layer::at_home();
    if is_new && !may {
        pass_one_by();
    }
    may
}

/// Whether every handler is put off while this thread is `Inside`, as far as the C library knows.
#[inline]
pub(crate) fn can_all_be_put_off() -> bool {
    !SOME_PASS_BY.load(Ordering::Relaxed) && !layer::confined()
}

/// To `sigset` no handler.
const SIG_HOLD: usize = 2;

/// The address of what the kernel calls.
pub fn door() -> usize {
    arrive as *const () as usize
}

/// What the program has installed for `signal`, where the kernel has [`door`].
pub fn handler(signal: c_int) -> Handler {
    let word = table(signal).map_or(0, |entry| entry.load(Ordering::Acquire));
    Handler { address: word & !TOLD, is_told: word & TOLD != 0 }
}

/// Notes what the program installs; before the kernel gets [`door`].
pub fn set_handler(signal: c_int, handler: Handler) {
    if let Some(entry) = table(signal) {
        let told = if handler.is_told { TOLD } else { 0 };
        entry.store(handler.address | told, Ordering::Release);
    }
}

/// The program installs no function where the kernel had [`door`]: the flags that the kernel has are now those that it gave.
pub fn leave_flags(signal: c_int) {
    let before = handler(signal);
    if !before.is_told && layer::at_home() {
        set_handler(signal, Handler { is_told: true, ..before });
    }
}

fn table(signal: c_int) -> Option<&'static AtomicUsize> {
    HANDLERS.get(usize::try_from(signal).ok()?)
}

/// The C library has installed [`door`] as a function that is told nothing; it needs to be.
pub fn tell(signal: c_int) {
    if let Some(mut action) = kernel::signal_action(signal) {
        action.flags |= libc::SA_SIGINFO as usize;
        kernel::set_signal_action(signal, &action);
    }
}

/// What the kernel calls.
extern "C-unwind" fn arrive(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let Handler { address, .. } = handler(signal);
    // SAFETY: a function that the program installed for this; one with fewer parameters leaves the rest alone.
    let handler = unsafe {
        std::mem::transmute::<usize, unsafe extern "C-unwind" fn(c_int, *mut siginfo_t, *mut c_void)>(
            address,
        )
    };
    THREAD.with(|thread| {
        // SAFETY: the kernel passes what belongs to this signal.
        let at = unsafe { interrupted_at(context.cast()) };
        let call = || {
            let before = thread.calls_handler();
            // SAFETY: as the kernel would.
            unsafe { handler(signal, info, context) }
            thread.has_called_handler(signal, at, &before);
        };
        let inside = thread.inside.load(Ordering::Relaxed);
        if inside == 0 {
            return call();
        }
        // SAFETY: as above.
        let told = unsafe { Told::of(signal, info) };
        if told.is_fault() || layer::confined() {
            // The handler need not come back.
            thread.inside.store(0, Ordering::Relaxed);
            call();
            thread.inside.store(inside, Ordering::Relaxed);
        // SAFETY: as above.
        } else if !unsafe { thread.put_off(told, context.cast()) } {
            call();
        }
    });
}

/// The instruction that is next when a handler has returned.
///
/// # Safety
/// `context` is what the kernel passed to the handler.
unsafe fn interrupted_at(context: *const libc::ucontext_t) -> usize {
    // SAFETY: as promised.
    let registers = unsafe { &(*context).uc_mcontext };
    #[cfg(target_arch = "x86_64")]
    let at = registers.gregs[libc::REG_RIP as usize];
    #[cfg(target_arch = "aarch64")]
    let at = registers.pc;
    at as usize
}

/// What the kernel tells of a signal.
struct Told(siginfo_t);

impl Told {
    /// # Safety
    /// As the kernel calls handlers.
    unsafe fn of(signal: c_int, info: *const siginfo_t) -> Self {
        // SAFETY: as promised. Without SA_SIGINFO (for the moment that `tell` takes) the memory is there, but says nothing.
        let mut info = unsafe { info.read() };
        if info.si_signo != signal {
            // SAFETY: plain numbers.
            info = unsafe { std::mem::zeroed() };
            info.si_signo = signal;
        }
        Self(info)
    }

    /// Sends it to this thread, where it waits until it is not blocked.
    fn send_again(mut self) -> bool {
        let (process, thread) = (kernel::process_id(), kernel::thread_id());
        let send = |info: &siginfo_t| {
            let info_at = std::ptr::from_ref(info);
            kernel::call!(SYS_rt_tgsigqueueinfo, process, thread, info.si_signo, info_at).is_ok()
        };
        if send(&self.0) {
            return true;
        }
        // Where there is no room, the kernel keeps the number of one that has this code.
        self.0.si_code = libc::SI_USER;
        send(&self.0)
    }

    /// Whether what this thread did is the cause.
    fn is_fault(&self) -> bool {
        use libc::{SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP};
        [SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS].contains(&self.0.si_signo)
            && self.0.si_code > 0
    }
}

#[derive(Debug)]
struct Thread {
    /// How many [`Inside`] it has.
    inside: AtomicUsize,
    /// The signals whose handlers have interrupted what it does since that was last forgotten: those that decide whether it goes on.
    handled: AtomicU64,
    /// Where the last of them came in.
    interrupted: AtomicUsize,
    /// How many handlers are under way, and those that were left by `longjmp`.
    handlers: AtomicUsize,
    /// Signals are put off: all are blocked.
    waiting: AtomicBool,
    /// Those that the program has blocked itself.
    blocked: AtomicU64,
}

thread_local! {
    static THREAD: Thread = const {
        Thread {
            inside: AtomicUsize::new(0),
            handled: AtomicU64::new(0),
            interrupted: AtomicUsize::new(0),
            handlers: AtomicUsize::new(0),
            waiting: AtomicBool::new(false),
            blocked: AtomicU64::new(0),
        }
    };
}

/// A call begins that may have to wait: handlers that were called before do not interrupt it. Those that are called from now on do,
/// whether it looks, has not begun to sleep, or sleeps.
pub(crate) fn forget_handled() {
    THREAD.with(|thread| thread.handled.store(0, Ordering::Relaxed));
}

/// Whether a call that is about to sleep has been interrupted before.
#[inline]
pub fn have_interrupted() -> bool {
    handled() != 0
}

/// The signals whose handlers have interrupted this thread since [`forget_handled`], a bit each from signal 1 on. Not those that ran in another's
/// handler, nor those that the kernel let in together with one that it took first: it decides by that one whether a call goes on.
pub(crate) fn handled() -> u64 {
    THREAD.with(|thread| thread.handled.load(Ordering::Relaxed))
}

/// Whether this thread runs a handler that was called through [`door`]; or has left one by `longjmp`.
pub(crate) fn is_in_handler() -> bool {
    THREAD.with(|thread| thread.handlers.load(Ordering::Relaxed) > 0)
}

/// This thread is at work in the layer until this is dropped.
#[derive(Debug)]
pub(crate) struct Inside(NonNull<Thread>);

impl Inside {
    #[inline]
    pub(crate) fn enter() -> Self {
        THREAD.with(|thread| {
            // A handler in between leaves the count as it was.
            let before = thread.inside.load(Ordering::Relaxed);
            thread.inside.store(before + 1, Ordering::Relaxed);
            compiler_fence(Ordering::SeqCst);
            Self(NonNull::from(thread))
        })
    }
}

impl Inside {
    /// See [`forget_handled`].
    #[inline]
    pub(crate) fn forget_handled(&self) {
        // SAFETY: this thread's own (the pointer keeps the value from being sent), which nothing destroys before the thread ends.
        unsafe { self.0.as_ref() }.handled.store(0, Ordering::Relaxed);
    }
}

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: this thread's own (the pointer keeps the value from being sent), which nothing destroys before the thread ends.
        let thread = unsafe { self.0.as_ref() };
        compiler_fence(Ordering::SeqCst);
        // A fault's handler may have begun anew.
        let left = thread.inside.load(Ordering::Relaxed).saturating_sub(1);
        thread.inside.store(left, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        if left == 0 && thread.waiting.load(Ordering::Relaxed) {
            thread.deliver();
        }
    }
}

/// A handler for one signal only (`SA_RESETHAND`) is gone when it is called.
fn keep_for_second_delivery(signal: c_int) {
    if let Some(mut action) = kernel::signal_action(signal)
        && action.flags & libc::SA_RESETHAND as usize != 0
        && action.handler == libc::SIG_DFL
    {
        action.handler = door();
        kernel::set_signal_action(signal, &action);
    }
}

/// How it was before a handler was called.
struct Before {
    handled: u64,
    interrupted: usize,
    handlers: usize,
}

impl Thread {
    fn calls_handler(&self) -> Before {
        let handlers = self.handlers.load(Ordering::Relaxed);
        self.handlers.store(handlers + 1, Ordering::Relaxed);
        let handled = self.handled.load(Ordering::Relaxed);
        Before { handled, interrupted: self.interrupted.load(Ordering::Relaxed), handlers }
    }

    /// What the handler's own calls have forgotten, and which others ran meanwhile, is no matter to what it has interrupted.
    fn has_called_handler(&self, signal: c_int, at: usize, before: &Before) {
        // Either this one's frame stood on that of a signal which the kernel took before, or that one's handler had kept it out.
        let came_along = at == door() || before.handled != 0 && at == before.interrupted;
        let (own, at) = if came_along { (0, before.interrupted) } else { (1 << (signal - 1), at) };
        self.handled.store(before.handled | own, Ordering::Relaxed);
        self.interrupted.store(at, Ordering::Relaxed);
        self.handlers.store(before.handlers, Ordering::Relaxed);
    }

    /// Puts a signal off that came while this thread was inside. False: it cannot be sent again.
    ///
    /// # Safety
    /// `context` is what the kernel passed to the handler.
    unsafe fn put_off(&self, told: Told, context: *mut libc::ucontext_t) -> bool {
        let signal = told.0.si_signo;
        let before = kernel::set_signal_mask(u64::MAX);
        if !told.send_again() {
            kernel::set_signal_mask(before);
            return false;
        }
        keep_for_second_delivery(signal);
        // SAFETY: the kernel takes the first word of the mask when the handler returns.
        unsafe {
            let mask = (&raw mut (*context).uc_sigmask).cast::<u64>();
            // Where several came at once, the frames of all stand before the first is put off. The lowest has the program's mask, and is the last.
            self.blocked.store(mask.read(), Ordering::Relaxed);
            mask.write(u64::MAX);
        }
        self.waiting.store(true, Ordering::Relaxed);
        true
    }

    /// Lets in what was put off.
    #[cold]
    fn deliver(&self) {
        self.waiting.store(false, Ordering::Relaxed);
        // What comes in here did not come along with what came in here before.
        self.interrupted.store(0, Ordering::Relaxed);
        kernel::set_signal_mask(self.blocked.load(Ordering::Relaxed));
    }
}
