//! Beginnings that requests have in common: read once, the same answer, never across tenants.

mod common;

use std::sync::Arc;

use common::scheduling::{collect, params, prompt, request, same, sampled, settled, setup};
use engine::{GenerateParams, Generation, Request, Root, Scheduler, SchedulerParams, Update, Why};
use model::PAGE;

fn start_of(scheduler: &Scheduler, request: Request) -> (engine::Start, Generation) {
    let mut replies = scheduler.submit(request).unwrap();
    match replies.next_blocking() {
        Some(Update::Started(start)) => (start, collect(replies).unwrap()),
        other => panic!("{other:?}"),
    }
}

fn of_scope(scope: &str, prompt: Vec<u32>, params: GenerateParams) -> Request {
    let scope = scope.to_owned();
    let root = Root {
        scope,
        ..Root::default()
    };
    Request {
        root,
        ..request(prompt, params)
    }
}

#[test]
fn a_beginning_is_read_once_and_the_answer_is_the_same() {
    let setup = setup("llama3");
    let scheduler = setup.start(params(1024, 2));
    let plain = setup.start(SchedulerParams {
        share: false,
        ..params(1024, 2)
    });
    let ids = prompt(1, 100);
    for (round, cached) in [(0, 0), (1, 96), (2, 96)] {
        let request = || of_scope("a", ids.clone(), sampled(round, 20));
        let (start, got) = start_of(&scheduler, request());
        assert_eq!(start.cached, cached);
        assert_eq!(got.usage.cached_tokens, cached);
        assert_eq!(start.miss.is_none(), round > 0, "{:?}", start.miss);
        let (start, due) = start_of(&plain, request());
        assert_eq!(start.cached, 0);
        same(&got, &due);
        same(&got, &setup.alone(1024, &ids, &sampled(round, 20)));
    }
    // A conversation that goes on finds the answer as well.
    let (_, first) = start_of(&scheduler, of_scope("a", ids.clone(), sampled(9, 60)));
    let turn = [&ids[..], &first.ids, &prompt(5, 30)].concat();
    let (start, got) = start_of(&scheduler, of_scope("a", turn.clone(), sampled(9, 20)));
    assert_eq!(start.cached, (100 + 59) / PAGE * PAGE);
    same(&got, &setup.alone(1024, &turn, &sampled(9, 20)));
    settled(&scheduler);
    assert_eq!(plain.stats().kept, 0);
}

#[test]
fn requests_that_come_together_read_their_beginning_once() {
    let setup = setup("llama3");
    let scheduler = setup.start(SchedulerParams {
        budget: 64,
        ..params(512, 8)
    });
    let replies: Vec<_> = (0..8)
        .map(|choice| {
            let params = GenerateParams {
                choice,
                ..sampled(4, 10)
            };
            (
                params.clone(),
                scheduler.submit(request(prompt(7, 200), params)).unwrap(),
            )
        })
        .collect();
    let mut cached = Vec::new();
    for (params, replies) in replies {
        let got = collect(replies).unwrap();
        same(&got, &setup.alone(512, &prompt(7, 200), &params));
        cached.push(got.usage.cached_tokens);
    }
    assert_eq!(cached.iter().filter(|n| **n == 0).count(), 1, "{cached:?}");
    assert_eq!(
        cached.iter().filter(|n| **n == 192).count(),
        7,
        "{cached:?}"
    );
}

