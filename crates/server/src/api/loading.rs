//! Loading, listing and unloading adapters: `/v1/adapters`, and the same in llama.cpp's and vLLM's
//! words.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State as With};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use axum::routing::MethodFilter;
use serde_json::{Value, json};

use super::{Body, Call, Lease, Model, Served, aside, invalid, post_as};
use crate::admin::parameters;
use crate::auth::Access;
use crate::error::{ApiError, Kind};
use crate::json::Json;
use crate::principal::{Principal, Scope};
use crate::router::{Route, route};
use crate::state::State;

/// (route, field, what it says)
pub(super) const FIELDS: &[(&str, &str, &str)] = &[
    ("/v1/adapters", "model", super::MODEL),
    ("/v1/adapters", "name", "What requests will call it"),
    (
        "/v1/adapters",
        "adapter",
        "A name of the store, or a path on the server",
    ),
    (
        "/v1/adapters",
        "scale",
        "For requests that say none [default: the adapter's own]",
    ),
    ("/lora-adapters", "id", "Its number or name"),
    ("/lora-adapters", "scale", "Its scale"),
    ("/v1/load_lora_adapter", "model", super::MODEL),
    ("/v1/load_lora_adapter", "lora_name", "`name`"),
    ("/v1/load_lora_adapter", "lora_path", "`adapter`"),
    (
        "/v1/unload_lora_adapter",
        "model",
        "Its model, where several have the name",
    ),
    ("/v1/unload_lora_adapter", "lora_name", "The name"),
];

pub(super) fn routes(served: &Arc<Served>) -> Vec<Route> {
    const ADMIN: Access = Access::Needs(Scope::Admin);
    let (list, gone, numbered, stand) = (
        served.clone(),
        served.clone(),
        served.clone(),
        served.clone(),
    );
    vec![
        route(
            MethodFilter::GET,
            "/v1/adapters",
            Access::Known,
            "The adapters that requests may choose",
            move || async move {
                let all = list.loaded(|_| true).into_iter();
                let data: Vec<Value> = all.flat_map(|m| m.adapters.about(&m.id)).collect();
                axum::Json(json!({ "object": "list", "data": data }))
            },
        ),
        post_as(served, ADMIN, "/v1/adapters", "Load one", load),
        route(
            MethodFilter::DELETE,
            "/v1/adapters/{id}",
            ADMIN,
            "Unload one; requests that run with it end with it",
            move |With(state): With<State>,
                  Extension(who): Extension<Principal>,
                  Path(id): Path<String>,
                  uri: Uri| async move {
                let [model] = parameters(&uri, ["model"])?;
                let model = holder(&gone, model.as_deref(), &id)?;
                model.adapters.unload(&id)?;
                state.account(&who, &model.id, &id, 0, 0, None);
                let answer = json!({ "id": id, "object": "adapter", "deleted": true });
                Ok::<_, ApiError>(axum::Json(answer))
            },
        ),
        route(
            MethodFilter::GET,
            "/lora-adapters",
            Access::Known,
            "llama.cpp's list of them",
            move |uri: Uri| async move {
                let [model] = parameters(&uri, ["model"])?;
                // A list loads no model.
                let model = numbered.there(model.as_deref());
                let list = model.map_or(Vec::new(), |m| m.adapters.numbered());
                Ok::<_, ApiError>(axum::Json(list))
            },
        ),
        route(
            MethodFilter::POST,
            "/lora-adapters",
            ADMIN,
            "The scales of requests that choose nothing: a list of `id` and `scale`",
            move |Extension(who): Extension<Principal>, uri: Uri, Json(body): Json<Vec<Value>>| async move {
                let lease = of_query(&stand, &uri).await?;
                lease.model.id.clone_into(&mut who.request.notes().model);
                lease.model.adapters.stand(&body)?;
                Ok::<_, ApiError>(axum::Json(json!({ "success": true })))
            },
        ),
        post_as(
            served,
            ADMIN,
            "/v1/load_lora_adapter",
            "vLLM's words for loading one",
            load_by_vllms_names,
        ),
        post_as(
            served,
            ADMIN,
            "/v1/unload_lora_adapter",
            "vLLM's words for unloading one",
            unload_by_vllms_names,
        ),
    ]
}

