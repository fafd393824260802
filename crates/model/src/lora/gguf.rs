//! Adapters in GGUF, as llama.cpp's `convert_lora_to_gguf.py` writes them: `general.type` is
//! `adapter`, `adapter.type` is `lora`, and the tensors are `<tensor of the base>.lora_a` and
//! `.lora_b`, rotary rows in the base's order. The embedding's A has one row a token.

use std::collections::BTreeMap;

use files::gguf::{Array, Gguf, Metadata, Value};

use super::{End, Found, Lora, parts, place_of};
use crate::adapter::Place;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::names::GGUF;

/// Keys under `adapter.` that say how the adapter is computed, or that change nothing.
const KEYS: [&str; 4] = [
    "adapter.type",
    "adapter.lora.alpha",
    // Names for people: llama.cpp reports them and does no more.
    "adapter.lora.task_name",
    "adapter.lora.prompt_prefix",
];

impl Lora {
    /// The adapter in a GGUF.
    ///
    /// # Errors
    /// It is no adapter, or one of another architecture, or has something that is not computed.
    pub fn from_gguf(gguf: &Gguf, base: &Config) -> Result<Lora> {
        let m = &gguf.metadata;
        check(m, base)?;
        let alpha = match m.get("adapter.lora.alpha") {
            None => 0.0,
            Some(value) => value.f64().filter(|a| a.is_finite()).ok_or_else(|| {
                Error::Config("`adapter.lora.alpha` is not a finite number".into())
            })?,
        };
        let mut found: BTreeMap<Place, Found<'_>> = BTreeMap::new();
        for t in &gguf.tensors {
            let ends = [(".weight.lora_a", End::A), (".weight.lora_b", End::B)];
            let known = ends.iter().find_map(|(end, which)| {
                let place = place_of(t.name.strip_suffix(end)?, &GGUF)?;
                Some((place, *which))
            });
            let Some((place, which)) = known else {
                return Err(Error::NotImplemented(format!(
                    "tensor `{}` of an adapter",
                    t.name
                )));
            };
            found.entry(place).or_default()[which as usize] = Some(t);
        }
        // Without an alpha the matrices are scaled already.
        let scale = |_, rank: usize| match alpha {
            0.0 => Ok(1.0),
            alpha => Ok(alpha / rank as f64),
        };
        Ok(Lora {
            parts: parts(found, base, &scale)?,
            copies: Vec::new(),
            layout: GGUF.rotary,
        })
    }
}

fn check(m: &Metadata, base: &Config) -> Result<()> {
    let words = [
        ("general.type", "adapter"),
        ("general.architecture", base.arch.name()),
        ("adapter.type", "lora"),
    ];
    for (key, wanted) in words {
        match m.str(key) {
            Some(word) if word == wanted => {}
            Some(word) => {
                let what = format!("`{key}` of the adapter is `{word}`, not `{wanted}`");
                return Err(Error::Config(what));
            }
            None => {
                let what = format!("`{key}` is not there: not a LoRA adapter");
                return Err(Error::Config(what));
            }
        }
    }
    let matters = |(key, value): &(&str, &Value)| {
        let empty = value.array().is_some_and(Array::is_empty);
        key.starts_with("adapter.") && !KEYS.contains(key) && !empty
    };
    match m.iter().find(matters) {
        None => Ok(()),
        Some((key, _)) => Err(Error::NotImplemented(format!("`{key}` of an adapter"))),
    }
}
