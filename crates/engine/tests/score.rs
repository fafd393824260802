//! How likely given tokens are: a scheduler says what a session says, to the bit.

mod common;

use common::scheduling::{collect, params, prompt, request, sampled, settled, setup};
use engine::{
    Error, Flow, Request, Scheduler, SchedulerParams, ScoreOptions, TokenLogprob, Update, Want,
    score,
};
use model::PAGE;

fn ask(prompt: &[u32], from: usize, top: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        want: Want::Score { from, top },
        ..Request::default()
    }
}

fn scores(scheduler: &Scheduler, request: Request) -> Vec<TokenLogprob> {
    let mut replies = scheduler.submit(request).unwrap();
    loop {
        match replies.next_blocking() {
            Some(Update::Scores(found)) => return found,
            Some(Update::Started(start)) => assert_eq!(start.cached, 0),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_scheduler_scores_as_a_session_does() {
    for name in ["llama3", "llama4_text"] {
        let setup = setup(name);
        let ids = prompt(3, 90);
        let mut session = common::session(&setup.weights, 256);
        let mut due = Vec::new();
        let mut row = |position: usize, logits: &[f32]| {
            if let Some(id) = ids.get(position + 1) {
                due.push(TokenLogprob::new(logits, *id, 3));
            }
            Ok(Flow::Continue)
        };
        score(&mut session, &ids, ScoreOptions::default(), &mut row).unwrap();
        assert_eq!(due.len(), 89);
        for budget in [256, 7] {
            let scheduler = setup.start(SchedulerParams {
                budget,
                ..params(256, 2)
            });
            for from in [1, 2, 50, 89] {
                // Among others, and after one with the same beginning.
                let other = scheduler.submit(request(ids.clone(), sampled(1, 20)));
                assert_eq!(scores(&scheduler, ask(&ids, from, 3)), due[from - 1..]);
                collect(other.unwrap()).unwrap();
            }
            settled(&scheduler);
        }
    }
}

/// One that gives way begins anew and counts nothing twice.
#[test]
fn few_pages_change_no_score() {
    let setup = setup("llama3");
    let scheduler = setup.start(SchedulerParams {
        cache: 8 * PAGE,
        budget: 16,
        ..params(8 * PAGE, 4)
    });
    let due = scores(&scheduler, ask(&prompt(1, 120), 1, 0));
    let replies: Vec<_> = (0..4)
        .map(|i| scheduler.submit(request(prompt(i, 60), sampled(1, 40))))
        .collect();
    for _ in 0..3 {
        assert_eq!(scores(&scheduler, ask(&prompt(1, 120), 1, 0)), due);
    }
    for reply in replies {
        collect(reply.unwrap()).unwrap();
    }
    settled(&scheduler);
}

#[test]
fn there_must_be_a_token_behind_another() {
    let setup = setup("llama3");
    let scheduler = setup.start(params(64, 1));
    for (len, from) in [(1, 0), (1, 1), (5, 0), (5, 5), (5, usize::MAX)] {
        let refused = scheduler.submit(ask(&prompt(1, len), from, 0));
        assert!(
            matches!(refused, Err(Error::Parameter { field: "from", .. })),
            "{len} {from}"
        );
    }
    let long = scheduler.submit(ask(&prompt(1, 65), 1, 0));
    assert!(matches!(long, Err(Error::ContextFull { needed: 65, .. })));
}
