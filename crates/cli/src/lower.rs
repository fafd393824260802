//! Settings that lie under the options: those of a made model, and those of `puna.toml`.
//!
//! They are read by the options' own parsers, so that they have the options' names, forms and
//! ranges. What was typed counts before any of them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Parser;
use hub::Recipe;
use serde_json::{Value, json};

use crate::args::{CacheType, Compute, DraftArgs, LoadArgs, RunArgs, SamplingArgs, at_least_one};
use crate::exit::{Code, failure};
use crate::verbs::sampling;

/// Settings by the names of the options; `None` leaves what lies further down.
#[derive(Parser, Debug, Clone, Default)]
#[command(name = "settings", disable_help_flag = true)]
pub struct Lower {
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub draft: DraftArgs,
    #[arg(long, value_parser = at_least_one)]
    pub ctx: Option<usize>,
    #[arg(long, value_enum)]
    pub cache_type: Option<CacheType>,
    #[arg(long, value_parser = at_least_one)]
    pub threads: Option<usize>,
    #[arg(long, value_enum)]
    pub compute: Option<Compute>,
    #[arg(long, allow_hyphen_values = true)]
    pub system: Option<String>,
    #[arg(long)]
    pub max_tokens: Option<usize>,
    #[arg(long, allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// A file or a format's name.
    #[arg(long)]
    pub template_file: Option<PathBuf>,
    #[arg(skip)]
    pub template: Option<Template>,
    /// Turns that begin every conversation.
    #[arg(skip)]
    pub turns: Vec<Value>,
}

/// A chat template other than the model's own.
#[derive(Debug, Clone, PartialEq)]
pub enum Template {
    /// A file, or the name of a format that Puna has.
    Named(PathBuf),
    /// Its text, from a made model: Jinja, the name of a format, or a Go template.
    Text(String),
}

impl Lower {
    /// Reads (name, value) pairs; `whose` names where they are from, in errors.
    pub fn read<'p>(
        pairs: impl IntoIterator<Item = (&'p str, &'p str)>,
        whose: &str,
    ) -> Result<Lower> {
        let words = pairs.into_iter().map(|(name, value)| match name {
            "template" => format!("--template-file={value}"),
            name => format!("--{name}={value}"),
        });
        let words = std::iter::once("settings".to_owned()).chain(words);
        let mut lower = Lower::try_parse_from(words).map_err(|error| {
            let error = crate::exit::classify(&error.into());
            let what = format!("{whose}: {}", error.what);
            failure(
                Code::Failed,
                what,
                "`puna run --help` has the names and what they take",
            )
        })?;
        lower.template = lower.template_file.take().map(Template::Named);
        // Ranges, as the engine sees them.
        sampling::params(&lower.sampling, None).map_err(|error| {
            let error = crate::exit::classify(&error);
            failure(Code::Failed, format!("{whose}: {}", error.what), "")
        })?;
        Ok(lower)
    }

    /// What a made model says.
    pub fn of_recipe(recipe: &Recipe, whose: &str) -> Result<Lower> {
        let pairs = recipe
            .parameters
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()));
        let turns = recipe.messages.iter();
        Ok(Lower {
            system: recipe.system.clone(),
            template: recipe.template.clone().map(Template::Text),
            turns: turns
                .map(|turn| json!({ "role": turn.role, "content": turn.content }))
                .collect(),
            ..Lower::read(pairs, whose)?
        })
    }

    /// These settings, and where they say nothing those of `below`.
    pub fn over(mut self, below: Lower) -> Lower {
        sampling::fill(&mut self.sampling, &below.sampling);
        self.draft.fill(&below.draft);
        self.ctx = self.ctx.or(below.ctx);
        self.cache_type = self.cache_type.or(below.cache_type);
        self.threads = self.threads.or(below.threads);
        self.compute = self.compute.or(below.compute);
        self.system = self.system.or(below.system);
        self.max_tokens = self.max_tokens.or(below.max_tokens);
        self.template = self.template.or(below.template);
        if self.stop.is_empty() {
            self.stop = below.stop;
        }
        if self.turns.is_empty() {
            self.turns = below.turns;
        }
        self
    }

    /// `args`, filled up.
    pub fn under_load(&self, args: &LoadArgs) -> LoadArgs {
        let mut args = args.clone();
        args.ctx = args.ctx.or(self.ctx);
        args.cache_type = args.cache_type.or(self.cache_type);
        args.machine.threads = args.machine.threads.or(self.threads);
        args.machine.compute = args.machine.compute.or(self.compute);
        args
    }

    /// `args`, filled up, but for what decides how a model is opened.
    pub fn under_run(&self, args: &RunArgs) -> RunArgs {
        let mut args = args.clone();
        sampling::fill(&mut args.sampling, &self.sampling);
        args.draft.fill(&self.draft);
        args.max_tokens = args.max_tokens.or(self.max_tokens);
        // A gap to be filled has no conversation around it.
        if args.suffix.is_none() {
            args.system = args.system.or_else(|| self.system.clone());
        }
        if args.stop.is_empty() {
            args.stop.clone_from(&self.stop);
        }
        args
    }

    /// The template that `--template` asks for, else these settings.
    pub fn template(&self, asked: Option<&Path>) -> Option<Template> {
        let asked = asked.map(|path| Template::Named(path.to_path_buf()));
        asked.or_else(|| self.template.clone())
    }
}

