//! `/v1/completions`, and what it has in common with the other routes for answers.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use engine::{Update, Want};
use serde_json::Value;
use text::Special;

use super::ask::{self, Used};
use super::params::{Asked, given};
use super::shape::{Echo, Form, Shape};
use super::table::On;
use super::{Call, Model, aside, invalid, stream};
use crate::error::ApiError;

/// Most prompts of one request.
const MOST_PROMPTS: usize = 128;

pub(crate) async fn answer(mut call: Call) -> Result<Response, ApiError> {
    let model = call.model().await?;
    let mut asked = Asked::read(&call.served, &model, &call.body, On::Completions).await?;
    let prompt = call.body.remove("prompt").unwrap_or_default();
    call.state.keep_content(&call.who, || prompt.to_string());
    if let Some(suffix) = given(&call.body, "suffix").filter(|s| **s != "") {
        let (Some(before), Some(after)) = (prompt.as_str(), suffix.as_str()) else {
            return Err(invalid(
                "suffix",
                "must be a text, behind a prompt that is one text",
            ));
        };
        if asked.echo {
            return Err(invalid("echo", "goes with no suffix"));
        }
        let (before, after) = (before.to_owned(), after.to_owned());
        let gap = gap(&model, before, after, Vec::new()).await?;
        asked.params.eog.extend(gap.eog);
        return respond(&call, &model, vec![gap.ids], &asked, Form::Text, Vec::new()).await;
    }
    let ids = {
        let (model, prompt) = (model.clone(), prompt.clone());
        aside(move || prompts(&model, "prompt", &prompt)).await?
    };
    if ids.iter().any(Vec::is_empty) {
        return Err(ApiError::from(engine::Error::EmptyPrompt).param("prompt"));
    }
    ask::few(ids.len(), asked.n)?;
    let echo = match asked.echo {
        true => repeated(&call, &model, &prompt, &ids, &asked).await?,
        false => Vec::new(),
    };
    respond(&call, &model, ids, &asked, Form::Text, echo).await
}

/// The prompt that asks for what fits between two texts.
pub(crate) async fn gap(
    model: &Arc<Model>,
    before: String,
    after: String,
    extra: Vec<(String, String)>,
) -> Result<text::Gap, ApiError> {
    let model = model.clone();
    aside(move || Ok(text::gap(model.tokenizer(), &before, &after, &extra)?)).await
}

/// The prompts as they are to be repeated, with the likelihood of their tokens if it is asked for.
async fn repeated(
    call: &Call,
    model: &Arc<Model>,
    prompt: &Value,
    ids: &[Vec<u32>],
    asked: &Asked,
) -> Result<Vec<Echo>, ApiError> {
    let given: Vec<&Value> = match prompt {
        Value::Array(list) if !list.iter().any(Value::is_u64) => list.iter().collect(),
        one => vec![one],
    };
    let mut scores = match asked.params.logprobs {
        Some(top) => {
            let long = ids.iter().filter(|ids| ids.len() > 1).cloned();
            let jobs = long.map(|ids| (ids, Want::Score { from: 1, top }));
            // The answers bill the prompts.
            ask::each(call, model, &asked.chosen, jobs.collect(), false).await?
        }
        None => Vec::new(),
    }
    .into_iter();
    let mut echoes = Vec::new();
    for (given, ids) in given.into_iter().zip(ids) {
        let text = match given.as_str() {
            Some(text) => text.to_owned(),
            None => String::from_utf8_lossy(&model.tokenizer().decode(ids, true)).into_owned(),
        };
        let mut tokens = Vec::new();
        if asked.params.logprobs.is_some() {
            let next = (ids.len() > 1).then(|| scores.next());
            let found = match next.flatten() {
                Some(Update::Scores(found)) => found,
                _ => Vec::new(),
            };
            let known = std::iter::once(None).chain(found.into_iter().map(Some));
            tokens = ids.iter().copied().zip(known).collect();
            // What the tokenizer put before a text is no part of it.
            if given.is_string()
                && ids
                    .first()
                    .is_some_and(|id| Some(*id) == model.tokenizer().bos())
            {
                tokens.remove(0);
            }
        }
        echoes.push(Echo { text, tokens });
    }
    Ok(echoes)
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
    form: Form,
    echo: Vec<Echo>,
) -> Result<Response, ApiError> {
    let (param, prefix) = match form {
        Form::Chat => ("messages", "chatcmpl"),
        Form::Text => ("prompt", "cmpl"),
        Form::Native => ("input_prefix", "infill"),
    };
    let choices = ask::submit(call, model, &prompts, asked).map_err(|error| match error.param {
        None => error.param(param),
        Some(_) => error,
    })?;
    let shape = Shape {
        form,
        id: format!("{prefix}-{}", crate::random_hex::<12>()),
        created: call.state.clock().now() / 1000,
        model: model.id.clone(),
        usage: asked.include_usage,
        n: asked.n,
        echo: echo.into(),
    };
    if asked.stream {
        return stream::answer(choices, model.clone(), shape, &call.state).await;
    }
    let given = ask::whole(choices).await?;
    let mut used = Used::default();
    for (i, g) in given.iter().enumerate() {
        let first = i.is_multiple_of(asked.n);
        used.add(first, g.prompt_tokens, &g.generation, g.start);
    }
    Ok(axum::Json(shape.whole(&given, &used, model)).into_response())
}
