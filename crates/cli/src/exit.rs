//! Errors as the person at the keyboard meets them: `error: what`, `hint: how to mend it`, and the
//! exit code of the contract.

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

/// What the process tells its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// 1: it was understood and did not work out.
    Failed = 1,
    /// 2: the command makes no sense as typed, or asks what this machine or release cannot do.
    Usage = 2,
    /// 3: there is no such model.
    NotFound = 3,
    /// 4: the model's files are broken or of a kind Puna does not run.
    Invalid = 4,
    /// 5: it would not fit in memory; refused before it starts.
    Memory = 5,
    /// 130: stopped by Ctrl-C.
    Interrupted = 130,
}

/// An error with its exit code and, where the mend is known, a hint.
#[derive(Debug)]
pub struct Failure {
    pub code: Code,
    pub what: String,
    pub hint: Option<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Failure {}

/// `Failure` as the error of any verb: `return Err(exit::failure(Code::Usage, "...", "..."))`.
/// An empty hint is no hint.
pub fn failure(code: Code, what: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    let hint = hint.into();
    Failure {
        code,
        what: what.into(),
        hint: (!hint.is_empty()).then_some(hint),
    }
    .into()
}

/// Wrong usage (exit 2).
pub fn usage(what: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    failure(Code::Usage, what, hint)
}

/// Prints the error on stderr and returns the process's exit code. A reader that closed our stdout
/// has what it wanted: that is a quiet success.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    if let Some(help) = error
        .downcast_ref::<clap::Error>()
        .filter(|e| e.exit_code() == 0)
    {
        let _ = crate::out::raw(help.render().to_string().as_bytes());
        return ExitCode::SUCCESS;
    }
    let failure = classify(error);
    tell(&failure);
    ExitCode::from(failure.code as u8)
}

/// The hint where none is better known.
fn general_hint(code: Code) -> Option<&'static str> {
    match code {
        Code::Failed => {
            Some("`puna VERB --help` says what a verb expects, `puna doctor` what this machine has")
        }
        Code::Usage => Some("`puna --help` lists the verbs, `puna VERB --help` their options"),
        Code::NotFound => Some("`puna list` shows the models that are here"),
        Code::Invalid => Some(
            "this release runs Llama models from GGUF and llama2.c files and from directories of Hugging Face's and Meta's; `puna show MODEL` tells what a file is",
        ),
        Code::Memory => Some("choose a smaller model or context, or end other programs"),
        Code::Interrupted => None,
    }
}

/// Prints the error and its hint on stderr.
pub fn tell(failure: &Failure) {
    // Nothing is left to be done when stderr is closed too.
    let mut stderr = std::io::stderr().lock();
    if !failure.what.is_empty() {
        let _ = writeln!(stderr, "error: {}", one_line(&failure.what));
    }
    let general = (!failure.what.is_empty())
        .then(|| general_hint(failure.code))
        .flatten();
    if let Some(hint) = failure.hint.as_deref().or(general) {
        let _ = writeln!(stderr, "hint: {}", one_line(hint));
    }
}

/// Was it a reader of our stdout who left?
pub fn broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// The failure an error amounts to. Rooms' own errors get the exit code of their kind; words that
/// a verb put before one stay in the message.
pub fn classify(error: &anyhow::Error) -> Failure {
    for cause in error.chain() {
        if let Some(f) = cause.downcast_ref::<Failure>() {
            return Failure {
                code: f.code,
                what: f.what.clone(),
                hint: f.hint.clone(),
            };
        }
        if let Some(e) = cause.downcast_ref::<clap::Error>() {
            return usage_of(e);
        }
        if let Some((code, hint)) = of_room(cause) {
            let what = match code {
                Code::Interrupted => String::new(),
                _ => said(error),
            };
            return Failure { code, what, hint };
        }
    }
    Failure {
        code: Code::Failed,
        what: said(error),
        hint: None,
    }
}