/// The model that `?model=` names; the default one without it.
async fn of_query(served: &Served, uri: &Uri) -> Result<Lease, ApiError> {
    let [model] = parameters(uri, ["model"])?;
    let body = model.map(|id| ("model".to_owned(), json!(id)));
    served.of(&body.into_iter().collect(), false).await
}

/// The loaded model that has an adapter.
fn holder(served: &Served, model: Option<&str>, id: &str) -> Result<Arc<Model>, ApiError> {
    let meant = |m: &Model| model.is_none_or(|name| m.id == name);
    let having = served.loaded(|m| meant(m) && m.adapters.has(id));
    match &having[..] {
        [only] => Ok(only.clone()),
        [] => {
            let id: String = id.chars().take(64).collect();
            let what = format!("there is no adapter {id:?}");
            Err(ApiError::new(Kind::Adapter, what).param("id"))
        }
        _ => Err(invalid("model", "must be said: several have this adapter")),
    }
}

fn text<'b>(body: &'b Body, name: &str) -> Result<&'b str, ApiError> {
    let value = body.get(name).and_then(Value::as_str);
    value.ok_or_else(|| invalid(name, "must be a text"))
}

/// Only what is known may be said: each of it changes something.
fn check(body: &Body, names: &[&str]) -> Result<(), ApiError> {
    let unknown = body.keys().find(|name| !names.contains(&name.as_str()));
    unknown.map_or(Ok(()), |name| {
        let name: String = name.chars().take(64).collect();
        Err(invalid(&name, "is unknown"))
    })
}

async fn load(call: Call) -> Result<Response, ApiError> {
    check(&call.body, &["model", "name", "adapter", "scale"])?;
    let (name, word) = (text(&call.body, "name")?, text(&call.body, "adapter")?);
    let scale = match call.body.get("scale").filter(|v| !v.is_null()) {
        None => None,
        Some(v) => {
            let scale = v.as_f64().map(|s| s as f32).filter(|s| s.is_finite());
            Some(scale.ok_or_else(|| invalid("scale", "must be a number"))?)
        }
    };
    loaded(&call, name.to_owned(), word.to_owned(), scale).await
}

async fn load_by_vllms_names(call: Call) -> Result<Response, ApiError> {
    check(&call.body, &["model", "lora_name", "lora_path"])?;
    let (name, word) = (
        text(&call.body, "lora_name")?,
        text(&call.body, "lora_path")?,
    );
    loaded(&call, name.to_owned(), word.to_owned(), None).await
}

async fn loaded(
    call: &Call,
    name: String,
    word: String,
    scale: Option<f32>,
) -> Result<Response, ApiError> {
    let model = call.model().await?;
    model.id.clone_into(&mut call.who.request.notes().model);
    let (id, called) = (model.id.clone(), name.clone());
    let created = call.state.clock().now() / 1000;
    let about = aside(move || {
        let (adapters, scheduler) = (&model.adapters, &model.scheduler);
        adapters.load_asked(scheduler, &name, &word, scale, created)?;
        let all = adapters.about(&model.id).into_iter();
        Ok(all.filter(|a| a["id"] == *name).collect::<Vec<Value>>())
    });
    let about = about.await?.pop().unwrap_or_default();
    // Only now: a name that was refused may be anything.
    call.state.account(&call.who, &id, &called, 0, 0, None);
    Ok(axum::Json(about).into_response())
}

async fn unload_by_vllms_names(call: Call) -> Result<Response, ApiError> {
    check(&call.body, &["model", "lora_name"])?;
    let id = text(&call.body, "lora_name")?;
    let model = match call.body.get("model") {
        None | Some(Value::Null) => None,
        Some(_) => Some(text(&call.body, "model")?),
    };
    let model = holder(&call.served, model, id)?;
    model.adapters.unload(id)?;
    call.state.account(&call.who, &model.id, id, 0, 0, None);
    let answer = json!({ "id": id, "object": "adapter", "deleted": true });
    Ok(axum::Json(answer).into_response())
}
