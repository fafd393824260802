//! Reading tiktoken's rank files: Meta's `tokenizer.model` of Llama 3 and 4.
//!
//! Each line is a token's bytes in base64, a space, and its rank, which is its id. The special tokens stand in no
//! file: they follow the ranks, and the number of ranks says which family's they are.
//!
//! | ranks | family | special tokens |
//! |---|---|---|
//! | 128,000 | Llama 3 | 256: [`LLAMA3`], then `<|reserved_special_token_N|>` from 2 |
//! | 200,000 | Llama 4 | 2,048: [`llama4_specials`] |
//! | others | unknown | none; Llama 3's pattern |
//!
//! The names are those of the package llama-models 0.3.0, Meta's latest. Earlier releases of Llama 3 called some ids
//! otherwise, so programs should match tokens by id.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::Error;
use crate::bpe::{Bpe, Order};
use crate::pretokenize::Pattern;
use crate::tokenizer::{Algorithm, Parts, Tokenizer};
use crate::vocab::{Kind, MAX_TOKENS, PieceTable, Vocab};

const FORMAT: &str = "tokenizer.model (tiktoken)";
/// The longest token, in bytes. Llama 3's longest has 128.
const MAX_TOKEN_LEN: usize = 1 << 16;

/// Llama 3's special tokens from 128,000 on, as far as they have names of their own.
const LLAMA3: &[&str] = &[
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
];

fn reserved(family: &str, numbers: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    numbers.map(move |n| format!("<|{family}reserved_special_token_{n}|>"))
}

fn names(names: &[&str]) -> impl Iterator<Item = String> {
    names.iter().map(|n| (*n).to_string())
}

/// The 256 special tokens of Llama 3, from 128,000 on.
fn llama3_specials() -> Vec<String> {
    names(LLAMA3)
        .chain(reserved("", 2..2 + 256 - LLAMA3.len()))
        .collect()
}

/// The 2,048 special tokens of Llama 4, from 200,000 on.
fn llama4_specials() -> Vec<String> {
    let text = "text_post_train_";
    let mut all: Vec<String> = names(&[
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|fim_prefix|>",
        "<|fim_middle|>",
        "<|fim_suffix|>",
    ])
    // Turns and tools: 200,005 to 200,079.
    .chain(names(&[
        "<|header_start|>",
        "<|header_end|>",
        "<|eom|>",
        "<|eot|>",
        "<|step|>",
    ]))
    .chain(reserved(text, 0..6))
    .chain(names(&[
        "<|python_start|>",
        "<|python_end|>",
        "<|finetune_right_pad|>",
    ]))
    .chain(reserved(text, 8..69))
    // Images: 200,080 to 201,133.
    .chain(names(&["<|image_start|>", "<|image_end|>"]))
    .chain(reserved("vision_", 0..2))
    .chain(names(&["<|tile_x_separator|>", "<|tile_y_separator|>"]))
    .chain(reserved("vision_", 2..6))
    .chain(names(&["<|image|>"]))
    .chain(reserved("vision_", 6..7))
    .chain(names(&["<|patch|>"]))
    .chain(reserved("vision_", 7..1048))
    // Reasoning: 201,134 to 201,143.
    .chain(reserved("reasoning_", 0..8))
    .chain(names(&[
        "<|reasoning_thinking_start|>",
        "<|reasoning_thinking_end|>",
    ]))
    .collect();
    let rest = 2048 - all.len();
    all.extend(reserved("", 0..rest));
    all
}

/// Whether these bytes look like the beginning of a rank file: base64, a space, a number.
pub(crate) fn looks_like_tiktoken(bytes: &[u8]) -> bool {
    let end = bytes
        .iter()
        .take(2 * MAX_TOKEN_LEN)
        .position(|&b| b == b'\n')
        .unwrap_or(bytes.len());
    parse_line(&bytes[..end]).is_some()
}

fn parse_line(line: &[u8]) -> Option<(Vec<u8>, u32)> {
    let line = std::str::from_utf8(line).ok()?;
    let (token, rank) = line.trim_end_matches('\r').split_once(' ')?;
    // str::parse would take "+1" too.
    let rank = Some(rank)
        .filter(|r| r.bytes().all(|b| b.is_ascii_digit()))?
        .parse()
        .ok()?;
    Some((
        BASE64_STANDARD
            .decode(token)
            .ok()
            .filter(|t| !t.is_empty() && t.len() <= MAX_TOKEN_LEN)?,
        rank,
    ))
}

