//! Which tensor gets which storage type: the mixes of llama-quantize, under its names.
//!
//! Most tensors of a file get the mix's base type; those that cost quality most get a better one, by
//! their part of the model and their layer. Source of the rules: llama.cpp's `llama-quant.cpp`.

use std::str::FromStr;

use kernels::Type;

use crate::error::{Error, Result};

/// A kind of file: a base type and the rules for the tensors that get another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// llama-quantize's name.
    pub name: &'static str,
    /// `general.file_type`.
    pub file_type: u32,
    /// What a tensor gets where no rule says otherwise.
    pub base: Type,
}

/// Every kind of file, by bits.
#[rustfmt::skip]
const RECIPES: &[(&str, u32, Type)] = &[
    ("F32",       0,  Type::F32),
    ("F16",       1,  Type::F16),
    ("BF16",      32, Type::BF16),
    ("Q8_0",      7,  Type::Q8_0),
    ("Q6_K",      18, Type::Q6_K),
    ("Q5_K_M",    17, Type::Q5_K),
    ("Q5_K_S",    16, Type::Q5_K),
    ("Q5_1",      9,  Type::Q5_1),
    ("Q5_0",      8,  Type::Q5_0),
    ("Q4_K_M",    15, Type::Q4_K),
    ("Q4_K_S",    14, Type::Q4_K),
    ("Q4_1",      3,  Type::Q4_1),
    ("Q4_0",      2,  Type::Q4_0),
    ("IQ4_NL",    25, Type::IQ4_NL),
    ("IQ4_XS",    30, Type::IQ4_XS),
    ("MXFP4_MOE", 38, Type::MXFP4),
    ("Q3_K_L",    13, Type::Q3_K),
    ("Q3_K_M",    12, Type::Q3_K),
    ("Q3_K_S",    11, Type::Q3_K),
    ("IQ3_M",     27, Type::IQ3_S),
    ("IQ3_S",     26, Type::IQ3_S),
    ("IQ3_XS",    22, Type::IQ3_S),
    ("IQ3_XXS",   23, Type::IQ3_XXS),
    ("Q2_K",      10, Type::Q2_K),
    ("Q2_K_S",    21, Type::Q2_K),
    ("IQ2_M",     29, Type::IQ2_S),
    ("IQ2_S",     28, Type::IQ2_XS),
    ("IQ2_XS",    20, Type::IQ2_XS),
    ("IQ2_XXS",   19, Type::IQ2_XXS),
    ("Q2_0",      41, Type::Q2_0),
    ("TQ2_0",     37, Type::TQ2_0),
    ("IQ1_M",     31, Type::IQ1_M),
    ("TQ1_0",     36, Type::TQ1_0),
    ("IQ1_S",     24, Type::IQ1_S),
    ("Q1_0",      40, Type::Q1_0),
];

/// Short names.
const ALIASES: &[(&str, &str)] = &[("Q3_K", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("Q5_K", "Q5_K_M")];

/// All kinds of file.
pub fn recipes() -> impl Iterator<Item = Recipe> {
    RECIPES.iter().map(|&(name, file_type, base)| Recipe {
        name,
        file_type,
        base,
    })
}

impl FromStr for Recipe {
    type Err = Error;

    /// The kind of this name, whatever the case of its letters.
    fn from_str(given: &str) -> Result<Recipe> {
        let alias = ALIASES.iter().find(|a| a.0.eq_ignore_ascii_case(given));
        let name = alias.map_or(given, |a| a.1);
        recipes()
            .find(|r| r.name.eq_ignore_ascii_case(name))
            .ok_or_else(|| {
                let names: Vec<&str> = recipes().map(|r| r.name).collect();
                Error::Recipe {
                    given: given.into(),
                    known: names.join(", "),
                }
            })
    }
}

/// What the rules ask of a model.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Facts {
    pub(crate) layers: usize,
    /// Heads a key-value head.
    pub(crate) gqa: usize,
    pub(crate) experts: usize,
    /// Whether the head is the embedding table.
    pub(crate) tied: bool,
    pub(crate) imatrix: bool,
    /// Eighty layers that share key-value heads.
    pub(crate) seventy: bool,
}

/// A tensor's part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Embed,
    Head,
    V,
    K,
    Q,
    Out,
    Up,
    Gate,
    Down,
    Other,
}

