//! AVX2 with FMA and F16C, with or without AVX-VNNI: two registers of 8 floats make a vector.

use super::{Simd, array, part};
use std::arch::x86_64::*;

/// Proof that the processor has AVX2, FMA and F16C, and AVX-VNNI if `VNNI`.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    /// The proof.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C; AVX-VNNI if `VNNI`.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Avx2<VNNI> {
        Avx2(())
    }
}

/// Lanes 0..8 and 8..16.
type Pair = (__m256, __m256);

/// Lanes 0..8 and 8..16, or bytes 0..32 and 32..64.
type Ints = (__m256i, __m256i);

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type F = Pair;
    type N = Ints;
    type B = Ints;

    const WIDE: bool = false;

    // SAFETY (for every block below): `self` proves that the processor has the instructions;
    // loads and stores are unaligned ones inside the arrays borrowed by the arguments.

    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        // SAFETY: see above.
        let v = unsafe { _mm256_set1_ps(x) };
        (v, v)
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Pair {
        // SAFETY: see above.
        unsafe {
            (
                _mm256_loadu_ps(x.as_ptr()),
                _mm256_loadu_ps(x.as_ptr().add(8)),
            )
        }
    }
    #[inline(always)]
    fn store(self, x: Pair, to: &mut [f32; 16]) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), x.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), x.1);
        }
    }
    #[inline(always)]
    fn store_f32(self, x: Pair, to: &mut [u8; 64]) {
        let at = to.as_mut_ptr().cast::<f32>();
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(at, x.0);
            _mm256_storeu_ps(at.add(8), x.1);
        }
    }
    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 64]) -> Pair {
        let at = bytes.as_ptr().cast::<f32>();
        // SAFETY: see above.
        unsafe { (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))) }
    }
    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 32]) -> Pair {
        let at = bytes.as_ptr().cast::<__m128i>();
        // SAFETY: see above.
        unsafe {
            (
                _mm256_cvtph_ps(_mm_loadu_si128(at)),
                _mm256_cvtph_ps(_mm_loadu_si128(at.add(1))),
            )
        }
    }
    #[inline(always)]
    fn store_f16(self, x: Pair, to: &mut [[u8; 2]; 16]) {
        let at = to.as_mut_ptr().cast::<__m128i>();
        // SAFETY: see above.
        unsafe {
            _mm_storeu_si128(at, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.0));
            _mm_storeu_si128(at.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.1));
        }
    }
    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 32]) -> Pair {
        let at = bytes.as_ptr().cast::<__m128i>();
        // SAFETY: see above.
        unsafe {
            let a = _mm256_cvtepu16_epi32(_mm_loadu_si128(at));
            let b = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.add(1)));
            (
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b)),
            )
        }
    }
    #[inline(always)]
    fn load_i8(self, bytes: &[u8; 16]) -> Pair {
        // SAFETY: see above.
        unsafe {
            let v = _mm_loadu_si128(bytes.as_ptr().cast());
            let a = _mm256_cvtepi8_epi32(v);
            let b = _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(v));
            (_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b))
        }
    }
    #[inline(always)]
    fn f16(self, bits: u16) -> f32 {
        // SAFETY: see above.
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
    }

    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { (_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { (_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn fma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        // SAFETY: see above.
        unsafe {
            (
                _mm256_fmadd_ps(a.0, b.0, c.0),
                _mm256_fmadd_ps(a.1, b.1, c.1),
            )
        }
    }
    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { (_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { (_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn pick(self, a: Pair, b: Pair, x: Pair, y: Pair) -> Pair {
        // SAFETY: see above.
        unsafe {
            let half = |a, b, x, y| _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b));
            (half(a.0, b.0, x.0, y.0), half(a.1, b.1, x.1, y.1))
        }
    }
    #[inline(always)]
    fn round(self, x: Pair) -> Pair {
        const MODE: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: see above.
        unsafe { (_mm256_round_ps::<MODE>(x.0), _mm256_round_ps::<MODE>(x.1)) }
    }
    #[inline(always)]
    fn pow2(self, n: Pair) -> Pair {
        // SAFETY: see above.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let a = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n.0), bias));
            let b = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n.1), bias));
            (_mm256_castsi256_ps(a), _mm256_castsi256_ps(b))
        }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch accesses nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn sum(self, x: Pair) -> f32 {
        // SAFETY: see above.
        unsafe {
            let x = _mm256_add_ps(x.0, x.1);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    fn sum4(self, x: [Pair; 4]) -> [f32; 4] {
        // SAFETY: see above.
        unsafe {
            let x: [_; 4] = array(|i| {
                let x: Pair = x[i];
                let x = _mm256_add_ps(x.0, x.1);
                _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x))
            });
            let a = _mm_add_ps(_mm_movelh_ps(x[0], x[1]), _mm_movehl_ps(x[1], x[0]));
            let b = _mm_add_ps(_mm_movelh_ps(x[2], x[3]), _mm_movehl_ps(x[3], x[2]));
            let (even, odd) = (_mm_shuffle_ps::<0x88>(a, b), _mm_shuffle_ps::<0xdd>(a, b));
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), _mm_add_ps(even, odd));
            out
        }
    }
    #[inline(always)]
    fn largest(self, x: Pair) -> f32 {
        // SAFETY: see above.
        unsafe {
            let x = _mm256_max_ps(x.0, x.1);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    fn bytes(self, from: &[u8; 64]) -> Ints {
        let at = from.as_ptr().cast::<__m256i>();
        // SAFETY: see above.
        unsafe { (_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))) }
    }
    #[inline(always)]
    fn quarters(self, from: [&[u8; 16]; 4]) -> Ints {
        // SAFETY: see above.
        unsafe {
            let load = |i: usize| _mm_loadu_si128(from[i].as_ptr().cast());
            (
                _mm256_set_m128i(load(1), load(0)),
                _mm256_set_m128i(load(3), load(2)),
            )
        }
    }
    #[inline(always)]
    fn store_bytes(self, x: Ints, to: &mut [u8; 64]) {
        let at = to.as_mut_ptr().cast::<__m256i>();
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_si256(at, x.0);
            _mm256_storeu_si256(at.add(1), x.1);
        }
    }
    #[inline(always)]
    fn and(self, a: Ints, mask: u8) -> Ints {
        // SAFETY: see above.
        unsafe {
            let mask = _mm256_set1_epi8(mask.cast_signed());
            (_mm256_and_si256(a.0, mask), _mm256_and_si256(a.1, mask))
        }
    }
    #[inline(always)]
    fn or(self, a: Ints, b: Ints) -> Ints {
        // SAFETY: see above.
        unsafe { (_mm256_or_si256(a.0, b.0), _mm256_or_si256(a.1, b.1)) }
    }
    #[inline(always)]
    fn raise(self, a: Ints, by: u8) -> Ints {
        // SAFETY: see above.
        unsafe {
            let by = _mm256_set1_epi8(by.cast_signed());
            (_mm256_add_epi8(a.0, by), _mm256_add_epi8(a.1, by))
        }
    }
    #[inline(always)]
    fn flip(self, a: Ints) -> Ints {
        // SAFETY: see above.
        unsafe {
            let top = _mm256_set1_epi8(-128);
            (_mm256_xor_si256(a.0, top), _mm256_xor_si256(a.1, top))
        }
    }
    #[inline(always)]
    fn shr(self, a: Ints, by: [u32; 4]) -> Ints {
        // SAFETY: see above.
        unsafe {
            (
                _mm256_srlv_epi32(a.0, per_half(by[0], by[1])),
                _mm256_srlv_epi32(a.1, per_half(by[2], by[3])),
            )
        }
    }
    #[inline(always)]
    fn shl(self, a: Ints, by: [u32; 4]) -> Ints {
        // SAFETY: see above.
        unsafe {
            (
                _mm256_sllv_epi32(a.0, per_half(by[0], by[1])),
                _mm256_sllv_epi32(a.1, per_half(by[2], by[3])),
            )
        }
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], indices: Ints) -> Ints {
        // SAFETY: see above.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            (
                _mm256_shuffle_epi8(table, indices.0),
                _mm256_shuffle_epi8(table, indices.1),
            )
        }
    }
    #[inline(always)]
    fn bits(self, mask: u64, value: u8) -> Ints {
        // SAFETY: see above.
        unsafe {
            // Byte i of 32 gets byte i/8 of the mask, of which it keeps bit i%8.
            let spread = _mm256_setr_epi64x(
                0,
                0x0101_0101_0101_0101,
                0x0202_0202_0202_0202,
                0x0303_0303_0303_0303,
            );
            let each = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
            let value = _mm256_set1_epi8(value.cast_signed());
            let of = |mask: u32| {
                let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(mask.cast_signed()), spread);
                let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, each), each);
                _mm256_and_si256(set, value)
            };
            (of(mask as u32), of((mask >> 32) as u32))
        }
    }
    #[inline(always)]
    fn transpose(self, x: [Ints; 4]) -> [Ints; 4] {
        let first = transpose_half([x[0].0, x[1].0, x[2].0, x[3].0]);
        let second = transpose_half([x[0].1, x[1].1, x[2].1, x[3].1]);
        array(|k| (first[k], second[k]))
    }
    #[inline(always)]
    fn across(self, x: [Ints; 4]) -> [Ints; 4] {
        // SAFETY: see above.
        unsafe {
            let low = |a, b| _mm256_permute2x128_si256::<0x20>(a, b);
            let high = |a, b| _mm256_permute2x128_si256::<0x31>(a, b);
            [
                (low(x[0].0, x[1].0), low(x[2].0, x[3].0)),
                (high(x[0].0, x[1].0), high(x[2].0, x[3].0)),
                (low(x[0].1, x[1].1), low(x[2].1, x[3].1)),
                (high(x[0].1, x[1].1), high(x[2].1, x[3].1)),
            ]
        }
    }
    #[inline(always)]
    fn word(self, from: &[u8; 4]) -> Ints {
        // SAFETY: see above.
        let x = unsafe { _mm256_set1_epi32(i32::from_le_bytes(*from)) };
        (x, x)
    }
    #[inline(always)]
    fn zip(self, low: Ints, high: Ints) -> [Ints; 2] {
        // SAFETY: see above.
        unsafe {
            [
                (
                    _mm256_permute2x128_si256::<0x20>(low.0, high.0),
                    _mm256_permute2x128_si256::<0x20>(low.1, high.1),
                ),
                (
                    _mm256_permute2x128_si256::<0x31>(low.0, high.0),
                    _mm256_permute2x128_si256::<0x31>(low.1, high.1),
                ),
            ]
        }
    }
    #[inline(always)]
    fn float_quarters(self, from: [&[f32; 4]; 4]) -> Ints {
        // SAFETY: see above.
        unsafe {
            let load = |i: usize| _mm_castps_si128(_mm_loadu_ps(from[i].as_ptr()));
            (
                _mm256_set_m128i(load(1), load(0)),
                _mm256_set_m128i(load(3), load(2)),
            )
        }
    }
    #[inline(always)]
    fn as_floats(self, x: Ints) -> Pair {
        // SAFETY: see above.
        unsafe { (_mm256_castsi256_ps(x.0), _mm256_castsi256_ps(x.1)) }
    }
    #[inline(always)]
    fn to_words(self, x: [Pair; 4]) -> Ints {
        // SAFETY: see above.
        unsafe {
            let words = |x: [__m256; 4]| {
                let [a, b, c, d]: [_; 4] = array(|i| _mm256_cvtps_epi32(x[i]));
                let byte = _mm256_set1_epi32(255);
                let low = _mm256_or_si256(
                    _mm256_and_si256(a, byte),
                    _mm256_slli_epi32::<8>(_mm256_and_si256(b, byte)),
                );
                let high = _mm256_or_si256(
                    _mm256_slli_epi32::<16>(_mm256_and_si256(c, byte)),
                    _mm256_slli_epi32::<24>(d),
                );
                _mm256_or_si256(low, high)
            };
            (words(array(|i| x[i].0)), words(array(|i| x[i].1)))
        }
    }
    #[inline(always)]
    fn dot(self, sum: Ints, w: Ints, x: Ints) -> Ints {
        // SAFETY: see above.
        unsafe {
            if VNNI {
                return (
                    _mm256_dpbusd_avx_epi32(sum.0, w.0, x.0),
                    _mm256_dpbusd_avx_epi32(sum.1, w.1, x.1),
                );
            }
            // Neighbouring products are added in 16 bits, which the top bit of a weight could
            // overflow: it goes apart.
            let (top, ones) = (_mm256_set1_epi8(-128), _mm256_set1_epi16(1));
            let half = |sum, w, x| {
                let low = _mm256_maddubs_epi16(_mm256_andnot_si256(top, w), x);
                let high = _mm256_maddubs_epi16(_mm256_and_si256(top, w), x);
                let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(low, ones));
                _mm256_add_epi32(sum, _mm256_madd_epi16(high, ones))
            };
            (half(sum.0, w.0, x.0), half(sum.1, w.1, x.1))
        }
    }
    #[inline(always)]
    fn times(self, x: &[u8; 64], by: i32) -> Ints {
        let at = x.as_ptr().cast::<__m256i>();
        // SAFETY: see above.
        unsafe {
            let by = _mm256_set1_epi32(by);
            (
                _mm256_mullo_epi32(_mm256_loadu_si256(at), by),
                _mm256_mullo_epi32(_mm256_loadu_si256(at.add(1)), by),
            )
        }
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> Ints {
        // SAFETY: see above.
        let x = unsafe { _mm256_set1_epi32(x) };
        (x, x)
    }
    #[inline(always)]
    fn add_ints(self, a: Ints, b: Ints) -> Ints {
        // SAFETY: see above.
        unsafe { (_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1)) }
    }
    #[inline(always)]
    fn as_ints(self, x: Ints) -> Ints {
        x
    }
    #[inline(always)]
    fn store_ints(self, x: Ints, to: &mut [u8; 64]) {
        let at = to.as_mut_ptr().cast::<__m256i>();
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_si256(at, x.0);
            _mm256_storeu_si256(at.add(1), x.1);
        }
    }
    #[inline(always)]
    fn float(self, x: Ints) -> Pair {
        // SAFETY: see above.
        unsafe { (_mm256_cvtepi32_ps(x.0), _mm256_cvtepi32_ps(x.1)) }
    }
    #[inline(always)]
    fn turn(self, x: Pair) -> Pair {
        let mut lanes = [0.0; 16];
        self.store(x, &mut lanes);
        self.load(&array(|i| lanes[i % 4 * 4 + i / 4]))
    }
    #[inline(always)]
    fn turned_halves<const BYTES: usize>(self, data: &[u8]) -> Pair {
        let half = |i: usize| u16::from_le_bytes(*part(data, (i % 4 * 4 + i / 4) * BYTES));
        let halves: [u16; 16] = array(half);
        let at = halves.as_ptr().cast::<__m128i>();
        // SAFETY: see above; `at` points to 32 bytes.
        unsafe {
            (
                _mm256_cvtph_ps(_mm_loadu_si128(at)),
                _mm256_cvtph_ps(_mm_loadu_si128(at.add(1))),
            )
        }
    }
}

/// A number for the words of each half.
#[inline]
#[target_feature(enable = "avx2")]
fn per_half(a: u32, b: u32) -> __m256i {
    let (a, b) = (a.cast_signed(), b.cast_signed());
    _mm256_setr_epi32(a, a, a, a, b, b, b, b)
}

/// `Simd::transpose` of one half of each argument.
#[inline(always)]
fn transpose_half(x: [__m256i; 4]) -> [__m256i; 4] {
    // SAFETY: called from `Avx2`, whose values prove that the processor has AVX2.
    unsafe {
        let (a, b) = (
            _mm256_unpacklo_epi32(x[0], x[1]),
            _mm256_unpacklo_epi32(x[2], x[3]),
        );
        let (c, d) = (
            _mm256_unpackhi_epi32(x[0], x[1]),
            _mm256_unpackhi_epi32(x[2], x[3]),
        );
        [
            _mm256_unpacklo_epi64(a, b),
            _mm256_unpackhi_epi64(a, b),
            _mm256_unpacklo_epi64(c, d),
            _mm256_unpackhi_epi64(c, d),
        ]
    }
}
