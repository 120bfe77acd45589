//! Connections that go from program to program: inherited across `exec`, or passed over a local socket.
//!
//! Whoever gets one finds it here: a new program when it starts, a process when a message brings it. From then on others may have it
//! too, programs of other families, which share no slot, or without the library. So [`Slot::handed`] is set, and before it is
//! offered to be lifted the node service has to see that this process is alone with it (`vmmc::Process::pair_holders`).
//!
//! The service does not see what another user's program has, and some programs hide. That is what *marks* are for: a lock of
//! `flock` on the socket, which means nothing to anybody else, goes wherever the socket goes, and ends with it. Who hands a connection
//! over marks it as being on its way; the library in the program that gets it takes the mark off. What bears a mark is not lifted:
//! somebody without the library has got it, or nobody yet. If it is handed on while it is on its way, or to somebody of
//! whom nothing can be known, it is marked for good.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::descriptor;
use crate::kernel::{self, call};
use crate::layer;
use crate::local;
use crate::slot::{self, Why};
use crate::{board, family};

/// What a socket bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    None,
    OnItsWay,
    ForGood,
}

/// Sockets that were marked for one `exec`, spawn or message, each once however many descriptors of it are handed over. If that fails,
/// [`Handing::take_back`].
#[derive(Debug)]
pub struct Handing {
    /// A descriptor and the cookie of each.
    marked: [(i32, u64); Self::MOST],
    count: usize,
}

impl Handing {
    const MOST: usize = 32;

    /// Nothing yet.
    pub const fn new() -> Self {
        Self { marked: [(-1, 0); Self::MOST], count: 0 }
    }

    /// `fd` is about to be handed to another program. Takes no lock and no memory: a child of vfork does it too.
    pub(crate) fn hand(&mut self, fd: i32) {
        let Some(cookie) = stream_cookie(fd) else { return };
        let before = &self.marked[..self.count];
        note(fd);
        if layer::confined() || before.iter().any(|(_, marked)| *marked == cookie) {
            return;
        }
        if mark_of(fd) == Mark::None && self.count < Self::MOST {
            set_mark(fd, Mark::OnItsWay);
            self.marked[self.count] = (fd, cookie);
            self.count += 1;
        } else {
            set_mark(fd, Mark::ForGood);
        }
    }

    /// As `hand`, by a message over the local socket `through`.
    pub(crate) fn pass(&mut self, fd: i32, through: i32) {
        if stays_with_user(through) {
            self.hand(fd);
        } else {
            give_away(fd);
        }
    }

    /// Nobody has got anything.
    pub fn take_back(self) {
        for (fd, cookie) in &self.marked[..self.count] {
            if stream_cookie(*fd) == Some(*cookie) && mark_of(*fd) == Mark::OnItsWay {
                set_mark(*fd, Mark::None);
            }
        }
    }
}

impl Default for Handing {
    fn default() -> Self {
        Self::new()
    }
}

/// `fd` goes to somebody of whom nothing will be known.
pub(crate) fn give_away(fd: i32) {
    note(fd);
    if stream_cookie(fd).is_some() && !layer::confined() {
        set_mark(fd, Mark::ForGood);
    }
}

/// The connection, if this process has one under this number, may be somebody else's too from now on.
pub(crate) fn note(fd: i32) {
    if let (Some(index), Some(cookie)) = (descriptor::connection(fd), stream_cookie(fd)) {
        let slot = slot::get(index);
        slot.cookie.store(cookie, Ordering::Relaxed);
        slot.handed.fetch_add(1, Ordering::AcqRel);
    }
}

/// Whether a message over this local socket reaches only programs of this process's user and on this host. The service of a user
/// sees no others.
fn stays_with_user(socket: i32) -> bool {
    let peer = kernel::option::<libc::ucred>(socket, libc::SOL_SOCKET, libc::SO_PEERCRED);
    let user = call!(SYS_geteuid).unwrap_or_default() as libc::uid_t;
    peer.is_some_and(|peer| peer.pid != 0 && peer.uid == user)
}

