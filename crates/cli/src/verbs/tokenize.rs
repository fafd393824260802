//! `puna tokenize`: text to token ids.

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use text::{Special, Tokenizer};

use crate::args::{Format, TokenizeArgs};

pub fn run(args: &TokenizeArgs) -> Result<()> {
    let tokenizer = crate::load::tokenizer(&args.model, args.net)?;
    if let Some(file) = &args.jsonl {
        return crate::input::json_lines(file, |line| {
            let text = line.get("text").and_then(Value::as_str);
            let text = text.context("no string \"text\"")?;
            Ok(answer(&tokenizer, encode(&tokenizer, text, args)?))
        });
    }
    let text = match args.text.as_deref() {
        None | Some("-") => crate::input::stdin()?,
        Some(text) => text.to_owned(),
    };
    let ids = encode(&tokenizer, &text, args)?;
    match args.format.format {
        Format::Json => crate::out::json(&answer(&tokenizer, ids)),
        Format::Text => {
            let mut out = crate::out::Lines::new();
            for id in ids {
                out.line(&format!("{id}\t{:?}", piece(&tokenizer, id)))?;
            }
            out.flush()
        }
    }
}

fn encode(tokenizer: &Tokenizer, text: &str, args: &TokenizeArgs) -> Result<Vec<u32>> {
    let special = match args.parse_special {
        true => Special::Parse,
        false => Special::Text,
    };
    Ok(match args.no_bos {
        true => tokenizer.encode(text, special)?,
        false => tokenizer.encode_prompt(text, special)?,
    })
}

#[derive(Serialize)]
struct Answer {
    ids: Vec<u32>,
    pieces: Vec<String>,
}

fn answer(tokenizer: &Tokenizer, ids: Vec<u32>) -> Answer {
    let pieces = ids.iter().map(|id| piece(tokenizer, *id)).collect();
    Answer { ids, pieces }
}

/// A token's bytes as text; a piece of a character is U+FFFD.
fn piece(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.piece(id).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
