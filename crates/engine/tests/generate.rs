//! Answers of a small real model: how they end, what is emitted, and that nothing depends on
//! chance or on the cache.

mod common;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::{Expected, session, tokenizer, weights};
use engine::{
    Error, Event, FinishReason, Flow, GenerateParams, Generation, SamplerParams, Session, filters,
    top_logprobs,
};
use model::Weights;
use text::Tokenizer;

struct Setup {
    weights: Arc<Weights>,
    tokenizer: Tokenizer,
    prompt: Vec<u32>,
}

fn setup() -> Setup {
    let expected = Expected::read("models/llama3/expected.safetensors");
    Setup {
        weights: weights("models/llama3"),
        tokenizer: tokenizer("models/llama3"),
        prompt: expected.ids(1, "input_ids").unwrap(),
    }
}

fn greedy(max_tokens: usize) -> GenerateParams {
    GenerateParams {
        sampler: SamplerParams::greedy(),
        max_tokens: Some(max_tokens),
        ..GenerateParams::default()
    }
}

fn sampled(seed: u64, max_tokens: usize) -> GenerateParams {
    GenerateParams {
        sampler: SamplerParams {
            seed,
            temperature: 1.5,
            top_k: 0,
            ..SamplerParams::default()
        },
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..GenerateParams::default()
    }
}

impl Setup {
    fn run(&self, session: &mut Session, params: &GenerateParams) -> Generation {
        let mut emitted = String::new();
        let mut ids = Vec::new();
        let answer = session
            .generate(&self.tokenizer, &self.prompt, params, &mut |event| {
                match event {
                    Event::Token { id, text, .. } => {
                        ids.push(id);
                        emitted += text;
                    }
                    Event::Text(text) => emitted += text,
                    Event::Prompt(_) | Event::Shift { .. } => {}
                }
                Flow::Continue
            })
            .unwrap();
        assert_eq!(emitted, answer.text, "what is emitted is the text");
        assert_eq!(ids, answer.ids, "an event per token");
        assert_eq!(answer.usage.completion_tokens, answer.ids.len());
        assert_eq!(answer.usage.prompt_tokens, self.prompt.len());
        answer
    }

    fn fresh(&self, params: &GenerateParams) -> Generation {
        self.run(&mut session(&self.weights, 256), params)
    }
}

#[test]
fn greedy_answers_equal_transformers() {
    let setup = setup();
    let expected = Expected::read("models/llama3/expected.safetensors");
    let due = expected.ids(1, "greedy").unwrap();
    let ends = |id: &u32| setup.tokenizer.eog().contains(id);
    let due: Vec<u32> = match due.iter().position(ends) {
        Some(end) => due[..=end].to_vec(),
        None => due,
    };
    let answer = setup.fresh(&greedy(32));
    assert_eq!(answer.ids, due);
    let text: Vec<u32> = due.iter().copied().filter(|id| !ends(id)).collect();
    let bytes = setup.tokenizer.decode(&text, false);
    assert_eq!(answer.text, String::from_utf8_lossy(&bytes));
}

#[test]
fn the_number_of_tokens_is_limited() {
    let setup = setup();
    for n in [0, 1, 5] {
        let answer = setup.fresh(&GenerateParams {
            ignore_eos: true,
            ..greedy(n)
        });
        assert_eq!(answer.ids.len(), n);
        assert_eq!(answer.finish_reason, FinishReason::Length);
        assert!(!answer.context_full);
    }
}

#[test]
fn any_end_of_generation_token_ends_it() {
    let setup = setup();
    let params = greedy(12);
    let free = setup.fresh(&params);
    // Take a token that comes for the first time somewhere inside as the end.
    let at = (2..free.ids.len() - 1)
        .find(|&i| !free.ids[..i].contains(&free.ids[i]))
        .unwrap();
    let ended = setup.fresh(&GenerateParams {
        eog: vec![free.ids[at]],
        ..params.clone()
    });
    assert_eq!(ended.ids, &free.ids[..=at]);
    assert_eq!(ended.finish_reason, FinishReason::Stop);
    assert!(free.text.starts_with(&ended.text) || ended.text.ends_with('\u{fffd}'));

    let ignored = setup.fresh(&GenerateParams {
        eog: vec![free.ids[at]],
        ignore_eos: true,
        ..params
    });
    assert!(!ignored.ids.contains(&free.ids[at]));
    assert_eq!(ignored.ids.len(), 12);
}

