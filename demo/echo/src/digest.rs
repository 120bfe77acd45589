//! A digest of a byte stream that is fast enough not to be what a throughput run measures.

/// Four FNV-like lanes, each over every fourth 8-byte word. The result depends on the order of the bytes and on
/// nothing else: not on how the stream was cut into pieces.
#[derive(Debug, Clone)]
pub(crate) struct Digest {
    lanes: [u64; 4],
    partial: [u8; BLOCK],
    filled: usize,
    length: u64,
}

const BLOCK: usize = 32;
const PRIME: u64 = 0x9E37_79B9_7F4A_7C15;

impl Digest {
    pub(crate) fn new() -> Self {
        Digest { lanes: [1, 2, 3, 4], partial: [0; BLOCK], filled: 0, length: 0 }
    }

    /// Bytes taken in so far.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if self.filled > 0 {
            let take = bytes.len().min(BLOCK - self.filled);
            self.partial[self.filled..self.filled + take].copy_from_slice(&bytes[..take]);
            self.filled += take;
            bytes = &bytes[take..];
            if self.filled < BLOCK {
                return;
            }
            let block = self.partial;
            self.block(&block);
            self.filled = 0;
        }
        let mut blocks = bytes.chunks_exact(BLOCK);
        for block in &mut blocks {
            self.block(block);
        }
        let rest = blocks.remainder();
        self.partial[..rest.len()].copy_from_slice(rest);
        self.filled = rest.len();
    }

    pub(crate) fn finish(mut self) -> u64 {
        let mut last = [0; BLOCK];
        last[..self.filled].copy_from_slice(&self.partial[..self.filled]);
        self.block(&last);
        self.lanes
            .iter()
            .fold(self.length, |all, lane| (all.rotate_left(23) ^ lane).wrapping_mul(PRIME))
    }

    fn block(&mut self, block: &[u8]) {
        for (lane, word) in self.lanes.iter_mut().zip(block.chunks_exact(8)) {
            let word = u64::from_le_bytes(word.try_into().expect("chunks of eight"));
            *lane = (*lane ^ word).wrapping_mul(PRIME).rotate_left(29);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Digest;

    fn digest(pieces: &[&[u8]]) -> u64 {
        let mut digest = Digest::new();
        pieces.iter().for_each(|piece| digest.update(piece));
        digest.finish()
    }

    #[test]
    fn does_not_depend_on_how_the_stream_was_cut() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let whole = digest(&[&bytes]);
        for cut in 0..bytes.len() {
            let (left, right) = bytes.split_at(cut);
            assert_eq!(digest(&[left, right]), whole, "cut at {cut}");
        }
    }

    #[test]
    fn sees_a_changed_a_missing_and_a_moved_byte() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let whole = digest(&[&bytes]);
        let mut changed = bytes.clone();
        changed[500] ^= 1;
        let mut moved = bytes.clone();
        moved.swap(3, 900);
        assert_ne!(digest(&[&changed]), whole);
        assert_ne!(digest(&[&moved]), whole);
        assert_ne!(digest(&[&bytes[..999]]), whole);
        assert_ne!(digest(&[&[0; 32]]), digest(&[&[0; 33]]));
    }
}
