//! llama.cpp's `/infill`: what fits between two texts.

use axum::response::Response;
use serde_json::Value;

use super::params::{Asked, given};
use super::shape::Form;
use super::table::On;
use super::{Body, Call, completions, invalid};
use crate::error::{ApiError, Kind};

/// Most files that go with the two texts.
const MOST_FILES: usize = 256;

pub(crate) async fn answer(call: Call) -> Result<Response, ApiError> {
    let model = call.model().await?;
    let mut asked = Asked::read(&call.served, &model, &call.body, On::Infill).await?;
    let text = |name| match given(&call.body, name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(invalid(name, "must be a text")),
    };
    let (before, after) = (text("input_prefix")?, text("input_suffix")?);
    if before.is_none() && after.is_none() {
        let what = "must be there, or input_suffix: the texts around the gap";
        return Err(invalid("input_prefix", what));
    }
    let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
    // The gap begins with it: for the model it is what stands before the rest.
    let before = before + &text("prompt")?.unwrap_or_default();
    let extra = extra(&call.body)?;
    call.state.keep_content(&call.who, || {
        Value::from(vec![&*before, &*after]).to_string()
    });
    let gap = completions::gap(&model, before, after, extra).await;
    let gap = gap.map_err(|error| match error.kind {
        Kind::Invalid => error.param("model"),
        _ => error,
    })?;
    asked.params.eog.extend(gap.eog);
    asked.n = 1;
    completions::respond(
        &call,
        &model,
        vec![gap.ids],
        &asked,
        Form::Native,
        Vec::new(),
    )
    .await
}

/// `input_extra`: other files, as names and texts.
fn extra(body: &Body) -> Result<Vec<(String, String)>, ApiError> {
    let Some(value) = given(body, "input_extra") else {
        return Ok(Vec::new());
    };
    let wrong = || {
        let what = "must be a list of up to 256 {\"filename\", \"text\"}";
        invalid("input_extra", what)
    };
    let list = value.as_array().filter(|l| l.len() <= MOST_FILES);
    let one = |file: &Value| {
        let text = |name: &str| file.get(name).and_then(Value::as_str).map(str::to_owned);
        let name =
            text("filename").or_else(|| file.get("filename").is_none().then(|| "file".into()));
        Some((name?, text("text")?))
    };
    let all: Option<Vec<_>> = list.ok_or_else(wrong)?.iter().map(one).collect();
    all.ok_or_else(wrong)
}
