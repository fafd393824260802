//! Guessing ahead changes nothing but time: the same tokens, text, log-probabilities, reasons and
//! cache, over prompts, samplers, models and both compute modes.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Expected, path, tokenizer};
use engine::{
    Drafts, Error, Event, FinishReason, Flow, GenerateParams, Generation, SamplerParams, Session,
    Speculation,
};
use kernels::{Compute, Kernels, KvType, Level};
use model::Weights;
use proptest::prelude::*;
use text::{Special, Tokenizer};

fn open(path: &Path, compute: Compute) -> Arc<Weights> {
    let kernels = Kernels::new(Level::best(), compute, 2).unwrap();
    Arc::new(model::open(path, Arc::new(kernels)).unwrap())
}

/// Everything about an answer that a person could notice, but for the time it took.
#[derive(Debug, PartialEq)]
struct Seen {
    ids: Vec<u32>,
    text: String,
    reason: FinishReason,
    context_full: bool,
    usage: engine::Usage,
    logprobs: Option<Vec<engine::TokenLogprob>>,
    events: Vec<String>,
    held: Vec<u32>,
}

fn run(
    session: &mut Session,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    params: &GenerateParams,
) -> (Seen, Drafts) {
    let mut events = Vec::new();
    let made = session.generate(tokenizer, prompt, params, &mut |event| {
        events.push(match event {
            // Holds the token, its text and its log-probabilities.
            Event::Token { .. } | Event::Text(_) | Event::Shift { .. } => format!("{event:?}"),
            Event::Prompt(progress) => format!("{progress:?}"),
        });
        Flow::Continue
    });
    let Generation {
        ids,
        text,
        finish_reason,
        context_full,
        usage,
        timings: _,
        drafts,
        logprobs,
    } = made.unwrap();
    let seen = Seen {
        ids,
        text,
        reason: finish_reason,
        context_full,
        usage,
        logprobs,
        events,
        held: session.held().to_vec(),
    };
    (seen, drafts)
}

/// Guesses at every chance, the same ones every time.
fn always(most: usize) -> Speculation {
    Speculation {
        most,
        always: true,
        ..Speculation::default()
    }
}

struct Model {
    tokenizer: Tokenizer,
    /// In f32 and fast.
    weights: [Arc<Weights>; 2],
    prompt: Vec<u32>,
}

impl Model {
    fn fixture(name: &str) -> Model {
        let folder = format!("models/{name}");
        let expected = Expected::read(&format!("{folder}/expected.safetensors"));
        Model {
            tokenizer: tokenizer(&folder),
            weights: [Compute::F32, Compute::Fast].map(|c| open(&path(&folder), c)),
            prompt: expected.ids(1, "input_ids").unwrap(),
        }
    }

    /// Runs without guesses, then by look-up, then with the other compute mode as draft model.
    fn compare(&self, mode: usize, kv: KvType, context: usize, case: &Case) -> Drafts {
        let weights = &self.weights[mode];
        let session = || Session::new(weights.clone(), kv, context).unwrap();
        let run = |session: &mut Session, speculate| {
            let params = GenerateParams {
                speculate,
                ..case.params.clone()
            };
            run(session, &self.tokenizer, &case.prompt, &params)
        };
        let (due, none) = run(&mut session(), Speculation::default());
        assert_eq!(none, Drafts::default());
        let mut all = Drafts::default();
        let mut check = |session: &mut Session, speculation| {
            let (got, drafts) = run(session, speculation);
            assert_eq!(got, due, "{speculation:?} {case:?}");
            assert!(drafts.accepted <= drafts.drafted);
            all.drafted += drafts.drafted;
            all.accepted += drafts.accepted;
        };
        check(&mut session(), always(case.most));
        let paced = Speculation {
            always: false,
            ..always(case.most)
        };
        check(&mut session(), paced);
        let mut helped = session();
        let other = Session::new(self.weights[1 - mode].clone(), KvType::Q8_0, context);
        let own = &self.tokenizer;
        helped.set_draft(other.unwrap(), own, own).unwrap();
        check(&mut helped, always(case.most));
        all
    }
}

#[derive(Clone, Debug)]
struct Case {
    prompt: Vec<u32>,
    most: usize,
    params: GenerateParams,
}

