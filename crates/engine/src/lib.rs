//! Floor 4: sampling, sessions, scoring.
//!
//! Knows how tokens follow one another: which part of a prefix is cached, how a row of logits
//! becomes a token, when an answer ends, how likely a given text is. Must not know HTTP, files of
//! models, prompts' templates, or what happens inside the forward pass.
//!
//! - [`Session`]: takes the full token prefix each time, reuses what its cache holds;
//!   [`Session::generate`] answers a prompt.
//! - [`Scheduler`]: many requests at once, on a thread of its own; what they have in common is read
//!   once.
//! - [`Spill`]: a folder for what was read and memory has no room for; its files are
//!   [`block_file`]'s.
//! - [`Sampler`] with [`SamplerParams`]: llama.cpp's chain; its steps stand in [`filters`],
//!   [`dry`] and [`mirostat`], its randomness in [`random`].
//! - `speculate`, `lookup`, `helper` and `pace`: tokens guessed ahead, by a look-up or a smaller
//!   model, where it pays; they change an answer's time and never its text.
//! - [`score()`], [`perplexity()`], [`KlWriter`], [`KlComparison`]: log-probabilities of given
//!   tokens and what is made of them.

mod answer;
pub mod block_file;
mod channel;
pub mod dry;
mod entry;
mod error;
mod fetch;
pub mod filters;
mod generate;
mod helper;
mod kl;
mod line;
mod lookup;
pub mod mirostat;
mod pace;
mod params;
mod perplexity;
mod prefix;
pub mod random;
mod request;
mod root;
pub mod sampler;
mod scan;
mod scheduler;
mod score;
mod session;
mod speculate;
mod spill;
mod steps;
mod stop;

pub use error::Error;
pub use generate::{Event, FinishReason, GenerateParams, Generation, Timings, Usage};
pub use kl::{KlComparison, KlHeader, KlReader, KlRow, KlStats, KlStorage, KlWriter};
pub use params::{SamplerParams, eog_from_generation_config};
pub use perplexity::{Perplexity, PerplexityParams, ScoredRow, perplexity, scored_per_chunk};
pub use request::{Cancel, Pooling, Replies, Request, Start, Update, Want};
pub use root::{Miss, Root, Why};
pub use sampler::Sampler;
pub use scheduler::{
    Beside, DraftModel, GAPS, Gaps, KeptIn, Promise, Scheduler, SchedulerParams, Stats,
};
pub use score::{LogSoftmax, OnRow, ScoreOptions, TokenLogprob, score, score_with, top_logprobs};
pub use session::{Adaptation, Advance, Flow, Progress, Session};
pub use speculate::{Drafter, Drafts, Speculation};
pub use spill::Spill;
pub use stop::StopStrings;
