//! Answers as they are made: server-sent events, written by a task of their own.
//!
//! The task ends when its client leaves, and with it the requests to the engine. What fails after
//! the first byte is said in the stream, which then ends without `[DONE]`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use engine::{Generation, Start, Update};
use hyper::body::{Body as HttpBody, Frame};
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;

use super::Model;
use super::ask::{Choice, PING, Used};
use super::shape::Shape;
use crate::error::{ApiError, Kind};

/// Events that may wait for their client.
const EVENTS: usize = 16;

/// The body of a stream.
struct Events(Receiver<Bytes>);

impl HttpBody for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|event| event.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Whoever writes events; an error: the client has left.
#[derive(Clone)]
struct Writer(Sender<Bytes>);

struct Left;

impl Writer {
    async fn event(&self, data: &str) -> Result<(), Left> {
        let bytes = Bytes::from(format!("data: {data}\n\n"));
        self.0.send(bytes).await.map_err(|_| Left)
    }

    async fn json(&self, value: &Value) -> Result<(), Left> {
        self.event(&value.to_string()).await
    }

    async fn ping(&self) -> Result<(), Left> {
        let ping = Bytes::from_static(b": ping\n\n");
        self.0.send(ping).await.map_err(|_| Left)
    }
}

/// How a choice ended, for the usage.
struct Ended {
    first: bool,
    prompt: usize,
    generation: Box<Generation>,
    start: Option<Start>,
}

/// Streams the answers of all choices. The first update of the first choice is waited for, so that
/// what fails before there is an answer has a status of its own.
pub(crate) async fn answer(
    mut choices: Vec<Choice>,
    model: Arc<Model>,
    shape: Shape,
) -> Result<Response, ApiError> {
    let mut started = None;
    if let Some(first) = choices.first_mut()
        && let Update::Started(start) = first.next().await?
    {
        started = Some(start);
    }
    let (sender, receiver) = channel(EVENTS);
    tokio::spawn(run(choices, started, model, shape, Writer(sender)));
    let mut answer = Body::new(Events(receiver)).into_response();
    let headers = answer.headers_mut();
    let kind = HeaderValue::from_static("text/event-stream");
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(answer)
}

async fn run(
    choices: Vec<Choice>,
    started: Option<Start>,
    model: Arc<Model>,
    shape: Shape,
    writer: Writer,
) {
    // Dropped when this ends, and with it the tasks, and with them their requests.
    let mut tasks = JoinSet::new();
    for choice in choices {
        let first = choice.index.is_multiple_of(shape.n);
        let start = started.filter(|_| choice.index == 0);
        let (model, shape, writer) = (model.clone(), shape.clone(), writer.clone());
        tasks.spawn(one(choice, first, start, model, shape, writer));
    }
    let mut used = Used::default();
    let mut ping = tokio::time::interval(PING);
    ping.reset();
    loop {
        let joined = tokio::select! {
            joined = tasks.join_next() => joined,
            () = writer.0.closed() => return,
            _ = ping.tick() => match writer.ping().await {
                Ok(()) => continue,
                Err(Left) => return,
            },
        };
        let error = match joined {
            None => break,
            Some(Ok(Ok(Some(e)))) => {
                used.add(e.first, e.prompt, &e.generation, e.start);
                continue;
            }
            Some(Ok(Ok(None))) => return,
            Some(Ok(Err(error))) => error,
            Some(Err(_)) => {
                ApiError::new(Kind::Internal, "the server met a bug; its log says more")
            }
        };
        let _ = writer.json(&error.body()).await;
        return;
    }
    if let Some(chunk) = shape.used(&used)
        && writer.json(&chunk).await.is_err()
    {
        return;
    }
    if let Some(done) = shape.done() {
        let _ = writer.event(done).await;
    }
}

/// One choice to its end; `None` if the client has left.
async fn one(
    mut choice: Choice,
    first: bool,
    mut start: Option<Start>,
    model: Arc<Model>,
    shape: Shape,
    writer: Writer,
) -> Result<Option<Ended>, ApiError> {
    let index = choice.index;
    let tokenizer = model.tokenizer();
    let mut offset = 0;
    if let Some(chunk) = shape.first(index, tokenizer, &mut offset)
        && writer.json(&chunk).await.is_err()
    {
        return Ok(None);
    }
    loop {
        let chunk = match choice.next().await? {
            Update::Started(s) => {
                start = Some(s);
                continue;
            }
            Update::Token { id, text, logprob } => {
                let logprob = logprob.filter(|_| !model.ends(id));
                if text.is_empty() && logprob.is_none() {
                    continue;
                }
                let list = logprob.map(|l| shape.logprobs(tokenizer, &l, &mut offset));
                shape.more(index, &text, list.unwrap_or_default())
            }
            Update::Text(text) => shape.more(index, &text, Value::Null),
            Update::Done(generation) => {
                let last = shape.last(index, &model, &generation, start);
                if writer.json(&last).await.is_err() {
                    return Ok(None);
                }
                return Ok(Some(Ended {
                    first,
                    prompt: choice.prompt_tokens,
                    generation,
                    start,
                }));
            }
            Update::Embedding(_) | Update::Scores(_) | Update::Failed(_) => continue,
        };
        if writer.json(&chunk).await.is_err() {
            return Ok(None);
        }
    }
}