#[test]
fn nothing_crosses_scopes_salts_or_adapters() {
    let setup = setup("llama3");
    let scheduler = setup.start(params(1024, 2));
    let ids = prompt(1, 100);
    let ask = |root: &Root| {
        let root = root.clone();
        let request = Request {
            root,
            ..request(ids.clone(), sampled(0, 2))
        };
        start_of(&scheduler, request).0
    };
    let adapter = Arc::new(model::Adapter::new());
    let root = |scope: &str, salt: &str, adapters: &[&Arc<model::Adapter>]| Root {
        scope: scope.into(),
        salt: salt.into(),
        adaptation: engine::Adaptation {
            adapters: adapters.iter().map(|a| Arc::clone(a)).collect(),
            control: None,
        },
        common: 0,
    };
    let roots = [
        root("a", "", &[]),
        root("b", "", &[]),
        root("a", "x", &[]),
        root("", "a", &[]),
        root("a", "", &[&adapter]),
        root("a", "", &[&adapter, &adapter]),
        root("a", "", &[&Arc::new(model::Adapter::new())]),
    ];
    for root in &roots {
        let start = ask(root);
        assert_eq!(start.cached, 0, "{root:?}");
        let miss = start.miss.unwrap();
        assert_eq!((miss.at, miss.why), (0, Why::New), "no word of the others");
    }
    for root in &roots {
        assert_eq!(ask(root).cached, 96, "{root:?}");
    }
}

/// What scopes share in as many words is read once; what follows, and what one of them does not
/// call common, stays its own.
#[test]
fn a_common_beginning_crosses_scopes_and_nothing_else_does() {
    let setup = setup("llama3");
    let scheduler = setup.start(params(2048, 2));
    let ids = prompt(1, 200);
    let ask = |scope: &str, ids: &[u32], common: usize, salt: &str| {
        let mut request = of_scope(scope, ids.to_vec(), sampled(0, 8));
        (request.root.common, request.root.salt) = (common, salt.into());
        let (start, got) = start_of(&scheduler, request);
        same(&got, &setup.alone(2048, ids, &sampled(0, 8)));
        let miss = start.miss.map(|miss| (miss.at, miss.why));
        (start.cached, miss)
    };
    // 70 tokens: two whole blocks.
    assert_eq!(ask("a", &ids, 70, ""), (0, Some((0, Why::New))));
    assert_eq!(ask("a", &ids, 70, ""), (192, None));
    assert_eq!(ask("b", &ids, 70, ""), (64, Some((64, Why::New))));
    assert_eq!(ask("b", &ids, 70, ""), (192, None));
    // Of another's own part there is no word, also where it is nearly the same.
    let near = [&ids[..80], &prompt(9, 120)].concat();
    assert_eq!(ask("c", &near, 70, ""), (64, Some((64, Why::New))));
    assert_eq!(ask("a", &near, 70, ""), (64, Some((80, Why::Differs))));
    // Who does not say so shares nothing, and neither does another salt, or less than a block.
    assert_eq!(ask("a", &ids, 0, ""), (0, Some((0, Why::New))));
    assert_eq!(ask("d", &ids, 0, ""), (0, Some((0, Why::New))));
    assert_eq!(ask("d", &ids, 31, ""), (192, None));
    assert_eq!(ask("d", &ids, 70, "x"), (0, Some((0, Why::New))));
    // What one calls common up to here only is another's up to there.
    assert_eq!(ask("b", &ids, 140, ""), (64, Some((64, Why::New))));
    assert_eq!(ask("c", &ids, 140, ""), (128, Some((128, Why::New))));
    // An engine's scope without a name is none that all share.
    assert_eq!(ask("", &ids, 0, ""), (0, Some((0, Why::New))));
    settled(&scheduler);
}

/// Blocks of all kinds go, and come again.
#[test]
fn common_beginnings_are_evicted_from_their_ends() {
    let setup = setup("llama3");
    let scheduler = setup.start(params(8 * PAGE, 1));
    let ids = prompt(1, 3 * PAGE + 5);
    let ask = |scope: &str, ids: &[u32], common: usize| {
        let mut request = of_scope(scope, ids.to_vec(), sampled(0, 4));
        request.root.common = common;
        let (start, got) = start_of(&scheduler, request);
        same(&got, &setup.alone(8 * PAGE, ids, &sampled(0, 4)));
        start.cached
    };
    for round in 0..3 {
        for scope in ["a", "b", "c"] {
            ask(scope, &ids, 2 * PAGE);
            assert_eq!(ask(scope, &ids, 2 * PAGE), 3 * PAGE, "{round} {scope}");
        }
        // Takes all pages there are.
        assert_eq!(ask("x", &prompt(20 + round, 7 * PAGE), 0), 0);
        assert_eq!(ask("a", &ids, 2 * PAGE), 0, "{round}");
    }
    assert!(scheduler.stats().evictions > 0, "{:?}", scheduler.stats());
    settled(&scheduler);
}

