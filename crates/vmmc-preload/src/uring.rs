//! io_uring by liburing, which makes its system calls itself: from the first ring on, the kernel reads and writes whatever
//! connection the program names in it, past every hook. So nothing of the program is lifted any more.

use libc::{c_int, c_uint, c_void};

use crate::boundary::{catch, keep_errno, look_up_optional};

/// What makes a ring, with liburing's own signatures; all of them return an error negated.
macro_rules! ring_makers {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {$(
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C-unwind" fn $name($($argument: $type),*) -> c_int {
            let found = look_up_optional(concat!(stringify!($name), "\0"));
            if found.is_null() {
                return -libc::ENOSYS;
            }
            // SAFETY: liburing's function of this name has this C signature.
            let native = unsafe {
                std::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn($($type),*) -> c_int>(found)
            };
            let made = native($($argument),*);
            if made >= 0 {
                keep_errno(|| catch((), vmmc_socket::lower_for_uring));
            }
            made
        }
    )*};
}

ring_makers! {
    io_uring_queue_init(entries: c_uint, ring: *mut c_void, flags: c_uint);
    io_uring_queue_init_params(entries: c_uint, ring: *mut c_void, params: *mut c_void);
    io_uring_queue_init_mem(entries: c_uint, ring: *mut c_void, params: *mut c_void, memory: *mut c_void, len: usize);
    io_uring_setup(entries: c_uint, params: *mut c_void);
}
