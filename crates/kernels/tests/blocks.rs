//! `dequantize` against gguf-py's and llama.cpp's bytes and floats (see the fixtures' README), and
//! on hostile lengths.

mod common;

use kernels::{Error, Type, dequantize};
use proptest::prelude::*;
use safetensors::SafeTensors;

const FIXTURES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/reference/gguf/quant_blocks.safetensors"
);

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

#[test]
fn dequantized_blocks_equal_the_references() {
    let file = std::fs::read(FIXTURES).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let mut seen = Vec::new();
    for ty in Type::ALL {
        for (q, dq) in [
            ("q", "dq"),
            ("random_q", "random_dq"),
            ("llama_cpp_q", "llama_cpp_dq"),
        ] {
            let Ok(data) = tensors.tensor(&format!("{ty}.{q}")) else {
                continue;
            };
            let expected = floats(tensors.tensor(&format!("{ty}.{dq}")).unwrap().data());
            let mut got = vec![0.0; expected.len()];
            dequantize(*ty, data.data(), &mut got).unwrap();
            for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                // The order of operations is gguf-py's, so the bits are equal too.
                assert_eq!(
                    got.to_bits(),
                    expected.to_bits(),
                    "{ty}.{q} value {i}: {got} {expected}"
                );
            }
            seen.push(format!("{ty}.{q}"));
        }
    }
    // Every quantised type, and BF16, has at least one set; Q1_0 and Q2_0 have a test below.
    for ty in Type::ALL
        .iter()
        .filter(|t| !matches!(t, Type::F32 | Type::F16 | Type::Q1_0 | Type::Q2_0))
    {
        assert!(
            seen.iter().any(|s| s.starts_with(&format!("{ty}."))),
            "{ty} not tested: {seen:?}"
        );
    }
}

/// By hand, from the formats' definition: gguf-py does not know these two.
#[test]
fn one_and_two_bits() {
    // d = 0.5, then bits from the lowest on.
    let mut block = [0; 18];
    block[..4].copy_from_slice(&[0x00, 0x38, 0b0000_0101, 0b1000_0000]);
    let mut out = [0.0; 128];
    dequantize(Type::Q1_0, &block, &mut out).unwrap();
    let set: Vec<usize> = (0..128).filter(|i| out[*i] == 0.5).collect();
    assert_eq!(set, [0, 2, 15]);
    assert!(out.iter().all(|x| x.abs() == 0.5));
    let mut out = [0.0; 64];
    dequantize(Type::Q2_0, &block, &mut out).unwrap();
    assert_eq!(
        out[..9],
        [0.0, 0.0, -0.5, -0.5, -0.5, -0.5, -0.5, 0.5, -0.5]
    );
}

#[test]
fn every_half_is_widened_exactly() {
    for bits in 0..=u16::MAX {
        let mut got = [0.0];
        dequantize(Type::F16, &bits.to_le_bytes(), &mut got).unwrap();
        let expected = half::f16::from_bits(bits).to_f32();
        if expected.is_nan() {
            assert!(got[0].is_nan(), "{bits:#x}");
        } else {
            assert_eq!(got[0].to_bits(), expected.to_bits(), "{bits:#x}");
        }
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let mut out = [0.0; 33];
    let error = dequantize(Type::Q4_0, &[0; 18], &mut out).unwrap_err();
    assert_eq!(
        error,
        Error::Columns {
            ty: Type::Q4_0,
            cols: 33,
            block: 32
        }
    );
    assert!(error.to_string().contains("Q4_0") && error.to_string().contains("33"));
    let error = dequantize(Type::Q4_0, &[0; 17], &mut out[..32]).unwrap_err();
    assert_eq!(
        error,
        Error::Bytes {
            ty: Type::Q4_0,
            rows: 1,
            cols: 32,
            need: 18,
            have: 17
        }
    );
}

#[test]
fn impossible_shapes_are_errors() {
    let huge = kernels::Matrix::new(Type::F32, usize::MAX / 2, 16, &[]).unwrap_err();
    assert!(matches!(huge, Error::TooLarge { .. }));
    let huge = kernels::Matrix::new(Type::F32, 1, usize::MAX, &[]).unwrap_err();
    assert!(matches!(huge, Error::TooLarge { .. }));
    assert!(kernels::Matrix::new(Type::Q6_K, 0, 256, &[]).is_ok());
}

#[test]
fn names_parse_back() {
    for ty in Type::ALL {
        assert_eq!(ty.name().parse(), Ok(*ty));
        assert_eq!(ty.name().to_lowercase().parse(), Ok(*ty));
    }
    let error = "Q9_9".parse::<Type>().unwrap_err().to_string();
    assert!(error.contains("Q9_9") && error.contains("Q4_K"), "{error}");
}

proptest! {
    /// Any bytes are some values: no type panics, and finite scales give finite values.
    #[test]
    fn any_bytes_dequantize(index in 0..Type::ALL.len(), bytes in prop::collection::vec(any::<u8>(), 0..1024)) {
        let ty = Type::ALL[index];
        let blocks = bytes.len() / ty.block_bytes();
        let mut out = vec![0.0; blocks * ty.block_len()];
        prop_assert!(dequantize(ty, &bytes[..blocks * ty.block_bytes()], &mut out).is_ok());
    }
}
