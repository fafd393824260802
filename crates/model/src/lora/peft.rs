//! Adapters of PEFT: `adapter_config.json`, and tensors named after the modules of transformers.
//!
//! Written after the fields of `LoraConfig` in PEFT 0.18. A setting that is not in the tables below
//! must be empty, or is refused by name.

use std::collections::BTreeMap;

use files::peft::PeftDir;
use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::{End, Found, Lora, parts, place_of};
use crate::adapter::Place;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::names::Names;

/// Settings that change nothing about what a finished adapter computes.
const IGNORED: [&str; 13] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
];

/// Settings that are read, below.
const READ: [&str; 14] = [
    "alpha_pattern",
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
];

/// Settings of words, and the words that say what is computed here. Other beginnings of
/// `init_lora_weights` change the base.
const WORDS: [(&str, &[&str]); 4] = [
    ("peft_type", &["LORA"]),
    ("task_type", &["CAUSAL_LM"]),
    ("bias", &["none"]),
    ("init_lora_weights", &["gaussian", "eva", "orthogonal"]),
];

/// Before the name of a module of the base.
const PREFIX: &str = "base_model.model.";

/// What stands behind the name of a module. A table that came with the adapter has none of these.
const ENDS: [(&str, End); 6] = [
    (".lora_A.weight", End::A),
    (".lora_B.weight", End::B),
    (".lora_embedding_A", End::A),
    (".lora_embedding_B", End::B),
    (".lora_magnitude_vector", End::Magnitude),
    (".lora_magnitude_vector.weight", End::Magnitude),
];

/// Most patterns of a setting: each is compiled and kept.
const MOST_PATTERNS: usize = 1024;
/// A pattern may not grow larger than this when it is compiled.
const MAX_PATTERN: usize = 1 << 16;

/// What a configuration says of ranks and scales.
struct Settings {
    rank: usize,
    alpha: f64,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
    /// Whether the scale is over the root of the rank.
    root: bool,
    dora: bool,
}

impl Lora {
    /// The adapter in a directory of PEFT's.
    ///
    /// # Errors
    /// A setting or tensor that is not computed, or that does not fit the model or the others.
    pub fn from_peft(dir: &PeftDir, base: &Config) -> Result<Lora> {
        let settings = Settings::read(&dir.config)?;
        let names = Names::of_hf(base);
        let mut found: BTreeMap<Place, Found<'_>> = BTreeMap::new();
        let (mut modules, mut copies) = (BTreeMap::new(), Vec::new());
        for t in &dir.tensors {
            let unknown = || Error::NotImplemented(format!("tensor `{}` of an adapter", t.name));
            let name = t.name.strip_prefix(PREFIX).ok_or_else(unknown)?;
            let end = ENDS.iter().find(|(end, _)| name.ends_with(end));
            let Some((end, which)) = end else {
                copies.push((copied(name, names).ok_or_else(unknown)?, t.clone()));
                continue;
            };
            let module = &name[..name.len() - end.len()];
            let place = place_of(module, names).ok_or_else(unknown)?;
            if !targeted(&dir.config, module, place)? {
                let what = "is of a module that the settings of its adapter leave out";
                return Err(wrong(&t.name, what));
            }
            if *which == End::Magnitude && !settings.dora {
                return Err(wrong(&t.name, "belongs to DoRA, and `use_dora` is not set"));
            }
            let at = &mut found.entry(place).or_default()[*which as usize];
            if at.replace(t).is_some() {
                return Err(wrong(&t.name, "is there twice, under two names"));
            }
            modules.insert(place, module);
        }
        let scale = |place, rank| settings.scale(modules[&place], rank);
        let parts = parts(found, base, &scale)?;
        match parts
            .iter()
            .find(|p| settings.dora && p.magnitude.is_none())
        {
            Some(part) => Err(wrong(&part.name, "has no lora_magnitude_vector beside it")),
            None => Ok(Lora {
                parts,
                copies,
                layout: names.rotary,
            }),
        }
    }
}

fn wrong(name: &str, what: &str) -> Error {
    Error::Tensor {
        name: name.into(),
        what: what.into(),
    }
}

/// The table that a tensor is a copy of: PEFT saves both beside an adapter of either.
fn copied(name: &str, names: &Names) -> Option<Place> {
    let stem = name.strip_suffix(".weight")?;
    let stem = stem.strip_suffix(".base_layer").unwrap_or(stem);
    let place = place_of(stem, names)?;
    matches!(place, Place::Embed | Place::Head).then_some(place)
}

/// A setting is absent, or as good as absent.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn refused(key: &str, value: &Value) -> Error {
    let value: String = value.to_string().chars().take(80).collect();
    Error::NotImplemented(format!("`{key}` = {value} of adapter_config.json"))
}

