//! stdout is data. Every write may fail, and a closed pipe is reported as an `io::Error` that
//! `exit` recognises: nothing here panics.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;

use crate::args::Format;

/// Bytes as they are, flushed.
pub fn raw(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()?;
    Ok(())
}

/// One line of text.
pub fn line(text: &str) -> Result<()> {
    raw(format!("{text}\n").as_bytes())
}

/// Many lines: stdout through a buffer.
pub struct Lines(std::io::BufWriter<std::io::StdoutLock<'static>>);

impl Lines {
    pub fn new() -> Lines {
        Lines(std::io::BufWriter::new(std::io::stdout().lock()))
    }

    pub fn line(&mut self, text: &str) -> Result<()> {
        self.0.write_all(text.as_bytes())?;
        self.0.write_all(b"\n")?;
        Ok(())
    }

    pub fn flush(&mut self) -> Result<()> {
        Ok(self.0.flush()?)
    }
}

/// One line for the person, on stderr: progress, warnings. A closed stderr is no reason to stop.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// One JSON value on one line.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string(value)?)
}

/// The value as JSON, or the text that the closure makes (without its last newline).
pub fn print(format: Format, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
    match format {
        Format::Json => json(value),
        Format::Text => line(&text()),
    }
}

/// JSON in which every character beyond ASCII is a `\uXXXX` escape: safe in any pipeline.
pub fn ascii_json(value: &impl Serialize) -> Result<String> {
    use std::fmt::Write;
    let plain = serde_json::to_string(value)?;
    if plain.is_ascii() {
        return Ok(plain);
    }
    let mut out = String::with_capacity(plain.len() + plain.len() / 2);
    for c in plain.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            let mut units = [0u16; 2];
            for unit in c.encode_utf16(&mut units) {
                write!(out, "\\u{unit:04x}")?;
            }
        }
    }
    Ok(out)
}
