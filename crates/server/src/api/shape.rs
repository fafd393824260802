//! Answers in OpenAI's two shapes: messages and texts, whole and in chunks.

use engine::{FinishReason, TokenLogprob};
use serde_json::{Value, json};
use text::Tokenizer;

use super::ask::{Given, Used};

/// What all parts of one answer say.
#[derive(Clone)]
pub(crate) struct Shape {
    /// A conversation, or a text.
    pub(crate) chat: bool,
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    /// Every chunk has a usage, null in all but the last.
    pub(crate) usage: bool,
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
        let object = if self.chat {
            "chat.completion.chunk"
        } else {
            "text_completion"
        };
        let mut chunk = self.frame(object, choices);
        if self.usage {
            chunk["usage"] = usage;
        }
        chunk
    }

    /// The first chunk of a choice in a conversation says who speaks.
    pub(crate) fn first(&self, index: usize) -> Option<Value> {
        let delta = json!({ "role": "assistant", "content": "" });
        let choice =
            json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null });
        self.chat.then(|| self.chunk(json!([choice]), Value::Null))
    }

    /// Some more text.
    pub(crate) fn more(&self, index: usize, text: &str, logprobs: Value) -> Value {
        let choice = match self.chat {
            true => json!({
                "index": index, "delta": { "content": text }, "logprobs": logprobs, "finish_reason": null,
            }),
            false => json!({
                "index": index, "text": text, "logprobs": logprobs, "finish_reason": null,
            }),
        };
        self.chunk(json!([choice]), Value::Null)
    }

    /// The last chunk of a choice.
    pub(crate) fn last(&self, index: usize, why: FinishReason) -> Value {
        let why = reason(why);
        let choice = match self.chat {
            true => json!({ "index": index, "delta": {}, "logprobs": null, "finish_reason": why }),
            false => json!({ "index": index, "text": "", "logprobs": null, "finish_reason": why }),
        };
        self.chunk(json!([choice]), Value::Null)
    }

    /// The chunk after all choices.
    pub(crate) fn used(&self, used: &Used) -> Value {
        self.chunk(json!([]), used.json())
    }

    /// Everything at once.
    pub(crate) fn whole(
        &self,
        given: &[Given],
        used: &Used,
        tokenizer: &Tokenizer,
        eog: &dyn Fn(u32) -> bool,
    ) -> Value {
        let choices = given.iter().enumerate().map(|(index, given)| {
            let g = &given.generation;
            let list = g.logprobs.as_deref().map(|list| {
                let list: Vec<&TokenLogprob> = list.iter().filter(|l| !eog(l.id)).collect();
                self.logprobs(tokenizer, &list, &mut 0)
            });
            let mut choice = json!({
                "index": index, "logprobs": list, "finish_reason": reason(g.finish_reason),
            });
            match self.chat {
                true => {
                    choice["message"] =
                        json!({ "role": "assistant", "content": g.text, "refusal": null });
                }
                false => choice["text"] = json!(g.text),
            }
            choice
        });
        let object = if self.chat {
            "chat.completion"
        } else {
            "text_completion"
        };
        let mut answer = self.frame(object, choices.collect());
        answer["usage"] = used.json();
        answer
    }

    /// Log-probabilities of tokens. `offset`: characters of the tokens before them.
    pub(crate) fn logprobs(
        &self,
        tokenizer: &Tokenizer,
        list: &[&TokenLogprob],
        offset: &mut usize,
    ) -> Value {
        let one = |id: u32, logprob: f64| {
            let bytes = tokenizer.piece(id).unwrap_or_default();
            // JSON has no minus infinity.
            let logprob = logprob.max(-9999.0);
            json!({ "token": String::from_utf8_lossy(&bytes), "logprob": logprob, "bytes": bytes })
        };
        if self.chat {
            let content = list.iter().map(|l| {
                let mut token = one(l.id, l.logprob);
                token["top_logprobs"] = l.top.iter().map(|(id, p)| one(*id, *p)).collect();
                token
            });
            return json!({ "content": content.collect::<Value>(), "refusal": null });
        }
        let text =
            |id| String::from_utf8_lossy(&tokenizer.piece(id).unwrap_or_default()).into_owned();
        let mut offsets = Vec::new();
        for l in list {
            offsets.push(*offset);
            *offset += text(l.id).chars().count();
        }
        let top = list.iter().map(|l| {
            let pairs = l
                .top
                .iter()
                .map(|(id, p)| (text(*id), json!(p.max(-9999.0))));
            Value::Object(pairs.collect())
        });
        json!({
            "tokens": list.iter().map(|l| text(l.id)).collect::<Vec<_>>(),
            "token_logprobs": list.iter().map(|l| l.logprob.max(-9999.0)).collect::<Vec<_>>(),
            "top_logprobs": top.collect::<Value>(),
            "text_offset": offsets,
        })
    }
}

fn reason(why: FinishReason) -> &'static str {
    match why {
        FinishReason::Length => "length",
        FinishReason::Stop | FinishReason::Cancelled => "stop",
    }
}
