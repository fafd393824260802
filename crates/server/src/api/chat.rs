//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Value, json};
use text::{ChatTemplate, RenderOptions};

use super::params::{Asked, given};
use super::shape::Form;
use super::table::On;
use super::{Body, Call, Model, aside, completions, invalid};
use crate::error::{ApiError, Kind};

pub(crate) async fn answer(call: Call) -> Result<Response, ApiError> {
    let model = call.model().await?;
    let mut asked = Asked::read(&call.served, &model, &call.body, On::Chat).await?;
    let shared = shared(&call.body)?;
    let messages = model.opened(messages(&call.body)?);
    call.state
        .keep_content(&call.who, || Value::from(messages.clone()).to_string());
    let ids = {
        let model = model.clone();
        aside(move || {
            let (template, tokenizer) = (template(&model)?, model.tokenizer());
            let ids = template.encode(tokenizer, &messages, &options())?;
            let common = match shared {
                false => 0,
                true => of_system(&messages, &ids, |messages| {
                    Ok(template.encode(tokenizer, messages, &options())?)
                })?,
            };
            Ok((ids, common))
        })
    };
    let (ids, common) = ids.await?;
    asked.common = common;
    let prompts = vec![ids];
    completions::respond(&call, &model, prompts, &asked, Form::Chat, Vec::new()).await
}

/// Whether the system's words are shared with other keys.
fn shared(body: &Body) -> Result<bool, ApiError> {
    match given(body, "cache_scope").map(Value::as_str) {
        None | Some(Some("key")) => Ok(false),
        Some(Some("shared")) => Ok(true),
        Some(_) => Err(invalid("cache_scope", "must be key or shared")),
    }
}

/// Tokens that stand before the first message that is none of the system's: those that are the same
/// when another text takes its place and nothing follows. So they say nothing of it, nor of what
/// follows it.
fn of_system(
    messages: &[Value],
    ids: &[u32],
    encode: impl Fn(&[Value]) -> Result<Vec<u32>, ApiError>,
) -> Result<usize, ApiError> {
    let Some(first) = messages.iter().position(|m| m["role"] != "system") else {
        return Ok(ids.len());
    };
    let text = messages[first]["content"].as_str().unwrap_or_default();
    // Their first bytes differ, also without the spaces that templates take away.
    let other = if text.trim_start().starts_with('0') {
        "1"
    } else {
        "0"
    };
    let mut probe = messages[..=first].to_vec();
    probe[first]["content"] = other.into();
    let probe = encode(&probe)?;
    Ok(probe.iter().zip(ids).take_while(|(a, b)| a == b).count())
}

/// The model's chat template.
pub(crate) fn template(model: &Arc<Model>) -> Result<&ChatTemplate, ApiError> {
    model.template.as_ref().ok_or_else(|| {
        let what = format!(
            "{} has no chat template, so it takes no conversations; /v1/completions takes texts",
            model.id
        );
        ApiError::new(Kind::Invalid, what).param("model")
    })
}

/// The assistant's turn is opened, without tools.
pub(crate) fn options() -> RenderOptions {
    RenderOptions::default()
}

/// The conversation, in the form that templates take: a role and a text.
pub(crate) fn messages(body: &Body) -> Result<Vec<Value>, ApiError> {
    let list = body.get("messages").and_then(Value::as_array);
    let list = list.filter(|list| !list.is_empty());
    let list = list.ok_or_else(|| invalid("messages", "must be a list of one message at least"))?;
    let each = list.iter().enumerate();
    each.map(|(i, message)| one(i, message)).collect()
}

fn one(i: usize, message: &Value) -> Result<Value, ApiError> {
    let at = |field: &str| format!("messages[{i}]{field}");
    let message = message
        .as_object()
        .ok_or_else(|| invalid(&at(""), "must be an object"))?;
    let role = match message.get("role").and_then(Value::as_str) {
        Some(role @ ("system" | "user" | "assistant")) => role,
        Some("developer") => "system",
        _ => {
            let what =
                "must be system, developer, user or assistant; tools are not in this release";
            return Err(invalid(&at(".role"), what));
        }
    };
    for name in ["tool_calls", "function_call", "tool_call_id", "audio"] {
        let field = message.get(name);
        if field.is_some_and(|v| !v.is_null() && v.as_array().is_none_or(|l| !l.is_empty())) {
            return Err(invalid(&at(&format!(".{name}")), "is not in this release"));
        }
    }
    let content = match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(|part| {
                let is_text = part.get("type").and_then(Value::as_str) == Some("text");
                part.get("text").and_then(Value::as_str).filter(|_| is_text)
            });
            let texts: Option<String> = texts.collect();
            texts.ok_or_else(|| invalid(&at(".content"), "may have parts of type text only"))?
        }
        _ => {
            let what = "must be a text, or a list of parts of type text";
            return Err(invalid(&at(".content"), what));
        }
    };
    Ok(json!({ "role": role, "content": content }))
}
