//! OpenAI's routes: what is asked in its words becomes requests to [`engine::Scheduler`], and what
//! comes back becomes its words again.
//!
//! [`table`] is the one table of what a request may say; docs/api.md is made of it.

mod adapters;
mod ask;
mod chat;
mod completions;
mod embeddings;
mod ending;
mod infill;
mod keeper;
mod loading;
mod params;
mod rerank;
mod served;
mod shape;
mod stream;
pub mod table;
mod tokens;
mod values;
mod watch;

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::{Path, State as With};
use axum::response::Response;
use axum::routing::MethodFilter;
use engine::{Adaptation, SamplerParams, Scheduler, Speculation};
use serde_json::{Map, Value, json};
use text::{ChatTemplate, Tokenizer};

pub use self::adapters::{Adapters, Opener};
use crate::auth::Access;
use crate::error::{ApiError, Kind};
use crate::json::Json;
use crate::principal::{LOCAL, Principal, Scope};
use crate::router::{Route, route};
use crate::state::State;

pub(crate) use served::Lease;
pub use served::{Loaded, Loader, Offer, OnDemand, Served};

/// A model that is served.
#[derive(Debug)]
pub struct Model {
    /// Its name in requests.
    pub id: String,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// The engine's thread that runs it.
    pub scheduler: Scheduler,
    /// How it takes conversations; `None`: it takes none.
    pub template: Option<ChatTemplate>,
    /// How it samples where a request does not say.
    pub sampler: SamplerParams,
    /// How it guesses ahead where a request does not say.
    pub speculation: Speculation,
    /// Tokens that end its answers, beside those that its tokenizer knows.
    pub eog: Vec<u32>,
    /// Texts that end its answers where a request names none.
    pub stop: Vec<String>,
    /// The system message of conversations that bring none.
    pub system: Option<String>,
    /// Turns that begin every conversation, after the system message.
    pub turns: Vec<Value>,
    /// The seed of requests that say none; `None`: it is drawn.
    pub seed: Option<u64>,
    /// Most tokens of an answer where a request does not say.
    pub max_tokens: Option<usize>,
    /// Adapters and control vectors that all requests run with.
    pub adaptation: Adaptation,
    /// Adapters that requests may choose besides.
    pub adapters: Adapters,
}

impl Model {
    fn tokenizer(&self) -> &Arc<Tokenizer> {
        self.scheduler.tokenizer()
    }

    /// Whether a token ends its answers.
    fn ends(&self, id: u32) -> bool {
        let config = &self.scheduler.weights().config;
        let known = self.tokenizer().eog().iter().chain(&config.eos);
        known.chain(&self.eog).any(|end| *end == id)
    }

    /// A conversation with what begins all of them.
    fn opened(&self, mut messages: Vec<Value>) -> Vec<Value> {
        let led = messages.first().is_some_and(|m| m["role"] == "system");
        if let (Some(system), false) = (&self.system, led) {
            messages.insert(0, json!({ "role": "system", "content": system }));
        }
        let at = usize::from(led || self.system.is_some());
        messages.splice(at..at, self.turns.iter().cloned());
        messages
    }
}

/// The body of a request.
type Body = Map<String, Value>;

/// A request with all that an answer needs.
struct Call {
    served: Arc<Served>,
    state: State,
    who: Principal,
    body: Body,
    /// When it was read.
    began: Instant,
}

impl Call {
    /// The model that the body names, loaded. It stays until the request has ended.
    async fn model(&self) -> Result<Arc<Model>, ApiError> {
        let lease = self.served.of(&self.body, self.keeps());
        let lease = match self.deadline()? {
            None => lease.await?,
            Some(end) => tokio::time::timeout_at(end.into(), lease)
                .await
                .map_err(|_| engine::Error::Deadline)??,
        };
        let model = lease.model.clone();
        self.who.request.notes().lease = Some(lease);
        Ok(model)
    }

    /// Keeps these of its fields for the audit log, if the settings want that.
    fn keep(&self, names: &[&str]) {
        self.state.keep_content(&self.who, || {
            let said = names
                .iter()
                .filter_map(|name| self.body.get_key_value(*name));
            let said: Body = said.map(|(name, v)| (name.clone(), v.clone())).collect();
            Value::from(said).to_string()
        });
    }

    /// When it is of no use any more.
    fn deadline(&self) -> Result<Option<Instant>, ApiError> {
        let most = params::timeout(&self.body)?;
        Ok(most.and_then(|most| self.began.checked_add(most)))
    }

