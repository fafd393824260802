//! What a batch may ask for, what the probe may write, what is refused.

mod common;

use std::sync::Arc;

use common::*;
use kernels::{Compute, KvType};
use model::{Adapter, At, Batch, Cache, Chunk, Error, Input, Probe, Rows, Site, Target, Weights};

fn model() -> Weights {
    open("models/llama3", Compute::F32)
}

const IDS: &[u32] = &[3, 141, 59, 26, 53, 58, 97, 93, 23, 84];

#[test]
fn only_wanted_rows_come_out() {
    let w = model();
    let all = logits(&w, IDS, 99, &mut ());
    let mut cache = Cache::new(&w.config, KvType::F32, 256).unwrap();
    let mut ask = |rows: Rows, logits: bool, hidden: bool| {
        let seq = cache.open();
        let chunk = Chunk {
            logits,
            hidden,
            ..Chunk::tokens(seq, 0, IDS, rows)
        };
        let out = model::forward(
            &w,
            &Batch {
                chunks: vec![chunk],
            },
            &mut cache,
            &mut (),
        )
        .unwrap()
        .chunks
        .remove(0);
        cache.close(seq);
        out
    };
    let (d, vocab) = (w.config.hidden, w.config.vocab);
    assert_eq!(ask(Rows::All, true, false).logits, all);
    assert_eq!(
        ask(Rows::Last, true, false).logits[..],
        all[all.len() - vocab..]
    );
    assert!(ask(Rows::None, true, true).logits.is_empty());
    let hidden = ask(Rows::All, false, true);
    assert_eq!(
        (hidden.logits.len(), hidden.hidden.len()),
        (0, IDS.len() * d)
    );
    assert_eq!(
        ask(Rows::Last, true, true).hidden,
        hidden.hidden[hidden.hidden.len() - d..]
    );
}

/// Rows of the embedding table stand in for tokens.
#[test]
fn embeddings_go_in_as_tokens_do() {
    let w = model();
    let mut probe = Capture::of(&[Site::Embed]);
    let want = logits(&w, IDS, 99, &mut probe);
    let mut cache = Cache::new(&w.config, KvType::F32, 256).unwrap();
    let seq = cache.open();
    let rows = probe.seen.remove(&(Site::Embed, 0)).unwrap();
    let chunk = Chunk {
        input: Input::Embeddings(rows),
        ..Chunk::tokens(seq, 0, IDS, Rows::All)
    };
    let out = model::forward(
        &w,
        &Batch {
            chunks: vec![chunk],
        },
        &mut cache,
        &mut (),
    )
    .unwrap();
    assert_eq!(out.chunks[0].logits, want);
}

/// Documents packed in one sequence see only themselves.
#[test]
fn segments_do_not_see_each_other() {
    let w = model();
    let (a, b) = IDS.split_at(4);
    let mut cache = Cache::new(&w.config, KvType::F32, 256).unwrap();
    let seq = cache.open();
    let mut feed = |segment: u32, start: u32, ids: &[u32]| {
        let chunk = Chunk {
            segment,
            ..Chunk::tokens(seq, start, ids, Rows::All)
        };
        model::forward(
            &w,
            &Batch {
                chunks: vec![chunk],
            },
            &mut cache,
            &mut (),
        )
        .map(|o| o.chunks[0].logits.to_vec())
    };
    assert_eq!(feed(0, 0, a).unwrap(), logits(&w, a, 99, &mut ()));
    let second = [feed(1, 0, &b[..2]).unwrap(), feed(1, 2, &b[2..]).unwrap()].concat();
    assert_eq!(second, logits(&w, b, 99, &mut ()));
    assert!(
        matches!(feed(0, 0, a), Err(Error::Batch(_))),
        "a segment does not resume"
    );
}

