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
    let plain = serde_json::to_string(value)?;
    let mut out = String::with_capacity(plain.len());
    for c in plain.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            let mut units = [0u16; 2];
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    Ok(out)
}
