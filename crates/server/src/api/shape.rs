//! Answers in their three shapes, whole and in chunks: OpenAI's messages, OpenAI's texts, and
//! llama.cpp's own.

use std::sync::Arc;

use engine::{FinishReason, Generation, Start, TokenLogprob};
use serde_json::{Value, json};
use text::Tokenizer;

use super::Model;
use super::ask::{Given, Used};

/// Whose shape an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Text,
    /// `/infill`
    Native,
}

/// A prompt that is repeated before its answers.
#[derive(Debug, Default)]
pub(crate) struct Echo {
    pub(crate) text: String,
    /// Its tokens, each with how likely it was; nothing foretells the first of all.
    pub(crate) tokens: Vec<(u32, Option<TokenLogprob>)>,
}

/// What all parts of one answer say.
#[derive(Clone)]
pub(crate) struct Shape {
    pub(crate) form: Form,
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    /// Every chunk has a usage, null in all but the last.
    pub(crate) usage: bool,
    /// Answers to each prompt.
    pub(crate) n: usize,
    /// Of each prompt, if they are asked for.
    pub(crate) echo: Arc<[Echo]>,
}

impl Shape {
    fn frame(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "system_fingerprint": concat!("puna-", env!("CARGO_PKG_VERSION")), "choices": choices,
        })
    }

    /// One chunk of a stream.
    fn chunk(&self, choices: Value, usage: Value) -> Value {
        let object = match self.form {
            Form::Chat => "chat.completion.chunk",
            _ => "text_completion",
        };
        let mut chunk = self.frame(object, choices);
        if self.usage {
            chunk["usage"] = usage;
        }
        chunk
    }

    /// What comes before the first token of a choice: in a conversation who speaks, and a prompt
    /// that is to be repeated. `offset`: set to the characters of its tokens.
    pub(crate) fn first(
        &self,
        index: usize,
        tokenizer: &Tokenizer,
        offset: &mut usize,
    ) -> Option<Value> {
        if self.form == Form::Chat {
            let delta = json!({ "role": "assistant", "content": "" });
            let choice =
                json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null });
            return Some(self.chunk(json!([choice]), Value::Null));
        }
        let echo = self.echo.get(index / self.n)?;
        let list = match echo.tokens.is_empty() {
            true => Value::Null,
            false => texts(tokenizer, echo.listed(), offset),
        };
        Some(self.more(index, &echo.text, list))
    }

    /// Some more text.
    pub(crate) fn more(&self, index: usize, text: &str, logprobs: Value) -> Value {
        let choice = match self.form {
            Form::Chat => json!({
                "index": index, "delta": { "content": text }, "logprobs": logprobs, "finish_reason": null,
            }),
            Form::Text => json!({
                "index": index, "text": text, "logprobs": logprobs, "finish_reason": null,
            }),
            Form::Native => return json!({ "index": index, "content": text, "stop": false }),
        };
        self.chunk(json!([choice]), Value::Null)
    }

    /// What [`Shape::more`] writes before and after a text of this choice that has no
    /// log-probabilities: only the text differs from one token to the next.
    pub(crate) fn around(&self, index: usize) -> (String, String) {
        // Nobody can have put it into another field, for nobody knows it yet.
        let mark = crate::random_hex::<16>();
        let whole = self.more(index, &mark, Value::Null).to_string();
        let parts = whole.split_once(&format!("\"{mark}\""));
        let (before, after) = parts.unwrap_or_default();
        (before.to_owned(), after.to_owned())
    }

    /// The last chunk of a choice.
    pub(crate) fn last(
        &self,
        index: usize,
        model: &Model,
        g: &Generation,
        start: Option<Start>,
    ) -> Value {
        let why = reason(g.finish_reason);
        let choice = match self.form {
            Form::Chat => {
                json!({ "index": index, "delta": {}, "logprobs": null, "finish_reason": why })
            }
            Form::Text => {
                json!({ "index": index, "text": "", "logprobs": null, "finish_reason": why })
            }
            Form::Native => return self.native(index, model, g, "", start),
        };
        let mut chunk = self.chunk(json!([choice]), Value::Null);
        chunk["timings"] = timings(g, start);
        chunk
    }

    /// The chunk after all choices.
    pub(crate) fn used(&self, used: &Used) -> Option<Value> {
        self.usage.then(|| self.chunk(json!([]), used.json()))
    }

    /// What ends a stream, after everything else.
    pub(crate) fn done(&self) -> Option<&'static str> {
        (self.form != Form::Native).then_some("[DONE]")
    }

    /// Everything at once.
    pub(crate) fn whole(&self, given: &[Given], used: &Used, model: &Model) -> Value {
        if let (Form::Native, [one]) = (self.form, given) {
            let g = &one.generation;
            return self.native(0, model, g, &g.text, one.start);
        }
        let choices = given.iter().enumerate();
        let choices = choices.map(|(index, given)| self.choice(index, given, model));
        let object = match self.form {
            Form::Chat => "chat.completion",
            _ => "text_completion",
        };
        let mut answer = self.frame(object, choices.collect());
        answer["usage"] = used.json();
        if let [one] = given {
            answer["timings"] = timings(&one.generation, one.start);
        }
        answer
    }

    /// One answer of several.
    fn choice(&self, index: usize, given: &Given, model: &Model) -> Value {
        let (g, tokenizer) = (&given.generation, model.tokenizer());
        let said = g.logprobs.as_deref();
        let said = said.map(|list| list.iter().filter(|l| !model.ends(l.id)));
        let mut choice = json!({
            "index": index, "logprobs": null, "finish_reason": reason(g.finish_reason),
        });
        if self.form == Form::Chat {
            choice["logprobs"] = said.map_or(Value::Null, |list| messages(tokenizer, list));
            choice["message"] = json!({ "role": "assistant", "content": g.text, "refusal": null });
            return choice;
        }
        let echo = self.echo.get(index / self.n);
        let before = echo.map_or("", |e| &e.text);
        choice["text"] = json!(format!("{before}{}", g.text));
        if let Some(list) = said {
            let before = echo.into_iter().flat_map(Echo::listed);
            let list = before.chain(list.map(|l| (l.id, Some(l))));
            choice["logprobs"] = texts(tokenizer, list, &mut 0);
        }
        choice
    }

    /// An answer, or the end of one, as llama.cpp's own routes have it.
    fn native(
        &self,
        index: usize,
        model: &Model,
        g: &Generation,
        text: &str,
        start: Option<Start>,
    ) -> Value {
        let ended = g.ids.last().is_some_and(|id| model.ends(*id));
        let why = match g.finish_reason {
            FinishReason::Length => "limit",
            _ if ended => "eos",
            _ => "word",
        };
        json!({
            "index": index, "content": text, "stop": true, "model": self.model, "stop_type": why,
            "tokens_predicted": g.ids.len(), "tokens_evaluated": g.usage.prompt_tokens,
            "tokens_cached": start.map_or(0, |s| s.cached), "truncated": false,
            "timings": timings(g, start),
        })
    }

    /// How likely some more tokens were. `offset`: characters of the tokens before them.
    pub(crate) fn logprobs(
        &self,
        tokenizer: &Tokenizer,
        one: &TokenLogprob,
        offset: &mut usize,
    ) -> Value {
        let list = std::iter::once(one);
        match self.form {
            Form::Chat => messages(tokenizer, list),
            _ => texts(tokenizer, list.map(|l| (l.id, Some(l))), offset),
        }
    }
}