impl Settings {
    fn read(json: &Value) -> Result<Settings> {
        let all = json.as_object().into_iter().flatten();
        for (key, value) in all {
            let known = IGNORED.contains(&key.as_str()) || READ.contains(&key.as_str());
            if !known && !is_empty(value) {
                return Err(refused(key, value));
            }
        }
        for (key, words) in WORDS {
            let value = &json[key];
            let fits = match value {
                Value::String(word) => words.contains(&word.as_str()),
                Value::Bool(_) => key == "init_lora_weights",
                value => value.is_null() && key != "peft_type",
            };
            if !fits {
                return Err(refused(key, value));
            }
        }
        let flag = |key: &str| match &json[key] {
            Value::Null => Ok(false),
            Value::Bool(on) => Ok(*on),
            value => Err(refused(key, value)),
        };
        Ok(Settings {
            rank: rank("r", &json["r"])?,
            alpha: alpha("lora_alpha", &json["lora_alpha"])?,
            ranks: patterns(json, "rank_pattern", rank)?,
            alphas: patterns(json, "alpha_pattern", alpha)?,
            root: flag("use_rslora")?,
            dora: flag("use_dora")?,
        })
    }

    /// What the product of a module's matrices is multiplied by.
    fn scale(&self, module: &str, rank: usize) -> Result<f64> {
        let wanted = one_of("rank_pattern", &self.ranks, module)?.unwrap_or(self.rank);
        if rank != wanted {
            return Err(Error::Config(format!(
                "the adapter's matrices of `{module}` have rank {rank}; adapter_config.json says \
                 {wanted}"
            )));
        }
        let alpha = one_of("alpha_pattern", &self.alphas, module)?.unwrap_or(self.alpha);
        let rank = rank as f64;
        Ok(alpha / if self.root { rank.sqrt() } else { rank })
    }
}

fn rank(key: &str, value: &Value) -> Result<usize> {
    let rank = value.as_u64().and_then(|n| usize::try_from(n).ok());
    rank.filter(|n| *n > 0).ok_or_else(|| {
        Error::Config(format!(
            "`{key}` of adapter_config.json is {value}, no rank"
        ))
    })
}

fn alpha(key: &str, value: &Value) -> Result<f64> {
    value.as_f64().filter(|a| a.is_finite()).ok_or_else(|| {
        Error::Config(format!(
            "`{key}` of adapter_config.json is {value}, not a number"
        ))
    })
}

/// The patterns of a setting, each of which is matched with the end of a module's name.
fn patterns<T>(
    json: &Value,
    key: &str,
    read: fn(&str, &Value) -> Result<T>,
) -> Result<Vec<(Regex, T)>> {
    match &json[key] {
        value if is_empty(value) => Ok(Vec::new()),
        Value::Object(map) if map.len() > MOST_PATTERNS => Err(Error::Config(format!(
            "`{key}` of adapter_config.json has {} patterns; {MOST_PATTERNS} are the most",
            map.len()
        ))),
        Value::Object(map) => map
            .iter()
            .map(|(pattern, value)| {
                let ends = format!(r"^(?:.*\.)?(?:{pattern})$");
                let regex = RegexBuilder::new(&ends).size_limit(MAX_PATTERN).build();
                let regex = regex.map_err(|_| refused(key, &Value::from(pattern.as_str())))?;
                Ok((regex, read(key, value)?))
            })
            .collect(),
        value => Err(refused(key, value)),
    }
}

/// What the patterns say of a module. PEFT takes the first in the order of the file; here no two may
/// differ.
fn one_of<T: Copy + PartialEq>(
    key: &str,
    patterns: &[(Regex, T)],
    module: &str,
) -> Result<Option<T>> {
    let mut fitting = patterns.iter().filter(|(p, _)| p.is_match(module));
    let Some((_, first)) = fitting.next() else {
        return Ok(None);
    };
    match fitting.all(|(_, other)| other == first) {
        true => Ok(Some(*first)),
        false => Err(Error::Config(format!(
            "`{key}` of adapter_config.json says two things of `{module}`"
        ))),
    }
}

/// Whether the settings name a module: a list by the ends of names; one pattern is taken at its word,
/// for it was what chose the tensors.
fn targeted(json: &Value, module: &str, place: Place) -> Result<bool> {
    let names = |value: &Value, end: &Value| match end.as_str() {
        Some(end) => {
            let before = module.strip_suffix(end);
            Ok(before.is_some_and(|b| b.is_empty() || b.ends_with('.')))
        }
        None => Err(refused("target_modules", value)),
    };
    let listed = |key: &str, other: bool| match &json[key] {
        Value::Array(list) => {
            let found: Result<Vec<bool>> = list.iter().map(|end| names(&json[key], end)).collect();
            Ok(found?.contains(&true))
        }
        Value::Null | Value::String(_) => Ok(other),
        value => Err(refused(key, value)),
    };
    let layer = |n: &Value| match place {
        Place::Layer(layer, _) => n.as_u64() == Some(layer as u64),
        Place::Embed | Place::Head => false,
    };
    let in_layers = match &json["layers_to_transform"] {
        Value::Null => true,
        Value::Array(list) => list.is_empty() || list.iter().any(layer),
        number @ Value::Number(_) => layer(number),
        value => return Err(refused("layers_to_transform", value)),
    };
    Ok(in_layers && listed("target_modules", true)? && !listed("exclude_modules", false)?)
}
