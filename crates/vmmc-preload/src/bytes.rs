//! Reading and writing.

use std::mem::ManuallyDrop;
use std::time::Instant;

use libc::{
    c_int, c_uint, c_void, iovec, mmsghdr, msghdr, off_t, size_t, sockaddr, socklen_t, ssize_t,
    timespec,
};

use vmmc_socket::kernel::may_be_memory;
use vmmc_socket::{Handing, Room};

use crate::boundary::{catch, keep_errno, next, pieces, transfer};

fn one(base: *const c_void, len: size_t) -> [iovec; 1] {
    [iovec { iov_base: base.cast_mut(), iov_len: len }]
}

/// Calls `with` with room for a copy of the program's list.
unsafe fn with_room(with: impl FnOnce(Option<&Room>) -> isize) -> isize {
    // Not dropped if the thread is cancelled or jumps out of the call.
    let mut room = ManuallyDrop::new(Room::default());
    let moved = with(Some(&room));
    ManuallyDrop::drop(&mut room);
    moved
}

/// Receives through the layer.
unsafe fn inward(
    fd: c_int,
    list: &[iovec],
    room: Option<&Room>,
    flags: c_int,
    kernel: impl FnOnce() -> isize,
) -> isize {
    transfer(|| vmmc_socket::receive(fd, list, room, flags), kernel)
}

