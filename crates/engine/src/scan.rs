//! One look at a row of logits, so that nothing has to look at all of it again.
//!
//! The idea: a row has 128,000 logits, and a few hundred matter. One pass finds the best logit of
//! each block of [`BLOCK`] and whether any is damaged; it is the only one that touches every logit.
//! Then
//!
//! - the most likely token is in the first block whose best is the best of all;
//! - the k-th best of the blocks' bests is not above the k-th best logit, since k blocks hold one
//!   each that is as good: a block whose best lies below it holds none of the k;
//! - the same goes for any other floor.
//!
//! Why it is fast: the pass is compares and maxima over independent lanes, which the compiler
//! turns into vector instructions on every target; the rest reads one number a block.

use crate::filters::{self, Candidate};

/// Logits a block.
const BLOCK: usize = 128;
/// Independent maxima, so that none waits for the one before it.
const LANES: usize = 16;

/// The blocks of one row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scan {
    /// Best logit of each block.
    bests: Vec<f32>,
}

impl Scan {
    /// Looks at a row. Says where the first NaN or +infinity is, if there is one.
    pub(crate) fn look(&mut self, row: &[f32]) -> Result<(), usize> {
        self.bests.clear();
        self.bests.reserve(row.len().div_ceil(BLOCK));
        let mut damaged = false;
        for block in row.chunks(BLOCK) {
            let (best, bad) = look_at(block);
            self.bests.push(best);
            damaged |= bad;
        }
        match damaged {
            false => Ok(()),
            true => Err(row.iter().position(|&l| is_bad(l)).unwrap_or(0)),
        }
    }

    /// Looks again where a row may have changed since [`Scan::look`]: at these tokens.
    pub(crate) fn look_again<'i>(
        &mut self,
        row: &[f32],
        ids: impl Iterator<Item = &'i u32> + Clone,
    ) {
        if ids.clone().count() > self.bests.len() / 4 {
            // Biases and penalties make neither NaN nor +infinity.
            let _ = self.look(row);
            return;
        }
        for id in ids {
            let block = *id as usize / BLOCK;
            let logits = row.chunks(BLOCK).nth(block);
            if let (Some(best), Some(logits)) = (self.bests.get_mut(block), logits) {
                *best = look_at(logits).0;
            }
        }
    }

    /// The best logit; minus infinity if all are banned.
    pub(crate) fn best(&self) -> f32 {
        self.bests.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    /// As [`filters::greedy`].
    pub(crate) fn greedy(&self, row: &[f32]) -> Option<u32> {
        let best = self.best();
        if best == f32::NEG_INFINITY {
            return None;
        }
        let block = self.bests.iter().position(|b| *b == best)?;
        let inside = row[block * BLOCK..].iter().position(|l| *l == best)?;
        Some((block * BLOCK + inside) as u32)
    }

    /// All tokens with this logit or a better one that are not banned, by rising id.
    pub(crate) fn at_least(&self, row: &[f32], floor: f64) -> Vec<Candidate> {
        let mut list = Vec::new();
        let passes = |l: f32| f64::from(l) >= floor && l > f32::NEG_INFINITY;
        for (i, (logits, best)) in row.chunks(BLOCK).zip(&self.bests).enumerate() {
            if !passes(*best) {
                continue;
            }
            let ids = (i * BLOCK) as u32..;
            let good = ids.zip(logits).filter(|(_, l)| passes(**l));
            list.extend(good.map(|(id, &logit)| Candidate { id, logit }));
        }
        list
    }

    /// `top_k(collect(row), k)`: the k best and those that equal the k-th, in canonical order, for
    /// a k of at least 1.
    pub(crate) fn top_k(&self, row: &[f32], k: usize) -> Vec<Candidate> {
        let mut floor = f32::NEG_INFINITY;
        if (1..=self.bests.len()).contains(&k) {
            let mut bests = self.bests.clone();
            let (_, kth, _) = bests.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
            floor = *kth;
        }
        let mut list = self.at_least(row, f64::from(floor));
        filters::top_k(&mut list, k);
        list
    }

    /// `top_p(collect(row), p, min_keep)`, for a p below 1.
    ///
    /// The mass of the whole row is needed only to compare sums of a few weights with a share of
    /// it: a mass known to within [`MASS_ERROR`] decides nearly all of these comparisons, and the
    /// exact one is computed if it does not.
    pub(crate) fn top_p(&self, row: &[f32], p: f32, min_keep: usize) -> Vec<Candidate> {
        let best = self.best();
        let about = f64::from(p) * self.mass(row, best);
        let mut goal = (about * (1.0 - MASS_ERROR), about * (1.0 + MASS_ERROR));
        let (mut k, mut done, mut sum) = (256, 0, 0.0);
        while k <= self.bests.len() {
            let mut list = self.top_k(row, k);
            for i in done..list.len() {
                sum += filters::weight(list[i], best);
                if (goal.0..goal.1).contains(&sum) {
                    let all = filters::collect(row);
                    let exact = f64::from(p) * filters::mass(&all, best);
                    goal = (exact, exact);
                }
                if sum >= goal.1 && i + 1 >= min_keep {
                    list.truncate(i + 1);
                    return list;
                }
            }
            if list.len() < k {
                return list; // the row has no more
            }
            done = list.len();
            k = done * 4;
        }
        let mut list = filters::collect(row);
        filters::top_p(&mut list, p, min_keep);
        list
    }

    /// The sum of `exp(logit - best)`, to within [`MASS_ERROR`] of itself.
    fn mass(&self, row: &[f32], best: f32) -> f64 {
        // 128,000 weights below exp(-40) change nothing.
        let blocks = row.chunks(BLOCK).zip(&self.bests);
        let near = blocks.filter(|(_, b)| **b - best > -40.0);
        near.map(|(logits, _)| f64::from(block_mass(logits, best)))
            .sum()
    }
}

