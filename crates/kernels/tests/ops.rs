//! Row operations against f64, on every level, over lengths at all edges.

mod common;

use common::{Random, bits};
use kernels::{Activation, Compute, Kernels, Level, Rope, RopeLayout};

const LENGTHS: [usize; 10] = [1, 2, 7, 15, 16, 17, 31, 64, 100, 577];

fn levels() -> impl Iterator<Item = Kernels> {
    Level::available()
        .into_iter()
        .map(|l| Kernels::new(l, Compute::Fast, 3).unwrap())
}

fn near(got: f32, expected: f64, relative: f64, absolute: f64, what: &dyn std::fmt::Display) {
    let error = (f64::from(got) - expected).abs();
    assert!(
        error <= relative * expected.abs() + absolute,
        "{what}: {got} {expected}"
    );
}

#[test]
fn norm() {
    let mut random = Random(1);
    for k in levels() {
        for cols in LENGTHS {
            for (rows, size, eps) in [(1, 1.0, 1e-5), (3, 1e-3, 1e-6), (60, 1e4, 1e-5)] {
                let x: Vec<f32> = random
                    .floats(rows * cols)
                    .iter()
                    .map(|x| x * size)
                    .collect();
                let gain = random.floats(cols);
                let mut out = vec![f32::NAN; x.len()];
                k.rms_norm(&x, &gain, eps, &mut out);
                for (x, out) in x.chunks(cols).zip(out.chunks(cols)) {
                    let square: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
                    let root = (square / cols as f64 + f64::from(eps)).sqrt();
                    for i in 0..cols {
                        let expected = f64::from(gain[i]) * f64::from(x[i]) / root;
                        near(out[i], expected, 1e-6, 1e-30, &k.level());
                    }
                }
            }
        }
    }
}

#[test]
fn rotation_in_both_layouts() {
    let mut random = Random(2);
    for k in levels() {
        for (dim, rot) in [(2, 2), (8, 4), (64, 64), (80, 32), (128, 128), (7, 6)] {
            for layout in [RopeLayout::HalfSplit, RopeLayout::Interleaved] {
                let inv_freq: Vec<f32> = (0..rot / 2)
                    .map(|i| 10000f32.powf(-2.0 * i as f32 / rot as f32))
                    .collect();
                let rope = Rope {
                    inv_freq: inv_freq.clone(),
                    mscale: 1.25,
                    layout,
                };
                let positions = [0, 1, 77, 100_000, 5];
                let x = random.floats(positions.len() * 3 * dim);
                let mut got = x.clone();
                k.rope(&mut got, 3, dim, &rope, &positions);
                for (head, (x, got)) in x.chunks(dim).zip(got.chunks(dim)).enumerate() {
                    assert_eq!(x[rot..], got[rot..], "values beyond the rotated ones");
                    for (i, freq) in inv_freq.iter().enumerate() {
                        let angle = f64::from(positions[head / 3] as f32 * freq);
                        let (a, b) = match layout {
                            RopeLayout::HalfSplit => (i, i + rot / 2),
                            RopeLayout::Interleaved => (2 * i, 2 * i + 1),
                        };
                        let (xa, xb) = (f64::from(x[a]), f64::from(x[b]));
                        let (sin, cos) = angle.sin_cos();
                        near(got[a], 1.25 * (xa * cos - xb * sin), 1e-6, 5e-7, &k.level());
                        near(got[b], 1.25 * (xb * cos + xa * sin), 1e-6, 5e-7, &k.level());
                    }
                }
                // One by one, and after another table was made: the same bits.
                for (i, position) in positions.iter().enumerate().rev() {
                    let row = i * 3 * dim..(i + 1) * 3 * dim;
                    let mut one = x[row.clone()].to_vec();
                    k.rope(&mut one, 3, dim, &rope, &[*position]);
                    assert_eq!(bits(&one), bits(&got[row]));
                }
            }
        }
    }
}

fn activation(act: Activation, x: f64) -> f64 {
    match act {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::Gelu => x * normal(x),
    }
}

/// Standard normal distribution by Simpson's rule from 0, far finer than f32.
fn normal(x: f64) -> f64 {
    let (steps, f) = (2000, |t: f64| (-t * t / 2.0).exp());
    let h = x / f64::from(steps);
    let inner: f64 = (1..steps)
        .map(|i| f(h * f64::from(i)) * if i % 2 == 0 { 2.0 } else { 4.0 })
        .sum();
    0.5 + (f(0.0) + inner + f(x)) * h / 3.0 / (2.0 * std::f64::consts::PI).sqrt()
}

