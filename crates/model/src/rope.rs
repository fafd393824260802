//! Rotary frequencies for every kind of context stretching.

use kernels::Rope;

use crate::config::{RopeConfig, Scaling, Yarn};
use crate::error::{Error, Result};

impl RopeConfig {
    /// The table that the kernels rotate with: inv_freq `[dim / 2]`, theta^(-2i/dim) changed by
    /// the scaling.
    pub fn table(&self) -> Rope {
        let base = self.frequencies();
        let (freqs, mscale) = match &self.scaling {
            Scaling::None | Scaling::Dynamic { .. } => (base, 1.0),
            Scaling::Linear { factor } => (base.iter().map(|f| f / factor).collect(), 1.0),
            Scaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => (
                base.iter()
                    .map(|&f| llama3(f, *factor, *low, *high, *original))
                    .collect(),
                1.0,
            ),
            Scaling::Yarn(y) => (yarn(&base, self.dim, self.theta, y), y.attention_factor),
            Scaling::LongRope {
                short,
                attention_factor,
                ..
            } => (
                base.iter().zip(short).map(|(f, d)| f / d).collect(),
                *attention_factor,
            ),
            Scaling::Divisors(d) => (
                base.iter().zip(d).map(|(f, d)| f / f64::from(*d)).collect(),
                1.0,
            ),
        };
        Rope {
            inv_freq: freqs.iter().map(|f| *f as f32).collect(),
            mscale: mscale as f32,
            layout: self.layout,
        }
    }

    /// By how much the llama3 scaling divides each frequency: what a GGUF carries of it.
    pub(crate) fn llama3_divisors(&self) -> Vec<f32> {
        let Scaling::Llama3 {
            factor,
            low,
            high,
            original,
        } = self.scaling
        else {
            return vec![1.0; self.dim / 2];
        };
        let divided = |f: f64| f / llama3(f, factor, low, high, original);
        self.frequencies()
            .into_iter()
            .map(|f| divided(f) as f32)
            .collect()
    }

    /// theta^(-2i/dim) `[dim / 2]`, before any scaling.
    fn frequencies(&self) -> Vec<f64> {
        (0..self.dim / 2)
            .map(|i| self.theta.powf(-2.0 * i as f64 / self.dim as f64))
            .collect()
    }

    /// Positions from this one on cannot be computed as the model's authors do.
    pub fn position_limit(&self) -> Option<usize> {
        match self.scaling {
            Scaling::Dynamic { original } | Scaling::LongRope { original, .. } => Some(original),
            _ => None,
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let half = self.dim / 2;
        let positive =
            |what: &str, xs: &[f64]| match xs.iter().find(|x| !(x.is_finite() && **x > 0.0)) {
                Some(x) => Err(Error::Config(format!(
                    "rope scaling: {what} is {x}; it must be above 0"
                ))),
                None => Ok(()),
            };
        let length = |n: usize| match n == half {
            true => Ok(()),
            false => Err(Error::Config(format!(
                "rope scaling has {n} divisors; {half} are needed"
            ))),
        };
        match &self.scaling {
            Scaling::None => Ok(()),
            Scaling::Dynamic { original } => positive("the original context", &[*original as f64]),
            Scaling::Linear { factor } => positive("factor", &[*factor]),
            Scaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                positive(
                    "factor, low_freq_factor, high_freq_factor or the original context",
                    &[*factor, *low, *high, *original],
                )?;
                match low <= high {
                    true => Ok(()),
                    false => Err(Error::Config(format!(
                        "rope scaling: low_freq_factor {low} is above high_freq_factor {high}"
                    ))),
                }
            }
            Scaling::Yarn(y) => positive(
                "factor, the original context, attention_factor, beta_fast or beta_slow",
                &[
                    y.factor,
                    y.original,
                    y.attention_factor,
                    y.beta_fast,
                    y.beta_slow,
                ],
            ),
            Scaling::LongRope {
                short,
                attention_factor,
                original,
            } => {
                length(short.len())?;
                positive("a divisor", short)?;
                positive(
                    "attention_factor or the original context",
                    &[*attention_factor, *original as f64],
                )
            }
            Scaling::Divisors(d) => {
                length(d.len())?;
                positive(
                    "a divisor",
                    &d.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(),
                )
            }
        }
    }
}

/// Llama 3.1 (llama-models, `apply_scaling`): by wavelength, keep, divide, or blend.
fn llama3(f: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI / f;
    if wavelength < original / high {
        f
    } else if wavelength > original / low || low == high {
        f / factor
    } else {
        let t = (original / wavelength - low) / (high - low);
        (1.0 - t) * f / factor + t * f
    }
}

