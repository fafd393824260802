//! `puna bench`: how fast this machine reads prompts and makes tokens, and how near that is to
//! what the machine can do.
//!
//! `pp512` computes a prompt of 512 tokens, `tg128` makes 128 tokens one after the other; with
//! `--parallel N` both do so for N sequences. A clock around the same forward pass that answers:
//! no sampling, no tokenizer.

mod room;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use engine::Adaptation;
use kernels::{Compute, Kernels, KvType, Type, limits};
use model::{Batch, Cache, Chunk, Mix, PAGE, Rows, Seq, Weights};
use serde::Serialize;

use crate::args::BenchArgs;
use crate::exit::usage;
use crate::memory::Need;
use crate::{load, machine, out};

/// Tokens of a prompt that one pass takes.
const CHUNK: usize = 512;
/// What a bandwidth probe reads: far more than any cache holds.
const PROBE_BYTES: usize = 512 << 20;

#[derive(Serialize)]
struct Report {
    machine: Machine,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
    results: Vec<Row>,
}

#[derive(Serialize)]
struct Machine {
    cpu: String,
    cores: Option<usize>,
    threads: usize,
    simd: &'static str,
    compute: &'static str,
    memory_bytes: Option<u64>,
    os: &'static str,
    arch: &'static str,
    puna: &'static str,
}

/// What the machine can do; the bandwidth is the mean of all probes.
#[derive(Serialize, Clone, Copy)]
struct Limits {
    read_gbps: f64,
    /// A cache line's way from core to core, before the first test.
    ping_pong_ns: Option<f64>,
    f32_gflops: f64,
    bf16_gflops: Option<f64>,
    int8_gops: Option<f64>,
}

#[derive(Serialize)]
struct Row {
    test: String,
    model: String,
    #[serde(rename = "type")]
    ty: String,
    threads: usize,
    depth: usize,
    parallel: usize,
    cache_type: &'static str,
    tokens_per_second: Spread,
    /// Weights and cache that a decode test read per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_gbps: Option<f64>,
    /// What the machine could read just before and just after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_read_gbps: Option<[f64; 2]>,
    /// Multiplications and additions of a prompt test per second, in units of 10^9.
    #[serde(skip_serializing_if = "Option::is_none")]
    gops: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fraction_of_limit: Option<f64>,
}

#[derive(Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

pub fn run(args: &BenchArgs) -> Result<()> {
    if args.prompt == 0 && args.generate == 0 {
        return only_limits(args);
    }
    let subject = Subject::open(args)?;
    let mut bench = Bench::new(args, &subject)?;
    let arithmetic = args.limits.then(|| {
        out::note("measuring this machine's limits");
        Limits::arithmetic(subject.weights.kernels())
    });
    let mut results = Vec::new();
    if args.prompt > 0 {
        results.push(bench.prompt(args.prompt, arithmetic.as_ref())?);
    }
    if args.generate > 0 {
        results.push(bench.generate(args.generate)?);
    }
    let probes: Vec<f64> = results
        .iter()
        .filter_map(|r| r.limit_read_gbps)
        .flatten()
        .collect();
    let limits = arithmetic.map(|limits| match probes.len() {
        0 => Limits {
            read_gbps: limits::read_gbps(subject.weights.kernels(), PROBE_BYTES),
            ..limits
        },
        n => Limits {
            read_gbps: probes.iter().sum::<f64>() / n as f64,
            ..limits
        },
    });
    let report = Report {
        machine: this_machine(subject.weights.kernels()),
        limits,
        results,
    };
    out::print(args.format.format, &report, || table(&report))
}

/// `-p 0 -n 0 --limits`: this machine alone, in about a second.
fn only_limits(args: &BenchArgs) -> Result<()> {
    if !args.limits || args.model.is_some() || args.shape.is_some() {
        return Err(usage(
            "both -p and -n are 0: there is nothing to measure",
            "try `puna bench`; `puna bench -p 0 -n 0 --limits` measures the machine alone",
        ));
    }
    let kernels = load::kernels(&args.load.machine)?;
    let limits = Limits {
        read_gbps: limits::read_gbps(&kernels, PROBE_BYTES),
        ..Limits::arithmetic(&kernels)
    };
    let report = Report {
        machine: this_machine(&kernels),
        limits: Some(limits),
        results: Vec::new(),
    };
    out::print(args.format.format, &report, || table(&report))
}

/// What is measured.
struct Subject {
    name: String,
    ty: String,
    weights: Arc<Weights>,
    adaptation: Adaptation,
    cache_type: KvType,
    /// MODEL as it was typed, and where it lies; `None` of a shape.
    typed: Option<(String, PathBuf)>,
}

