//! What the processor can do (found at run time), and how exactly products are computed.

use crate::Error;
use std::fmt;
use std::str::FromStr;

/// A set of vector instructions. Ordered: a later one includes what an earlier one needs,
/// except that the AVX-512 levels do not include AVX-VNNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust, on every processor.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// `Avx2` with AVX-VNNI.
    Avx2Vnni,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// `Avx512` with AVX-512 VNNI.
    Avx512Vnni,
    /// `Avx512Vnni` with AVX-512 BF16.
    Avx512Bf16,
}

const LEVELS: [(Level, &str); 6] = [
    (Level::Scalar, "scalar"),
    (Level::Avx2, "avx2"),
    (Level::Avx2Vnni, "avx2vnni"),
    (Level::Avx512, "avx512"),
    (Level::Avx512Vnni, "avx512vnni"),
    (Level::Avx512Bf16, "avx512bf16"),
];

impl Level {
    /// The name used in flags and reports.
    pub fn name(self) -> &'static str {
        LEVELS[self as usize].1
    }

    /// Whether this machine has it (asked of the processor, not of the build).
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        let avx2 = || has!("avx2") && has!("fma") && has!("f16c");
        let avx512 = || {
            avx2() && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl")
        };
        match self {
            Level::Scalar => true,
            Level::Avx2 => avx2(),
            Level::Avx2Vnni => avx2() && has!("avxvnni"),
            Level::Avx512 => avx512(),
            Level::Avx512Vnni => avx512() && has!("avx512vnni"),
            Level::Avx512Bf16 => avx512() && has!("avx512vnni") && has!("avx512bf16"),
        }
    }

    /// Whether this machine has it: other processors run the scalar level.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Level::Scalar
    }

    /// All levels of this machine, lowest first; never empty.
    pub fn available() -> Vec<Level> {
        LEVELS
            .iter()
            .map(|l| l.0)
            .filter(|l| l.is_available())
            .collect()
    }

    /// The highest level of this machine.
    pub fn best() -> Level {
        Level::available().pop().unwrap_or(Level::Scalar)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Level {
    type Err = Error;

    fn from_str(s: &str) -> Result<Level, Error> {
        by_name("SIMD level", &LEVELS, s)
    }
}

/// How exactly matrix products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compute {
    /// Quantised weights meet activations rounded to 8 bits, a block of 32 or 16 with one scale.
    #[default]
    Fast,
    /// The reference: weights dequantised to f32, activations untouched.
    F32,
}

const COMPUTES: [(Compute, &str); 2] = [(Compute::Fast, "fast"), (Compute::F32, "f32")];

impl Compute {
    /// The name used in flags and reports.
    pub fn name(self) -> &'static str {
        COMPUTES[self as usize].1
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Compute {
    type Err = Error;

    fn from_str(s: &str) -> Result<Compute, Error> {
        by_name("compute mode", &COMPUTES, s)
    }
}

/// Finds a value by its name, without regard to case.
pub(crate) fn by_name<T: Copy>(
    what: &'static str,
    names: &[(T, &str)],
    given: &str,
) -> Result<T, Error> {
    let found = names.iter().find(|n| n.1.eq_ignore_ascii_case(given));
    found.map(|n| n.0).ok_or_else(|| Error::Unknown {
        what,
        given: given.to_owned(),
        expected: names.iter().map(|n| n.1).collect::<Vec<_>>().join(", "),
    })
}
