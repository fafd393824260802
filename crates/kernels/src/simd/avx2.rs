//! AVX2 with FMA and F16C: two registers of 8 floats make a vector.

use super::{Simd, array};
use std::arch::x86_64::*;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Avx2 {
        Avx2(())
    }
}

/// Lanes 0..8 and 8..16.
type Pair = (__m256, __m256);

/// Lanes 0..16 and 16..32.
type Ints = (__m256i, __m256i);

impl Simd for Avx2 {
    type F = Pair;
    type I = Ints;

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
    fn load_i16(self, x: &[i16; 16]) -> Pair {
        let at = x.as_ptr().cast::<__m128i>();
        // SAFETY: see above.
        unsafe {
            let a = _mm256_cvtepi16_epi32(_mm_loadu_si128(at));
            let b = _mm256_cvtepi16_epi32(_mm_loadu_si128(at.add(1)));
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
    fn dot32(self, w: &[i16; 32], x: &[i16; 32]) -> Pair {
        let (w, x) = (w.as_ptr().cast::<__m256i>(), x.as_ptr().cast::<__m256i>());
        // SAFETY: see above.
        unsafe {
            let a = _mm256_madd_epi16(_mm256_loadu_si256(w), _mm256_loadu_si256(x));
            let b = _mm256_madd_epi16(_mm256_loadu_si256(w.add(1)), _mm256_loadu_si256(x.add(1)));
            (_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b))
        }
    }

    #[inline(always)]
    fn to_int(self, low: Pair, high: Pair) -> Ints {
        // SAFETY: see above.
        unsafe {
            // Packing works within 128 bits; the permutation puts the quarters in order.
            let pack = |x: Pair| {
                let both = _mm256_packs_epi32(_mm256_cvtps_epi32(x.0), _mm256_cvtps_epi32(x.1));
                _mm256_permute4x64_epi64::<0b1101_1000>(both)
            };
            (pack(low), pack(high))
        }
    }
    #[inline(always)]
    fn widen(self, bytes: &[u8; 32]) -> Ints {
        // SAFETY: see above.
        unsafe {
            let at = bytes.as_ptr().cast::<__m128i>();
            (
                _mm256_cvtepu8_epi16(_mm_loadu_si128(at)),
                _mm256_cvtepu8_epi16(_mm_loadu_si128(at.add(1))),
            )
        }
    }
    #[inline(always)]
    fn widen_signed(self, bytes: &[u8; 32]) -> Ints {
        // SAFETY: see above.
        unsafe {
            let at = bytes.as_ptr().cast::<__m128i>();
            (
                _mm256_cvtepi8_epi16(_mm_loadu_si128(at)),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(at.add(1))),
            )
        }
    }
    #[inline(always)]
    fn nibbles(self, bytes: &[u8; 16]) -> Ints {
        // SAFETY: see above.
        unsafe {
            let v = _mm256_cvtepu8_epi16(_mm_loadu_si128(bytes.as_ptr().cast()));
            (
                _mm256_and_si256(v, _mm256_set1_epi16(15)),
                _mm256_srli_epi16::<4>(v),
            )
        }
    }
    #[inline(always)]
    fn lookup(self, table: &[i8; 16], bytes: &[u8; 16]) -> Ints {
        // SAFETY: see above.
        unsafe {
            let table = _mm_loadu_si128(table.as_ptr().cast());
            let v = _mm_loadu_si128(bytes.as_ptr().cast());
            let mask = _mm_set1_epi8(15);
            let low = _mm_shuffle_epi8(table, _mm_and_si128(v, mask));
            let high = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16::<4>(v), mask));
            (_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high))
        }
    }
    #[inline(always)]
    fn sixteens(self, bits: u32) -> Ints {
        // SAFETY: see above.
        unsafe {
            const BITS: [i16; 16] = [
                1,
                2,
                4,
                8,
                16,
                32,
                64,
                128,
                256,
                512,
                1024,
                2048,
                4096,
                8192,
                16384,
                i16::MIN,
            ];
            let each = _mm256_loadu_si256(BITS.as_ptr().cast());
            let of = |bits: u32| {
                let set = _mm256_and_si256(_mm256_set1_epi16(bits as i16), each);
                _mm256_and_si256(_mm256_cmpeq_epi16(set, each), _mm256_set1_epi16(16))
            };
            (of(bits), of(bits >> 16))
        }
    }
    #[inline(always)]
    fn halves(self, low: i16, high: i16) -> Ints {
        // SAFETY: see above.
        unsafe { (_mm256_set1_epi16(low), _mm256_set1_epi16(high)) }
    }
    #[inline(always)]
    fn add_int(self, a: Ints, b: Ints) -> Ints {
        // SAFETY: see above.
        unsafe { (_mm256_add_epi16(a.0, b.0), _mm256_add_epi16(a.1, b.1)) }
    }
    #[inline(always)]
    fn mul_int(self, a: Ints, b: Ints) -> Ints {
        // SAFETY: see above.
        unsafe { (_mm256_mullo_epi16(a.0, b.0), _mm256_mullo_epi16(a.1, b.1)) }
    }
    #[inline(always)]
    fn and(self, a: Ints, mask: i16) -> Ints {
        // SAFETY: see above.
        unsafe {
            let mask = _mm256_set1_epi16(mask);
            (_mm256_and_si256(a.0, mask), _mm256_and_si256(a.1, mask))
        }
    }
    #[inline(always)]
    fn shr(self, a: Ints, by: u32) -> Ints {
        // SAFETY: see above.
        unsafe {
            let by = _mm_cvtsi32_si128(by.cast_signed());
            (_mm256_srl_epi16(a.0, by), _mm256_srl_epi16(a.1, by))
        }
    }
    #[inline(always)]
    fn shl(self, a: Ints, by: u32) -> Ints {
        // SAFETY: see above.
        unsafe {
            let by = _mm_cvtsi32_si128(by.cast_signed());
            (_mm256_sll_epi16(a.0, by), _mm256_sll_epi16(a.1, by))
        }
    }
    #[inline(always)]
    fn store_int(self, x: Ints, to: &mut [i16; 32]) {
        // SAFETY: see above.
        unsafe {
            let at = to.as_mut_ptr().cast::<__m256i>();
            _mm256_storeu_si256(at, x.0);
            _mm256_storeu_si256(at.add(1), x.1);
        }
    }
}
