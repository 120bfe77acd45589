//! What a program gets that takes the address of a function by `dlsym`.
//!
//! Whoever looks among everything that is loaded (`RTLD_DEFAULT`, `RTLD_NEXT`) finds the hooks, which come first. Foreign-function interfaces
//! open the C library by its name and ask it alone (`ctypes.CDLL("libc.so.6")`, JNA, LuaJIT): they are given the hooks too, or they
//! would look for bytes on TCP that came through a ring.

use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::boundary::{catch, keep_errno, next};
use crate::stdio::before;

before!(dlsym, before_dlsym);

/// What lies behind the caller only the native function knows, called by the caller.
extern "C" fn before_dlsym(handle: *mut c_void, _: *const c_char) -> *mut c_void {
    if [libc::RTLD_DEFAULT, libc::RTLD_NEXT].contains(&handle) {
        return native_dlsym() as *mut c_void;
    }
    find as *mut c_void
}

unsafe extern "C-unwind" fn find(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    let found = native_dlsym()(handle, name);
    if found.is_null() {
        return found;
    }
    keep_errno(|| catch(found, || hook_before(found, name).unwrap_or(found)))
}

/// The hook that calls `function`, which was found as `name`. Where somebody else's stands between the two, that one may be asking for what it stands before, and
/// the hook would be called back for ever.
unsafe fn hook_before(function: *mut c_void, name: *const c_char) -> Option<*mut c_void> {
    let hook = own()?.hook(name);
    if hook.is_none() {
        // No word may be left of a name that was not found: the program's was.
        libc::dlerror();
    }
    hook.filter(|_| native_dlsym()(libc::RTLD_NEXT, name) == function)
}

type Dlsym = unsafe extern "C-unwind" fn(*mut c_void, *const c_char) -> *mut c_void;

/// The C library's `dlsym`, before which this library's stands.
pub(crate) fn native_dlsym() -> Dlsym {
    static NATIVE: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    let mut native = NATIVE.load(Ordering::Relaxed);
    if native.is_null() {
        native = versions_of_dlsym();
        NATIVE.store(native, Ordering::Relaxed);
    }
    // SAFETY: the function of this name has this signature.
    unsafe { std::mem::transmute::<*mut c_void, Dlsym>(native) }
}

/// Asked by its version, as hooks have none: that of glibc 2.34, or the first of this architecture.
#[cold]
fn versions_of_dlsym() -> *mut c_void {
    unsafe extern "C" {
        fn dlvsym(handle: *mut c_void, name: *const c_char, version: *const c_char) -> *mut c_void;
    }
    [c"GLIBC_2.34", c"GLIBC_2.2.5"]
        .into_iter()
        // SAFETY: strings that end with a NUL.
        .map(|version| unsafe { dlvsym(libc::RTLD_NEXT, c"dlsym".as_ptr(), version.as_ptr()) })
        .find(|found| !found.is_null())
        // The dynamic linker that loads this library comes with one.
        .unwrap_or_else(|| std::process::abort())
}

/// This library: its handle, and where it begins.
#[derive(Clone, Copy)]
pub(crate) struct Own(*mut c_void, *mut c_void);

/// Looked for without a lock: the dynamic linker has one, which a library's constructor that asks for an address runs under.
pub(crate) fn own() -> Option<Own> {
    static HANDLE: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    static BASE: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    let handle = HANDLE.load(Ordering::Acquire);
    if !handle.is_null() {
        return Some(Own(handle, BASE.load(Ordering::Relaxed)));
    }
    let (name, base) = home(before_dlsym as *const c_void)?;
    let native = next!(dlopen: fn(*const c_char, c_int) -> *mut c_void);
    // SAFETY: the name that the linker has for this library; no new one is loaded, and the handle is never closed.
    let handle = unsafe { native(name, libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    BASE.store(base, Ordering::Relaxed);
    HANDLE.store(handle, Ordering::Release);
    (!handle.is_null()).then_some(Own(handle, base))
}

impl Own {
    /// The hook of this name.
    ///
    /// # Safety
    /// `name` is a string that ends with a NUL.
    pub(crate) unsafe fn hook(self, name: *const c_char) -> Option<*mut c_void> {
        let hook = native_dlsym()(self.0, name);
        (!hook.is_null() && home(hook)?.1 == self.1).then_some(hook)
    }
}

/// The object that an address lies in: its name, and where it begins.
fn home(address: *const c_void) -> Option<(*const c_char, *mut c_void)> {
    // SAFETY: all-zero is a valid answer, which the call fills.
    let mut found: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: any address may be asked about.
    let known = unsafe { libc::dladdr(address, &raw mut found) } != 0;
    known.then_some((found.dli_fname, found.dli_fbase))
}
