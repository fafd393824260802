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
    // Nothing is left to be done when stderr is closed too.
    let mut stderr = std::io::stderr().lock();
    if !failure.what.is_empty() {
        let _ = writeln!(stderr, "error: {}", one_line(&failure.what));
    }
    if let Some(hint) = &failure.hint {
        let _ = writeln!(stderr, "hint: {}", one_line(hint));
    }
    ExitCode::from(failure.code as u8)
}

fn broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// The failure an error amounts to. Rooms' own errors get the exit code of their kind.
pub fn classify(error: &anyhow::Error) -> Failure {
    if let Some(f) = error.chain().find_map(|c| c.downcast_ref::<Failure>()) {
        return Failure {
            code: f.code,
            what: f.what.clone(),
            hint: f.hint.clone(),
        };
    }
    if let Some(e) = error.downcast_ref::<clap::Error>() {
        return usage_of(e);
    }
    Failure {
        code: Code::Failed,
        what: format!("{error:#}"),
        hint: None,
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
        ContextValue::Strings(s) => s.first().cloned(),
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

fn one_line(text: &str) -> String {
    text.split('\n')
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" ")
}
