//! Random inputs for the tests: the same every time.

#![allow(dead_code, reason = "each test file uses some of these")]

use kernels::Type;

/// xorshift64*: enough for test data.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in [-1, 1).
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.unit()).collect()
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 33) as usize % n
    }
}

/// Weights of a type, dequantised by the reference.
pub(crate) fn dequantized(ty: Type, data: &[u8], len: usize) -> Vec<f32> {
    let mut out = vec![0.0; len];
    kernels::dequantize(ty, data, &mut out).unwrap();
    out
}

/// Column counts to try for a type: block borders, vector borders and neither.
pub(crate) fn columns(ty: Type) -> Vec<usize> {
    match ty.block_len() {
        1 => vec![1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 100, 257],
        32 => vec![32, 64, 96, 160, 480, 512, 544, 576, 640, 672],
        64 => vec![64, 128, 192, 256, 320, 576],
        128 => vec![128, 256, 384, 640],
        _ => vec![256, 512, 768, 1024],
    }
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