impl Subject {
    fn open(args: &BenchArgs) -> Result<Subject> {
        let Some(name) = &args.shape else {
            // clap's `requires` looks away once MODEL, which excludes --shape, is given.
            if args.ty.is_some() {
                return Err(usage(
                    "--type chooses the storage of a --shape; a model has its own",
                    "leave --type out, or give --shape NAME",
                ));
            }
            let loaded = load::weights(args.model.as_deref(), &args.load)?;
            let ty = loaded
                .weights
                .types()
                .first()
                .map_or("?", |(ty, _)| ty.name())
                .to_owned();
            return Ok(Subject {
                name: loaded.name,
                ty,
                weights: loaded.weights,
                adaptation: loaded.adaptation,
                cache_type: loaded.cache_type,
                typed: Some((loaded.typed, loaded.path)),
            });
        };
        if !args.load.adapter.is_empty() || !args.load.control_vector.is_empty() {
            return Err(usage(
                "--adapter and --control-vector are made for a model, and a --shape is none",
                "name a MODEL, or leave them out",
            ));
        }
        let Some(shape) = model::shapes()
            .iter()
            .find(|s| s.name.eq_ignore_ascii_case(name))
        else {
            let known: Vec<&str> = model::shapes().iter().map(|s| s.name).collect();
            return Err(usage(
                format!("there is no shape {name}"),
                format!("there are {}", known.join(", ")),
            ));
        };
        let typed = args.ty.as_deref().unwrap_or("Q8_0");
        let mix: Mix = typed
            .parse()
            .map_err(|e: model::Error| usage(e.to_string(), ""))?;
        let kernels = load::kernels(&args.load.machine)?;
        let config = shape.config()?;
        let need = Need {
            name: &format!("--shape {}", shape.name),
            path: None,
            config: &config,
            mapped: weights_of(config.parameters(), typed),
            ty: load::cache_type(&args.load),
            asked: None,
        };
        room::check(args, &need, &format!("--type {typed} "))?;
        let weights = model::synthesize(shape, mix, kernels)?;
        Ok(Subject {
            name: shape.name.to_owned(),
            ty: mix.name.to_owned(),
            weights: Arc::new(weights),
            adaptation: Adaptation::default(),
            cache_type: load::cache_type(&args.load),
            typed: None,
        })
    }
}

/// About how many bytes so many parameters take: a mix of types (`Q4_K_M`) counts as its base with a tenth more.
fn weights_of(parameters: u64, typed: &str) -> u64 {
    let base = typed.trim_end_matches("_M").trim_end_matches("_m");
    let (len, bytes) = base
        .parse::<Type>()
        .map_or((1, 4), |ty| (ty.block_len(), ty.block_bytes()));
    (parameters / len as u64)
        .saturating_mul(bytes as u64)
        .saturating_mul(11)
        / 10
}

struct Bench<'a> {
    args: &'a BenchArgs,
    subject: &'a Subject,
    cache: Cache,
    sequences: Vec<Seq>,
    random: u64,
}

