//! The copy that every path makes, into and out of memory that others read and write.

/// Longest copy that is a few moves in line, in bytes.
const IN_LINE: usize = 64;

/// Shortest copy that is not left to the C library, in bytes: where glibc goes over to `rep movsb` at the earliest. Below it runs a
/// loop too, which is the better one in a ping-pong (2 KiB one way: 0.30 µs, here 0.36).
const WIDE: usize = 2112;

/// Copies `len` bytes from `from` to `to`; eight bytes go by one store, so that somebody who has seen them may write
/// there at once. It orders nothing: a release store after it is what may tell others of the bytes.
///
/// # JUSTIFICATION
/// `ptr::copy_nonoverlapping` calls the C library. Measured on a virtual Zen 3 processor with glibc 2.36, in its caches:
///
/// | bytes | destination past source, modulo 4096 | C library | here |
/// |---|---|---|---|
/// | 3 KiB to 256 KiB | 1 to 31 | 2 to 3 GB/s | 32 to 101 GB/s |
/// | 3 KiB to 256 KiB | 0, or 32 and more | 33 to 76 GB/s | 34 to 101 GB/s |
/// | 1 MiB | any | 31 to 34 GB/s | 35 to 37 GB/s |
/// | 8; 16; 32; 64 | any | 3.4; 3.4; 3.2; 2.8 ns | 1.4; 1.9; 2.0; 3.8 ns |
/// | up to 64, mixed | any | 4.1 ns | 2.8 ns |
///
/// From 2112 bytes on the library runs `rep movsb`, whose loads wait on that processor for stores that only look as if they were to the
/// same address; a ring meets that with every short head before a large body. A loop of 32-byte moves does not wait.
/// To a reader on another core, 16 KiB and 256 KiB went at 17 to 24 GB/s instead of 2 to 3. Stores that bypass the caches
/// brought it 1 MiB at 9 GB/s instead of 30. They were the faster ones (10 to 13 instead of 4 to 7) only in runs where
/// everything between the cores was slow, which a program cannot know beforehand.
///
/// On a virtual Zen 5 processor `rep movsb` waits for nothing, and takes over lines that another core has read without asking for
/// what is in them: to a reader on another core 64 KiB went at 67 GB/s (the loop: 45), and at 27 (8) when the two cores
/// were far apart. So processors with AVX-512, which are all younger than those that wait, run `rep movsb`.
///
/// # Safety
/// `from` is readable and `to` writable for `len` bytes, and the two do not overlap. Other processes may access either at
/// the same time: the bytes may come half old, half new.
#[inline]
pub unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise; `ends::<N>` is called with `N <= len <= 2 * N`.
    unsafe {
        if len == 8 {
            *to.cast::<[u8; 8]>() = *from.cast();
        } else if len > IN_LINE {
            if len < WIDE { from.copy_to_nonoverlapping(to, len) } else { long(from, to, len) }
        } else if len > 32 {
            ends::<32>(from, to, len);
        } else if len > 16 {
            ends::<16>(from, to, len);
        } else if len > 8 {
            ends::<8>(from, to, len);
        } else if len >= 4 {
            ends::<4>(from, to, len);
        } else if len >= 2 {
            ends::<2>(from, to, len);
        } else if len == 1 {
            *to = *from;
        }
    }
}

/// Copies the first `N` bytes and the last `N`: together all `len`, without a branch on the length.
///
/// # Safety
/// That of [`copy`], and `N <= len <= 2 * N`.
#[inline(always)]
unsafe fn ends<const N: usize>(from: *const u8, to: *mut u8, len: usize) {
    debug_assert!(N <= len && len <= 2 * N);
    // SAFETY: `len - N + N == len`, within what the caller vouches for; arrays of bytes need no alignment.
    unsafe {
        let last = len - N;
        to.cast::<[u8; N]>().copy_from_nonoverlapping(from.cast(), 1);
        to.add(last).cast::<[u8; N]>().copy_from_nonoverlapping(from.add(last).cast(), 1);
    }
}

/// Copies at least [`WIDE`] bytes.
///
/// # Safety
/// That of [`copy`].
#[inline(never)]
unsafe fn long(from: *const u8, to: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: the caller's promise.
        return unsafe { string(from, to, len) };
    } else if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the caller's promise; the processor has AVX2; `len >= WIDE >= BLOCK`.
        return unsafe { wide::copy(from, to, len) };
    }
    // SAFETY: the caller's promise.
    unsafe { from.copy_to_nonoverlapping(to, len) };
}

