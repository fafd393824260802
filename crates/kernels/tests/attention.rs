//! Attention: the fused form near the stages, both near an f64 attention; all cache types, levels,
//! page sizes and shapes; bits that do not depend on threads, chunks, neighbours or page size.

mod common;

use common::{Random, bits};
use kernels::{Attend, Compute, Kernels, KvLayout, KvType, Level};
use std::ops::Range;

const TYPES: [KvType; 4] = [KvType::F32, KvType::F16, KvType::Bf16, KvType::Q8_0];

/// A cache of one sequence, and what went into it.
struct Cache {
    layout: KvLayout,
    pages: Vec<Vec<u8>>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Cache {
    /// Pages are filled with bytes that are NaN in every type, so that nothing unwritten is used.
    fn new(k: &Kernels, layout: KvLayout, tokens: usize, random: &mut Random) -> Cache {
        let values = layout.kv_heads * layout.head_dim;
        let mut pages = vec![vec![0xff; layout.page_bytes()]; tokens.div_ceil(layout.page)];
        let (keys, vals) = (
            random.floats(tokens * values),
            random.floats(tokens * values),
        );
        for t in 0..tokens {
            let row = t * values..(t + 1) * values;
            let page = &mut pages[t / layout.page];
            k.store(
                &layout,
                page,
                t % layout.page,
                &keys[row.clone()],
                &vals[row],
            );
        }
        Cache {
            layout,
            pages,
            k: keys,
            v: vals,
        }
    }

    fn pages(&self) -> Vec<&[u8]> {
        self.pages.iter().map(|p| &p[..]).collect()
    }
}

fn causal(n: usize, tokens: usize) -> Vec<Range<usize>> {
    (0..n).map(|i| 0..tokens - n + i + 1).collect()
}

fn fused(k: &Kernels, cache: &Cache, q: &[f32], heads: usize, spans: &[Range<usize>]) -> Vec<f32> {
    let pages = cache.pages();
    let mut out = vec![f32::NAN; q.len()];
    let scale = 1.0 / (cache.layout.head_dim as f32).sqrt();
    let layout = cache.layout;
    let work = Attend {
        layout,
        pages: &pages,
        q,
        heads,
        spans,
        scale,
        out: &mut out,
    };
    k.attention(&mut [work]);
    out
}

fn staged(
    k: &Kernels,
    cache: &Cache,
    q: &[f32],
    heads: usize,
    spans: &[Range<usize>],
    keys: usize,
) -> Vec<f32> {
    let pages = cache.pages();
    let layout = cache.layout;
    let scale = 1.0 / (layout.head_dim as f32).sqrt();
    let mut scores = vec![f32::NAN; spans.len() * heads * keys];
    let a = Attend {
        layout,
        pages: &pages,
        q,
        heads,
        spans,
        scale,
        out: &mut [],
    };
    k.attention_scores(&a, keys, &mut scores);
    for (i, row) in scores.chunks_exact(keys).enumerate() {
        for (t, score) in row.iter().enumerate() {
            assert_eq!(spans[i / heads].contains(&t), *score != f32::NEG_INFINITY);
        }
    }
    k.attention_pattern(spans.len(), keys, spans, heads, &mut scores);
    for row in scores.chunks_exact(keys) {
        let sum: f32 = row.iter().sum();
        assert!((sum - 1.0).abs() < 1e-5 || sum == 0.0, "{sum}");
    }
    let mut out = vec![f32::NAN; q.len()];
    k.attention_mix(&a, keys, &scores, &mut out);
    out
}

/// The same in f64, from the values before they were stored.
fn naive(cache: &Cache, q: &[f32], heads: usize, spans: &[Range<usize>]) -> Vec<f64> {
    let KvLayout {
        kv_heads,
        head_dim: dim,
        ..
    } = cache.layout;
    let mut out = Vec::new();
    for (i, q) in q.chunks_exact(dim).enumerate() {
        let (span, kv) = (&spans[i / heads], i % heads / (heads / kv_heads));
        let row = |x: &[f32], t: usize| -> Vec<f64> {
            let at = (t * kv_heads + kv) * dim;
            x[at..at + dim].iter().map(|x| f64::from(*x)).collect()
        };
        let score = |t: usize| -> f64 {
            let k = row(&cache.k, t);
            q.iter().zip(k).map(|(q, k)| f64::from(*q) * k).sum::<f64>() / (dim as f64).sqrt()
        };
        let weights: Vec<f64> = span.clone().map(|t| score(t).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut z = vec![0.0; dim];
        for (t, w) in span.clone().zip(&weights) {
            z.iter_mut()
                .zip(row(&cache.v, t))
                .for_each(|(z, v)| *z += w / sum * v);
        }
        out.extend(z);
    }
    out
}

/// Results differ by the rounding of sums only; values are below 1.
fn close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= 1e-6, "{a} {b}");
    }
}

