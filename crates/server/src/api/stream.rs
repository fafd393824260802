//! Answers as they are made: server-sent events, written when the connection asks for more.
//!
//! A token goes from the engine's channel to the socket without a task between them: the body of
//! the answer holds the requests to the engine, takes what they have, and gives all of it away at
//! once, one event a token. It is dropped when its client leaves, and with it the requests. What
//! fails after the first byte is said in the stream, which then ends without `[DONE]`; so is the end
//! of the server.

use std::convert::Infallible;
use std::fmt::Display;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use engine::{Start, Update};
use hyper::body::{Body as HttpBody, Frame};
use tokio::time::{Interval, MissedTickBehavior};

use super::Model;
use super::ask::{Choice, Used};
use super::shape::Shape;
use crate::error::{ApiError, Kind};
use crate::state::State;

/// Bytes after which what waits is given away before more is taken.
const FRAME: usize = 16 << 10;

/// Bytes of an event around a token, about.
const EVENT: usize = 320;

/// Streams the answers of all choices. The first update of the first choice is waited for, as long
/// as a stream may say nothing, so that what fails before there is an answer has a status of its
/// own.
pub(crate) async fn answer(
    mut choices: Vec<Choice>,
    model: Arc<Model>,
    shape: Shape,
    state: &State,
) -> Result<Response, ApiError> {
    let mut started = None;
    if let Some(first) = choices.first_mut()
        && let Ok(update) = tokio::time::timeout(state.settings().ping, first.next()).await
        && let Update::Started(start) = update?
    {
        started = Some(start);
    }
    let events = Events::new(choices, started, model, shape, state);
    let mut answer = Body::new(events).into_response();
    let headers = answer.headers_mut();
    let kind = HeaderValue::from_static("text/event-stream");
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(answer)
}

/// The body of a stream.
struct Events {
    /// Those that go on.
    streams: Vec<Stream>,
    model: Arc<Model>,
    shape: Shape,
    used: Used,
    ping: Interval,
    cut: Pin<Box<dyn Future<Output = ApiError> + Send>>,
    /// What was made and not given away yet.
    made: Vec<u8>,
    over: bool,
}

/// One choice on its way.
struct Stream {
    choice: Choice,
    /// The first of its prompt counts the prompt.
    first: bool,
    start: Option<Start>,
    /// See [`Shape::around`].
    around: (String, String),
    /// Characters of the tokens whose log-probabilities were said.
    offset: usize,
}

impl Events {
    fn new(
        choices: Vec<Choice>,
        started: Option<Start>,
        model: Arc<Model>,
        shape: Shape,
        state: &State,
    ) -> Events {
        let mut made = Vec::new();
        let stream = |choice: Choice| {
            let (index, mut offset) = (choice.index, 0);
            if let Some(chunk) = shape.first(index, model.tokenizer(), &mut offset) {
                event(&mut made, &chunk);
            }
            Stream {
                first: index.is_multiple_of(shape.n),
                start: started.filter(|_| index == 0),
                around: shape.around(index),
                offset,
                choice,
            }
        };
        let streams = choices.into_iter().map(stream).collect();
        let mut ping = tokio::time::interval(state.settings().ping);
        ping.reset();
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Events {
            streams,
            model,
            shape,
            used: Used::default(),
            ping,
            cut: Box::pin(state.when_cut()),
            made,
            over: false,
        }
    }

    /// Takes what there is from all choices.
    fn take(&mut self, context: &mut Context<'_>) {
        let mut i = 0;
        while i < self.streams.len() {
            let (stream, made) = (&mut self.streams[i], &mut self.made);
            match stream.take(&self.model, &self.shape, &mut self.used, made, context) {
                Poll::Ready(Ok(())) => drop(self.streams.remove(i)),
                Poll::Ready(Err(error)) => return self.fail(&error),
                Poll::Pending => i += 1,
            }
            if self.made.len() >= FRAME {
                // The next frame begins with the next choice, so that a slow client hears all of them.
                self.streams.rotate_left(i);
                return;
            }
        }
        if self.streams.is_empty() {
            if let Some(chunk) = self.shape.used(&self.used) {
                event(&mut self.made, &chunk);
            }
            if let Some(done) = self.shape.done() {
                event(&mut self.made, &done);
            }
            self.over = true;
        }
    }

    fn fail(&mut self, error: &ApiError) {
        event(&mut self.made, &error.body());
        self.streams.clear();
        self.over = true;
    }
}

impl Stream {
    /// Takes what there is; ready when its answer is complete, or has failed.
    fn take(
        &mut self,
        model: &Model,
        shape: &Shape,
        used: &mut Used,
        made: &mut Vec<u8>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), ApiError>> {
        let (index, tokenizer) = (self.choice.index, model.tokenizer());
        while made.len() < FRAME {
            let update = match self.choice.poll_next(context) {
                Poll::Ready(Ok(update)) => update,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            };
            match update {
                Update::Started(start) => self.start = Some(start),
                Update::Token { id, text, logprob } => match logprob.filter(|_| !model.ends(id)) {
                    Some(logprob) => {
                        let list = shape.logprobs(tokenizer, &logprob, &mut self.offset);
                        event(made, &shape.more(index, &text, list));
                    }
                    None if text.is_empty() => {}
                    None => self.text(made, &text),
                },
                Update::Text(text) => self.text(made, &text),
                Update::Done(generation) => {
                    event(made, &shape.last(index, model, &generation, self.start));
                    used.add(
                        self.first,
                        self.choice.prompt_tokens,
                        &generation,
                        self.start,
                    );
                    return Poll::Ready(Ok(()));
                }
                Update::Embedding(_) | Update::Scores(_) | Update::Failed(_) => {}
            }
        }
        // There may be more: whoever gets a frame asks again.
        Poll::Pending
    }

