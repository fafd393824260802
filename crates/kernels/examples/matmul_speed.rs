//! Speed of matrix products: `cargo run --release -p kernels --example matmul_speed [THREADS [LEVEL [TYPE..]]]`.
//!
//! Prints, for every storage type and two shapes, GB/s of weights for one token and GOP/s (a
//! multiplication and an addition are two) for 512 tokens, beside the machine's limits.

use kernels::{Compute, Kernels, Level, Matrix, Product, Type, limits, synthesize};
use std::time::{Duration, Instant};

/// Weights read in turn, so that they come from memory and not from a cache.
const POOL_BYTES: usize = 256 << 20;

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args
        .next()
        .map_or(2, |a| a.parse().expect("a number of threads"));
    let level = args
        .next()
        .map_or(Level::best(), |a| a.parse().expect("a level"));
    let types: Vec<Type> = args.map(|a| a.parse().expect("a storage type")).collect();
    let types = if types.is_empty() {
        Type::ALL
    } else {
        &types[..]
    };
    for compute in [Compute::Fast, Compute::F32] {
        let k = Kernels::new(level, compute, threads).expect("kernels");
        println!("{level} {compute} threads {threads}");
        if compute == Compute::Fast {
            println!("  read        {:8.1} GB/s", limits::read_gbps(&k, 1 << 29));
            println!("  f32         {:8.1} GOP/s", limits::f32_gflops(&k));
            println!("  bf16        {:8.1?} GOP/s", limits::bf16_gflops(&k));
            println!("  int8        {:8.1?} GOP/s", limits::int8_gops(&k));
        }
        for (rows, cols) in [(2048, 2048), (2048, 8192), (1536, 576)] {
            println!("  [{rows}, {cols}]   n = 1 GB/s  (GOP/s)   n = 512 GOP/s");
            for ty in types {
                let cols = cols.max(ty.block_len()) / ty.block_len() * ty.block_len();
                let one = rate(&k, *ty, rows, cols, 1);
                let many = rate(&k, *ty, rows, cols, 512);
                let bytes = ty.row_bytes(cols).expect("whole blocks") * rows;
                let gops = 2.0 * (rows * cols) as f64 / 1e9;
                println!(
                    "    {:8} {:10.1} {:10.1} {:14.1}",
                    ty.name(),
                    bytes as f64 * one / 1e9,
                    gops * one,
                    gops * 512.0 * many,
                );
            }
        }
    }
}

/// Products per second, best of a few runs.
fn rate(k: &Kernels, ty: Type, rows: usize, cols: usize, n: usize) -> f64 {
    let bytes = ty.row_bytes(cols).expect("whole blocks") * rows;
    let copies = if n == 1 { POOL_BYTES / bytes } else { 1 };
    let data = synthesize(ty, rows * copies, cols, 1).expect("weights");
    let x = vec![0.25; n * cols];
    let mut out = vec![0.0; n * rows];
    let mut best = 0.0f64;
    let end = Instant::now() + Duration::from_millis(if n == 1 { 200 } else { 300 });
    while Instant::now() < end {
        let start = Instant::now();
        for data in data.chunks_exact(bytes) {
            let w = Matrix::new(ty, rows, cols, data).expect("a matrix");
            let prepared = k.activations(&x, cols, &[ty]);
            k.matmul(
                &prepared,
                &mut [Product {
                    w,
                    bias: None,
                    out: &mut out,
                }],
            );
        }
        best = best.max(copies as f64 / start.elapsed().as_secs_f64());
    }
    best
}
