//! AVX-512 F, BW, DQ and VL, with or without VNNI and BF16: one register of 16 floats is a vector.

use super::{Simd, array, part};
use std::arch::x86_64::*;

/// Proof that the processor has AVX-512 F, BW, DQ and VL, what AVX2 has, and from `LEVEL` 1 on AVX-512
/// VNNI, from 2 on AVX-512 BF16.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const LEVEL: u8>(());

impl<const LEVEL: u8> Avx512<LEVEL> {
    /// The proof.
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C; what `LEVEL` says.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Avx512<LEVEL> {
        Avx512(())
    }
}

impl<const LEVEL: u8> Simd for Avx512<LEVEL> {
    type F = __m512;
    type N = __m512i;
    type B = __m512i;

    const WIDE: bool = true;

    // SAFETY (for every block below): `self` proves that the processor has the instructions;
    // loads and stores are unaligned ones inside the arrays borrowed by the arguments.

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; 16]) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn store_f32(self, x: __m512, to: &mut [u8; 64]) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr().cast(), x) }
    }
    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 64]) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(bytes.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 32]) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast())) }
    }
    #[inline(always)]
    fn store_f16(self, x: __m512, to: &mut [[u8; 2]; 16]) {
        // SAFETY: see above.
        unsafe {
            let x = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), x);
        }
    }
    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 32]) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let v = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bytes.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v))
        }
    }
    #[inline(always)]
    fn load_i8(self, bytes: &[u8; 16]) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn f16(self, bits: u16) -> f32 {
        // SAFETY: see above.
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn pick(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x) }
    }
    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    fn off(self, x: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    fn pow2(self, n: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let n = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(n))
        }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch accesses nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        // SAFETY: see above.
        unsafe {
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    fn sum4(self, x: [__m512; 4]) -> [f32; 4] {
        // SAFETY: see above.
        unsafe {
            // Halves of two vectors beside each other, then quarters of four; after that all four
            // sums go on in their own 128 bits.
            let pair = |a, b| {
                _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0x44>(a, b),
                    _mm512_shuffle_f32x4::<0xee>(a, b),
                )
            };
            let (a, b) = (pair(x[0], x[1]), pair(x[2], x[3]));
            let x = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0x88>(a, b),
                _mm512_shuffle_f32x4::<0xdd>(a, b),
            );
            let x = _mm512_add_ps(x, _mm512_permute_ps::<0x4e>(x));
            let x = _mm512_add_ps(x, _mm512_permute_ps::<0xb1>(x));
            let firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let mut out = [0.0; 4];
            let x = _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, x));
            _mm_storeu_ps(out.as_mut_ptr(), x);
            out
        }
    }
    #[inline(always)]
    fn largest(self, x: __m512) -> f32 {
        // SAFETY: see above.
        unsafe {
            let x = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    fn bytes(self, from: &[u8; 64]) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn quarters(self, from: [&[u8; 16]; 4]) -> __m512i {
        // SAFETY: see above.
        unsafe {
            let load = |i: usize| _mm_loadu_si128(from[i].as_ptr().cast());
            let x = _mm512_castsi128_si512(load(0));
            let x = _mm512_inserti32x4::<1>(x, load(1));
            let x = _mm512_inserti32x4::<2>(x, load(2));
            _mm512_inserti32x4::<3>(x, load(3))
        }
    }
    #[inline(always)]
    fn store_bytes(self, x: __m512i, to: &mut [u8; 64]) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), x) }
    }
    #[inline(always)]
    fn and(self, a: __m512i, mask: u8) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_and_si512(a, _mm512_set1_epi8(mask.cast_signed())) }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn raise(self, a: __m512i, by: u8) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_add_epi8(a, _mm512_set1_epi8(by.cast_signed())) }
    }
    #[inline(always)]
    fn flip(self, a: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_xor_si512(a, _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    fn shr(self, a: __m512i, by: [u32; 4]) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_srlv_epi32(a, per_quarter(by)) }
    }
    #[inline(always)]
    fn shl(self, a: __m512i, by: [u32; 4]) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_sllv_epi32(a, per_quarter(by)) }
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], indices: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, indices)
        }
    }
    #[inline(always)]
    fn bits(self, mask: u64, value: u8) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_maskz_set1_epi8(mask, value.cast_signed()) }
    }
    #[inline(always)]
    fn transpose(self, x: [__m512i; 4]) -> [__m512i; 4] {
        // SAFETY: see above.
        unsafe {
            let (a, b) = (
                _mm512_unpacklo_epi32(x[0], x[1]),
                _mm512_unpacklo_epi32(x[2], x[3]),
            );
            let (c, d) = (
                _mm512_unpackhi_epi32(x[0], x[1]),
                _mm512_unpackhi_epi32(x[2], x[3]),
            );
            [
                _mm512_unpacklo_epi64(a, b),
                _mm512_unpackhi_epi64(a, b),
                _mm512_unpacklo_epi64(c, d),
                _mm512_unpackhi_epi64(c, d),
            ]
        }
    }
    #[inline(always)]
    fn across(self, x: [__m512i; 4]) -> [__m512i; 4] {
        // SAFETY: see above.
        unsafe {
            let (a, b) = (
                _mm512_shuffle_i32x4::<0x44>(x[0], x[1]),
                _mm512_shuffle_i32x4::<0x44>(x[2], x[3]),
            );
            let (c, d) = (
                _mm512_shuffle_i32x4::<0xee>(x[0], x[1]),
                _mm512_shuffle_i32x4::<0xee>(x[2], x[3]),
            );
            [
                _mm512_shuffle_i32x4::<0x88>(a, b),
                _mm512_shuffle_i32x4::<0xdd>(a, b),
                _mm512_shuffle_i32x4::<0x88>(c, d),
                _mm512_shuffle_i32x4::<0xdd>(c, d),
            ]
        }
    }
    #[inline(always)]
    fn word(self, from: &[u8; 4]) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_set1_epi32(i32::from_le_bytes(*from)) }
    }
    #[inline(always)]
    fn zip(self, low: __m512i, high: __m512i) -> [__m512i; 2] {
        // SAFETY: see above.
        unsafe {
            let even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
            let odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
            [
                _mm512_permutex2var_epi64(low, even, high),
                _mm512_permutex2var_epi64(low, odd, high),
            ]
        }
    }
    #[inline(always)]
    fn float_quarters(self, from: [&[f32; 4]; 4]) -> __m512i {
        // SAFETY: see above.
        unsafe {
            let load = |i: usize| _mm_loadu_ps(from[i].as_ptr());
            let x = _mm512_castps128_ps512(load(0));
            let x = _mm512_insertf32x4::<1>(x, load(1));
            let x = _mm512_insertf32x4::<2>(x, load(2));
            _mm512_castps_si512(_mm512_insertf32x4::<3>(x, load(3)))
        }
    }
    #[inline(always)]
    fn as_floats(self, x: __m512i) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_castsi512_ps(x) }
    }
    #[inline(always)]
    fn to_words(self, x: [__m512; 4]) -> __m512i {
        // SAFETY: see above.
        unsafe {
            let [a, b, c, d]: [_; 4] = array(|i| _mm512_cvtps_epi32(x[i]));
            let low = _mm512_mask_mov_epi8(_mm512_slli_epi32::<8>(b), 0x1111_1111_1111_1111, a);
            let d = _mm512_slli_epi32::<24>(d);
            let high = _mm512_slli_epi32::<16>(c);
            let high = _mm512_mask_mov_epi8(d, 0x4444_4444_4444_4444, high);
            _mm512_mask_mov_epi16(high, 0x5555_5555, low)
        }
    }
    #[inline(always)]
    fn dot(self, sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe {
            if LEVEL >= 1 {
                return _mm512_dpbusd_epi32(sum, w, x);
            }
            // Neighbouring products are added in 16 bits, which the top bit of a weight could
            // overflow: it goes apart.
            let top = _mm512_set1_epi8(-128);
            let ones = _mm512_set1_epi16(1);
            let low = _mm512_maddubs_epi16(_mm512_andnot_si512(top, w), x);
            let high = _mm512_maddubs_epi16(_mm512_and_si512(top, w), x);
            let sum = _mm512_add_epi32(sum, _mm512_madd_epi16(low, ones));
            _mm512_add_epi32(sum, _mm512_madd_epi16(high, ones))
        }
    }
    #[inline(always)]
    fn dot_bf16(self, sum: __m512, w: __m512i, x: __m512i) -> __m512 {
        if LEVEL < 2 {
            unreachable!("asked for by the level with BF16 only");
        }
        // SAFETY: see above; any 64 bytes are 32 bfloat16.
        unsafe {
            let pairs = |x| std::mem::transmute::<__m512i, __m512bh>(x);
            _mm512_dpbf16_ps(sum, pairs(w), pairs(x))
        }
    }
    #[inline(always)]
    fn times(self, x: &[u8; 64], by: i32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_mullo_epi32(_mm512_loadu_si512(x.as_ptr().cast()), _mm512_set1_epi32(by)) }
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn add_ints(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn as_ints(self, x: __m512i) -> __m512i {
        x
    }
    #[inline(always)]
    fn store_ints(self, x: __m512i, to: &mut [u8; 64]) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), x) }
    }
    #[inline(always)]
    fn float(self, x: __m512i) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    fn turn(self, x: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let from = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_ps(from, x)
        }
    }
    #[inline(always)]
    fn k_scales(self, first: &[u8; 16], second: &[u8; 16], odd: f32) -> [__m512; 2] {
        // SAFETY: see above.
        unsafe {
            let load = |x: &[u8; 16]| _mm_loadu_si128(x.as_ptr().cast());
            let x = _mm256_set_m128i(load(second), load(first));
            // In each half 8 scales, then 8 mins; of each the first four are six bits of a byte, the
            // last four a nibble below two bits of another byte.
            let low = _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15);
            let top = _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11);
            let mask = _mm_set_epi32(0x0f0f_0f0f, 0x3f3f_3f3f, 0x0f0f_0f0f, 0x3f3f_3f3f);
            let both = |x| _mm256_broadcastsi128_si256(x);
            let low = _mm256_shuffle_epi8(x, both(low));
            let low = _mm256_mask_srli_epi32::<4>(low, 0x88, low);
            let top = _mm256_srli_epi16::<2>(_mm256_shuffle_epi8(x, both(top)));
            let top = _mm256_and_si256(top, _mm256_set1_epi8(0x30));
            let x8 = _mm256_or_si256(_mm256_and_si256(low, both(mask)), top);
            // Eight times d, eight times dmin.
            let eights = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
            let signs: [f32; 16] = array(|i| match i {
                8.. => -1.0,
                _ if i % 2 == 1 => odd,
                _ => 1.0,
            });
            let signs = _mm512_loadu_ps(signs.as_ptr());
            let scaled = |x8: __m128i, halves: __m128i| {
                let d = _mm512_castps128_ps512(_mm_cvtph_ps(halves));
                let d = _mm512_mul_ps(_mm512_permutexvar_ps(eights, d), signs);
                _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x8)), d)
            };
            let a = scaled(_mm256_castsi256_si128(x8), _mm256_castsi256_si128(x));
            let upper = _mm256_extracti128_si256::<1>(x8);
            let b = scaled(upper, _mm256_extracti128_si256::<1>(x));
            let scales = _mm512_setr_epi32(0, 4, 16, 20, 1, 5, 17, 21, 2, 6, 18, 22, 3, 7, 19, 23);
            let mins = _mm512_add_epi32(scales, _mm512_set1_epi32(8));
            [
                _mm512_permutex2var_ps(a, scales, b),
                _mm512_permutex2var_ps(a, mins, b),
            ]
        }
    }
    #[inline(always)]
    fn turned_halves<const BYTES: usize>(self, data: &[u8]) -> __m512 {
        // Halves reached by one load: of four blocks where 64 bytes do, else of two.
        let step = if 3 * BYTES + 2 <= 64 { 4 } else { 2 };
        // SAFETY: see above; `part` gives the bytes that are loaded.
        unsafe {
            let from: [i16; 32] = array(|lane| ((lane / 4) % step * BYTES / 2) as i16);
            let from = _mm512_loadu_si512(from.as_ptr().cast());
            let mut all = _mm512_setzero_si512();
            let mut block = 0;
            while block < 16 {
                let loaded = if step == 2 && BYTES + 2 <= 32 {
                    let part: &[u8; 32] = part(data, block * BYTES);
                    _mm512_castsi256_si512(_mm256_loadu_si256(part.as_ptr().cast()))
                } else {
                    let part: &[u8; 64] = part(data, block * BYTES);
                    _mm512_loadu_si512(part.as_ptr().cast())
                };
                // Block 4i + l goes to lane 4l + i.
                let lanes = match (step, block % 4) {
                    (4, _) => 0x1111,
                    (_, 0) => 0x0011,
                    _ => 0x1100,
                };
                all = _mm512_mask_permutexvar_epi16(all, lanes << (block / 4), from, loaded);
                block += step;
            }
            _mm512_cvtph_ps(_mm512_castsi512_si256(all))
        }
    }

    #[inline(always)]
    fn scale2(self, x: __m512, n: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_scalef_ps(x, n) }
    }
}

/// A number for all words of each quarter.
#[inline]
#[target_feature(enable = "avx512f")]
fn per_quarter(x: [u32; 4]) -> __m512i {
    let [a, b, c, d] = x.map(u32::cast_signed);
    _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d)
}
