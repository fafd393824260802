//! `puna perplexity`: how well a model predicts a text, and how far it is from another model.
//!
//! The protocol and the comparison are `engine`'s; here are the files, the progress and the report.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use engine::{
    Flow, KlComparison, KlHeader, KlReader, KlStats, KlStorage, KlWriter, Perplexity,
    PerplexityParams, ScoredRow, perplexity,
};
use serde::Serialize;
use text::Special;

use crate::args::PerplexityArgs;
use crate::exit::{Code, failure, usage};
use crate::{interrupt, load, out};

/// The protocol's chunk.
const CTX: usize = 512;
/// The most that is read as a text.
const TEXT_MAX: u64 = 1 << 30;

#[derive(Serialize)]
struct Report {
    model: String,
    perplexity: f64,
    stderr: f64,
    nll: f64,
    tokens_scored: usize,
    chunks: usize,
    ctx: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    kl: Option<Kl>,
}

/// Divergence from the saved run, in nats.
#[derive(Serialize)]
struct Kl {
    mean: f64,
    median: f64,
    p99: f64,
    max: f64,
    same_top: f64,
    tokens: usize,
}

pub fn run(args: &PerplexityArgs) -> Result<()> {
    let ctx = args.load.ctx.unwrap_or(CTX);
    if ctx < 3 {
        return Err(usage(
            format!("--ctx {ctx} leaves no token to score"),
            "take 3 or more; 512 is usual",
        ));
    }
    let text = read(&args.file)?;
    let loaded = load::weights(Some(&args.model), &args.load)?;
    let tokenizer = load::tokenizer_of(&loaded.path)?;
    // The whole text at once, with BOS in front where the model adds one, as llama.cpp does.
    let ids = tokenizer.encode_prompt(&text, Special::Text)?;
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    if ids.len() < ctx {
        let what = format!(
            "{} has {} tokens; one chunk of {ctx} is needed",
            args.file.display(),
            ids.len()
        );
        return Err(failure(
            Code::Failed,
            what,
            "give a longer text, or a smaller --ctx",
        ));
    }
    let vocab = loaded.weights.config.vocab;
    let mut comparison = args
        .kl
        .as_deref()
        .map(|base| compare(base, vocab, ctx, &ids))
        .transpose()?;
    let mut saved = args
        .save_logits
        .as_deref()
        .map(|base| Saved::create(base, vocab, ctx, &ids))
        .transpose()?;

    let mut session = load::session(&loaded, Some(ctx))?;
    let mut on_row = |row: &ScoredRow| {
        if let Some(saved) = &mut saved {
            saved.writer.push(row.logits)?;
        }
        if let Some(comparison) = &mut comparison {
            comparison.push(row.logits)?;
        }
        Ok(())
    };
    let mut on_chunk = |now: &Perplexity, chunks: usize| {
        out::note(&format!("{}/{chunks}: {:.4}", now.chunks, now.perplexity));
        if interrupt::asked() {
            Flow::Stop
        } else {
            Flow::Continue
        }
    };
    let params = PerplexityParams {
        ctx,
        bos,
        chunk: None,
    };
    let (result, stopped) =
        interrupt::listen(|| perplexity(&mut session, &ids, params, &mut on_row, &mut on_chunk));
    if stopped {
        return Err(failure(Code::Interrupted, "interrupted", ""));
    }
    let result = result?;
    if let Some(saved) = saved {
        saved.finish()?;
    }
    let kl = comparison
        .as_ref()
        .and_then(KlComparison::stats)
        .map(Kl::from);
    let report = Report {
        model: loaded.name,
        perplexity: result.perplexity,
        stderr: result.stderr,
        nll: result.nll,
        tokens_scored: result.tokens_scored,
        chunks: result.chunks,
        ctx,
        kl,
    };
    out::print(args.format.format, &report, || describe(&report))
}

fn read(path: &Path) -> Result<String> {
    let length = std::fs::metadata(path)
        .with_context(|| format!("cannot read {}", path.display()))?
        .len();
    if length > TEXT_MAX {
        return Err(failure(
            Code::Failed,
            format!("{} is larger than 1 GiB", path.display()),
            "cut it",
        ));
    }
    std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {} as UTF-8 text", path.display()))
}

/// The saved run at `base`, checked to be over the same tokens.
fn compare(
    base: &Path,
    vocab: usize,
    ctx: usize,
    ids: &[u32],
) -> Result<KlComparison<BufReader<File>>> {
    let opened = File::open(base).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (length, file) = opened.with_context(|| format!("cannot open {}", base.display()))?;
    let reader = KlReader::new(BufReader::with_capacity(1 << 20, file), length);
    let comparison = reader.and_then(|reader| KlComparison::new(reader, vocab, ctx, ids));
    comparison.with_context(|| format!("cannot compare with {}", base.display()))
}

/// A file of log-probabilities under way: it gets its name when it is whole, and dropped before
/// that it leaves nothing behind.
struct Saved {
    writer: KlWriter<BufWriter<File>>,
    part: Part,
    path: PathBuf,
}

struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // After the rename there is nothing under this name, and before it nothing can be done.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Saved {
    fn create(path: &Path, vocab: usize, ctx: usize, ids: &[u32]) -> Result<Saved> {
        let mut part = path.as_os_str().to_owned();
        part.push(format!(".{}.part", std::process::id()));
        let part = Part(PathBuf::from(part));
        let file = File::create_new(&part.0)
            .with_context(|| format!("cannot create {}", part.0.display()))?;
        let header = KlHeader::new(KlStorage::F16, vocab, ctx, ids)?;
        let writer = KlWriter::new(BufWriter::with_capacity(1 << 20, file), &header)?;
        Ok(Saved {
            writer,
            part,
            path: path.to_owned(),
        })
    }

    fn finish(self) -> Result<()> {
        self.writer.finish()?;
        std::fs::rename(&self.part.0, &self.path)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

impl From<KlStats> for Kl {
    fn from(s: KlStats) -> Kl {
        let KlStats {
            mean,
            median,
            p99,
            max,
            same_top,
            tokens,
        } = s;
        Kl {
            mean,
            median,
            p99,
            max,
            same_top,
            tokens,
        }
    }
}

fn describe(r: &Report) -> String {
    let mut text = format!(
        "perplexity {:.4} +/- {:.5} over {} tokens in {} chunks of {}",
        r.perplexity, r.stderr, r.tokens_scored, r.chunks, r.ctx
    );
    if let Some(kl) = &r.kl {
        text.push_str(&format!(
            "\nKL divergence: mean {:.6}, median {:.6}, 99th percentile {:.6}; same likeliest token {:.2} %",
            kl.mean,
            kl.median,
            kl.p99,
            kl.same_top * 100.0
        ));
    }
    text
}
