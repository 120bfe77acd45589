//! Asynchronous I/O: a thread of the C library's (POSIX AIO) or the kernel (`io_submit`) reads and writes later, past every hook. So the connection is
//! lowered before.

use libc::{aiocb, c_int, c_long, c_ulong, sigevent};
use vmmc_socket::kernel::may_be_memory;

use crate::boundary::{catch, keep_errno, look_up_optional, next};

/// # Safety
/// `block` is null or points to a block of the program's.
unsafe fn before(block: *const aiocb) {
    if let Some(block) = block.as_ref() {
        catch((), || keep_errno(|| vmmc_socket::lower_for_writing(block.aio_fildes)));
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

/// `struct iocb`, up to its descriptor.
#[repr(C)]
pub(crate) struct Block {
    data: u64,
    key: u32,
    flags: u32,
    operation: u16,
    priority: i16,
    fd: c_int,
}

/// # Safety
/// `list` is what the program has `io_submit` read.
pub(crate) unsafe fn before_submitting(count: c_long, list: *const *const Block) {
    if !may_be_memory(list) {
        return;
    }
    for n in 0..usize::try_from(count).unwrap_or(0) {
        let block = *list.add(n);
        if !may_be_memory(block) {
            return;
        }
        let fd = (*block).fd;
        if vmmc_socket::is_tracked(fd) {
            catch((), || {
                keep_errno(|| {
                    vmmc_socket::lower_for_writing(fd);
                    vmmc_socket::epoll::lower_set(fd);
                })
            });
        }
    }
}

/// libaio's, which makes its system calls itself; it returns an error negated.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn io_submit(
    context: c_ulong,
    count: c_long,
    list: *const *const Block,
) -> c_int {
    before_submitting(count, list);
    let found = look_up_optional("io_submit\0");
    if found.is_null() {
        return -libc::ENOSYS;
    }
    // SAFETY: libaio's function of this name has this C signature.
    let native = unsafe {
        std::mem::transmute::<
            *mut libc::c_void,
            unsafe extern "C-unwind" fn(c_ulong, c_long, *const *const Block) -> c_int,
        >(found)
    };
    native(context, count, list)
}
