//! What the layer tells about itself: one row a connection, in memory that `vmmc stat` imports for reading.
//!
//! The rows are ordinary private memory of the process until the node service is there; then they are exported *in
//! place*, and the counters that the data path keeps anyway are visible without any further work.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU16, AtomicU32, AtomicU64, Ordering};

use vmmc::{Export, Process, Rights};

use crate::slot::{Phase, SLOTS, Slot, Way, Why};
use crate::{explain, kernel};

/// The name under which a process exports its board.
pub const NAME: &str = "vmmc-socket.board";

/// One connection of one process.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct Row {
    /// [`EMPTY`], [`OPEN`] or [`CLOSED`].
    used: AtomicU32,
    fd: AtomicI32,
    state: AtomicU32,
    why: AtomicU32,
    sent: AtomicU64,
    received: AtomicU64,
    slept: AtomicU64,
    rang: AtomicU64,
    /// Ticks in calls on this connection alone; counted for [`crate::explain`] only.
    asleep: AtomicU64,
    spun: AtomicU64,
    local: Address,
    peer: Address,
}

#[derive(Debug, Default)]
#[repr(C)]
struct Address {
    bytes: [AtomicU64; 2],
    port: AtomicU16,
    /// 0: not known; 4 or 6.
    version: AtomicU16,
}

/// Where a connection's bytes go, for people and programs that ask.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Connection {
    /// Descriptor in the process.
    pub fd: i32,
    /// Own address, if the connection was looked at yet.
    pub local: Option<SocketAddr>,
    /// The other end's.
    pub peer: Option<SocketAddr>,
    /// `lifted`, `lifting` (ready, but nothing was sent since) or `tcp`.
    pub state: &'static str,
    /// Why it is on TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<&'static str>,
    /// Bytes sent while lifted.
    pub sent: u64,
    /// Bytes received while lifted.
    pub received: u64,
    /// Times that a call on it slept in the kernel.
    pub slept: u64,
    /// Times that the peer had to be woken.
    pub rang: u64,
    #[serde(skip)]
    pub(crate) asleep: u64,
    #[serde(skip)]
    pub(crate) spun: u64,
}

const EMPTY: u32 = 0;
const OPEN: u32 = 1;
/// What became of it can still be read, until another connection gets the row.
const CLOSED: u32 = 2;

const LIFTED: u32 = 1;
const LIFTING: u32 = 2;
const TCP: u32 = 3;
const BYTES: usize = size_of::<Row>() * SLOTS;

static ROWS: AtomicPtr<Row> = AtomicPtr::new(std::ptr::null_mut());
static EXPORT: crate::guarded::Guarded<Option<Export>> = crate::guarded::Guarded::new(None);

fn rows() -> Option<&'static [Row]> {
    let mut rows = ROWS.load(Ordering::Acquire);
    if rows.is_null() {
        rows = make_rows()?;
    }
    // SAFETY: a mapping of `BYTES` zeroed bytes that stays for good (an export in place keeps the address).
    Some(unsafe { std::slice::from_raw_parts(rows, SLOTS) })
}

/// Whoever is first has made them. There is no lock that a fork could leave taken in the child.
#[cold]
fn make_rows() -> Option<*mut Row> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let made = kernel::call!(SYS_mmap, 0, BYTES, access, flags, -1isize, 0).ok()? as *mut Row;
    let null = std::ptr::null_mut();
    match ROWS.compare_exchange(null, made, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Some(made),
        Err(others) => {
            let _ = kernel::call!(SYS_munmap, made, BYTES);
            Some(others)
        }
    }
}

#[inline]
fn row(index: u32) -> Option<&'static Row> {
    let rows = ROWS.load(Ordering::Relaxed);
    // SAFETY: as in `rows`; every slot's index is below `SLOTS`.
    (!rows.is_null()).then(|| unsafe { &*rows.add(index as usize) })
}

/// Shows the board to whoever may ask the service.
pub(crate) fn publish(process: &Process) {
    if rows().is_none() {
        return;
    }
    let base = ROWS.load(Ordering::Acquire).cast::<u8>();
    EXPORT.with(|export| {
        // That of a service which is gone gives the memory back: afterwards it would take it from under the new one.
        *export = None;
        // SAFETY: private memory of the layer's own, page-aligned and never unmapped.
        *export = unsafe {
            process.export(0).name(NAME).rights(Rights::READ).create_in_place(base, BYTES)
        }
        .ok();
    });
}

/// In a forked child: rows of its own in place of the parent's.
pub(crate) fn forked() {
    EXPORT.with(|export| std::mem::forget(export.take()));
    let base = ROWS.load(Ordering::Acquire);
    if !base.is_null() {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let _ = kernel::call!(
            SYS_mmap,
            base,
            BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1isize,
            0
        );
    }
}

