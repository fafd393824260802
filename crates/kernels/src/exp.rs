//! The exponential of a vector, and what is built of it: softmax rows and gates.
//!
//! Method: exp(x) = 2^n · exp(r) with n = round(x / ln 2) and |r| <= ln 2 / 2; r is found with ln 2
//! split in two parts (Cody and Waite), exp(r) is the Taylor polynomial of degree 7 (truncation
//! below 6e-9 relative), and 2^n is applied so that results may be subnormal or infinite.
//! Error: below 2 units in the last place (tested).

use crate::Activation;
use crate::simd::{LANES, Simd};

/// exp of 16 lanes. NaN stays NaN, -inf gives 0, large input inf.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // Outside these borders the result is 0 or inf anyway; `max` and `min` pass a NaN second.
    let x = s.min(s.splat(89.0), s.max(s.splat(-104.5), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    // ln 2 = high + low, high with so few bits that n · high is exact.
    let r = s.fma(n, s.splat(-355.0 / 512.0), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    const TAYLOR: [f32; 6] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];
    let mut p = s.splat(1.0 / 5040.0);
    for c in TAYLOR {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.fma(p, r, s.splat(1.0));
    s.scale2(p, n)
}

/// 16 values from `x`, the lanes beyond its end filled with `pad`.
#[inline(always)]
pub(crate) fn load_part<S: Simd>(s: S, x: &[f32], pad: f32) -> S::F {
    let mut full = [pad; LANES];
    full[..x.len()].copy_from_slice(x);
    s.load(&full)
}

/// The first lanes of `v`, as many as `to` has.
#[inline(always)]
pub(crate) fn store_part<S: Simd>(s: S, v: S::F, to: &mut [f32]) {
    let mut full = [0.0; LANES];
    s.store(v, &mut full);
    to.copy_from_slice(&full[..to.len()]);
}

/// Replaces all values of `$x`, 16 at a time as `$v`, by `$new`; the last vector is padded. A macro and
/// no function with a closure: one that is not inlined would lack the level's instructions.
macro_rules! replace {
    ($s:ident, $x:ident, $pad:expr, |$v:ident| $new:expr) => {
        for part in $x.chunks_mut(LANES) {
            let $v = match part.first_chunk() {
                Some(full) => $s.load(full),
                None => load_part($s, part, $pad),
            };
            let new = $new;
            match part.first_chunk_mut() {
                Some(full) => $s.store(new, full),
                None => store_part($s, new, part),
            }
        }
    };
}

/// Largest value of a row; -inf if there is none. NaNs may be passed over.
#[inline(always)]
fn row_max<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (full, rest) = x.as_chunks::<LANES>();
    let mut max = load_part(s, rest, f32::NEG_INFINITY);
    for chunk in full {
        max = s.max(s.load(chunk), max);
    }
    s.largest(max)
}

/// Softmax of one row in place. A row with a NaN, or of -inf only, becomes NaN.
#[inline(always)]
pub(crate) fn softmax_row<S: Simd>(s: S, x: &mut [f32]) {
    let max = s.splat(row_max(s, x));
    let mut sum = s.splat(0.0);
    replace!(s, x, f32::NEG_INFINITY, |v| {
        let e = exp(s, s.sub(v, max));
        sum = s.add(sum, e);
        e
    });
    let scale = s.splat(1.0 / s.sum(sum));
    replace!(s, x, 0.0, |v| s.mul(v, scale));
}

/// Natural logarithm of the softmax of one row in place; the sum is kept in f64.
#[inline(always)]
pub(crate) fn log_softmax_row<S: Simd>(s: S, x: &mut [f32]) {
    let max = row_max(s, x);
    let top = s.splat(max);
    let mut sum = 0.0;
    for part in x.chunks(32 * LANES) {
        let mut lanes = s.splat(0.0);
        let (full, rest) = part.as_chunks::<LANES>();
        for chunk in full {
            lanes = s.add(lanes, exp(s, s.sub(s.load(chunk), top)));
        }
        if !rest.is_empty() {
            let v = load_part(s, rest, f32::NEG_INFINITY);
            lanes = s.add(lanes, exp(s, s.sub(v, top)));
        }
        sum += f64::from(s.sum(lanes));
    }
    let log = s.splat(sum.ln() as f32);
    replace!(s, x, 0.0, |v| s.sub(s.sub(v, top), log));
}

/// x · sigmoid(x)
#[inline(always)]
fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(x, s.add(s.splat(1.0), e))
}

