//! `puna detokenize`: token ids to text.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use text::Tokenizer;

use crate::args::{DetokenizeArgs, Format};

pub fn run(args: &DetokenizeArgs) -> Result<()> {
    let tokenizer = crate::load::tokenizer(&args.model, args.net)?;
    if let Some(file) = &args.jsonl {
        return crate::input::json_lines(file, |line| {
            let ids = line.get("ids").and_then(Value::as_array);
            let ids = ids.context("no list \"ids\"")?;
            let ids: Option<Vec<u32>> = ids
                .iter()
                .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
                .collect();
            Ok(answer(&decode(
                &tokenizer,
                &ids.context("\"ids\" are not all token ids")?,
            )?))
        });
    }
    let bytes = decode(&tokenizer, &typed(&args.ids)?)?;
    match args.format.format {
        Format::Json => crate::out::json(&answer(&bytes)),
        // The bytes as they are: a text that ends inside a character stays whole.
        Format::Text => crate::out::raw(&[&bytes[..], b"\n"].concat()),
    }
}

/// Ids as words; `-` or none: from stdin.
fn typed(words: &[String]) -> Result<Vec<u32>> {
    let text = match words {
        [] => crate::input::stdin()?,
        [dash] if dash == "-" => crate::input::stdin()?,
        words => words.join(" "),
    };
    text.split(|c: char| c.is_whitespace() || ",[]".contains(c))
        .filter(|word| !word.is_empty())
        .map(|word| {
            word.parse().map_err(|_| {
                let hint = "ids are whole numbers, separated by spaces or commas";
                crate::exit::usage(format!("{word:?} is not a token id"), hint)
            })
        })
        .collect()
}

fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Vec<u8>> {
    for id in ids {
        let known = (*id as usize) < tokenizer.len();
        ensure!(
            known,
            "token id {id}: the vocabulary has {} tokens",
            tokenizer.len()
        );
    }
    Ok(tokenizer.decode(ids, true))
}

fn answer(bytes: &[u8]) -> Value {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    json!({ "text": String::from_utf8_lossy(bytes), "bytes_hex": hex })
}
