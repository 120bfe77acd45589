//! CRC-64/NVME of packets in plaintext.
//!
//! Packets are short for a checksum: 1,472 bytes are six steps of the widest kind, so the beginning and the end count as much. `crc-fast`, which serves
//! all other processors, takes three times as long for a packet.

use crc_fast::CrcAlgorithm::Crc64Nvme;

/// The checksum of a packet.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if let Some(sum) = wide::checksum(bytes) {
        return sum;
    }
    crc_fast::checksum(Crc64Nvme, bytes)
}

/// By folding, 256 bytes at a time (Gopal and others, "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ", Intel 2009).
///
/// A message is a polynomial whose highest coefficient is the lowest bit of the first byte, so zeros in front of it change nothing: the first step
/// takes what the others leave over, and the end is always the same. Everything is reflected: bit `k` of a register is the coefficient of `x^(127 - k)`,
/// and a carry-less product comes out multiplied by `x`.
#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::*;

    /// x^64 and this.
    const POLYNOMIAL: u64 = 0xad93_d235_94c9_3659;
    /// Bytes of one step, in four parts.
    const STEP: usize = 256;

    const BY_STEP: Factor = Factor::of(STEP);
    /// From the first three parts to the last.
    const BY_PARTS: [Factor; 3] = [Factor::of(192), Factor::of(128), Factor::of(64)];
    /// Within a part, from the first three lanes to the last.
    const BY_LANES: [Factor; 3] = [Factor::of(48), Factor::of(32), Factor::of(16)];
    const BY_HALF: u64 = power(127).reverse_bits();

    /// What moves 16 bytes on by a distance: for their first half, and for their second.
    #[derive(Clone, Copy)]
    struct Factor(u64, u64);

    impl Factor {
        const fn of(bytes: usize) -> Self {
            Self(power(8 * bytes + 63).reverse_bits(), power(8 * bytes - 1).reverse_bits())
        }
    }

    /// `x^exponent` modulo the polynomial.
    const fn power(exponent: usize) -> u64 {
        let (mut value, mut at) = (1_u64, 0);
        while at < exponent {
            let carry = value >> 63;
            value = (value << 1) ^ (carry * POLYNOMIAL);
            at += 1;
        }
        value
    }

    /// `x^128` divided by the polynomial, without its `x^64`.
    const fn quotient() -> u64 {
        let (mut rest, mut quotient, mut at) = (POLYNOMIAL, 0_u64, 0);
        while at < 64 {
            let carry = rest >> 63;
            quotient = (quotient << 1) | carry;
            rest = (rest << 1) ^ (carry * POLYNOMIAL);
            at += 1;
        }
        quotient
    }

    pub(super) fn checksum(bytes: &[u8]) -> Option<u64> {
        let able = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("sse4.1");
        // The first step holds the eight bytes that the initial value is added to.
        let over = match bytes.len() % STEP {
            0 => STEP,
            over => over,
        };
        if !able || over < 8 || bytes.is_empty() {
            return None;
        }
        // SAFETY: the processor was asked; `over` is 8 to 256, and at most the length.
        Some(unsafe { fold(bytes, over) })
    }

    /// # Safety
    /// `over` bytes are there, 8 to [`STEP`], and behind them whole steps.
    #[target_feature(enable = "avx512f,avx512bw,vpclmulqdq,pclmulqdq,sse4.1")]
    unsafe fn fold(bytes: &[u8], over: usize) -> u64 {
        let (first, rest) = bytes.split_at(over);
        let zeros = STEP - over;
        let mut sums: [__m512i; 4] = std::array::from_fn(|part| {
            let held = bytes_from(zeros, part);
            let start = first.as_ptr().wrapping_add(64 * part).wrapping_sub(zeros);
            // SAFETY: bytes that the mask leaves out are not read. The others are from the first to the last of `first`.
            let bytes = unsafe { _mm512_maskz_loadu_epi8(held, start.cast()) };
            _mm512_xor_si512(bytes, _mm512_movm_epi8(held & !bytes_from(zeros + 8, part)))
        });
        let factor = repeated(BY_STEP);
        for step in rest.chunks_exact(STEP) {
            for (part, sum) in sums.iter_mut().enumerate() {
                // SAFETY: 64 bytes within the step.
                let more = unsafe { _mm512_loadu_si512(step.as_ptr().add(64 * part).cast()) };
                *sum = moved(*sum, factor, more);
            }
        }
        let mut sum = sums[3];
        for (part, factor) in sums.into_iter().zip(BY_PARTS) {
            sum = moved(part, repeated(factor), sum);
        }
        let [a, b, c] = BY_LANES;
        let factors = [a.0, a.1, b.0, b.1, c.0, c.1, 0, 0];
        // SAFETY: 64 bytes are read.
        let factors = unsafe { _mm512_loadu_si512(factors.as_ptr().cast()) };
        let lanes = moved(sum, factors, _mm512_maskz_mov_epi64(0b1100_0000, sum));
        let upper = _mm512_extracti64x4_epi64::<1>(lanes);
        let half = _mm256_xor_si256(_mm512_castsi512_si256(lanes), upper);
        let upper = _mm256_extracti128_si256::<1>(half);
        !remainder(_mm_xor_si128(_mm256_castsi256_si128(half), upper))
    }

    /// Which of the 64 bytes of a part are not below `start`, counted over all parts.
    fn bytes_from(start: usize, part: usize) -> u64 {
        match start.saturating_sub(64 * part) {
            skipped @ 0..64 => u64::MAX << skipped,
            _ => 0,
        }
    }

    #[target_feature(enable = "avx512f")]
    fn repeated(Factor(first, second): Factor) -> __m512i {
        _mm512_broadcast_i32x4(_mm_set_epi64x(second.cast_signed(), first.cast_signed()))
    }

    /// Each 16 bytes of `sum` moved on, added to `more`.
    #[target_feature(enable = "avx512f,vpclmulqdq")]
    fn moved(sum: __m512i, factor: __m512i, more: __m512i) -> __m512i {
        let first = _mm512_clmulepi64_epi128::<0x00>(sum, factor);
        let second = _mm512_clmulepi64_epi128::<0x11>(sum, factor);
        // All three added.
        _mm512_ternarylogic_epi64::<0x96>(first, second, more)
    }

    /// What the polynomial leaves of 16 bytes with eight zeros behind them (Barrett).
    #[target_feature(enable = "pclmulqdq,sse4.1")]
    fn remainder(bytes: __m128i) -> u64 {
        const QUOTIENT: u64 = quotient().reverse_bits();
        let product = |left: u64, right: u64| {
            let (left, right) = (left.cast_signed(), right.cast_signed());
            let product =
                _mm_clmulepi64_si128::<0>(_mm_cvtsi64_si128(left), _mm_cvtsi64_si128(right));
            (
                _mm_cvtsi128_si64(product).cast_unsigned(),
                _mm_extract_epi64::<1>(product).cast_unsigned(),
            )
        };
        let first = _mm_cvtsi128_si64(bytes).cast_unsigned();
        let second = _mm_extract_epi64::<1>(bytes).cast_unsigned();
        let (high, low) = product(first, BY_HALF);
        let high = high ^ second;
        let multiple = high ^ (product(high, QUOTIENT).0 << 1);
        let (above, below) = product(multiple, POLYNOMIAL.reverse_bits());
        low ^ ((below << 1) | (above >> 63))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the plainest way, at every length that a step can leave over.
    #[test]
    fn it_is_crc_64_nvme() {
        assert_eq!(
            checksum(b"123456789"),
            0xae8b_1486_0a79_9888,
            "the check value of the catalogue"
        );
        let bytes: Vec<u8> = (0..9000_u32).map(|at| ((at * at) >> 3) as u8).collect();
        for len in (0..1100).chain([1464, 4096, 8964, 9000]) {
            for start in [0, 1, 7].into_iter().filter(|start| start + len <= bytes.len()) {
                let bytes = &bytes[start..start + len];
                assert_eq!(checksum(bytes), crc_fast::checksum(Crc64Nvme, bytes), "{len} bytes");
            }
        }
    }
}