impl Template {
    /// Its source, for the model at `path`. A Go template gives way to the format that it spells, or
    /// to the model's own template.
    pub fn source(&self, path: &Path) -> Result<String> {
        let text = match self {
            Template::Named(typed) => return crate::load::template_named(typed),
            Template::Text(text) => text,
        };
        if let Some(source) = text::format(text.trim()) {
            return Ok(source.to_owned());
        }
        if !is_go(text) {
            return Ok(text.clone());
        }
        if let Some(source) = go_format(text).and_then(text::format) {
            return Ok(source.to_owned());
        }
        let own = crate::load::template_source(path, false);
        if own.is_ok() {
            tracing::warn!("its template is written for ollama: the file's own is used");
        }
        own.map_err(|_| go_refused())
    }
}

/// A TEMPLATE as somebody wrote it: a format's name, Jinja that can be read, or a Go template that
/// spells a known format.
pub fn check_template(text: &str) -> Result<()> {
    if text::format(text.trim()).is_some() || (is_go(text) && go_format(text).is_some()) {
        return Ok(());
    }
    if is_go(text) {
        return Err(go_refused());
    }
    text::ChatTemplate::new(text, "", "")?;
    Ok(())
}

fn go_refused() -> anyhow::Error {
    let names: Vec<&str> = text::formats().collect();
    failure(
        Code::Failed,
        "its TEMPLATE is a Go template, as ollama has them, of no format that Puna knows",
        format!(
            "leave TEMPLATE out to use the model's own, or give a Jinja template, or one of {}",
            names.join(", ")
        ),
    )
}

/// Words that only Go's templates begin an action with.
const GO_WORDS: [&str; 9] = [
    "if", "range", "end", "else", "with", "template", "block", "define", "/*",
];

/// Whether a template is one of Go's: its actions stand in double braces, Jinja's in `{%`.
fn is_go(text: &str) -> bool {
    let first = |action: &str| {
        let action = action.trim_start_matches('-').trim_start();
        let word = action
            .split([' ', '-', '}', '\n'])
            .next()
            .unwrap_or_default();
        action.starts_with(['.', '$']) || GO_WORDS.contains(&word)
    };
    !text.contains("{%") && text.split("{{").skip(1).any(first)
}

/// The formats that a Go template may spell: (name, marks that must be there, all words that may
/// stand outside of actions).
const GO_FORMATS: [(&str, &[&str], &[&str]); 3] = [
    (
        "llama3",
        &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        &["<|begin_of_text|>", "system", "user", "assistant"],
    ),
    (
        "llama2",
        // Without the marks of a system message it is Mistral's.
        &["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"],
        &["<s>", "</s>"],
    ),
    (
        "chatml",
        &["<|im_start|>", "<|im_end|>"],
        &["system", "user", "assistant"],
    ),
];

