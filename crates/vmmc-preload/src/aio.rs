//! POSIX AIO: a thread of the C library's reads and writes later, by calls that no hook sees. So the connection is lowered before.

use libc::{aiocb, c_int, sigevent};

use crate::boundary::{catch, keep_errno, next};

/// # Safety
/// `block` is null or points to a block of the program's.
unsafe fn before(block: *const aiocb) {
    if let Some(block) = block.as_ref() {
        catch((), || keep_errno(|| vmmc_socket::lower_descriptor(block.aio_fildes)));
    }
}

macro_rules! like_read {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C-unwind" fn $name(block: *mut aiocb) -> c_int {
            before(block);
            next!($name: fn(*mut aiocb) -> c_int)(block)
        }
    )*};
}

like_read!(aio_read, aio_read64, aio_write, aio_write64);

macro_rules! like_listio {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C-unwind" fn $name(
            mode: c_int,
            list: *const *mut aiocb,
            count: c_int,
            event: *mut sigevent,
        ) -> c_int {
            let native = next!($name: fn(c_int, *const *mut aiocb, c_int, *mut sigevent) -> c_int);
            for n in 0..if list.is_null() { 0 } else { count.max(0) as usize } {
                before(*list.add(n));
            }
            native(mode, list, count, event)
        }
    )*};
}

like_listio!(lio_listio, lio_listio64);