fn any_case(prompt: Vec<u32>, vocab: u32) -> impl Strategy<Value = Case> {
    let filters = (
        prop_oneof![Just(0), Just(1), Just(5), Just(40)],
        0.3f32..=1.0,
        0f32..0.2,
        prop_oneof![Just(1.0f32), 0.3f32..1.0],
    );
    let penalties = (prop_oneof![Just(1.0f32), 0.8f32..1.5], -1i32..40, 0f32..1.0);
    let extra = (0f32..2.0, 0f32..1.0, 0f32..1.0, 0u8..3, any::<u64>());
    let sampler = (
        prop_oneof![Just(0.0f32), 0.01f32..0.3, 0.5f32..1.5],
        filters,
        penalties,
        extra,
    )
        .prop_map(|(temperature, f, p, e)| SamplerParams {
            temperature,
            top_k: f.0,
            top_p: f.1,
            min_p: f.2,
            typical_p: f.3,
            repeat_penalty: p.0,
            repeat_last_n: p.1,
            frequency_penalty: p.2,
            dry_multiplier: if e.0 < 1.0 { 0.0 } else { e.0 },
            xtc_probability: if e.1 < 0.7 { 0.0 } else { e.1 },
            dynatemp_range: if e.2 < 0.7 { 0.0 } else { e.2 },
            mirostat: e.3,
            seed: e.4,
            ..SamplerParams::default()
        });
    // Quotes of the prompt, so that there is something to look up.
    let prompts = (
        prop::collection::vec(0..vocab, 0..12),
        0..prompt.len(),
        1usize..4,
    )
        .prop_map(move |(free, from, times)| {
            let mut all = prompt.clone();
            for _ in 0..times {
                all.extend_from_slice(&prompt[from..(from + 9).min(prompt.len())]);
                all.extend_from_slice(&free);
            }
            all
        });
    let ways = (
        1usize..12,
        1usize..40,
        any::<bool>(),
        prop::option::of(0usize..4),
        prop::option::of("[a-e ]{1,2}"),
        prop::option::of(2usize..6),
    );
    (prompts, sampler, ways).prop_map(|(prompt, sampler, w)| Case {
        prompt,
        most: w.0,
        params: GenerateParams {
            sampler,
            max_tokens: Some(w.1),
            ignore_eos: w.2,
            logprobs: w.3,
            stop: w.4.into_iter().collect(),
            shift: w.5,
            ..GenerateParams::default()
        },
    })
}

fn proptest_model(name: &str, cases: u32) {
    let model = Model::fixture(name);
    let vocab = model.weights[0].config.vocab.min(model.tokenizer.len());
    let strategy = (
        any_case(model.prompt.clone(), vocab as u32),
        0usize..2,
        prop_oneof![Just(KvType::F32), Just(KvType::F16), Just(KvType::Q8_0)],
        0usize..60,
    );
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let sum = std::cell::Cell::new(Drafts::default());
    let ran = runner.run(&strategy, |(case, mode, kv, room)| {
        let drafts = model.compare(mode, kv, case.prompt.len() + 4 + room, &case);
        let mut all = sum.get();
        all.drafted += drafts.drafted;
        all.accepted += drafts.accepted;
        sum.set(all);
        Ok(())
    });
    ran.unwrap();
    let sum = sum.get();
    // Both ends of the walk were met.
    assert!(sum.accepted > 5, "{sum:?}");
    assert!(sum.drafted - sum.accepted > 5, "{sum:?}");
}

#[test]
fn answers_are_the_same_llama3() {
    proptest_model("llama3", 48);
}

#[test]
fn answers_are_the_same_sentencepiece() {
    proptest_model("llama2_gqa", 32);
}

#[test]
fn answers_are_the_same_scaled_rope() {
    proptest_model("llama3_1", 32);
}

#[test]
fn an_equal_draft_model_guesses_everything() {
    let model = Model::fixture("llama3");
    for temperature in [0.0, 1.0] {
        for mirostat in 0..3 {
            let sampler = SamplerParams {
                temperature,
                mirostat,
                repeat_penalty: 1.2,
                seed: 5,
                ..SamplerParams::default()
            };
            let params = GenerateParams {
                sampler,
                max_tokens: Some(31),
                ignore_eos: true,
                speculate: always(4),
                ..GenerateParams::default()
            };
            let session = || Session::new(model.weights[0].clone(), KvType::F16, 256).unwrap();
            let mut helped = session();
            let own = &model.tokenizer;
            helped.set_draft(session(), own, own).unwrap();
            // The second answer begins with what both caches hold.
            for _ in 0..2 {
                let (_, drafts) = run(&mut helped, own, &model.prompt, &params);
                assert!(drafts.drafted >= 20, "{drafts:?}");
                // Look-ups may have been preferred now and then.
                assert!(drafts.accepted * 10 >= drafts.drafted * 9, "{drafts:?}");
            }
        }
    }
}