/// Sends through the layer; a broken pipe raises the signal that the native call would.
unsafe fn outward(
    fd: c_int,
    list: &[iovec],
    room: Option<&Room>,
    flags: c_int,
    kernel: impl FnOnce() -> isize,
) -> isize {
    let mut native = false;
    let sent = transfer(
        || vmmc_socket::send(fd, list, room, flags),
        || {
            native = true;
            kernel()
        },
    );
    if sent < 0
        && !native
        && flags & libc::MSG_NOSIGNAL == 0
        && *libc::__errno_location() == libc::EPIPE
    {
        keep_errno(|| libc::raise(libc::SIGPIPE));
    }
    sent
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn read(fd: c_int, to: *mut c_void, len: size_t) -> ssize_t {
    let native = next!(read: fn(c_int, *mut c_void, size_t) -> ssize_t);
    if len == 0 {
        return native(fd, to, len);
    }
    inward(fd, &one(to, len), None, 0, || native(fd, to, len))
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn write(
    fd: c_int,
    from: *const c_void,
    len: size_t,
) -> ssize_t {
    let native = next!(write: fn(c_int, *const c_void, size_t) -> ssize_t);
    outward(fd, &one(from, len), None, 0, || native(fd, from, len))
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn recv(
    fd: c_int,
    to: *mut c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    let native = next!(recv: fn(c_int, *mut c_void, size_t, c_int) -> ssize_t);
    inward(fd, &one(to, len), None, flags, || native(fd, to, len, flags))
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn send(
    fd: c_int,
    from: *const c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    let native = next!(send: fn(c_int, *const c_void, size_t, c_int) -> ssize_t);
    outward(fd, &one(from, len), None, flags, || native(fd, from, len, flags))
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn readv(
    fd: c_int,
    list: *const iovec,
    count: c_int,
) -> ssize_t {
    let native = next!(readv: fn(c_int, *const iovec, c_int) -> ssize_t);
    match pieces(list, count as usize) {
        Some(pieces) if pieces.iter().any(|piece| piece.iov_len > 0) => {
            with_room(|room| inward(fd, pieces, room, 0, || native(fd, list, count)))
        }
        _ => native(fd, list, count),
    }
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn writev(
    fd: c_int,
    list: *const iovec,
    count: c_int,
) -> ssize_t {
    let native = next!(writev: fn(c_int, *const iovec, c_int) -> ssize_t);
    match pieces(list, count as usize) {
        Some(pieces) => with_room(|room| outward(fd, pieces, room, 0, || native(fd, list, count))),
        None => native(fd, list, count),
    }
}

/// The `MSG_*` flags of a `preadv2` or `pwritev2` that a ring can do: one at the file's position, as a socket has no other, that at
/// the most must not wait. With other flags its bytes must be the kernel's; at any other offset the kernel refuses a socket.
fn carried(fd: c_int, offset: off_t, flags: c_int) -> Option<c_int> {
    match flags {
        _ if offset != -1 => None,
        0 => Some(0),
        libc::RWF_NOWAIT => Some(libc::MSG_DONTWAIT),
        _ => {
            catch((), || keep_errno(|| vmmc_socket::lower_for_writing(fd)));
            None
        }
    }
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn preadv2(
    fd: c_int,
    list: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    let native = next!(preadv2: fn(c_int, *const iovec, c_int, off_t, c_int) -> ssize_t);
    let kernel = || native(fd, list, count, offset, flags);
    match (carried(fd, offset, flags), pieces(list, count as usize)) {
        (Some(flags), Some(pieces)) if pieces.iter().any(|piece| piece.iov_len > 0) => {
            with_room(|room| inward(fd, pieces, room, flags, kernel))
        }
        _ => kernel(),
    }
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn preadv64v2(
    fd: c_int,
    list: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    preadv2(fd, list, count, offset, flags)
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn pwritev2(
    fd: c_int,
    list: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    let native = next!(pwritev2: fn(c_int, *const iovec, c_int, off_t, c_int) -> ssize_t);
    let kernel = || native(fd, list, count, offset, flags);
    match (carried(fd, offset, flags), pieces(list, count as usize)) {
        (Some(flags), Some(pieces)) => with_room(|room| outward(fd, pieces, room, flags, kernel)),
        _ => kernel(),
    }
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn pwritev64v2(
    fd: c_int,
    list: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    pwritev2(fd, list, count, offset, flags)
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn recvfrom(
    fd: c_int,
    to: *mut c_void,
    len: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_len: *mut socklen_t,
) -> ssize_t {
    let native = next!(recvfrom: fn(c_int, *mut c_void, size_t, c_int, *mut sockaddr, *mut socklen_t) -> ssize_t);
    let mut by_layer = true;
    let got = inward(fd, &one(to, len), None, flags, || {
        by_layer = false;
        native(fd, to, len, flags, address, address_len)
    });
    // A connected stream tells no address.
    if by_layer && got >= 0 && !address.is_null() && !address_len.is_null() {
        *address_len = 0;
    }
    got
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn sendto(
    fd: c_int,
    from: *const c_void,
    len: size_t,
    flags: c_int,
    address: *const sockaddr,
    address_len: socklen_t,
) -> ssize_t {
    let native = next!(sendto: fn(c_int, *const c_void, size_t, c_int, *const sockaddr, socklen_t) -> ssize_t);
    let kernel = || native(fd, from, len, flags, address, address_len);
    // A connected stream ignores the address, but not a length that no address has.
    if !address.is_null() && address_len as usize > size_of::<libc::sockaddr_storage>() {
        return kernel();
    }
    outward(fd, &one(from, len), None, flags, kernel)
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn recvmsg(
    fd: c_int,
    message: *mut msghdr,
    flags: c_int,
) -> ssize_t {
    let native = next!(recvmsg: fn(c_int, *mut msghdr, c_int) -> ssize_t);
    if !may_be_memory(message) || !vmmc_socket::is_connection(fd) {
        let got = native(fd, message, flags);
        if got >= 0 {
            mind_arrivals(message, flags);
        }
        return got;
    }
    let Some(list) = pieces((*message).msg_iov, (*message).msg_iovlen) else {
        return native(fd, message, flags);
    };
    let mut by_layer = true;
    let kernel = || {
        by_layer = false;
        native(fd, message, flags)
    };
    let got = with_room(|room| inward(fd, list, room, flags, kernel));
    if by_layer && got >= 0 {
        let room = std::mem::take(&mut (*message).msg_controllen);
        if !(*message).msg_name.is_null() {
            (*message).msg_namelen = 0;
        }
        (*message).msg_flags = flags & libc::MSG_CMSG_CLOEXEC;
        if let Some(left) = catch(None, || keep_errno(|| vmmc_socket::left(fd))) {
            tell_left(&mut *message, room as usize, left.min(c_int::MAX as usize) as c_int);
        }
    }
    got
}

/// Writes the control message of `TCP_INQ` into a message that had `room` for such, cut off where that is too little, as the
/// kernel does.
unsafe fn tell_left(message: &mut msghdr, room: usize, left: c_int) {
    let (empty, whole) = (libc::CMSG_LEN(0) as usize, libc::CMSG_LEN(4) as usize);
    if message.msg_control.is_null() || room < size_of::<libc::cmsghdr>() {
        message.msg_flags |= libc::MSG_CTRUNC;
        return;
    }
    if room < whole {
        message.msg_flags |= libc::MSG_CTRUNC;
    }
    let len = whole.min(room);
    let header = libc::cmsghdr {
        cmsg_len: len as _,
        cmsg_level: libc::IPPROTO_TCP,
        cmsg_type: vmmc_socket::TCP_INQ,
    };
    message.msg_control.cast::<libc::cmsghdr>().write_unaligned(header);
    let data = message.msg_control.cast::<u8>().add(empty);
    data.copy_from_nonoverlapping(left.to_ne_bytes().as_ptr(), len - empty);
    message.msg_controllen = (libc::CMSG_SPACE(4) as usize).min(room) as _;
}

/// Calls `each` with the descriptors that go along with a message.
unsafe fn for_each_descriptor(message: *const msghdr, mut each: impl FnMut(c_int)) {
    if (*message).msg_controllen == 0 || (*message).msg_control.is_null() {
        return;
    }
    let mut header = libc::CMSG_FIRSTHDR(message);
    while !header.is_null() {
        if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
            let bytes = ((*header).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            for n in 0..bytes / size_of::<c_int>() {
                each(libc::CMSG_DATA(header).cast::<c_int>().add(n).read_unaligned());
            }
        }
        header = libc::CMSG_NXTHDR(message, header);
    }
}

/// Descriptors that leave this process with a message must be whole in the kernel, and so must a connection that is
/// told something beside its bytes.
unsafe fn mind_control(fd: c_int, message: *const msghdr, handing: &mut Handing) {
    if (*message).msg_controllen == 0 || (*message).msg_control.is_null() {
        return;
    }
    vmmc_socket::lower_for_writing(fd);
    for_each_descriptor(message, |passed| {
        vmmc_socket::lower_passed(passed, fd, handing);
        vmmc_socket::epoll::lower_set(passed);
    });
}

/// Descriptors have come with a message.
unsafe fn mind_arrivals(message: *const msghdr, flags: c_int) {
    if (*message).msg_controllen != 0 {
        let still_there = flags & libc::MSG_PEEK != 0;
        let received = |fd| catch((), || keep_errno(|| vmmc_socket::received(fd, still_there)));
        for_each_descriptor(message, received);
    }
}

/// Sends messages after their control data was minded; what went with them is taken back if they were not sent.
unsafe fn minding(
    fd: c_int,
    messages: impl Iterator<Item = *const msghdr>,
    send: impl FnOnce() -> isize,
) -> isize {
    let mut handing = Handing::new();
    for message in messages {
        catch((), || keep_errno(|| mind_control(fd, message, &mut handing)));
    }
    let sent = send();
    if sent < 0 {
        catch((), || keep_errno(|| handing.take_back()));
    }
    sent
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn sendmsg(
    fd: c_int,
    message: *const msghdr,
    flags: c_int,
) -> ssize_t {
    let native = next!(sendmsg: fn(c_int, *const msghdr, c_int) -> ssize_t);
    if !may_be_memory(message) {
        return native(fd, message, flags);
    }
    minding(fd, std::iter::once(message), || {
        match pieces((*message).msg_iov, (*message).msg_iovlen) {
            Some(list) => {
                let kernel = || native(fd, message, flags);
                with_room(|room| outward(fd, list, room, flags, kernel))
            }
            None => native(fd, message, flags),
        }
    })
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn recvmmsg(
    fd: c_int,
    list: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    let native = next!(recvmmsg: fn(c_int, *mut mmsghdr, c_uint, c_int, *mut timespec) -> c_int);
    if !may_be_memory(list) || !vmmc_socket::is_connection(fd) {
        let got = native(fd, list, count, flags, timeout);
        for n in 0..got.max(0) as usize {
            mind_arrivals(&raw const (*list.add(n)).msg_hdr, flags);
        }
        return got;
    }
    let Some(limit) = crate::waiting::time(timeout) else {
        *libc::__errno_location() = libc::EINVAL;
        return -1;
    };
    let end = limit.and_then(|limit| Instant::now().checked_add(limit));
    // Unlike its single sister, the native call looks for an error before it looks for bytes.
    let (mut error, mut size): (c_int, socklen_t) = (0, size_of::<c_int>() as socklen_t);
    let asked = crate::sockets::getsockopt(
        fd,
        libc::SOL_SOCKET,
        libc::SO_ERROR,
        (&raw mut error).cast(),
        &raw mut size,
    );
    if asked == 0 && error != 0 {
        *libc::__errno_location() = error;
        return -1;
    }
    let mut flags = flags;
    let wait_for_one = flags & libc::MSG_WAITFORONE != 0;
    flags &= !libc::MSG_WAITFORONE;
    for n in 0..count {
        if n > 0 && catch(false, || vmmc_socket::only_error_left(fd)) {
            return n as c_int;
        }
        let entry = &mut *list.add(n as usize);
        let got = recvmsg(fd, &mut entry.msg_hdr, flags);
        if got < 0 {
            return if n > 0 { n as c_int } else { -1 };
        }
        entry.msg_len = got as c_uint;
        if wait_for_one {
            flags |= libc::MSG_DONTWAIT;
        }
        // Only between messages does the native call look at the time.
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        if let Some(left) = left {
            *timeout = timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ };
        }
        if left.is_some_and(|left| left.is_zero()) || entry.msg_hdr.msg_flags & libc::MSG_OOB != 0 {
            return n as c_int + 1;
        }
    }
    count as c_int
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn sendmmsg(
    fd: c_int,
    list: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
) -> c_int {
    /// The kernel sends no more of them at once (`UIO_MAXIOV`).
    const MOST: c_uint = 1024;
    let native = next!(sendmmsg: fn(c_int, *mut mmsghdr, c_uint, c_int) -> c_int);
    if !may_be_memory(list) {
        return native(fd, list, count, flags);
    }
    let count = count.min(MOST);
    if !vmmc_socket::is_connection(fd) {
        let messages = (0..count as usize).map(|n| &raw const (*list.add(n)).msg_hdr);
        let send = || native(fd, list, count, flags) as isize;
        return minding(fd, messages, send) as c_int;
    }
    for n in 0..count {
        let entry = &mut *list.add(n as usize);
        let sent = sendmsg(fd, &entry.msg_hdr, flags);
        if sent < 0 {
            return if n > 0 { n as c_int } else { -1 };
        }
        entry.msg_len = sent as c_uint;
        // The rest of one that was cut short comes before the next.
        let list = pieces(entry.msg_hdr.msg_iov, entry.msg_hdr.msg_iovlen).unwrap_or_default();
        if (sent as usize) < list.iter().map(|piece| piece.iov_len).sum() {
            return n as c_int + 1;
        }
    }
    count as c_int
}

/// `sendfile` into a lifted connection: the file is read straight into the peer's ring.
#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn sendfile(
    to: c_int,
    from: c_int,
    offset: *mut off_t,
    count: size_t,
) -> ssize_t {
    let native = next!(sendfile: fn(c_int, c_int, *mut off_t, size_t) -> ssize_t);
    let kernel = || native(to, from, offset, count);
    if !vmmc_socket::is_connection(to) {
        // Into a pipe the kernel moves what lies in its own queue.
        catch((), || keep_errno(|| vmmc_socket::lower_descriptor(from)));
        return kernel();
    }
    let at =
        keep_errno(
            || if offset.is_null() { libc::lseek(from, 0, libc::SEEK_CUR) } else { *offset },
        );
    if at < 0 || count > isize::MAX as size_t || vmmc_socket::is_connection(from) {
        // Not a file: the kernel says what it thinks of it.
        catch((), || vmmc_socket::lower_for_writing(to));
        return kernel();
    }
    let mut by_layer = true;
    let sent = transfer(
        || vmmc_socket::send_file(to, from, at, count.min(0x7fff_f000)),
        || {
            by_layer = false;
            kernel()
        },
    );
    if by_layer && sent > 0 {
        if offset.is_null() {
            libc::lseek(from, at + sent as off_t, libc::SEEK_SET);
        } else {
            *offset = at + sent as off_t;
        }
    }
    if by_layer && sent < 0 && *libc::__errno_location() == libc::EPIPE {
        keep_errno(|| libc::raise(libc::SIGPIPE));
    }
    sent
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn sendfile64(
    to: c_int,
    from: c_int,
    offset: *mut off_t,
    count: size_t,
) -> ssize_t {
    sendfile(to, from, offset, count)
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn splice(
    from: c_int,
    from_offset: *mut libc::loff_t,
    to: c_int,
    to_offset: *mut libc::loff_t,
    len: size_t,
    flags: c_uint,
) -> ssize_t {
    let native = next!(splice: fn(c_int, *mut libc::loff_t, c_int, *mut libc::loff_t, size_t, c_uint) -> ssize_t);
    catch((), || {
        vmmc_socket::lower_descriptor(from);
        vmmc_socket::lower_for_writing(to);
    });
    native(from, from_offset, to, to_offset, len, flags)
}

// The forms that fortified programs call: the C library's check first, then as above.

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn __read_chk(
    fd: c_int,
    to: *mut c_void,
    len: size_t,
    room: size_t,
) -> ssize_t {
    if len > room {
        return next!(__read_chk: fn(c_int, *mut c_void, size_t, size_t) -> ssize_t)(
            fd, to, len, room,
        );
    }
    read(fd, to, len)
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn __recv_chk(
    fd: c_int,
    to: *mut c_void,
    len: size_t,
    room: size_t,
    flags: c_int,
) -> ssize_t {
    if len > room {
        return next!(__recv_chk: fn(c_int, *mut c_void, size_t, size_t, c_int) -> ssize_t)(
            fd, to, len, room, flags,
        );
    }
    recv(fd, to, len, flags)
}

#[inline(never)]
pub(crate) unsafe extern "C-unwind" fn __recvfrom_chk(
    fd: c_int,
    to: *mut c_void,
    len: size_t,
    room: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_len: *mut socklen_t,
) -> ssize_t {
    if len > room {
        let native = next!(__recvfrom_chk: fn(c_int, *mut c_void, size_t, size_t, c_int, *mut sockaddr, *mut socklen_t) -> ssize_t);
        return native(fd, to, len, room, flags, address, address_len);
    }
    recvfrom(fd, to, len, flags, address, address_len)
}
