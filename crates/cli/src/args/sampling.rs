//! How tokens are chosen: the samplers, and the guessing ahead that changes nothing but time.

use anyhow::Result;
use clap::Args;
use engine::{Drafter, Speculation};

use crate::exit::usage;

/// The samplers. Unset ones take the model's generation_config, else the default shown.
#[derive(Args, Debug, Clone, Default, PartialEq)]
#[command(next_help_heading = "Sampling (a model's generation_config.json may change defaults)")]
pub struct SamplingArgs {
    /// 0: always the likeliest token [default: 0.8]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Keep the K likeliest; 0: all [default: 40]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub top_k: Option<i32>,
    /// Keep the likeliest that together have probability P [default: 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Keep those at least P times as likely as the likeliest [default: 0.05]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Locally typical sampling; 1: off [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub typical_p: Option<f32>,
    /// Keep logits within N standard deviations of the best; -1: off [default: -1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub top_n_sigma: Option<f32>,
    /// Divide the logits of recent tokens; 1: off [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub repeat_penalty: Option<f32>,
    /// How many recent tokens the penalties see; 0: none, -1: the context [default: 64]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub repeat_last_n: Option<i32>,
    /// Subtracted from the logit of a recent token [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Subtracted once for each time that a recent token occurs [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// DRY, against repeated sequences: strength; 0: off [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub dry_multiplier: Option<f32>,
    /// DRY: growth with the length of the repetition [default: 1.75]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub dry_base: Option<f32>,
    /// DRY: longest repetition without a penalty [default: 2]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub dry_allowed_length: Option<usize>,
    /// DRY: how many recent tokens it sees; 0: off, -1: the context [default: 64]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub dry_penalty_last_n: Option<i32>,
    /// XTC, leaving out the likeliest: how often; 0: off [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub xtc_probability: Option<f32>,
    /// XTC: tokens above this probability are candidates [default: 0.1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub xtc_threshold: Option<f32>,
    /// Dynamic temperature: temperature plus or minus this, by entropy; 0: off [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub dynatemp_range: Option<f32>,
    /// Dynamic temperature: exponent of the entropy [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub dynatemp_exponent: Option<f32>,
    /// Mirostat: 0 off, 1 or 2 [default: 0]
    #[arg(long, value_name = "V", allow_negative_numbers = true)]
    pub mirostat: Option<u8>,
    /// Mirostat: target entropy [default: 5]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub mirostat_tau: Option<f32>,
    /// Mirostat: learning rate [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub mirostat_eta: Option<f32>,
    /// Random numbers' seed: same seed, same answer [default: random]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Add B to the logit of token ID (repeatable); `-inf` forbids it
    #[arg(long, value_name = "ID:B", value_parser = bias)]
    pub logit_bias: Vec<(u32, f32)>,
}

/// Guessing tokens ahead.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Guessing ahead (the same answer in less time)")]
pub struct DraftArgs {
    /// Guess tokens ahead where it pays: auto, off, ngram (quotes of the text so far), draft (only
    /// with --draft), or a number: at most as many at a time [default: 8]
    #[arg(long, value_name = "HOW", value_parser = speculate)]
    pub speculate: Option<Speculation>,
    /// A smaller model with the same vocabulary, to guess beside what the text itself suggests
    #[arg(long, value_name = "MODEL")]
    pub draft: Option<String>,
}

impl DraftArgs {
    /// As the engine takes it.
    pub fn speculation(&self) -> Result<Speculation> {
        let speculation = self.speculate.unwrap_or(USUAL);
        match speculation.by == Drafter::Model && self.draft.is_none() {
            true => Err(usage(
                "--speculate draft needs a draft model",
                "name one with --draft",
            )),
            false => Ok(speculation),
        }
    }

    /// Sets what is not set as it is in `below`.
    pub fn fill(&mut self, below: &DraftArgs) {
        self.draft = self.draft.take().or_else(|| below.draft.clone());
        self.speculate = self.speculate.or(below.speculate);
    }
}

const USUAL: Speculation = Speculation {
    most: Speculation::MOST,
    by: Drafter::Any,
    always: false,
};

fn speculate(text: &str) -> Result<Speculation, String> {
    if let Some(named) = USUAL.named(text) {
        return Ok(named);
    }
    let most: usize = text.parse().map_err(|_| {
        format!(
            "the choices are {}, or a number",
            Speculation::NAMES.join(", ")
        )
    })?;
    // More rows are no cheaper than passes of their own, and take memory.
    let most = most.min(64);
    Ok(Speculation { most, ..USUAL })
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let (id, b) = text
        .split_once(':')
        .ok_or("the form is ID:B, such as 42:-1.5")?;
    let id = id
        .parse()
        .map_err(|_| format!("{id:?} is not a token id"))?;
    let b: f32 = b.parse().map_err(|_| format!("{b:?} is not a number"))?;
    if b.is_nan() {
        return Err("the bias is not a number".into());
    }
    Ok((id, b))
}
