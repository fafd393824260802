//! From a row of logits to a token.
//!
//! The order is llama.cpp's:
//!
//! ```text
//! logit bias -> penalties -> DRY -> top-n-sigma -> top-k -> typical -> top-p -> min-p -> XTC
//!            -> temperature (dynamic) -> draw
//! logit bias -> temperature -> mirostat -> draw                        with mirostat 1 or 2
//! logit bias -> penalties -> DRY -> most likely token                  with temperature <= 0
//! ```
//!
//! (llama.cpp would still let XTC and typical sampling remove the best token at temperature 0;
//! here 0 means the best token.) Filters see the logits before temperature.
//!
//! Knows logits and token ids. Must not know text: the pieces that DRY needs come in as
//! [`Breakers`].

use crate::dry::{Breakers, Dry};
use crate::error::Error;
use crate::filters::{self, Candidate};
use crate::mirostat::{Mirostat, Version};
use crate::params::SamplerParams;
use crate::random::{Stream, uniform};
use crate::scan::Scan;

/// Draws tokens for one answer. Its only state is mirostat's limit: all else is a function of
/// the logits, the tokens so far, and the parameters.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplerParams,
    vocab: usize,
    choice: u64,
    breakers: Breakers,
    mirostat: Option<Mirostat>,
    /// The row as bias and penalties leave it; kept to save an allocation per token.
    row: Vec<f32>,
    /// What is known of the row; kept for the same reason.
    scan: Scan,
}

impl Sampler {
    /// A sampler that chooses among the ids below `vocab` (rows may be longer: some models pad
    /// their output beyond the tokens that exist). `choice` numbers the answers to one prompt.
    /// `breakers` are only looked at if DRY is on.
    ///
    /// # Errors
    /// What [`SamplerParams::validate`] finds, or a bias for an unknown token.
    pub fn new(
        params: SamplerParams,
        vocab: usize,
        choice: u64,
        breakers: Breakers,
    ) -> Result<Sampler, Error> {
        params.validate()?;
        if let Some(&(id, _)) = params
            .logit_bias
            .iter()
            .find(|(id, _)| *id as usize >= vocab)
        {
            let what = "logit_bias";
            return Err(Error::UnknownToken { what, id, vocab });
        }
        let version = match params.mirostat {
            1 => Some(Version::One),
            2 => Some(Version::Two),
            _ => None,
        };
        let (tau, eta) = (params.mirostat_tau, params.mirostat_eta);
        Ok(Sampler {
            mirostat: version.map(|version| Mirostat::new(version, tau, eta, vocab)),
            params,
            vocab,
            choice,
            breakers,
            row: Vec::new(),
            scan: Scan::default(),
        })
    }

