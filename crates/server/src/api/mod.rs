//! OpenAI's routes: what is asked in its words becomes requests to [`engine::Scheduler`], and what
//! comes back becomes its words again.
//!
//! [`table`] is the one table of what a request may say; docs/api.md is made of it.

mod ask;
mod chat;
mod completions;
mod embeddings;
mod params;
mod shape;
mod stream;
pub mod table;
mod tokens;

use std::future::Future;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State as With};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodFilter;
use engine::{Adaptation, SamplerParams, Scheduler};
use serde_json::{Map, Value, json};
use text::{ChatTemplate, Tokenizer};

use crate::auth::Access;
use crate::error::{ApiError, Kind};
use crate::json::Json;
use crate::metrics::{Metric, Metrics};
use crate::principal::{Principal, Scope};
use crate::router::{Route, route};
use crate::state::State;

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
    /// Tokens that end its answers, beside those that its tokenizer knows.
    pub eog: Vec<u32>,
    /// Texts that end its answers where a request names none.
    pub stop: Vec<String>,
    /// The system message of conversations that bring none.
    pub system: Option<String>,
    /// Turns that begin every conversation, after the system message.
    pub turns: Vec<Value>,
    /// Adapters and control vectors that all requests run with.
    pub adaptation: Adaptation,
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

    fn about(&self) -> Value {
        let params = self.scheduler.params();
        json!({
            "id": self.id, "object": "model", "created": self.created, "owned_by": "puna",
            "context": params.context, "parallel": params.parallel,
        })
    }
}

/// All models that are served.
#[derive(Debug)]
pub struct Served {
    models: Vec<Arc<Model>>,
    /// Refuse what a request says and no table knows.
    strict: bool,
}

impl Served {
    /// These models. `strict`: keys that no table knows are refused instead of logged.
    #[must_use]
    pub fn new(models: Vec<Model>, strict: bool) -> Arc<Served> {
        let models = models.into_iter().map(Arc::new).collect();
        Arc::new(Served { models, strict })
    }

    /// Their names.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        self.models.iter().map(|m| m.id.clone()).collect()
    }

    /// Writes down what the engines hold at this moment.
    pub fn gauge(&self, metrics: &Metrics) {
        let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        for model in &self.models {
            let stats = model.scheduler.stats();
            for (metric, value) in [
                (Metric::QueueDepth, stats.waiting),
                (Metric::Running, stats.running),
                (Metric::CachePagesUsed, stats.pages.0),
                (Metric::CachePagesKept, stats.kept),
                (Metric::CachePages, stats.pages.1),
            ] {
                metrics.set(metric, &[&model.id], whole(value));
            }
        }
    }

    fn named(&self, id: &str) -> Result<Arc<Model>, ApiError> {
        let found = self.models.iter().find(|m| m.id == id);
        found.cloned().ok_or_else(|| {
            let ids = self.ids().join(", ");
            let what = format!("there is no model {id:?}; there are: {ids}");
            ApiError::new(Kind::Model, what).param("model")
        })
    }

    /// The model that a body names; the only one if it names none.
    fn of(&self, body: &Body) -> Result<Arc<Model>, ApiError> {
        match (body.get("model"), &self.models[..]) {
            (Some(Value::String(id)), _) => self.named(id),
            (None | Some(Value::Null), [only]) => Ok(only.clone()),
            _ => Err(invalid("model", "must be the name of a model")),
        }
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
}

/// (route, field, what it says) of the routes that no table of parameters describes.
const FIELDS: [(&str, &str, &str); 14] = [
    ("/v1/embeddings", "model", MODEL),
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
    ("/tokenize", "model", MODEL),
    ("/tokenize", "content", "The text"),
    ("/tokenize", "add_special", "Begin as a prompt begins"),
    ("/tokenize", "with_pieces", "Each token's text as well"),
    ("/detokenize", "model", MODEL),
    ("/detokenize", "tokens", "The ids"),
    ("/apply-template", "model", MODEL),
    ("/apply-template", "messages", "The conversation"),
];
const MODEL: &str = "The model's name; may be left out where there is one only";

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
        _ => {
            let own = FIELDS.iter().filter(|(of, ..)| *of == path);
            own.map(|(_, name, about)| (*name, *about)).collect()
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
    let (list, one) = (served.clone(), served.clone());
    let known = Access::Known;
    vec![
        route(
            MethodFilter::GET,
            "/v1/models",
            known,
            "The models that are served",
            move || async move {
                let models: Vec<Value> = list.models.iter().map(|m| m.about()).collect();
                axum::Json(json!({ "object": "list", "data": models }))
            },
        ),
        route(
            MethodFilter::GET,
            "/v1/models/{model}",
            known,
            "One of them",
            move |Path(id): Path<String>| async move { one.named(&id).map(|m| axum::Json(m.about())) },
        ),
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
    ]
}

fn post<F, R>(served: &Arc<Served>, path: &'static str, about: &'static str, answer: F) -> Route
where
    F: Fn(Call) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Response, ApiError>> + Send + 'static,
{
    let served = served.clone();
    let handler = move |With(state): With<State>,
                        Extension(who): Extension<Principal>,
                        Json(body): Json<Body>| {
        let served = served.clone();
        let call = Call {
            served,
            state,
            who,
            body,
        };
        let answer = answer(call);
        async move { answer.await.into_response() }
    };
    let access = Access::Needs(Scope::Inference);
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