impl Echo {
    fn listed(&self) -> impl Iterator<Item = (u32, Option<&TokenLogprob>)> {
        self.tokens.iter().map(|(id, l)| (*id, l.as_ref()))
    }
}

/// JSON has no minus infinity.
fn finite(logprob: f64) -> f64 {
    logprob.max(-9999.0)
}

/// Log-probabilities as conversations have them.
fn messages<'l>(tokenizer: &Tokenizer, list: impl Iterator<Item = &'l TokenLogprob>) -> Value {
    let one = |id: u32, logprob: f64| {
        let bytes = tokenizer.piece(id).unwrap_or_default();
        let token = String::from_utf8_lossy(&bytes);
        json!({ "token": token, "logprob": finite(logprob), "bytes": bytes })
    };
    let content = list.map(|l| {
        let mut token = one(l.id, l.logprob);
        token["top_logprobs"] = l.top.iter().map(|(id, p)| one(*id, *p)).collect();
        token
    });
    json!({ "content": content.collect::<Value>(), "refusal": null })
}

/// Log-probabilities as texts have them.
fn texts<'l>(
    tokenizer: &Tokenizer,
    list: impl Iterator<Item = (u32, Option<&'l TokenLogprob>)>,
    offset: &mut usize,
) -> Value {
    let text = |id| String::from_utf8_lossy(&tokenizer.piece(id).unwrap_or_default()).into_owned();
    let mut all =
        json!({ "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [] });
    let mut put = |name: &str, value: Value| {
        if let Value::Array(list) = &mut all[name] {
            list.push(value);
        }
    };
    for (id, logprob) in list {
        let token = text(id);
        put("text_offset", json!(*offset));
        *offset += token.chars().count();
        put("tokens", json!(token));
        put("token_logprobs", json!(logprob.map(|l| finite(l.logprob))));
        let rivals = |l: &TokenLogprob| {
            let pairs = l.top.iter().map(|(id, p)| (text(*id), json!(finite(*p))));
            Value::Object(pairs.collect())
        };
        put("top_logprobs", logprob.map_or(Value::Null, rivals));
    }
    all
}

/// Where the time went, in llama.cpp's words.
fn timings(g: &Generation, start: Option<Start>) -> Value {
    let (t, cached) = (&g.timings, start.map_or(0, |s| s.cached));
    let (read, made) = (g.usage.prompt_tokens.saturating_sub(cached), g.ids.len());
    let each = |ms: f64, n: usize| if n > 0 { ms / n as f64 } else { 0.0 };
    json!({
        "cache_n": cached, "prompt_n": read, "prompt_ms": t.prompt_ms,
        "prompt_per_token_ms": each(t.prompt_ms, read), "prompt_per_second": t.prompt_per_second,
        "predicted_n": made, "predicted_ms": t.decode_ms,
        "predicted_per_token_ms": each(t.decode_ms, made), "predicted_per_second": t.decode_per_second,
    })
}

fn reason(why: FinishReason) -> &'static str {
    match why {
        FinishReason::Length => "length",
        FinishReason::Stop | FinishReason::Cancelled => "stop",
    }
}
