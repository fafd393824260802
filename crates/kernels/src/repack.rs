//! Weights of other formats, brought into a storage type that holds the same numbers.
//!
//! Checkpoints keep quantised weights as integers with a scale for some of them, or as small
//! floats. The idea: integers in a known range with half-precision scales are blocks of a type that
//! exists already; whatever else a checkpoint holds is widened, to the narrowest float type that
//! loses nothing.

use crate::Type;
use half::{bf16, f16};

/// Values that share a scale in the types of [`integer_type`].
pub const PACKED: usize = 32;

/// The smallest type whose blocks of [`PACKED`] values hold scale * integer for every integer from
/// `least` to `most`.
pub fn integer_type(least: i32, most: i32) -> Option<Type> {
    [
        (Type::Q4_0, -8..=7),
        (Type::Q5_0, -16..=15),
        (Type::Q8_0, -128..=127),
    ]
    .into_iter()
    .find(|(_, range)| range.contains(&least) && range.contains(&most))
    .map(|(ty, _)| ty)
}

/// Appends a block that holds `scale * integers[e]`, with integers in the range of `ty`, a type of
/// [`integer_type`]. False, and nothing appended, if no half-precision number is `scale`.
pub fn pack(ty: Type, integers: &[i32; PACKED], scale: f32, out: &mut Vec<u8>) -> bool {
    let half = f16::from_f32(scale);
    if half.to_f32() != scale {
        return false;
    }
    out.extend(half.to_le_bytes());
    let nibbles = |n: [i32; PACKED]| -> [u8; 16] {
        std::array::from_fn(|e| (n[e] & 15 | (n[e + 16] & 15) << 4) as u8)
    };
    match ty {
        Type::Q4_0 => out.extend(nibbles(integers.map(|q| q + 8))),
        Type::Q5_0 => {
            let raised = integers.map(|q| q + 16);
            let fifth = (0..PACKED).fold(0u32, |bits, e| bits | (raised[e] as u32 >> 4 & 1) << e);
            out.extend(fifth.to_le_bytes());
            out.extend(nibbles(raised));
        }
        _ => out.extend(integers.map(|q| q as u8)),
    }
    true
}

/// The narrowest of BF16, F16 and F32 that holds every one of `values` exactly, and their bytes.
pub fn narrow(values: &[f32]) -> (Type, Vec<u8>) {
    let same = |x: f32, y: f32| x.to_bits() == y.to_bits();
    if values.iter().all(|&x| x.to_bits() & 0xffff == 0) {
        let bytes = values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes());
        return (Type::BF16, bytes.collect());
    }
    if values.iter().all(|&x| same(f16::from_f32(x).to_f32(), x)) {
        let bytes = values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes());
        return (Type::F16, bytes.collect());
    }
    let bytes = values.iter().flat_map(|x| x.to_le_bytes());
    (Type::F32, bytes.collect())
}

/// The 256 numbers of an 8-bit float with 4 bits of exponent, bias 7, and no infinity (E4M3FN):
/// the largest is 448, and 0x7f and 0xff are no numbers.
pub fn e4m3() -> [f32; 256] {
    std::array::from_fn(|byte| {
        let (exponent, fraction) = (byte as i32 >> 3 & 15, (byte & 7) as f32);
        let size = match (exponent, byte & 7) {
            (15, 7) => f32::NAN,
            (0, _) => fraction / 512.0,
            _ => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
        };
        if byte < 128 { size } else { -size }
    })
}

/// The 256 numbers of an 8-bit float with 5 bits of exponent (E5M2): the upper byte of a half.
pub fn e5m2() -> [f32; 256] {
    std::array::from_fn(|byte| f16::from_bits((byte as u16) << 8).to_f32())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dequantize;

    #[test]
    fn packed_integers_come_back() {
        for (ty, least, most) in [
            (Type::Q4_0, -8, 7),
            (Type::Q5_0, -16, 15),
            (Type::Q8_0, -128, 127),
        ] {
            assert_eq!(integer_type(least, most), Some(ty));
            assert_ne!(integer_type(least, most + 1), Some(ty));
            assert_ne!(integer_type(least - 1, most), Some(ty));
            let span = most - least + 1;
            let integers = std::array::from_fn(|e| least + e as i32 * 7 % span);
            for scale in [0.0, -0.375, 1.0 / 1024.0, f16::from_f32(0.1).to_f32()] {
                let mut bytes = Vec::new();
                assert!(pack(ty, &integers, scale, &mut bytes));
                let mut out = [0.0; PACKED];
                dequantize(ty, &bytes, &mut out).unwrap();
                assert_eq!(out, integers.map(|q| q as f32 * scale), "{ty} {scale}");
            }
            let mut bytes = Vec::new();
            for scale in [0.1, 1e6, f32::NAN, 1e-9] {
                assert!(!pack(ty, &integers, scale, &mut bytes) && bytes.is_empty());
            }
        }
        assert_eq!(integer_type(-129, 0), None);
    }

    #[test]
    fn narrow_loses_nothing() {
        for (values, ty) in [
            ([1.0, -0.5, 2f32.powi(100)], Type::BF16),
            ([1.0, -0.0, 1.0 + 1.0 / 1024.0], Type::F16),
            ([1.0, 0.0, 1e30], Type::F32),
            ([f32::from_bits(1), 0.0, 1.0], Type::F32),
        ] {
            let (found, bytes) = narrow(&values);
            let mut out = [0.0; 3];
            dequantize(found, &bytes, &mut out).unwrap();
            assert_eq!((found, out), (ty, values));
        }
    }

    #[test]
    fn small_floats_are_the_published_ones() {
        let (a, b) = (e4m3(), e5m2());
        for (byte, x) in [
            (0x00, 0.0),
            (0x01, 1.0 / 512.0),
            (0x07, 7.0 / 512.0),
            (0x08, 1.0 / 64.0),
            (0x38, 1.0),
            (0x3c, 1.5),
            (0x7e, 448.0),
            (0xfe, -448.0),
        ] {
            assert_eq!(a[byte], x, "{byte:x}");
        }
        assert_eq!(a.iter().filter(|x| x.is_nan()).count(), 2);
        assert!(a[0x7f].is_nan() && a[0xff].is_nan());
        for (byte, x) in [
            (0x01, 1.0 / 65536.0),
            (0x3c, 1.0),
            (0x3d, 1.25),
            (0x7b, 57344.0),
            (0x7c, f32::INFINITY),
            (0xbc, -1.0),
        ] {
            assert_eq!(b[byte], x, "{byte:x}");
        }
        assert_eq!(b.iter().filter(|x| x.is_nan()).count(), 6);
    }
}
