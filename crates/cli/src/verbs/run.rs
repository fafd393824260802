//! `puna run`: one streamed answer, or a conversation on a terminal.

use std::io::IsTerminal;

use anyhow::Result;
use engine::{FinishReason, GenerateParams, Generation, Session};
use serde_json::{Value, json};
use text::{Special, Tokenizer, chat};

use super::words::{self, Prompt};
use super::{answer, repl, sampling};
use crate::args::{Format, RunArgs};
use crate::exit::{Code, failure, usage};
use crate::load::{self, Loaded};

pub fn run(args: &RunArgs) -> Result<()> {
    crate::adapt::check(&args.load)?;
    // What is wrong with the options is said before a model is fetched.
    sampling::params(&args.sampling, None)?;
    let hub = load::hub(args.load.net);
    let words = words::sort(args.model.as_deref(), &args.words, |w| match &hub {
        Ok(hub) => hub.is_model_word(w),
        Err(_) => std::path::Path::new(w).exists(),
    });
    let model = words.model.as_deref();
    match words.prompt {
        Prompt::UnknownName(name) => Err(unknown(&hub?, &name)),
        Prompt::Words(words) => {
            let stdin = match words.iter().any(|w| w == "-") {
                true => piped()?,
                false => String::new(),
            };
            once(args, model, &words::join(&words, &stdin))
        }
        Prompt::Stdin if std::io::stdin().is_terminal() => {
            for (given, what) in [
                (args.format.format == Format::Json, "--format json"),
                (args.raw, "--raw"),
                (args.suffix.is_some(), "--suffix"),
                (args.logprobs.is_some(), "--logprobs"),
            ] {
                if given {
                    let what = format!("{what} needs a prompt: it is not for conversations");
                    return Err(usage(
                        what,
                        "put the prompt behind the options, or pipe it in",
                    ));
                }
            }
            repl::run(args, model)
        }
        Prompt::Stdin => once(args, model, &piped()?),
    }
}

/// A single word that names no model: what the hub says, and how to send it as a prompt.
fn unknown(hub: &hub::Hub, name: &str) -> anyhow::Error {
    match hub.resolve(name, &mut ()) {
        Err(error) if error.is_not_found() => failure(
            Code::NotFound,
            error.to_string(),
            format!(
                "`puna list` shows what is here, the catalogue has {}; as a prompt: puna run -m MODEL {name}",
                catalogue_names()
            ),
        ),
        Err(error) => error.into(),
        Ok(found) => failure(
            Code::NotFound,
            format!("{name:?} is no model by itself"),
            format!("as a model: puna run -m {}", found.source),
        ),
    }
}

fn catalogue_names() -> String {
    let names: Vec<&str> = hub::catalogue().iter().map(|entry| entry.name).collect();
    names.join(", ")
}

