//! The filters against transformers' logits processors (`tests/fixtures/reference/sampling`), and
//! properties that hold for any list.

use std::collections::BTreeMap;

use engine::filters::{self, Candidate};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::Value;

const FIXTURES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/reference/sampling"
);

/// A tensor widened to f64, with the length of its last axis.
fn tensor(file: &SafeTensors, name: &str) -> (Vec<f64>, usize) {
    let view = file.tensor(name).unwrap();
    let data = view.data();
    let values = match view.dtype() {
        safetensors::Dtype::F32 => data
            .chunks_exact(4)
            .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
            .collect(),
        safetensors::Dtype::I32 => data
            .chunks_exact(4)
            .map(|b| f64::from(i32::from_le_bytes(b.try_into().unwrap())))
            .collect(),
        safetensors::Dtype::I64 => data
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64)
            .collect(),
        safetensors::Dtype::U8 | safetensors::Dtype::BOOL => {
            data.iter().map(|b| f64::from(*b)).collect()
        }
        other => panic!("{name} is {other:?}"),
    };
    (values, *view.shape().last().unwrap())
}

/// Runs one case's steps; `None` for a step that Puna does not offer.
fn run(steps: &[Value], logits: &[f32], history: &[u32]) -> Option<Vec<Candidate>> {
    let mut row = logits.to_vec();
    let mut list = None;
    for step in steps {
        let number = |key: &str| step[key].as_f64().unwrap() as f32;
        let name = step["step"].as_str().unwrap();
        if name == "RepetitionPenaltyLogitsProcessor" {
            assert!(list.is_none(), "penalties come first");
            filters::penalties(&mut row, history, number("penalty"), 0.0, 0.0);
            continue;
        }
        let list = list.get_or_insert_with(|| filters::collect(&row));
        match name {
            "TemperatureLogitsWarper" => filters::temperature(list, number("temperature")),
            "TopKLogitsWarper" => filters::top_k(list, number("top_k") as usize),
            "TopPLogitsWarper" => filters::top_p(list, number("top_p"), 1),
            "MinPLogitsWarper" => filters::min_p(list, number("min_p"), 1),
            "TypicalLogitsWarper" => filters::typical_p(list, number("mass"), 1),
            "NoRepeatNGramLogitsProcessor" => return None,
            other => panic!("unknown step {other}"),
        }
    }
    Some(list.unwrap_or_else(|| filters::collect(&row)))
}