/// By what a name holds; the first that does.
const PARTS: &[(&str, Part)] = &[
    ("attn_qkv.weight", Part::V),
    ("attn_kv_b.weight", Part::V),
    ("attn_v.weight", Part::V),
    ("attn_k.weight", Part::K),
    ("attn_q.weight", Part::Q),
    ("attn_output.weight", Part::Out),
    ("ffn_up", Part::Up),
    ("ffn_gate", Part::Gate),
    ("ffn_down", Part::Down),
];

fn part(name: &str) -> Part {
    match name {
        "output.weight" => Part::Head,
        "token_embd.weight" => Part::Embed,
        _ => PARTS
            .iter()
            .find(|p| name.contains(p.0))
            .map_or(Part::Other, |p| p.1),
    }
}

/// Names that hold one of these are never quantised, nor are tensors of one axis and those whose
/// names do not end in `weight`.
const KEPT: &[&str] = &[
    "_norm.weight",
    "ffn_gate_inp.weight",
    "position_embd",
    "token_types",
    "attn_rel_b.weight",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "time_mix_",
    ".patch_embd",
    "rope_f",
];

/// Whether a tensor is one that files keep as it is.
pub(crate) fn kept(name: &str, axes: usize) -> bool {
    axes < 2 || !name.ends_with("weight") || KEPT.iter().any(|part| name.contains(part))
}

/// The layer in a name `blk.N.…`.
fn layer(name: &str) -> usize {
    let number = name.strip_prefix("blk.").and_then(|n| n.split('.').next());
    number.and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Where a rule is asked: the layer, of how many, and the model.
struct At {
    i: usize,
    n: usize,
    facts: Facts,
}

impl At {
    /// The first eighth, the last one, and every third between.
    fn more(&self) -> bool {
        let (i, n) = (self.i, self.n);
        i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
    }
    fn eighth(&self) -> bool {
        self.i < self.n / 8
    }
    /// Neither the first nor the last eighth.
    fn middle(&self) -> bool {
        !self.eighth() && self.i < 7 * self.n / 8
    }
    fn shared(&self) -> bool {
        self.facts.gqa >= 4
    }
    fn eight_experts(&self) -> bool {
        self.facts.experts == 8
    }
}

/// Kinds of file; a part; a condition; the type. The first rule that fits holds.
type Rule = (&'static [&'static str], Part, fn(&At) -> bool, Type);

/// The kinds below three bits.
const LOW: &[&str] = &["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M"];
const LOW_BETTER: &[&str] = &["IQ2_S", "IQ2_M"];
const IQ4: &[&str] = &["IQ4_NL", "IQ4_XS"];
const ALWAYS: fn(&At) -> bool = |_| true;