    /// Chooses the token that follows `history` (all tokens so far, prompt included). `logits`
    /// `[vocab]` is the model's row for the last of them.
    ///
    /// # Errors
    /// [`Error::BadLogit`] for NaN or +infinity, [`Error::NoCandidates`] if everything is banned,
    /// [`Error::LogitsShape`] if the row is shorter than the vocabulary.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32, Error> {
        let Some(logits) = logits.get(..self.vocab) else {
            let (got, expected) = (logits.len(), self.vocab);
            return Err(Error::LogitsShape { got, expected });
        };
        if let Err(id) = self.scan.look(logits) {
            let value = logits[id];
            return Err(Error::BadLogit { id, value });
        }
        // Out of the sampler while it is read.
        let mut own = std::mem::take(&mut self.row);
        let row = match self.edit(logits, history, &mut own) {
            true => &own,
            false => logits,
        };
        let position = history.len() as u64;
        let chosen = if self.params.temperature <= 0.0 {
            self.scan.greedy(row).ok_or(Error::NoCandidates)
        } else if self.mirostat.is_some() {
            self.sample_mirostat(row, position)
        } else {
            self.sample_filtered(row, position)
        };
        self.row = own;
        chosen
    }

    /// Takes over the state of another sampler with the same parameters.
    pub(crate) fn follow(&mut self, other: &Sampler) {
        self.mirostat.clone_from(&other.mirostat);
    }

    /// Puts the row as bias and penalties leave it into `row`; false if they leave it as it is.
    fn edit(&mut self, logits: &[f32], history: &[u32], row: &mut Vec<f32>) -> bool {
        let p = &self.params;
        let punishes = self.mirostat.is_none();
        let penalties =
            p.repeat_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0;
        let window = |on: bool, n: i32| match on && punishes {
            true => newest(history, n),
            false => &[],
        };
        let recent = window(penalties, p.repeat_last_n);
        let repeated = window(p.dry_multiplier != 0.0, p.dry_penalty_last_n);
        if p.logit_bias.is_empty() && recent.is_empty() && repeated.is_empty() {
            return false;
        }
        row.clear();
        row.extend_from_slice(logits);
        filters::logit_bias(row, &p.logit_bias);
        filters::penalties(
            row,
            recent,
            p.repeat_penalty,
            p.presence_penalty,
            p.frequency_penalty,
        );
        let dry = Dry {
            multiplier: p.dry_multiplier,
            base: p.dry_base,
            allowed_length: p.dry_allowed_length,
        };
        dry.apply(row, repeated, &self.breakers);
        let biased = p.logit_bias.iter().map(|(id, _)| id);
        let touched = biased.chain(recent).chain(repeated);
        if punishes {
            // Extreme parameters may have left f32's range; only a ban is minus infinity.
            let bans = |id| p.logit_bias.contains(&(id, f32::NEG_INFINITY));
            for &id in touched.clone() {
                let Some(logit) = row.get_mut(id as usize) else {
                    continue;
                };
                let lost = *logit == f32::NEG_INFINITY;
                if lost && logits[id as usize] != f32::NEG_INFINITY && !bans(id) {
                    *logit = f32::MIN;
                }
            }
        }
        for &id in touched.clone() {
            if let Some(logit) = row.get_mut(id as usize) {
                *logit = logit.min(f32::MAX);
            }
        }
        self.scan.look_again(row, touched);
        true
    }

    /// The candidates after top-n-sigma, top-k, typical and top-p. Each is only looked for among
    /// the logits that can be one.
    fn candidates(&self, row: &[f32]) -> Vec<Candidate> {
        let p = &self.params;
        let k = usize::try_from(p.top_k).unwrap_or(0); // negative: off
        let k = if k < row.len() { k } else { 0 };
        let whole = p.top_n_sigma > 0.0 || p.typical_p < 1.0;
        let mut list = if p.top_n_sigma <= 0.0 && k > 0 {
            self.scan.top_k(row, k)
        } else if !whole && p.top_p < 1.0 {
            return self.scan.top_p(row, p.top_p, p.min_keep);
        } else if !whole && p.min_p > 0.0 && p.min_keep <= 1 {
            // What min-p will leave.
            let floor = filters::min_p_floor(self.scan.best(), p.min_p);
            return self.scan.at_least(row, floor);
        } else {
            filters::collect(row)
        };
        if p.top_n_sigma > 0.0 {
            filters::top_n_sigma(&mut list, p.top_n_sigma);
            filters::top_k(&mut list, k);
        }
        filters::typical_p(&mut list, p.typical_p, p.min_keep);
        filters::top_p(&mut list, p.top_p, p.min_keep);
        list
    }

    fn sample_filtered(&self, row: &[f32], position: u64) -> Result<u32, Error> {
        let p = &self.params;
        let mut list = self.candidates(row);
        filters::min_p(&mut list, p.min_p, p.min_keep);
        if p.xtc_probability > 0.0
            && uniform(p.seed, self.choice, position, Stream::Xtc) < f64::from(p.xtc_probability)
        {
            filters::xtc(&mut list, p.xtc_threshold, p.min_keep);
        }
        let t = filters::dynamic_temperature(
            &list,
            p.temperature,
            p.dynatemp_range,
            p.dynatemp_exponent,
        );
        if list.is_empty() {
            return Err(Error::NoCandidates);
        }
        if t <= 0.0 {
            filters::sort(&mut list);
            return Ok(list[0].id);
        }
        filters::temperature(&mut list, t);
        if list.is_empty() {
            return Err(Error::NoCandidates);
        }
        let u = uniform(p.seed, self.choice, position, Stream::Token);
        let chosen = filters::draw(&mut list, u);
        Ok(list[chosen].id)
    }

    fn sample_mirostat(&mut self, row: &[f32], position: u64) -> Result<u32, Error> {
        let mut list = filters::collect(row);
        let Some(mirostat) = self.mirostat.as_mut().filter(|_| !list.is_empty()) else {
            return Err(Error::NoCandidates);
        };
        filters::temperature(&mut list, self.params.temperature);
        mirostat.cut(&mut list);
        if list.is_empty() {
            return Err(Error::NoCandidates);
        }
        let u = uniform(self.params.seed, self.choice, position, Stream::Token);
        let chosen = filters::draw(&mut list, u);
        mirostat.observe(filters::probabilities(&list)[chosen]);
        Ok(list[chosen].id)
    }
}