/// Copies by the processor's own string move. The C library does so too, but from which length on changes with its version.
///
/// # Safety
/// That of [`copy`].
#[cfg(target_arch = "x86_64")]
unsafe fn string(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise; the direction flag is clear at every call and return.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{__m256i, _mm256_loadu_si256, _mm256_storeu_si256};

    /// Bytes of one move.
    const MOVE: usize = size_of::<__m256i>();
    /// Bytes of one turn of the loop.
    pub(super) const BLOCK: usize = 4 * MOVE;

    /// Copies by a loop whose stores are aligned; what is left at either end is covered by moves that overlap the loop's.
    ///
    /// # Safety
    /// That of [`super::copy`]; `len >= BLOCK`; the processor has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
        debug_assert!(len >= BLOCK);
        let last = len - BLOCK;
        // SAFETY: every block starts at `last` or before it, so it ends within `len`; `MOVE <= len`.
        unsafe {
            _mm256_storeu_si256(to.cast(), _mm256_loadu_si256(from.cast()));
            let mut at = MOVE - to.addr() % MOVE;
            while at < last {
                block(from.add(at), to.add(at));
                at += BLOCK;
            }
            block(from.add(last), to.add(last));
        }
    }

    /// Copies one block: all loads, then all stores.
    ///
    /// # Safety
    /// `from` is readable and `to` writable for [`BLOCK`] bytes.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn block(from: *const u8, to: *mut u8) {
        let (from, to) = (from.cast::<__m256i>(), to.cast::<__m256i>());
        // SAFETY: four moves are a block; these intrinsics need no alignment.
        unsafe {
            let a = _mm256_loadu_si256(from);
            let b = _mm256_loadu_si256(from.add(1));
            let c = _mm256_loadu_si256(from.add(2));
            let d = _mm256_loadu_si256(from.add(3));
            _mm256_storeu_si256(to, a);
            _mm256_storeu_si256(to.add(1), b);
            _mm256_storeu_si256(to.add(2), c);
            _mm256_storeu_si256(to.add(3), d);
        }
    }
}

/// Asks for the cache line at `address`, which may be any.
#[inline]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint without an effect that a program could see, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for the cache line of `word` in order to write it, so that it has left other processors when a store to it comes.
#[inline]
pub(crate) fn prefetch_for_writing<T>(word: *const T) {
    #[cfg(all(target_arch = "x86_64", not(any(miri, loom))))]
    // SAFETY: a hint without an effect that a program could see; processors that do not know it do nothing.
    unsafe {
        std::arch::asm!(
            "prefetchw [{}]",
            in(reg) word,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(miri, loom)))))]
    let _ = word;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Copy = unsafe fn(*const u8, *mut u8, usize);

    /// Bytes on either side of the destination that must stay as they are.
    const MARGIN: usize = 256;

    /// Copies between places that lie so far past a page boundary, and looks at every byte of the destination's memory.
    fn copies_exactly(
        copy: Copy,
        source: &[u8],
        target: &mut [u8],
        len: usize,
        from: usize,
        to: usize,
    ) {
        let place = |start: *const u8, past: usize| start.align_offset(4096) + past;
        let from = place(source.as_ptr(), from);
        let to = place(target.as_ptr(), to);
        let (before, after) = (to - MARGIN, to + len + MARGIN);
        target[before..after].fill(0);
        let source = &source[from..from + len];
        // SAFETY: both slices have `len` bytes from there on (the slicing above checked it) and are different memory.
        unsafe { copy(source.as_ptr(), target.as_mut_ptr().add(to), len) };
        assert!(target[before..to].iter().all(|&byte| byte == 0), "{len} bytes: wrote before");
        assert!(target[to..to + len] == *source, "{len} bytes: differ");
        assert!(target[to + len..after].iter().all(|&byte| byte == 0), "{len} bytes: wrote behind");
    }

    /// Bytes none of which is zero, and which do not repeat with any power of two.
    fn source(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at % 251 + 1) as u8).collect()
    }

    #[test]
    fn every_short_length_at_every_place_in_a_line() {
        let (source, mut target) = (source(12 << 10), vec![0; 12 << 10]);
        let places = if cfg!(miri) { 2 } else { 33 };
        for len in (0..=300).step_by(if cfg!(miri) { 7 } else { 1 }) {
            for from in 0..places {
                for to in MARGIN..MARGIN + places {
                    copies_exactly(copy, &source, &mut target, len, from, to);
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_loop_at_every_length_from_one_block_on() {
        if !std::arch::is_x86_feature_detected!("avx2") {
            return;
        }
        unsafe fn wide(from: *const u8, to: *mut u8, len: usize) {
            // SAFETY: the caller's promise; the processor has AVX2, and every length below is at least a block.
            unsafe { wide::copy(from, to, len) }
        }
        let (source, mut target) = (source(12 << 10), vec![0; 12 << 10]);
        for len in wide::BLOCK..=wide::BLOCK * 5 + 1 {
            for to in MARGIN..MARGIN + 64 {
                copies_exactly(wide, &source, &mut target, len, len % 37, to);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    #[cfg_attr(miri, ignore = "Miri does not interpret assembly")]
    fn the_string_move_at_every_length() {
        let (source, mut target) = (source(12 << 10), vec![0; 12 << 10]);
        for len in (0..70).chain(WIDE..WIDE + 70) {
            for to in MARGIN..MARGIN + 64 {
                copies_exactly(string, &source, &mut target, len, len % 37, to);
            }
        }
    }

    proptest! {
        #[test]
        fn any_length_between_any_two_places(
            len in prop_oneof![0..300_usize, 1900..2500_usize, 0..300_000_usize],
            from in 0..4096_usize,
            to in MARGIN..4096 + MARGIN,
        ) {
            let (source, mut target) = (source(len + (9 << 10)), vec![0; len + (9 << 10)]);
            copies_exactly(copy, &source, &mut target, len, from, to);
        }
    }
}
