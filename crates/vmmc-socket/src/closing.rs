//! Closing numbers of the program's, or giving them another meaning. The layer's own are as if they were not there.

use crate::descriptor::{self, Changing, Kind};
use crate::kernel::{self, Errno, Outcome};
use crate::layer::{self, STRUCTURE};
use crate::{board, busy, ending, epoll, local, own_numbers, thread, uring, visit};

/// The program is about to close `fd`. Must come before the kernel's close.
pub fn closing(fd: i32) -> Changing {
    let kind = descriptor::kind(fd);
    if matches!(kind, Kind::Other | Kind::Own) {
        return Changing::nothing();
    }
    if !layer::at_home() {
        visit::loses(kind);
        return Changing::nothing();
    }
    let changing = Changing::between(fd, fd);
    close(fd, kind, &changing);
    changing
}

fn close(fd: i32, kind: Kind, changing: &Changing) {
    match kind {
        Kind::Connection(index) => close_connection(fd, index, changing),
        Kind::Set(number) => epoll::closing(fd, number),
        Kind::Ring(number) => uring::closing(fd, number),
        Kind::Other | Kind::Own => {}
    }
}

/// The program is about to have `new` replaced by the open file of `old`.
pub fn replacing(new: i32, old: i32) -> Changing {
    if descriptor::connection(old).is_none()
        || descriptor::kind(new) != Kind::Other
        || !layer::at_home()
    {
        return closing(new);
    }
    let changing = Changing::between(new, new);
    changing.begin_use();
    changing
}

fn close_connection(fd: i32, index: u32, changing: &Changing) {
    epoll::before_number_goes(fd, index);
    // No call has its first look by this number from now on.
    if !STRUCTURE.briefly(|_| changing.begin(fd, Kind::Connection(index))) {
        return;
    }
    if busy::keep(fd, index) {
        epoll::leave(index, local::get(index), true);
    }
    let last = STRUCTURE.briefly(|_| {
        // SAFETY: the structure's lock is held.
        let parts = unsafe { local::get(index).parts() };
        epoll::before_close(index, parts);
        parts.descriptors.retain(|&other| other != fd);
        if let Some(other) = parts.descriptors.first() {
            board::renumber(index, fd, *other);
        }
        parts.descriptors.is_empty().then_some(!parts.members.is_empty())
    });
    match last {
        Some(registered) => {
            busy::ended(index);
            board::close(index);
            ending::close(fd, index, registered);
        }
        None => busy::renumbered(index),
    }
}

/// Whether the program may close `fd`: it may not close what it does not know of.
#[inline]
pub fn is_own(fd: i32) -> bool {
    match descriptor::kind(fd) {
        Kind::Own => true,
        Kind::Connection(index) => busy::is_kept(fd, index),
        // Of those it has kept the layer gives one up just now.
        _ => fd >= own_numbers::lowest() && descriptor::is_changing_elsewhere(fd),
    }
}

/// Has `close` close what is open from `first` to `last`, in parts beside the layer's own, of which none is made meanwhile; ends with the first that fails.
pub fn close_beside_own(first: u32, last: u32, mut close: impl FnMut(u32, u32) -> i32) -> i32 {
    // A close may take its time (`SO_LINGER`): no lock is held for numbers where the layer keeps none.
    let lowest = own_numbers::lowest().cast_unsigned();
    if first < lowest {
        let below = last.min(lowest - 1);
        let closed = close(first, below);
        if closed != 0 || below == last {
            return closed;
        }
    }
    let first = first.max(lowest);
    let mut close_all = || {
        let mut from = first;
        let own = descriptor::numbers(first, last).filter(|fd| is_own(*fd));
        for own in own.map(i32::cast_unsigned) {
            if from < own && close(from, own - 1) != 0 {
                return -1;
            }
            from = own + 1;
        }
        if from > last && from != first { 0 } else { close(from, last) }
    };
    if thread::alone() || layer::confined() || !layer::at_home() {
        return close_all();
    }
    STRUCTURE.with_unless_borrowed(|_| close_all()).unwrap_or_else(close_all)
}

/// Closes a number where the layer may just be making one of its own; `None` if it is none such.
#[inline]
pub fn close_high(fd: i32) -> Option<Outcome> {
    (fd >= own_numbers::lowest() && layer::enabled() && !thread::alone())
        .then(|| close_among_own(fd))
}

#[cold]
fn close_among_own(fd: i32) -> Outcome {
    let mut outcome = Err(Errno(libc::EBADF));
    close_beside_own(fd.cast_unsigned(), fd.cast_unsigned(), |_, _| {
        outcome = kernel::call!(SYS_close, fd);
        0
    });
    outcome
}

/// The program closes everything from `first` to `last`: as [`closing`] for each that is tracked.
pub fn closing_between(first: i32, last: i32) -> Changing {
    let mut all = descriptor::between(first, last).filter(|(fd, _)| !is_own(*fd)).peekable();
    if all.peek().is_none() {
        return Changing::nothing();
    }
    if !layer::at_home() {
        all.for_each(|(_, kind)| visit::loses(kind));
        return Changing::nothing();
    }
    let changing = Changing::between(first, last);
    all.for_each(|(fd, kind)| close(fd, kind, &changing));
    changing
}
