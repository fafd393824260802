//! Prompt formats of models that come without a chat template, as templates: data, rendered like
//! any other.
//!
//! Sources: Llama 2's and 3's reference code (`llama/generation.py`, `llama/tokenizer.py`); OpenAI's
//! ChatML; the formats that llama-recipes and the model cards give for Llama Guard, with the names of
//! categories and without their policies. Category codes mean different things in different versions.

/// (name, template), by name.
const FORMATS: [(&str, &str); 6] = [
    ("chatml", include_str!("../templates/chatml.jinja")),
    (
        "llama-guard-1",
        include_str!("../templates/llama-guard-1.jinja"),
    ),
    (
        "llama-guard-2",
        include_str!("../templates/llama-guard-2.jinja"),
    ),
    (
        "llama-guard-3",
        include_str!("../templates/llama-guard-3.jinja"),
    ),
    ("llama2", include_str!("../templates/llama2.jinja")),
    ("llama3", include_str!("../templates/llama3.jinja")),
];

/// The source of the template of this name.
pub fn format(name: &str) -> Option<&'static str> {
    FORMATS.iter().find(|(n, _)| *n == name).map(|(_, t)| *t)
}

/// The names of the formats.
pub fn formats() -> impl Iterator<Item = &'static str> {
    FORMATS.iter().map(|(name, _)| *name)
}