/// YaRN, arXiv:2309.00071 section 3.2: frequencies that turn often within the original context
/// are kept, those that turn rarely are divided, with a linear ramp over dimensions between.
fn yarn(base: &[f64], dim: usize, theta: f64, y: &Yarn) -> Vec<f64> {
    let dimension_of = |rotations: f64| {
        dim as f64 * (y.original / (rotations * 2.0 * std::f64::consts::PI)).ln()
            / (2.0 * theta.ln())
    };
    let (mut lo, mut hi) = (dimension_of(y.beta_fast), dimension_of(y.beta_slow));
    if y.truncate {
        (lo, hi) = (lo.floor(), hi.ceil());
    }
    let (lo, mut hi) = (lo.max(0.0), hi.min(dim as f64 - 1.0));
    if lo == hi {
        hi += 0.001;
    }
    let blend = |(i, f): (usize, &f64)| {
        let divided = ((i as f64 - lo) / (hi - lo)).clamp(0.0, 1.0);
        f / y.factor * divided + f * (1.0 - divided)
    };
    base.iter().enumerate().map(blend).collect()
}

/// The factor on cos and sin that YaRN recommends, 0.1 * mscale * ln(factor) + 1.
pub(crate) fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * mscale * factor.ln() + 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::RopeLayout;

    fn golden(dim: usize, factor: f64, values: &[(usize, f32)]) {
        let scaling = Scaling::Llama3 {
            factor,
            low: 1.0,
            high: 4.0,
            original: 8192.0,
        };
        let config = RopeConfig {
            theta: 500_000.0,
            dim,
            layout: RopeLayout::HalfSplit,
            scaling,
        };
        let table = config.table();
        for &(i, want) in values {
            let got = table.inv_freq[i];
            assert!((got / want - 1.0).abs() < 1e-6, "{i}: {got} is not {want}");
        }
    }

    /// Values of Llama 3.1 8B and Llama 3.2 1B, computed apart from this code.
    #[test]
    fn llama3_frequencies() {
        golden(
            128,
            8.0,
            &[
                (28, 3.211_446e-3),
                (29, 2.166_570_8e-3),
                (31, 8.567_514e-4),
                (34, 1.785_078e-4),
                (35, 9.556_212e-5),
                (63, 3.068_926e-7),
            ],
        );
        golden(
            64,
            32.0,
            &[
                (14, 3.211_446e-3),
                (15, 1.290_548e-3),
                (16, 4.295_568e-4),
                (17, 9.708_288e-5),
                (18, 1.946_163_8e-5),
                (31, 9.418_307e-8),
            ],
        );
    }

    /// Values worked out apart from this code by the formula of transformers' modeling_rope_utils.
    #[test]
    fn yarn_frequencies() {
        let scaling = Scaling::Yarn(Yarn {
            factor: 4.0,
            original: 4096.0,
            attention_factor: yarn_mscale(4.0, 1.0),
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
        });
        let config = RopeConfig {
            theta: 1e4,
            dim: 128,
            layout: RopeLayout::HalfSplit,
            scaling,
        };
        let table = config.table();
        let want = [
            (0, 1.0),
            (20, 0.056_234_13),
            (21, 0.047_292_04),
            (30, 9.488_518e-3),
            (46, 3.333_803_6e-4),
            (63, 2.886_955e-5),
        ];
        for (i, want) in want {
            assert!(
                (table.inv_freq[i] / want - 1.0).abs() < 1e-6,
                "{i}: {}",
                table.inv_freq[i]
            );
        }
        assert!((table.mscale - 1.138_629_4).abs() < 1e-6);
    }

    #[test]
    fn linear_dynamic_long_and_listed_divisors() {
        let table = |scaling| {
            RopeConfig {
                theta: 1e4,
                dim: 4,
                layout: RopeLayout::HalfSplit,
                scaling,
            }
            .table()
        };
        assert_eq!(table(Scaling::None).inv_freq, [1.0, 0.01]);
        assert_eq!(
            table(Scaling::Linear { factor: 4.0 }).inv_freq,
            [0.25, 0.0025]
        );
        assert_eq!(
            table(Scaling::Dynamic { original: 64 }).inv_freq,
            [1.0, 0.01]
        );
        assert_eq!(
            table(Scaling::Divisors(vec![1.0, 8.0])).inv_freq,
            [1.0, 0.00125]
        );
        let long = table(Scaling::LongRope {
            short: vec![2.0, 4.0],
            attention_factor: 1.5,
            original: 64,
        });
        assert_eq!((long.inv_freq, long.mscale), (vec![0.5, 0.0025], 1.5));
    }
}
