//! How many bytes a kernel TCP connection has carried, asked of the kernel itself: exact whoever used the descriptor
//! before, so a direction can switch at any time.

use crate::kernel;

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

    fn arrived(&self) -> Option<u64> {
        // The received FIN counts as a byte, for the kernel and not for us.
        let fin = matches!(self.state(), TIME_WAIT | CLOSE | CLOSE_WAIT | LAST_ACK | CLOSING);
        self.received().checked_sub(u64::from(fin))
    }

    fn written(&self) -> u64 {
        let (sent, again, waiting) = (self.long(200), self.long(208), self.word(144));
        sent - again + waiting
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

/// Bytes that were given to the connection by writing, while it is open for writing.
pub(crate) fn written(fd: i32) -> Option<u64> {
    let info = Info::of(fd)?;
    matches!(info.state(), ESTABLISHED | CLOSE_WAIT).then(|| info.written())
}

/// Bytes that have come, read or not.
pub(crate) fn arrived(fd: i32) -> Option<u64> {
    Info::of(fd)?.arrived()
}

/// Bytes that were taken from the connection by reading.
pub(crate) fn consumed(fd: i32) -> Option<u64> {
    loop {
        let before = Info::of(fd)?;
        let unread = kernel::unread(fd) as u64;
        if Info::of(fd)?.received() == before.received() {
            return before.arrived()?.checked_sub(unread);
        }
    }
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
        assert_eq!(written(active.as_raw_fd()), Some(0));
        active.write_all(&[7; 100_000]).unwrap();
        assert_eq!(written(active.as_raw_fd()), Some(100_000));
        let mut some = [0; 12_345];
        passive.read_exact(&mut some).unwrap();
        assert_eq!(consumed(passive.as_raw_fd()), Some(12_345));
        assert!((12_345..=100_000).contains(&arrived(passive.as_raw_fd()).unwrap()));
        passive.write_all(b"hello").unwrap();
        assert_eq!(written(passive.as_raw_fd()), Some(5));
        active.shutdown(Shutdown::Write).unwrap();
        assert!(
            kernel::pending(passive.as_raw_fd(), libc::POLLRDHUP) != 0
                || !established(active.as_raw_fd())
        );
        let mut rest = Vec::new();
        passive.read_to_end(&mut rest).unwrap();
        assert_eq!(rest.len(), 100_000 - 12_345);
        assert_eq!(consumed(passive.as_raw_fd()), Some(100_000));
        assert_eq!(arrived(passive.as_raw_fd()), Some(100_000));
        assert!(!established(passive.as_raw_fd()));
    }
}
