//! Values of requests, as they are sent: `None`, or false, for one of the wrong kind.

use std::collections::BTreeMap;

use engine::SamplerParams;
use serde_json::Value;

pub(super) fn put<T>(field: &mut T, value: Option<T>) -> Option<()> {
    *field = value?;
    Some(())
}

pub(super) fn real(v: &Value) -> Option<f32> {
    v.as_f64().map(|x| x as f32)
}

pub(super) fn int(v: &Value) -> Option<i32> {
    v.as_i64().and_then(|x| i32::try_from(x).ok())
}

pub(super) fn count(v: &Value) -> Option<usize> {
    v.as_u64().and_then(|x| usize::try_from(x).ok())
}

pub(super) fn strings(v: &Value) -> Option<Vec<String>> {
    let text = |v: &Value| v.as_str().map(str::to_owned);
    match v {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(list) => list.iter().map(text).collect(),
        _ => None,
    }
}

/// Most biased tokens of a request, and the largest bias: it outweighs any logit.
const MOST_BIASES: usize = 1024;
const LARGEST_BIAS: f32 = 1e4;

/// Each token once: `5` and `05` are the same.
pub(super) fn biases(v: &Value) -> Option<Vec<(u32, f32)>> {
    // llama.cpp's `false` bans a token.
    let bias = |v: &Value| match v {
        Value::Bool(false) => Some(-LARGEST_BIAS),
        v => real(v),
    };
    let pairs: Option<Vec<(u32, f32)>> = match v {
        Value::Object(list) => { list.iter() }
            .map(|(id, v)| Some((id.parse().ok()?, bias(v)?)))
            .collect(),
        Value::Array(list) => { list.iter() }
            .map(|pair| match pair.as_array()?.as_slice() {
                [id, v] => Some((id.as_u64()?.try_into().ok()?, bias(v)?)),
                _ => None,
            })
            .collect(),
        _ => None,
    };
    let pairs = pairs.filter(|list| list.len() <= MOST_BIASES)?;
    let found: BTreeMap<u32, f32> = pairs.iter().copied().collect();
    let sound = found.values().all(|bias| bias.abs() <= LARGEST_BIAS);
    (sound && found.len() == pairs.len()).then(|| found.into_iter().collect())
}

/// A seed of any sign, as clients send them; -1 is llama.cpp's word for one that is drawn.
pub(super) fn seed(p: &mut SamplerParams, v: &Value) -> Option<()> {
    match v.as_i64() {
        Some(-1) => Some(()),
        Some(seed) => put(&mut p.seed, Some(seed.cast_unsigned())),
        None => put(&mut p.seed, v.as_u64()),
    }
}

/// mirostat's version
pub(super) fn small(v: &Value) -> Option<u8> {
    v.as_u64().and_then(|x| u8::try_from(x).ok())
}

pub(super) fn never(_: &Value) -> bool {
    false
}

pub(super) fn is_false(v: &Value) -> bool {
    *v == Value::Bool(false)
}

pub(super) fn is_empty(v: &Value) -> bool {
    v.as_array().is_some_and(Vec::is_empty)
}

pub(super) fn is_true(v: &Value) -> bool {
    *v == Value::Bool(true)
}

pub(super) fn is_zero(v: &Value) -> bool {
    *v == 0
}

pub(super) fn is_negative(v: &Value) -> bool {
    v.as_f64().is_some_and(|x| x < 0.0)
}

pub(super) fn is_plain_text(v: &Value) -> bool {
    v.get("type").and_then(Value::as_str) == Some("text")
}