impl<'a> Bench<'a> {
    /// A cache in which every sequence holds `--depth` tokens.
    fn new(args: &'a BenchArgs, subject: &'a Subject) -> Result<Bench<'a>> {
        let config = &subject.weights.config;
        let tokens = room::tokens(args)?;
        let each = args.depth.saturating_add(room::longest(args));
        if each > config.context {
            tracing::warn!(
                "{each} tokens a sequence: {} was made for {}",
                subject.name,
                config.context
            );
        }
        let weights = &subject.weights;
        if let Some((name, path)) = &subject.typed {
            let need = Need {
                name,
                path: Some(path),
                config,
                mapped: weights.bytes() - weights.bytes_held(),
                ty: subject.cache_type,
                asked: None,
            };
            room::check(args, &need, "")?;
        }
        let mut cache = Cache::new(config, subject.cache_type, tokens)?;
        let sequences = (0..args.parallel).map(|_| cache.open()).collect();
        let mut bench = Bench {
            args,
            subject,
            cache,
            sequences,
            random: 0x9E37_79B9_7F4A_7C15,
        };
        if args.depth > 0 {
            out::note(&format!(
                "filling the cache with {} tokens",
                args.depth.saturating_mul(args.parallel)
            ));
            bench.read(0, args.depth, Rows::None)?;
        }
        Ok(bench)
    }

    /// Any token ids do: the same numbers are multiplied. (xorshift64)
    fn tokens(&mut self, n: usize) -> Vec<u32> {
        let vocab = self.subject.weights.config.vocab as u64;
        let mut next = || {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            (self.random % vocab) as u32
        };
        (0..n).map(|_| next()).collect()
    }

    fn forward(&mut self, mut chunks: Vec<Chunk>) -> Result<()> {
        let adaptation = &self.subject.adaptation;
        for chunk in &mut chunks {
            chunk.adapters.clone_from(&adaptation.adapters);
            chunk.control.clone_from(&adaptation.control);
        }
        model::forward(
            &self.subject.weights,
            &Batch { chunks },
            &mut self.cache,
            &mut (),
        )?;
        Ok(())
    }

    /// Reads `n` tokens into each sequence after its first `start`; of the last piece come `rows`.
    fn read(&mut self, start: usize, n: usize, rows: Rows) -> Result<()> {
        for seq in self.sequences.clone() {
            let mut done = 0;
            while done < n {
                let more = CHUNK.min(n - done);
                let ids = self.tokens(more);
                let rows = if done + more == n { rows } else { Rows::None };
                self.forward(vec![Chunk::tokens(seq, (start + done) as u32, &ids, rows)])?;
                done += more;
            }
        }
        Ok(())
    }

    /// Makes `n` tokens in each sequence after its first `start`, one of each sequence at a time.
    fn decode(&mut self, start: usize, n: usize) -> Result<()> {
        for at in start..start + n {
            let ids = self.tokens(self.sequences.len());
            let pairs = self.sequences.iter().zip(&ids);
            let chunks = pairs.map(|(&seq, &id)| Chunk::tokens(seq, at as u32, &[id], Rows::Last));
            let chunks = chunks.collect();
            self.forward(chunks)?;
        }
        Ok(())
    }

    /// Runs `work` once to warm up and then `--repeat` times; tokens of all sequences per second.
    fn time(
        &mut self,
        test: &str,
        tokens: usize,
        warm_up: impl Fn(&mut Self) -> Result<()>,
        work: impl Fn(&mut Self) -> Result<()>,
    ) -> Result<Spread> {
        let mut speeds = Vec::with_capacity(self.args.repeat);
        warm_up(self)?;
        for i in 0..self.args.repeat {
            self.forget();
            let began = Instant::now();
            work(self)?;
            speeds.push((tokens * self.sequences.len()) as f64 / began.elapsed().as_secs_f64());
            out::note(&format!(
                "{test} {}/{}: {:.1} tokens/s",
                i + 1,
                self.args.repeat,
                speeds[i]
            ));
        }
        self.forget();
        Ok(Spread::of(speeds))
    }

    /// Back to the depth that every test starts from.
    fn forget(&mut self) {
        for &seq in &self.sequences {
            self.cache.truncate(seq, self.args.depth);
        }
    }

    fn row(&self, test: String, tokens_per_second: Spread) -> Row {
        Row {
            test,
            model: self.subject.name.clone(),
            ty: self.subject.ty.clone(),
            threads: self.subject.weights.kernels().threads(),
            depth: self.args.depth,
            parallel: self.args.parallel,
            cache_type: self.subject.cache_type.name(),
            tokens_per_second,
            read_gbps: None,
            limit_read_gbps: None,
            gops: None,
            fraction_of_limit: None,
        }
    }

    fn prompt(&mut self, n: usize, limits: Option<&Limits>) -> Result<Row> {
        let (test, depth) = (format!("pp{n}"), self.args.depth);
        let read = |n| move |b: &mut Self| b.read(depth, n, Rows::Last);
        // A pass as large as the timed ones warms all that they use.
        let speed = self.time(&test, n, read(n.min(CHUNK)), read(n))?;
        let mut row = self.row(test, speed);
        if let Some(limits) = limits {
            let gops = self.operations(n) * row.tokens_per_second.median / 1e9;
            row.gops = Some(gops);
            row.fraction_of_limit = Some(gops / limits.of(&self.subject.weights));
        }
        Ok(row)
    }

    /// Multiplications and additions for each token of a prompt of `n`: two for each weight of the
    /// blocks, and the head once a prompt. Attention, which is other arithmetic, is not counted.
    fn operations(&self, n: usize) -> f64 {
        let c = &self.subject.weights.config;
        let table = (c.vocab * c.hidden) as f64;
        let tables = if c.tied { table } else { 2.0 * table };
        let blocks = c.parameters_used() as f64 - tables;
        2.0 * (blocks + table / n as f64)
    }

    fn generate(&mut self, n: usize) -> Result<Row> {
        let (test, depth) = (format!("tg{n}"), self.args.depth);
        let probe = |b: &Self| {
            b.args
                .limits
                .then(|| limits::read_gbps(b.subject.weights.kernels(), PROBE_BYTES))
        };
        let before = probe(self);
        let speed = self.time(&test, n, |b| b.decode(depth, 1), |b| b.decode(depth, n))?;
        let after = probe(self);
        let mut row = self.row(test, speed);
        if let (Some(before), Some(after)) = (before, after) {
            let weights = &self.subject.weights;
            let keys = Cache::bytes_for(&weights.config, self.subject.cache_type, PAGE)? as f64
                / PAGE as f64
                * (depth as f64 + n as f64 / 2.0);
            // A step reads the weights once, and the keys and values of every sequence.
            let step = weights.bytes_per_token() as f64 + keys * self.args.parallel as f64;
            let steps = row.tokens_per_second.median / self.args.parallel as f64;
            let read = step * steps / 1e9;
            row.read_gbps = Some(read);
            row.limit_read_gbps = Some([before, after]);
            row.fraction_of_limit = Some(read / ((before + after) / 2.0));
        }
        Ok(row)
    }
}

