//! What a caller may ask of the sampler, its defaults, and its limits.
//!
//! The defaults are llama.cpp's. A model's own generation_config.json may replace them, and the
//! caller's flags replace both: `SamplerParams::default().with_generation_config(..)?`, then set
//! fields, then [`SamplerParams::validate`] (which [`crate::Sampler::new`] calls as well).

use serde_json::Value;

use crate::error::Error;

/// Most sequence breakers of DRY, and the bytes of one: each is sought in every piece of the vocabulary.
const MOST_BREAKERS: usize = 64;
const LONGEST_BREAKER: usize = 64;

/// All that shapes the choice of the next token. See [`crate::sampler`] for the order in which
/// the steps run.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerParams {
    /// Divides the logits; 0 or less: always the most likely token (lowest id of equal ones).
    pub temperature: f32,
    /// Keep the k most likely tokens and those that equal the k-th; 0 or less: off.
    pub top_k: i32,
    /// Keep the fewest most likely tokens whose mass reaches p; 1: off.
    pub top_p: f32,
    /// Keep tokens at least this share as likely as the best; 0: off.
    pub min_p: f32,
    /// Keep the tokens nearest to the expected surprise until their mass reaches p; 1: off.
    pub typical_p: f32,
    /// Keep tokens within n standard deviations of the best logit; 0 or less: off.
    pub top_n_sigma: f32,
    /// Filters by mass never leave fewer candidates than this.
    pub min_keep: usize,
    /// Divides positive and multiplies negative logits of recent tokens; 1: off.
    pub repeat_penalty: f32,
    /// How many of the newest tokens the three penalties look at; -1: all, 0: none.
    pub repeat_last_n: i32,
    /// Subtracted once from the logits of recent tokens.
    pub presence_penalty: f32,
    /// Subtracted from the logits of recent tokens for each time that they occur.
    pub frequency_penalty: f32,
    /// Strength of DRY ("don't repeat yourself"); 0: off.
    pub dry_multiplier: f32,
    /// The DRY penalty is `multiplier * base^(length - allowed_length)`.
    pub dry_base: f32,
    /// Repeated sequences shorter than this go unpunished.
    pub dry_allowed_length: usize,
    /// How many of the newest tokens DRY looks at; -1: all, 0: off.
    pub dry_penalty_last_n: i32,
    /// Strings that end a repeated sequence.
    pub dry_sequence_breakers: Vec<String>,
    /// How often XTC acts, 0..1; 0: off.
    pub xtc_probability: f32,
    /// XTC drops all but the least likely of the tokens at least this likely; above 0.5: off.
    pub xtc_threshold: f32,
    /// Dynamic temperature runs from `temperature - range` to `temperature + range`; 0: off.
    pub dynatemp_range: f32,
    /// Shape of dynamic temperature between its ends.
    pub dynatemp_exponent: f32,
    /// 0: off; 1 or 2: mirostat of that version in place of all filters.
    pub mirostat: u8,
    /// Mirostat's target surprise in bits.
    pub mirostat_tau: f32,
    /// Mirostat's learning rate.
    pub mirostat_eta: f32,
    /// The same seed gives the same text; see [`crate::random`].
    pub seed: u64,
    /// Added to the logits of single tokens before all else; minus infinity bans a token.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplerParams {
    fn default() -> Self {
        SamplerParams {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            top_n_sigma: -1.0,
            min_keep: 0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_penalty_last_n: 64,
            dry_sequence_breakers: ["\n", ":", "\"", "*"].map(String::from).to_vec(),
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            mirostat: 0,
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
            seed: 0,
            logit_bias: Vec::new(),
        }
    }
}

