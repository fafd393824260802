//! `--adapter` and `--control-vector`: files with a scale, and what they become beside a model's
//! weights, or in them.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use engine::Adaptation;
use model::convert::Input;
use model::{Adapter, ControlVector, Directions, Lora, Weights};

use crate::args::LoadArgs;
use crate::exit::usage;
use crate::load::named;

/// `FILE[:SCALE]`. A file whose own name ends so is taken as it is.
pub fn scaled(typed: &str) -> Result<(PathBuf, f32)> {
    let whole = || (PathBuf::from(typed), 1.0);
    if Path::new(typed).exists() {
        return Ok(whole());
    }
    let Some((file, scale)) = typed.rsplit_once(':') else {
        return Ok(whole());
    };
    match scale.parse::<f32>() {
        Ok(scale) if scale.is_finite() => Ok((PathBuf::from(file), scale)),
        Ok(_) => Err(usage(
            format!("{typed}: the scale {scale} is not finite"),
            "1 is as it was trained, 0 nothing of it",
        )),
        Err(_) if Path::new(file).exists() => Err(usage(
            format!("{typed}: {scale:?} is not a scale"),
            "FILE:SCALE, for example lora:0.5",
        )),
        Err(_) => Ok(whole()),
    }
}

/// The file of `FILE[:SCALE]`.
pub fn file(typed: &str) -> PathBuf {
    scaled(typed).map_or_else(|_| PathBuf::from(typed), |(path, _)| path)
}

/// `A:B`, layers counted from 1: the first layer has no direction.
fn layers(typed: &str) -> Result<RangeInclusive<usize>> {
    let ends = typed.split_once(':');
    let ends = ends.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match ends {
        Some((first, last)) if first <= last => Ok(first..=last),
        _ => Err(usage(
            format!("--control-vector-layers {typed} is not A:B"),
            "8:20 stands for the layers 8 to 20, both included",
        )),
    }
}

/// What is wrong with the options themselves, before a model is fetched.
pub fn check(args: &LoadArgs) -> Result<()> {
    let files = args.adapter.iter().chain(&args.control_vector);
    files
        .map(|typed| scaled(typed))
        .collect::<Result<Vec<_>>>()?;
    match &args.control_vector_layers {
        Some(typed) => layers(typed).map(drop),
        None => Ok(()),
    }
}

/// What the options lay beside a model's weights.
pub fn beside(args: &LoadArgs, weights: &Weights) -> Result<Adaptation> {
    let adapter = |typed: &String| {
        let (path, scale) = scaled(typed)?;
        let adapter = Adapter::open(&path, weights, scale).map_err(|e| named(&path, e))?;
        Ok(Arc::new(adapter))
    };
    let adapters = args.adapter.iter().map(adapter).collect::<Result<_>>()?;
    let directions = |typed: &String| {
        let (path, scale) = scaled(typed)?;
        let found = Directions::open(&path, &weights.config).map_err(|e| named(&path, e))?;
        Ok((found, scale))
    };
    let all: Vec<_> = args
        .control_vector
        .iter()
        .map(directions)
        .collect::<Result<_>>()?;
    let range = args.control_vector_layers.as_deref().map(layers);
    let range = range.transpose()?;
    let control = match all.is_empty() {
        true => None,
        false => Some(Arc::new(ControlVector::sum(
            weights.kernels(),
            &weights.config,
            &all,
            range,
        )?)),
    };
    Ok(Adaptation { adapters, control })
}

/// The adapters to merge into a model.
pub fn merged(typed: &[String], base: &Input) -> Result<Vec<(Lora, f32)>> {
    if typed.is_empty() {
        return Ok(Vec::new());
    }
    let base = base.config()?;
    let one = |typed: &String| {
        let (path, scale) = scaled(typed)?;
        let lora = Lora::open(&path, &base).map_err(|e| named(&path, e))?;
        Ok((lora, scale))
    };
    typed.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_follows_the_last_colon() {
        let of = |typed: &str| scaled(typed).map(|(path, s)| (path.display().to_string(), s));
        for (typed, path, scale) in [
            ("a/lora", "a/lora", 1.0),
            ("a/lora:0.5", "a/lora", 0.5),
            ("a:b:-2", "a:b", -2.0),
            ("C:\\lora", "C:\\lora", 1.0),
            ("lora:x", "lora:x", 1.0),
        ] {
            assert_eq!(of(typed).ok(), Some((path.to_owned(), scale)), "{typed}");
        }
        for typed in ["lora:inf", "lora:NaN", "Cargo.toml:half"] {
            assert!(of(typed).is_err(), "{typed}");
        }
    }

    #[test]
    fn layers_are_two_numbers() {
        assert_eq!(layers("3:9").ok(), Some(3..=9));
        for typed in ["3", "9:3", "a:b", "-1:3", ""] {
            assert!(layers(typed).is_err(), "{typed}");
        }
    }
}