/// What `fd` bears.
pub(crate) fn mark_of(fd: i32) -> Mark {
    let mut text = [0u8; 512];
    let Some(text) = describe(fd, &mut text) else { return Mark::ForGood };
    let lock = text.split(|byte| *byte == b'\n').find(|line| line.starts_with(b"lock:"));
    match lock {
        None => Mark::None,
        Some(lock) if lock.windows(5).any(|word| word == b"WRITE") => Mark::OnItsWay,
        Some(_) => Mark::ForGood,
    }
}

fn set_mark(fd: i32, mark: Mark) {
    let operation = match mark {
        Mark::None => libc::LOCK_UN,
        Mark::OnItsWay => libc::LOCK_EX,
        Mark::ForGood => libc::LOCK_SH,
    };
    let _ = call!(SYS_flock, fd, operation | libc::LOCK_NB);
}

/// What the kernel tells of an open descriptor (`/proc/self/fdinfo`).
fn describe(fd: i32, text: &mut [u8; 512]) -> Option<&[u8]> {
    kernel::read_text(format_args!("/proc/self/fdinfo/{fd}"), text)
}

/// The kernel's name of a TCP socket that does not listen.
fn stream_cookie(fd: i32) -> Option<u64> {
    let option = |name| kernel::option::<i32>(fd, libc::SOL_SOCKET, name);
    (option(libc::SO_PROTOCOL)? == libc::IPPROTO_TCP && option(libc::SO_ACCEPTCONN)? == 0)
        .then(|| kernel::option::<u64>(fd, libc::SOL_SOCKET, libc::SO_COOKIE))?
}

/// This process got an epoll object or a ring from others. What is in it nobody knows, and it hears only the kernel.
static HIDDEN: AtomicBool = AtomicBool::new(false);

/// When the program starts: follows the connections that it inherited.
pub(crate) fn find_inherited() {
    let Ok(list) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers = list.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut sockets: Vec<i32> = Vec::new();
    for fd in numbers {
        match what_is(fd) {
            Some(What::Socket) => sockets.push(fd),
            Some(What::Hidden) => HIDDEN.store(true, Ordering::Relaxed),
            None => {}
        }
    }
    for fd in sockets {
        let _ = found(fd, true);
    }
}

/// A message has brought `fd`; if it was only looked at, the message is still on its way.
pub fn received(fd: i32, still_there: bool) {
    layer::renewed(fd);
    if !layer::enabled() || !layer::at_home() {
        return;
    }
    match what_is(fd) {
        Some(What::Socket) => drop(found(fd, !still_there)),
        Some(What::Hidden) if !HIDDEN.swap(true, Ordering::Relaxed) => {
            family::lower_all(Why::Set);
        }
        _ => {}
    }
}

enum What {
    Socket,
    Hidden,
}

fn what_is(fd: i32) -> Option<What> {
    match kernel::file_type(fd)? {
        libc::S_IFSOCK => Some(What::Socket),
        // Files that are no files have no type; only their name tells what they are, and takes longer to make.
        0 => {
            let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
            let hidden = ["anon_inode:[eventpoll]", "anon_inode:[io_uring]"];
            hidden.iter().any(|name| link.as_os_str() == *name).then_some(What::Hidden)
        }
        _ => None,
    }
}

/// Follows a connection that this process got from others; if it has `arrived`, as their mark says. Its slot.
pub(crate) fn found(fd: i32, arrived: bool) -> Option<u32> {
    let cookie = stream_cookie(fd)?;
    let mark = mark_of(fd);
    if arrived && mark == Mark::OnItsWay && !layer::confined() {
        set_mark(fd, Mark::None);
    }
    if let Some(index) = family::handed_connection(cookie) {
        layer::enter_duplicate(index, fd);
        return Some(index);
    }
    let index = layer::adopt(fd)?;
    note(fd);
    // Its giver has no library, or somebody else may have none.
    let hindrance = (mark != Mark::OnItsWay).then_some(Why::Exec);
    let hidden = HIDDEN.load(Ordering::Relaxed).then_some(Why::Set);
    if let Some(why) = hindrance.or(hidden) {
        slot::get(index).stay(why);
        board::update(index, slot::get(index));
    }
    Some(index)
}

/// Whether the program has the connection as a standard stream, which the C library may use by calls that nobody sees.
pub(crate) fn is_standard(parts: &local::Parts) -> bool {
    parts.descriptors.iter().any(|fd| *fd <= libc::STDERR_FILENO)
}
