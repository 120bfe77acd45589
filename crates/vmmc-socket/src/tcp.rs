//! How many bytes a kernel TCP connection has carried, asked of the kernel itself: exact whoever used the descriptor
//! before, so a direction can switch at any time.

use crate::kernel;
use crate::receive::TCP_INQ;

/// What is used of `struct tcp_info` (linux/tcp.h), by byte offset.
struct Info([u8; 232]);

impl Info {
    fn of(fd: i32) -> Option<Self> {
        kernel::option::<[u8; 232]>(fd, libc::IPPROTO_TCP, libc::TCP_INFO).map(Self)
    }

    fn state(&self) -> u8 {
        self.0[0]
    }

    fn long(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }

    fn word(&self, at: usize) -> u64 {
        u64::from(u32::from_ne_bytes(self.0[at..at + 4].try_into().expect("four bytes")))
    }

    fn received(&self) -> u64 {
        self.long(128)
    }

    /// Bytes that have come, read or not, of a peer that has written `offset` or more.
    fn arrived(&self, offset: u64) -> Option<u64> {
        // The received FIN counts as a byte, for the kernel and not for us.
        let fin = match self.state() {
            TIME_WAIT | CLOSE_WAIT | LAST_ACK | CLOSING => true,
            // After an end, or by a reset without one, which leaves no FIN to count: then bytes make up all of it.
            CLOSE => self.received() != offset,
            _ => false,
        };
        self.received().checked_sub(u64::from(fin))
    }

    /// Of what was written, and of the connecting side's SYN.
    fn acknowledged(&self) -> u64 {
        self.long(120)
    }

    /// Bytes that were given to the connection, or more: what the interface has refused to take (a full queue that shapes traffic) counts once more
    /// when it is sent again.
    fn sent_or_waiting(&self) -> u64 {
        let (sent, again, waiting) = (self.long(200), self.long(208), self.word(144));
        (sent + waiting).saturating_sub(again)
    }
}

/// Adds bytes to the counters in a `tcp_info` of the program's, as far as it is long enough to have them.
pub(crate) fn add_to_info(info: &mut [u8], sent: u64, acknowledged: u64, received: u64) {
    for (at, more) in [(120, acknowledged), (128, received), (200, sent)] {
        if let Some(counter) = info.get_mut(at..at + 8) {
            let old = u64::from_ne_bytes(counter.try_into().expect("eight bytes"));
            counter.copy_from_slice(&(old + more).to_ne_bytes());
        }
    }
}

const ESTABLISHED: u8 = 1;
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;

/// Whether both directions of the connection are open.
pub(crate) fn established(fd: i32) -> bool {
    Info::of(fd).is_some_and(|info| info.state() == ESTABLISHED)
}

/// Whether nothing is left of the connection.
pub(crate) fn over(fd: i32) -> bool {
    Info::of(fd).is_some_and(|info| info.state() == CLOSE)
}

/// How an end came to be, as RFC 9293 has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Opening {
    /// Not seen.
    Unseen = 0,
    /// It connected.
    Active = 1,
    /// It was accepted.
    Passive = 2,
}

/// Bytes that were given to the connection by writing, while it is open for writing, if the kernel knows. Nobody writes meanwhile.
pub(crate) fn written(fd: i32, opening: Opening) -> Option<u64> {
    /// Acknowledgements come at any time.
    const LOOKS: u32 = 1000;
    for _ in 0..LOOKS {
        let before = Info::of(fd)?.acknowledged();
        let queued = kernel::queued(fd) as u64;
        let info = Info::of(fd)?;
        if !matches!(info.state(), ESTABLISHED | CLOSE_WAIT) {
            return None;
        }
        if info.acknowledged() != before {
            continue;
        }
        let all = before + queued;
        return match opening {
            Opening::Active => all.checked_sub(1),
            Opening::Passive => Some(all),
            Opening::Unseen => {
                let written = info.sent_or_waiting();
                matches!(all.checked_sub(written), Some(0 | 1)).then_some(written)
            }
        };
    }
    None
}

/// Whether the first `offset` bytes have come, read or not.
pub(crate) fn has_arrived(fd: i32, offset: u64) -> bool {
    Info::of(fd).and_then(|info| info.arrived(offset)).is_some_and(|arrived| arrived >= offset)
}

/// How many of the first `offset` bytes are still to be taken from the connection by reading; none if more than those were taken.
pub(crate) fn owed(fd: i32, offset: u64) -> Option<u64> {
    loop {
        let before = Info::of(fd)?.received();
        let unread = kernel::unread_beyond_mark(fd) as u64;
        // Its state is the right one: the kernel looks at the state before it waits for the lock under which it counts, so the
        // first count may have a FIN that the first state does not know of.
        let after = Info::of(fd)?;
        if after.received() == before {
            // Whether it ended before it was reset only the kernel knows, where bytes came behind the first `offset`.
            let over = after.state() == CLOSE && unread > 0;
            let taken = match over.then(|| unread_and_end(fd)).flatten() {
                Some(left) => after.received().checked_sub(left)?,
                None => after.arrived(offset)?.checked_sub(unread)?,
            };
            return offset.checked_sub(taken);
        }
    }
}