/// Largest error allowed: values are below 1, so storing them costs half a step of the type.
fn tolerance(ty: KvType) -> f64 {
    match ty {
        KvType::F32 => 2e-6,
        KvType::F16 => 1e-3,
        KvType::Bf16 => 8e-3,
        KvType::Q8_0 => 1e-2,
    }
}

#[test]
fn fused_and_staged_are_near_f64_and_each_other() {
    let mut random = Random(1);
    for level in Level::available() {
        let k = Kernels::new(level, Compute::Fast, 2).unwrap();
        for ty in TYPES {
            for (kv_heads, group) in [(1, 1), (2, 1), (1, 3), (3, 3), (2, 4), (2, 7)] {
                for dim in [1, 2, 7, 16, 24, 32, 40, 64, 80, 96, 128] {
                    for (n, tokens, page) in [
                        (1, 1, 16),
                        (1, 17, 16),
                        (3, 20, 5),
                        (5, 33, 32),
                        (7, 40, 64),
                    ] {
                        let layout = KvLayout::new(ty, kv_heads, dim, page).unwrap();
                        let cache = Cache::new(&k, layout, tokens, &mut random);
                        let heads = kv_heads * group;
                        let q = random.floats(n * heads * dim);
                        let spans = causal(n, tokens);
                        let got = fused(&k, &cache, &q, heads, &spans);
                        let parts = staged(&k, &cache, &q, heads, &spans, tokens);
                        close(&got, &parts);
                        for (got, expected) in got.iter().zip(naive(&cache, &q, heads, &spans)) {
                            let error = (f64::from(*got) - expected).abs();
                            assert!(
                                error <= tolerance(ty),
                                "{level} {layout:?} {got} {expected}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn bits_depend_on_the_query_alone() {
    let mut random = Random(2);
    let spans = [
        0..3,
        2..50,
        7..7,
        49..50,
        0..50,
        10..11,
        0..16,
        16..32,
        5..49,
    ];
    for level in Level::available() {
        let pools: Vec<_> = (1..=4)
            .map(|t| Kernels::new(level, Compute::Fast, t).unwrap())
            .collect();
        for ty in TYPES {
            let layout = KvLayout::new(ty, 2, 40, 16).unwrap();
            let cache = Cache::new(&pools[0], layout, 50, &mut random);
            let q = random.floats(spans.len() * 6 * 40);
            let whole = fused(&pools[0], &cache, &q, 6, &spans);
            assert!(
                whole[2 * 240..3 * 240].iter().all(|z| *z == 0.0),
                "a row that sees nothing"
            );
            assert!(
                whole.iter().all(|z| z.is_finite()),
                "{level} {ty}: stale memory was used"
            );
            for k in &pools {
                assert_eq!(bits(&fused(k, &cache, &q, 6, &spans)), bits(&whole));
                for chunk in [1, 2, 4] {
                    let parts: Vec<f32> = q
                        .chunks(chunk * 240)
                        .zip(spans.chunks(chunk))
                        .flat_map(|(q, spans)| fused(k, &cache, q, 6, spans))
                        .collect();
                    assert_eq!(bits(&parts), bits(&whole), "{level} {ty} chunk {chunk}");
                }
            }
            close(&staged(&pools[1], &cache, &q, 6, &spans, 50), &whole);
            // Several sequences in one call.
            let (pages, scale) = (cache.pages(), 1.0 / 40f32.sqrt());
            let mut outs = [vec![0.0; q.len()], vec![0.0; 240]];
            let [a, b] = &mut outs;
            let attend = |q, spans, out| Attend {
                layout,
                pages: &pages,
                q,
                heads: 6,
                spans,
                scale,
                out,
            };
            pools[2].attention(&mut [
                attend(&q[..], &spans[..], &mut a[..]),
                attend(&[][..], &[][..], &mut [][..]),
                attend(&q[240..480], &spans[1..2], &mut b[..]),
            ]);
            assert_eq!(bits(&outs[0]), bits(&whole));
            assert_eq!(bits(&outs[1]), bits(&whole[240..480]));
        }
    }
}

/// Spans that end before, at and after borders of blocks, and that start late.
fn across_blocks(tokens: usize) -> Vec<Range<usize>> {
    let starts = [0, 1, 200, 255, 256, 257, tokens - 1];
    let ends = [tokens, tokens - 1, tokens / 2, 256, 257];
    let mut spans: Vec<_> = starts.iter().map(|s| (*s).min(tokens)..tokens).collect();
    spans.extend(ends.map(|e| 0..e.min(tokens)));
    spans.extend([
        3..3,
        tokens / 3..tokens / 2,
        240.min(tokens - 1)..270.min(tokens),
    ]);
    spans
}

/// One thread takes strips whole, more cut them between blocks; one row reads pages, many read
/// panels.
#[test]
fn blocks_do_not_show() {
    let (kv_heads, group, dim) = (2, 3, 64);
    let heads = kv_heads * group;
    let row = heads * dim;
    for level in Level::available() {
        let pools: Vec<_> = (1..=4)
            .map(|t| Kernels::new(level, Compute::Fast, t).unwrap())
            .collect();
        for (i, ty) in TYPES.into_iter().enumerate() {
            for (j, tokens) in [255, 256, 257, 600, 1100].into_iter().enumerate() {
                let spans = across_blocks(tokens);
                let q = Random(12).floats(spans.len() * row);
                let whole = [32, 16, 21, 512].map(|page| {
                    let layout = KvLayout::new(ty, kv_heads, dim, page).unwrap();
                    let cache = Cache::new(&pools[0], layout, tokens, &mut Random(11));
                    let whole = fused(&pools[0], &cache, &q, heads, &spans);
                    // Each pool sees each number of rows and each size of page, in turns.
                    for (t, k) in pools.iter().enumerate() {
                        let chunk = [1, 2, 4, spans.len()][(t + i + j + page / 16) % 4];
                        let parts: Vec<f32> = q
                            .chunks(chunk * row)
                            .zip(spans.chunks(chunk))
                            .flat_map(|(q, spans)| fused(k, &cache, q, heads, spans))
                            .collect();
                        let what = format!("{level} {layout:?} {tokens} tokens by {chunk}");
                        assert_eq!(bits(&parts), bits(&whole), "{what}");
                    }
                    if page == 32 {
                        let expected = naive(&cache, &q, heads, &spans);
                        for (i, (got, expected)) in whole.iter().zip(expected).enumerate() {
                            let empty = spans[i / row].is_empty();
                            let expected = if empty { 0.0 } else { expected };
                            let error = (f64::from(*got) - expected).abs();
                            assert!(error <= tolerance(ty), "{level} {ty} {got} {expected}");
                        }
                    }
                    bits(&whole)
                });
                assert!(
                    whole.iter().all(|w| *w == whole[0]),
                    "{level} {ty} {tokens} tokens"
                );
            }
        }
    }
}

/// More queries than a strip holds, chunks of a prompt that begin anywhere, several sequences.
#[test]
fn chunks_of_a_prompt_do_not_show() {
    let (heads, dim, tokens) = (3, 64, 600);
    let row = heads * dim;
    for level in Level::available() {
        if level == Level::Scalar && cfg!(debug_assertions) {
            continue;
        }
        let pools = [1, 3].map(|t| Kernels::new(level, Compute::Fast, t).unwrap());
        for ty in TYPES {
            let layout = KvLayout::new(ty, 1, dim, 32).unwrap();
            let cache = Cache::new(&pools[0], layout, tokens, &mut Random(13));
            let q = Random(14).floats(330 * row);
            // Windows of 300 keys: they start late, and in the middle of a block.
            let spans: Vec<_> = causal(330, tokens)
                .into_iter()
                .map(|s| s.end.saturating_sub(300)..s.end)
                .collect();
            let whole = fused(&pools[0], &cache, &q, heads, &spans);
            let (pages, scale) = (cache.pages(), 1.0 / (dim as f32).sqrt());
            for k in &pools {
                for cuts in [[330, 330], [1, 330], [7, 201], [64, 65]] {
                    let ends = [0, cuts[0], cuts[1], 330];
                    let mut got = vec![f32::NAN; q.len()];
                    let mut rest = &mut got[..];
                    let mut work = Vec::new();
                    for ends in ends.windows(2) {
                        let out;
                        (out, rest) = rest.split_at_mut((ends[1] - ends[0]) * row);
                        work.push(Attend {
                            layout,
                            pages: &pages,
                            q: &q[ends[0] * row..ends[1] * row],
                            heads,
                            spans: &spans[ends[0]..ends[1]],
                            scale,
                            out,
                        });
                    }
                    k.attention(&mut work);
                    assert_eq!(bits(&got), bits(&whole), "{level} {ty} {cuts:?}");
                }
            }
        }
    }
}

#[test]
fn page_size_does_not_change_bits() {
    for level in Level::available() {
        let k = Kernels::new(level, Compute::Fast, 1).unwrap();
        for ty in TYPES {
            let results: Vec<_> = [1, 3, 16, 21, 32, 64]
                .map(|page| {
                    let mut random = Random(3);
                    let layout = KvLayout::new(ty, 2, 33, page).unwrap();
                    let cache = Cache::new(&k, layout, 45, &mut random);
                    let q = random.floats(4 * 2 * 33);
                    bits(&fused(&k, &cache, &q, 2, &causal(4, 45)))
                })
                .to_vec();
            assert!(results.windows(2).all(|r| r[0] == r[1]), "{level} {ty}");
        }
    }
}

#[test]
fn fused_levels_agree_to_the_bit() {
    let mut random = Random(4);
    for ty in TYPES {
        let layout = KvLayout::new(ty, 1, 64, 32).unwrap();
        let q = random.floats(6 * 3 * 64);
        let results: Vec<_> = Level::available()
            .into_iter()
            .filter(|l| *l != Level::Scalar)
            .map(|l| {
                let k = Kernels::new(l, Compute::Fast, 1).unwrap();
                let cache = Cache::new(&k, layout, 90, &mut Random(5));
                bits(&fused(&k, &cache, &q, 3, &causal(6, 90)))
            })
            .collect();
        assert!(results.windows(2).all(|r| r[0] == r[1]), "{ty}");
    }
}

/// What is read back of a stored value: rounded to nearest, ties to even; q8_0 by its own formula.
fn stored(ty: KvType, x: &[f32]) -> Vec<f32> {
    let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let d = half::f16::from_f32(largest / 127.0).to_f32();
    let one = |x: &f32| match ty {
        KvType::F32 => *x,
        KvType::F16 => half::f16::from_f32(*x).to_f32(),
        KvType::Bf16 => half::bf16::from_f32(*x).to_f32(),
        KvType::Q8_0 => (x * (1.0 / d)).round_ties_even() * d,
    };
    x.iter().map(one).collect()
}

#[test]
fn stored_keys_and_values_are_read_back_exactly() {
    let (dim, tokens) = (32, 19);
    for level in Level::available() {
        let k = Kernels::new(level, Compute::Fast, 1).unwrap();
        for ty in TYPES {
            let layout = KvLayout::new(ty, 2, dim, 16).unwrap();
            let cache = Cache::new(&k, layout, tokens, &mut Random(10));
            let pages = cache.pages();
            // Unit vectors as queries give back keys, a pattern of one 1 gives back values.
            let mut q = vec![0.0; dim * 2 * dim];
            (0..dim).for_each(|d| (0..2).for_each(|h| q[(d * 2 + h) * dim + d] = 1.0));
            let spans = vec![0..tokens; dim];
            let (scale, heads) = (1.0, 2);
            let a = Attend {
                layout,
                pages: &pages,
                q: &q,
                heads,
                spans: &spans,
                scale,
                out: &mut [],
            };
            let mut scores = vec![0.0; dim * 2 * tokens];
            k.attention_scores(&a, tokens, &mut scores);
            let mut pattern = vec![0.0; tokens * 2 * tokens];
            (0..tokens).for_each(|t| (0..2).for_each(|h| pattern[(t * 2 + h) * tokens + t] = 1.0));
            let spans = vec![0..tokens; tokens];
            let a = Attend {
                layout,
                pages: &pages,
                q: &[],
                heads,
                spans: &spans,
                scale,
                out: &mut [],
            };
            let mut values = vec![0.0; tokens * 2 * dim];
            k.attention_mix(&a, tokens, &pattern, &mut values);
            for t in 0..tokens {
                for head in 0..2 {
                    let row = (t * 2 + head) * dim..(t * 2 + head + 1) * dim;
                    assert_eq!(
                        values[row.clone()],
                        stored(ty, &cache.v[row.clone()]),
                        "{ty}"
                    );
                    let key: Vec<f32> = (0..dim)
                        .map(|d| scores[(d * 2 + head) * tokens + t])
                        .collect();
                    assert_eq!(key, stored(ty, &cache.k[row]), "{ty}");
                }
            }
        }
    }
}

#[test]
fn numbers_that_are_none_stay_so_when_stored() {
    let k = Kernels::new(Level::best(), Compute::Fast, 1).unwrap();
    for ty in TYPES {
        for bad in [f32::NAN, f32::INFINITY] {
            let layout = KvLayout::new(ty, 1, 16, 16).unwrap();
            let mut page = vec![0; layout.page_bytes()];
            let mut v = [1.0; 16];
            v[3] = bad;
            k.store(&layout, &mut page, 0, &[0.0; 16], &v);
            let mut out = [0.0; 16];
            let (pages, spans) = ([&page[..]], causal(1, 1));
            let (q, scale) = (&[0.0; 16][..], 1.0);
            let work = Attend {
                layout,
                pages: &pages,
                q,
                heads: 1,
                spans: &spans,
                scale,
                out: &mut out,
            };
            k.attention(&mut [work]);
            assert!(!out[3].is_finite(), "{ty} {bad}: {out:?}");
        }
    }
}

#[test]
fn weights_written_outside_a_span_count() {
    let k = Kernels::new(Level::best(), Compute::Fast, 1).unwrap();
    let layout = KvLayout::new(KvType::F32, 1, 16, 16).unwrap();
    let cache = Cache::new(&k, layout, 20, &mut Random(6));
    let pages = cache.pages();
    let a = Attend {
        layout,
        pages: &pages,
        q: &[],
        heads: 1,
        spans: std::slice::from_ref(&(3..5)),
        scale: 1.0,
        out: &mut [],
    };
    let mut pattern = [0.0; 20];
    pattern[19] = 1.0;
    let mut out = [0.0; 16];
    k.attention_mix(&a, 20, &pattern, &mut out);
    assert_eq!(out, cache.v[19 * 16..]);
}

#[test]
fn large_scores_do_not_overflow() {
    for level in Level::available() {
        let k = Kernels::new(level, Compute::Fast, 1).unwrap();
        let layout = KvLayout::new(KvType::F32, 1, 16, 16).unwrap();
        let cache = Cache::new(&k, layout, 9, &mut Random(7));
        let q: Vec<f32> = Random(8).floats(16).iter().map(|q| q * 1e6).collect();
        let got = fused(&k, &cache, &q, 1, &causal(1, 9));
        assert!(
            got.iter().all(|z| z.is_finite() && z.abs() <= 1.0),
            "{level}: {got:?}"
        );
    }
}

#[test]
fn layouts_that_cannot_be_are_errors() {
    for (heads, dim, page) in [
        (0, 64, 16),
        (1, 0, 16),
        (1, 64, 0),
        (usize::MAX, 64, 16),
        (1, usize::MAX, 1),
    ] {
        let error = KvLayout::new(KvType::F16, heads, dim, page).unwrap_err();
        assert!(error.to_string().contains(&page.to_string()));
    }
    assert_eq!(
        KvLayout::new(KvType::F16, 3, 64, 16).unwrap().page_bytes(),
        3 * 64 * 16 * 2 * 2
    );
    assert_eq!("Q8_0".parse(), Ok(KvType::Q8_0));
    assert!("q4".parse::<KvType>().is_err());
}

#[test]
#[should_panic(expected = "keys in")]
fn spans_beyond_the_pages_are_refused() {
    let k = Kernels::new(Level::Scalar, Compute::Fast, 1).unwrap();
    let layout = KvLayout::new(KvType::F16, 1, 16, 16).unwrap();
    let cache = Cache::new(&k, layout, 16, &mut Random(9));
    fused(&k, &cache, &[0.0; 16], 1, &causal(1, 17));
}
