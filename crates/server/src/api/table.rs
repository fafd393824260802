//! What a request for an answer may say, in one table: [`PARAMS`].
//!
//! Each name is honoured, accepted because it cannot change the answer, or refused by name.

use engine::SamplerParams;
use serde_json::Value;

use super::values::*;

/// Which routes know a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/infill`
    Infill,
    /// Those for conversations and texts.
    Both,
    /// All of them.
    All,
}

impl On {
    pub(crate) fn knows(self, route: On) -> bool {
        match self {
            On::All => true,
            On::Both => route != On::Infill,
            one => one == route,
        }
    }

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            On::Chat => "chat",
            On::Completions => "completions",
            On::Infill => "infill",
            On::Both => "chat, completions",
            On::All => "all",
        }
    }
}

/// Takes a value into the sampler's parameters; `None`: it is of the wrong kind.
type Set = fn(&mut SamplerParams, &Value) -> Option<()>;

/// What becomes of a name.
#[derive(Clone, Copy)]
pub enum Treat {
    /// It shapes the answer, by code of its own.
    Honoured,
    /// It is a parameter of the sampler.
    Sampler(Set),
    /// It cannot change the answer.
    Accepted,
    /// It would change the answer, and is not done, except for values that change nothing.
    Refused(fn(&Value) -> bool),
}

use On::{All, Both, Chat, Completions, Infill};
use Treat::{Accepted, Honoured, Refused, Sampler};

/// A parameter of the sampler, by its own name.
macro_rules! sampler {
    ($field:ident, $kind:ident, $about:literal) => {
        (
            stringify!($field),
            All,
            Sampler(|p, v| put(&mut p.$field, $kind(v))),
            $about,
        )
    };
}

pub(super) const PRIORITY: &str = "-100 to 100: of those who wait, higher goes first, and who waits long rises [default: 0]; where keys are demanded, above 0 takes the scope admin";
pub(super) const TIMEOUT: &str = "After so many milliseconds the request ends with status 408, or, in a stream, with an error [default: never]";

/// A line of [`PARAMS`]: name, routes, what becomes of it, and that for people.
pub type Param = (&'static str, On, Treat, &'static str);

