//! Tokenizers from one kind of file to another: Hugging Face's directory to the keys of a GGUF, and
//! back.
//!
//! What is written is read again before it is handed out, and must give the ids of the original on a
//! text of everything that tokenizers differ in; what cannot be said in the other form is an error
//! and not an approximation.

mod gguf;
mod hf;

pub use gguf::gguf_keys;
pub use hf::hf_files;

use crate::Error;
use crate::tokenizer::{Special, Tokenizer};

/// Words, cases, contractions, numbers, spaces, line ends, scripts, marks, symbols.
const PROBE: &str = "Hello, world! I'm sure we'll see: don't, DON'T, it'S, they've  been\tthere.\n\n  \n \
    camelCase XMLHttpRequest snake_case 3.14159 1234567 0x1F  $12,345.67 (a+b)^2=c;\r\n\
    if (x >= 10) {\n    return -1; // done\n}\n\n\n\u{a0}naïve café Straße ŒUVRE Ελληνικά русский текст \
    العربية हिन्दी ไทย 日本語テキスト 中文。 한국어 🦙🚀👩\u{200d}💻 e\u{301}\u{1e9e} ½ ² Ⅷ ١٢٣ \
    <|im_start|> <s> </s> <0x0A> ▁ … — “quoted” ¿qué? \u{feff}end   ";

/// The two give the same ids on the probe, on pieces of the vocabulary joined to a text, and on the
/// names of special tokens; all of these `without` a piece of text.
fn same(a: &Tokenizer, b: &Tokenizer, without: &str) -> Result<bool, Error> {
    let pieces = |every: usize| -> String {
        let ids = (0..a.len() as u32).step_by(every);
        let pieces = ids
            .filter(|id| !a.is_special(*id))
            .filter_map(|id| a.piece(id));
        pieces
            .map(|p| String::from_utf8_lossy(&p).into_owned())
            .collect()
    };
    let specials: Vec<&str> = a.special_strings().map(|s| s.0).take(300).collect();
    for text in [
        PROBE.to_owned(),
        pieces((a.len() / 4000).max(1)),
        specials.join(" x"),
    ] {
        let text = match without {
            "" => text,
            one => text.replace(one, ""),
        };
        for special in [Special::Text, Special::Parse] {
            if a.encode_prompt(&text, special)? != b.encode_prompt(&text, special)? {
                return Ok(false);
            }
        }
    }
    Ok((a.bos(), a.eos()) == (b.bos(), b.eos()))
}
