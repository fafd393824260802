//! `quantize` against gguf-py's bytes and llama.cpp's errors (see the fixtures' README), and on
//! values at the edges.

mod common;

use common::{Random, dequantized};
use kernels::{Deviation, Error, Type, quantize};
use safetensors::SafeTensors;

const FOLDER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/reference/gguf/"
);

fn read(name: &str) -> Vec<u8> {
    std::fs::read(format!("{FOLDER}{name}")).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

/// Quantises rows and gives bytes, values and what was measured.
fn stored(ty: Type, cols: usize, x: &[f32], w: Option<&[f32]>) -> (Vec<u8>, Vec<f32>, Deviation) {
    let mut out = vec![0xa5; ty.row_bytes(x.len()).unwrap()];
    let found = quantize(ty, cols, x, w, &mut out).unwrap();
    let values = dequantized(ty, &out, x.len());
    (out, values, found)
}

#[test]
fn published_rules_of_rounding_are_kept() {
    let file = read("quant_blocks.safetensors");
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let x = tensors.tensor("x").unwrap();
    let (rows, cols) = (x.shape()[0], x.shape()[1]);
    let x = floats(x.data());
    for ty in [
        Type::BF16,
        Type::Q4_0,
        Type::Q4_1,
        Type::Q5_0,
        Type::Q5_1,
        Type::Q8_0,
        Type::TQ1_0,
        Type::TQ2_0,
        Type::MXFP4,
    ] {
        let expected = tensors.tensor(&format!("{ty}.q")).unwrap();
        assert_eq!(expected.shape(), [rows, ty.row_bytes(cols).unwrap()]);
        let (got, ..) = stored(ty, cols, &x, None);
        let wrong = got.iter().zip(expected.data()).filter(|(a, b)| a != b);
        let wrong = wrong.count();
        assert!(wrong * 1000 <= got.len(), "{ty}: {wrong} of {}", got.len());
    }
}

#[test]
fn errors_are_at_most_those_of_llama_cpp() {
    let (blocks, rows) = (
        read("quant_blocks.safetensors"),
        read("quant_source_rows.safetensors"),
    );
    let blocks = SafeTensors::deserialize(&blocks).unwrap();
    let rows = SafeTensors::deserialize(&rows).unwrap();
    let names = rows.names();
    let source = rows.tensor(names[0]).unwrap();
    let (x, cols) = (floats(source.data()), source.shape()[1]);
    let mut seen = 0;
    for ty in Type::ALL {
        let Ok(theirs) = blocks.tensor(&format!("{ty}.llama_cpp_dq")) else {
            continue;
        };
        let theirs = Deviation::of(&x, &floats(theirs.data())).rmse();
        let (_, values, ours) = stored(*ty, cols, &x, None);
        assert_eq!(ours, {
            let mut sum = Deviation::default();
            let rows = x.chunks(cols).zip(values.chunks(cols));
            rows.for_each(|(x, v)| sum.add(&Deviation::of(x, v)));
            sum
        });
        println!("{ty}: {:.4} of {theirs:.3e}", ours.rmse() / theirs);
        assert!(
            ours.rmse() <= 1.02 * theirs,
            "{ty} {} {theirs}",
            ours.rmse()
        );
        seen += 1;
    }
    assert_eq!(seen, 15);
}

/// Relative errors on normal values: no type is much worse than its bits allow.
#[test]
fn every_type_stores_normal_values() {
    let mut random = Random(7);
    let normal = |random: &mut Random| (0..12).map(|_| random.unit()).sum::<f32>() * 0.01;
    let x: Vec<f32> = (0..8 * 512).map(|_| normal(&mut random)).collect();
    for (ty, most) in [
        (Type::F32, 0.0),
        (Type::F16, 0.0004),
        (Type::BF16, 0.003),
        (Type::Q8_0, 0.007),
        (Type::Q6_K, 0.02),
        (Type::Q5_K, 0.04),
        (Type::Q5_1, 0.05),
        (Type::Q5_0, 0.06),
        (Type::Q4_K, 0.08),
        (Type::IQ4_XS, 0.08),
        (Type::IQ4_NL, 0.08),
        (Type::Q4_1, 0.09),
        (Type::Q4_0, 0.1),
        (Type::NVFP4, 0.1),
        (Type::MXFP4, 0.13),
        (Type::Q3_K, 0.16),
        (Type::IQ3_S, 0.16),
        (Type::IQ3_XXS, 0.2),
        (Type::Q2_K, 0.3),
        (Type::IQ2_S, 0.29),
        (Type::IQ2_XS, 0.32),
        (Type::IQ2_XXS, 0.37),
        (Type::IQ1_M, 0.46),
        (Type::IQ1_S, 0.5),
        (Type::Q1_0, 0.62),
        (Type::TQ1_0, 0.8),
        (Type::TQ2_0, 0.8),
        (Type::Q2_0, 0.8),
    ] {
        let found = stored(ty, 512, &x, None).2.relative();
        println!("{ty}: {found:.4}");
        assert!(found <= most, "{ty}: {found} above {most}");
    }
}

/// Where columns matter, they are stored better than others, and better than without.
#[test]
fn importance_moves_the_error_to_where_it_costs_less() {
    let mut random = Random(9);
    let x = random.floats(16 * 256);
    let w: Vec<f32> = (0..256)
        .map(|i| if i % 4 == 0 { 9.0 } else { 0.1 })
        .collect();
    let cost = |values: &[f32]| -> f64 {
        let errors = values.iter().zip(&x).enumerate();
        errors
            .map(|(i, (v, x))| f64::from(w[i % 256] * (v - x) * (v - x)))
            .sum()
    };
    for ty in Type::ALL {
        let ruled = matches!(ty, Type::Q8_0 | Type::MXFP4 | Type::TQ1_0 | Type::TQ2_0);
        if ty.is_float() || ruled || matches!(ty, Type::Q1_0 | Type::Q2_0) {
            continue;
        }
        let (without, with) = (
            cost(&stored(*ty, 256, &x, None).1),
            cost(&stored(*ty, 256, &x, Some(&w)).1),
        );
        println!("{ty}: {:.3}", with / without);
        assert!(with < 0.97 * without, "{ty}: {with} {without}");
    }
}

#[test]
fn values_at_the_edges() {
    let ramp: Vec<f32> = (0..256).map(|i| i as f32).collect();
    let mut spike = vec![0.0; 256];
    spike[77] = -3.0;
    for ty in Type::ALL {
        assert_eq!(stored(*ty, 256, &[0.0; 256], None).1, [0.0; 256], "{ty}");
        for x in [&[1e-38; 256][..], &[-1.0; 256], &[3e4; 256], &ramp, &spike] {
            for w in [None, Some(&[0.0; 256][..]), Some(&[1e6; 256])] {
                let (_, values, found) = stored(*ty, 256, x, w);
                assert!(values.iter().all(|v| v.is_finite()), "{ty} {x:?}");
                assert!(found.error.is_finite());
            }
        }
        // Nothing sensible, but no panic; and the measure tells.
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = ramp.clone();
            x[40] = bad;
            assert!(
                !stored(*ty, 256, &x, None).2.error.is_finite(),
                "{ty} {bad}"
            );
        }
    }
}

#[test]
fn wrong_shapes_are_errors() {
    let error = quantize(Type::Q4_K, 250, &[0.0; 250], None, &mut []).unwrap_err();
    assert!(matches!(error, Error::Columns { cols: 250, .. }), "{error}");
    let error = quantize(Type::Q4_0, 32, &[0.0; 64], None, &mut [0; 35]).unwrap_err();
    assert!(matches!(error, Error::Bytes { need: 36, .. }), "{error}");
    assert!(quantize(Type::Q4_0, 32, &[], None, &mut []).is_ok());
}