#[test]
fn stop_strings_end_it_wherever_tokens_part() {
    let setup = setup();
    let params = sampled(11, 24);
    let free = setup.fresh(&params);
    let chars: Vec<(usize, char)> = free.text.char_indices().collect();
    assert!(chars.len() > 12, "{:?}", free.text);
    for start in 0..chars.len() - 6 {
        let (from, to) = (chars[start].0, chars[start + 5].0);
        let stop = &free.text[from..to];
        let answer = setup.fresh(&GenerateParams {
            stop: vec!["never seen in this text".into(), stop.into()],
            ..params.clone()
        });
        let first = free.text.find(stop).unwrap();
        assert_eq!(answer.text, free.text[..first], "stop string {stop:?}");
        assert_eq!(answer.finish_reason, FinishReason::Stop);
        assert!(free.ids.starts_with(&answer.ids));
    }
    let refused = session(&setup.weights, 64).generate(
        &setup.tokenizer,
        &setup.prompt,
        &GenerateParams {
            stop: vec![String::new()],
            ..params
        },
        &mut |_| Flow::Continue,
    );
    assert!(matches!(
        refused,
        Err(Error::Parameter { field: "stop", .. })
    ));
}

#[test]
fn a_seed_means_a_text() {
    let setup = setup();
    let first = setup.fresh(&sampled(5, 20));
    // Whatever the session did before, and however the prompt is cut.
    let mut used = session(&setup.weights, 256);
    used.set_chunk(3);
    setup.run(&mut used, &sampled(6, 9));
    let again = setup.run(&mut used, &sampled(5, 20));
    assert_eq!((first.ids.clone(), first.text), (again.ids, again.text));
    assert!(again.usage.cached_tokens > 0);
    let other_seed = setup.fresh(&sampled(6, 20));
    assert_ne!(first.ids, other_seed.ids);
    let other_choice = setup.fresh(&GenerateParams {
        choice: 1,
        ..sampled(5, 20)
    });
    assert_ne!(first.ids, other_choice.ids);
    // An answer that was cut off goes on as if it had not been.
    let mut prefix = Setup {
        prompt: setup.prompt.clone(),
        ..setup
    };
    prefix.prompt.extend(&first.ids[..7]);
    let rest = prefix.fresh(&sampled(5, 13));
    assert_eq!(rest.ids, &first.ids[7..]);
}

#[test]
fn log_probabilities_are_those_before_sampling() {
    let setup = setup();
    let mut params = sampled(3, 6);
    params.logprobs = Some(4);
    let answer = setup.fresh(&params);
    let logprobs = answer.logprobs.unwrap();
    assert_eq!(logprobs.len(), 6);
    let mut prefix = setup.prompt.clone();
    let mut plain = session(&setup.weights, 256);
    for (id, got) in answer.ids.iter().zip(&logprobs) {
        let row = plain.advance(&prefix, &mut |_| Flow::Continue).unwrap();
        assert_eq!(got.id, *id);
        assert_eq!(got.top, top_logprobs(&row.logits, 4));
        let all = top_logprobs(&row.logits, row.logits.len());
        assert_eq!(
            Some(got.logprob),
            all.iter().find(|t| t.0 == *id).map(|t| t.1)
        );
        assert_eq!(got.top[0].0, filters::greedy(&row.logits).unwrap());
        prefix.push(*id);
    }
    params.logprobs = None;
    assert!(setup.fresh(&params).logprobs.is_none());
}

#[test]
fn it_stops_when_told() {
    let setup = setup();
    let mut session = session(&setup.weights, 256);
    session.set_chunk(2);
    let params = sampled(1, 50);
    let mut tokens = 0;
    let mut seen = String::new();
    let mut stop_after = |n: usize| {
        (tokens, seen) = (0, String::new());
        let answer = session
            .generate(
                &setup.tokenizer,
                &setup.prompt,
                &params,
                &mut |event| match event {
                    Event::Token { text, .. } => {
                        tokens += 1;
                        seen += text;
                        if tokens == n {
                            Flow::Stop
                        } else {
                            Flow::Continue
                        }
                    }
                    Event::Prompt(_) if n == 0 => Flow::Stop,
                    Event::Text(_) => panic!("nothing comes after a stop"),
                    _ => Flow::Continue,
                },
            )
            .unwrap();
        assert_eq!(answer.finish_reason, FinishReason::Cancelled);
        assert_eq!(answer.text, seen);
        answer.ids.len()
    };
    assert_eq!(stop_after(0), 0);
    assert_eq!(stop_after(1), 1);
    assert_eq!(stop_after(4), 4);

    let flagged = GenerateParams {
        cancel: Some(Arc::new(AtomicBool::new(true))),
        ..params
    };
    let answer = setup.fresh(&flagged);
    assert_eq!(answer.finish_reason, FinishReason::Cancelled);
    assert_eq!(answer.ids.len(), 0);
}

