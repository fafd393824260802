//! Many requests at once: each gets the answer that it would get alone, whatever the others do.

mod common;

use std::time::{Duration, Instant};

use common::scheduling::{collect, params, prompt, request, same, sampled, settled, setup};
use engine::{
    Error, FinishReason, GenerateParams, Pooling, Replies, Request, Scheduler, SchedulerParams,
    Update, Want,
};
use model::PAGE;

/// Sixteen requests of all kinds at once: the answers of each alone, to the bit.
#[test]
fn each_answer_is_the_one_it_would_be_alone() {
    for name in ["llama3", "llama4_text"] {
        let setup = setup(name);
        let scheduler = setup.start(SchedulerParams {
            budget: 24,
            parallel: 7,
            ..params(256, 16)
        });
        let requests: Vec<(Vec<u32>, GenerateParams)> = (0..16)
            .map(|i: u32| {
                let mut params = sampled(u64::from(i), 10 + i as usize * 3);
                params.logprobs = i.is_multiple_of(3).then_some(4);
                params.sampler.repeat_penalty = 1.0 + 0.05 * i as f32;
                params.sampler.mirostat = if i == 5 { 2 } else { 0 };
                params.sampler.dry_multiplier = if i == 6 { 0.8 } else { 0.0 };
                params.choice = u64::from(i % 2);
                // Some begin alike.
                let mut ids = prompt(i % 4, 40);
                ids.extend(prompt(i, 1 + 9 * i as usize));
                (ids, params)
            })
            .collect();
        let replies: Vec<Replies> = requests
            .iter()
            .map(|(ids, params)| {
                scheduler
                    .submit(request(ids.clone(), params.clone()))
                    .unwrap()
            })
            .collect();
        for (replies, (ids, params)) in replies.into_iter().zip(&requests) {
            let got = collect(replies).unwrap();
            same(&got, &setup.alone(256, ids, params));
            assert_eq!(got.usage.prompt_tokens, ids.len());
        }
        settled(&scheduler);
        let stats = scheduler.stats();
        assert!(stats.chunks > stats.steps, "they ran together: {stats:?}");
    }
}

/// Pages for a third of what they want: some give way and go on later, all answers stand.
#[test]
fn few_pages_change_nothing_but_time() {
    let setup = setup("llama3");
    let scheduler = setup.start(SchedulerParams {
        cache: 8 * PAGE,
        budget: 64,
        ..params(8 * PAGE, 8)
    });
    assert_eq!(scheduler.params().cache, 8 * PAGE);
    let requests: Vec<_> = (0..8)
        .map(|i| (prompt(i, 20 + 5 * i as usize), sampled(i.into(), 90)))
        .collect();
    let replies: Vec<_> = requests
        .iter()
        .map(|(ids, p)| scheduler.submit(request(ids.clone(), p.clone())).unwrap())
        .collect();
    for (replies, (ids, params)) in replies.into_iter().zip(&requests) {
        same(
            &collect(replies).unwrap(),
            &setup.alone(8 * PAGE, ids, params),
        );
    }
    settled(&scheduler);
    let stats = scheduler.stats();
    assert!(stats.preemptions > 0 && stats.evictions > 0, "{stats:?}");
}

#[test]
fn a_full_context_ends_or_shifts_as_it_does_alone() {
    let setup = setup("llama3");
    let scheduler = setup.start(params(2 * PAGE, 3));
    let long = GenerateParams {
        max_tokens: Some(150),
        ..sampled(1, 0)
    };
    let shift = GenerateParams {
        shift: Some(5),
        ..long.clone()
    };
    let unlimited = GenerateParams {
        max_tokens: None,
        ..long.clone()
    };
    let all = [long, shift, unlimited];
    let replies = all
        .clone()
        .map(|p| scheduler.submit(request(prompt(1, 20), p)).unwrap());
    let got = replies.map(|r| collect(r).unwrap());
    for (got, params) in got.iter().zip(&all) {
        same(got, &setup.alone(2 * PAGE, &prompt(1, 20), params));
    }
    assert!(got[0].context_full && got[2].context_full);
    assert_eq!(got[1].ids.len(), 150);
    settled(&scheduler);
}

#[test]
fn what_cannot_run_is_refused_before_it_starts() {
    let setup = setup("llama3");
    let scheduler = setup.start(params(2 * PAGE, 1));
    let vocab = setup.weights.config.vocab as u32;
    let refuse = |ids: Vec<u32>, params| scheduler.submit(request(ids, params)).unwrap_err();
    let ok = || sampled(0, 4);
    assert!(matches!(refuse(vec![], ok()), Error::EmptyPrompt));
    let long = refuse(prompt(0, 2 * PAGE), ok());
    assert!(matches!(
        long,
        Error::ContextFull {
            needed: 65,
            context: 64
        }
    ));
    let unknown = refuse(vec![5, vocab], ok());
    assert!(matches!(unknown, Error::UnknownToken { .. }));
    let mut hot = ok();
    hot.sampler.top_p = 7.0;
    assert!(matches!(
        refuse(vec![5], hot),
        Error::Parameter { field: "top_p", .. }
    ));
    let mut empty = ok();
    empty.stop = vec![String::new()];
    assert!(refuse(vec![5], empty).to_string().contains("stop"));
    assert_eq!(scheduler.stats().steps, 0);
    let zero = SchedulerParams {
        parallel: 0,
        ..params(64, 1)
    };
    assert!(Scheduler::start(setup.weights.clone(), setup.tokenizer.clone(), zero).is_err());
}