/// What was kept of an adapter that nobody has any more goes, and with it the adapter.
#[test]
fn an_adapter_that_was_unloaded_is_let_go() {
    let setup = setup("llama3");
    let scheduler = setup.start(params(1024, 2));
    let adapter = Arc::new(model::Adapter::new());
    let there = Arc::downgrade(&adapter);
    let root = Root {
        adaptation: engine::Adaptation {
            adapters: vec![adapter],
            control: None,
        },
        ..Root::default()
    };
    let ask = |root: Root, seed| {
        let request = Request {
            root,
            ..request(prompt(seed, 100), sampled(0, 2))
        };
        start_of(&scheduler, request).0.cached
    };
    assert_eq!(ask(Root::default(), 1), 0);
    assert_eq!((ask(root.clone(), 1), ask(root.clone(), 1)), (0, 96));
    let another = Root {
        scope: "b".to_owned(),
        ..root.clone()
    };
    assert_eq!(ask(another.clone(), 1), 0);
    drop((root, another));
    assert!(there.upgrade().is_some(), "its beginnings are kept");
    assert_eq!(ask(Root::default(), 1), 96, "others keep theirs");
    settled(&scheduler);
    assert!(there.upgrade().is_none());
    assert_eq!(scheduler.stats().kept, 3);
}

#[test]
fn a_miss_says_why() {
    let setup = setup("llama3");
    let scheduler = setup.start(SchedulerParams {
        cache: 8 * PAGE,
        ..params(8 * PAGE, 1)
    });
    let ids = prompt(1, 100);
    let miss = |ids: &[u32]| {
        start_of(&scheduler, request(ids.to_vec(), sampled(0, 1)))
            .0
            .miss
    };
    assert_eq!(miss(&ids).unwrap().why, Why::New);
    assert_eq!(miss(&ids), None);
    let mut other = ids.clone();
    other[50] += 1;
    let found = miss(&other).unwrap();
    assert_eq!((found.at, found.why), (50, Why::Differs));
    let longer = [&ids[..], &prompt(9, 40)].concat();
    let found = miss(&longer).unwrap();
    assert_eq!((found.at, found.why), (96, Why::New));
    // Others press it out.
    for seed in 20..24 {
        miss(&prompt(seed, 200));
    }
    let found = miss(&ids).unwrap();
    assert_eq!((found.at, found.why), (0, Why::Evicted));
    let stats = scheduler.stats();
    assert!(stats.evictions > 0 && stats.pages.0 <= 8, "{stats:?}");
    assert_eq!(miss(&prompt(1, 20)), None, "no whole block to find");
}

#[test]
fn what_was_used_last_stays() {
    let setup = setup("llama3");
    let scheduler = setup.start(SchedulerParams {
        cache: 8 * PAGE,
        ..params(8 * PAGE, 1)
    });
    let cached = |seed| {
        let request = request(prompt(seed, 70), sampled(0, 1));
        start_of(&scheduler, request).0.cached
    };
    for seed in [1, 2, 3] {
        assert_eq!(cached(seed), 0);
    }
    assert_eq!(cached(1), 64);
    assert_eq!(cached(4), 0, "and now two pages of another have gone");
    assert_eq!(cached(1), 64, "it was used since");
    assert!(cached(2) < 64, "it was not");
}

/// Models with chunked attention give up what a later sequence would need: nothing is kept.
#[test]
fn chunked_attention_shares_nothing_and_says_so() {
    let setup = setup("llama4_text");
    let scheduler = setup.start(params(512, 2));
    for _ in 0..2 {
        let (start, got) = start_of(&scheduler, request(prompt(1, 100), sampled(0, 10)));
        assert_eq!(start.cached, 0);
        assert_eq!(start.miss.unwrap().why, Why::Unshared);
        same(&got, &setup.alone(512, &prompt(1, 100), &sampled(0, 10)));
    }
    assert_eq!(scheduler.stats().kept, 0);
}