#[test]
fn a_full_context_is_said() {
    let setup = setup();
    let n = setup.prompt.len();
    let mut small = session(&setup.weights, n + 3);
    let params = GenerateParams {
        max_tokens: None,
        ..sampled(2, 0)
    };
    let answer = setup.run(&mut small, &params);
    assert_eq!(answer.finish_reason, FinishReason::Length);
    assert!(answer.context_full);
    assert_eq!(answer.ids.len(), 3);
    assert_eq!(answer.ids, setup.fresh(&sampled(2, 3)).ids);

    for context in [n, n - 1] {
        let refused = session(&setup.weights, context).generate(
            &setup.tokenizer,
            &setup.prompt,
            &params,
            &mut |_| Flow::Continue,
        );
        assert!(
            matches!(refused, Err(Error::ContextFull { needed, .. }) if needed == n + 1),
            "a prompt of {n} tokens in a context of {context}"
        );
    }
}

#[test]
fn a_shift_is_exact() {
    let setup = setup();
    let n = setup.prompt.len();
    let context = n + 6;
    let keep = 2;
    let params = GenerateParams {
        shift: Some(keep),
        ..sampled(8, 40)
    };
    let mut shifts = 0;
    let answer = session(&setup.weights, context)
        .generate(&setup.tokenizer, &setup.prompt, &params, &mut |event| {
            if let Event::Shift { kept, of } = event {
                assert_eq!((kept, of), (keep + (context - keep) / 2, context));
                shifts += 1;
            }
            Flow::Continue
        })
        .unwrap();
    assert!(shifts >= 2, "{shifts}");
    assert_eq!(answer.ids.len(), 40);
    assert!(!answer.context_full);

    // By hand: a fresh session for every token, and the same random numbers by position.
    let mut sampler_params = params.sampler.clone();
    let config = &setup.weights.config;
    sampler_params.logit_bias = setup
        .tokenizer
        .eog()
        .iter()
        .chain(&config.eos)
        .map(|id| (*id, f32::NEG_INFINITY))
        .collect();
    let vocab = config.vocab.min(setup.tokenizer.len());
    let breakers = engine::dry::Breakers::default();
    let mut sampler = engine::Sampler::new(sampler_params, vocab, 0, breakers).unwrap();
    let mut all = setup.prompt.clone();
    let mut view = all.clone();
    for due in &answer.ids {
        if view.len() == context {
            let newest = (context - keep) / 2;
            view = [&view[..keep], &view[context - newest..]].concat();
        }
        let mut fresh = session(&setup.weights, context);
        let row = fresh.advance(&view, &mut |_| Flow::Continue).unwrap();
        let id = sampler.sample(&row.logits, &all).unwrap();
        assert_eq!(id, *due);
        all.push(id);
        view.push(id);
    }

    let refused = session(&setup.weights, context).generate(
        &setup.tokenizer,
        &setup.prompt,
        &GenerateParams {
            shift: Some(context - 1),
            ..params
        },
        &mut |_| Flow::Continue,
    );
    assert!(matches!(
        refused,
        Err(Error::Parameter { field: "shift", .. })
    ));
}

#[test]
fn what_was_read_before_is_not_read_again() {
    let setup = setup();
    let mut session = session(&setup.weights, 256);
    let first = setup.run(&mut session, &sampled(1, 5));
    assert_eq!(first.usage.cached_tokens, 0);
    let second = setup.run(&mut session, &sampled(1, 5));
    assert_eq!(second.usage.cached_tokens, setup.prompt.len() - 1);
    assert_eq!(first.ids, second.ids);
}

#[test]
fn dry_works_on_the_tokenizers_pieces() {
    let setup = setup();
    let mut params = sampled(4, 30);
    params.sampler.temperature = 0.0;
    let plain = setup.fresh(&params);
    params.sampler.dry_multiplier = 5.0;
    params.sampler.dry_allowed_length = 1;
    params.sampler.dry_penalty_last_n = -1;
    let dry = setup.fresh(&params);
    let repeats = |ids: &[u32]| {
        let pairs: Vec<&[u32]> = ids.windows(3).collect();
        (1..pairs.len())
            .filter(|&i| pairs[..i].contains(&pairs[i]))
            .count()
    };
    assert!(repeats(&dry.ids) <= repeats(&plain.ids));
    assert!(repeats(&dry.ids) <= 1, "{:?}", dry.ids);
}

#[test]
fn bad_parameters_are_refused_before_any_work() {
    let setup = setup();
    let mut params = greedy(1);
    params.sampler.top_p = 2.0;
    let mut events = 0;
    let refused =
        session(&setup.weights, 64).generate(&setup.tokenizer, &setup.prompt, &params, &mut |_| {
            events += 1;
            Flow::Continue
        });
    assert!(matches!(
        refused,
        Err(Error::Parameter { field: "top_p", .. })
    ));
    assert_eq!(events, 0);
}
