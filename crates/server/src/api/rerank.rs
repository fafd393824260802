//! `/v1/rerank`: texts by how well they fit a query, in the shape that Jina and Cohere gave it.
//!
//! Two ways, of any model:
//!
//! - `embeddings`: the cosine between the mean last hidden states of the query and of the text;
//! - `likelihood`: how likely the query is behind the text, as the mean log-probability of its
//!   tokens (query likelihood, Ponte and Croft 1998; with language models that were never trained to
//!   rank, Sachan et al. 2022, arXiv:2204.07496).

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use engine::{Pooling, Update, Want};
use serde_json::{Value, json};
use text::Special;

use super::adapters::{self, Chosen};
use super::params::{flag, given, known, number};
use super::{Call, Model, aside, ask, embeddings, invalid};
use crate::error::{ApiError, Kind};

/// Most texts of one request, and the longest query in bytes.
const MOST_DOCUMENTS: usize = 1000;
const LONGEST_QUERY: usize = 1 << 16;

const PATH: &str = "/v1/rerank";

/// (route, field, what it says)
pub(super) const FIELDS: &[(&str, &str, &str)] = &[
    (PATH, "model", super::MODEL),
    (PATH, "keep_alive", super::KEEP_ALIVE),
    (PATH, "query", "A text"),
    (
        PATH,
        "documents",
        "Up to 1000 texts, or objects with a `text`",
    ),
    (PATH, "top_n", "How many come back [default: all]"),
    (
        PATH,
        "return_documents",
        "Whether their texts come back too [default: false]",
    ),
    (PATH, "method", "embeddings (default) or likelihood"),
    (PATH, "adapters", super::ADAPTERS),
    (PATH, "lora", "The same"),
    (PATH, "priority", super::table::PRIORITY),
    (PATH, "timeout_ms", super::table::TIMEOUT),
    (PATH, "user", "Not looked at"),
];

/// Other servers' words for things that are not done: texts are never cut.
const REFUSED: [&str; 6] = [
    "max_tokens_per_doc",
    "max_chunks_per_doc",
    "max_doc_length",
    "truncate",
    "truncate_prompt_tokens",
    "rank_fields",
];

/// How texts are compared.
#[derive(Clone, Copy, PartialEq)]
enum Method {
    Embeddings,
    Likelihood,
}

const METHODS: [(&str, Method); 2] = [
    ("embeddings", Method::Embeddings),
    ("likelihood", Method::Likelihood),
];

pub(crate) async fn answer(call: Call) -> Result<Response, ApiError> {
    check(&call)?;
    let model = call.model().await?;
    let body = &call.body;
    let method = match given(body, "method") {
        None => Method::Embeddings,
        Some(v) => {
            let found = METHODS.iter().find(|(name, _)| v == name);
            let found =
                found.ok_or_else(|| invalid("method", "must be embeddings or likelihood"))?;
            found.1
        }
    };
    let query = given(body, "query").and_then(Value::as_str);
    let query = query.filter(|q| (1..=LONGEST_QUERY).contains(&q.len()));
    let query = query
        .ok_or_else(|| invalid("query", "must be a text of 1 to 65536 bytes"))?
        .to_owned();
    let documents = documents(given(body, "documents"))?;
    let with_texts = flag(body, "return_documents")?;
    let top = number(body, "top_n", 1, usize::MAX)?.unwrap_or(documents.len());
    let chosen = adapters::chosen(&model, body).await?;
    call.state.keep_content(&call.who, || {
        json!({ "query": query, "documents": documents }).to_string()
    });
    let (scores, tokens) = match method {
        Method::Embeddings => by_embeddings(&call, &model, &chosen, query, &documents).await,
        Method::Likelihood => by_likelihood(&call, &model, &chosen, query, &documents).await,
    }
    .map_err(|error| match error.kind {
        Kind::Context => error.param("documents"),
        _ => error,
    })?;
    let mut order: Vec<usize> = (0..documents.len()).collect();
    // Of equal ones the earlier first.
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(top);
    let results = order.into_iter().map(|i| {
        let mut result = json!({ "index": i, "relevance_score": scores[i] });
        if with_texts {
            result["document"] = json!({ "text": documents[i] });
        }
        result
    });
    let answer = json!({
        "id": format!("rerank-{}", crate::random_hex::<12>()),
        "object": "list",
        "model": model.id,
        "results": results.collect::<Value>(),
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    });
    Ok(axum::Json(answer).into_response())
}