impl Spread {
    fn of(mut speeds: Vec<f64>) -> Spread {
        speeds.sort_by(f64::total_cmp);
        let n = speeds.len();
        Spread {
            median: (speeds[(n - 1) / 2] + speeds[n / 2]) / 2.0,
            min: speeds[0],
            max: speeds[n - 1],
        }
    }
}

impl Limits {
    fn arithmetic(kernels: &Kernels) -> Limits {
        Limits {
            read_gbps: 0.0,
            ping_pong_ns: limits::ping_pong_ns(),
            f32_gflops: limits::f32_gflops(kernels),
            bf16_gflops: limits::bf16_gflops(kernels),
            int8_gops: limits::int8_gops(kernels),
        }
    }

    /// The peak of the arithmetic that products of these weights are made of.
    fn of(&self, weights: &Weights) -> f64 {
        let ty = weights.types().first().map_or(Type::F32, |&(ty, _)| ty);
        let other = match (weights.kernels().compute(), ty) {
            (Compute::F32, _) | (_, Type::F32 | Type::F16) => None,
            (_, Type::BF16) => self.bf16_gflops,
            _ => self.int8_gops,
        };
        other.unwrap_or(self.f32_gflops)
    }
}

fn this_machine(kernels: &Kernels) -> Machine {
    Machine {
        cpu: super::doctor::cpu().unwrap_or_else(|| "unknown".into()),
        cores: machine::physical_cores(),
        threads: kernels.threads(),
        simd: kernels.level().name(),
        compute: kernels.compute().name(),
        memory_bytes: super::doctor::total_memory(),
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
        puna: env!("CARGO_PKG_VERSION"),
    }
}

fn table(report: &Report) -> String {
    let m = &report.machine;
    let mut text = format!(
        "{}, {} threads, {}, {}\n",
        m.cpu, m.threads, m.simd, m.compute
    );
    if let Some(l) = &report.limits {
        let more =
            |name: &str, x: Option<f64>| x.map_or(String::new(), |x| format!(", {name} {x:.0}"));
        let far = l
            .ping_pong_ns
            .map_or(String::new(), |ns| format!(", core to core {ns:.0} ns"));
        text.push_str(&format!(
            "limits: read {:.1} GB/s, f32 {:.0} GFLOP/s{}{}{far}\n",
            l.read_gbps,
            l.f32_gflops,
            more("bf16", l.bf16_gflops),
            more("int8", l.int8_gops)
        ));
    }
    if report.results.is_empty() {
        return text.trim_end().to_owned();
    }
    let width = report
        .results
        .iter()
        .map(|r| r.model.len())
        .max()
        .unwrap_or(0)
        .max(5);
    text.push_str(&format!(
        "\n{:<width$}  {:<7} {:>7} {:>7} {:>8} {:>10}  {:<20} {:>6}",
        "model", "type", "test", "depth", "parallel", "tokens/s", "[min - max]", "limit"
    ));
    for r in &report.results {
        let s = &r.tokens_per_second;
        let range = format!("[{:.1} - {:.1}]", s.min, s.max);
        let limit = r
            .fraction_of_limit
            .map_or(String::new(), |f| format!("{:.0} %", f * 100.0));
        text.push_str(&format!(
            "\n{:<width$}  {:<7} {:>7} {:>7} {:>8} {:>10.1}  {range:<20} {limit:>6}",
            r.model, r.ty, r.test, r.depth, r.parallel, s.median
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_in_the_middle() {
        let s = Spread::of(vec![3.0, 1.0, 2.0, 10.0]);
        assert_eq!((s.median, s.min, s.max), (2.5, 1.0, 10.0));
        assert_eq!(Spread::of(vec![7.0]).median, 7.0);
    }

    #[test]
    fn sizes_of_synthetic_weights_are_near() {
        assert_eq!(weights_of(3200, "Q8_0"), 3740);
        assert_eq!(weights_of(1000, "f32"), 4400);
        assert!(weights_of(1_000_000, "Q4_K_M") < weights_of(1_000_000, "Q5_K_M"));
    }
}
