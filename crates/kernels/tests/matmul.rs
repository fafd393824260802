//! Products: every level against the scalar one and against f64, over shapes at all edges; bits
//! that do not depend on threads, number of tokens, position or split; extremes of the integers.

mod common;

use common::{Random, bits, columns, dequantized};
use kernels::{Compute, Kernels, Level, Matrix, Product, Type, synthesize};

const ROWS: [usize; 6] = [1, 2, 3, 4, 7, 17];
const TOKENS: [usize; 11] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 33];

fn product(k: &Kernels, w: Matrix<'_>, bias: Option<&[f32]>, x: &[f32]) -> Vec<f32> {
    let n = x.len() / w.cols();
    let mut out = vec![f32::NAN; n * w.rows()];
    let prepared = k.activations(x, w.cols(), &[w.ty()]);
    k.matmul(
        &prepared,
        &mut [Product {
            w,
            bias,
            out: &mut out,
        }],
    );
    out
}

/// A product in f64, and what bounds its rounding.
struct Exact {
    sum: f64,
    /// Sum of the terms' magnitudes.
    size: f64,
    /// Per block of activations, half a step of at most 1/120 of the largest times the weights' magnitudes.
    steps: f64,
}

fn exact(ty: Type, w: &[f32], x: &[f32], cols: usize) -> Vec<Exact> {
    let block = match ty {
        Type::Q2_K | Type::Q3_K | Type::Q6_K => 16,
        Type::IQ2_XS | Type::IQ2_S | Type::IQ1_M | Type::NVFP4 | Type::Q1_0 | Type::Q2_0 => 16,
        _ => 32,
    };
    let mut out = Vec::new();
    for x in x.chunks_exact(cols) {
        for w in w.chunks_exact(cols) {
            let mut e = Exact {
                sum: 0.0,
                size: 0.0,
                steps: 0.0,
            };
            for (w, x) in w.chunks(block).zip(x.chunks(block)) {
                let largest = x.iter().fold(0.0, |a: f64, x| a.max(f64::from(x.abs())));
                for (w, x) in w.iter().zip(x) {
                    let term = f64::from(*w) * f64::from(*x);
                    e.sum += term;
                    e.size += term.abs();
                    e.steps += f64::from(w.abs()) * largest / 240.0;
                }
            }
            out.push(e);
        }
    }
    out
}

impl Exact {
    /// The most that a product may be off: f32 sums of up to 1024 / 16 terms a lane, and the
    /// rounding of the activations.
    fn tolerance(&self, ty: Type, k: &Kernels) -> f64 {
        let rounding = match ty {
            _ if k.compute() == Compute::F32 => 0.0,
            Type::BF16 if k.level() == Level::Avx512Bf16 => self.size / 256.0,
            _ if ty.is_float() => 0.0,
            _ => self.steps * 1.0001,
        };
        rounding + 4e-6 * self.size + 1e-7
    }
}

