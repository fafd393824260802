//! Speed of attention beside what the machine allows: `cargo bench -p kernels --bench attention`.
//! Arguments name the cases to run (a part of a name is enough); by default all.
//!
//! Every call of a case works on the next layer of a cache, as a model does, so that a deep cache
//! comes from memory. A case repeats for a fixed time; the best and the median pass are shown.
//! GB/s counts the bytes of the keys and values that a call sees, once; GFLOP/s counts four
//! operations per query, visible key and dimension.

use kernels::{Attend, Compute, Kernels, KvLayout, KvType, Level, limits};
use std::time::{Duration, Instant};

/// Tokens in a page, and the threads, of all cases.
const PAGE: usize = 32;
const THREADS: usize = 2;
/// How long a case repeats.
const TIME: Duration = Duration::from_millis(400);

/// Query heads, key-value heads, head_dim, layers.
type Shape = (usize, usize, usize, usize);
const LLAMA_1B: Shape = (32, 8, 64, 16);
const SMOLLM2: Shape = (9, 3, 64, 30);

struct Case {
    name: String,
    shape: Shape,
    ty: KvType,
    /// Sequences in a call, new rows of each, keys before them.
    sequences: usize,
    rows: usize,
    depth: usize,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |what: &str, shape, ty: KvType, sequences, rows, depth| {
        let name = format!("{what} {ty} {sequences} x {rows} at {depth}");
        cases.push(Case {
            name,
            shape,
            ty,
            sequences,
            rows,
            depth,
        });
    };
    for ty in [KvType::F16, KvType::Q8_0] {
        for depth in [512, 4096, 16384] {
            add("1B", LLAMA_1B, ty, 1, 1, depth);
        }
    }
    for depth in [0, 4096, 7680] {
        add("1B", LLAMA_1B, KvType::F16, 1, 512, depth);
    }
    add("1B", LLAMA_1B, KvType::Q8_0, 1, 512, 4096);
    add("1B", LLAMA_1B, KvType::F16, 16, 1, 256);
    for depth in [0, 128, 512] {
        add("SmolLM2", SMOLLM2, KvType::F16, 1, 1, depth);
    }
    add("SmolLM2", SMOLLM2, KvType::F16, 1, 512, 0);
    cases
}

fn main() {
    // Cargo adds `--bench`.
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let k = Kernels::new(Level::best(), Compute::Fast, THREADS).expect("two threads");
    let limits = (limits::read_gbps(&k, 256 << 20), limits::f32_gflops(&k));
    println!(
        "{} on {THREADS} threads: reads {:.1} GB/s, multiplies {:.0} GFLOP/s\n",
        k.level(),
        limits.0,
        limits.1
    );
    println!(
        "{:32} {:>10} {:>10} {:>16} {:>18}",
        "case", "best us", "median us", "GB/s (of limit)", "GFLOP/s (of limit)"
    );
    for case in cases() {
        if wanted.is_empty() || wanted.iter().any(|w| case.name.contains(w)) {
            case.run(&k, limits);
        }
    }
}

impl Case {
    fn run(&self, k: &Kernels, limits: (f64, f64)) {
        let (heads, kv_heads, dim, layers) = self.shape;
        let layout = KvLayout::new(self.ty, kv_heads, dim, PAGE).expect("a possible layout");
        let keys = self.depth + self.rows;
        let pages: Vec<Vec<u8>> = (0..self.sequences * keys.div_ceil(PAGE))
            .map(|_| page(k, &layout, layers))
            .collect();
        let q = noise(self.rows * heads * dim);
        let mut out = vec![0.0; self.sequences * q.len()];
        let spans: Vec<_> = (0..self.rows).map(|i| 0..self.depth + i + 1).collect();
        let size = layout.page_bytes();
        let mut times = Vec::new();
        let start = Instant::now();
        // The first pass warms up. A pass is all layers, one call each.
        while times.len() < 3 || start.elapsed() < TIME {
            let mut seconds = 0.0;
            for layer in 0..layers {
                let pages: Vec<&[u8]> = pages
                    .iter()
                    .map(|p| &p[layer * size..(layer + 1) * size])
                    .collect();
                let mut work: Vec<_> = pages
                    .chunks(keys.div_ceil(PAGE))
                    .zip(out.chunks_mut(q.len()))
                    .map(|(pages, out)| Attend {
                        layout,
                        pages,
                        q: &q,
                        heads,
                        spans: &spans,
                        scale: 1.0 / (dim as f32).sqrt(),
                        out,
                    })
                    .collect();
                let start = Instant::now();
                k.attention(&mut work);
                seconds += start.elapsed().as_secs_f64();
            }
            times.push(seconds / layers as f64);
        }
        let times = &mut times[1..];
        times.sort_by(f64::total_cmp);
        let (best, median) = (times[0], times[times.len() / 2]);
        let bytes = self.sequences * size / PAGE * keys;
        let seen: usize = spans.iter().map(|s| s.len()).sum();
        let flops = 4 * self.sequences * heads * dim * seen;
        let (gbps, gflops) = (bytes as f64 / best / 1e9, flops as f64 / best / 1e9);
        println!(
            "{:32} {:10.1} {:10.1} {gbps:8.1} ({:3.0} %) {gflops:9.1} ({:3.0} %)",
            self.name,
            best * 1e6,
            median * 1e6,
            100.0 * gbps / limits.0,
            100.0 * gflops / limits.1,
        );
    }
}

/// One page of all layers, filled.
fn page(k: &Kernels, layout: &KvLayout, layers: usize) -> Vec<u8> {
    let values = layout.kv_heads * layout.head_dim;
    let (keys, vals) = (noise(values), noise(values));
    let mut layer = vec![0; layout.page_bytes()];
    (0..layout.page).for_each(|slot| k.store(layout, &mut layer, slot, &keys, &vals));
    layer.repeat(layers)
}

/// Values in -1..1 without a pattern.
fn noise(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}