/// The chain of messages, without those that the one before them ends with already.
fn said(error: &anyhow::Error) -> String {
    let mut all = String::new();
    for cause in error.chain() {
        let one = cause.to_string();
        if all.ends_with(&one) {
            continue;
        }
        if !all.is_empty() {
            all.push_str(": ");
        }
        all.push_str(&one);
    }
    all
}

/// Exit code and hint of an error of a room below.
fn of_room(error: &(dyn std::error::Error + 'static)) -> Option<(Code, Option<String>)> {
    if let Some(e) = error.downcast_ref::<hub::Error>() {
        return Some((of_hub(e), e.hint()));
    }
    if let Some(e) = error.downcast_ref::<engine::Error>() {
        return Some(of_engine(e));
    }
    if let Some(e) = error.downcast_ref::<model::Error>() {
        return Some(of_model(e));
    }
    if let Some(e) = error.downcast_ref::<text::Error>() {
        return Some(of_text(e));
    }
    if let Some(e) = error.downcast_ref::<files::Error>() {
        return Some(of_files(e));
    }
    if let Some(e) = error.downcast_ref::<server::Error>() {
        let code = if e.is_usage() {
            Code::Usage
        } else {
            Code::Failed
        };
        return Some((code, e.hint().map(str::to_owned)));
    }
    let e = error.downcast_ref::<kernels::Error>()?;
    Some(match e {
        kernels::Error::Unknown { .. }
        | kernels::Error::LevelMissing { .. }
        | kernels::Error::Threads { .. } => (Code::Usage, None),
        _ => (Code::Failed, None),
    })
}

fn of_hub(error: &hub::Error) -> Code {
    match error {
        e if e.is_not_found() => Code::NotFound,
        e if e.is_usage() => Code::Usage,
        hub::Error::Choose { .. } => Code::Usage,
        hub::Error::Mismatch { .. }
        | hub::Error::Archive { .. }
        | hub::Error::Damaged { .. }
        | hub::Error::Ollama { .. } => Code::Invalid,
        hub::Error::Cancelled => Code::Interrupted,
        _ => Code::Failed,
    }
}

const BROKEN_FILE: &str = "fetch or convert the file again; `puna verify` checks the store's files";

fn of_files(error: &files::Error) -> (Code, Option<String>) {
    match error {
        files::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            (Code::NotFound, Some("check the path".into()))
        }
        files::Error::Io { .. } => (Code::Failed, None),
        _ => (Code::Invalid, Some(BROKEN_FILE.into())),
    }
}

fn of_text(error: &text::Error) -> (Code, Option<String>) {
    match error {
        text::Error::Files(e) => of_files(e),
        text::Error::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            (Code::NotFound, Some("check the path".into()))
        }
        text::Error::Malformed { .. } | text::Error::Unsupported { .. } => {
            (Code::Invalid, Some(BROKEN_FILE.into()))
        }
        text::Error::NoInfill => (
            Code::Failed,
            Some("leave --suffix out, or use a model such as Code Llama".into()),
        ),
        text::Error::NoTemplate => {
            let hint = "--raw gives the model the text as it is; `puna template --template FILE` renders another";
            (Code::Failed, Some(hint.into()))
        }
        _ => (Code::Failed, None),
    }
}

fn of_model(error: &model::Error) -> (Code, Option<String>) {
    match error {
        model::Error::Files(e) => of_files(e),
        model::Error::Requantize { .. } => (
            Code::Usage,
            Some("start from the f32, f16 or bf16 file; --allow-requantize does it anyway".into()),
        ),
        model::Error::NeedsImatrix { .. } => (
            Code::Usage,
            Some("--imatrix FILE names one; `puna imatrix` makes it".into()),
        ),
        model::Error::Kernels(_) | model::Error::Batch(_) | model::Error::CacheFull { .. } => {
            (Code::Failed, None)
        }
        _ => (Code::Invalid, None),
    }
}