/// What `TCP_INQ` tells beside bytes that are looked at: how many there are to read, and one more if the end has come behind them, which
/// `FIONREAD` leaves out (`tcp_inq` and `tcp_inq_hint` in the kernel's `net/ipv4/tcp.c`). `None`: nothing can be read.
fn unread_and_end(fd: i32) -> Option<u64> {
    let tell = |on: i32| {
        let size = size_of::<i32>();
        let _ = kernel::call!(SYS_setsockopt, fd, libc::IPPROTO_TCP, TCP_INQ, &raw const on, size);
    };
    let told = kernel::option::<i32>(fd, libc::IPPROTO_TCP, TCP_INQ)?;
    let mut byte = 0u8;
    let pieces = [libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 }];
    // Room for what the program has asked to be told besides.
    let mut control = [0u64; 64];
    let mut message = kernel::data_message(&pieces);
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    tell(1);
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    let looked = kernel::call!(SYS_recvmsg, fd, &raw mut message, flags);
    tell(told);
    looked.ok()?;
    // SAFETY: the kernel has written whole headers, with their data, up to `msg_controllen`; `control` lives and is aligned for them.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(this) = header.as_ref() {
            if (this.cmsg_level, this.cmsg_type) == (libc::IPPROTO_TCP, TCP_INQ) {
                let left = libc::CMSG_DATA(header).cast::<i32>().read_unaligned();
                return u64::try_from(left).ok();
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn counts_what_was_written_and_read_to_the_byte() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut active = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut passive = listener.accept().unwrap().0;
        let written_both_ways = |fd: i32, opening| {
            let written = written(fd, opening);
            assert_eq!(written, super::written(fd, Opening::Unseen));
            written
        };
        let (left, right) = (active.as_raw_fd(), passive.as_raw_fd());
        assert_eq!(written_both_ways(left, Opening::Active), Some(0));
        active.write_all(&[7; 100_000]).unwrap();
        assert_eq!(written_both_ways(left, Opening::Active), Some(100_000));
        let mut some = [0; 12_345];
        passive.read_exact(&mut some).unwrap();
        assert_eq!(owed(passive.as_raw_fd(), 100_000), Some(100_000 - 12_345));
        assert!(has_arrived(passive.as_raw_fd(), 12_345));
        assert!(!has_arrived(passive.as_raw_fd(), 100_001));
        passive.write_all(b"hello").unwrap();
        assert_eq!(written_both_ways(right, Opening::Passive), Some(5));
        active.shutdown(Shutdown::Write).unwrap();
        assert!(
            kernel::pending(passive.as_raw_fd(), libc::POLLRDHUP) != 0
                || !established(active.as_raw_fd())
        );
        let mut rest = Vec::new();
        passive.read_to_end(&mut rest).unwrap();
        assert_eq!(rest.len(), 100_000 - 12_345);
        assert_eq!(owed(passive.as_raw_fd(), 100_000), Some(0));
        assert_eq!(owed(passive.as_raw_fd(), 99_999), None);
        assert!(!has_arrived(passive.as_raw_fd(), 100_001));
        assert!(!established(passive.as_raw_fd()));
    }

    #[test]
    fn an_end_that_comes_just_now_is_no_byte() {
        const ROUNDS: usize = 2000;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut wrong = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    let mut passive = listener.accept().unwrap().0;
                    passive.read_exact(&mut [0; 1]).unwrap();
                    passive.write_all(b"hello").unwrap();
                }
            });
            for _ in 0..ROUNDS {
                let mut active = TcpStream::connect(address).unwrap();
                active.write_all(b"x").unwrap();
                active.shutdown(Shutdown::Write).unwrap();
                let fd = active.as_raw_fd();
                let mut looks = 0;
                while kernel::pending(fd, libc::POLLRDHUP) == 0 || looks < 20 {
                    wrong += usize::from(owed(fd, 5) != Some(5));
                    looks += 1;
                }
            }
        });
        assert_eq!(wrong, 0);
    }

    #[test]
    fn a_reset_is_not_counted_as_an_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut active = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut passive = listener.accept().unwrap().0;
        passive.write_all(b"never read").unwrap();
        active.set_nodelay(true).unwrap();
        active.write_all(&[7; 1000]).unwrap();
        while kernel::unread(active.as_raw_fd()) == 0 {}
        drop(active);
        while !over(passive.as_raw_fd()) {}
        let fd = passive.as_raw_fd();
        assert!(has_arrived(fd, 1000));
        assert_eq!(owed(fd, 1000), Some(1000));
        let mut some = [0; 400];
        passive.read_exact(&mut some).unwrap();
        assert_eq!(owed(fd, 1000), Some(600));
        // Of the first 700, with others behind them.
        assert_eq!(owed(fd, 700), Some(300));
        assert_eq!(owed(fd, 399), None);
    }

    #[test]
    fn an_end_before_a_reset_is_no_byte() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut active = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut passive = listener.accept().unwrap().0;
        passive.write_all(b"never read").unwrap();
        active.write_all(&[7; 1000]).unwrap();
        active.shutdown(Shutdown::Write).unwrap();
        while kernel::unread(active.as_raw_fd()) == 0 {}
        drop(active);
        while !over(passive.as_raw_fd()) {}
        let fd = passive.as_raw_fd();
        assert_eq!(owed(fd, 700), Some(700));
        passive.read_exact(&mut [0; 400]).unwrap();
        assert_eq!(owed(fd, 700), Some(300));
    }

    #[test]
    fn what_is_behind_an_urgent_byte_was_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut active = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut passive = listener.accept().unwrap().0;
        active.write_all(b"first").unwrap();
        // SAFETY: one byte, of an array.
        let sent =
            unsafe { libc::send(active.as_raw_fd(), b"!".as_ptr().cast(), 1, libc::MSG_OOB) };
        assert_eq!(sent, 1);
        active.write_all(b"behind").unwrap();
        let fd = passive.as_raw_fd();
        while kernel::unread(fd) < 5 || kernel::unread_beyond_mark(fd) < 12 {}
        assert_eq!(owed(fd, 5), Some(5));
        passive.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(owed(fd, 5), Some(2));
        passive.read_exact(&mut [0; 2]).unwrap();
        assert_eq!(owed(fd, 5), Some(0));
        assert_eq!(kernel::option::<i32>(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE), Some(0));
    }
}
