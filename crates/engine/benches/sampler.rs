//! Microseconds that a token's choice takes over 128,256 logits: `cargo bench -p engine`.
//!
//! The rows look like a model's: logits around 0 with a standard deviation of 2, and a head of
//! some sixty that are up to 22 better. Several rows in turn, so that no branch is learned by
//! heart. Median, least and most of several rounds.

use std::hint::black_box;
use std::time::Instant;

use engine::dry::Breakers;
use engine::{Sampler, SamplerParams};

const VOCAB: usize = 128_256;
const ROWS: usize = 4;
const ROUNDS: usize = 15;

fn main() {
    let rows: Vec<Vec<f32>> = (0..ROWS as u64).map(row).collect();
    let history: Vec<u32> = (0..1024u32).map(|i| (i * 97) % 5000).collect();
    let off = SamplerParams {
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        ..SamplerParams::default()
    };
    let chains: [(&str, SamplerParams); 9] = [
        ("default", SamplerParams::default()),
        ("greedy", SamplerParams::greedy()),
        (
            "top-p 0.95 only",
            SamplerParams {
                top_p: 0.95,
                ..off.clone()
            },
        ),
        (
            "min-p 0.05 only",
            SamplerParams {
                min_p: 0.05,
                ..off.clone()
            },
        ),
        (
            "typical-p 0.95 only",
            SamplerParams {
                typical_p: 0.95,
                ..off.clone()
            },
        ),
        ("no filter", off.clone()),
        (
            "mirostat 2",
            SamplerParams {
                mirostat: 2,
                ..off.clone()
            },
        ),
        (
            "default, penalties over 1024 tokens",
            SamplerParams {
                repeat_penalty: 1.1,
                repeat_last_n: 1024,
                frequency_penalty: 0.1,
                ..SamplerParams::default()
            },
        ),
        (
            "greedy, penalties over 1024 tokens",
            SamplerParams {
                repeat_penalty: 1.1,
                repeat_last_n: 1024,
                ..SamplerParams::greedy()
            },
        ),
    ];
    println!("us per token over {VOCAB} logits: median [least - most]");
    for (name, params) in chains {
        let mut sampler = Sampler::new(params, VOCAB, 0, Breakers::default()).expect("a sampler");
        let mut round = || {
            let start = Instant::now();
            for row in &rows {
                black_box(sampler.sample(black_box(row), &history).expect("a token"));
            }
            start.elapsed().as_secs_f64() * 1e6 / ROWS as f64
        };
        round();
        let mut times: Vec<f64> = (0..ROUNDS).map(|_| round()).collect();
        times.sort_by(f64::total_cmp);
        let (median, least, most) = (times[ROUNDS / 2], times[0], times[ROUNDS - 1]);
        println!("{name:<38} {median:8.1}  [{least:.1} - {most:.1}]");
    }
}

/// Sums of four uniform numbers are near enough to a normal distribution.
fn row(seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..VOCAB)
        .map(|_| {
            let normal = (uniform() + uniform() + uniform() + uniform() - 2.0) * 1.732;
            let head = if uniform() < 0.0005 {
                22.0 * uniform()
            } else {
                0.0
            };
            normal * 2.0 + head
        })
        .collect()
}