/// Relative; several times what [`exp`]'s polynomial, the rounding of its argument and the sums in
/// f32 can add up to.
const MASS_ERROR: f64 = 2e-5;

fn is_bad(logit: f32) -> bool {
    logit.is_nan() || logit == f32::INFINITY
}

/// The best logit of a block, and whether one is NaN or +infinity.
fn look_at(block: &[f32]) -> (f32, bool) {
    let mut bests = [f32::NEG_INFINITY; LANES];
    let mut bads = [0u32; LANES];
    let lanes = block.chunks_exact(LANES);
    let rest = lanes.remainder();
    let mut look = |logits: &[f32]| {
        for ((&l, best), bad) in logits.iter().zip(&mut bests).zip(&mut bads) {
            *best = greater(l, *best);
            // One comparison for both: NaN is less than nothing.
            let sound = l < f32::INFINITY;
            *bad |= u32::from(!sound);
        }
    };
    lanes.for_each(&mut look);
    look(rest);
    // Halves upon halves, which stay vectors until the last few.
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            bests[i] = greater(bests[i], bests[i + width]);
            bads[i] |= bads[i + width];
        }
        width /= 2;
    }
    (bests[0], bads[0] != 0)
}

/// `b` if `a` is NaN: what a processor's own maximum does, where `f32::max` asks for more.
fn greater(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

fn block_mass(block: &[f32], best: f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let lanes = block.chunks_exact(LANES);
    let rest = lanes.remainder();
    for chunk in lanes {
        for (&l, sum) in chunk.iter().zip(&mut sums) {
            *sum += exp(l - best);
        }
    }
    for (&l, sum) in rest.iter().zip(&mut sums) {
        *sum += exp(l - best);
    }
    sums.iter().sum()
}

/// `e^x` for x from minus infinity to 0, to a few millionths of itself.
///
/// `2^t = 2^n * 2^f` with n the nearest whole number: n goes into the exponent's bits, and 2^f is
/// its Taylor series in `f ln 2`, at most 0.35: the next term is below 3e-6.
fn exp(x: f32) -> f32 {
    /// Adding and taking away 1.5 * 2^23 leaves a whole number, without an instruction that not
    /// every processor has.
    const ROUND: f32 = 12_582_912.0;
    let t = x.max(-87.0) * std::f32::consts::LOG2_E;
    let shifted = t + ROUND;
    let f = (t - (shifted - ROUND)) * std::f32::consts::LN_2;
    let series = 1.0 + f * (1.0 + f * (0.5 + f * (1.0 / 6.0 + f * (1.0 / 24.0 + f / 120.0))));
    // The low bits of `shifted` are n.
    let scale = shifted.to_bits().wrapping_add(127) << 23;
    series * f32::from_bits(scale)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(row: &[f32]) -> Scan {
        let mut scan = Scan::default();
        scan.look(row).unwrap();
        scan
    }

    /// Few values, so that there are ties; some banned.
    fn rows() -> impl Strategy<Value = Vec<f32>> {
        let few = prop_oneof![
            4 => (-40i8..40).prop_map(|l| f32::from(l) / 4.0),
            1 => Just(f32::NEG_INFINITY),
            1 => Just(0.0f32),
            1 => Just(-0.0f32),
        ];
        let many = prop_oneof![9 => -12f32..3.0, 1 => 0f32..9.0];
        prop_oneof![
            prop::collection::vec(few.clone(), 1..300),
            prop::collection::vec(few, 15_000..20_000),
            prop::collection::vec(many, 25_000..30_000),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn equals_the_plain_steps(row in rows(), k in 1usize..700, p in 0f32..1.0, keep in 0usize..9) {
            let scan = scan(&row);
            prop_assert_eq!(scan.greedy(&row), filters::greedy(&row));
            let all = filters::collect(&row);
            let mut due = all.clone();
            filters::top_k(&mut due, k);
            prop_assert_eq!(scan.top_k(&row, k), due);
            let mut due = all.clone();
            filters::top_p(&mut due, p, keep);
            prop_assert_eq!(scan.top_p(&row, p, keep), due);
            let floor = f64::from(p) * 10.0 - 5.0;
            let mut due = all;
            due.retain(|c| f64::from(c.logit) >= floor);
            prop_assert_eq!(scan.at_least(&row, floor), due);
        }

        #[test]
        fn changes_are_seen(mut row in rows(), at in any::<prop::sample::Index>(), to in -20f32..20.0) {
            let mut changing = scan(&row);
            let id = at.index(row.len());
            row[id] = to;
            changing.look_again(&row, [id as u32].iter());
            prop_assert_eq!(changing.bests, scan(&row).bests);
        }

        #[test]
        fn damage_is_found(mut row in rows(), at in any::<prop::sample::Index>(), nan in any::<bool>()) {
            let id = at.index(row.len());
            row[id] = if nan { f32::NAN } else { f32::INFINITY };
            prop_assert_eq!(Scan::default().look(&row), Err(id));
        }
    }

    #[test]
    fn the_quick_mass_is_close() {
        for i in 0..40_000 {
            let x = -i as f32 / 1000.0;
            let (got, due) = (f64::from(exp(x)), f64::from(x).exp());
            let error = (got - due).abs();
            assert!(
                error < 5e-6 * due || error < 1e-37,
                "exp({x}): {got} for {due}"
            );
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        for spread in [0.0, 1.0, 8.0, 30.0] {
            let logits = (0..128_256u32).map(|i| {
                let u = f64::from(i.wrapping_mul(2_654_435_761)) / f64::from(u32::MAX);
                (u * u * spread) as f32
            });
            let row: Vec<f32> = logits.collect();
            let scan = scan(&row);
            let due = filters::mass(&filters::collect(&row), scan.best());
            let error = (scan.mass(&row, scan.best()) / due - 1.0).abs();
            assert!(error < MASS_ERROR / 4.0, "{error} at a spread of {spread}");
        }
    }
}