/// stdin, without the newline that `echo` puts behind it.
fn piped() -> Result<String> {
    let mut text = crate::input::stdin()?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// One prompt, one answer.
fn once(args: &RunArgs, model: Option<&str>, prompt: &str) -> Result<()> {
    // A gap at the very beginning has no prompt; spaces alone are a prompt only for a bare model.
    let nothing = match args.raw {
        true => prompt.is_empty(),
        false => prompt.trim().is_empty(),
    };
    let empty = || {
        let hint = "give a prompt, as in: puna run \"What is the capital of France?\"";
        Err(usage("the prompt is empty", hint))
    };
    let nothing = nothing && args.suffix.is_none();
    // Nothing is fetched for an empty prompt; a MODEL that was named is looked at first.
    if nothing && model.is_none() {
        return empty();
    }
    let (loaded, tokenizer) = load::weights_and_tokenizer(model, &args.load)?;
    if nothing {
        return empty();
    }
    let args = &loaded.lower.under_run(args);
    let (ids, mut eog) = prompt_ids(args, &loaded, &tokenizer, prompt)?;
    let draft = args.draft.draft.as_deref();
    let mut session = load::session_with_draft(&loaded, &tokenizer, draft)?;
    let generation = load::generation_config(&loaded, sampling::any_set(&args.sampling))?;
    if let Some(config) = &generation {
        eog.extend(engine::eog_from_generation_config(config)?);
    }
    let params = GenerateParams {
        sampler: sampling::params(&args.sampling, generation.as_ref())?,
        max_tokens: args.max_tokens,
        stop: args.stop.clone(),
        logprobs: args.logprobs,
        speculate: args.draft.speculation()?,
        eog,
        ..GenerateParams::default()
    };
    let load_ms = loaded.began.elapsed().as_secs_f64() * 1e3;
    let made = match args.format.format {
        Format::Text => text_answer(&loaded, &mut session, &tokenizer, &ids, &params)?,
        Format::Json => {
            let made = answer::generate(&mut session, &tokenizer, &ids, &params, &mut |_| Ok(()))?;
            let mut report = report(&made, &ids);
            report["model"] = json!(loaded.name);
            report["context"] = json!(session.context());
            report["seed"] = json!(params.sampler.seed);
            report["timings"]["load_ms"] = json!(load_ms);
            crate::out::json(&report)?;
            made
        }
    };
    match made.finish_reason {
        FinishReason::Cancelled => Err(failure(Code::Interrupted, "", "")),
        _ => Ok(()),
    }
}

/// The prompt's ids, and further ids that end the answer.
fn prompt_ids(
    args: &RunArgs,
    loaded: &Loaded,
    tokenizer: &Tokenizer,
    prompt: &str,
) -> Result<(Vec<u32>, Vec<u32>)> {
    if let Some(suffix) = &args.suffix {
        let gap = text::gap(tokenizer, prompt, suffix, &[])?;
        return Ok((gap.ids, gap.eog));
    }
    if args.raw {
        // The text is the model's whole input: marks of a template written by hand are meant.
        return Ok((tokenizer.encode_prompt(prompt, Special::Parse)?, Vec::new()));
    }
    let template = loaded.lower.template(args.template.as_deref());
    let template = load::template_of(&loaded.path, tokenizer, template.as_ref())?;
    let system = args.system.iter().map(|text| chat::system(text.as_str()));
    let turns = loaded.lower.turns.iter().cloned();
    let messages: Vec<Value> = system.chain(turns).chain([chat::user(prompt)]).collect();
    Ok((
        template.encode(tokenizer, &messages, &load::render_options())?,
        Vec::new(),
    ))
}

/// Streams the answer to stdout; the context's size and what else is to be said go to stderr.
fn text_answer(
    loaded: &Loaded,
    session: &mut Session,
    tokenizer: &Tokenizer,
    ids: &[u32],
    params: &GenerateParams,
) -> Result<Generation> {
    crate::out::note(&format!(
        "{}, context {} tokens",
        loaded.name,
        session.context()
    ));
    let mut shown = crate::wrap::Answer::new();
    let made = answer::generate(session, tokenizer, ids, params, &mut |text| {
        shown.push(text)
    })?;
    shown.finish()?;
    if !made.text.ends_with('\n') {
        crate::out::raw(b"\n")?;
    }
    for token in made.logprobs.iter().flatten() {
        let piece =
            |id| String::from_utf8_lossy(&tokenizer.piece(id).unwrap_or_default()).into_owned();
        let rivals: Vec<String> = token
            .top
            .iter()
            .map(|(id, logprob)| format!("{:?} {logprob:.3}", piece(*id)))
            .collect();
        let (id, logprob) = (token.id, token.logprob);
        crate::out::line(&format!(
            "{id}\t{:?}\t{logprob:.3}\t{}",
            piece(id),
            rivals.join(", ")
        ))?;
    }
    if made.context_full {
        tracing::warn!(
            "the answer ends here because the context of {} tokens is full (--ctx N for more)",
            session.context()
        );
    }
    Ok(made)
}

/// The contract's object, but for what the engine does not know.
fn report(made: &Generation, prompt: &[u32]) -> Value {
    let t = &made.timings;
    let mut report = json!({
        "model": null,
        "text": made.text,
        "ids": made.ids,
        "prompt_ids": prompt,
        "finish_reason": made.finish_reason.name(),
        "usage": {
            "prompt_tokens": made.usage.prompt_tokens,
            "completion_tokens": made.usage.completion_tokens,
            "cached_tokens": made.usage.cached_tokens,
        },
        "timings": {
            "load_ms": null,
            "prompt_ms": t.prompt_ms,
            "first_token_ms": t.first_token_ms,
            "decode_ms": t.decode_ms,
            "prompt_per_second": t.prompt_per_second,
            "decode_per_second": t.decode_per_second,
            "drafted_tokens": made.drafts.drafted,
            "accepted_tokens": made.drafts.accepted,
        },
    });
    if let Some(list) = &made.logprobs {
        let list = list
            .iter()
            .map(|token| json!({ "id": token.id, "logprob": token.logprob, "top": token.top }));
        report["logprobs"] = list.collect();
    }
    report
}