    /// [`Shape::more`], of which only the text is written anew.
    fn text(&self, made: &mut Vec<u8>, text: &str) {
        let (before, after) = &self.around;
        made.extend_from_slice(b"data: ");
        made.extend_from_slice(before.as_bytes());
        // A text becomes JSON, and a vector has room, always.
        let _ = serde_json::to_writer(&mut *made, text);
        made.extend_from_slice(after.as_bytes());
        made.extend_from_slice(b"\n\n");
    }
}

fn event(made: &mut Vec<u8>, data: &impl Display) {
    let _ = write!(made, "data: {data}\n\n");
}

impl HttpBody for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let all = &mut *self;
        if !all.over && catch_unwind(AssertUnwindSafe(|| all.take(context))).is_err() {
            all.fail(&ApiError::new(
                Kind::Internal,
                "the server met a bug; its log says more",
            ));
        }
        if !all.over
            && let Poll::Ready(error) = all.cut.as_mut().poll(context)
        {
            all.fail(&error);
        }
        if !all.over && all.ping.poll_tick(context).is_ready() && all.made.is_empty() {
            all.made.extend_from_slice(b": ping\n\n");
        }
        if !all.made.is_empty() {
            let made = std::mem::replace(&mut all.made, Vec::with_capacity(EVENT));
            return Poll::Ready(Some(Ok(Frame::data(made.into()))));
        }
        match all.over {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over && self.made.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::task::Waker;
    use std::time::{Duration, Instant};

    use engine::{GenerateParams, Request, SamplerParams, Scheduler, SchedulerParams, Want};
    use kernels::{Compute, Kernels, KvType, Level};
    use serde_json::Value;
    use text::Tokenizer;

    use super::super::ask::tests::choice;
    use super::super::shape::Form;
    use super::*;
    use crate::settings::Settings;

    /// Three sequences at once of a random Llama.
    fn tiny() -> Model {
        let path = "../../tests/fixtures/reference/models/llama3";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let kernels = Arc::new(Kernels::new(Level::best(), Compute::F32, 1).unwrap());
        let weights = Arc::new(model::open(&path, kernels).unwrap());
        let tokenizer = Arc::new(Tokenizer::open(&path).unwrap());
        let params = SchedulerParams::new(KvType::F32, 128, 3);
        Model {
            id: "tiny".into(),
            created: 1,
            scheduler: Scheduler::start(weights, tokenizer, params).unwrap(),
            template: None,
            sampler: SamplerParams::default(),
            speculation: engine::Speculation::default(),
            eog: Vec::new(),
            stop: Vec::new(),
            system: None,
            turns: Vec::new(),
            seed: None,
            max_tokens: None,
            adaptation: engine::Adaptation::default(),
            adapters: super::super::Adapters::default(),
        }
    }

    fn shape(form: Form, usage: bool, n: usize) -> Shape {
        Shape {
            form,
            id: "chatcmpl-1".into(),
            created: 7,
            model: "a \"model\"\\ \u{1} ü".into(),
            usage,
            n,
            echo: Arc::default(),
        }
    }

    /// Whose client is slow finds all choices waiting: each frame begins with the next of them.
    #[test]
    fn a_slow_client_hears_all_choices() {
        const CHOICES: usize = 3;
        const TOKENS: usize = 50;
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(Settings::default(), &folder.path().join("server.sqlite")).unwrap();
        let model = Arc::new(tiny());
        let choices = (0..CHOICES).map(|index| {
            let params = GenerateParams {
                choice: index as u64,
                max_tokens: Some(TOKENS),
                logprobs: Some(20),
                ignore_eos: true,
                ..GenerateParams::default()
            };
            let request = Request {
                prompt: vec![1, 2, 3],
                want: Want::Answer(Box::new(params)),
                ..Request::default()
            };
            let replies = model.scheduler.submit(request).unwrap();
            choice(index, replies, &state, &model)
        });
        let choices: Vec<Choice> = choices.collect();
        let end = Instant::now() + Duration::from_secs(60);
        while model.scheduler.stats().generated < (CHOICES * TOKENS) as u64 {
            assert!(Instant::now() < end, "{:?}", model.scheduler.stats());
            std::thread::sleep(Duration::from_millis(5));
        }
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().build().unwrap();
        let _inside = runtime.enter();
        let mut events = Events::new(
            choices,
            None,
            model,
            shape(Form::Text, false, CHOICES),
            &state,
        );
        let mut context = Context::from_waker(Waker::noop());
        let mut heard = Vec::new();
        for _ in 0..2 * CHOICES {
            let frame = Pin::new(&mut events).poll_frame(&mut context);
            let Poll::Ready(Some(Ok(frame))) = frame else {
                panic!("{frame:?} after {heard:?}");
            };
            let frame = frame.into_data().unwrap();
            let first = frame.split(|byte| *byte == b'\n').next().unwrap();
            let first: Value = serde_json::from_slice(&first["data: ".len()..]).unwrap();
            heard.push(first["choices"][0]["index"].as_u64().unwrap());
        }
        assert_eq!(heard, [0, 1, 2, 0, 1, 2]);
    }

    /// What is written around a text is what the whole event would be.
    #[test]
    fn only_the_text_is_written_anew() {
        for form in [Form::Chat, Form::Text, Form::Native] {
            for usage in [false, true] {
                let shape = shape(form, usage, 1);
                let (before, after) = shape.around(3);
                for text in ["", " river", "\"\\\n\t\u{0}\u{7f}", "ü😀\u{2028}", &before] {
                    let due = shape.more(3, text, Value::Null).to_string();
                    let text = serde_json::to_string(text).unwrap();
                    assert_eq!(format!("{before}{text}{after}"), due);
                }
            }
        }
    }
}