/// Every name there is.
pub const PARAMS: &[Param] = &[
    (
        "model",
        All,
        Honoured,
        "The model's name; left out: the only one, or with --on-demand the first",
    ),
    (
        "keep_alive",
        All,
        Honoured,
        "How long the model stays loaded afterwards, with --on-demand: seconds, or a time like `5m`; 0: not at all, -1: for ever; where keys are demanded it counts with the scope admin only",
    ),
    (
        "messages",
        Chat,
        Honoured,
        "The conversation: roles system, developer, user, assistant; text or parts of type text. A message's `name` is taken and not shown to the model: no template of Llama's reads it",
    ),
    (
        "prompt",
        Completions,
        Honoured,
        "A text, a list of texts, token ids, or a list of lists of token ids",
    ),
    (
        "suffix",
        Completions,
        Honoured,
        "What follows the gap that the answer is to fill; the model must have marks for that",
    ),
    ("echo", Completions, Honoured, "Repeat the prompt"),
    (
        "input_prefix",
        Infill,
        Honoured,
        "What stands before the gap",
    ),
    ("input_suffix", Infill, Honoured, "What stands behind it"),
    (
        "input_extra",
        Infill,
        Honoured,
        "Other files, as `filename` and `text`, the nearest last",
    ),
    (
        "prompt",
        Infill,
        Honoured,
        "What the gap begins with already",
    ),
    ("stream", All, Honoured, "Send the answer as it is made"),
    (
        "stream_options",
        Both,
        Honoured,
        "`include_usage`: a last chunk with the usage; `include_obfuscation` is not looked at",
    ),
    ("n", Both, Honoured, "Answers to each prompt, 1 to 16"),
    (
        "max_completion_tokens",
        Chat,
        Honoured,
        "Most tokens of an answer [default: what the context holds]",
    ),
    (
        "max_tokens",
        All,
        Honoured,
        "The same [default for completions: 16]",
    ),
    (
        "n_predict",
        All,
        Honoured,
        "llama.cpp's name for the same; -1: what the context holds",
    ),
    (
        "stop",
        All,
        Honoured,
        "Up to 16 strings that end the answer",
    ),
    (
        "logprobs",
        Both,
        Honoured,
        "chat: true or false; completions: how many rivals, 0 to 5",
    ),
    (
        "top_logprobs",
        Chat,
        Honoured,
        "Rivals of each token, 0 to 20",
    ),
    (
        "stop_token_ids",
        All,
        Honoured,
        "vLLM's; up to 64 token ids that end the answer as well",
    ),
    ("ignore_eos", All, Honoured, "Never end by a token"),
    ("priority", All, Honoured, PRIORITY),
    ("timeout_ms", All, Honoured, TIMEOUT),
    (
        "cache_scope",
        Chat,
        Honoured,
        "`key` [default]: cached beginnings are the key's own; `shared`: what stands before the first message that is none of the system's is shared with all keys that say so and send the same",
    ),
    (
        "cache_salt",
        All,
        Honoured,
        "Share cached beginnings with requests of the same salt only",
    ),
    (
        "speculative",
        All,
        Honoured,
        "Guess tokens ahead, which changes no answer: auto, off, ngram (from the text), draft",
    ),
    (
        "speculative.n_max",
        All,
        Honoured,
        "llama.cpp's; most tokens guessed at a time, 0 to 64",
    ),
    (
        "adapters",
        All,
        Honoured,
        "Adapters to use, as `id` and `scale` [default: none]",
    ),
    (
        "lora",
        All,
        Honoured,
        "llama.cpp's name for the same; `id` may be a number of `/lora-adapters`",
    ),
    sampler!(temperature, real, "0: always the most likely token"),
    sampler!(top_p, real, "The fewest tokens of this mass; 1: off"),
    sampler!(top_k, int, "The k most likely tokens; 0: off"),
    sampler!(min_p, real, "Tokens this likely, against the best; 0: off"),
    sampler!(
        typical_p,
        real,
        "Locally typical tokens of this mass; 1: off"
    ),
    sampler!(
        top_n_sigma,
        real,
        "Within n standard deviations of the best; -1: off"
    ),
    sampler!(min_keep, count, "Filters leave no fewer tokens"),
    sampler!(repeat_penalty, real, "Against recent tokens; 1: off"),
    (
        "repetition_penalty",
        All,
        Sampler(|p, v| put(&mut p.repeat_penalty, real(v))),
        "vLLM's name for the same",
    ),
    sampler!(repeat_last_n, int, "How many are recent; -1: all"),
    sampler!(presence_penalty, real, "Once for each recent token"),
    sampler!(frequency_penalty, real, "For each time that it occurs"),
    sampler!(dry_multiplier, real, "Strength of DRY; 0: off"),
    sampler!(dry_base, real, "Base of DRY"),
    sampler!(dry_allowed_length, count, "Repeats that DRY allows"),
    sampler!(dry_penalty_last_n, int, "How far DRY looks back; -1: all"),
    sampler!(dry_sequence_breakers, strings, "Strings that end a repeat"),
    sampler!(xtc_probability, real, "How often XTC acts; 0: off"),
    sampler!(xtc_threshold, real, "Likelihood that XTC looks for"),
    sampler!(dynatemp_range, real, "Dynamic temperature; 0: off"),
    sampler!(dynatemp_exponent, real, "Its shape"),
    sampler!(mirostat, small, "0: off; 1, 2: mirostat of that version"),
    sampler!(mirostat_tau, real, "Its target surprise"),
    sampler!(mirostat_eta, real, "Its learning rate"),
    (
        "seed",
        All,
        Sampler(seed),
        "The same seed gives the same answer [default, and -1: the server's, else drawn]",
    ),
    sampler!(
        logit_bias,
        biases,
        "Up to 1024 token ids with what is added to their logits, -10000 to 10000, as an object or as a list of pairs; llama.cpp's `false` bans a token"
    ),
    ("user", All, Accepted, "Not looked at"),
    ("safety_identifier", All, Accepted, "Not looked at"),
    ("metadata", Chat, Accepted, "Not kept"),
    ("service_tier", Chat, Accepted, "There is one tier"),
    (
        "prompt_cache_key",
        All,
        Accepted,
        "Beginnings are found by their tokens",
    ),
    (
        "prompt_cache_retention",
        Both,
        Accepted,
        "Beginnings stay while there is room",
    ),
    ("id_slot", All, Accepted, "There are no slots"),
    (
        "n_keep",
        All,
        Accepted,
        "llama.cpp's; contexts are never shifted",
    ),
    (
        "n_discard",
        All,
        Accepted,
        "llama.cpp's; contexts are never shifted",
    ),
    (
        "n_cache_reuse",
        All,
        Accepted,
        "llama.cpp's; only whole beginnings are shared",
    ),
    ("store", Chat, Accepted, "Answers are not stored"),
    (
        "cache_prompt",
        All,
        Accepted,
        "llama.cpp's; beginnings are always cached",
    ),
    ("parallel_tool_calls", Chat, Accepted, "There are no tools"),
    (
        "tools",
        Chat,
        Refused(is_empty),
        "Tool calls are not in this release",
    ),
    (
        "tool_choice",
        Chat,
        Refused(|v| *v == "none" || *v == "auto"),
        "Tool calls are not in this release",
    ),
    (
        "functions",
        Chat,
        Refused(is_empty),
        "Tool calls are not in this release",
    ),
    (
        "function_call",
        Chat,
        Refused(|v| *v == "none" || *v == "auto"),
        "Tool calls are not in this release",
    ),
    (
        "response_format",
        Chat,
        Refused(is_plain_text),
        "Constrained answers are not in this release; `text` is",
    ),
    (
        "grammar",
        Both,
        Refused(|v| *v == ""),
        "Constrained answers are not in this release",
    ),
    (
        "json_schema",
        Both,
        Refused(never),
        "Constrained answers are not in this release",
    ),
    (
        "modalities",
        Chat,
        Refused(|v| *v == serde_json::json!(["text"])),
        "Answers are text",
    ),
    ("audio", Chat, Refused(never), "Answers are text"),
    (
        "prediction",
        Chat,
        Refused(never),
        "Predicted outputs are not in this release",
    ),
    (
        "reasoning_effort",
        Chat,
        Refused(|v| *v == "none"),
        "There is no reasoning to set",
    ),
    (
        "verbosity",
        Chat,
        Refused(|v| *v == "medium"),
        "There is none to set",
    ),
    (
        "web_search_options",
        Chat,
        Refused(never),
        "There is no search",
    ),
    (
        "best_of",
        Completions,
        Refused(|v| *v == 1),
        "Ask for `n` and choose",
    ),
    (
        "n_probs",
        All,
        Refused(is_zero),
        "Ask for `logprobs`, where the route has them",
    ),
    (
        "samplers",
        All,
        Refused(is_empty),
        "llama.cpp's; samplers act in its usual order",
    ),
    (
        "adaptive_target",
        All,
        Refused(is_negative),
        "llama.cpp's adaptive-p is not in this release",
    ),
    (
        "t_max_predict_ms",
        All,
        Refused(|v| is_zero(v) || is_negative(v)),
        "llama.cpp's; an answer is not cut by the clock: `timeout_ms` ends a request",
    ),
    (
        "n_indent",
        All,
        Refused(is_zero),
        "llama.cpp's; lines are not looked at",
    ),
    (
        "bad_words",
        Both,
        Refused(is_empty),
        "vLLM's; `logit_bias` bans tokens",
    ),
    (
        "allowed_token_ids",
        Both,
        Refused(never),
        "vLLM's; `logit_bias` prefers tokens",
    ),
    (
        "use_beam_search",
        Both,
        Refused(is_false),
        "Answers are sampled",
    ),
    (
        "length_penalty",
        Both,
        Refused(|v| v.as_f64() == Some(1.0)),
        "vLLM's, of beams; answers are sampled",
    ),
    (
        "include_stop_str_in_output",
        Both,
        Refused(is_false),
        "vLLM's; what ends an answer is no part of it",
    ),
    (
        "skip_special_tokens",
        Both,
        Refused(is_true),
        "vLLM's; answers are texts without special tokens",
    ),
    (
        "prompt_logprobs",
        Both,
        Refused(never),
        "vLLM's; completions have `echo` with `logprobs`",
    ),
    (
        "min_tokens",
        All,
        Refused(is_zero),
        "Ends are not put off; `ignore_eos` ends by no token at all",
    ),
    (
        "structured_outputs",
        Both,
        Refused(never),
        "Constrained answers are not in this release",
    ),
    (
        "guided_json",
        Both,
        Refused(never),
        "Constrained answers are not in this release",
    ),
    (
        "guided_regex",
        Both,
        Refused(never),
        "Constrained answers are not in this release",
    ),
    (
        "guided_choice",
        Both,
        Refused(never),
        "Constrained answers are not in this release",
    ),
    (
        "guided_grammar",
        Both,
        Refused(never),
        "Constrained answers are not in this release",
    ),
    (
        "chat_template",
        Chat,
        Refused(never),
        "The template is the model's",
    ),
    (
        "chat_template_kwargs",
        Chat,
        Refused(|v| v.as_object().is_some_and(|o| o.is_empty())),
        "Templates get the conversation and nothing else",
    ),
    (
        "add_generation_prompt",
        Chat,
        Refused(is_true),
        "The assistant's turn is always opened",
    ),
    (
        "continue_final_message",
        Chat,
        Refused(is_false),
        "The assistant's turn is always a new one",
    ),
    (
        "truncate_prompt_tokens",
        Both,
        Refused(never),
        "Prompts are never cut",
    ),
];

/// The tables of docs/api.md.
#[must_use]
pub fn tables() -> String {
    type Is = fn(&Treat) -> bool;
    let kinds: [(&str, Is); 3] = [
        ("Honoured", |t| matches!(t, Honoured | Sampler(_))),
        ("Accepted, because they cannot change the answer", |t| {
            matches!(t, Accepted)
        }),
        (
            "Refused by name with status 400, where their value would change the answer",
            |t| matches!(t, Refused(_)),
        ),
    ];
    let mut text = String::new();
    for (title, of) in kinds {
        text += &format!("### {title}\n\n| name | routes | |\n|---|---|---|\n");
        for (name, on, treat, about) in PARAMS {
            if of(treat) {
                text += &format!("| `{name}` | {} | {about} |\n", on.name());
            }
        }
        text += "\n";
    }
    text
}
