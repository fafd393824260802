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

/// `[f(0), .., f(3)]` written out, for what is too long for the compiler to inline as a closure.
macro_rules! four {
    (|$i:ident| $value:expr) => {
        $crate::simd::four!(|$i| $value; 0 1 2 3)
    };
    (|$i:ident| $value:expr; $($index:literal)*) => {
        [$({
            let $i: usize = $index;
            $value
        }),*]
    };
}
pub(crate) use four;

/// `[f(0), .., f(7)]` likewise.
macro_rules! eight {
    (|$i:ident| $value:expr) => {
        $crate::simd::four!(|$i| $value; 0 1 2 3 4 5 6 7)
    };
}
pub(crate) use eight;

/// `N` bytes of `data` from `at` on. Panics if they are not there; where the length of `data` is known
/// to the compiler nothing is checked at run time.
#[inline(always)]
pub(crate) fn part<const N: usize>(data: &[u8], at: usize) -> &[u8; N] {
    match data[at..].first_chunk() {
        Some(part) => part,
        None => panic!("{N} bytes at {at} of {}", data.len()),
    }
}

/// The words of sixteen rows' vectors, lane by lane: word r of vector l is word l of row r's.
#[inline(always)]
pub(crate) fn over_rows<S: Simd>(s: S, rows: [&[u8; 64]; LANES]) -> [S::B; LANES] {
    let sets = four!(|i| s.transpose(four!(|r| s.bytes(rows[4 * i + r]))));
    let lanes = four!(|k| s.across(four!(|i| sets[i][k])));
    // Of set k, quarter l: lane 4l + k.
    array(|lane| lanes[lane % 4][lane / 4])
}