fn of_engine(error: &engine::Error) -> (Code, Option<String>) {
    match error {
        engine::Error::Model(e) => of_model(e),
        engine::Error::Text(e) => of_text(e),
        engine::Error::Parameter { .. } | engine::Error::UnknownToken { .. } => (Code::Usage, None),
        engine::Error::GenerationConfig { .. }
        | engine::Error::BadLogit { .. }
        | engine::Error::NotFinite { .. } => (Code::Invalid, None),
        engine::Error::ContextFull { .. } => (
            Code::Failed,
            Some("shorten the prompt, or raise --ctx".into()),
        ),
        engine::Error::DraftVocabulary { .. } => (
            Code::Usage,
            Some(
                "--draft takes a smaller model of the same family, with the same tokenizer".into(),
            ),
        ),
        engine::Error::CacheDir { .. } => (
            Code::Usage,
            Some("--cache-dir takes a new or an empty folder, for one server at a time".into()),
        ),
        engine::Error::Cancelled => (Code::Interrupted, None),
        _ => (Code::Failed, None),
    }
}

/// clap's several paragraphs as one line and one hint.
fn usage_of(error: &clap::Error) -> Failure {
    use clap::error::{ContextKind, ContextValue};
    let rendered = error.render().to_string();
    // The message ends where clap's tips and usage begin; a list of arguments follows on lines of its own.
    let what = rendered
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.trim_start().starts_with("tip:"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    let what = what.strip_prefix("error: ").unwrap_or(&what).to_owned();
    let near = [
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedArg,
        ContextKind::SuggestedValue,
    ]
    .into_iter()
    .find_map(|kind| match error.get(kind)? {
        ContextValue::String(s) => Some(s.clone()),
        // The nearest stands last.
        ContextValue::Strings(s) => s.last().cloned(),
        _ => None,
    });
    let hint = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`puna --help` lists the verbs, `puna VERB --help` their options".to_owned(),
    };
    Failure {
        code: Code::Usage,
        what,
        hint: Some(hint),
    }
}

/// Lists on lines of their own become one line.
fn one_line(text: &str) -> String {
    let mut all = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if !all.is_empty() {
            all.push_str(if all.ends_with([':', ';', ',']) {
                " "
            } else {
                "; "
            });
        }
        all.push_str(line);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line() {
        assert_eq!(
            one_line("none worked:\n  a: x\n  b: y\n"),
            "none worked: a: x; b: y"
        );
        assert_eq!(one_line(""), "");
    }

    #[test]
    fn rooms_errors_have_the_contracts_codes() {
        let lost = std::io::Error::from(std::io::ErrorKind::NotFound);
        let lost = files::Error::Io {
            path: "a".into(),
            source: lost,
        };
        let name = || hub::Error::NotFound {
            name: "x".into(),
            nearest: Vec::new(),
        };
        let table: Vec<(anyhow::Error, Code)> = vec![
            (name().into(), Code::NotFound),
            (hub::Error::Cancelled.into(), Code::Interrupted),
            (hub::Error::NoHome.into(), Code::Failed),
            (lost.into(), Code::NotFound),
            (model::Error::Architecture("x".into()).into(), Code::Invalid),
            (
                engine::Error::Model(model::Error::Config("x".into())).into(),
                Code::Invalid,
            ),
            (engine::Error::EmptyPrompt.into(), Code::Failed),
            (text::Error::NoTemplate.into(), Code::Failed),
            (anyhow::anyhow!("odd"), Code::Failed),
            (
                anyhow::Error::from(name()).context("while pulling"),
                Code::NotFound,
            ),
        ];
        for (error, code) in table {
            assert_eq!(classify(&error).code, code, "{error:#}");
        }
    }

    #[test]
    fn a_message_is_not_said_twice() {
        let error = anyhow::Error::from(engine::Error::Model(model::Error::Config("x".into())));
        assert_eq!(said(&error), "model configuration: x");
        let error = anyhow::anyhow!("disk full").context("cannot write a");
        assert_eq!(said(&error), "cannot write a: disk full");
    }
}
