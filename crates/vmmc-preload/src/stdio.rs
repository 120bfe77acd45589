//! The C library's streams read and write descriptors by calls that no hook sees: a connection under one is lowered.

use libc::{FILE, c_char, c_int, c_void};

use crate::boundary::{catch, keep_errno, next};

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE {
    let native = next!(fdopen: fn(c_int, *const c_char) -> *mut FILE);
    catch((), || keep_errno(|| vmmc_socket::leave(fd)));
    native(fd, mode)
}

/// The second name that the C library exports for it.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn _IO_fdopen(fd: c_int, mode: *const c_char) -> *mut FILE {
    fdopen(fd, mode)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn backtrace_symbols_fd(
    list: *const *mut c_void,
    count: c_int,
    fd: c_int,
) {
    let native = next!(backtrace_symbols_fd: fn(*const *mut c_void, c_int, c_int) -> ());
    catch((), || keep_errno(|| vmmc_socket::lower_for_writing(fd)));
    native(list, count, fd);
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn vdprintf(
    fd: c_int,
    format: *const c_char,
    list: usize,
) -> c_int {
    // A `va_list` argument is passed as one pointer.
    let native = next!(vdprintf: fn(c_int, *const c_char, usize) -> c_int);
    catch((), || vmmc_socket::lower_for_writing(fd));
    native(fd, format, list)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn __vdprintf_chk(
    fd: c_int,
    flag: c_int,
    format: *const c_char,
    list: usize,
) -> c_int {
    let native = next!(__vdprintf_chk: fn(c_int, c_int, *const c_char, usize) -> c_int);
    catch((), || vmmc_socket::lower_for_writing(fd));
    native(fd, flag, format, list)
}

/// A variadic function cannot be written in Rust, nor one that returns twice, so this saves all argument registers, lets
/// `$before` see the first argument and say where the native function is, and goes on there as if nothing had been in between.
#[cfg(target_arch = "x86_64")]
macro_rules! before {
    ($name:ident, $before:path) => {
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub(crate) unsafe extern "C" fn $name() {
            std::arch::naked_asm!(
                "push rdi", "push rsi", "push rdx", "push rcx", "push r8", "push r9", "push rax",
                "sub rsp, 128",
                "movups [rsp], xmm0", "movups [rsp + 16], xmm1", "movups [rsp + 32], xmm2", "movups [rsp + 48], xmm3",
                "movups [rsp + 64], xmm4", "movups [rsp + 80], xmm5", "movups [rsp + 96], xmm6", "movups [rsp + 112], xmm7",
                "call {before}",
                "mov r11, rax",
                "movups xmm0, [rsp]", "movups xmm1, [rsp + 16]", "movups xmm2, [rsp + 32]", "movups xmm3, [rsp + 48]",
                "movups xmm4, [rsp + 64]", "movups xmm5, [rsp + 80]", "movups xmm6, [rsp + 96]", "movups xmm7, [rsp + 112]",
                "add rsp, 128",
                "pop rax", "pop r9", "pop r8", "pop rcx", "pop rdx", "pop rsi", "pop rdi",
                "jmp r11",
                before = sym $before,
            )
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use before;

#[cfg(target_arch = "x86_64")]
extern "C" fn before_dprintf(fd: c_int) -> *mut libc::c_void {
    catch((), || vmmc_socket::lower_for_writing(fd));
    crate::boundary::look_up("dprintf\0")
}

#[cfg(target_arch = "x86_64")]
extern "C" fn before_dprintf_chk(fd: c_int) -> *mut libc::c_void {
    catch((), || vmmc_socket::lower_for_writing(fd));
    crate::boundary::look_up("__dprintf_chk\0")
}

#[cfg(target_arch = "x86_64")]
before!(dprintf, before_dprintf);
#[cfg(target_arch = "x86_64")]
before!(__dprintf_chk, before_dprintf_chk);
