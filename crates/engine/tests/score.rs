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

/// A model whose head has one value that is no number: nothing is said of any text.
#[test]
fn logits_that_are_no_numbers_are_refused() {
    use files::{Blob, Tensor, Tensors};
    let mut gguf = files::gguf::Gguf::open(common::path("gguf/llama3.f32.gguf")).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let list = gguf.tensors.iter().map(|t| {
            let mut data = t.data.to_vec();
            if t.name == "output.weight" {
                // The first value of token 3.
                let at = 3 * t.shape[1] * 4;
                data[at..at + 4].copy_from_slice(&bad.to_le_bytes());
            }
            Tensor::new(&t.name, t.dtype, t.shape.clone(), Blob::from_vec(data)).unwrap()
        });
        gguf.tensors = Tensors::new(list.collect()).unwrap();
        let kernels = kernels::Kernels::new(kernels::Level::best(), kernels::Compute::F32, 2);
        let weights = model::Weights::from_gguf(&gguf, kernels.unwrap().into()).unwrap();
        let weights = std::sync::Arc::new(weights);
        let mut session = common::session(&weights, 64);
        let refused = |error: Error| {
            matches!(
                error,
                Error::NotFinite {
                    position: 2,
                    id: 3,
                    ..
                }
            )
        };
        let options = ScoreOptions {
            from: 2,
            chunk: None,
        };
        let ids = prompt(3, 40);
        let mut row = |_: usize, _: &[f32]| Ok(Flow::Continue);
        assert!(refused(
            score(&mut session, &ids, options, &mut row).unwrap_err()
        ));
        let protocol = engine::PerplexityParams {
            ctx: 4,
            bos: None,
            chunk: None,
        };
        let measured = engine::perplexity(
            &mut session,
            &ids,
            protocol,
            &mut |_| Ok(()),
            &mut |_, _| Flow::Continue,
        );
        assert!(refused(measured.unwrap_err()));
        // And among other requests.
        let setup = setup("llama3");
        let scheduler =
            Scheduler::start(weights.clone(), setup.tokenizer.clone(), params(256, 2)).unwrap();
        let mut replies = scheduler.submit(ask(&ids, 3, 1)).unwrap();
        let end = std::iter::from_fn(|| replies.next_blocking()).find_map(|update| match update {
            Update::Failed(error) => Some(error),
            Update::Scores(found) => panic!("{found:?}"),
            _ => None,
        });
        assert!(refused(end.unwrap()));
    }
}
