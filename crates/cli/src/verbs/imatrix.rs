//! `puna imatrix`: how much each column of each weight matrix matters, over a text.

use std::path::Path;

use anyhow::{Context, Result};
use engine::{Flow, ScoreOptions, score_with};
use model::quantize::Collector;
use serde::Serialize;
use text::Special;

use crate::args::ImatrixArgs;
use crate::exit::{Code, failure, usage};
use crate::{interrupt, load, out};

/// The protocol's chunk, as in llama-imatrix.
const CTX: usize = 512;

#[derive(Serialize)]
struct Report {
    model: String,
    out: String,
    tensors: usize,
    chunks: usize,
    ctx: usize,
}

pub fn run(args: &ImatrixArgs) -> Result<()> {
    let ctx = args.load.ctx.unwrap_or(CTX);
    if ctx < 2 {
        return Err(usage(format!("--ctx {ctx} is no text"), "512 is usual"));
    }
    let text = std::fs::read_to_string(&args.text)
        .with_context(|| format!("cannot read {} as UTF-8 text", args.text.display()))?;
    let loaded = load::weights(Some(&args.model), &args.load)?;
    let tokenizer = load::tokenizer_of(&loaded.path)?;
    let ids = tokenizer.encode_prompt(&text, Special::Text)?;
    let chunks = (ids.len() / ctx).min(args.chunks.unwrap_or(usize::MAX));
    if chunks == 0 {
        let what = format!(
            "{} has {} tokens; one chunk of {ctx} is needed",
            args.text.display(),
            ids.len()
        );
        let hint = "give a longer text, or a smaller --ctx";
        return Err(failure(Code::Failed, what, hint));
    }
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let mut collector = Collector::new(args.process_output);
    let mut session = load::session(&loaded, Some(ctx))?;
    let work = || -> Result<()> {
        for (done, chunk) in ids.chunks_exact(ctx).take(chunks).enumerate() {
            let mut chunk = chunk.to_vec();
            if let Some(bos) = bos {
                chunk[0] = bos;
            }
            // The head counts with every token, or is not run at all but for the last.
            let from = if args.process_output { 0 } else { ctx - 1 };
            let options = ScoreOptions { chunk: None, from };
            let mut next = |_: usize, _: &[f32]| Ok(Flow::Continue);
            score_with(&mut session, &chunk, options, &mut collector, &mut next)?;
            collector.chunks = (done as u32 + 1, ctx as u32);
            out::note(&format!("{}/{chunks}", done + 1));
            if interrupt::asked() {
                break;
            }
        }
        Ok(())
    };
    let (result, stopped) = interrupt::listen(work);
    result?;
    if stopped {
        return Err(failure(Code::Interrupted, "interrupted", ""));
    }
    let old = args.out.extension().is_some_and(|e| e == "dat");
    let name = args.text.file_name().unwrap_or(args.text.as_os_str());
    collector.write(&args.out, &name.to_string_lossy(), old)?;
    let report = Report {
        model: loaded.name,
        out: shown(&args.out),
        tensors: collector.len(),
        chunks,
        ctx,
    };
    out::print(args.format.format, &report, || {
        format!(
            "{}: {} tensors over {} chunks of {} tokens",
            report.out, report.tensors, report.chunks, report.ctx
        )
    })
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