/// Documents packed in one sequence see only themselves, and chunks of positions begin anew.
#[test]
fn chunked_attention_counts_positions_of_the_segment() {
    let w = open("models/llama4_text", Compute::F32);
    assert_eq!(w.config.llama4.as_ref().unwrap().chunk, 16);
    let ids: Vec<u32> = (0..40).map(|i| (i * 31 + 5) % 384).collect();
    let alone = logits(&w, &ids, 99, &mut ());
    let mut cache = Cache::new(&w.config, KvType::F32, 256).unwrap();
    let seq = cache.open();
    let mut feed = |segment: u32, start: u32, ids: &[u32]| {
        let chunk = Chunk {
            segment,
            ..Chunk::tokens(seq, start, ids, Rows::All)
        };
        let chunks = vec![chunk];
        let out = model::forward(&w, &Batch { chunks }, &mut cache, &mut ()).unwrap();
        out.chunks[0].logits.to_vec()
    };
    feed(0, 0, &IDS[..7]);
    let packed = [feed(1, 0, &ids[..21]), feed(1, 21, &ids[21..])].concat();
    assert_eq!(packed, alone);
}

/// A table of learned positions has an end.
#[test]
fn positions_beyond_the_table_are_refused() {
    let w = open("models/opt", Compute::F32);
    let mut cache = Cache::new(&w.config, KvType::F32, 64).unwrap();
    let seq = cache.open();
    let mut at = |position: u32| {
        let chunks = vec![Chunk::tokens(seq, position, &[3], Rows::Last)];
        model::forward(&w, &Batch { chunks }, &mut cache, &mut ()).map(|_| ())
    };
    assert_eq!(w.config.context, 128);
    at(127).unwrap();
    for position in [128, 129, u32::MAX - 1] {
        let error = at(position).unwrap_err().to_string();
        assert!(error.contains("below 128"), "{error}");
    }
}

/// Sets one place to a constant.
struct Write(Site, f32);

impl Probe for Write {
    const ON: bool = true;
    fn wants(&self, site: Site, layer: usize) -> bool {
        site == self.0 && layer == 0
    }
    fn see(&mut self, _: At, values: &mut [f32]) {
        values.fill(self.1);
    }
}

#[test]
fn what_a_probe_writes_is_what_the_pass_goes_on_with() {
    let w = model();
    let plain = logits(&w, IDS, 99, &mut ());
    use Site::*;
    for site in [
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
    ] {
        assert_ne!(
            logits(&w, IDS, 99, &mut Write(site, 0.25)),
            plain,
            "{site:?}"
        );
    }
    assert!(
        logits(&w, IDS, 99, &mut Write(Logits, 7.0))
            .iter()
            .all(|x| *x == 7.0)
    );
    // No attention at all is the same as no output of attention.
    let no_pattern = logits(&w, IDS, 99, &mut Write(Pattern, 0.0));
    assert_eq!(no_pattern, logits(&w, IDS, 99, &mut Write(AttnOut, 0.0)));
}

/// The adapter as an argument equals the adapter added to the weights, and only for its chunk.
#[test]
fn adapters_equal_merged_weights_and_are_chosen_per_chunk() {
    let w = model();
    let (out, inp) = w.shape_of(1, Target::Down).unwrap();
    let rank = 3;
    let wave =
        |n: usize, f: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * f).sin() * 0.05).collect() };
    let (a, b, scale) = (wave(rank * inp, 0.7), wave(out * rank, 1.3), 1.5);
    let mut adapter = Adapter::new();
    let mut insert = |at, a: &[f32]| adapter.insert(&w, at, rank, (a, &b), scale);
    insert((1, Target::Down), &a).unwrap();
    assert!(insert((1, Target::Down), &a[1..]).is_err());
    assert!(insert((99, Target::Down), &a).is_err());
    let adapter = Arc::new(adapter);

    let mut cache = Cache::new(&w.config, KvType::F32, 256).unwrap();
    let (s, plain) = (cache.open(), cache.open());
    let chunks = vec![
        Chunk {
            adapters: vec![adapter],
            ..Chunk::tokens(s, 0, IDS, Rows::All)
        },
        Chunk::tokens(plain, 0, IDS, Rows::All),
    ];
    let out_rows = model::forward(&w, &Batch { chunks }, &mut cache, &mut ())
        .unwrap()
        .chunks;
    let mut probe = AddLowRank {
        a: &a,
        b: &b,
        scale,
        rank,
        inp,
        out,
        input: Vec::new(),
    };
    let want = logits(&w, IDS, 99, &mut probe);
    assert_close("adapter", &out_rows[0].logits, &want, 1e-4, 1e-4);
    assert_eq!(out_rows[1].logits, logits(&w, IDS, 99, &mut ()));
    assert!(max_difference(&out_rows[0].logits, &out_rows[1].logits) > 1e-2);
}

