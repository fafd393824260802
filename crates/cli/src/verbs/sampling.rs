//! The samplers' options: what was typed over what the model's generation_config says over the
//! engine's defaults.

use anyhow::Result;
use clap::Parser;
use engine::SamplerParams;
use serde_json::Value;

use crate::args::SamplingArgs;
use crate::exit::usage;

/// Fields that options and parameters share by name: each with a way in and a way out.
macro_rules! shared {
    ($($field:ident),* $(,)?) => {
        fn lay_over(params: &mut SamplerParams, args: &SamplingArgs) {
            $(if let Some(value) = args.$field {
                params.$field = value;
            })*
        }

        /// Sets what is not set as it is in `below`.
        pub fn fill(args: &mut SamplingArgs, below: &SamplingArgs) {
            $(args.$field = args.$field.or(below.$field);)*
            args.seed = args.seed.or(below.seed);
            if args.logit_bias.is_empty() {
                args.logit_bias.clone_from(&below.logit_bias);
            }
        }

        /// Names and values in force, for `/show`.
        pub fn listed(params: &SamplerParams) -> Vec<(&'static str, String)> {
            vec![$((stringify!($field), params.$field.to_string())),*]
        }
    };
}

shared!(
    temperature,
    top_k,
    top_p,
    min_p,
    typical_p,
    top_n_sigma,
    repeat_penalty,
    repeat_last_n,
    presence_penalty,
    frequency_penalty,
    dry_multiplier,
    dry_base,
    dry_allowed_length,
    dry_penalty_last_n,
    xtc_probability,
    xtc_threshold,
    dynatemp_range,
    dynatemp_exponent,
    mirostat,
    mirostat_tau,
    mirostat_eta,
);

/// Whether any sampler was typed. A seed and a bias fit any way of sampling.
pub fn any_set(args: &SamplingArgs) -> bool {
    let fits_all = SamplingArgs {
        seed: args.seed,
        logit_bias: args.logit_bias.clone(),
        ..SamplingArgs::default()
    };
    *args != fits_all
}

/// The parameters; a seed that was not given is drawn.
pub fn params(args: &SamplingArgs, generation: Option<&Value>) -> Result<SamplerParams> {
    let mut params = SamplerParams::default();
    if let Some(config) = generation {
        params = params.with_generation_config(config)?;
    }
    lay_over(&mut params, args);
    params.logit_bias = args.logit_bias.clone();
    params.seed = args.seed.unwrap_or_else(random_seed);
    check(&params)?;
    Ok(params)
}

fn check(params: &SamplerParams) -> Result<()> {
    params
        .validate()
        .map_err(|error| usage(error.to_string(), "`puna run --help` shows the defaults"))
}

/// 32 bits, so that it is easily typed again. The standard library draws its hash keys from the
/// system's random numbers.
pub fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.finish() & 0xffff_ffff
}

/// One `/set` line as the options know it.
#[derive(Parser)]
#[command(name = "/set", disable_help_flag = true)]
struct SetLine {
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Sets one sampler by name, as `/set temperature 0.2` does. Returns the seed if it was that.
pub fn set(params: &mut SamplerParams, name: &str, value: &str) -> Result<Option<u64>> {
    let name = name.replace('-', "_");
    let known = listed(params).iter().any(|(known, _)| *known == name);
    if !known && !["seed", "logit_bias"].contains(&name.as_str()) {
        let hint = "/help names some, `puna run --help` all";
        return Err(usage(format!("{name} is no setting"), hint));
    }
    let option = format!("--{}={value}", name.replace('_', "-"));
    let line = SetLine::try_parse_from(["/set", &option])?.sampling;
    let mut changed = params.clone();
    lay_over(&mut changed, &line);
    changed.logit_bias.extend(&line.logit_bias);
    check(&changed)?;
    *params = changed;
    Ok(line.seed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What the catalogue recommends is taken as it is, until a sampler is typed.
    #[test]
    fn the_catalogue_recommends_what_the_engine_knows() {
        let recommended = hub::catalogue().iter().filter_map(|entry| entry.generation);
        for json in recommended {
            let config = serde_json::from_str(json).unwrap();
            let p = params(&SamplingArgs::default(), Some(&config)).unwrap();
            assert_eq!((p.temperature, p.repeat_penalty), (0.0, 1.1));
        }
        assert!(!any_set(&SamplingArgs::default()));
        let seed = SamplingArgs {
            seed: Some(1),
            ..SamplingArgs::default()
        };
        assert!(!any_set(&seed));
        let top_k = SamplingArgs {
            top_k: Some(1),
            ..seed
        };
        assert!(any_set(&top_k));
    }

    #[test]
    fn options_beat_the_model_and_the_model_beats_the_defaults() {
        let config = json!({"temperature": 0.5, "top_p": 0.7, "do_sample": true});
        let args = SamplingArgs {
            temperature: Some(0.25),
            seed: Some(7),
            logit_bias: vec![(3, -1.0)],
            ..SamplingArgs::default()
        };
        let p = params(&args, Some(&config)).unwrap();
        let wanted = SamplerParams {
            temperature: 0.25,
            top_p: 0.7,
            seed: 7,
            logit_bias: vec![(3, -1.0)],
            ..SamplerParams::default()
        };
        assert_eq!(p, wanted);
    }

    #[test]
    fn out_of_range_is_refused() {
        let args = SamplingArgs {
            top_p: Some(1.5),
            ..SamplingArgs::default()
        };
        assert!(
            params(&args, None)
                .unwrap_err()
                .to_string()
                .contains("top_p")
        );
    }

    #[test]
    fn a_sampler_is_set_by_name() {
        let mut p = SamplerParams::default();
        assert_eq!(set(&mut p, "temperature", "0.2").unwrap(), None);
        assert_eq!(set(&mut p, "top-k", "-1").unwrap(), None);
        assert_eq!(set(&mut p, "logit_bias", "5:-inf").unwrap(), None);
        assert_eq!(set(&mut p, "seed", "9").unwrap(), Some(9));
        assert_eq!((p.temperature, p.top_k), (0.2, -1));
        assert_eq!(p.logit_bias, [(5, f32::NEG_INFINITY)]);
        let before = p.clone();
        for (name, value) in [
            ("heat", "1"),
            ("temperature", "hot"),
            ("top_p", "7"),
            ("help", ""),
        ] {
            assert!(set(&mut p, name, value).is_err(), "{name}");
        }
        assert_eq!(p, before);
    }
}
