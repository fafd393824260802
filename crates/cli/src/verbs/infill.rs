//! Infill: a prompt before the gap, a suffix after it, in the order prefix, suffix, middle
//! (Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle").

use anyhow::Result;
use text::{Special, Tokenizer};

use crate::exit::{Code, failure};

/// A family's marks: before the prefix, before the suffix, before the middle, and the token that
/// ends a filled gap, if it is none of the usual ones.
struct Marks {
    names: [&'static str; 3],
    end: Option<&'static str>,
    /// SentencePiece puts a space before a text: the suffix must begin without.
    dummy_space: bool,
}

const FAMILIES: [Marks; 4] = [
    // Code Llama (llama/tokenizer.py of its reference code).
    Marks {
        names: ["▁<PRE>", "▁<SUF>", "▁<MID>"],
        end: Some("▁<EOT>"),
        dummy_space: true,
    },
    // Llama 4.
    Marks {
        names: ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
        end: None,
        dummy_space: false,
    },
    // StarCoder and those that took over its marks.
    Marks {
        names: ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
        end: None,
        dummy_space: false,
    },
    Marks {
        names: ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
        end: None,
        dummy_space: false,
    },
];

/// The ids of the prompt, and further ids that end the answer.
pub fn prompt(tokenizer: &Tokenizer, prefix: &str, suffix: &str) -> Result<(Vec<u32>, Vec<u32>)> {
    let found = FAMILIES.iter().find_map(|family| {
        let [pre, suf, mid] = family.names.map(|name| tokenizer.id_of(name));
        Some((family, [pre?, suf?, mid?]))
    });
    let Some((family, [pre, suf, mid])) = found else {
        return Err(failure(
            Code::Failed,
            "this model was not made for infill: its vocabulary has no marks for prefix, suffix \
             and middle",
            "leave --suffix out, or use a model such as Code Llama",
        ));
    };
    let mut ids: Vec<u32> = tokenizer
        .bos()
        .filter(|_| tokenizer.adds_bos())
        .into_iter()
        .collect();
    ids.push(pre);
    ids.extend(tokenizer.encode(prefix, Special::Text)?);
    ids.push(suf);
    ids.extend(match family.dummy_space {
        true => without_dummy_space(tokenizer, suffix)?,
        false => tokenizer.encode(suffix, Special::Text)?,
    });
    ids.push(mid);
    let end = family.end.and_then(|name| tokenizer.id_of(name));
    Ok((ids, end.into_iter().collect()))
}

/// The ids of a text that follows another: encoded behind a character that is a piece of its own,
/// whose ids are then dropped (the reference code does it in this way).
fn without_dummy_space(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    const ALONE: &str = "☺";
    let head = tokenizer.encode(ALONE, Special::Text)?;
    let mut ids = tokenizer.encode(&format!("{ALONE}{text}"), Special::Text)?;
    match ids.starts_with(&head) {
        true => Ok(ids.split_off(head.len())),
        false => Ok(tokenizer.encode(text, Special::Text)?),
    }
}