/// Adds scale * B(A x) to the MLP's output of layer 1, in plain loops.
struct AddLowRank<'a> {
    a: &'a [f32],
    b: &'a [f32],
    scale: f32,
    rank: usize,
    inp: usize,
    out: usize,
    input: Vec<f32>,
}

impl Probe for AddLowRank<'_> {
    const ON: bool = true;
    fn wants(&self, site: Site, layer: usize) -> bool {
        layer == 1 && matches!(site, Site::MlpPost | Site::MlpOut)
    }
    fn see(&mut self, at: At, values: &mut [f32]) {
        if at.site == Site::MlpPost {
            self.input = values.to_vec();
            return;
        }
        let dot = |x: &[f32], y: &[f32]| {
            x.iter()
                .zip(y)
                .map(|(x, y)| f64::from(*x) * f64::from(*y))
                .sum::<f64>() as f32
        };
        for (x, y) in self.input.chunks(self.inp).zip(values.chunks_mut(self.out)) {
            let low: Vec<f32> = (0..self.rank)
                .map(|r| dot(x, &self.a[r * self.inp..][..self.inp]))
                .collect();
            for (j, y) in y.iter_mut().enumerate() {
                *y += self.scale * dot(&low, &self.b[j * self.rank..][..self.rank]);
            }
        }
    }
}

#[test]
fn contradictory_batches_are_errors_and_leave_the_cache_alone() {
    let w = model();
    let mut cache = Cache::new(&w.config, KvType::F32, 64).unwrap();
    let seq = cache.open();
    let closed = cache.open();
    cache.close(closed);
    let ok = || Chunk::tokens(seq, 0, IDS, Rows::Last);
    let cases: Vec<(&str, Vec<Chunk>)> = vec![
        (
            "closed sequence",
            vec![Chunk::tokens(closed, 0, IDS, Rows::Last)],
        ),
        ("one sequence twice", vec![ok(), ok()]),
        ("no rows", vec![Chunk::tokens(seq, 0, &[], Rows::Last)]),
        (
            "token outside",
            vec![Chunk::tokens(seq, 0, &[w.config.vocab as u32], Rows::Last)],
        ),
        (
            "positions",
            vec![Chunk {
                positions: vec![0],
                ..ok()
            }],
        ),
        (
            "ragged rows",
            vec![Chunk {
                input: Input::Embeddings(vec![0.0; 7]),
                ..ok()
            }],
        ),
        (
            "too long",
            vec![Chunk::tokens(seq, 0, &[1; 65], Rows::Last)],
        ),
    ];
    for (what, chunks) in cases {
        assert!(
            model::forward(&w, &Batch { chunks }, &mut cache, &mut ()).is_err(),
            "{what}"
        );
        assert_eq!((cache.len(seq), cache.bytes()), (0, 0), "{what}");
    }
    let out = model::forward(&w, &Batch::default(), &mut cache, &mut ()).unwrap();
    assert!(out.chunks.is_empty());
}

/// A scaling that holds only up to its original context is refused beyond it.
#[test]
fn dynamic_scaling_is_refused_where_it_would_change() {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("models/llama3")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["rope_scaling"] = serde_json::json!({"rope_type": "dynamic", "factor": 2.0});
    config["max_position_embeddings"] = serde_json::json!(8);
    std::fs::write(&path, config.to_string()).unwrap();
    let w = model::open(dir.path(), kernels(Compute::F32, 1)).unwrap();
    let plain = model();
    assert_eq!(
        logits(&w, &IDS[..8], 99, &mut ()),
        logits(&plain, &IDS[..8], 99, &mut ())
    );
    let mut cache = Cache::new(&w.config, KvType::F32, 64).unwrap();
    let seq = cache.open();
    let batch = Batch {
        chunks: vec![Chunk::tokens(seq, 0, &IDS[..9], Rows::Last)],
    };
    let error = model::forward(&w, &batch, &mut cache, &mut ()).unwrap_err();
    assert!(matches!(error, Error::NotImplemented(_)), "{error}");
}
