//! The cache of layers with chunked attention gives up what no row will see again, and no bit of any
//! result changes by it.

mod common;

use common::*;
use kernels::{Compute, KvType};
use model::{Batch, Cache, Chunk, Error, PAGE, Rows, Weights};

/// Four layers, of which three have chunks of 16 positions.
fn model() -> Weights {
    open("models/llama4_text", Compute::F32)
}

fn ids(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * 37 + i * i % 11 + 11) % 384).collect()
}

#[test]
fn chunked_layers_keep_their_window_only() {
    let w = model();
    let ids = ids(800);
    let mut cache = Cache::new(&w.config, KvType::F32, 1024).unwrap();
    let seq = cache.open();
    let full = w.config.layers as u64 * page_bytes(&w);
    for part in ids.chunks(40) {
        logits_in_chunks(&w, &mut cache, seq, part, 40, Rows::None, &mut ());
        let pages = cache.len(seq).div_ceil(PAGE) as u64;
        // A chunk, as much to go back, and the borders of pages.
        let most = pages * full / 4 + 3 * full * 3 / 4;
        assert!(
            cache.bytes() <= most,
            "{} tokens: {}",
            cache.len(seq),
            cache.bytes()
        );
        assert!(cache.bytes() <= Cache::bytes_for(&w.config, KvType::F32, ids.len()).unwrap());
    }
    cache.close(seq);
    assert_eq!(cache.bytes(), 0);
}

/// Bytes of a page of one layer in f32.
fn page_bytes(w: &Weights) -> u64 {
    let mut one = w.config.clone();
    one.layers = 1;
    one.llama4 = None;
    Cache::bytes_for(&one, KvType::F32, 1).unwrap()
}

#[test]
fn long_contexts_cost_what_full_layers_cost() {
    let c = model().config;
    let bytes = |tokens: usize| Cache::bytes_for(&c, KvType::F16, tokens).unwrap();
    let page = bytes(PAGE);
    assert_eq!(bytes(10_000 * PAGE) - bytes(9_999 * PAGE), page / 4);
}

/// Taking back, forking and going on, at random: always the bits of one run without any of it.
#[test]
fn going_back_anywhere_changes_no_bit() {
    let w = model();
    let (ids, vocab) = (ids(300), w.config.vocab);
    let want = logits(&w, &ids, 300, &mut ());
    let mut cache = Cache::new(&w.config, KvType::F32, 4096).unwrap();
    let mut seq = cache.open();
    let mut state = 7u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize % below
    };
    let mut shorter = 0;
    for _ in 0..300 {
        let asked = random(cache.len(seq) + 1);
        let kept = match random(3) {
            0 => {
                let fork = cache.fork(seq, asked);
                // The first goes its own way before it ends.
                logits_in_chunks(&w, &mut cache, seq, &[1, 2, 3], 3, Rows::None, &mut ());
                cache.close(seq);
                seq = fork;
                cache.len(seq)
            }
            1 => cache.truncate(seq, asked),
            _ => cache.len(seq),
        };
        assert_eq!(cache.len(seq), kept);
        assert!(kept <= cache.len(seq).max(asked));
        shorter += usize::from(kept < asked);
        let more = (1 + random(60)).min(ids.len() - kept);
        if more == 0 {
            cache.truncate(seq, 0);
            continue;
        }
        let part = &ids[kept..kept + more];
        let got = logits_in_chunks(
            &w,
            &mut cache,
            seq,
            part,
            1 + random(60),
            Rows::All,
            &mut (),
        );
        let want = &want[kept * vocab..(kept + more) * vocab];
        assert!(
            kernels::same_bits(&got, want),
            "{asked} asked, {kept} kept, {more} more"
        );
    }
    assert!(
        shorter > 10,
        "{shorter}: too few went back beyond what was held"
    );
    cache.close(seq);
    assert_eq!(cache.bytes(), 0);
}

/// Positions that do not go on where they ended would look back at what is gone.
#[test]
fn positions_that_look_back_too_far_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        let from = fixture(&format!("models/llama4_text/{file}"));
        std::fs::copy(from, dir.path().join(file)).unwrap();
    }
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let longer = text.replace(
        "\"attention_chunk_size\": 16",
        "\"attention_chunk_size\": 1200",
    );
    std::fs::write(&path, longer).unwrap();
    let w = model::open(dir.path(), kernels(Compute::F32, 2)).unwrap();
    let mut cache = Cache::new(&w.config, KvType::F16, 4096).unwrap();
    let seq = cache.open();
    logits_in_chunks(&w, &mut cache, seq, &ids(2230), 600, Rows::None, &mut ());
    let row = |cache: &mut Cache, position: u32| {
        let chunks = vec![Chunk::tokens(seq, position, &[3], Rows::Last)];
        model::forward(&w, &Batch { chunks }, cache, &mut ()).map(|_| ())
    };
    let error = row(&mut cache, 1199).unwrap_err();
    assert!(matches!(error, Error::Batch(_)), "{error}");
    assert_eq!(cache.len(seq), 2230);
    row(&mut cache, 2230).unwrap();
    // A little back is free; far back is the start of the chunk.
    assert_eq!(cache.truncate(seq, 1210), 1210);
    assert_eq!(cache.truncate(seq, 1190), 0);
}
