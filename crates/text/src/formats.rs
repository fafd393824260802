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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChatTemplate, RenderOptions, chat};

    /// As the reference codes write them.
    #[test]
    fn turns_stand_between_their_marks() {
        let turns = [chat::system("s"), chat::user(" hi "), chat::assistant("yo")];
        for (name, text) in [
            (
                "llama3",
                "<b><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|>\
                 <|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>\
                 <|start_header_id|>assistant<|end_header_id|>\n\nyo<|eot_id|>\
                 <|start_header_id|>assistant<|end_header_id|>\n\n",
            ),
            (
                "chatml",
                "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n hi <|im_end|>\n\
                 <|im_start|>assistant\nyo<|im_end|>\n<|im_start|>assistant\n",
            ),
        ] {
            let source = format(name).expect("a format");
            let template = ChatTemplate::new(source, "<b>", "<e>").expect("it can be read");
            let rendered = template.render(&turns, &RenderOptions::default());
            assert_eq!(rendered.expect("it renders"), text, "{name}");
        }
    }
}
