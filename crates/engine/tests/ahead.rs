//! Guessing ahead among many: each answer is the one that it would be alone and without guesses.

mod common;

use common::scheduling::{Setup, collect, params, prompt, request, same, sampled, settled, setup};
use engine::{
    Beside, DraftModel, Drafter, Error, GenerateParams, Request, SamplerParams, Scheduler,
    SchedulerParams, Speculation,
};
use kernels::{Compute, Kernels, KvType, Level};
use model::PAGE;

fn always(most: usize, by: Drafter) -> Speculation {
    let always = true;
    Speculation { most, by, always }
}

/// A scheduler with a draft model: the same model with other roundings, so that it is right often
/// and not always.
fn with_draft(setup: &Setup, params: SchedulerParams, cache: usize) -> Scheduler {
    let kernels = Kernels::new(Level::best(), Compute::Fast, 2).unwrap();
    let path = common::path("models/llama3");
    let weights = model::open(&path, std::sync::Arc::new(kernels)).unwrap();
    let draft = DraftModel {
        weights: std::sync::Arc::new(weights),
        tokenizer: setup.tokenizer.clone(),
        kv: KvType::Q8_0,
        context: params.context,
        cache,
    };
    let (weights, tokenizer) = (setup.weights.clone(), setup.tokenizer.clone());
    let beside = Beside {
        draft: Some(draft),
        ..Beside::default()
    };
    Scheduler::start_beside(weights, tokenizer, params, beside).unwrap()
}

/// A prompt that says things twice, so that there is something to quote.
fn echo(seed: u32, n: usize) -> Vec<u32> {
    let half = prompt(seed, n.div_ceil(2));
    [&half[..], &half[..n / 2]].concat()
}

/// Requests of all kinds.
fn requests(n: u32, long: usize) -> Vec<(Vec<u32>, GenerateParams)> {
    let each = (0..n).map(|i| {
        let mut params = sampled(u64::from(i), long + 3 * i as usize);
        match i % 8 {
            0 | 1 => params.sampler = SamplerParams::greedy(),
            2 => params.sampler.temperature = 0.3,
            3 => params.sampler.mirostat = 2,
            4 => params.sampler.dry_multiplier = 0.8,
            5 => params.stop = vec!["e".into(), "th".into()],
            6 => params.logprobs = Some(3),
            _ => params.ignore_eos = false,
        }
        if !matches!(i % 8, 0 | 5) {
            // Few words, which come again and again.
            params.sampler.logit_bias = [50, 51, 52].map(|id| (id, 30.0)).into();
        }
        params.sampler.repeat_penalty = if i % 3 == 0 { 1.0 } else { 1.1 };
        params.logprobs = params.logprobs.or((i % 4 == 1).then_some(0));
        // Some begin alike.
        (
            [prompt(i % 3, 40), echo(i, 20 + 5 * i as usize)].concat(),
            params,
        )
    });
    each.collect()
}

/// All at once, guessing as `speculation` says, against each alone without guesses.
fn compare(
    setup: &Setup,
    scheduler: &Scheduler,
    requests: &[(Vec<u32>, GenerateParams)],
    speculation: Speculation,
) {
    let context = scheduler.params().context;
    let submit = |(ids, params): &(Vec<u32>, GenerateParams)| -> engine::Replies {
        let params = GenerateParams {
            speculate: speculation,
            ..params.clone()
        };
        scheduler.submit(request(ids.clone(), params)).unwrap()
    };
    let replies: Vec<_> = requests.iter().map(submit).collect();
    let mut sum = engine::Drafts::default();
    for (replies, (ids, params)) in replies.into_iter().zip(requests) {
        let got = collect(replies).unwrap();
        same(&got, &setup.alone(context, ids, params));
        sum.drafted += got.drafts.drafted;
        sum.accepted += got.drafts.accepted;
    }
    settled(scheduler);
    let stats = scheduler.stats();
    assert!(sum.accepted <= sum.drafted);
    assert!(stats.drafted >= sum.drafted as u64 && stats.accepted >= sum.accepted as u64);
}

#[test]
fn answers_are_the_same_by_look_up() {
    for name in ["llama3", "llama4_text"] {
        let setup = setup(name);
        let scheduler = setup.start(SchedulerParams {
            budget: 48,
            ..params(256, 8)
        });
        for most in [1, 5, 40] {
            compare(
                &setup,
                &scheduler,
                &requests(8, 30),
                always(most, Drafter::Any),
            );
        }
        let stats = scheduler.stats();
        assert!(stats.drafted - stats.accepted > 20, "{stats:?}");
        assert!(stats.accepted > 20, "{stats:?}");
        assert!(stats.chunks > stats.steps, "they ran together: {stats:?}");
    }
}

#[test]
fn answers_are_the_same_with_a_draft_model() {
    let setup = setup("llama3");
    let scheduler = with_draft(
        &setup,
        SchedulerParams {
            budget: 48,
            ..params(256, 8)
        },
        2048,
    );
    let ask = |by| compare(&setup, &scheduler, &requests(8, 30), always(4, by));
    ask(Drafter::Model);
    let stats = scheduler.stats();
    // It is almost the same model.
    assert!(2 * stats.accepted > stats.drafted, "{stats:?}");
    assert!(stats.drafted > stats.accepted, "{stats:?}");
    // Many tokens came from one pass.
    assert!(stats.generated > stats.chunks, "{stats:?}");
    ask(Drafter::Any);
    ask(Drafter::Text);
}

