//! Children of `vfork`: they have this process's memory, and descriptors of their own.
//!
//! What the layer's table says of a number is about the parent's descriptors. A child closes numbers, puts other files there and opens
//! some where others were, and of all that nothing is the parent's. So to a child a number is a connection only where the kernel says that
//! it is the socket of that connection still; such a connection it uses as its parent does. All else is the kernel's.
//!
//! The parent's thread sleeps until the child ends or becomes another program, and the child has the memory of that thread: what the
//! thread notes there, both find, and no other thread does.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::descriptor::{self, Kind};
use crate::{family, kernel, layer, slot};

/// This process had such a child at some time. Every other pays with one load where a number is a connection.
static VISITED: AtomicBool = AtomicBool::new(false);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    None,
    /// There is a child, or was until a moment ago.
    Begun,
    /// It has closed an epoll object: those that it uses are its own.
    WithOwnSets,
}

thread_local! {
    static VISIT: Cell<Visit> = const { Cell::new(Visit::None) };
}

/// This thread is about to have a child that shares its memory but not its descriptors, and to sleep until that is gone.
pub fn before_visit() {
    if !layer::enabled() || layer::confined() || is_visitor() {
        return;
    }
    family::identify_connections();
    descriptor::mean_anew();
    VISIT.set(Visit::Begun);
    VISITED.store(true, Ordering::Relaxed);
}

/// Whether this may be such a child.
#[inline]
pub(crate) fn may_be() -> bool {
    VISITED.load(Ordering::Relaxed)
}

fn is_visitor() -> bool {
    if VISIT.get() == Visit::None {
        return false;
    }
    let visitor = !layer::at_home();
    if !visitor {
        VISIT.set(Visit::None);
    }
    visitor
}

/// Whether `fd`, which is `kind` to the process that the table is about, is something else to this one.
#[cold]
pub(crate) fn is_other(fd: i32, kind: Kind) -> bool {
    match kind {
        Kind::Connection(index) => is_visitor() && !is_socket_of(fd, index),
        Kind::Set(_) => is_visitor() && VISIT.get() == Visit::WithOwnSets,
        Kind::Other | Kind::Ring(_) | Kind::Own => false,
    }
}

fn is_socket_of(fd: i32, index: u32) -> bool {
    let cookie = kernel::option::<u64>(fd, libc::SOL_SOCKET, libc::SO_COOKIE);
    cookie == Some(slot::get(index).cookie.load(Ordering::Relaxed))
}

/// A process that is not at home gives a number of this kind another meaning.
pub(crate) fn loses(kind: Kind) {
    if matches!(kind, Kind::Set(_)) && is_visitor() {
        VISIT.set(Visit::WithOwnSets);
    }
}
