//! Requests to a scheduler, and the answers of each alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{
    Error, Flow, GenerateParams, Generation, Replies, Request, SamplerParams, Scheduler,
    SchedulerParams, Session, Update, Want,
};
use kernels::KvType;
use model::Weights;
use text::Tokenizer;

use super::{tokenizer, weights};

pub(crate) struct Setup {
    pub(crate) weights: Arc<Weights>,
    pub(crate) tokenizer: Arc<Tokenizer>,
}

pub(crate) fn setup(name: &str) -> Setup {
    Setup {
        weights: weights(&format!("models/{name}")),
        tokenizer: Arc::new(tokenizer("models/llama3")),
    }
}

pub(crate) fn params(context: usize, parallel: usize) -> SchedulerParams {
    SchedulerParams::new(KvType::F32, context, parallel)
}

/// `n` tokens that no other seed has.
pub(crate) fn prompt(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32)
        .map(|i| 3 + (i * i + 31 * seed + 7 * i) % 200)
        .collect()
}

pub(crate) fn sampled(seed: u64, max_tokens: usize) -> GenerateParams {
    GenerateParams {
        sampler: SamplerParams {
            seed,
            temperature: 1.2,
            top_k: 0,
            ..SamplerParams::default()
        },
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..GenerateParams::default()
    }
}

pub(crate) fn request(prompt: Vec<u32>, params: GenerateParams) -> Request {
    Request {
        prompt,
        want: Want::Answer(Box::new(params)),
        ..Request::default()
    }
}

impl Setup {
    pub(crate) fn start(&self, params: SchedulerParams) -> Scheduler {
        Scheduler::start(self.weights.clone(), self.tokenizer.clone(), params).unwrap()
    }

    pub(crate) fn alone(
        &self,
        context: usize,
        prompt: &[u32],
        params: &GenerateParams,
    ) -> Generation {
        let mut session = Session::new(self.weights.clone(), KvType::F32, context).unwrap();
        session
            .generate(&self.tokenizer, prompt, params, &mut |_| Flow::Continue)
            .unwrap()
    }
}

/// Everything that a request gives; the emitted text must be the answer's.
pub(crate) fn collect(mut replies: Replies) -> Result<Generation, Error> {
    let (mut text, mut ids) = (String::new(), Vec::new());
    while let Some(update) = replies.next_blocking() {
        match update {
            Update::Started(_) => assert!(ids.is_empty(), "it starts once"),
            Update::Token { id, text: t, .. } => {
                ids.push(id);
                text += &t;
            }
            Update::Text(t) => text += &t,
            Update::Done(generation) => {
                assert_eq!(generation.text, text);
                assert_eq!(generation.ids, ids);
                return Ok(*generation);
            }
            Update::Failed(error) => return Err(error),
            Update::Embedding(_) | Update::Scores(_) => panic!("nobody asked for it"),
        }
    }
    Err(Error::Stopped)
}

pub(crate) fn same(got: &Generation, due: &Generation) {
    assert_eq!(got.ids, due.ids);
    assert_eq!(got.text, due.text);
    assert_eq!(got.finish_reason, due.finish_reason);
    assert_eq!(got.context_full, due.context_full);
    assert_eq!(got.logprobs, due.logprobs);
}

/// Waits until the engine has let go of everything but kept beginnings.
pub(crate) fn settled(scheduler: &Scheduler) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let s = scheduler.stats();
        if s.waiting == 0 && s.running == 0 && s.pages.0 == s.kept {
            return;
        }
        assert!(Instant::now() < end, "pages leak: {s:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