/// A request whose logits are banned altogether fails; its neighbours do not notice.
#[test]
fn a_failure_is_nobody_elses() {
    let setup = setup("llama3");
    let scheduler = setup.start(params(256, 4));
    let mut doomed = sampled(0, 8);
    let vocab = setup.weights.config.vocab as u32;
    doomed.sampler.logit_bias = (0..vocab).map(|id| (id, f32::NEG_INFINITY)).collect();
    let first = scheduler
        .submit(request(prompt(1, 50), sampled(1, 30)))
        .unwrap();
    let second = scheduler.submit(request(prompt(2, 50), doomed)).unwrap();
    let third = scheduler
        .submit(request(prompt(3, 50), sampled(3, 30)))
        .unwrap();
    assert!(matches!(collect(second), Err(Error::NoCandidates)));
    for (seed, replies) in [(1, first), (3, third)] {
        let due = setup.alone(256, &prompt(seed, 50), &sampled(seed.into(), 30));
        same(&collect(replies).unwrap(), &due);
    }
    settled(&scheduler);
}

#[test]
fn cancelling_ends_it_within_a_step() {
    let setup = setup("llama3");
    let scheduler = setup.start(params(8192, 4));
    let endless = || request(prompt(1, 10), sampled(1, 8000));
    // By its handle: a last update says so.
    let mut replies = scheduler.submit(endless()).unwrap();
    let mut seen = 0;
    let generation = loop {
        match replies.next_blocking() {
            Some(Update::Token { .. }) => seen += 1,
            Some(Update::Done(generation)) => break generation,
            Some(_) => {}
            None => panic!("no last word"),
        }
        if seen == 5 {
            replies.cancel().cancel();
        }
    };
    assert_eq!(generation.finish_reason, FinishReason::Cancelled);
    assert_eq!(generation.ids.len(), seen, "every token was sent");
    assert!(seen < 5 + 64, "what was on its way, no more: {seen}");
    // By walking away: from a running one, and from one in line.
    let full = setup.start(params(8192, 1));
    let running = full.submit(endless()).unwrap();
    let in_line = full.submit(endless()).unwrap();
    let last = full.submit(request(prompt(2, 10), sampled(2, 5))).unwrap();
    drop(in_line);
    drop(running);
    assert_eq!(collect(last).unwrap().ids.len(), 5);
    settled(&full);
    let generated = full.stats().generated;
    assert!(generated < 200, "{generated} tokens for nobody");
    settled(&scheduler);
}

#[test]
fn a_deadline_ends_it_in_line_and_on_the_way() {
    let setup = setup("llama3");
    let scheduler = setup.start(params(8192, 1));
    let soon = || Some(Instant::now() + Duration::from_millis(150));
    let mut running = request(prompt(1, 10), sampled(1, 8000));
    running.deadline = soon();
    let mut waiting = request(prompt(2, 10), sampled(2, 5));
    waiting.deadline = Some(Instant::now());
    let running = scheduler.submit(running).unwrap();
    let waiting = scheduler.submit(waiting).unwrap();
    assert!(matches!(collect(waiting), Err(Error::Deadline)));
    assert!(matches!(collect(running), Err(Error::Deadline)));
    settled(&scheduler);
}

/// One place, and a long answer in it: those in line go by priority, then by age.
#[test]
fn urgent_requests_go_first_and_the_line_is_bounded() {
    let setup = setup("llama3");
    let scheduler = setup.start(SchedulerParams {
        queue: 4,
        ..params(8192, 1)
    });
    let mut blocker = scheduler
        .submit(request(prompt(0, 5), sampled(0, 8000)))
        .unwrap();
    while !matches!(blocker.next_blocking(), Some(Update::Started(_))) {}
    let with = |priority| {
        let mut request = request(prompt(1, 5), sampled(1, 2));
        request.priority = priority;
        scheduler.submit(request)
    };
    let line: Vec<_> = [0, 0, 3, 1].map(|p| with(p).unwrap()).into();
    assert!(matches!(with(9), Err(Error::Busy { waiting: 4 })));
    assert_eq!(scheduler.stats().waiting, 4);
    blocker.cancel().cancel();
    let queued = line
        .into_iter()
        .map(|mut replies| match replies.next_blocking() {
            Some(Update::Started(start)) => {
                assert!(collect(replies).is_ok());
                start.queued
            }
            _ => panic!("it starts first"),
        });
    let queued: Vec<_> = queued.collect();
    // Submitted within the blocker's time, so that the time in line shows the order.
    assert!(queued[2] < queued[3] && queued[3] < queued[0] && queued[0] < queued[1]);
    assert!(with(0).is_ok(), "there is room again");
}

