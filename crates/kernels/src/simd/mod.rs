//! The ground: vectors of 16 floats, on every processor.
//!
//! All algorithms of this room are written once, as `#[inline(always)]` functions over [`Simd`],
//! for a vector of exactly 16 f32 lanes. A level whose registers are narrower uses several of them
//! for one vector. So every level does the same operations on the same lanes in the same order,
//! and the levels differ only where the scalar one has no fused multiply-add.
//!
//! `table` instantiates the algorithms once per level inside functions that carry the level's
//! target features, and hands out the level's function pointers.

use std::mem::MaybeUninit;

pub(crate) mod scalar;
pub(crate) use scalar::widen_f16;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod table;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// `[f(0), f(1), ...]`. Unlike `std::array::from_fn` always inlined, and with a single call of `f`, so
/// that this is inlined as well: outside it would be compiled without the level's instructions.
#[inline(always)]
pub(crate) fn array<T: Copy, const N: usize>(f: impl Fn(usize) -> T) -> [T; N] {
    let mut all = [const { MaybeUninit::uninit() }; N];
    let mut i = 0;
    while i < N {
        all[i] = MaybeUninit::new(f(i));
        i += 1;
    }
    // SAFETY: the loop has initialised all N elements, and an array of `MaybeUninit<T>` is laid out
    // as one of `T`.
    unsafe { std::mem::transmute_copy(&all) }
}

/// The vector primitives of one level. A value of the implementing type is the proof that the
/// processor has the level's instructions: it can only be made by an unsafe constructor.
pub(crate) trait Simd: Copy {
    /// 16 lanes of f32.
    type F: Copy;
    /// 32 lanes of i16.
    type I: Copy;

    /// Enough registers for tiles of 4 x 4 vectors; otherwise tiles are 2 x 2.
    const WIDE: bool;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// 16 floats.
    fn load(self, x: &[f32; 16]) -> Self::F;
    /// 16 floats to memory.
    fn store(self, x: Self::F, to: &mut [f32; 16]);
    /// 16 little-endian f32.
    fn load_f32(self, bytes: &[u8; 64]) -> Self::F;
    /// 16 little-endian IEEE halves, widened.
    fn load_f16(self, bytes: &[u8; 32]) -> Self::F;
    /// 16 little-endian bfloat16, widened.
    fn load_bf16(self, bytes: &[u8; 32]) -> Self::F;
    /// 16 signed bytes, converted.
    fn load_i8(self, bytes: &[u8; 16]) -> Self::F;
    /// 16 signed 16-bit integers, converted.
    fn load_i16(self, x: &[i16; 16]) -> Self::F;
    /// One IEEE half, widened.
    fn f16(self, bits: u16) -> f32;

    /// a + b
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a - b
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b + c, rounded once (scalar: twice)
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// a > b ? a : b, thus b if either is NaN
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// a < b ? a : b, thus b if either is NaN
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even; |x| below 2^22.
    fn round(self, x: Self::F) -> Self::F;
    /// 2^n for integers n of -126..=127 given as floats; anything for other input.
    fn pow2(self, n: Self::F) -> Self::F;

    /// Sum of the lanes: halves added to each other, four times.
    fn sum(self, x: Self::F) -> f32;
    /// `sum` of four vectors, in the same order.
    fn sum4(self, x: [Self::F; 4]) -> [f32; 4];
    /// Largest lane, halves compared four times.
    fn largest(self, x: Self::F) -> f32;

    /// Products of 32 pairs, added exactly in pairs of neighbours: lane i is
    /// `w[2i] x[2i] + w[2i+1] x[2i+1]`, as a float. The sum must fit an i32.
    fn dot32(self, w: &[i16; 32], x: &[i16; 32]) -> Self::F;

    /// Integers given as floats, of magnitude below 2^15; anything for other input.
    fn to_int(self, low: Self::F, high: Self::F) -> Self::I;
    /// 32 bytes, zero-extended.
    fn widen(self, bytes: &[u8; 32]) -> Self::I;
    /// 32 signed bytes, sign-extended.
    fn widen_signed(self, bytes: &[u8; 32]) -> Self::I;
    /// The low nibbles of 16 bytes, then their high nibbles.
    fn nibbles(self, bytes: &[u8; 16]) -> Self::I;
    /// The table's values at the low nibbles of 16 bytes, then at their high nibbles.
    fn lookup(self, table: &[i8; 16], bytes: &[u8; 16]) -> Self::I;
    /// 16 where the bit of the lane's index is set, else 0.
    fn sixteens(self, bits: u32) -> Self::I;
    /// `low` in lanes 0..16, `high` in lanes 16..32.
    fn halves(self, low: i16, high: i16) -> Self::I;
    /// a + b, wrapping
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// a · b, wrapping
    fn mul_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// a & mask
    fn and(self, a: Self::I, mask: i16) -> Self::I;
    /// a >> by, of lanes that are not negative
    fn shr(self, a: Self::I, by: u32) -> Self::I;
    /// a << by
    fn shl(self, a: Self::I, by: u32) -> Self::I;
    /// 32 integers to memory.
    fn store_int(self, x: Self::I, to: &mut [i16; 32]);

    /// No registers of vectors: tiles are a waste of code.
    const SCALAR: bool = false;

    /// x · 2^n, rounded once, for integers n of -160..=160 given as floats; x of 0.5..=2 or NaN.
    #[inline(always)]
    fn scale2(self, x: Self::F, n: Self::F) -> Self::F {
        // In two steps, each a normal power; the first is exact.
        let half = self.round(self.mul(n, self.splat(0.5)));
        self.mul(self.mul(x, self.pow2(half)), self.pow2(self.sub(n, half)))
    }
}
