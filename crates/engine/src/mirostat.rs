//! Mirostat: keeps the surprise of the text near a target by feedback (Basu et al. 2021,
//! "Mirostat: a neural text decoding algorithm that directly controls perplexity").
//!
//! It replaces the filters: before each draw it cuts the list of candidates, after each draw it
//! moves its limit `mu` by the difference of the observed surprise from the target. That limit is
//! the only state that a sampler has besides its parameters.

use crate::filters::{self, Candidate};

/// Version 1 estimates the exponent of Zipf's law from this many of the best tokens.
const ZIPF_TOKENS: usize = 100;

/// The two published forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Finds a k for top-k by Zipf's law.
    One,
    /// Drops every token whose surprise is above the limit.
    Two,
}

/// The controller.
#[derive(Clone, Debug)]
pub struct Mirostat {
    version: Version,
    /// Target surprise in bits.
    tau: f64,
    /// Learning rate.
    eta: f64,
    /// Limit in bits.
    mu: f64,
    /// Size of the vocabulary.
    vocab: usize,
}

impl Mirostat {
    /// A controller that begins at twice the target.
    pub fn new(version: Version, tau: f32, eta: f32, vocab: usize) -> Mirostat {
        Mirostat {
            version,
            tau: f64::from(tau),
            eta: f64::from(eta),
            mu: 2.0 * f64::from(tau),
            vocab,
        }
    }

    /// Cuts the list to what the limit allows, at least one token.
    pub fn cut(&self, list: &mut Vec<Candidate>) {
        match self.version {
            Version::One => self.cut_by_zipf(list),
            Version::Two => self.cut_by_surprise(list),
        }
    }

    /// Learns the probability (after [`Mirostat::cut`]) of the token that was drawn.
    pub fn observe(&mut self, probability: f64) {
        let surprise = -probability.max(f64::MIN_POSITIVE).log2();
        self.mu -= self.eta * (surprise - self.tau);
    }

    fn cut_by_surprise(&self, list: &mut Vec<Candidate>) {
        if list.is_empty() {
            return;
        }
        // surprise <= mu  <=>  probability >= 2^-mu
        let best = f64::from(filters::best(list));
        let log_mass = list
            .iter()
            .map(|c| (f64::from(c.logit) - best).exp())
            .sum::<f64>()
            .ln();
        let floor = best + log_mass - self.mu * std::f64::consts::LN_2;
        if best >= floor {
            list.retain(|c| f64::from(c.logit) >= floor);
        } else {
            filters::top_k(list, 1);
            list.truncate(1);
        }
    }

    fn cut_by_zipf(&self, list: &mut Vec<Candidate>) {
        if list.len() < 2 {
            return;
        }
        let mut head = list.clone();
        filters::top_k(&mut head, ZIPF_TOKENS);
        head.truncate(ZIPF_TOKENS);
        let k = self.zipf_k(&head);
        filters::top_k(list, k);
        list.truncate(k);
    }

    /// Equation 2 and algorithm 1 of the paper. `head`: the best tokens in falling order.
    fn zipf_k(&self, head: &[Candidate]) -> usize {
        // Least squares for ln p[i] / p[i+1] = s * ln (i+2) / (i+1).
        let (mut cross, mut square) = (0.0, 0.0);
        for (i, pair) in head.windows(2).enumerate() {
            let t = ((i + 2) as f64 / (i + 1) as f64).ln();
            cross += t * (f64::from(pair[0].logit) - f64::from(pair[1].logit));
            square += t * t;
        }
        let s = cross / square;
        let epsilon = s - 1.0;
        // epsilon / (1 - N^-epsilon) tends to 1 / ln N as epsilon tends to 0.
        let ln_vocab = (self.vocab.max(2) as f64).ln();
        let ratio = if epsilon.abs() < 1e-9 {
            1.0 / ln_vocab
        } else {
            epsilon / (1.0 - (-epsilon * ln_vocab).exp())
        };
        let k = (ratio * self.mu.exp2()).powf(1.0 / s);
        // `as` takes NaN to 0 and what is too large to the largest number.
        (k as usize).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Stream, uniform};

    /// A row that obeys Zipf's law with exponent `s`.
    fn zipf(n: u32, s: f32) -> Vec<Candidate> {
        (0..n)
            .map(|id| Candidate {
                id,
                logit: -s * ((id + 1) as f32).ln(),
            })
            .collect()
    }

    fn mean_surprise(version: Version, tau: f32, s: f32) -> f64 {
        let list = zipf(5000, s);
        let mut mirostat = Mirostat::new(version, tau, 0.1, list.len());
        let mut sum = 0.0;
        let (burn_in, n) = (500, 3000);
        for position in 0..burn_in + n {
            let mut cut = list.clone();
            mirostat.cut(&mut cut);
            assert!(!cut.is_empty());
            let chosen = filters::draw(&mut cut, uniform(1, 0, position, Stream::Token));
            let p = filters::probabilities(&cut)[chosen];
            mirostat.observe(p);
            if position >= burn_in {
                sum -= p.log2();
            }
        }
        sum / n as f64
    }

    #[test]
    fn surprise_settles_at_the_target() {
        for version in [Version::One, Version::Two] {
            for tau in [2.0, 3.5, 5.0] {
                let mean = mean_surprise(version, tau, 1.1);
                let off = (mean - f64::from(tau)).abs();
                assert!(off < 0.1, "{version:?}: {mean} bits instead of {tau}");
            }
        }
    }

    #[test]
    fn the_zipf_exponent_is_recovered() {
        // With s = 1.5, epsilon = 0.5: k = (0.5 * 2^mu / (1 - N^-0.5))^(1 / 1.5).
        let mirostat = Mirostat::new(Version::One, 4.0, 0.1, 5000);
        let expected = (0.5 * 256.0 / (1.0 - 5000f64.powf(-0.5))).powf(1.0 / 1.5);
        assert_eq!(mirostat.zipf_k(&zipf(100, 1.5)), expected as usize);
    }

    #[test]
    fn odd_lists_leave_a_candidate() {
        let one = vec![Candidate { id: 3, logit: 1.0 }];
        let equal: Vec<_> = (0..300).map(|id| Candidate { id, logit: 0.5 }).collect();
        for version in [Version::One, Version::Two] {
            for list in [&one, &equal] {
                for tau in [0.0, 1.0, 1000.0] {
                    let mut cut = list.clone();
                    let mut mirostat = Mirostat::new(version, tau, 0.1, 300);
                    mirostat.cut(&mut cut);
                    assert!(!cut.is_empty(), "{version:?} {tau}");
                    mirostat.observe(0.0);
                    assert!(mirostat.mu.is_finite());
                }
            }
        }
    }
}
