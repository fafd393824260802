//! The single steps between logits and a token, each a plain function.
//!
//! Two kinds. Steps that change logits work on the whole row `[vocab]` ([`logit_bias`],
//! [`penalties`], and [`crate::dry::Dry::apply`]). Steps that choose work on a list of
//! [`Candidate`]s, which they shorten, never to nothing. No step depends on the order of the
//! list: those that need an order make it, by falling logit and among equals by rising id
//! ([`sort`]).
//!
//! Masses are sums of `exp(logit - best)` in f64. What a filter of one name does follows
//! llama.cpp where the definitions in the literature leave room; [`top_k`] alone differs, and
//! says how.

use std::cmp::Ordering;

use crate::scan::Scan;

/// A token that may still be chosen. Its logit is finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// Its logit, as the steps so far left it.
    pub logit: f32,
}

/// Adds a bias to single logits; ids beyond the row are passed over.
pub fn logit_bias(logits: &mut [f32], biases: &[(u32, f32)]) {
    for &(id, bias) in biases {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit += bias;
        }
    }
}

/// Repetition, presence and frequency penalties for the tokens in `recent`.
///
/// The repetition penalty acts once per token, however often it occurs: a positive logit is
/// divided, any other multiplied (Keskar et al. 2019, "CTRL", section 4.1, mended for negative
/// logits as everywhere today). Then `count * frequency + presence` is subtracted.
pub fn penalties(logits: &mut [f32], recent: &[u32], repeat: f32, presence: f32, frequency: f32) {
    if repeat == 1.0 && presence == 0.0 && frequency == 0.0 {
        return;
    }
    let mut ids = recent.to_vec();
    ids.sort_unstable();
    for same in ids.chunk_by(|a, b| a == b) {
        let Some(logit) = logits.get_mut(same[0] as usize) else {
            continue;
        };
        *logit = if *logit > 0.0 {
            *logit / repeat
        } else {
            *logit * repeat
        };
        *logit -= same.len() as f32 * frequency + presence;
    }
}

/// The most likely token of a row; of equal ones the lowest id. NaN never wins. `None` if
/// nothing is above minus infinity.
pub fn greedy(logits: &[f32]) -> Option<u32> {
    let mut best = None;
    let mut best_logit = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best_logit {
            best_logit = logit;
            best = Some(id as u32);
        }
    }
    best
}

/// All tokens of a row that are not banned (minus infinity), by rising id.
pub fn collect(logits: &[f32]) -> Vec<Candidate> {
    let tokens = (0u32..).zip(logits);
    tokens
        .filter(|(_, logit)| **logit > f32::NEG_INFINITY)
        .map(|(id, &logit)| Candidate { id, logit })
        .collect()
}

/// `top_k(collect(logits), k)`, without a list of the whole row.
pub fn collect_top_k(logits: &[f32], k: usize) -> Vec<Candidate> {
    if k == 0 || k >= logits.len() {
        return collect(logits);
    }
    let mut scan = Scan::default();
    // A damaged row has no best tokens, whatever is returned: the sampler refuses it.
    let _ = scan.look(logits);
    scan.top_k(logits, k)
}

/// Drops all but the k best and those that equal the k-th; returns the k-th logit.
fn keep_best(list: &mut Vec<Candidate>, k: usize) -> f32 {
    let (_, kth, _) = list.select_nth_unstable_by(k - 1, by_logit);
    let floor = kth.logit;
    list.retain(|c| c.logit >= floor);
    floor
}

/// Falling logit, then rising id.
fn by_logit(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit
        .partial_cmp(&a.logit)
        .unwrap_or(Ordering::Equal)
        .then(a.id.cmp(&b.id))
}

/// Puts the list in its canonical order: falling logit, among equals rising id.
pub fn sort(list: &mut [Candidate]) {
    list.sort_unstable_by(by_logit);
}