    /// Whether its `keep_alive` and its priority count: one key's would bind all others.
    fn keeps(&self) -> bool {
        let open = self.state.settings().no_auth || *self.who.key == *LOCAL;
        open || self.who.may(Scope::Admin)
    }
}

/// (route, field, what it says) of the routes that no table of parameters describes.
const FIELDS: &[(&str, &str, &str)] = &[
    ("/v1/embeddings", "model", MODEL),
    ("/v1/embeddings", "keep_alive", KEEP_ALIVE),
    (
        "/v1/embeddings",
        "input",
        "A text, texts, token ids, or lists of them",
    ),
    ("/v1/embeddings", "encoding_format", "float or base64"),
    ("/v1/embeddings", "dimensions", "The model's own number"),
    ("/v1/embeddings", "pooling", "mean, last or cls"),
    (
        "/v1/embeddings",
        "normalize",
        "Whether vectors have length 1",
    ),
    ("/v1/embeddings", "adapters", ADAPTERS),
    ("/v1/embeddings", "lora", "The same"),
    ("/v1/embeddings", "priority", table::PRIORITY),
    ("/v1/embeddings", "timeout_ms", table::TIMEOUT),
    ("/v1/embeddings", "user", "Not looked at"),
    ("/tokenize", "model", MODEL),
    ("/tokenize", "keep_alive", KEEP_ALIVE),
    ("/tokenize", "content", "The text"),
    ("/tokenize", "add_special", "Begin as a prompt begins"),
    (
        "/tokenize",
        "parse_special",
        "Take names of special tokens for them",
    ),
    ("/tokenize", "with_pieces", "Each token's text as well"),
    ("/detokenize", "model", MODEL),
    ("/detokenize", "keep_alive", KEEP_ALIVE),
    ("/detokenize", "tokens", "The ids"),
    ("/apply-template", "model", MODEL),
    ("/apply-template", "keep_alive", KEEP_ALIVE),
    ("/apply-template", "messages", "The conversation"),
    (
        "/apply-template",
        "tools",
        "Tools, as the template takes them",
    ),
    (
        "/apply-template",
        "chat_template_kwargs",
        "Further variables of the template",
    ),
    (
        "/apply-template",
        "add_generation_prompt",
        "Whether the assistant's turn is opened [default: true]",
    ),
];
const MODEL: &str = "The model's name; left out: the only one, or with --on-demand the first";
const KEEP_ALIVE: &str = "How long the model stays loaded afterwards, with --on-demand; where keys are demanded, an admin's";
const ADAPTERS: &str = "Adapters to use, as `id` and `scale`";

/// The fields that the body of a route may have, and what they say.
pub(crate) fn fields(path: &str) -> Vec<(&'static str, &'static str)> {
    let of = |route: table::On| {
        let known = table::PARAMS
            .iter()
            .filter(move |p| p.1.knows(route) && !matches!(p.2, table::Treat::Refused(_)));
        known.map(|p| (p.0, p.3)).collect()
    };
    match path {
        "/v1/chat/completions" => of(table::On::Chat),
        "/v1/completions" => of(table::On::Completions),
        "/infill" => of(table::On::Infill),
        "/rerank" => fields("/v1/rerank"),
        _ => {
            let all = [FIELDS, loading::FIELDS, rerank::FIELDS].concat();
            let own = all.into_iter().filter(|(of, ..)| *of == path);
            own.map(|(_, name, about)| (name, about)).collect()
        }
    }
}

/// A field that makes no sense.
fn invalid(param: &str, what: &str) -> ApiError {
    ApiError::new(Kind::Invalid, format!("{param} {what}")).param(param)
}

/// The routes of the models that are served.
#[must_use]
pub fn api(served: &Arc<Served>) -> Vec<Route> {
    let mut routes = of_models(served);
    routes.extend([
        post(
            served,
            "/v1/chat/completions",
            "An answer in a conversation",
            chat::answer,
        ),
        post(
            served,
            "/v1/completions",
            "What follows a text",
            completions::answer,
        ),
        post(
            served,
            "/v1/embeddings",
            "Texts as vectors",
            embeddings::answer,
        ),
        post(served, "/tokenize", "A text's tokens", tokens::tokenize),
        post(
            served,
            "/detokenize",
            "The text of tokens",
            tokens::detokenize,
        ),
        post(
            served,
            "/apply-template",
            "A conversation as the model reads it",
            tokens::apply_template,
        ),
        post(
            served,
            "/v1/rerank",
            "Texts by how well they fit a query",
            rerank::answer,
        ),
        post(served, "/rerank", "The same", rerank::answer),
        post(served, "/infill", "What fits into a gap", infill::answer),
    ]);
    routes.extend(loading::routes(served));
    routes
}

