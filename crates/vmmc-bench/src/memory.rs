//! What the memory paths have in common: an inbox of ours that the other process writes, and the other's that we write.
//!
//! ```text
//! inbox   0        8 (to 64)      128           192           4096                       4096 + 4 MiB
//!         | word   | small payload | credit word | other words | slots of a stream, large payloads |
//! ```

use crate::BenchError;
use crate::options::LARGEST;

/// Where the signal word of an exchange is: one line with the small payloads, so that both travel at once.
pub(crate) const WORD: usize = 0;
/// Where a stream's reader tells how far it has come.
pub(crate) const CREDIT: usize = 128;
/// Where the slots begin.
pub(crate) const SLOTS: usize = 4096;
/// Bytes of all slots together: larger than a second-level cache, so that a stream is not slowed down
/// by lines that the reader has only just pulled over.
pub(crate) const WINDOW: usize = 4 * LARGEST;
/// Bytes of an inbox.
pub(crate) const INBOX: usize = SLOTS + WINDOW;

/// Both inboxes, as one process sees them. Offsets are bytes from the start of an inbox; words are
/// aligned to 8 bytes; `signal` releases what was sent before, `load_signal` acquires it.
pub(crate) trait Memory {
    /// Copies `bytes` into the other's inbox.
    fn send(&self, at: usize, bytes: &[u8]) -> Result<(), BenchError>;
    /// Stores a word in the other's inbox, after everything sent before.
    fn signal(&self, at: usize, word: u64) -> Result<(), BenchError>;
    /// [`Memory::send`] and then [`Memory::signal`].
    fn send_signal(
        &self,
        at: usize,
        bytes: &[u8],
        word_at: usize,
        word: u64,
    ) -> Result<(), BenchError>;
    /// Copies out of the other's inbox.
    fn fetch(&self, at: usize, into: &mut [u8]) -> Result<(), BenchError>;
    /// Reads a word of our inbox.
    fn load_signal(&self, at: usize) -> u64;
    /// Our inbox, [`INBOX`] bytes.
    fn inbox(&self) -> *mut u8;
}

/// Where a payload of an exchange is placed.
#[inline(always)]
pub(crate) fn payload_at(size: usize) -> usize {
    if size <= 56 { WORD + 8 } else { SLOTS }
}

/// Slots of a stream of messages of `size` bytes: as many as fit, 2 to 1024.
pub(crate) fn slot_count(size: usize) -> usize {
    (WINDOW / slot_stride(size)).clamp(2, 1024)
}

/// Bytes from slot to slot: whole lines.
pub(crate) fn slot_stride(size: usize) -> usize {
    size.next_multiple_of(64)
}

/// Reads every byte of `size` bytes from `from` (their wrapping sum, eight at a time), so that they
/// must really come to this core. This is what every receiver of every path does with a payload.
#[inline]
pub(crate) fn read_all(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 8];
    let mut blocks = bytes.chunks_exact(64);
    for block in &mut blocks {
        for (sum, word) in sums.iter_mut().zip(block.chunks_exact(8)) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(word.try_into().unwrap_or_default()));
        }
    }
    let rest = blocks.remainder().iter().fold(0u64, |sum, byte| sum.wrapping_add((*byte).into()));
    std::hint::black_box(sums.iter().fold(rest, |all, sum| all.wrapping_add(*sum)))
}

/// Bytes of our own inbox.
///
/// # Safety
/// The range lies in the inbox, and a signal word has shown that the other process has finished
/// writing it and will not write again before we answer.
#[inline(always)]
pub(crate) unsafe fn received<'a>(inbox: *mut u8, at: usize, size: usize) -> &'a [u8] {
    debug_assert!(at + size <= INBOX);
    // SAFETY: the caller's promise; the mapping lives as long as the measurement.
    unsafe { std::slice::from_raw_parts(inbox.add(at), size) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_all_sums_words_and_the_rest() {
        assert_eq!(read_all(&[1, 2, 3]), 6);
        let bytes: Vec<u8> = (0..200).map(|i| i as u8).collect();
        let words: u64 = bytes[..192]
            .chunks(8)
            .fold(0u64, |sum, word| sum.wrapping_add(u64::from_ne_bytes(word.try_into().unwrap())));
        let rest: u64 = bytes[192..].iter().map(|byte| u64::from(*byte)).sum();
        assert_eq!(read_all(&bytes), words.wrapping_add(rest));
    }

    #[test]
    fn slots_and_payloads_lie_in_the_inbox_and_spare_the_words() {
        for size in [4, 8, 56, 57, 64, 1000, 4096, 65536, LARGEST - 1, LARGEST] {
            assert!(slot_count(size) * slot_stride(size) <= WINDOW, "{size}");
            let payload = payload_at(size)..payload_at(size) + size;
            assert!(payload.end <= INBOX);
            assert!(!payload.contains(&WORD) && !payload.contains(&CREDIT), "{size}");
        }
    }
}