/// One activation of 16 lanes.
#[inline(always)]
fn act<S: Simd>(s: S, act: Activation, x: S::F) -> S::F {
    match act {
        Activation::Silu => silu(s, x),
        Activation::Relu => s.max(s.splat(0.0), x),
        Activation::Gelu => {
            let mut lanes = [0.0; LANES];
            s.store(x, &mut lanes);
            s.load(&lanes.map(gelu))
        }
    }
}

/// x Φ(x) by the error function, in f64; rounded once.
fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))) as f32
}

/// The error function by its series of positive terms (Abramowitz and Stegun 7.1.6); beyond 6 it is
/// one to all digits of f64.
fn erf(x: f64) -> f64 {
    if x.abs() >= 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// x = act(x)
#[inline(always)]
pub(crate) fn activate<S: Simd>(s: S, kind: Activation, x: &mut [f32]) {
    replace!(s, x, 0.0, |v| act(s, kind, v));
}

/// gate = act(gate) · up, of equal lengths
#[inline(always)]
pub(crate) fn gated<S: Simd>(s: S, kind: Activation, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    let (full, rest) = gate.as_chunks_mut::<LANES>();
    let (full_up, rest_up) = up.as_chunks::<LANES>();
    for (g, u) in full.iter_mut().zip(full_up) {
        let v = s.mul(act(s, kind, s.load(g)), s.load(u));
        s.store(v, g);
    }
    if !rest.is_empty() {
        let v = s.mul(
            act(s, kind, load_part(s, rest, 0.0)),
            load_part(s, rest_up, 0.0),
        );
        store_part(s, v, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::scalar::Scalar;

    /// Largest error of `exp` in units in the last place over a sweep of its whole range.
    fn worst<S: Simd>(s: S) -> f64 {
        let mut worst = 0.0f64;
        for i in 0..200_000 {
            let x = -87.3 + 176.0 * i as f32 / 200_000.0;
            let mut got = [0.0; LANES];
            s.store(exp(s, s.splat(x)), &mut got);
            let expected = f64::from(x).exp();
            let unit = f64::from(f32::from_bits((expected as f32).to_bits() + 1))
                - f64::from(expected as f32);
            worst = worst.max((f64::from(got[5]) - expected).abs() / unit);
        }
        worst
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        assert!(worst(Scalar) <= 2.0, "{}", worst(Scalar));
        #[cfg(target_arch = "x86_64")]
        {
            use crate::simd::{avx2::Avx2, avx512::Avx512};
            if crate::Level::Avx2.is_available() {
                // SAFETY: just asked.
                let found = worst(unsafe { Avx2::<false>::new() });
                assert!(found <= 2.0, "{found}");
            }
            if crate::Level::Avx512.is_available() {
                // SAFETY: just asked.
                let found = worst(unsafe { Avx512::<0>::new() });
                assert!(found <= 2.0, "{found}");
            }
        }
    }

    #[test]
    fn exp_at_its_borders() {
        let values = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            88.7,
            88.8,
            -103.9,
            -104.1,
            0.0,
        ];
        let mut got = [0.0; LANES];
        Scalar.store(exp(Scalar, load_part(Scalar, &values, -0.0)), &mut got);
        assert!(got[0].is_nan());
        assert_eq!(got[1..3], [f32::INFINITY, 0.0]);
        assert!(got[3].is_finite() && got[3] > 3.2e38);
        assert_eq!(got[4], f32::INFINITY);
        assert_eq!(got[5], f32::from_bits(1));
        assert_eq!(got[6..9], [0.0, 1.0, 1.0]);
    }
}