#[rustfmt::skip]
const RULES: &[Rule] = &[
    (LOW, Part::V, |a| a.shared() || a.facts.experts >= 4, Type::Q4_K),
    (LOW_BETTER, Part::V, ALWAYS, Type::IQ3_S),
    (LOW, Part::V, ALWAYS, Type::Q2_K),
    (LOW, Part::K, At::eight_experts, Type::Q4_K),
    (LOW_BETTER, Part::Down, At::eighth, Type::IQ3_S),
    (LOW, Part::Down, At::eighth, Type::Q2_K),
    (LOW, Part::Out, At::eight_experts, Type::Q5_K),
    (&["IQ1_S", "IQ1_M"], Part::Out, ALWAYS, Type::IQ2_XXS),
    (LOW_BETTER, Part::Out, ALWAYS, Type::IQ3_S),

    (&["Q2_K", "Q2_K_S"], Part::V, At::shared, Type::Q4_K),
    (&["Q2_K"], Part::V, ALWAYS, Type::Q3_K),
    (&["IQ3_XXS", "IQ3_XS", "IQ3_S"], Part::V, At::shared, Type::Q4_K),
    (&["IQ3_XXS"], Part::V, |a| !a.facts.imatrix, Type::IQ3_S),
    (&["IQ3_M"], Part::V, ALWAYS, Type::Q4_K),
    (&["Q3_K_M"], Part::V, |a| a.i < 2, Type::Q5_K),
    (&["Q3_K_M"], Part::V, ALWAYS, Type::Q4_K),
    (&["Q3_K_L"], Part::V, ALWAYS, Type::Q5_K),
    (IQ4, Part::V, At::shared, Type::Q5_K),
    (&["Q4_K_M", "Q5_K_M"], Part::V, At::more, Type::Q6_K),
    (&["Q4_K_S"], Part::V, |a| a.i < 4, Type::Q5_K),

    (&["IQ3_XS"], Part::K, |a| !a.eight_experts(), Type::IQ3_XXS),
    (&["IQ3_XXS"], Part::K, |a| !a.eight_experts(), Type::IQ2_S),
    (&["IQ3_XS"], Part::Q, ALWAYS, Type::IQ3_XXS),
    (&["IQ3_XXS"], Part::Q, ALWAYS, Type::IQ2_S),

    (&["Q2_K"], Part::Down, ALWAYS, Type::Q3_K),
    (&["Q2_K_S"], Part::Down, At::eighth, Type::Q4_K),
    (&["IQ3_XXS"], Part::Down, |a| !a.facts.imatrix && a.eighth(), Type::Q4_K),
    (&["IQ3_XXS"], Part::Down, |a| !a.facts.imatrix, Type::Q3_K),
    (&["Q3_K_M"], Part::Down, |a| a.i < a.n / 16, Type::Q5_K),
    (&["Q3_K_M"], Part::Down, ALWAYS, Type::Q4_K),
    (&["IQ3_M"], Part::Down, |a| a.eighth() || a.eight_experts() && a.more(), Type::Q4_K),
    (&["Q3_K_L"], Part::Down, ALWAYS, Type::Q5_K),
    (&["Q4_K_M", "Q5_K_M"], Part::Down, At::more, Type::Q6_K),
    (IQ4, Part::Down, |a| !a.facts.imatrix && a.eighth(), Type::Q5_K),
    (&["Q4_K_S"], Part::Down, At::eighth, Type::Q5_K),
    (&["Q4_0"], Part::Down, |a| a.facts.imatrix && a.eighth(), Type::Q4_1),
    (&["Q5_0"], Part::Down, |a| a.facts.imatrix && a.eighth(), Type::Q5_1),

    (&["Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS"],
        Part::Out, At::eight_experts, Type::Q5_K),
    (&["Q2_K"], Part::Out, |a| !a.eight_experts(), Type::Q3_K),
    (&["IQ3_XXS"], Part::Out, |a| !a.eight_experts(), Type::IQ3_S),
    (&["Q3_K_M", "IQ3_M"], Part::Out, |a| !a.eight_experts(), Type::Q4_K),
    (&["Q3_K_L"], Part::Out, |a| !a.eight_experts(), Type::Q5_K),

    (&["IQ3_XS"], Part::Gate, At::middle, Type::IQ3_XXS),
    (&["IQ3_XS"], Part::Up, At::middle, Type::IQ3_XXS),

    (&["IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"], Part::Embed, ALWAYS, Type::Q2_K),
    (&["IQ2_S", "IQ2_M", "IQ3_XXS"], Part::Embed, ALWAYS, Type::IQ3_S),
    (&["TQ1_0", "TQ2_0", "Q2_0"], Part::Embed, ALWAYS, Type::Q4_K),
];

/// The type of a tensor `[.., cols]` in a file of this kind, before its shape is looked at.
pub(crate) fn target(recipe: Recipe, facts: &Facts, name: &str, shape: &[usize]) -> Type {
    if recipe.base.is_float() {
        return recipe.base;
    }
    let part = part(name);
    let moe = recipe.name == "MXFP4_MOE";
    if part == Part::Head || part == Part::Embed && facts.tied {
        let cols = shape.last().copied().unwrap_or_default();
        return match recipe.base {
            base if moe || !cols.is_multiple_of(base.block_len()) => Type::Q8_0,
            _ if LOW.contains(&recipe.name) || recipe.name == "IQ3_XXS" => Type::Q5_K,
            Type::Q8_0 => Type::Q8_0,
            _ => Type::Q6_K,
        };
    }
    if moe {
        return match shape.len() {
            3.. => Type::MXFP4,
            _ => Type::Q8_0,
        };
    }
    let at = At {
        i: layer(name),
        n: facts.layers,
        facts: *facts,
    };
    let fits = |rule: &&Rule| rule.1 == part && rule.0.contains(&recipe.name) && rule.2(&at);
    let found = RULES.iter().find(fits).map_or(recipe.base, |r| r.3);
    if LOW.contains(&recipe.name) {
        return found;
    }
    match (part, found) {
        (Part::V | Part::K, _) if at.eight_experts() => Type::Q8_0,
        (Part::V, Type::Q3_K | Type::Q4_K) if facts.seventy => Type::Q5_K,
        _ => found,
    }
}