/// While a long prompt is read, others get their tokens.
#[test]
fn a_long_prompt_holds_nobody_up() {
    let setup = setup("llama3");
    let scheduler = setup.start(SchedulerParams {
        budget: 32,
        ..params(2048, 2)
    });
    let mut short = scheduler
        .submit(request(prompt(1, 5), sampled(1, 1500)))
        .unwrap();
    while !matches!(short.next_blocking(), Some(Update::Token { .. })) {}
    let before = scheduler.stats();
    let mut long = scheduler
        .submit(request(prompt(2, 1500), sampled(2, 1)))
        .unwrap();
    let mut tokens = 0;
    loop {
        match short.next_blocking() {
            Some(Update::Token { .. }) => tokens += 1,
            other => panic!("{other:?}"),
        }
        let now = scheduler.stats();
        if now.steps - before.steps > 60 {
            break;
        }
    }
    assert!(tokens > 30, "{tokens} tokens during the reading");
    drop(short);
    while !matches!(long.next_blocking(), Some(Update::Done(_))) {}
    settled(&scheduler);
}

/// A receiver that takes nothing stops its own answer only, and is given up in the end.
#[test]
fn nobody_waits_for_who_does_not_listen() {
    let setup = setup("llama3");
    let scheduler = setup.start(SchedulerParams {
        patience: Duration::from_millis(300),
        ..params(1024, 2)
    });
    let deaf = scheduler
        .submit(request(prompt(1, 5), sampled(1, 900)))
        .unwrap();
    let other = scheduler
        .submit(request(prompt(2, 5), sampled(2, 200)))
        .unwrap();
    assert_eq!(collect(other).unwrap().ids.len(), 200);
    settled(&scheduler);
    assert!(scheduler.stats().generated < 300);
    drop(deaf);
    // One that listens late gets everything.
    let late = scheduler
        .submit(request(prompt(3, 5), sampled(3, 200)))
        .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let due = setup.alone(1024, &prompt(3, 5), &sampled(3, 200));
    same(&collect(late).unwrap(), &due);
}

#[test]
fn ending_the_scheduler_ends_its_requests() {
    let setup = setup("llama3");
    let scheduler = setup.start(params(8192, 1));
    let replies = [1, 2].map(|i| {
        scheduler
            .submit(request(prompt(i, 5), sampled(0, 8000)))
            .unwrap()
    });
    assert!(scheduler.is_alive());
    drop(scheduler);
    for replies in replies {
        let last = collect(replies);
        assert!(matches!(last, Err(Error::Stopped)), "{last:?}");
    }
}

fn embed(scheduler: &Scheduler, prompt: &[u32], pooling: Pooling) -> Vec<f32> {
    let mut replies = scheduler
        .submit(Request {
            prompt: prompt.to_vec(),
            want: Want::Embedding(pooling),
            ..Request::default()
        })
        .unwrap();
    loop {
        match replies.next_blocking() {
            Some(Update::Embedding(row)) => return row,
            Some(Update::Started(start)) => assert_eq!(start.cached, 0),
            other => panic!("{other:?}"),
        }
    }
}

/// The final hidden states that transformers has, pooled; in whatever parts the text is read.
#[test]
fn embeddings_equal_transformers() {
    let setup = setup("llama3");
    let expected = common::Expected::read("models/llama3/expected.safetensors");
    let ids = expected.ids(1, "input_ids").unwrap();
    let hidden = setup.weights.config.hidden;
    let last = setup.weights.config.layers;
    let rows = expected.floats(1, &format!("hidden.{last}"));
    assert_eq!(rows.len(), ids.len() * hidden);
    let mean = |rows: &[f32]| -> Vec<f32> {
        let n = rows.len() / hidden;
        (0..hidden)
            .map(|j| rows.iter().skip(j).step_by(hidden).sum::<f32>() / n as f32)
            .collect()
    };
    let cases = [
        (Pooling::Mean, mean(&rows)),
        (Pooling::Last, rows[rows.len() - hidden..].to_vec()),
        (Pooling::Cls, rows[..hidden].to_vec()),
    ];
    let whole = setup.start(params(256, 2));
    let parts = setup.start(SchedulerParams {
        budget: 3,
        ..params(256, 2)
    });
    for (pooling, due) in cases {
        let got = embed(&whole, &ids, pooling);
        let off = got
            .iter()
            .zip(&due)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(
            got.len() == hidden && off < 1e-3,
            "{pooling:?} off by {off}"
        );
        assert_eq!(got, embed(&parts, &ids, pooling), "{pooling:?} in parts");
    }
    settled(&whole);
}
