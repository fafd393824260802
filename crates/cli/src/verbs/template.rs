//! `puna template`: messages as the model would read them.

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};
use text::{ChatTemplate, RenderOptions, Tokenizer};

use crate::args::{Format, TemplateArgs};
use crate::exit::{Code, failure, usage};
use crate::load;

pub fn run(args: &TemplateArgs) -> Result<()> {
    if args.model.is_none() && (args.template.is_none() || args.ids) {
        let what = match args.ids {
            true => "--ids needs a MODEL: its tokenizer makes the ids",
            false => "there is neither MODEL nor --template",
        };
        return Err(usage(what, "name a MODEL before the options"));
    }
    let options = options(args)?;
    let messages = messages(&args.messages)?;
    let model = match &args.model {
        Some(typed) => {
            let found = load::find_model(args.net, typed)?;
            Some((load::tokenizer_of(&found.path)?, found))
        }
        None => None,
    };
    let tokenizer = model.as_ref().map(|(tokenizer, _)| tokenizer);
    let bos = token(args.bos_token.as_ref(), tokenizer, Tokenizer::bos);
    let eos = token(args.eos_token.as_ref(), tokenizer, Tokenizer::eos);
    let source = match (&args.template, &model) {
        (Some(typed), _) => load::template_named(typed)?,
        (None, Some((_, found))) => match load::lower(found)?.template {
            Some(template) => template.source(&found.path)?,
            None => load::template_source(&found.path, options.tools.is_some())?,
        },
        (None, None) => return Err(text::Error::NoTemplate.into()),
    };
    let template = ChatTemplate::new(&source, &bos, &eos)?;
    let text = template.render(&messages, &options)?;
    let ids = match (args.ids, tokenizer) {
        (true, Some(tokenizer)) => Some(template.encode(tokenizer, &messages, &options)?),
        _ => None,
    };
    match args.format.format {
        Format::Json => {
            let mut report = json!({ "text": text });
            if let Some(ids) = ids {
                report["ids"] = json!(ids);
            }
            crate::out::json(&report)
        }
        Format::Text => {
            crate::out::raw(text.as_bytes())?;
            match ids {
                // On a line of their own, whatever the text ends with.
                Some(ids) => crate::out::line(&format!(
                    "{}{}",
                    if text.ends_with('\n') { "" } else { "\n" },
                    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
                )),
                None => Ok(()),
            }
        }
    }
}

/// The text of a special token: as given, else the model's, else nothing.
fn token(
    given: Option<&String>,
    tokenizer: Option<&Tokenizer>,
    which: fn(&Tokenizer) -> Option<u32>,
) -> String {
    match (given, tokenizer) {
        (Some(text), _) => text.clone(),
        (None, Some(tokenizer)) => load::token_text(tokenizer, which(tokenizer)),
        (None, None) => String::new(),
    }
}

fn options(args: &TemplateArgs) -> Result<RenderOptions> {
    let mut options = load::render_options();
    options.add_generation_prompt = !args.no_generation_prompt;
    if let Some(file) = &args.tools {
        options.tools = match crate::input::json(file)? {
            Value::Null => None,
            Value::Array(tools) => Some(Value::Array(tools)),
            _ => return Err(wrong(file, "a list of tools")),
        };
    }
    if let Some(text) = &args.vars {
        options.vars = serde_json::from_str::<Map<String, Value>>(text).map_err(|error| {
            usage(
                format!("--vars is no JSON object: {error}"),
                "as in: --vars '{\"name\": 1}'",
            )
        })?;
    }
    if let Some(text) = &args.date {
        let date = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").map_err(|error| {
            usage(
                format!("--date {text}: {error}"),
                "as in: --date 2024-07-26",
            )
        })?;
        options.date = Some(date);
    }
    Ok(options)
}

/// A list of messages, or an object that has them.
fn messages(file: &Path) -> Result<Vec<Value>> {
    let list = match crate::input::json(file)? {
        Value::Object(mut object) => object.remove("messages"),
        other => Some(other),
    };
    match list {
        Some(Value::Array(messages)) => Ok(messages),
        _ => Err(wrong(file, "a list of messages")),
    }
}

fn wrong(file: &Path, wanted: &str) -> anyhow::Error {
    failure(
        Code::Failed,
        format!("{} is not {wanted}", file.display()),
        "as in: [{\"role\": \"user\", \"content\": \"Hello\"}]",
    )
}