#[test]
fn activations_and_gates() {
    let mut random = Random(3);
    for k in levels() {
        for act in [Activation::Silu, Activation::Gelu, Activation::Relu] {
            for len in LENGTHS.into_iter().chain([40_000]) {
                let x: Vec<f32> = random.floats(len).iter().map(|x| x * 12.0).collect();
                let up = random.floats(len);
                let mut alone = x.clone();
                k.activate(act, &mut alone);
                let mut gate = x.clone();
                k.gated(act, &mut gate, &up);
                // The long row is there for its split over threads.
                for i in (0..len).step_by(if len > 1000 { 397 } else { 1 }) {
                    let expected = activation(act, f64::from(x[i]));
                    near(
                        alone[i],
                        expected,
                        1e-6,
                        1e-9,
                        &format!("{} {act:?} {}", k.level(), x[i]),
                    );
                    assert_eq!(gate[i].to_bits(), (alone[i] * up[i]).to_bits());
                }
            }
            let mut odd = [f32::NAN, f32::INFINITY, 200.0, -200.0, 0.0];
            k.activate(act, &mut odd);
            assert!(odd[0].is_nan(), "{} {act:?}", k.level());
            assert_eq!(odd[1..3], [f32::INFINITY, 200.0]);
            assert!(odd[3].abs() < 1e-30 && odd[4] == 0.0);
        }
    }
}

#[test]
fn softmax_and_log_softmax() {
    let mut random = Random(4);
    for k in levels() {
        for cols in LENGTHS.into_iter().chain([50_000]) {
            for size in [0.0, 1.0, 30.0, 3000.0] {
                let rows = if cols > 1000 { 2 } else { 5 };
                let x: Vec<f32> = random
                    .floats(rows * cols)
                    .iter()
                    .map(|x| x * size)
                    .collect();
                let (mut soft, mut log) = (x.clone(), x.clone());
                k.softmax(&mut soft, cols);
                k.log_softmax(&mut log, cols);
                for (row, x) in x.chunks(cols).enumerate() {
                    let max = x.iter().fold(f64::MIN, |m, x| m.max(f64::from(*x)));
                    let sum: f64 = x.iter().map(|x| (f64::from(*x) - max).exp()).sum();
                    for i in 0..cols {
                        let expected = f64::from(x[i]) - max - sum.ln();
                        near(log[row * cols + i], expected, 3e-7, 1e-6, &k.level());
                        near(
                            soft[row * cols + i],
                            expected.exp(),
                            3e-6,
                            1e-37,
                            &k.level(),
                        );
                    }
                }
            }
        }
    }
}

/// exp, seen through softmax's and silu's borders: a sum of one term is exactly one.
#[test]
fn softmax_of_extremes() {
    for k in levels() {
        let mut x = [0.0, f32::NEG_INFINITY, -103.0, -1e30, f32::MIN];
        k.softmax(&mut x, 5);
        assert_eq!(
            [x[0], x[1], x[3], x[4]],
            [1.0, 0.0, 0.0, 0.0],
            "{}",
            k.level()
        );
        assert!(
            x[2] > 0.0 && x[2] < 1e-44,
            "subnormal results exist: {}",
            x[2]
        );
        let mut x = [f32::MAX, f32::MAX];
        k.softmax(&mut x, 2);
        assert_eq!(x, [0.5, 0.5]);
        let mut x = [1.0, f32::NAN, 2.0];
        k.softmax(&mut x, 3);
        assert!(x.iter().all(|x| x.is_nan()));
    }
}

#[test]
fn sums_and_bits_over_threads() {
    let mut random = Random(5);
    let (x, y) = (random.floats(70_000), random.floats(70_000));
    for level in Level::available() {
        let mut all = Vec::new();
        for threads in 1..=4 {
            let k = Kernels::new(level, Compute::Fast, threads).unwrap();
            let mut sum = x.clone();
            k.add(&mut sum, &y);
            assert!(sum.iter().zip(&x).zip(&y).all(|((s, x), y)| *s == x + y));
            let mut scaled = x.clone();
            k.add_scaled(&mut scaled, &y, 0.3);
            let each = scaled.iter().zip(&x).zip(&y);
            assert!(each.into_iter().all(|((s, x), y)| *s == x + 0.3 * y));
            k.gated(Activation::Silu, &mut sum, &x);
            let mut normed = vec![0.0; 70_000];
            k.rms_norm(&sum, &y[..700], 1e-5, &mut normed);
            k.softmax(&mut sum, 70_000);
            all.push((bits(&sum), bits(&normed)));
        }
        assert!(all.windows(2).all(|w| w[0] == w[1]), "{level}");
    }
}

#[test]
fn levels_know_their_names() {
    for level in Level::available() {
        assert_eq!(level.name().parse(), Ok(level));
    }
    assert!(Level::available().contains(&Level::Scalar));
    assert!(Level::best().is_available());
    assert_eq!("F32".parse(), Ok(Compute::F32));
    assert!("int4".parse::<Compute>().is_err());
    let error = Kernels::new(Level::Scalar, Compute::Fast, 0).unwrap_err();
    assert_eq!(
        error,
        kernels::Error::Threads {
            given: 0,
            max: 1024
        }
    );
}