/// A real-valued field: its name, how to read it, and its inclusive limits.
type Limit = (&'static str, fn(&SamplerParams) -> f32, f32, f32);

/// The limits are generous: they only shut out what has no meaning or overflows.
const LIMITS: &[Limit] = &[
    ("temperature", |p| p.temperature, -1000.0, 1000.0),
    ("top_p", |p| p.top_p, 0.0, 1.0),
    ("min_p", |p| p.min_p, 0.0, 1.0),
    ("typical_p", |p| p.typical_p, 0.0, 1.0),
    ("top_n_sigma", |p| p.top_n_sigma, -1000.0, 1000.0),
    ("repeat_penalty", |p| p.repeat_penalty, 0.001, 1000.0),
    ("presence_penalty", |p| p.presence_penalty, -1000.0, 1000.0),
    (
        "frequency_penalty",
        |p| p.frequency_penalty,
        -1000.0,
        1000.0,
    ),
    ("dry_multiplier", |p| p.dry_multiplier, 0.0, 1000.0),
    ("dry_base", |p| p.dry_base, 1.0, 1000.0),
    ("xtc_probability", |p| p.xtc_probability, 0.0, 1.0),
    ("xtc_threshold", |p| p.xtc_threshold, 0.0, 1.0),
    ("dynatemp_range", |p| p.dynatemp_range, 0.0, 1000.0),
    ("dynatemp_exponent", |p| p.dynatemp_exponent, 0.0, 1000.0),
    ("mirostat_tau", |p| p.mirostat_tau, 0.0, 1000.0),
    ("mirostat_eta", |p| p.mirostat_eta, 0.0, 1000.0),
];

impl SamplerParams {
    /// The parameters under which the most likely token is always taken.
    pub fn greedy() -> Self {
        SamplerParams {
            temperature: 0.0,
            ..SamplerParams::default()
        }
    }

    /// The names of the real-valued fields, with their inclusive limits.
    pub fn limits() -> impl Iterator<Item = (&'static str, f32, f32)> {
        LIMITS.iter().map(|&(name, _, low, high)| (name, low, high))
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Parameter`] with the field's name and range for the first value outside it; NaN
    /// lies outside every range.
    pub fn validate(&self) -> Result<(), Error> {
        for &(field, get, low, high) in LIMITS {
            let value = get(self);
            // Written so that NaN fails.
            if !(low..=high).contains(&value) {
                return Err(bad(field, value, format!("from {low} to {high}")));
            }
        }
        let windows = [
            ("repeat_last_n", self.repeat_last_n),
            ("dry_penalty_last_n", self.dry_penalty_last_n),
        ];
        for (field, value) in windows {
            if value < -1 {
                return Err(bad(field, value, "-1 (all tokens) or more".into()));
            }
        }
        if self.mirostat > 2 {
            return Err(bad("mirostat", self.mirostat, "0, 1 or 2".into()));
        }
        if self.dry_sequence_breakers.iter().any(String::is_empty) {
            let range = "strings of at least one character";
            return Err(bad("dry_sequence_breakers", "\"\"", range.into()));
        }
        let breakers = &self.dry_sequence_breakers;
        if breakers.len() > MOST_BREAKERS || breakers.iter().any(|b| b.len() > LONGEST_BREAKER) {
            let (value, range) = (breakers.len(), "up to 64 strings of up to 64 bytes");
            return Err(bad("dry_sequence_breakers", value, range.into()));
        }
        for (id, bias) in &self.logit_bias {
            if bias.is_nan() || *bias == f32::INFINITY {
                let range = "a finite number or -inf";
                return Err(bad("logit_bias", format!("{id}:{bias}"), range.into()));
            }
        }
        Ok(())
    }

    /// Takes over what a model's generation_config.json says: `temperature`, `top_k`, `top_p`,
    /// `min_p`, `typical_p`, `repetition_penalty`, and `do_sample: false` for greedy decoding.
    /// Keys that are missing or null change nothing.
    ///
    /// # Errors
    /// [`Error::GenerationConfig`] for a value of the wrong kind, [`Error::Parameter`] for one
    /// out of range.
    pub fn with_generation_config(mut self, config: &Value) -> Result<Self, Error> {
        let reals: [(&'static str, &mut f32); 5] = [
            ("temperature", &mut self.temperature),
            ("top_p", &mut self.top_p),
            ("min_p", &mut self.min_p),
            ("typical_p", &mut self.typical_p),
            ("repetition_penalty", &mut self.repeat_penalty),
        ];
        for (key, field) in reals {
            if let Some(value) = present(config, key) {
                let number = value
                    .as_f64()
                    .ok_or_else(|| wrong(key, value, "a number"))?;
                *field = number as f32;
            }
        }
        if let Some(value) = present(config, "top_k") {
            let number = value.as_i64().and_then(|k| i32::try_from(k).ok());
            self.top_k = number.ok_or_else(|| wrong("top_k", value, "a whole number"))?;
        }
        if let Some(value) = present(config, "do_sample") {
            let sample = value.as_bool();
            if !sample.ok_or_else(|| wrong("do_sample", value, "true or false"))? {
                self.temperature = 0.0;
            }
        }
        self.validate()?;
        Ok(self)
    }
}

/// The end-of-generation ids that generation_config.json names: `eos_token_id`, one or a list.
///
/// # Errors
/// [`Error::GenerationConfig`] for anything else than ids.
pub fn eog_from_generation_config(config: &Value) -> Result<Vec<u32>, Error> {
    const KEY: &str = "eos_token_id";
    let Some(value) = present(config, KEY) else {
        return Ok(Vec::new());
    };
    let list = match value {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    list.iter()
        .map(|id| {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| wrong(KEY, value, "a token id or a list of token ids"))
        })
        .collect()
}

fn present<'v>(config: &'v Value, key: &str) -> Option<&'v Value> {
    config.get(key).filter(|value| !value.is_null())
}

fn wrong(key: &'static str, value: &Value, expected: &'static str) -> Error {
    let value = value.to_string();
    Error::GenerationConfig {
        key,
        value,
        expected,
    }
}

fn bad(field: &'static str, value: impl ToString, range: String) -> Error {
    let value = value.to_string();
    Error::Parameter {
        field,
        value,
        range,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_are_valid() {
        SamplerParams::default().validate().unwrap();
        SamplerParams::greedy().validate().unwrap();
    }

    #[test]
    fn every_real_field_refuses_nan_and_its_neighbours() {
        type Set = fn(&mut SamplerParams) -> &mut f32;
        let fields: [Set; 16] = [
            |p| &mut p.temperature,
            |p| &mut p.top_p,
            |p| &mut p.min_p,
            |p| &mut p.typical_p,
            |p| &mut p.top_n_sigma,
            |p| &mut p.repeat_penalty,
            |p| &mut p.presence_penalty,
            |p| &mut p.frequency_penalty,
            |p| &mut p.dry_multiplier,
            |p| &mut p.dry_base,
            |p| &mut p.xtc_probability,
            |p| &mut p.xtc_threshold,
            |p| &mut p.dynatemp_range,
            |p| &mut p.dynatemp_exponent,
            |p| &mut p.mirostat_tau,
            |p| &mut p.mirostat_eta,
        ];
        for (field, (name, get, low, high)) in fields.iter().zip(LIMITS) {
            for inside in [*low, *high] {
                let mut params = SamplerParams::default();
                *field(&mut params) = inside;
                assert_eq!(get(&params), inside, "the tables are in one order");
                params.validate().unwrap();
            }
            for outside in [f32::NAN, f32::INFINITY, low - 1.0, high + 1.0] {
                let mut params = SamplerParams::default();
                *field(&mut params) = outside;
                let error = params.validate().unwrap_err().to_string();
                assert!(error.contains(name), "{error}");
                assert!(error.contains(&high.to_string()), "{error}");
            }
        }
    }

    #[test]
    fn other_fields_are_checked() {
        let default = SamplerParams::default;
        let cases = [
            SamplerParams {
                repeat_last_n: -2,
                ..default()
            },
            SamplerParams {
                dry_penalty_last_n: -2,
                ..default()
            },
            SamplerParams {
                mirostat: 3,
                ..default()
            },
            SamplerParams {
                logit_bias: vec![(1, f32::NAN)],
                ..default()
            },
            SamplerParams {
                logit_bias: vec![(1, f32::INFINITY)],
                ..default()
            },
            SamplerParams {
                dry_sequence_breakers: vec![String::new()],
                ..default()
            },
        ];
        for params in cases {
            assert!(matches!(params.validate(), Err(Error::Parameter { .. })));
        }
        let ban = SamplerParams {
            logit_bias: vec![(1, f32::NEG_INFINITY)],
            ..default()
        };
        ban.validate().unwrap();
    }

    #[test]
    fn generation_config_replaces_defaults() {
        let config = json!({
            "temperature": 0.6, "top_k": 50, "top_p": 0.9, "min_p": null,
            "repetition_penalty": 1.1, "do_sample": true, "eos_token_id": [1, 2]
        });
        let params = SamplerParams::default()
            .with_generation_config(&config)
            .unwrap();
        let expected = SamplerParams {
            temperature: 0.6,
            top_k: 50,
            top_p: 0.9,
            repeat_penalty: 1.1,
            ..SamplerParams::default()
        };
        assert_eq!(params, expected);

        let greedy = json!({"do_sample": false, "temperature": 0.7});
        let params = SamplerParams::default()
            .with_generation_config(&greedy)
            .unwrap();
        assert_eq!(params.temperature, 0.0);
    }

    #[test]
    fn generation_config_that_means_nothing_is_refused() {
        let cases = [
            json!({"temperature": "hot"}),
            json!({"top_k": 1.5}),
            json!({"top_k": 1u64 << 40}),
            json!({"do_sample": 1}),
            json!({"top_p": 1.5}),
        ];
        for config in cases {
            let result = SamplerParams::default().with_generation_config(&config);
            assert!(result.is_err(), "{config}");
        }
        for config in [json!({"eos_token_id": "x"}), json!({"eos_token_id": [-1]})] {
            assert!(eog_from_generation_config(&config).is_err(), "{config}");
        }
    }

    #[test]
    fn end_of_generation_ids() {
        let eog = |config| eog_from_generation_config(&config).unwrap();
        assert_eq!(eog(json!({})), Vec::<u32>::new());
        assert_eq!(eog(json!({"eos_token_id": null})), Vec::<u32>::new());
        assert_eq!(eog(json!({"eos_token_id": 7})), vec![7]);
        assert_eq!(eog(json!({"eos_token_id": [7, 9]})), vec![7, 9]);
    }
}
