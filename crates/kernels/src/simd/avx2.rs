//! AVX2 with FMA and F16C: two registers of 8 floats make a vector.

use super::Simd;
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

impl Simd for Avx2 {
    type F = Pair;

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
    fn lookup(self, table: &[i8; 16], indices: &[u8; 16]) -> [i8; 16] {
        let mut out = [0; 16];
        // SAFETY: see above.
        unsafe {
            let table = _mm_loadu_si128(table.as_ptr().cast());
            let indices = _mm_loadu_si128(indices.as_ptr().cast());
            let found = _mm_shuffle_epi8(table, indices);
            _mm_storeu_si128(out.as_mut_ptr().cast(), found);
        }
        out
    }
}