/// Reads a rank file.
pub(crate) fn parse(bytes: &[u8]) -> Result<Tokenizer, Error> {
    let mut ranks = Vec::new();
    for (line, number) in bytes.split(|&b| b == b'\n').zip(1usize..) {
        if line.is_empty() {
            continue;
        }
        let (token, rank) = parse_line(line).ok_or_else(|| {
            Error::malformed(
                FORMAT,
                format!("line {number} is not base64, a space and a rank"),
            )
        })?;
        if ranks.len() >= MAX_TOKENS {
            return Err(Error::malformed(
                FORMAT,
                format!("more than {MAX_TOKENS} tokens"),
            ));
        }
        ranks.push((rank, token));
    }
    ranks.sort_unstable_by_key(|(rank, _)| *rank);
    let gap = ranks
        .iter()
        .zip(0..)
        .find(|((rank, _), place)| rank != place);
    if let Some(((rank, _), place)) = gap {
        return Err(Error::malformed(
            FORMAT,
            format!(
                "rank {rank} stands where {place} belongs: ranks must count from 0 without gaps"
            ),
        ));
    }
    build(&ranks)
}

fn build(ranks: &[(u32, Vec<u8>)]) -> Result<Tokenizer, Error> {
    let base = ranks.len();
    let (pattern, specials) = match base {
        0 => return Err(Error::malformed(FORMAT, "it has no tokens")),
        128_000 => (Pattern::Llama3, llama3_specials()),
        200_000 => (Pattern::Llama4, llama4_specials()),
        _ => (Pattern::Llama3, Vec::new()),
    };
    let mut vocab = Vocab::with_capacity(base + specials.len());
    let pieces = ranks
        .iter()
        .map(|(_, token)| (token.as_slice(), Kind::Normal));
    let pieces = pieces.chain(specials.iter().map(|s| (s.as_bytes(), Kind::Control)));
    for (piece, kind) in pieces {
        vocab
            .push(piece, kind)
            .ok_or_else(|| Error::malformed(FORMAT, "the tokens are larger than any vocabulary"))?;
    }
    let table = PieceTable::build(&vocab, |_, kind| kind == Kind::Normal)
        .map_err(|id| Error::malformed(FORMAT, format!("token {id} stands twice")))?;
    let special = |at: u32| (!specials.is_empty()).then_some(base as u32 + at);
    Tokenizer::assemble(Parts {
        algorithm: Algorithm::Bpe(Bpe::new(&vocab, table, pattern, Order::Ids, true)),
        vocab,
        bos: special(0),
        eos: special(1),
        adds_bos: !specials.is_empty(),
        ends: Vec::new(),
        cut_user_defined: false,
        strips_space: false,
        from_json: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_tokens_have_the_published_numbers() {
        let (three, four) = (llama3_specials(), llama4_specials());
        assert_eq!((three.len(), four.len()), (256, 2048));
        assert_eq!(
            (three[9].as_str(), three[255].as_str()),
            ("<|eot_id|>", "<|reserved_special_token_245|>")
        );
        let at = |name: &str| four.iter().position(|n| n == name);
        for (name, id) in [
            ("<|header_start|>", 5),
            ("<|eot|>", 8),
            ("<|python_start|>", 16),
            ("<|finetune_right_pad|>", 18),
            ("<|text_post_train_reserved_special_token_68|>", 79),
            ("<|image_start|>", 80),
            ("<|tile_x_separator|>", 84),
            ("<|image|>", 90),
            ("<|patch|>", 92),
            ("<|vision_reserved_special_token_1047|>", 1133),
            ("<|reasoning_thinking_end|>", 1143),
            ("<|reserved_special_token_0|>", 1144),
        ] {
            assert_eq!(at(name), Some(id), "{name}");
        }
    }

    #[test]
    fn lines() {
        assert_eq!(parse_line(b"YQ== 5"), Some((b"a".to_vec(), 5)));
        for bad in [
            "",
            "YQ==",
            "YQ== -1",
            "YQ== +1",
            "YQ== ",
            " 3",
            "!!!! 3",
            "YQ== 99999999999",
        ] {
            assert_eq!(parse_line(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn ranks_must_be_complete_and_different() {
        for bad in [
            "",
            "\n",
            "YQ== 1\n",
            "YQ== 0\nYg== 0\n",
            "YQ== 0\nYQ== 1\n",
            "YQ== 0\nx\n",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        let tokenizer = parse(b"Yg== 1\nYQ== 0\r\nYWI= 2").unwrap();
        assert_eq!(
            tokenizer.encode("abba", crate::Special::Text).unwrap(),
            [2, 1, 0]
        );
        assert_eq!(tokenizer.bos(), None);
    }
}