pub(crate) fn open(index: u32, fd: i32) {
    let Some(row) = rows().and_then(|rows| rows.get(index as usize)) else { return };
    let times = [&row.rang, &row.asleep, &row.spun];
    for count in [&row.sent, &row.received, &row.slept].into_iter().chain(times) {
        count.store(0, Ordering::Relaxed);
    }
    row.local.version.store(0, Ordering::Relaxed);
    row.peer.version.store(0, Ordering::Relaxed);
    row.fd.store(fd, Ordering::Relaxed);
    row.state.store(TCP, Ordering::Relaxed);
    row.why.store(Why::Young as u32, Ordering::Relaxed);
    row.used.store(OPEN, Ordering::Release);
}

/// The addresses that the row has: own and peer's.
pub(crate) fn known(index: u32) -> [Option<SocketAddr>; 2] {
    row(index).map_or([None; 2], |row| [row.local.load(), row.peer.load()])
}

/// What [`known`] said of the row before, so that the kernel need not be asked.
pub(crate) fn know(index: u32, [local, peer]: [Option<SocketAddr>; 2]) {
    let Some(row) = row(index) else { return };
    for (stored, known) in [(&row.local, local), (&row.peer, peer)] {
        known.into_iter().for_each(|known| stored.store(known));
    }
}