/// Refuses what would change the result and is not done; says or refuses what is unknown.
fn check(call: &Call) -> Result<(), ApiError> {
    let mut refused = REFUSED.iter().filter(|n| given(&call.body, n).is_some());
    match refused.next() {
        Some(name) => Err(invalid(
            name,
            "is not supported: each document is read whole",
        )),
        None => known(call, PATH),
    }
}

fn documents(value: Option<&Value>) -> Result<Vec<String>, ApiError> {
    let list = value.and_then(Value::as_array);
    let list = list.filter(|l| (1..=MOST_DOCUMENTS).contains(&l.len()));
    let list = list.ok_or_else(|| invalid("documents", "must be a list of 1 to 1000 texts"))?;
    let text = |(i, v): (usize, &Value)| {
        let text = v.as_str().or_else(|| v.get("text")?.as_str());
        let text = text.filter(|t| !t.is_empty()).map(str::to_owned);
        text.ok_or_else(|| invalid(&format!("documents[{i}]"), "must be a text, and not empty"))
    };
    list.iter().enumerate().map(text).collect()
}

/// The score of each text, and the tokens that it took.
type Scores = Result<(Vec<f64>, usize), ApiError>;

async fn by_embeddings(
    call: &Call,
    model: &Arc<Model>,
    chosen: &Chosen,
    query: String,
    documents: &[String],
) -> Scores {
    let texts: Vec<String> = std::iter::once(query)
        .chain(documents.iter().cloned())
        .collect();
    let tokenizer = model.tokenizer().clone();
    let ids = aside(move || {
        let ids = texts
            .iter()
            .map(|t| tokenizer.encode_prompt(t, Special::Text));
        Ok(ids.collect::<Result<Vec<_>, _>>()?)
    })
    .await?;
    let tokens = ids.iter().map(Vec::len).sum();
    let vectors = embeddings::vectors(call, model, chosen, ids, Pooling::Mean).await?;
    let mut vectors = vectors.into_iter().map(embeddings::unit);
    let query = vectors.next().unwrap_or_default();
    let cosine = |v: Vec<f32>| {
        let products = v
            .iter()
            .zip(&query)
            .map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum::<f64>()
    };
    Ok((vectors.map(cosine).collect(), tokens))
}

async fn by_likelihood(
    call: &Call,
    model: &Arc<Model>,
    chosen: &Chosen,
    query: String,
    documents: &[String],
) -> Scores {
    let tokenizer = model.tokenizer().clone();
    let documents = documents.to_vec();
    let jobs = aside(move || {
        let one = |document: &String| {
            let before = format!("{document}\n\nWhat somebody asked who found this text:");
            let head = tokenizer.encode_prompt(&before, Special::Text)?;
            let ids = tokenizer.encode_prompt(&format!("{before} {query}"), Special::Text)?;
            // The query begins where the tokens are others than without it.
            let same = head.iter().zip(&ids).take_while(|(a, b)| a == b).count();
            let from = same.clamp(1, ids.len().saturating_sub(1).max(1));
            Ok((ids, Want::Score { from, top: 0 }))
        };
        documents
            .iter()
            .map(one)
            .collect::<Result<Vec<_>, ApiError>>()
    })
    .await?;
    let tokens = jobs.iter().map(|(ids, _)| ids.len()).sum();
    let found = ask::each(call, model, chosen, jobs, true).await?;
    let mean = |update: &Update| match update {
        Update::Scores(list) if !list.is_empty() => {
            let sum: f64 = list.iter().map(|l| l.logprob.max(-9999.0)).sum();
            sum / list.len() as f64
        }
        _ => -9999.0,
    };
    Ok((found.iter().map(mean).collect(), tokens))
}
