//! The bytes that `up` and `down` carry: any length, every chunk different, cheap to make.

use crate::digest::Digest;

/// Bytes in one write.
pub(crate) const CHUNK: usize = 128 * 1024;

/// Hands the chunks of a stream of `length` bytes to `chunk`, in order, until one of them fails.
pub(crate) fn for_each_chunk<E>(
    length: u64,
    mut chunk: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut bytes: Vec<u8> = (0..CHUNK).map(|at| (at * 31 + (at >> 8)) as u8).collect();
    let (mut left, mut number) = (length, 0_u64);
    while left > 0 {
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        let size = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        chunk(&bytes[..size])?;
        left -= size as u64;
        number += 1;
    }
    Ok(())
}

/// The digest of that stream.
pub(crate) fn digest(length: u64) -> u64 {
    let mut digest = Digest::new();
    let made: Result<(), std::convert::Infallible> = for_each_chunk(length, |chunk| {
        digest.update(chunk);
        Ok(())
    });
    match made {
        Ok(()) => digest.finish(),
    }
}