/// Pages for a third of what they want, and fewer still for the draft model.
#[test]
fn few_pages_change_nothing_but_time() {
    let setup = setup("llama3");
    let few = SchedulerParams {
        cache: 8 * PAGE,
        budget: 64,
        ..params(8 * PAGE, 8)
    };
    let scheduler = with_draft(&setup, few, 5 * PAGE);
    for by in [Drafter::Text, Drafter::Any, Drafter::Model] {
        compare(&setup, &scheduler, &requests(8, 90), always(6, by));
    }
    let stats = scheduler.stats();
    assert!(stats.preemptions > 0 && stats.evictions > 0, "{stats:?}");
    assert!(stats.accepted > 0, "{stats:?}");
}

#[test]
fn a_full_context_ends_or_shifts_as_it_does_alone() {
    let setup = setup("llama3");
    let scheduler = with_draft(&setup, params(2 * PAGE, 4), 4 * 2 * PAGE);
    let ends = GenerateParams {
        max_tokens: None,
        ..sampled(1, 0)
    };
    let shifts = GenerateParams {
        shift: Some(5),
        max_tokens: Some(150),
        ..ends.clone()
    };
    let all = [(echo(1, 20), ends), (echo(2, 20), shifts)];
    for by in [Drafter::Text, Drafter::Model] {
        compare(&setup, &scheduler, &all, always(5, by));
    }
}

/// Left to itself it guesses where it pays, which is where few run.
#[test]
fn for_few_it_guesses_of_itself_and_for_many_it_does_not() {
    let setup = setup("llama3");
    let auto = Speculation {
        most: 8,
        ..Speculation::default()
    };
    // A text of one token goes on like that: quotes are right.
    let certain = |i: u32| {
        let mut params = sampled(0, 60);
        params.sampler = SamplerParams::greedy();
        params.sampler.logit_bias = vec![(40 + i, 1e4)];
        (vec![40 + i; 30], params)
    };
    let few = setup.start(params(256, 2));
    compare(&setup, &few, &[certain(0)], auto);
    let stats = few.stats();
    assert!(stats.accepted > 40, "{stats:?}");
    assert!(stats.steps < 30, "{stats:?}");
    let many = setup.start(SchedulerParams {
        share: false,
        ..params(256, 64)
    });
    let requests: Vec<_> = (0..64).map(certain).collect();
    compare(&setup, &many, &requests, auto);
    let stats = many.stats();
    assert!(stats.drafted < stats.generated / 4, "{stats:?}");
    assert_eq!(stats.batches.iter().sum::<u64>(), stats.steps);
    assert!(stats.batches[6] > 0, "64 together: {stats:?}");
    let off = Speculation::default();
    let before = few.stats().drafted;
    compare(&setup, &few, &[certain(1)], off);
    assert_eq!(few.stats().drafted, before);
}

/// Its own beginnings are kept: a conversation that goes on is not read anew by the draft model.
#[test]
fn a_conversation_that_goes_on_is_guessed_at_once() {
    let setup = setup("llama3");
    let scheduler = with_draft(
        &setup,
        SchedulerParams {
            budget: 16,
            ..params(512, 1)
        },
        1024,
    );
    let speculate = always(4, Drafter::Model);
    let ask = |ids: &[u32]| {
        let params = GenerateParams {
            speculate,
            ..sampled(3, 40)
        };
        collect(scheduler.submit(request(ids.to_vec(), params)).unwrap()).unwrap()
    };
    let first = prompt(1, 300);
    let got = ask(&first);
    // 300 tokens at 16 a step: the first answers went without.
    assert!(
        got.drafts.drafted > 0 && got.drafts.drafted < 100,
        "{:?}",
        got.drafts
    );
    let turn = [&first[..], &got.ids].concat();
    let again = ask(&turn);
    same(&again, &setup.alone(512, &turn, &sampled(3, 40)));
    assert!(
        again.drafts.drafted > got.drafts.drafted,
        "{:?}",
        again.drafts
    );
}

#[test]
fn a_draft_model_of_other_tokens_is_refused() {
    let setup = setup("llama3");
    let draft = DraftModel {
        weights: common::weights("models/llama3_1"),
        tokenizer: std::sync::Arc::new(common::tokenizer("models/llama3_1")),
        kv: KvType::F16,
        context: 64,
        cache: 64,
    };
    let beside = Beside {
        draft: Some(draft),
        ..Beside::default()
    };
    let (weights, tokenizer) = (setup.weights.clone(), setup.tokenizer.clone());
    let refused = Scheduler::start_beside(weights, tokenizer, params(64, 1), beside);
    assert!(matches!(refused, Err(Error::DraftVocabulary { .. })));
}

/// One key's many requests do not hold up another's one.
#[test]
fn scopes_take_turns() {
    let setup = setup("llama3");
    let scheduler = setup.start(params(8192, 1));
    let of = |scope: &str, max_tokens| Request {
        root: engine::Root {
            scope: scope.into(),
            ..engine::Root::default()
        },
        ..request(prompt(1, 5), sampled(1, max_tokens))
    };
    let mut blocker = scheduler.submit(of("a", 8000)).unwrap();
    while !matches!(blocker.next_blocking(), Some(engine::Update::Started(_))) {}
    let many: Vec<_> = (0..40)
        .map(|_| scheduler.submit(of("a", 30)).unwrap())
        .collect();
    let one = scheduler.submit(of("b", 2)).unwrap();
    blocker.cancel().cancel();
    collect(one).unwrap();
    let waiting = scheduler.stats().waiting;
    assert!(waiting >= 30, "it went first or second: {waiting} wait");
    drop(many);
    settled(&scheduler);
}
