//! `/v1/completions`, and what it has in common with conversations.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use serde_json::Value;
use text::Special;

use super::ask::{self, Used};
use super::params::Asked;
use super::shape::Shape;
use super::table::On;
use super::{Call, Model, aside, invalid, stream};
use crate::error::ApiError;

/// Most prompts of one request.
const MOST_PROMPTS: usize = 128;

pub(crate) async fn answer(mut call: Call) -> Result<Response, ApiError> {
    let model = call.model().await?;
    let asked = Asked::read(&call.served, &model, &call.body, On::Completions)?;
    let prompt = call.body.remove("prompt").unwrap_or_default();
    call.state.keep_content(&call.who, || prompt.to_string());
    let prompts = {
        let model = model.clone();
        aside(move || prompts(&model, "prompt", &prompt))
    };
    respond(&call, &model, prompts.await?, &asked, false).await
}

/// Texts or lists of ids as tokens, with BOS where the model wants one. Texts never become special
/// tokens.
pub(crate) fn prompts(
    model: &Arc<Model>,
    name: &str,
    value: &Value,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let wrong = || {
        let what = "must be a text, a list of texts, token ids, or a list of lists of token ids";
        invalid(name, what)
    };
    let list = match value {
        Value::Array(list) if list.is_empty() || list.len() > MOST_PROMPTS && !list[0].is_u64() => {
            return Err(invalid(name, "must have from 1 to 128 entries"));
        }
        // One list of ids is one prompt.
        Value::Array(list) if !list[0].is_u64() => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    list.iter()
        .map(|one| match one {
            Value::String(text) => Ok(model.tokenizer().encode_prompt(text, Special::Text)?),
            Value::Array(ids) => ids.iter().map(id).collect::<Option<_>>().ok_or_else(wrong),
            _ => Err(wrong()),
        })
        .collect()
}

/// Answers to all prompts, whole or as they are made.
pub(crate) async fn respond(
    call: &Call,
    model: &Arc<Model>,
    prompts: Vec<Vec<u32>>,
    asked: &Asked,
    chat: bool,
) -> Result<Response, ApiError> {
    let param = if chat { "messages" } else { "prompt" };
    let choices = ask::submit(call, model, &prompts, asked).map_err(|error| match error.param {
        None => error.param(param),
        Some(_) => error,
    })?;
    let prefix = if chat { "chatcmpl" } else { "cmpl" };
    let shape = Shape {
        chat,
        id: format!("{prefix}-{}", crate::random_hex::<12>()),
        created: call.state.clock().now() / 1000,
        model: model.id.clone(),
        usage: asked.include_usage,
    };
    if asked.stream {
        return stream::answer(choices, model.clone(), shape, asked.n).await;
    }
    let given = ask::whole(choices).await?;
    let mut used = Used::default();
    for (i, g) in given.iter().enumerate() {
        let first = i.is_multiple_of(asked.n);
        used.add(first, g.prompt_tokens, &g.generation, g.start);
    }
    let ends = |id| model.ends(id);
    let answer = shape.whole(&given, &used, model.tokenizer(), &ends);
    Ok(axum::Json(answer).into_response())
}
