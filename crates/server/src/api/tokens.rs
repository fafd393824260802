//! llama.cpp's `/tokenize`, `/detokenize` and `/apply-template`.

use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use text::{RenderOptions, Special};

use super::chat::{messages, template};
use super::params::{flag, given, known};
use super::{Call, aside, invalid};
use crate::error::ApiError;

/// Texts are taken as texts: none becomes a special token unless `parse_special` says so.
pub(crate) async fn tokenize(call: Call) -> Result<Response, ApiError> {
    known(&call, "/tokenize")?;
    call.keep(&["content"]);
    let model = call.model().await?;
    let text = call.body.get("content").and_then(Value::as_str);
    let text = text
        .ok_or_else(|| invalid("content", "must be a text"))?
        .to_owned();
    let flag = |name| flag(&call.body, name);
    let (bos, pieces) = (flag("add_special")?, flag("with_pieces")?);
    let special = match flag("parse_special")? {
        true => Special::Parse,
        false => Special::Text,
    };
    let tokens = aside(move || {
        let tokenizer = model.tokenizer();
        let ids = match bos {
            true => tokenizer.encode_prompt(&text, special)?,
            false => tokenizer.encode(&text, special)?,
        };
        let piece = |id: &u32| {
            let bytes = tokenizer.piece(*id).unwrap_or_default();
            match std::str::from_utf8(&bytes) {
                Ok(text) => json!({ "id": id, "piece": text }),
                Err(_) => json!({ "id": id, "piece": bytes }),
            }
        };
        Ok(match pieces {
            true => ids.iter().map(piece).collect(),
            false => json!(ids),
        })
    });
    Ok(axum::Json(json!({ "tokens": tokens.await? })).into_response())
}

pub(crate) async fn detokenize(call: Call) -> Result<Response, ApiError> {
    known(&call, "/detokenize")?;
    call.keep(&["tokens"]);
    let model = call.model().await?;
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = call.body.get("tokens").and_then(Value::as_array);
    let ids: Option<Vec<u32>> = ids.and_then(|ids| ids.iter().map(id).collect());
    let ids = ids.ok_or_else(|| invalid("tokens", "must be a list of token ids"))?;
    let bytes = model.tokenizer().decode(&ids, true);
    let content = String::from_utf8_lossy(&bytes);
    Ok(axum::Json(json!({ "content": content })).into_response())
}

/// The conversation as the model reads it.
pub(crate) async fn apply_template(call: Call) -> Result<Response, ApiError> {
    if given(&call.body, "chat_template").is_some() {
        return Err(invalid(
            "chat_template",
            "cannot be sent: the template is the model's",
        ));
    }
    known(&call, "/apply-template")?;
    call.keep(&["messages", "tools", "chat_template_kwargs"]);
    let model = call.model().await?;
    let messages = model.opened(messages(&call.body)?);
    let mut options = RenderOptions::default();
    if let Some(tools) = given(&call.body, "tools") {
        let is_list = tools
            .as_array()
            .is_some_and(|l| l.iter().all(Value::is_object));
        if !is_list {
            return Err(invalid("tools", "must be a list of objects"));
        }
        options.tools = Some(tools.clone()).filter(|t| *t != json!([]));
    }
    if let Some(vars) = given(&call.body, "chat_template_kwargs") {
        let vars = vars.as_object();
        let vars = vars.ok_or_else(|| invalid("chat_template_kwargs", "must be an object"))?;
        options.vars = vars.clone();
    }
    if given(&call.body, "add_generation_prompt").is_some() {
        options.add_generation_prompt = flag(&call.body, "add_generation_prompt")?;
    }
    let prompt = aside(move || Ok(template(&model)?.render(&messages, &options)?));
    Ok(axum::Json(json!({ "prompt": prompt.await? })).into_response())
}