/// The newest `n` tokens; -1: all.
fn newest(history: &[u32], n: i32) -> &[u32] {
    let n = usize::try_from(n).unwrap_or(usize::MAX);
    &history[history.len().saturating_sub(n)..]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampler(params: SamplerParams, vocab: usize) -> Sampler {
        Sampler::new(params, vocab, 0, Breakers::default()).unwrap()
    }

    fn row(seed: u64, n: usize) -> Vec<f32> {
        (0..n as u64)
            .map(|i| (uniform(seed, 9, i, Stream::Token) as f32 - 0.5) * 20.0)
            .collect()
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        let mut greedy = sampler(SamplerParams::greedy(), 4);
        assert_eq!(greedy.sample(&[0.0, 3.0, 3.0, 1.0], &[]).unwrap(), 1);
        assert_eq!(greedy.sample(&[-9.0, -9.0, -9.0, -9.0], &[]).unwrap(), 0);
    }

    #[test]
    fn padding_beyond_the_vocabulary_is_never_chosen() {
        let params = SamplerParams {
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            ..SamplerParams::default()
        };
        for params in [params, SamplerParams::greedy()] {
            let mut s = sampler(params, 2);
            for n in 0..50 {
                let history = vec![0; n];
                assert!(s.sample(&[0.0, 0.0, 50.0, 50.0], &history).unwrap() < 2);
            }
        }
    }

    #[test]
    fn bias_forces_and_bans() {
        let force = SamplerParams {
            logit_bias: vec![(3, 1000.0)],
            ..SamplerParams::default()
        };
        assert_eq!(sampler(force, 5).sample(&row(1, 5), &[]).unwrap(), 3);
        let ban_all = SamplerParams {
            logit_bias: (0..5).map(|id| (id, f32::NEG_INFINITY)).collect(),
            ..SamplerParams::default()
        };
        for mirostat in 0..3 {
            for temperature in [0.0, 0.8] {
                let params = SamplerParams {
                    mirostat,
                    temperature,
                    ..ban_all.clone()
                };
                let got = sampler(params, 5).sample(&row(1, 5), &[]);
                assert!(matches!(got, Err(Error::NoCandidates)));
            }
        }
        let unknown = SamplerParams {
            logit_bias: vec![(5, 1.0)],
            ..SamplerParams::default()
        };
        let got = Sampler::new(unknown, 5, 0, Breakers::default());
        assert!(matches!(got, Err(Error::UnknownToken { id: 5, .. })));
    }

    #[test]
    fn a_penalty_is_no_ban() {
        let params = SamplerParams {
            repeat_penalty: 50.0,
            logit_bias: vec![(2, f32::NEG_INFINITY)],
            ..SamplerParams::greedy()
        };
        let row = [f32::NEG_INFINITY, f32::MIN, 5.0];
        let got = sampler(params, 3).sample(&row, &[0, 1, 2]);
        assert_eq!(got.unwrap(), 1);
    }

    /// Biases that add up beyond f32's range leave a token to draw.
    #[test]
    fn huge_biases_draw_a_token() {
        for mirostat in [0, 1, 2] {
            let params = SamplerParams {
                mirostat,
                logit_bias: vec![(1, f32::MAX), (1, f32::MAX)],
                ..SamplerParams::default()
            };
            let mut sampler = sampler(params, 3);
            assert_eq!(sampler.sample(&[1.0, 2.0, 3.0], &[]).unwrap(), 1);
        }
    }

    #[test]
    fn damaged_logits_are_an_error() {
        for bad in [f32::NAN, f32::INFINITY] {
            let got = sampler(SamplerParams::default(), 3).sample(&[0.0, bad, 0.0], &[]);
            assert!(matches!(got, Err(Error::BadLogit { id: 1, .. })));
        }
        let got = sampler(SamplerParams::default(), 3).sample(&[0.0], &[]);
        assert!(matches!(got, Err(Error::LogitsShape { .. })));
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let params = SamplerParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 3,
            ..SamplerParams::default()
        };
        let mut s = sampler(params, 3);
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let mut counts = [0; 3];
        const N: usize = 20_000;
        let history = vec![0; N];
        for n in 0..N {
            counts[s.sample(&logits, &history[..n]).unwrap() as usize] += 1;
        }
        for (count, p) in counts.into_iter().zip([0.5, 0.3, 0.2]) {
            let share = f64::from(count) / N as f64;
            assert!((share - p).abs() < 0.015, "{share} instead of {p}");
        }
    }

    #[test]
    fn xtc_acts_as_often_as_asked() {
        let params = SamplerParams {
            temperature: 1e-3,
            xtc_probability: 0.25,
            xtc_threshold: 0.1,
            ..SamplerParams::default()
        };
        let mut s = sampler(params, 2);
        const N: usize = 4000;
        let history = vec![0; N];
        let second = (0..N).filter(|&n| s.sample(&[1.0, 0.0], &history[..n]).unwrap() == 1);
        let share = second.count() as f64 / N as f64;
        assert!((share - 0.25).abs() < 0.03, "{share}");
    }

    #[test]
    fn windows_of_the_penalties() {
        assert_eq!(newest(&[1, 2, 3], 2), [2, 3]);
        assert_eq!(newest(&[1, 2, 3], 0), [0u32; 0]);
        assert_eq!(newest(&[1, 2, 3], -1), [1, 2, 3]);
        assert_eq!(newest(&[1, 2, 3], 9), [1, 2, 3]);
        let params = SamplerParams {
            repeat_penalty: 10.0,
            repeat_last_n: 1,
            ..SamplerParams::greedy()
        };
        let mut s = sampler(params, 3);
        assert_eq!(s.sample(&[3.0, 2.0, 1.0], &[0, 1]).unwrap(), 0);
        assert_eq!(s.sample(&[3.0, 2.0, 1.0], &[1, 0]).unwrap(), 1);
    }

    fn any_params() -> impl Strategy<Value = SamplerParams> {
        let filters = (
            -1i32..20,
            0f32..=1.0,
            0f32..=1.0,
            0f32..=1.0,
            -1f32..5.0,
            0usize..5,
        );
        let penalties = (0.001f32..1000.0, -1i32..10, -100f32..100.0, -100f32..100.0);
        let dry = (0f32..1000.0, 1f32..1000.0, 0usize..4, -1i32..20);
        let rest = (
            0f32..=1.0,
            0f32..=1.0,
            0f32..10.0,
            0f32..10.0,
            0u8..3,
            0f32..1000.0,
        );
        let temperature = prop_oneof![Just(0.0), Just(1e-38), 0f32..1000.0];
        (temperature, filters, penalties, dry, rest, any::<u64>()).prop_map(
            |(temperature, f, p, d, r, seed)| SamplerParams {
                temperature,
                top_k: f.0,
                top_p: f.1,
                min_p: f.2,
                typical_p: f.3,
                top_n_sigma: f.4,
                min_keep: f.5,
                repeat_penalty: p.0,
                repeat_last_n: p.1,
                presence_penalty: p.2,
                frequency_penalty: p.3,
                dry_multiplier: d.0,
                dry_base: d.1,
                dry_allowed_length: d.2,
                dry_penalty_last_n: d.3,
                xtc_probability: r.0,
                xtc_threshold: r.1,
                dynatemp_range: r.2,
                dynatemp_exponent: r.3,
                mirostat: r.4,
                mirostat_tau: r.5,
                seed,
                ..SamplerParams::default()
            },
        )
    }

    proptest! {
        #[test]
        fn any_valid_parameters_choose_a_token(
            params in any_params(),
            logits in prop::collection::vec(prop_oneof![
                -50f32..50.0,
                Just(f32::NEG_INFINITY),
                Just(f32::MAX),
                Just(f32::MIN),
            ], 1..40),
            history in prop::collection::vec(0u32..50, 0..30),
        ) {
            params.validate().unwrap();
            let possible = logits.iter().any(|l| *l > f32::NEG_INFINITY);
            let mut s = sampler(params, logits.len());
            for _ in 0..3 {
                match s.clone().sample(&logits, &history) {
                    Ok(id) => {
                        prop_assert!(logits[id as usize] > f32::NEG_INFINITY);
                        // The same state draws the same token.
                        prop_assert_eq!(id, s.sample(&logits, &history).unwrap());
                    }
                    Err(error) => prop_assert!(!possible, "{}", error),
                }
            }
        }
    }
}