#[test]
fn every_level_agrees_with_f64_over_all_edge_shapes() {
    let mut random = Random(1);
    for compute in [Compute::F32, Compute::Fast] {
        let all: Vec<_> = Level::available()
            .into_iter()
            .map(|l| Kernels::new(l, compute, 1).unwrap())
            .collect();
        for ty in Type::ALL {
            for cols in columns(*ty) {
                let rows = 17;
                let data = synthesize(*ty, rows, cols, random.bits()).unwrap();
                let w = dequantized(*ty, &data, rows * cols);
                let x = random.floats(33 * cols);
                let bias = random.floats(rows);
                let expected = exact(*ty, &w, &x, cols);
                for k in &all {
                    for rows in ROWS {
                        let matrix =
                            Matrix::new(*ty, rows, cols, &data[..data.len() / 17 * rows]).unwrap();
                        for n in TOKENS {
                            let bias = (n % 2 == 0).then_some(&bias[..rows]);
                            let got = product(k, matrix, bias, &x[..n * cols]);
                            for (i, got) in got.iter().enumerate() {
                                let exact = &expected[i / rows * 17 + i % rows];
                                let sum = exact.sum + bias.map_or(0.0, |b| f64::from(b[i % rows]));
                                let error = (f64::from(*got) - sum).abs();
                                assert!(
                                    error <= exact.tolerance(*ty, k),
                                    "{} {compute} {ty} [{rows}, {cols}] n {n} element {i}: {got} {sum}",
                                    k.level()
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

/// All levels with fused multiply-add use the same lanes in the same order; only one multiplies
/// pairs of bfloat16.
#[test]
fn fused_levels_agree_to_the_bit() {
    let fused: Vec<_> = Level::available()
        .into_iter()
        .filter(|l| *l != Level::Scalar)
        .collect();
    let mut random = Random(2);
    for compute in [Compute::F32, Compute::Fast] {
        for ty in Type::ALL {
            let cols = *columns(*ty).last().unwrap();
            let data = synthesize(*ty, 9, cols, 7).unwrap();
            let w = Matrix::new(*ty, 9, cols, &data).unwrap();
            let x = random.floats(5 * cols);
            let results: Vec<_> = fused
                .iter()
                .filter(|l| **l != Level::Avx512Bf16 || *ty != Type::BF16)
                .map(|l| {
                    bits(&product(
                        &Kernels::new(*l, compute, 1).unwrap(),
                        w,
                        None,
                        &x,
                    ))
                })
                .collect();
            assert!(results.windows(2).all(|r| r[0] == r[1]), "{compute} {ty}");
        }
    }
}

/// Random bytes as blocks: the quickly unpacked weights are those of `dequantize`.
#[test]
fn unpacked_weights_are_the_references_on_random_bytes() {
    let mut random = Random(3);
    for level in Level::available() {
        let k = Kernels::new(level, Compute::F32, 1).unwrap();
        for ty in Type::ALL {
            let cols = ty.block_len().max(32);
            let len = ty.row_bytes(cols).unwrap();
            for _ in 0..20 {
                let data: Vec<u8> = (0..len).map(|_| random.bits() as u8).collect();
                let w = dequantized(*ty, &data, cols);
                // Products with unit vectors give back the weights, one by one.
                let mut x = vec![0.0; cols * cols];
                (0..cols).for_each(|i| x[i * cols + i] = 1.0);
                let got = product(&k, Matrix::new(*ty, 1, cols, &data).unwrap(), None, &x);
                if w.iter().all(|w| w.is_finite()) {
                    assert_eq!(got, w, "{level} {ty}");
                } else {
                    assert!(got.iter().all(|w| !w.is_finite()), "{level} {ty}");
                }
            }
        }
    }
}

#[test]
fn bits_depend_on_nothing_but_row_and_token() {
    let mut random = Random(4);
    for level in Level::available() {
        for compute in [Compute::F32, Compute::Fast] {
            let pools: Vec<_> = (1..=4)
                .map(|t| Kernels::new(level, compute, t).unwrap())
                .collect();
            for ty in Type::ALL {
                let (rows, cols) = (75, ty.block_len().max(32) * 2);
                let data = synthesize(*ty, rows, cols, 11).unwrap();
                let w = Matrix::new(*ty, rows, cols, &data).unwrap();
                let x = random.floats(40 * cols);
                let whole = product(&pools[0], w, None, &x);
                for k in &pools {
                    for chunk in [1, 2, 3, 7, 40] {
                        let parts: Vec<f32> = x
                            .chunks(chunk * cols)
                            .flat_map(|x| product(k, w, None, x))
                            .collect();
                        assert_eq!(
                            bits(&parts),
                            bits(&whole),
                            "{level} {compute} {ty} threads {} chunk {chunk}",
                            k.threads()
                        );
                    }
                    // The same rows in parts that lie apart.
                    for n in [3, 5, 15] {
                        let parts: Vec<Vec<u8>> =
                            data.chunks(data.len() / n).map(<[u8]>::to_vec).collect();
                        let parts = parts.iter().map(|part| &part[..]);
                        let w = Matrix::in_parts(*ty, rows, cols, parts).unwrap();
                        let got = product(k, w, None, &x);
                        assert_eq!(bits(&got), bits(&whole), "{level} {compute} {ty} in {n}");
                    }
                    // A part of the rows, as another matrix beside others of the same call.
                    let half = &data[..data.len() / 75 * 30];
                    let part = Matrix::new(*ty, 30, cols, half).unwrap();
                    let mut outs = [vec![0.0; 40 * 30], vec![0.0; 40 * 75]];
                    let prepared = k.activations(&x, cols, &[*ty]);
                    let [a, b] = &mut outs;
                    k.matmul(
                        &prepared,
                        &mut [
                            Product {
                                w: part,
                                bias: None,
                                out: a,
                            },
                            Product {
                                w,
                                bias: None,
                                out: b,
                            },
                        ],
                    );
                    assert_eq!(bits(&outs[1]), bits(&whole));
                    for t in 0..40 {
                        assert_eq!(
                            bits(&outs[0][t * 30..(t + 1) * 30]),
                            bits(&whole[t * 75..t * 75 + 30])
                        );
                    }
                }
            }
        }
    }
}

/// Rows of several parts, with groups that are not full and blocks beyond: right, the same bits for one
/// token, some and many, and on every level with fused multiply-add.
#[test]
fn long_rows_are_right_for_any_number_of_tokens() {
    const N: usize = 29;
    let mut random = Random(8);
    for ty in Type::ALL.iter().filter(|t| !t.is_float()) {
        let all: &[usize] = match ty.block_len() {
            32 => &[2048, 2080, 2560, 2592, 2784, 4704],
            64 | 128 => &[2048, 2176, 2688],
            _ => &[2304, 4352],
        };
        for &cols in all {
            let rows = 37;
            let data = synthesize(*ty, rows, cols, random.bits()).unwrap();
            let w = dequantized(*ty, &data, rows * cols);
            let matrix = Matrix::new(*ty, rows, cols, &data).unwrap();
            let x = random.floats(N * cols);
            let bias = random.floats(rows);
            let expected = exact(*ty, &w, &x, cols);
            let mut first = None;
            for level in Level::available() {
                let k = Kernels::new(level, Compute::Fast, 3).unwrap();
                let whole = product(&k, matrix, Some(&bias), &x);
                for (i, (got, exact)) in whole.iter().zip(&expected).enumerate() {
                    let error = (f64::from(*got) - exact.sum - f64::from(bias[i % rows])).abs();
                    assert!(
                        error <= exact.tolerance(*ty, &k),
                        "{level} {ty} {cols}: {i}"
                    );
                }
                for chunk in [1, 2, 5, 24, 25] {
                    let parts = x.chunks(chunk * cols);
                    let parts: Vec<f32> = parts
                        .flat_map(|x| product(&k, matrix, Some(&bias), x))
                        .collect();
                    assert_eq!(bits(&parts), bits(&whole), "{level} {ty} {cols} by {chunk}");
                }
                if level != Level::Scalar {
                    let first = first.get_or_insert_with(|| bits(&whole));
                    assert_eq!(*first, bits(&whole), "{level} {ty} {cols}");
                }
            }
        }
    }
}

/// The largest integers that a format can hold against the largest activations: no overflow.
#[test]
fn integer_extremes_do_not_overflow() {
    for level in Level::available() {
        let k = Kernels::new(level, Compute::Fast, 1).unwrap();
        for ty in Type::ALL.iter().filter(|t| !t.is_float()) {
            let cols = ty.block_len();
            for fill in [0x00, 0x7f, 0x80, 0xff, 0x88] {
                let mut data = synthesize(*ty, 1, cols, 1).unwrap();
                let scales = data.clone();
                data.fill(fill);
                // Keep f16 scales finite; sub-block scales stay at the fill.
                for &at in finite_fields(*ty) {
                    data[at..at + 2].copy_from_slice(&scales[at..at + 2]);
                }
                if *ty == Type::MXFP4 {
                    data[0] = 127;
                }
                let w = dequantized(*ty, &data, cols);
                for sign in [1.0, -1.0] {
                    let x: Vec<f32> = w
                        .iter()
                        .map(|w| if *w < 0.0 { -sign } else { sign })
                        .collect();
                    let got = product(&k, Matrix::new(*ty, 1, cols, &data).unwrap(), None, &x)[0];
                    let Exact { sum, size, .. } = exact(*ty, &w, &x, cols)[0];
                    assert!(
                        (f64::from(got) - sum).abs() <= 2e-5 * size,
                        "{level} {ty} {fill:#x}: {got} {sum}"
                    );
                }
            }
        }
    }
}

fn finite_fields(ty: Type) -> &'static [usize] {
    match ty {
        Type::Q4_1 | Type::Q5_1 | Type::Q4_K | Type::Q5_K => &[0, 2],
        Type::Q2_K => &[80, 82],
        Type::Q3_K => &[108],
        Type::Q6_K => &[208],
        Type::MXFP4 | Type::NVFP4 => &[],
        Type::TQ1_0 => &[52],
        Type::TQ2_0 => &[64],
        Type::IQ1_M => &[48, 50, 52, 54],
        _ => &[0],
    }
}

/// One block holds an outlier a million times larger; the others keep their precision.
#[test]
fn an_outlier_costs_its_own_block_only() {
    for level in Level::available() {
        let k = Kernels::new(level, Compute::Fast, 1).unwrap();
        let data = synthesize(Type::Q8_0, 1, 128, 5).unwrap();
        let w = dequantized(Type::Q8_0, &data, 128);
        let mut x = Random(6).floats(128);
        x[40] = 1e6;
        let mut small = x.clone();
        small[32..64].fill(0.0);
        let matrix = Matrix::new(Type::Q8_0, 1, 128, &data).unwrap();
        for x in [x, small] {
            let got = f64::from(product(&k, matrix, None, &x)[0]);
            let exact = &exact(Type::Q8_0, &w, &x, 128)[0];
            assert!((got - exact.sum).abs() <= exact.tolerance(Type::Q8_0, &k));
        }
    }
}

#[test]
fn values_that_are_no_numbers_reach_the_result() {
    for level in Level::available() {
        for compute in [Compute::F32, Compute::Fast] {
            let k = Kernels::new(level, compute, 1).unwrap();
            for ty in Type::ALL {
                let cols = ty.block_len().max(32);
                let data = synthesize(*ty, 2, cols, 3).unwrap();
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut x = vec![0.5; 3 * cols];
                    x[cols + 3] = bad;
                    let w = Matrix::new(*ty, 2, cols, &data).unwrap();
                    let got = product(&k, w, None, &x);
                    assert!(
                        got[2..4].iter().all(|x| !x.is_finite()),
                        "{level} {compute} {ty} {bad}"
                    );
                    // The other tokens of the tile are untouched.
                    assert!(got[..2].iter().chain(&got[4..]).all(|x| x.is_finite()));
                }
            }
        }
    }
}

#[test]
fn tiny_and_zero_activations() {
    for level in Level::available() {
        let k = Kernels::new(level, Compute::Fast, 1).unwrap();
        let data = synthesize(Type::Q4_K, 3, 256, 3).unwrap();
        let w = Matrix::new(Type::Q4_K, 3, 256, &data).unwrap();
        for x in [0.0, -0.0, 1e-45, 1e-38, -1e-33] {
            let got = product(&k, w, None, &[x; 256][..]);
            assert!(got.iter().all(|y| y.abs() <= 1e-28), "{level} {x}: {got:?}");
        }
    }
}

#[test]
fn no_tokens_and_no_rows() {
    let k = Kernels::new(Level::best(), Compute::Fast, 2).unwrap();
    let w = Matrix::new(Type::Q4_0, 0, 64, &[]).unwrap();
    assert!(product(&k, w, None, &[0.0; 128]).is_empty());
    let data = synthesize(Type::Q4_0, 2, 64, 1).unwrap();
    let w = Matrix::new(Type::Q4_0, 2, 64, &data).unwrap();
    assert!(product(&k, w, None, &[]).is_empty());
}

#[test]
#[should_panic(expected = "not prepared")]
fn unprepared_activations_are_refused() {
    let k = Kernels::new(Level::Scalar, Compute::Fast, 1).unwrap();
    let data = synthesize(Type::Q4_0, 2, 32, 1).unwrap();
    let w = Matrix::new(Type::Q4_0, 2, 32, &data).unwrap();
    let x = [0.0; 32];
    let prepared = k.activations(&x, 32, &[Type::F32]);
    k.matmul(
        &prepared,
        &mut [Product {
            w,
            bias: None,
            out: &mut [0.0; 2],
        }],
    );
}

#[test]
fn embedding_rows_are_dequantised_rows() {
    let k = Kernels::new(Level::best(), Compute::Fast, 2).unwrap();
    for ty in Type::ALL {
        let cols = ty.block_len() * 2;
        let data = synthesize(*ty, 5, cols, 9).unwrap();
        let all = dequantized(*ty, &data, 5 * cols);
        let table = Matrix::new(*ty, 5, cols, &data).unwrap();
        let mut out = vec![0.0; 3 * cols];
        k.embed(table, &[4, 0, 4], &mut out).unwrap();
        assert_eq!(out[..cols], all[4 * cols..]);
        assert_eq!(out[cols..2 * cols], all[..cols]);
        assert_eq!(out[2 * cols..], all[4 * cols..]);
        let error = k.embed(table, &[5], &mut out[..cols]).unwrap_err();
        assert_eq!(error, kernels::Error::Row { id: 5, rows: 5 });
    }
}

#[test]
fn synthesized_weights_have_the_deviation_they_promise() {
    for ty in Type::ALL {
        let data = synthesize(*ty, 64, 256, 12).unwrap();
        assert_eq!(
            data,
            synthesize(*ty, 64, 256, 12).unwrap(),
            "{ty}: same seed, same bytes"
        );
        let w = dequantized(*ty, &data, 64 * 256);
        let mean = w.iter().map(|w| f64::from(*w)).sum::<f64>() / w.len() as f64;
        let variance = w
            .iter()
            .map(|w| (f64::from(*w) - mean).powi(2))
            .sum::<f64>()
            / w.len() as f64;
        assert!(
            (0.015..0.025).contains(&variance.sqrt()),
            "{ty}: {}",
            variance.sqrt()
        );
        // Half a step of the coarsest integers that are not symmetric.
        assert!(mean.abs() < 0.005, "{ty}: {mean}");
    }
}

#[test]
fn parts_of_a_matrix_are_equal_shares() {
    let data = synthesize(Type::Q8_0, 34, 32, 1).unwrap();
    let row = data.len() / 34;
    let cut = |bounds: &[usize]| {
        let parts = bounds.windows(2).map(|b| &data[b[0] * row..b[1] * row]);
        Matrix::in_parts(Type::Q8_0, 34, 32, parts)
    };
    let two = cut(&[0, 17, 34]).unwrap();
    for r in 0..34 {
        assert_eq!(two.row(r), &data[r * row..(r + 1) * row]);
    }
    let single: Vec<usize> = (0..=34).collect();
    for bad in [&[0][..], &[0, 17], &[0, 16, 34], &[0, 17, 34, 34], &single] {
        assert!(cut(bad).is_err(), "{bad:?}");
    }
}
