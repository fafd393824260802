//! Infill: a prompt before the gap, a suffix after it, in the order prefix, suffix, middle
//! (Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle").

use crate::error::Error;
use crate::tokenizer::{Special, Tokenizer};

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

/// The marks before each file, where there are several.
const FILES: [&str; 2] = ["<|file_sep|>", "<file_sep>"];

/// A prompt that asks for what fits into a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Tokens that end the answer besides those that end any.
    pub eog: Vec<u32>,
}

/// The prompt for the gap between two texts, behind other files (name and text) that go with them.
/// None of the texts becomes a special token.
///
/// # Errors
/// [`Error::NoInfill`] if the vocabulary has no marks for it, and those of the tokenizer.
pub fn gap(
    tokenizer: &Tokenizer,
    prefix: &str,
    suffix: &str,
    extra: &[(String, String)],
) -> Result<Gap, Error> {
    let found = FAMILIES.iter().find_map(|family| {
        let [pre, suf, mid] = family.names.map(|name| tokenizer.id_of(name));
        Some((family, [pre?, suf?, mid?]))
    });
    let Some((family, [pre, suf, mid])) = found else {
        return Err(Error::NoInfill);
    };
    let mut ids: Vec<u32> = tokenizer
        .bos()
        .filter(|_| tokenizer.adds_bos())
        .into_iter()
        .collect();
    let file = FILES.iter().find_map(|name| tokenizer.id_of(name));
    for (name, text) in extra {
        ids.extend(file);
        // Models without a mark for files see them as one text.
        let end = if file.is_some() { "" } else { "\n\n" };
        let text = format!("{name}\n{text}{end}");
        ids.extend(tokenizer.encode(&text, Special::Text)?);
    }
    ids.extend(file.filter(|_| !extra.is_empty()));
    ids.push(pre);
    ids.extend(tokenizer.encode(prefix, Special::Text)?);
    ids.push(suf);
    ids.extend(match family.dummy_space {
        true => without_dummy_space(tokenizer, suffix)?,
        false => tokenizer.encode(suffix, Special::Text)?,
    });
    ids.push(mid);
    let end = family.end.and_then(|name| tokenizer.id_of(name));
    let eog = end.into_iter().collect();
    Ok(Gap { ids, eog })
}

/// The ids of a text that follows another: encoded behind a character that is a piece of its own,
/// whose ids are then dropped (the reference code does it in this way).
fn without_dummy_space(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, Error> {
    const ALONE: &str = "☺";
    let head = tokenizer.encode(ALONE, Special::Text)?;
    let mut ids = tokenizer.encode(&format!("{ALONE}{text}"), Special::Text)?;
    match ids.starts_with(&head) {
        true => Ok(ids.split_off(head.len())),
        false => Ok(tokenizer.encode(text, Special::Text)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use files::gguf::{Array, Metadata, Strings};

    /// Pieces behind the 256 bytes, which begin at 3, as in Llama 2's vocabulary.
    const PIECES: [&str; 13] = [
        "▁", "☺", "a", "b", "▁a", "ab", "▁b", "▁ab", "\n", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>",
    ];

    fn id(piece: &str) -> u32 {
        let place = PIECES.iter().position(|p| *p == piece);
        259 + place.expect("a piece of the list") as u32
    }

    /// A vocabulary laid out as Code Llama's is, with or without its marks.
    fn tokenizer(marks: bool) -> Tokenizer {
        let pieces = &PIECES[..if marks { PIECES.len() } else { 9 }];
        let bytes = (0..256).map(|b| format!("<0x{b:02X}>"));
        let first = ["<unk>", "<s>", "</s>"].map(String::from);
        let rest = pieces.iter().map(|p| p.to_string());
        let tokens: Vec<String> = first.into_iter().chain(bytes).chain(rest).collect();
        let kind = |i: usize| match i {
            0 => 2,
            1 | 2 | 268.. => 3,
            3..259 => 6,
            _ => 1,
        };
        let places = 0..tokens.len();
        let scores = places.clone().map(|i| 259.0 - i.max(259) as f32);
        let texts: Strings = tokens.iter().map(String::as_str).collect();
        let mut m = Metadata::new();
        m.set("tokenizer.ggml.model", "llama");
        m.set("tokenizer.ggml.tokens", Array::String(texts));
        m.set("tokenizer.ggml.scores", Array::F32(scores.collect()));
        let kinds = Array::I32(places.map(kind).collect());
        m.set("tokenizer.ggml.token_type", kinds);
        Tokenizer::from_gguf(&m).expect("a sound vocabulary")
    }

    /// The sequences of Code Llama's reference code (`infilling_prompt_tokens`, prefix first): begin
    /// of text, PRE, the prefix as a text, SUF, the suffix without the space before a text, MID.
    #[test]
    fn code_llamas_prompts_are_those_of_its_reference_code() {
        let t = tokenizer(true);
        let (pre, suf, mid) = (id("▁<PRE>"), id("▁<SUF>"), id("▁<MID>"));
        for (prefix, suffix, want) in [
            ("a", "ab", vec![1, pre, id("▁a"), suf, id("ab"), mid]),
            ("ab", " b", vec![1, pre, id("▁ab"), suf, id("▁b"), mid]),
            ("", "", vec![1, pre, suf, mid]),
            ("", "\nab", vec![1, pre, suf, id("\n"), id("ab"), mid]),
            (
                " a\n",
                "",
                vec![1, pre, id("▁"), id("▁a"), id("\n"), suf, mid],
            ),
            // What a user types is no mark.
            (
                "a",
                "<",
                vec![1, pre, id("▁a"), suf, 3 + u32::from(b'<'), mid],
            ),
        ] {
            let Gap { ids, eog } = gap(&t, prefix, suffix, &[]).expect("the marks are there");
            assert_eq!(ids, want, "{prefix:?} {suffix:?}");
            assert_eq!(eog, [id("▁<EOT>")]);
        }
        assert!(t.eog().contains(&id("▁<EOT>")));
        let without = gap(&tokenizer(false), "a", "b", &[]);
        assert!(matches!(without, Err(Error::NoInfill)));
    }

    /// Other files stand before it all, as text where there is no mark for them.
    #[test]
    fn other_files_come_first() {
        let t = tokenizer(true);
        let files = [("a".to_owned(), "b".to_owned())];
        let ids = gap(&t, "", "", &files).expect("the marks are there").ids;
        let bare = gap(&t, "", "", &[]).expect("the marks are there").ids;
        let file = t.encode("a\nb\n\n", Special::Text).expect("short");
        assert_eq!(ids, [&bare[..1], &file, &bare[1..]].concat());
    }

    /// The middle goes on where the prefix ends: its first space is one.
    #[test]
    fn the_middle_keeps_its_first_space() {
        let t = tokenizer(true);
        let prompt = gap(&t, "a", "", &[]).expect("the marks are there").ids;
        let mut decoder = crate::Decoder::after(&t, &prompt);
        assert_eq!(decoder.push(id("▁b")), " b");
    }
}
