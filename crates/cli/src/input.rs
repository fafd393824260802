//! What verbs read: files and stdin as text, JSON and lines of JSON, with errors that say where.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use crate::exit::{Code, failure};

/// The file's bytes; `-` is stdin.
pub fn bytes(path: &Path) -> Result<Vec<u8>> {
    if path == Path::new("-") {
        let mut all = Vec::new();
        std::io::stdin().lock().read_to_end(&mut all)?;
        return Ok(all);
    }
    std::fs::read(path).map_err(|error| unreadable(path, &error))
}

/// The file's text; `-` is stdin.
pub fn text(path: &Path) -> Result<String> {
    String::from_utf8(bytes(path)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let what = format!("{} is not UTF-8 at byte {at}", name(path));
        failure(
            Code::Failed,
            what,
            "convert it to UTF-8, for example with iconv",
        )
    })
}

/// Stdin as text.
pub fn stdin() -> Result<String> {
    text(Path::new("-"))
}

/// The file as one JSON value; `-` is stdin.
pub fn json(path: &Path) -> Result<Value> {
    serde_json::from_str(&text(path)?).map_err(|error| {
        failure(
            Code::Failed,
            format!("{} is not JSON: {error}", name(path)),
            "",
        )
    })
}

/// Calls `each` with every line's JSON value and writes what it returns on a line of its own, in
/// ASCII. Empty lines are passed over; an error names the line.
pub fn json_lines<T: Serialize>(
    path: &Path,
    mut each: impl FnMut(&Value) -> Result<T>,
) -> Result<()> {
    let from_stdin = path == Path::new("-");
    let reader: Box<dyn Read> = if from_stdin {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(std::fs::File::open(path).map_err(|error| unreadable(path, &error))?)
    };
    let mut out = crate::out::Lines::new();
    for (i, line) in BufReader::new(reader).split(b'\n').enumerate() {
        let line = line?;
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let answer = serde_json::from_slice(&line)
            .map_err(anyhow::Error::from)
            .and_then(|value| each(&value))
            .map_err(|error| {
                let what = format!("{}, line {}: {error:#}", name(path), i + 1);
                failure(Code::Failed, what, "")
            })?;
        out.line(&crate::out::ascii_json(&answer)?)?;
        // Whoever writes to our stdin may be waiting for this answer before the next question.
        if from_stdin {
            out.flush()?;
        }
    }
    out.flush()
}

fn name(path: &Path) -> String {
    match path == Path::new("-") {
        true => "stdin".to_owned(),
        false => path.display().to_string(),
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> anyhow::Error {
    let what = format!("cannot read {}: {error}", path.display());
    failure(Code::Failed, what, "check the path")
}
