//! Lowered bytes on their way into a held socket.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use vmmc_os::{Descriptor, OsError, end_stream, read_memory, send_stream};

/// What one `PairInject` asked to do.
#[derive(Debug)]
pub(crate) struct Lowered {
    /// The bytes to write.
    pub(crate) bytes: Bytes,
    /// Whether the stream ends after them.
    pub(crate) finish: bool,
}

/// Where the bytes are.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// They came inside the message.
    Inline {
        /// All of them.
        bytes: Vec<u8>,
        /// How many are written.
        done: usize,
    },
    /// They lie in shared memory.
    Memory {
        /// The memory.
        memory: Descriptor,
        /// How many.
        len: u64,
        /// How many are written.
        done: u64,
    },
}

/// The bytes for one socket, in order.
#[derive(Debug, Default)]
pub(crate) struct Injection {
    queue: VecDeque<Lowered>,
}

/// How far `advance` came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Everything is written.
    Done,
    /// The socket is full, or others wait: go on when it can be written.
    More,
    /// The connection is gone; the rest is dropped.
    Failed,
}

impl Injection {
    /// Most requests that may wait for one socket.
    pub(crate) const MAX_WAITING: usize = 256;
    /// Bytes written at most before others get their turn.
    const TURN: usize = 1 << 20;

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn push(&mut self, lowered: Lowered) {
        self.queue.push_back(lowered);
    }

    /// Bytes that it keeps in the service.
    pub(crate) fn kept(&self) -> u64 {
        let inline = self.queue.iter().map(|lowered| match &lowered.bytes {
            Bytes::Inline { bytes, .. } => bytes.len() as u64,
            Bytes::Memory { .. } => 0,
        });
        inline.sum()
    }

    /// Puts what was taken out of it in front again.
    pub(crate) fn put_back(&mut self, rest: Self) {
        let newer = std::mem::replace(&mut self.queue, rest.queue);
        self.queue.extend(newer);
    }

    /// Writes what fits; calls `handed` for each request that is finished, failed ones included, so that nobody waits
    /// for ever.
    pub(crate) fn advance(&mut self, socket: BorrowedFd<'_>, mut handed: impl FnMut()) -> Progress {
        let mut turn = Self::TURN;
        while let Some(lowered) = self.queue.front_mut() {
            match lowered.bytes.write_some(socket) {
                Ok(0) => {
                    if lowered.finish {
                        end_stream(socket);
                    }
                    self.queue.pop_front();
                    #[cfg(chaos)]
                    vmmc_os::chaos::pause(300);
                    handed();
                }
                Ok(count) => {
                    turn = turn.saturating_sub(count);
                    if turn == 0 {
                        return Progress::More;
                    }
                }
                Err(OsError::AGAIN) => return Progress::More,
                Err(_) => {
                    for _ in self.queue.drain(..) {
                        handed();
                    }
                    return Progress::Failed;
                }
            }
        }
        Progress::Done
    }
}

impl Bytes {
    /// Writes some bytes; 0 when none are left.
    fn write_some(&mut self, socket: BorrowedFd<'_>) -> Result<usize, OsError> {
        match self {
            Self::Inline { bytes, done } => {
                if *done == bytes.len() {
                    return Ok(0);
                }
                let count = send_stream(socket, &bytes[*done..])?;
                *done += count;
                Ok(count)
            }
            Self::Memory { memory, len, done } => {
                let mut buffer = vec![0; 64 * 1024];
                let left = usize::try_from(*len - *done).unwrap_or(usize::MAX).min(buffer.len());
                if left == 0 {
                    return Ok(0);
                }
                let read = read_memory(&*memory, *done, &mut buffer[..left])?;
                if read == 0 {
                    return Err(OsError::IO);
                }
                let count = send_stream(socket, &buffer[..read])?;
                *done += count as u64;
                Ok(count)
            }
        }
    }
}