#[test]
fn equal_transformers() {
    let bytes = std::fs::read(format!("{FIXTURES}/sampling.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let cases = std::fs::read(format!("{FIXTURES}/cases.json")).unwrap();
    let cases: BTreeMap<String, Vec<Value>> = serde_json::from_slice(&cases).unwrap();
    let (logits, vocab) = tensor(&file, "logits");
    let (history, history_len) = tensor(&file, "history");
    let mut compared = 0;
    for (name, steps) in &cases {
        let (kept, _) = tensor(&file, &format!("{name}.kept"));
        let (probs, _) = tensor(&file, &format!("{name}.probs"));
        for (r, row) in logits.chunks_exact(vocab).enumerate() {
            let row: Vec<f32> = row.iter().map(|l| *l as f32).collect();
            let history: Vec<u32> = history[r * history_len..][..history_len]
                .iter()
                .map(|id| *id as u32)
                .collect();
            let Some(list) = run(steps, &row, &history) else {
                continue;
            };
            // Of the tied tokens of row 4, which ones top-p and typical keep is left open.
            let open = r == 4 && (name.contains("top_p") || name.contains("typical"));
            let mut got = vec![0.0; vocab];
            for (c, p) in list.iter().zip(filters::probabilities(&list)) {
                got[c.id as usize] = p;
            }
            let listed: Vec<bool> = {
                let mut listed = vec![false; vocab];
                list.iter().for_each(|c| listed[c.id as usize] = true);
                listed
            };
            for id in 0..vocab {
                if open {
                    continue;
                }
                let due = kept[r * vocab + id] != 0.0;
                assert_eq!(listed[id], due, "{name}, row {r}: token {id} kept");
                let due = probs[r * vocab + id];
                let off = (got[id] - due).abs();
                assert!(
                    off <= 1e-5,
                    "{name}, row {r}, token {id}: {} for {due}",
                    got[id]
                );
            }
            if open {
                let due = kept[r * vocab..][..vocab].iter().filter(|k| **k != 0.0);
                assert_eq!(
                    list.len(),
                    due.count(),
                    "{name}, row {r}: how many are kept"
                );
            }
            compared += 1;
        }
    }
    // 13 of the 14 cases: no-repeat-ngram is not offered.
    assert_eq!(compared, (cases.len() - 1) * logits.len() / vocab);
}

fn lists() -> impl Strategy<Value = Vec<Candidate>> {
    // Few distinct values: ties are common. Sometimes longer than the head that top-p sorts first.
    let logit = prop_oneof![
        (-8i8..8).prop_map(f32::from),
        -30f32..30.0,
        Just(f32::MIN),
        Just(f32::MAX)
    ];
    prop_oneof![
        9 => prop::collection::vec(logit.clone(), 1..60),
        1 => prop::collection::vec(logit, 1..3000),
    ]
    .prop_map(|logits| {
        (0u32..)
            .zip(logits)
            .map(|(id, logit)| Candidate { id, logit })
            .collect()
    })
}

fn ids(list: &[Candidate]) -> Vec<u32> {
    let mut ids: Vec<u32> = list.iter().map(|c| c.id).collect();
    ids.sort_unstable();
    ids
}

fn sum(list: &[Candidate], of: &[Candidate]) -> f64 {
    let all = filters::probabilities(of);
    let chosen = ids(list);
    of.iter()
        .zip(all)
        .filter(|(c, _)| chosen.binary_search(&c.id).is_ok())
        .map(|(_, p)| p)
        .sum()
}

type Filter = fn(&mut Vec<Candidate>, f32, usize);

/// Filters that take a share and a minimum, each with the way in which more is kept.
const SHARES: [(&str, Filter, bool); 4] = [
    ("top_p", filters::top_p, true),
    ("typical_p", filters::typical_p, true),
    ("min_p", filters::min_p, false),
    ("xtc", filters::xtc, true),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn shares_keep_a_subset_that_grows(list in lists(), a in 0f32..=1.0, b in 0f32..=1.0, min_keep in 0usize..9) {
        for (name, filter, rising) in SHARES {
            let (few, many) = if rising { (a.min(b), a.max(b)) } else { (a.max(b), a.min(b)) };
            let mut short = list.clone();
            filter(&mut short, few, min_keep);
            let mut long = list.clone();
            filter(&mut long, many, min_keep);
            prop_assert!(!short.is_empty(), "{name}");
            prop_assert!(short.len() >= min_keep.min(list.len()), "{name}");
            let (short, long) = (ids(&short), ids(&long));
            // Typical sampling keeps whole prefixes of one order, as the others do.
            prop_assert!(short.iter().all(|id| long.binary_search(id).is_ok()), "{name}");
        }
    }

    #[test]
    fn top_p_is_the_smallest_head_that_reaches_p(list in lists(), p in 0f32..1.0) {
        let mut kept = list.clone();
        filters::top_p(&mut kept, p, 0);
        filters::sort(&mut kept);
        let mut sorted = list.clone();
        filters::sort(&mut sorted);
        prop_assert_eq!(&kept[..], &sorted[..kept.len()]);
        prop_assert!(sum(&kept, &list) >= f64::from(p) - 1e-9);
        let without = &kept[..kept.len() - 1];
        prop_assert!(sum(without, &list) <= f64::from(p) + 1e-9);
    }

    #[test]
    fn min_p_compares_with_the_best(list in lists(), p in 0.001f32..=1.0) {
        let all = filters::probabilities(&list);
        let best = all.iter().copied().fold(0.0, f64::max);
        let mut kept = list.clone();
        filters::min_p(&mut kept, p, 0);
        let kept = ids(&kept);
        for (c, probability) in list.iter().zip(all) {
            let ratio = probability / best / f64::from(p);
            if (ratio - 1.0).abs() > 1e-6 {
                prop_assert_eq!(kept.binary_search(&c.id).is_ok(), ratio > 1.0);
            }
        }
    }

    #[test]
    fn top_k_keeps_ties_and_nothing_else(list in lists(), k in 1usize..70) {
        let mut kept = list.clone();
        filters::top_k(&mut kept, k);
        let better = |c: &Candidate| list.iter().filter(|o| o.logit > c.logit).count();
        let expected: Vec<u32> = list.iter().filter(|c| better(c) < k).map(|c| c.id).collect();
        prop_assert_eq!(ids(&kept), expected);
        // The one-pass form is the same list in the same order.
        let row: Vec<f32> = list.iter().map(|c| c.logit).collect();
        if k < row.len() {
            prop_assert_eq!(filters::collect_top_k(&row, k), kept);
        }
    }

    #[test]
    fn top_n_sigma_keeps_the_best(list in lists(), a in 0.01f32..5.0, b in 0.01f32..5.0) {
        let keep = |n| {
            let mut kept = list.clone();
            filters::top_n_sigma(&mut kept, n);
            ids(&kept)
        };
        let (few, many) = (keep(a.min(b)), keep(a.max(b)));
        prop_assert!(few.iter().all(|id| many.binary_search(id).is_ok()));
        let best = list.iter().map(|c| c.logit).fold(f32::MIN, f32::max);
        for c in list.iter().filter(|c| c.logit == best) {
            prop_assert!(few.binary_search(&c.id).is_ok());
        }
    }

    #[test]
    fn xtc_leaves_the_least_likely_of_the_likely(list in lists(), threshold in 0.001f32..0.5) {
        let all = filters::probabilities(&list);
        let floor = f64::from(threshold);
        prop_assume!(all.iter().all(|p| (p / floor - 1.0).abs() > 1e-9));
        let likely = all.iter().filter(|p| **p >= floor).count();
        let mut kept = list.clone();
        filters::xtc(&mut kept, threshold, 0);
        prop_assert_eq!(kept.len(), list.len() - likely.saturating_sub(1));
        let kept = ids(&kept);
        let likely_kept = list.iter().zip(&all).filter(|(c, p)| **p >= floor && kept.binary_search(&c.id).is_ok());
        prop_assert_eq!(likely_kept.count(), likely.min(1));
    }

    #[test]
    fn temperature_keeps_the_order(list in lists(), t in prop_oneof![Just(1e-38f32), 0.01f32..100.0]) {
        let mut cooled = list.clone();
        filters::temperature(&mut cooled, t);
        prop_assert!(!cooled.is_empty());
        prop_assert!(cooled.iter().all(|c| c.logit.is_finite()));
        let total: f64 = filters::probabilities(&cooled).iter().sum();
        prop_assert!((total - 1.0).abs() < 1e-9);
        for (a, b) in cooled.iter().zip(&cooled[1..]) {
            let (x, y) = (list[a.id as usize].logit, list[b.id as usize].logit);
            prop_assert!((x >= y) == (a.logit >= b.logit) || a.logit == b.logit);
        }
    }

    #[test]
    fn dynamic_temperature_stays_in_range(list in lists(), base in 0f32..3.0, range in 0f32..3.0, exponent in 0f32..5.0) {
        let t = filters::dynamic_temperature(&list, base, range, exponent);
        prop_assert!(t >= (base - range).max(0.0) - 1e-6 && t <= base + range + 1e-6);
    }

    #[test]
    fn draw_inverts_the_distribution(list in lists(), u in 0f64..1.0) {
        let mut sorted = list.clone();
        sorted.reverse();
        let index = filters::draw(&mut sorted, u);
        let all = filters::probabilities(&sorted);
        let before: f64 = all[..index].iter().sum();
        prop_assert!(before <= u + 1e-9 && u <= before + all[index] + 1e-9);
        // The order in which the list came does not matter.
        let chosen = sorted[index].id;
        let mut other = list;
        let index = filters::draw(&mut other, u);
        prop_assert_eq!(other[index].id, chosen);
    }
}

#[test]
fn dynamic_temperature_ends() {
    let flat: Vec<_> = (0..8).map(|id| Candidate { id, logit: 1.0 }).collect();
    assert!((filters::dynamic_temperature(&flat, 1.0, 0.5, 2.0) - 1.5).abs() < 1e-6);
    let sure = [(0, 90.0), (1, 0.0)].map(|(id, logit)| Candidate { id, logit });
    assert!((filters::dynamic_temperature(&sure, 1.0, 0.5, 1.0) - 0.5).abs() < 1e-6);
    assert_eq!(filters::dynamic_temperature(&flat[..1], 1.0, 0.5, 1.0), 1.0);
}

#[test]
fn penalties_count() {
    let mut row = [2.0, -2.0, 1.0, 0.0];
    filters::penalties(&mut row, &[0, 1, 1, 9], 2.0, 0.5, 0.25);
    assert_eq!(row, [1.0 - 0.75, -4.0 - 1.0, 1.0, 0.0]);
}
