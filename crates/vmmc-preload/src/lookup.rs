//! What a program gets that takes the address of a function by `dlsym`.
//!
//! Whoever looks among everything that is loaded (`RTLD_DEFAULT`, `RTLD_NEXT`) finds the hooks, which come first. Foreign-function interfaces
//! open the C library by its name and ask it alone (`ctypes.CDLL("libc.so.6")`, JNA, LuaJIT): they are given the hooks too, or they
//! would look for bytes on TCP that came through a ring.

use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

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

/// This library: its handle, and where it lies.
#[derive(Clone, Copy)]
pub(crate) struct Own {
    handle: *mut c_void,
    begin: usize,
    end: usize,
}

/// Looked for without a lock: the dynamic linker has one, which a library's constructor that asks for an address runs under.
pub(crate) fn own() -> Option<Own> {
    static HANDLE: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    static BEGIN: AtomicUsize = AtomicUsize::new(0);
    static END: AtomicUsize = AtomicUsize::new(0);
    if HANDLE.load(Ordering::Acquire).is_null() {
        let own = find_own()?;
        BEGIN.store(own.begin, Ordering::Relaxed);
        END.store(own.end, Ordering::Relaxed);
        HANDLE.store(own.handle, Ordering::Release);
    }
    Some(Own {
        handle: HANDLE.load(Ordering::Relaxed),
        begin: BEGIN.load(Ordering::Relaxed),
        end: END.load(Ordering::Relaxed),
    })
}

#[cold]
fn find_own() -> Option<Own> {
    // SAFETY: all-zero is a valid answer, which the call fills.
    let mut found: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: an address of this library.
    if unsafe { libc::dladdr(before_dlsym as *const c_void, &raw mut found) } == 0 {
        return None;
    }
    let native = next!(dlopen: fn(*const c_char, c_int) -> *mut c_void);
    // SAFETY: the name that the linker has for this library; no new one is loaded, and the handle is never closed.
    let handle = unsafe { native(found.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    let begin = found.dli_fbase.addr();
    // SAFETY: an object begins with its header, which says where the list of its parts is.
    let parts = unsafe {
        let header = &*found.dli_fbase.cast::<libc::Elf64_Ehdr>();
        let list = found.dli_fbase.byte_add(header.e_phoff as usize).cast::<libc::Elf64_Phdr>();
        std::slice::from_raw_parts(list, header.e_phnum.into())
    };
    let ends = parts.iter().filter(|part| part.p_type == libc::PT_LOAD);
    let end = begin + ends.map(|part| (part.p_vaddr + part.p_memsz) as usize).max()?;
    (!handle.is_null()).then_some(Own { handle, begin, end })
}

impl Own {
    /// The hook of this name. Asked for every name that a library wants of others, so by where the function lies: `dladdr` goes through all names of its object.
    ///
    /// # Safety
    /// `name` is a string that ends with a NUL.
    pub(crate) unsafe fn hook(self, name: *const c_char) -> Option<*mut c_void> {
        let hook = native_dlsym()(self.handle, name);
        (self.begin..self.end).contains(&hook.addr()).then_some(hook)
    }
}