/// The k best tokens and every token whose logit equals the k-th; 0 is off. Leaves the list in
/// canonical order if it acts.
///
/// llama.cpp keeps exactly k, so that which of several equals survives depends on its sort. Here,
/// as in transformers, they all do.
pub fn top_k(list: &mut Vec<Candidate>, k: usize) {
    if k == 0 {
        return;
    }
    if k < list.len() {
        keep_best(list, k);
    }
    sort(list);
}

/// Keeps tokens whose logit is at least `best - n * sd`, with the standard deviation of the
/// list's logits (Tang et al. 2024, "Top-nσ: Not all logits are you need"). 0 or less is off.
pub fn top_n_sigma(list: &mut Vec<Candidate>, n: f32) {
    if n <= 0.0 || list.len() <= 1 {
        return;
    }
    let count = list.len() as f64;
    let mean = list.iter().map(|c| f64::from(c.logit)).sum::<f64>() / count;
    let square = |c: &Candidate| (f64::from(c.logit) - mean).powi(2);
    let sd = (list.iter().map(square).sum::<f64>() / count).sqrt();
    let floor = f64::from(best(list)) - f64::from(n) * sd;
    list.retain(|c| f64::from(c.logit) >= floor);
}

/// Keeps the fewest most likely tokens whose mass reaches `p` (the one that crosses it stays),
/// but at least `min_keep` (Holtzman et al. 2020, "The curious case of neural text
/// degeneration"). 1 or more is off.
pub fn top_p(list: &mut Vec<Candidate>, p: f32, min_keep: usize) {
    if p >= 1.0 || list.is_empty() {
        return;
    }
    let best = best(list);
    let goal = f64::from(p) * mass(list, best);
    keep_mass(list, by_logit, best, goal, min_keep);
}

/// Sorts the list and keeps the shortest front whose mass reaches `goal`, at least `min_keep`
/// tokens and at least one. Only a short front has to be sorted as a rule: sorts more and more.
fn keep_mass(
    list: &mut Vec<Candidate>,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
    best: f32,
    goal: f64,
    min_keep: usize,
) {
    let (mut sorted, mut head) = (0, 256.min(list.len()));
    let mut sum = 0.0;
    loop {
        if head < list.len() {
            list[sorted..].select_nth_unstable_by(head - sorted - 1, &order);
        }
        list[sorted..head].sort_unstable_by(&order);
        for i in sorted..head {
            sum += weight(list[i], best);
            if sum >= goal && i + 1 >= min_keep {
                list.truncate(i + 1);
                return;
            }
        }
        if head == list.len() {
            return;
        }
        (sorted, head) = (head, (head * 8).min(list.len()));
    }
}

/// Keeps tokens at least `p` times as likely as the best, but at least the `min_keep` best
/// (Nguyen et al. 2024, "Turning up the heat: min-p sampling"). 0 is off.
pub fn min_p(list: &mut Vec<Candidate>, p: f32, min_keep: usize) {
    if p <= 0.0 || list.is_empty() {
        return;
    }
    let floor = min_p_floor(best(list), p);
    let passes = |c: &Candidate| f64::from(c.logit) >= floor;
    if list.iter().filter(|c| passes(c)).count() >= min_keep {
        list.retain(passes);
    } else {
        sort(list);
        list.truncate(min_keep);
    }
}

/// The logit from which on [`min_p`] keeps tokens.
pub(crate) fn min_p_floor(best: f32, p: f32) -> f64 {
    f64::from(best) + f64::from(p).ln()
}

/// Keeps the tokens whose surprise lies nearest to the list's entropy until their mass reaches
/// `p` (the one that crosses it stays), but at least `min_keep` (Meister et al. 2023, "Locally
/// typical sampling"). 1 or more is off.
pub fn typical_p(list: &mut Vec<Candidate>, p: f32, min_keep: usize) {
    if p >= 1.0 || list.is_empty() {
        return;
    }
    let top = best(list);
    let weights: Vec<f64> = list.iter().map(|c| weight(*c, top)).collect();
    let total: f64 = weights.iter().sum();
    let log_total = total.ln();
    let surprise = |c: &Candidate| log_total - (f64::from(c.logit) - f64::from(top));
    let shares = list.iter().zip(&weights);
    let entropy: f64 = shares.map(|(c, w)| w / total * surprise(c)).sum();
    // Of tokens equally far the ones first in canonical order come first.
    let order = |a: &Candidate, b: &Candidate| {
        let distance = |c| (surprise(c) - entropy).abs();
        distance(a).total_cmp(&distance(b)).then(by_logit(a, b))
    };
    keep_mass(list, order, top, f64::from(p) * total, min_keep);
}