/// The models: what there is, and what is loaded of it.
fn of_models(served: &Arc<Served>) -> Vec<Route> {
    let own = || served.clone();
    let (list, one, load, unload) = (own(), own(), own(), own());
    let (known, admin) = (Access::Known, Access::Needs(Scope::Admin));
    let about = "The models that may be asked for, and which of them are loaded";
    let noted = |who: &Principal, id: &str| id.clone_into(&mut who.request.notes().model);
    vec![
        route(
            MethodFilter::GET,
            "/v1/models",
            known,
            about,
            move || async move {
                let all = list.list().await?;
                Ok::<_, ApiError>(axum::Json(json!({ "object": "list", "data": all })))
            },
        ),
        route(
            MethodFilter::GET,
            "/v1/models/{model}",
            known,
            "One of them",
            move |Path(id): Path<String>| async move { one.one(&id).await.map(axum::Json) },
        ),
        route(
            MethodFilter::POST,
            "/v1/models/{model}/load",
            admin,
            "Load a model",
            move |Path(id): Path<String>, Extension(who): Extension<Principal>| async move {
                let lease = load.lend(&id, None).await?;
                noted(&who, &id);
                drop(lease);
                load.one(&id).await.map(axum::Json)
            },
        ),
        route(
            MethodFilter::POST,
            "/v1/models/{model}/unload",
            admin,
            "Unload a model when its requests have ended; needs --on-demand",
            move |Path(id): Path<String>, Extension(who): Extension<Principal>| async move {
                unload.unload(&id).await?;
                noted(&who, &id);
                unload.one(&id).await.map(axum::Json)
            },
        ),
    ]
}

fn post<F, R>(served: &Arc<Served>, path: &'static str, about: &'static str, answer: F) -> Route
where
    F: Fn(Call) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Response, ApiError>> + Send + 'static,
{
    let access = Access::Needs(Scope::Inference);
    post_as(served, access, path, about, answer)
}

fn post_as<F, R>(
    served: &Arc<Served>,
    access: Access,
    path: &'static str,
    about: &'static str,
    answer: F,
) -> Route
where
    F: Fn(Call) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Response, ApiError>> + Send + 'static,
{
    let served = served.clone();
    let handler = move |With(state): With<State>,
                        Extension(who): Extension<Principal>,
                        Json(mut body): Json<Body>| {
        let (served, answer, began) = (served.clone(), answer.clone(), Instant::now());
        async move {
            if access == Access::Needs(Scope::Inference) {
                adapters::unfold(&served, &mut body).await?;
            }
            let call = Call {
                served,
                state,
                who,
                body,
                began,
            };
            let cut = call.state.when_cut();
            tokio::select! {
                done = answer(call) => done,
                cut = cut => Err(cut),
            }
        }
    };
    route(MethodFilter::POST, path, access, about, handler)
}

/// Work that takes its time, on a thread that may.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let bug = |_| ApiError::new(Kind::Internal, "the server met a bug; its log says more");
    tokio::task::spawn_blocking(work).await.map_err(bug)?
}

impl From<engine::Error> for ApiError {
    fn from(error: engine::Error) -> ApiError {
        use engine::Error as E;
        let what = error.to_string();
        let after = std::time::Duration::from_secs(1);
        match error {
            E::ContextFull { .. } => ApiError::new(Kind::Context, what),
            E::Parameter { field, .. } => ApiError::new(Kind::Invalid, what).param(field),
            E::UnknownToken {
                what: param @ "logit_bias",
                ..
            } => ApiError::new(Kind::Invalid, what).param(param),
            E::UnknownToken { .. } | E::EmptyPrompt | E::NoCandidates => {
                ApiError::new(Kind::Invalid, what)
            }
            E::Busy { .. } => ApiError::new(Kind::Busy, what).retry_after(after),
            E::Deadline => ApiError::new(Kind::Slow, what),
            E::Stopped => ApiError::new(Kind::Unready, what).retry_after(after),
            E::Text(error) => error.into(),
            _ => ApiError::new(Kind::Internal, what),
        }
    }
}

impl From<text::Error> for ApiError {
    fn from(error: text::Error) -> ApiError {
        ApiError::new(Kind::Invalid, error.to_string())
    }
}
