//! `/v1/embeddings`: texts as vectors of the model's last hidden states.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use engine::{Pooling, Update, Want};
use serde_json::{Value, json};

use super::adapters::{self, Chosen};
use super::params::{given, known};
use super::{Call, Model, aside, ask, completions, invalid};
use crate::error::ApiError;

/// Names of the ways to make one vector of many.
const POOLINGS: [(&str, Pooling); 3] = [
    ("mean", Pooling::Mean),
    ("last", Pooling::Last),
    ("cls", Pooling::Cls),
];

pub(crate) async fn answer(call: Call) -> Result<Response, ApiError> {
    known(&call, "/v1/embeddings")?;
    call.keep(&["input"]);
    let model = call.model().await?;
    let body = &call.body;
    let given = |name: &str| given(body, name);
    let hidden = model.scheduler.weights().config.hidden;
    if given("dimensions").is_some_and(|d| *d != hidden) {
        let what = format!("can only be {hidden}: this model's vectors have no shorter form");
        return Err(invalid("dimensions", &what));
    }
    let packed = match given("encoding_format").map(Value::as_str) {
        None | Some(Some("float")) => false,
        Some(Some("base64")) => true,
        Some(_) => return Err(invalid("encoding_format", "must be float or base64")),
    };
    let pooling = match given("pooling") {
        None => Pooling::Mean,
        Some(v) => {
            let found = POOLINGS.iter().find(|(name, _)| v == name);
            found
                .ok_or_else(|| invalid("pooling", "must be mean, last or cls"))?
                .1
        }
    };
    let normalize = match given("normalize") {
        None => true,
        Some(v) => v
            .as_bool()
            .ok_or_else(|| invalid("normalize", "must be true or false"))?,
    };
    let input = body.get("input").cloned().unwrap_or_default();
    let prompts = {
        let model = model.clone();
        aside(move || completions::prompts(&model, "input", &input)).await?
    };
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    let chosen = adapters::chosen(&model, body).await?;
    let vectors = vectors(&call, &model, &chosen, prompts, pooling).await?;
    let mut data = Vec::new();
    for (index, vector) in vectors.into_iter().enumerate() {
        let vector = if normalize { unit(vector) } else { vector };
        let vector = if packed {
            in_base64(&vector)
        } else {
            json!(vector)
        };
        data.push(json!({ "object": "embedding", "index": index, "embedding": vector }));
    }
    let answer = json!({
        "object": "list", "model": model.id, "data": Value::from(data),
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    });
    Ok(axum::Json(answer).into_response())
}

/// The vector of each text.
pub(crate) async fn vectors(
    call: &Call,
    model: &Arc<Model>,
    chosen: &Chosen,
    texts: Vec<Vec<u32>>,
    pooling: Pooling,
) -> Result<Vec<Vec<f32>>, ApiError> {
    let jobs = texts.into_iter().map(|ids| (ids, Want::Embedding(pooling)));
    let found = ask::each(call, model, chosen, jobs.collect(), true).await?;
    let vector = |update| match update {
        Update::Embedding(vector) => vector,
        _ => Vec::new(),
    };
    Ok(found.into_iter().map(vector).collect())
}

/// The numbers' bytes, little-endian, as clients ask for them who save room.
fn in_base64(vector: &[f32]) -> Value {
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    BASE64_STANDARD.encode(bytes).into()
}

/// The vector of the same direction and length 1.
pub(crate) fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let square: f64 = vector.iter().map(|x| f64::from(*x).powi(2)).sum();
    if square > 0.0 {
        let scale = square.sqrt().recip();
        vector
            .iter_mut()
            .for_each(|x| *x = (f64::from(*x) * scale) as f32);
    }
    vector
}