/// Drops all but the least likely of the tokens with probability `threshold` or more ("exclude
/// top choices"), if at least `min_keep` candidates are left then. Whether it acts at a position
/// at all is drawn by the caller. Above 0.5 no two tokens can qualify.
pub fn xtc(list: &mut Vec<Candidate>, threshold: f32, min_keep: usize) {
    if threshold > 0.5 || list.len() < 2 {
        return;
    }
    sort(list);
    let best = list[0].logit;
    let floor = f64::from(threshold) * mass(list, best);
    let above = list.iter().take_while(|c| weight(**c, best) >= floor);
    let drop = above.count().saturating_sub(1);
    if list.len() - drop >= min_keep {
        list.drain(..drop);
    }
}

/// Divides the distances from the best logit by `temperature` (> 0): the best logit becomes 0.
/// Softmax sees no difference to dividing the logits, and no temperature is so low that it
/// overflows.
pub fn temperature(list: &mut Vec<Candidate>, temperature: f32) {
    if list.is_empty() {
        return;
    }
    let best = best(list);
    for c in list.iter_mut() {
        c.logit = (c.logit - best) / temperature;
    }
    list.retain(|c| c.logit > f32::NEG_INFINITY);
}

/// The temperature that suits this list's entropy: `base - range` (not below 0) for a certain
/// choice up to `base + range` for a uniform one; `exponent` bends the way between.
pub fn dynamic_temperature(list: &[Candidate], base: f32, range: f32, exponent: f32) -> f32 {
    if range <= 0.0 || list.len() <= 1 {
        return base;
    }
    let (low, high) = ((base - range).max(0.0), base + range);
    let entropy: f64 = probabilities(list)
        .iter()
        .filter(|p| **p > 0.0)
        .map(|p| -p * p.ln())
        .sum();
    let normalized = (entropy / (list.len() as f64).ln()).clamp(0.0, 1.0);
    low + (high - low) * normalized.powf(f64::from(exponent)) as f32
}

/// Softmax over the list, in its order.
pub fn probabilities(list: &[Candidate]) -> Vec<f64> {
    let best = best(list);
    let total = mass(list, best);
    list.iter().map(|c| weight(*c, best) / total).collect()
}

/// Draws a token by inverting the cumulative distribution at `u` in `[0, 1)`. The tokens line up
/// by rising id, so that the outcome depends on the set and its logits and not on how the
/// filters happened to order it. Returns its index in the list, which is left by rising id.
///
/// # Panics
/// If the list is empty.
pub fn draw(list: &mut [Candidate], u: f64) -> usize {
    assert!(!list.is_empty(), "no candidate to draw from");
    list.sort_unstable_by_key(|c| c.id);
    let best = best(list);
    let target = u * mass(list, best);
    let mut sum = 0.0;
    let mut last = 0;
    for (i, c) in list.iter().enumerate() {
        let w = weight(*c, best);
        sum += w;
        if w > 0.0 {
            last = i;
        }
        if sum > target {
            return i;
        }
    }
    // Rounding may leave the target a hair above the sum.
    last
}

/// The highest logit.
pub(crate) fn best(list: &[Candidate]) -> f32 {
    list.iter()
        .map(|c| c.logit)
        .fold(f32::NEG_INFINITY, f32::max)
}

/// Of a token, where the best one has 1.
pub(crate) fn weight(c: Candidate, best: f32) -> f64 {
    (f64::from(c.logit) - f64::from(best)).exp()
}

/// The sum of the weights.
pub(crate) fn mass(list: &[Candidate], best: f32) -> f64 {
    list.iter().map(|c| weight(*c, best)).sum()
}
