//! Where a model's chat template is: a file of its own, the tokenizer's configuration, the GGUF's metadata, in
//! this order.
//!
//! It knows the places and their names; it does not read what it finds.

use crate::error::Error;
use files::gguf::Metadata;
use files::hf::HfDir;
use serde_json::Value;

/// The name of a template for conversations with tools, where a model has several.
const TOOL_USE: &str = "tool_use";
const DEFAULT: &str = "default";

/// The places of a model where a chat template may be.
#[derive(Debug, Clone, Copy, Default)]
pub struct TemplateSources<'a> {
    /// The text of `chat_template.jinja`.
    pub file: Option<&'a str>,
    /// `tokenizer_config.json`; its `chat_template` is a string, or a list of `{"name", "template"}`.
    pub tokenizer_config: Option<&'a Value>,
    /// The metadata of a GGUF file: `tokenizer.chat_template`, and variants as `tokenizer.chat_template.NAME`.
    pub gguf: Option<&'a Metadata>,
}

impl<'a> From<&'a HfDir> for TemplateSources<'a> {
    fn from(dir: &'a HfDir) -> TemplateSources<'a> {
        TemplateSources {
            file: dir.chat_template.as_deref(),
            tokenizer_config: dir.tokenizer_config.as_ref(),
            gguf: None,
        }
    }
}

impl<'a> From<&'a Metadata> for TemplateSources<'a> {
    fn from(metadata: &'a Metadata) -> TemplateSources<'a> {
        TemplateSources {
            gguf: Some(metadata),
            ..TemplateSources::default()
        }
    }
}

/// The source of the chat template to use; `tools`: whether the conversation has tools.
///
/// # Errors
/// [`Error::NoTemplate`] where there is none.
pub fn find_template<'a>(
    sources: impl Into<TemplateSources<'a>>,
    tools: bool,
) -> Result<&'a str, Error> {
    let sources = sources.into();
    let file = sources.file;
    let config = || {
        sources
            .tokenizer_config
            .and_then(|config| in_config(config.get("chat_template")?, tools))
    };
    let gguf = || sources.gguf.and_then(|metadata| in_gguf(metadata, tools));
    file.or_else(config).or_else(gguf).ok_or(Error::NoTemplate)
}

fn in_config(template: &Value, tools: bool) -> Option<&str> {
    match template {
        Value::String(template) => Some(template),
        Value::Array(list) => {
            let named = |name: &str| {
                list.iter()
                    .find(|t| t["name"].as_str() == Some(name))
                    .and_then(|t| t["template"].as_str())
            };
            pick(tools, named)
        }
        // What a configuration that was written by hand may have: names to templates.
        Value::Object(map) => pick(tools, |name| map.get(name).and_then(Value::as_str)),
        _ => None,
    }
}

fn in_gguf(metadata: &Metadata, tools: bool) -> Option<&str> {
    pick(tools, |name| match name {
        DEFAULT => metadata.str("tokenizer.chat_template"),
        name => metadata.str(&format!("tokenizer.chat_template.{name}")),
    })
}

/// The template for tools where there are tools and such a template, else the default one.
fn pick<'a>(tools: bool, named: impl Fn(&str) -> Option<&'a str>) -> Option<&'a str> {
    tools
        .then(|| named(TOOL_USE))
        .flatten()
        .or_else(|| named(DEFAULT))
}
