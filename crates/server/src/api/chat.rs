//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Value, json};
use text::{ChatTemplate, RenderOptions};

use super::params::Asked;
use super::shape::Form;
use super::table::On;
use super::{Body, Call, Model, aside, completions, invalid};
use crate::error::{ApiError, Kind};

pub(crate) async fn answer(call: Call) -> Result<Response, ApiError> {
    let model = call.model().await?;
    let asked = Asked::read(&call.served, &model, &call.body, On::Chat).await?;
    let messages = model.opened(messages(&call.body)?);
    call.state
        .keep_content(&call.who, || Value::from(messages.clone()).to_string());
    let ids = {
        let model = model.clone();
        aside(move || Ok(template(&model)?.encode(model.tokenizer(), &messages, &options())?))
    };
    let prompts = vec![ids.await?];
    completions::respond(&call, &model, prompts, &asked, Form::Chat, Vec::new()).await
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
