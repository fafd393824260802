//! `/v1/embeddings`: texts as vectors of the model's last hidden states.

use axum::response::{IntoResponse, Response};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use engine::{Pooling, Request, Update, Want};
use serde_json::{Value, json};

use super::ask::{root, tally};
use super::{Call, aside, completions, invalid};
use crate::error::{ApiError, Kind};

/// Names of the ways to make one vector of many.
const POOLINGS: [(&str, Pooling); 3] = [
    ("mean", Pooling::Mean),
    ("last", Pooling::Last),
    ("cls", Pooling::Cls),
];

/// What a body may say.
const NAMES: [&str; 7] = [
    "model",
    "input",
    "pooling",
    "normalize",
    "encoding_format",
    "dimensions",
    "user",
];

pub(crate) async fn answer(call: Call) -> Result<Response, ApiError> {
    let model = call.served.of(&call.body)?;
    let body = &call.body;
    let given = |name: &str| body.get(name).filter(|v| !v.is_null());
    for name in body.keys() {
        if call.served.strict && !NAMES.contains(&name.as_str()) {
            return Err(invalid(name, "is unknown, and this server is strict"));
        }
    }
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
    let mut held = call.state.hold(&call.who, tokens as u64, tokens as u64)?;
    let mut waiting = Vec::new();
    for prompt in prompts {
        let (tokens, mut tally) = (prompt.len() as u64, tally(&call, &model, 0));
        tally.held = Some(held.part(tokens));
        let replies = model.scheduler.submit(Request {
            prompt,
            want: Want::Embedding(pooling),
            root: root(&call, &model, ""),
            ..Request::default()
        })?;
        waiting.push((replies, tally, tokens));
    }
    let mut data = Vec::new();
    for (index, (mut replies, mut tally, tokens)) in waiting.into_iter().enumerate() {
        let vector = loop {
            match replies.next().await {
                Some(Update::Embedding(vector)) => break vector,
                Some(Update::Failed(error)) => return Err(error.into()),
                // What never ran costs nothing.
                Some(Update::Started(_)) => tally.prompt = tokens,
                Some(_) => {}
                None => return Err(ApiError::new(Kind::Unready, "the engine has stopped")),
            }
        };
        drop(tally);
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

/// The numbers' bytes, little-endian, as clients ask for them who save room.
fn in_base64(vector: &[f32]) -> Value {
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    BASE64_STANDARD.encode(bytes).into()
}

/// The vector of the same direction and length 1.
fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let square: f64 = vector.iter().map(|x| f64::from(*x).powi(2)).sum();
    if square > 0.0 {
        let scale = square.sqrt().recip();
        vector
            .iter_mut()
            .for_each(|x| *x = (f64::from(*x) * scale) as f32);
    }
    vector
}
