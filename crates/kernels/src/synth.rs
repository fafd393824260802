//! Random weights of any storage type, for speed measurements without a model file.

use crate::types::matrix_bytes;
use crate::{Error, Type};
use half::{bf16, f16};

/// Standard deviation of the weights, about that of trained ones.
const DEVIATION: f32 = 0.02;

/// `rows` rows of `cols` random weights stored as `ty`, with mean near zero and a standard deviation
/// of about 0.02. The same seed gives the same bytes. Not a quantisation of anything: block fields
/// are drawn directly, at the speed of memory.
///
/// # Errors
/// [`Error::Columns`] if a row is no whole number of blocks, [`Error::TooLarge`] if the size does
/// not fit the address space or cannot be allocated.
pub fn synthesize(ty: Type, rows: usize, cols: usize, seed: u64) -> Result<Vec<u8>, Error> {
    let (_, len) = matrix_bytes(ty, rows, cols)?;
    let too_large = || Error::TooLarge {
        what: format!("{ty} [{rows}, {cols}]"),
    };
    let mut data = Vec::new();
    data.try_reserve_exact(len).map_err(|_| too_large())?;
    data.resize(len, 0);
    let mut random = Random(seed);
    let (words, rest) = data.as_chunks_mut::<8>();
    for word in words {
        *word = random.next().to_le_bytes();
    }
    let last = random.next().to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);
    for block in data.chunks_exact_mut(ty.block_bytes()) {
        tame(ty, block);
    }
    Ok(data)
}

/// Replaces the scales of a block of random bytes, or the whole of a float, so that the weights have
/// the deviation wanted. The divisors are the deviations of uniformly drawn integers.
fn tame(ty: Type, b: &mut [u8]) {
    let put = |b: &mut [u8], at: usize, x: f32| {
        b[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
    };
    // Two random bytes as a number with uniform distribution.
    let uniform = |b: &[u8]| {
        let bits = u32::from(b[0]) | u32::from(b[1]) << 8;
        (bits as f32 / 65_535.0 - 0.5) * 12f32.sqrt() * DEVIATION
    };
    // Three of four 2-bit values, so that their mean is none, and a scale.
    let ternary = |b: &mut [u8], at: usize| {
        b.iter_mut().for_each(|b| *b &= !(*b << 1 & 0xaa));
        put(b, at, DEVIATION / 0.71);
    };
    match ty {
        Type::F32 => {
            let x = uniform(b);
            b.copy_from_slice(&x.to_le_bytes());
        }
        Type::F16 => {
            let x = uniform(b);
            put(b, 0, x);
        }
        Type::BF16 => {
            let x = uniform(b);
            b.copy_from_slice(&bf16::from_f32(x).to_le_bytes());
        }
        Type::Q4_0 => put(b, 0, DEVIATION / 4.61),
        Type::Q5_0 => put(b, 0, DEVIATION / 9.23),
        Type::Q8_0 => put(b, 0, DEVIATION / 73.9),
        Type::IQ4_NL => put(b, 0, DEVIATION / 69.8),
        // n d + m with m = -mean(n) d.
        Type::Q4_1 => {
            put(b, 0, DEVIATION / 4.61);
            put(b, 2, DEVIATION / 4.61 * -7.5);
        }
        Type::Q5_1 => {
            put(b, 0, DEVIATION / 9.23);
            put(b, 2, DEVIATION / 9.23 * -15.5);
        }
        // Every sub-block's scale 8 and min 8.
        Type::Q2_K => {
            b[..16].fill(0x88);
            put(b, 80, DEVIATION / (8.0 * 1.118));
            put(b, 82, DEVIATION / (8.0 * 1.118) * 1.5);
        }
        // Every scale 48 - 32 = 16: low bits 0, high bits 3.
        Type::Q3_K => {
            b[96..104].fill(0);
            b[104..108].fill(0xff);
            put(b, 108, DEVIATION / (16.0 * 2.29));
        }
        // Every scale and min 32: six bits 100000, then the same in split form.
        Type::Q4_K | Type::Q5_K => {
            b[4..12].fill(0xa0);
            b[12..16].fill(0);
            let (deviation, mean) = if ty == Type::Q4_K {
                (4.61, 7.5)
            } else {
                (9.23, 15.5)
            };
            put(b, 0, DEVIATION / (32.0 * deviation));
            put(b, 2, DEVIATION / (32.0 * deviation) * mean);
        }
        Type::Q6_K => {
            b[192..208].fill(16);
            put(b, 208, DEVIATION / (16.0 * 18.5));
        }
        // Every scale 48 - 32 = 16.
        Type::IQ4_XS => {
            b[2..4].fill(0xff);
            b[4..8].fill(0);
            put(b, 0, DEVIATION / (16.0 * 69.8));
        }
        // 2^(120 - 128) times integers of deviation 5.8.
        Type::MXFP4 => b[0] = 120,
        // 4/1024 times the same.
        Type::NVFP4 => b[..4].fill(4),
        Type::Q1_0 => put(b, 0, DEVIATION),
        Type::TQ1_0 => put(b, 52, DEVIATION / 0.82),
        Type::TQ2_0 => ternary(b, 64),
        Type::Q2_0 => ternary(b, 0),
        // The scales of sub-blocks and the codebook's values as they come; measured with d = 1.
        Type::IQ2_XXS | Type::IQ2_XS => put(b, 0, DEVIATION / 54.0),
        Type::IQ2_S => put(b, 0, DEVIATION / 56.0),
        Type::IQ3_XXS => put(b, 0, DEVIATION / 142.0),
        Type::IQ3_S => put(b, 0, DEVIATION / 140.0),
        Type::IQ1_S => put(b, 0, DEVIATION / 7.2),
        Type::IQ1_M => {
            let d = f16::from_f32(DEVIATION / 7.2).to_bits();
            for i in 0..4 {
                let at = 49 + 2 * i;
                b[at] = b[at] & 15 | ((d >> (4 * i) & 15) as u8) << 4;
            }
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}