/// The format that a Go template spells, if outside of its actions it has that format's marks and
/// nothing else: one word more would be lost.
fn go_format(text: &str) -> Option<&'static str> {
    let mut outside = String::new();
    let mut actions = String::new();
    for (i, piece) in text.split("{{").enumerate() {
        match piece.split_once("}}") {
            Some((action, after)) if i > 0 => {
                actions.push_str(action);
                actions.push('\n');
                outside.push_str(after);
            }
            None if i == 0 => outside.push_str(piece),
            _ => return None,
        }
        outside.push('\n');
    }
    // Texts in an action are texts of the prompt; these two kinds are not looked into.
    let unread = actions.contains('`') || actions.contains("\\\"");
    if unread || actions.contains(".Tool") {
        return None;
    }
    let spoken: String = actions
        .split('"')
        .skip(1)
        .step_by(2)
        .collect::<Vec<_>>()
        .join(" ");
    let spells = |(_, marks, words): &&(&str, &[&str], &[&str])| {
        let mut rest = format!("{outside} {spoken}");
        if !marks.iter().all(|mark| rest.contains(mark)) {
            return false;
        }
        for word in marks.iter().chain(words.iter()) {
            rest = rest.replace(word, " ");
        }
        rest.trim().is_empty()
    };
    GO_FORMATS.iter().find(spells).map(|row| row.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As ollama's library has them for Llama 3, Llama 2 and ChatML, in short.
    const LLAMA3: &str = "{{ if .System }}<|start_header_id|>system<|end_header_id|>\n\n\
        {{ .System }}<|eot_id|>{{ end }}{{ if .Prompt }}<|start_header_id|>user<|end_header_id|>\n\n\
        {{ .Prompt }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n{{ .Response }}<|eot_id|>";
    const LLAMA2: &str = "[INST] <<SYS>>{{ .System }}<</SYS>>\n\n{{ .Prompt }} [/INST]\n";
    const CHATML: &str = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n";

    #[test]
    fn go_templates_are_told_apart() {
        for (text, go, format) in [
            (LLAMA3, true, Some("llama3")),
            (LLAMA2, true, Some("llama2")),
            (CHATML, true, Some("chatml")),
            ("You are a pirate. {{ .Prompt }}", true, None),
            (
                "{{ if eq .Role \"user\" }}[INST]Arr! {{ .Prompt }}[/INST]{{ end }}",
                true,
                None,
            ),
            (
                "[INST] {{ if .System }}{{ .System }} {{ end }}{{ .Prompt }} [/INST]",
                true,
                None,
            ),
            (
                "{{ print `In French.` }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n",
                true,
                None,
            ),
            ("[INST]{{ .Tools }}{{ .Prompt }}[/INST]", true, None),
            ("[INST]{{ .Prompt [/INST]", true, None),
            ("{{- if .System }}", true, None),
            (
                "{%- for m in messages %}{{ m.content }}{% endfor %}",
                false,
                None,
            ),
            ("{{ messages[0].content }}", false, None),
            ("plain", false, None),
        ] {
            assert_eq!(is_go(text), go, "{text}");
            assert_eq!(go.then(|| go_format(text)).flatten(), format, "{text}");
            assert_eq!(
                check_template(text).is_ok(),
                !go || format.is_some(),
                "{text}"
            );
        }
        assert!(check_template("{{ messages").is_err());
        assert!(check_template("llama2").is_ok());
        for (name, _, _) in GO_FORMATS {
            assert!(text::format(name).is_some(), "{name}");
        }
    }

    #[test]
    fn what_lies_above_counts() {
        let pairs = [
            ("temperature", "0.5"),
            ("stop", "a"),
            ("stop", "b"),
            ("ctx", "64"),
        ];
        let below = Lower::read(pairs, "x").unwrap();
        let above = Lower::read([("temperature", "0.25"), ("system", "-s")], "x").unwrap();
        let both = above.over(below);
        assert_eq!(both.sampling.temperature, Some(0.25));
        assert_eq!((both.ctx, both.stop.len()), (Some(64), 2));
        assert_eq!(both.system.as_deref(), Some("-s"));
        let typed = LoadArgs {
            ctx: Some(7),
            ..LoadArgs::default()
        };
        assert_eq!(both.under_load(&typed).ctx, Some(7));
        for pair in [
            ("top-p", "3"),
            ("ctx", "0"),
            ("cache-type", "x"),
            ("heat", "1"),
        ] {
            assert!(Lower::read([pair], "x").is_err(), "{pair:?}");
        }
    }
}