/// The vector primitives of one level. A value of the implementing type is the proof that the
/// processor has the level's instructions: it can only be made by an unsafe constructor.
pub(crate) trait Simd: Copy {
    /// 16 lanes of f32.
    type F: Copy;
    /// 16 lanes of i32.
    type N: Copy;
    /// 64 bytes: 16 words of 4 bytes, in four quarters of 4 words.
    type B: Copy;

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
    /// 16 little-endian f32 to memory.
    fn store_f32(self, x: Self::F, to: &mut [u8; 64]);
    /// 16 little-endian IEEE halves, widened.
    fn load_f16(self, bytes: &[u8; 32]) -> Self::F;
    /// Rounded to little-endian IEEE halves, ties to even.
    fn store_f16(self, x: Self::F, to: &mut [[u8; 2]; 16]);
    /// 16 little-endian bfloat16, widened.
    fn load_bf16(self, bytes: &[u8; 32]) -> Self::F;
    /// 16 signed bytes, converted.
    fn load_i8(self, bytes: &[u8; 16]) -> Self::F;
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
    /// a < b ? x : y
    fn pick(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// To the nearest integer, ties to even; |x| below 2^22.
    fn round(self, x: Self::F) -> Self::F;
    /// x less `round` of it.
    #[inline(always)]
    fn off(self, x: Self::F) -> Self::F {
        self.sub(x, self.round(x))
    }
    /// 2^n for integers n of -126..=127 given as floats; anything for other input.
    fn pow2(self, n: Self::F) -> Self::F;

    /// Asks for the cache line at `at` to be loaded. A hint: it never faults, whatever the address.
    #[inline(always)]
    fn prefetch(self, _at: *const u8) {}

    /// Sum of the lanes: halves added to each other, four times.
    fn sum(self, x: Self::F) -> f32;
    /// `sum` of four vectors, in the same order.
    fn sum4(self, x: [Self::F; 4]) -> [f32; 4];
    /// Largest lane, halves compared four times.
    fn largest(self, x: Self::F) -> f32;

    /// 64 bytes.
    fn bytes(self, from: &[u8; 64]) -> Self::B;
    /// Four times 16 bytes.
    fn quarters(self, from: [&[u8; 16]; 4]) -> Self::B;
    /// 64 bytes to memory.
    fn store_bytes(self, x: Self::B, to: &mut [u8; 64]);
    /// a & mask, byte by byte
    fn and(self, a: Self::B, mask: u8) -> Self::B;
    /// a | b
    fn or(self, a: Self::B, b: Self::B) -> Self::B;
    /// a + by, byte by byte, wrapping
    fn raise(self, a: Self::B, by: u8) -> Self::B;
    /// The top bit of each byte inverted.
    fn flip(self, a: Self::B) -> Self::B;
    /// Each word shifted right by its quarter's number of bits, below 32.
    fn shr(self, a: Self::B, by: [u32; 4]) -> Self::B;
    /// Each word shifted left by its quarter's number of bits, below 32.
    fn shl(self, a: Self::B, by: [u32; 4]) -> Self::B;
    /// The table's values at 64 indices below 16.
    fn lookup(self, table: &[u8; 16], indices: Self::B) -> Self::B;
    /// `value` where the bit of the byte's index is set, else 0.
    fn bits(self, mask: u64, value: u8) -> Self::B;
    /// In each quarter, word i of the k-th result is word k of the i-th argument.
    fn transpose(self, x: [Self::B; 4]) -> [Self::B; 4];
    /// Quarter i of the k-th result is quarter k of the i-th argument.
    fn across(self, x: [Self::B; 4]) -> [Self::B; 4];
    /// A word of 4 bytes in all lanes.
    fn word(self, from: &[u8; 4]) -> Self::B;
    /// The even quarters of both, taken in turns, and the odd ones: quarters
    /// `[low 0, high 0, low 2, high 2]` and `[low 1, high 1, low 3, high 3]`.
    fn zip(self, low: Self::B, high: Self::B) -> [Self::B; 2];
    /// Four times four floats, as bytes.
    fn float_quarters(self, from: [&[f32; 4]; 4]) -> Self::B;
    /// The words as floats.
    fn as_floats(self, x: Self::B) -> Self::F;
    /// Words of four integers of -128..=127, given as floats of which the first are the lowest bytes;
    /// anything for other input.
    fn to_words(self, x: [Self::F; 4]) -> Self::B;
    /// Adds to each lane the products of its word's four unsigned bytes with four signed ones, exactly.
    fn dot(self, sum: Self::N, w: Self::B, x: Self::B) -> Self::N;
    /// Adds to each lane the products of its word's two bfloat16, exactly until both are added. Only for
    /// the level that has it.
    fn dot_bf16(self, _sum: Self::F, _w: Self::B, _x: Self::B) -> Self::F {
        unreachable!("asked for by the level with BF16 only")
    }
    /// x · by of 16 little-endian i32, wrapping
    fn times(self, x: &[u8; 64], by: i32) -> Self::N;
    /// An integer in all lanes.
    fn splat_int(self, x: i32) -> Self::N;
    /// a + b, wrapping
    fn add_ints(self, a: Self::N, b: Self::N) -> Self::N;
    /// The words as little-endian i32.
    fn as_ints(self, x: Self::B) -> Self::N;
    /// 16 little-endian i32 to memory.
    fn store_ints(self, x: Self::N, to: &mut [u8; 64]);
    /// Converted; exact below 2^24.
    fn float(self, x: Self::N) -> Self::F;
    /// Lane 4l + i of the result is lane 4i + l of `x`.
    fn turn(self, x: Self::F) -> Self::F;
    /// See `unpack::k_scales`.
    #[inline(always)]
    fn k_scales(self, first: &[u8; 16], second: &[u8; 16], odd: f32) -> [Self::F; 2] {
        crate::unpack::k_scales(self, first, second, odd)
    }
    /// The 16 IEEE halves at the starts of blocks of `BYTES` bytes (an even number, at most 62),
    /// widened and turned; `data` holds at least 16 blocks less what follows the last half.
    fn turned_halves<const BYTES: usize>(self, data: &[u8]) -> Self::F;

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
