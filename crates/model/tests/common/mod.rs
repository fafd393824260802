//! What the tests of `model` share: fixtures, expectations, a capturing probe, drivers.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use files::Tensors;
use kernels::{Compute, Kernels, KvType, Level};
use model::{At, Batch, Cache, Chunk, Probe, Rows, Seq, Site, Weights};

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/reference"
    ))
    .join(name)
}

pub fn kernels(compute: Compute, threads: usize) -> Arc<Kernels> {
    Arc::new(Kernels::new(Level::best(), compute, threads).unwrap())
}

pub fn open(name: &str, compute: Compute) -> Weights {
    model::open(&fixture(name), kernels(compute, 2)).unwrap()
}

/// Folders of `models/` that are LlamaForCausalLM, each with an F32 conversion to GGUF.
pub const MODELS: &[&str] = &[
    "llama1",
    "llama2_gqa",
    "llama2_linear_rope",
    "llama3",
    "llama3_1",
    "llama3_2_tied",
    "llama_bf16_sharded",
    "llama_bias",
    "llama_head_dim",
];

/// Folders of `models/` of other architectures. llama.cpp reads no OPT, and gives Llama 4's chunks
/// another length than the checkpoint does.
pub const OTHERS: &[&str] = &["llama4_text", "opt", "galactica"];

/// All folders.
pub fn all_models() -> impl Iterator<Item = &'static str> {
    MODELS.iter().chain(OTHERS).copied()
}

/// Expected tensors of a file.
pub struct Expected(pub Tensors);

impl Expected {
    pub fn open(name: &str) -> Expected {
        Expected(files::safetensors::open(fixture(name)).unwrap())
    }
    pub fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }
    pub fn f32(&self, name: &str) -> Vec<f32> {
        let t = self.0.get(name).unwrap_or_else(|| panic!("no {name}"));
        t.data
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }
    pub fn ids(&self, name: &str) -> Vec<u32> {
        let t = self.0.get(name).unwrap_or_else(|| panic!("no {name}"));
        let width = t.data.len() / t.shape.iter().product::<usize>();
        t.data
            .chunks_exact(width)
            .map(|b| u32::from_le_bytes(b[..4].try_into().unwrap()))
            .collect()
    }
    /// Names of the sequences, `seq0`, `seq1`, ...
    pub fn sequences(&self) -> Vec<String> {
        (0..)
            .map(|i| format!("seq{i}"))
            .take_while(|s| self.0.names().any(|n| n.starts_with(&format!("{s}."))))
            .collect()
    }
}

/// Keeps what it sees of the wanted places, rows appended in the order of the calls.
#[derive(Default)]
pub struct Capture {
    pub sites: Vec<Site>,
    pub seen: BTreeMap<(Site, usize), Vec<f32>>,
    /// The shape of each call.
    pub shapes: BTreeMap<(Site, usize), Vec<Vec<usize>>>,
}

impl Capture {
    pub fn of(sites: &[Site]) -> Capture {
        Capture {
            sites: sites.to_vec(),
            ..Default::default()
        }
    }
}

impl Probe for Capture {
    const ON: bool = true;
    fn wants(&self, site: Site, _: usize) -> bool {
        self.sites.contains(&site)
    }
    fn see(&mut self, at: At, values: &mut [f32]) {
        assert_eq!(at.shape.iter().product::<usize>(), values.len());
        assert_eq!(at.shape[0], at.rows.len());
        let shapes = self.shapes.entry((at.site, at.layer)).or_default();
        shapes.push(at.shape.to_vec());
        self.seen
            .entry((at.site, at.layer))
            .or_default()
            .extend_from_slice(values);
    }
}

/// Feeds `ids` in chunks of `chunk` rows and returns the logits of the wanted rows of each.
pub fn logits_in_chunks(
    w: &Weights,
    cache: &mut Cache,
    seq: Seq,
    ids: &[u32],
    chunk: usize,
    rows: Rows,
    probe: &mut impl Probe,
) -> Vec<f32> {
    let mut out = Vec::new();
    for part in ids.chunks(chunk) {
        let start = cache.len(seq) as u32;
        let batch = Batch {
            chunks: vec![Chunk::tokens(seq, start, part, rows)],
        };
        let got = model::forward(w, &batch, cache, probe).unwrap();
        out.extend_from_slice(&got.chunks[0].logits);
    }
    out
}

/// A fresh f32 cache, `ids` in chunks, all logits.
pub fn logits(w: &Weights, ids: &[u32], chunk: usize, probe: &mut impl Probe) -> Vec<f32> {
    let mut cache = Cache::new(&w.config, KvType::F32, 4096).unwrap();
    let seq = cache.open();
    logits_in_chunks(w, &mut cache, seq, ids, chunk, Rows::All, probe)
}

pub fn argmax(row: &[f32]) -> u32 {
    let best = |b: usize, i: usize| if row[i] > row[b] { i } else { b };
    (0..row.len()).fold(0, best) as u32
}

/// Greedy continuation of `n` tokens, one step at a time on the cache.
pub fn greedy(w: &Weights, ids: &[u32], n: usize) -> Vec<u32> {
    let vocab = w.config.vocab;
    let mut cache = Cache::new(&w.config, KvType::F32, 4096).unwrap();
    let seq = cache.open();
    let mut row = logits_in_chunks(w, &mut cache, seq, ids, ids.len(), Rows::Last, &mut ());
    let mut out = Vec::new();
    while out.len() < n {
        let next = argmax(&row[row.len() - vocab..]);
        out.push(next);
        row = logits_in_chunks(w, &mut cache, seq, &[next], 1, Rows::Last, &mut ());
    }
    out
}

/// |got - want| <= absolute + relative * |want| everywhere; panics with the worst place.
pub fn assert_close(what: &str, got: &[f32], want: &[f32], absolute: f32, relative: f32) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let excess = |(g, w): (&f32, &f32)| (g - w).abs() - absolute - relative * w.abs();
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(excess((g, w)) <= 0.0, "{what}[{i}]: {g} is not {w}");
    }
}

pub fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

pub fn log_softmax(row: &[f32]) -> Vec<f32> {
    let max = row.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
    row.iter().map(|x| x - max - sum.ln() as f32).collect()
}