/// The type that takes another's place where rows are no whole number of its blocks.
pub(crate) fn fallback(ty: Type, cols: usize) -> Type {
    if cols.is_multiple_of(ty.block_len()) {
        return ty;
    }
    let smaller = match ty {
        Type::Q2_0 | Type::Q2_K | Type::Q3_K | Type::TQ1_0 | Type::TQ2_0 | Type::Q1_0 => Type::Q4_0,
        Type::Q4_K => Type::Q5_0,
        Type::Q5_K => Type::Q5_1,
        Type::Q6_K => Type::Q8_0,
        _ => Type::IQ4_NL,
    };
    if cols.is_multiple_of(smaller.block_len()) {
        smaller
    } else {
        Type::F16
    }
}

/// Whether a tensor cannot keep its sense in this type without an importance matrix.
pub(crate) fn needs_imatrix(recipe: Recipe, name: &str, ty: Type) -> bool {
    if matches!(part(name), Part::Embed | Part::Head) {
        return false;
    }
    match ty {
        Type::IQ3_XXS | Type::IQ2_XXS | Type::IQ2_XS | Type::IQ2_S | Type::IQ1_M | Type::IQ1_S => {
            true
        }
        Type::Q2_K => recipe.name == "Q2_K_S",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_are_distinct() {
        let mut seen = std::collections::HashSet::new();
        for r in recipes() {
            assert_eq!(r.name.to_lowercase().parse::<Recipe>().unwrap(), r);
            assert!(seen.insert(r.file_type), "{}", r.name);
        }
        assert_eq!("q4_k".parse::<Recipe>().unwrap().name, "Q4_K_M");
        let error = "Q4_KM".parse::<Recipe>().unwrap_err().to_string();
        assert!(
            error.contains("Q4_KM") && error.contains("Q4_K_S"),
            "{error}"
        );
        // Every rule speaks of kinds that there are.
        for name in RULES.iter().flat_map(|r| r.0) {
            assert!(recipes().any(|r| r.name == *name), "{name}");
        }
    }

    #[test]
    fn layers_that_get_more() {
        let facts = Facts::default();
        let more = |i: &usize| {
            At {
                i: *i,
                n: 32,
                facts,
            }
            .more()
        };
        let more: Vec<usize> = (0..32).filter(more).collect();
        assert_eq!(
            more,
            [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
        );
    }

    /// What llama-quantize does; see the fixture's README.
    #[test]
    fn types_are_those_of_llama_quantize() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/quantize/mixes.json"
        );
        let cases: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut seen = 0;
        for case in cases.as_array().unwrap() {
            let count = |key: &str| case[key].as_u64().unwrap() as usize;
            let facts = Facts {
                layers: count("layers"),
                gqa: count("gqa"),
                experts: 0,
                tied: case["tied"].as_bool().unwrap(),
                imatrix: case["imatrix"].as_bool().unwrap(),
                seventy: count("layers") == 80,
            };
            let recipe: Recipe = case["recipe"].as_str().unwrap().parse().unwrap();
            for (part, runs) in case["types"].as_object().unwrap() {
                let mut i = 0;
                for run in runs.as_array().unwrap() {
                    for _ in 0..run[1].as_u64().unwrap() {
                        let name = match part.as_str() {
                            "output" | "token_embd" => format!("{part}.weight"),
                            _ => format!("blk.{i}.{part}.weight"),
                        };
                        let cols = match part.as_str() {
                            "ffn_down" => 1536,
                            _ => count("width"),
                        };
                        let found = fallback(target(recipe, &facts, &name, &[2, cols]), cols);
                        assert_eq!(found.name(), run[0], "{recipe:?} {facts:?} {name}");
                        i += 1;
                        seen += 1;
                    }
                }
            }
        }
        assert!(seen > 60_000, "{seen}");
    }
}
