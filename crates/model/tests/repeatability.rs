//! A token's logits are the same bits whatever the threads, the chunks, the probe, the batch, and
//! whether its prefix came from the cache.

mod common;

use common::*;
use kernels::{Compute, KvType};
use model::{Arch, Batch, Cache, Chunk, PAGE, Rows, Site, Weights};

const N: usize = 80;

/// One model per family of kernels: legacy blocks, super-blocks with and without minima, halves.
const FILES: &[&str] = &[
    "gguf/q256.Q4_1.gguf",
    "gguf/q256.Q8_0.gguf",
    "gguf/q256.Q4_K_M.gguf",
    "gguf/q256.Q3_K_M.gguf",
    "gguf/q256.IQ4_XS.gguf",
    "gguf/q256.BF16.gguf",
    "gguf/llama_bias.f32.gguf",
    "models/llama_bf16_sharded",
    // Other architectures; the first with chunks of 16 positions.
    "models/llama4_text",
    "gguf/llama4_text.f32.gguf",
    "models/opt",
    "../experts/experts.gguf",
];

fn ids(w: &Weights) -> Vec<u32> {
    (0..N as u32)
        .map(|i| (i * 37 + 11) % w.config.vocab as u32)
        .collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// The places that a model has.
fn all_sites(w: &Weights) -> Vec<Site> {
    use Site::*;
    let mut sites = vec![
        Embed,
        ResidPre,
        AttnIn,
        Q,
        K,
        V,
        RotQ,
        RotK,
        Scores,
        Pattern,
        Z,
        AttnOut,
        ResidMid,
        MlpIn,
        MlpPre,
        MlpPreLinear,
        MlpPost,
        MlpOut,
        ResidPost,
        FinalNorm,
        Logits,
    ];
    sites.extend(w.config.experts.as_ref().map(|_| Router));
    sites.retain(|s| *s != MlpPreLinear || w.config.arch != Arch::Opt);
    sites
}

fn run(
    w: &Weights,
    ty: KvType,
    ids: &[u32],
    chunk: usize,
    probe: &mut impl model::Probe,
) -> Vec<u32> {
    let mut cache = Cache::new(&w.config, ty, 1024).unwrap();
    let seq = cache.open();
    bits(&logits_in_chunks(
        w,
        &mut cache,
        seq,
        ids,
        chunk,
        Rows::All,
        probe,
    ))
}

fn each(mut check: impl FnMut(&str, &Weights, KvType, Compute)) {
    for file in FILES {
        for compute in [Compute::Fast, Compute::F32] {
            let w = model::open(&fixture(file), kernels(compute, 1)).unwrap();
            let types = match file.contains("Q4_K_M") {
                true => vec![KvType::F32, KvType::F16, KvType::Bf16, KvType::Q8_0],
                false => vec![KvType::F16],
            };
            for ty in types {
                check(&format!("{file} {compute:?} {ty:?}"), &w, ty, compute);
            }
        }
    }
}

#[test]
fn threads_and_chunks_do_not_change_bits() {
    each(|what, w, ty, compute| {
        let ids = ids(w);
        let want = run(w, ty, &ids, N, &mut ());
        for threads in 1..=4 {
            let w = w.with_kernels(kernels(compute, threads));
            for chunk in [1, 3, 7, 64, N] {
                assert!(
                    run(&w, ty, &ids, chunk, &mut ()) == want,
                    "{what}: {threads} threads, chunks of {chunk}"
                );
            }
        }
    });
}

#[test]
fn probes_do_not_change_bits() {
    each(|what, w, ty, _| {
        let ids = ids(w);
        let want = run(w, ty, &ids, N, &mut ());
        for chunk in [N, 7] {
            let mut probe = Capture::of(&all_sites(w));
            assert!(
                run(w, ty, &ids, chunk, &mut probe) == want,
                "{what}: all sites, chunks of {chunk}"
            );
            assert_eq!(
                probe
                    .seen
                    .keys()
                    .map(|k| k.0)
                    .collect::<std::collections::BTreeSet<_>>()
                    .len(),
                all_sites(w).len()
            );
        }
    });
}

#[test]
fn a_cached_prefix_does_not_change_bits() {
    each(|what, w, ty, _| {
        let ids = ids(w);
        let vocab = w.config.vocab;
        let want = run(w, ty, &ids, N, &mut ());
        let mut cache = Cache::new(&w.config, ty, 1024).unwrap();
        let seq = cache.open();
        logits_in_chunks(w, &mut cache, seq, &ids, 9, Rows::All, &mut ());
        for keep in [79, 64, 33, 32, 31, 1] {
            // Other tokens are written behind the prefix first, as another request would.
            let keep = cache.truncate(seq, keep);
            logits_in_chunks(w, &mut cache, seq, &[5, 6, 7, 8], 4, Rows::All, &mut ());
            assert_eq!(cache.truncate(seq, keep), keep);
            let fork = cache.fork(seq, keep);
            for s in [seq, fork] {
                let got = bits(&logits_in_chunks(
                    w,
                    &mut cache,
                    s,
                    &ids[keep..],
                    16,
                    Rows::All,
                    &mut (),
                ));
                assert!(got == want[keep * vocab..], "{what}: prefix of {keep}");
            }
            cache.close(fork);
        }
        cache.close(seq);
        assert_eq!(cache.bytes(), 0);
    });
}

#[test]
fn a_block_that_outlives_its_sequence_does_not_change_bits() {
    each(|what, w, ty, _| {
        let ids = ids(w);
        let vocab = w.config.vocab;
        let want = run(w, ty, &ids, N, &mut ());
        let mut cache = Cache::new(&w.config, ty, 8 * PAGE).unwrap();
        let seq = cache.open();
        logits_in_chunks(w, &mut cache, seq, &ids, 9, Rows::None, &mut ());
        let blocks: Vec<_> = (0..3).map_while(|i| cache.hold(seq, i)).collect();
        assert_eq!(
            blocks.len(),
            if cache.holds_blocks() { N / PAGE } else { 0 }
        );
        assert!(blocks.iter().all(|b| cache.is_shared(b)));
        cache.close(seq);
        assert_eq!(cache.free_pages(), 8 - blocks.len());
        for n in 0..=blocks.len() {
            let s = cache.open_with(&blocks[..n]);
            assert_eq!(cache.len(s), n * PAGE);
            assert_eq!(cache.pages_for(s, 1), 1);
            let rest = &ids[n * PAGE..];
            let got = logits_in_chunks(w, &mut cache, s, rest, 16, Rows::All, &mut ());
            assert!(bits(&got) == want[n * PAGE * vocab..], "{what}: {n} blocks");
            cache.close(s);
        }
        for block in blocks {
            assert!(!cache.is_shared(&block));
            cache.give_up(block);
        }
        assert_eq!((cache.bytes(), cache.free_pages()), (0, 8));
    });
}

#[test]
fn the_batch_does_not_change_bits() {
    each(|what, w, ty, _| {
        let ids = ids(w);
        let vocab = w.config.vocab;
        let want = run(w, ty, &ids, N, &mut ());
        let mut cache = Cache::new(&w.config, ty, 2048).unwrap();
        let seq = cache.open();
        let others: Vec<_> = (0..5).map(|_| cache.open()).collect();
        let mut got = Vec::new();
        for (step, part) in ids.chunks(11).enumerate() {
            let at = cache.len(seq) as u32;
            let mut chunks = vec![Chunk::tokens(seq, at, part, Rows::All)];
            for (i, &o) in others.iter().enumerate() {
                let own: Vec<u32> = (0..=(step + i) as u32)
                    .map(|t| (t * 13 + i as u32) % vocab as u32)
                    .collect();
                let chunk = Chunk::tokens(
                    o,
                    cache.len(o) as u32,
                    &own,
                    [Rows::None, Rows::Last, Rows::All][i % 3],
                );
                chunks.insert(i % 2, chunk);
            }
            let at = chunks.iter().position(|c| c.seq == seq).unwrap();
            let out = model::forward(w, &Batch { chunks }, &mut cache, &mut ()).unwrap();
            got.extend(bits(&out.chunks[at].logits));
        }
        assert!(got == want, "{what}");
    });
}