/// The program has the connection no longer as `closed`, but as `fd`.
pub(crate) fn renumber(index: u32, closed: i32, fd: i32) {
    if let Some(row) = row(index) {
        let _ = row.fd.compare_exchange(closed, fd, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Whether a row is open for the connection: not for a socket that was only made so far, or that listens.
///
/// What a child of fork looks at may be its parent's, which may have closed its own descriptor meanwhile.
pub(crate) fn shows(index: u32, fd: i32) -> bool {
    row(index).is_some_and(|row| row.used.load(Ordering::Acquire) == OPEN)
        || address(fd, true).is_some()
}

pub(crate) fn close(index: u32) {
    if let Some(row) = row(index).filter(|row| row.used.load(Ordering::Relaxed) == OPEN) {
        if explain::asked() {
            row.note_addresses();
        }
        row.used.store(CLOSED, Ordering::Release);
    }
}

/// Notes where the connection stands.
pub(crate) fn update(index: u32, slot: &Slot) {
    let Some(row) = row(index) else { return };
    let state = match (slot.phase(), slot.inward.way(), slot.outward.way()) {
        // A direction switches with its first bytes, and a stream may go one way only.
        (Phase::Attached, Way::Ring, _) | (Phase::Attached, _, Way::Ring) => LIFTED,
        (Phase::Attached, ..) => LIFTING,
        _ => TCP,
    };
    row.why.store(slot.why() as u32, Ordering::Relaxed);
    row.state.store(state, Ordering::Release);
    row.note_addresses();
}

#[inline]
pub(crate) fn sent(index: u32, len: usize) {
    if let Some(row) = row(index) {
        // One thread at a time sends; a lost count in a race is better than a locked instruction for every message.
        row.sent.store(row.sent.load(Ordering::Relaxed) + len as u64, Ordering::Relaxed);
    }
}

#[inline]
pub(crate) fn received(index: u32, len: usize) {
    if let Some(row) = row(index) {
        row.received.store(row.received.load(Ordering::Relaxed) + len as u64, Ordering::Relaxed);
    }
}

pub(crate) fn slept(index: u32) {
    count(index, |row| &row.slept, 1);
}

/// The peer was woken.
pub(crate) fn rang(index: u32) {
    count(index, |row| &row.rang, 1);
}

/// A call on the connection alone slept for so many ticks.
pub(crate) fn asleep(index: u32, ticks: u64) {
    count(index, |row| &row.asleep, ticks);
}

/// A call on the connection alone looked for so many ticks.
pub(crate) fn spun(index: u32, ticks: u64) {
    count(index, |row| &row.spun, ticks);
}

fn count(index: u32, of: impl Fn(&'static Row) -> &'static AtomicU64, more: u64) {
    if let Some(count) = row(index).map(of) {
        count.store(count.load(Ordering::Relaxed) + more, Ordering::Relaxed);
    }
}

/// All connections that this process had, as far as their rows were not needed for others.
pub(crate) fn all() -> Vec<Connection> {
    let rows = rows().unwrap_or_default().iter();
    rows.filter_map(|row| {
        match row.used.load(Ordering::Acquire) {
            EMPTY => return None,
            OPEN => row.note_addresses(),
            _ => {}
        }
        Some(row.connection())
    })
    .collect()
}

/// The address of `fd`, or of its peer.
pub(crate) fn address(fd: i32, peer: bool) -> Option<SocketAddr> {
    let mut bytes = [0u8; 28];
    let mut len = bytes.len() as libc::socklen_t;
    if peer {
        kernel::call!(SYS_getpeername, fd, bytes.as_mut_ptr(), &raw mut len).ok()?;
    } else {
        kernel::call!(SYS_getsockname, fd, bytes.as_mut_ptr(), &raw mut len).ok()?;
    }
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    match i32::from(u16::from_ne_bytes([bytes[0], bytes[1]])) {
        libc::AF_INET => {
            let ip: [u8; 4] = bytes[4..8].try_into().ok()?;
            Some(SocketAddr::new(Ipv4Addr::from(ip).into(), port))
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = bytes[8..24].try_into().ok()?;
            Some(SocketAddr::new(Ipv6Addr::from(ip).into(), port))
        }
        _ => None,
    }
}

impl Address {
    fn store(&self, address: SocketAddr) {
        let (version, ip) = match address.ip() {
            IpAddr::V4(ip) => (4, ip.to_ipv6_mapped().octets()),
            IpAddr::V6(ip) => (6, ip.octets()),
        };
        for (word, half) in self.bytes.iter().zip(ip.chunks_exact(8)) {
            word.store(
                u64::from_ne_bytes(half.try_into().expect("eight bytes")),
                Ordering::Relaxed,
            );
        }
        self.port.store(address.port(), Ordering::Relaxed);
        self.version.store(version, Ordering::Release);
    }

    fn load(&self) -> Option<SocketAddr> {
        let version = self.version.load(Ordering::Acquire);
        let mut ip = [0u8; 16];
        for (half, word) in ip.chunks_exact_mut(8).zip(&self.bytes) {
            half.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        let ip = Ipv6Addr::from(ip);
        let ip = match version {
            4 => ip.to_ipv4_mapped()?.into(),
            6 => ip.into(),
            _ => return None,
        };
        Some(SocketAddr::new(ip, self.port.load(Ordering::Relaxed)))
    }
}

/// Reads another process's board.
///
/// # Safety
/// `memory` is readable for `len` bytes and page-aligned. Whatever stands in it is taken as data only.
pub unsafe fn read(memory: *const u8, len: usize) -> Vec<Connection> {
    // SAFETY: as promised; every bit pattern is a valid `Row`, and all its fields are atomics.
    let rows = unsafe { std::slice::from_raw_parts(memory.cast::<Row>(), len / size_of::<Row>()) };
    let open = rows.iter().filter(|row| row.used.load(Ordering::Acquire) == OPEN);
    open.map(Row::connection).collect()
}

impl Row {
    /// Asks the kernel for the addresses of a connection that is open, unless they are known.
    fn note_addresses(&self) {
        let fd = self.fd.load(Ordering::Relaxed);
        for (stored, peer) in [(&self.local, false), (&self.peer, true)] {
            if let (0, Some(known)) = (stored.version.load(Ordering::Relaxed), address(fd, peer)) {
                stored.store(known);
            }
        }
    }

    fn connection(&self) -> Connection {
        let state = self.state.load(Ordering::Acquire);
        Connection {
            fd: self.fd.load(Ordering::Relaxed),
            local: self.local.load(),
            peer: self.peer.load(),
            state: match state {
                LIFTED => "lifted",
                LIFTING => "lifting",
                _ => "tcp",
            },
            why: (state == TCP).then(|| reason(self.why.load(Ordering::Relaxed))),
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
            slept: self.slept.load(Ordering::Relaxed),
            rang: self.rang.load(Ordering::Relaxed),
            asleep: self.asleep.load(Ordering::Relaxed),
            spun: self.spun.load(Ordering::Relaxed),
        }
    }
}

fn reason(why: u32) -> &'static str {
    match why {
        x if x == Why::Young as u32 => "too little traffic yet",
        x if x == Why::PeerNotLifted as u32 => {
            "the other end has not been shown: it does not run under vmmc on this host, or moves too little"
        }
        x if x == Why::NoService as u32 => "no node service",
        x if x == Why::Descriptors as u32 => "too few descriptors left (raise ulimit -n)",
        x if x == Why::Refused as u32 => "the node service refused, or memory is short",
        x if x == Why::Shared as u32 => "several processes hold it",
        x if x == Why::Exec as u32 => {
            "inherited by another program, or from one without the library"
        }
        x if x == Why::Passed as u32 => "its descriptor was passed to another process",
        x if x == Why::Call as u32 => "a call that is not carried was made on it",
        x if x == Why::Peer as u32 => "the other end lowered it, or could not lift it",
        x if x == Why::Broken as u32 => "the other end died or broke the rules",
        x if x == Why::Set as u32 => "it is in an epoll object that cannot be followed",
        x if x == Why::Separate as u32 => {
            "in another network namespace, where the node service recognises nobody (see vmmc doctor)"
        }
        x if x == Why::Program as u32 => "policy: this program is not to be lifted",
        x if x == Why::Port as u32 => "policy: connections with these ports are not to be lifted",
        x if x == Why::User as u32 => {
            "policy: the other end is another user's, and the host does not let the two be lifted"
        }
        x if x == Why::Bell as u32 => {
            "the other end is another user's, and cannot be woken safely (system calls are filtered, or fs.aio-max-nr is used up)"
        }
        x if x == Why::Parked as u32 => "idle: its memory was given back until it is used again",
        x if x == Why::Standard as u32 => "it is a standard stream of the program",
        x if x == Why::Filtered as u32 => "the program filters its own system calls (seccomp)",
        x if x == Why::Uring as u32 => {
            "the program has an io_uring, whose queues carry calls past the library"
        }
        _ => "unknown",
    }
}