#[test]
fn a_draft_model_with_other_tokens_is_refused() {
    let model = Model::fixture("llama3");
    let other = Model::fixture("llama3_1");
    let session = |m: &Model| Session::new(m.weights[0].clone(), KvType::F16, 64).unwrap();
    let mut target = session(&model);
    let refused = target.set_draft(session(&other), &model.tokenizer, &other.tokenizer);
    let error = refused.unwrap_err();
    assert!(matches!(error, Error::DraftVocabulary { .. }), "{error}");
    assert!(error.to_string().contains("vocabulary"), "{error}");
}

#[test]
fn a_draft_model_that_is_full_is_left_alone() {
    let model = Model::fixture("llama3");
    let own = &model.tokenizer;
    let session = |context| Session::new(model.weights[0].clone(), KvType::F16, context).unwrap();
    let params = GenerateParams {
        sampler: SamplerParams::greedy(),
        max_tokens: Some(20),
        ignore_eos: true,
        ..GenerateParams::default()
    };
    let (due, _) = run(&mut session(256), own, &model.prompt, &params);
    let mut helped = session(256);
    let draft = session(model.prompt.len() + 6);
    helped.set_draft(draft, own, own).unwrap();
    let params = GenerateParams {
        speculate: always(3),
        ..params
    };
    let (got, drafts) = run(&mut helped, own, &model.prompt, &params);
    assert_eq!(got, due);
    assert!(drafts.drafted > 0);
}

/// The real model, if `PUNA_TEST_MODEL` names it.
fn real_model(test: &str) -> Option<PathBuf> {
    let Some(path) = std::env::var_os("PUNA_TEST_MODEL").map(PathBuf::from) else {
        let listed = include_str!("../../../tests/allowed-skips.txt")
            .lines()
            .any(|line| line.starts_with(&format!("{test}:")));
        assert!(
            std::env::var_os("CI").is_none() || listed,
            "{test}: PUNA_TEST_MODEL is not set"
        );
        eprintln!("SKIPPED {test}: PUNA_TEST_MODEL is not set");
        return None;
    };
    Some(path)
}

#[test]
fn the_real_models_answers_are_the_same() {
    let Some(path) = real_model("the_real_models_answers_are_the_same") else {
        return;
    };
    let tokenizer = Tokenizer::open(&path).unwrap();
    let model = Model {
        weights: [Compute::F32, Compute::Fast].map(|c| open(&path, c)),
        prompt: Vec::new(),
        tokenizer,
    };
    let code = "def read(path):\n    with open(path) as f:\n        return f.read()\n\n\
                def read_lines(path):\n    with open(path) as f:\n";
    let list = "One apple, two apples, three apples, four apples, five";
    let samplers = [
        SamplerParams::greedy(),
        SamplerParams {
            seed: 11,
            ..SamplerParams::default()
        },
        SamplerParams {
            temperature: 0.0,
            repeat_penalty: 1.1,
            ..SamplerParams::default()
        },
        SamplerParams {
            mirostat: 2,
            seed: 12,
            ..SamplerParams::default()
        },
    ];
    let mut sum = Drafts::default();
    for (i, sampler) in samplers.into_iter().enumerate() {
        let text = [code, list][i % 2];
        let prompt = model.tokenizer.encode_prompt(text, Special::Text).unwrap();
        let case = Case {
            prompt,
            most: 6,
            params: GenerateParams {
                sampler,
                max_tokens: Some(20),
                logprobs: Some(2),
                ..GenerateParams::default()
            },
        };
        let mode = i / 2;
        let kv = [KvType::F32, KvType::F16][mode];
        let drafts = model.compare(mode, kv, 256, &case);
        sum.drafted += drafts.drafted;
        sum.accepted += drafts.accepted;
    }
    assert!(sum.accepted > 5, "{sum:?}");
}
