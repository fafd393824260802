//! Cutting text into the pieces inside which byte-level BPE merges.
//!
//! Each published pattern is a regular expression; here each is a hand-written function that, given the text
//! and a position, says where the piece that starts there ends. The pieces cover the text without gaps.
//! The pattern stands above each function; `tests/pretokenize.rs` compares the two on random text.
//!
//! Why by hand: the patterns need look-ahead and Unicode classes, which makes a regex engine the slowest
//! part of a tokenizer by far. Nothing here looks further ahead than it consumes (but for a constant
//! number of times), so the time is linear whatever the text.
//!
//! Knows characters; knows nothing of tokens.

use crate::chars::{Class, class_at};

/// Llama 3's pattern as files write it.
pub(crate) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Llama 4's.
pub(crate) const LLAMA4: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A published way to cut text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// GPT-2's.
    Gpt2,
    /// Each digit on its own, then GPT-2's (SmolLM, StarCoder).
    Smollm,
    /// Llama 3's, which is cl100k's with `\p{N}{1,3}`.
    Llama3,
    /// Llama 4's, which is o200k's.
    Llama4,
    /// What llama.cpp does for a file that names the pre-tokenizer `default`, or none.
    Default,
}

impl Pattern {
    /// Where the piece of `text` that starts at `at` ends. `at` is a character border before the end of the
    /// text; the result is a later one. Panics otherwise.
    pub fn next(self, text: &str, at: usize) -> usize {
        match self {
            Pattern::Gpt2 => gpt2(text, at, false),
            Pattern::Smollm => gpt2(text, at, true),
            Pattern::Llama3 => llama3(text, at),
            Pattern::Llama4 => llama4(text, at),
            Pattern::Default => default(text, at),
        }
    }

    /// The pieces of `text`, in order, without gaps.
    pub fn split(self, text: &str) -> impl Iterator<Item = &str> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = at;
            (at < text.len()).then(|| {
                at = self.next(text, start);
                &text[start..at]
            })
        })
    }
}

/// The position after the run of characters from `at` on that are in `class`.
#[inline]
fn run(text: &str, mut at: usize, class: Class) -> usize {
    while let (c, len) = class_at(text, at)
        && c.is(class)
    {
        at += len;
    }
    at
}

/// The position after the run of the bytes `set` from `at` on.
#[inline]
fn run_bytes(text: &str, at: usize, set: &[u8]) -> usize {
    at + text.as_bytes()[at..]
        .iter()
        .take_while(|b| set.contains(b))
        .count()
}

/// Whitespace from `at` on, as all patterns end: `\s+(?!\S)|\s+`. Of several characters the last one is left
/// for the word that follows. `stop`: a class that counts as the end of the text.
fn whitespace(text: &str, at: usize, stop: Class) -> usize {
    let end = run(text, at, Class::SPACE);
    let (next, _) = class_at(text, end);
    if next == Class::END || next.is(stop) {
        return end;
    }
    // Characters of White_Space take one to three bytes.
    let last = text[at..end]
        .char_indices()
        .next_back()
        .map_or(0, |(i, _)| i);
    if last == 0 { end } else { at + last }
}

/// `'s|'t|'re|'ve|'m|'ll|'d` at `at`, in any case if `fold` (where `(?i:s)` takes U+017F too). `None`: not here.
fn contraction(text: &str, at: usize, fold: bool) -> Option<usize> {
    let rest = text.as_bytes().get(at..)?;
    let letter = |i: usize| {
        rest.get(i)
            .map_or(0, |b| if fold { b.to_ascii_lowercase() } else { *b })
    };
    if rest.first() != Some(&b'\'') {
        return None;
    }
    match (letter(1), letter(2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(at + 2),
        (b'r' | b'v', b'e') | (b'l', b'l') => Some(at + 3),
        (0xc5, _) if fold && rest.get(1..3) == Some("ſ".as_bytes()) => Some(at + 3),
        _ => None,
    }
}

/// GPT-2: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
///
/// With `digits_apart` every `\p{N}` was cut out beforehand, and what lies between two is a text of its own:
/// so a number also ends the text that look-ahead sees.
fn gpt2(text: &str, at: usize, digits_apart: bool) -> usize {
    let (first, len) = class_at(text, at);
    if digits_apart && first.is(Class::NUMBER) {
        return at + len;
    }
    if let Some(end) = contraction(text, at, false) {
        return end;
    }
    let (class, start) = after_space(text, at, first);
    if class.is(Class::LETTER) {
        return run(text, start, Class::LETTER);
    }
    if class.is(Class::NUMBER) && !digits_apart {
        return run(text, start, Class::NUMBER);
    }
    if class.is(Class::OTHER) {
        return run(text, start, Class::OTHER);
    }
    whitespace(
        text,
        at,
        if digits_apart {
            Class::NUMBER
        } else {
            Class::NOTHING
        },
    )
}

/// ` ?` in front of something: the class and place of what comes after one U+0020 at `at`, or of `at` itself.
#[inline]
fn after_space(text: &str, at: usize, first: Class) -> (Class, usize) {
    if text.as_bytes()[at] == b' ' {
        (class_at(text, at + 1).0, at + 1)
    } else {
        (first, at)
    }
}

/// `\p{N}{1,3}` from `at` on, where a number stands.
fn up_to_three_digits(text: &str, mut at: usize) -> usize {
    for _ in 0..3 {
        match class_at(text, at) {
            (c, len) if c.is(Class::NUMBER) => at += len,
            _ => break,
        }
    }
    at
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+` from `at` on, where whitespace stands: a run with a line break in it ends after its last.
fn lines_or_whitespace(text: &str, at: usize) -> usize {
    let end = run(text, at, Class::SPACE);
    match text.as_bytes()[at..end]
        .iter()
        .rposition(|b| matches!(b, b'\r' | b'\n'))
    {
        Some(last) => at + last + 1,
        None => whitespace(text, at, Class::NOTHING),
    }
}

/// Whether `[^\r\n\p{L}\p{N}]` matches the character of class `first` at `at`.
#[inline]
fn may_lead_a_word(text: &str, at: usize, first: Class) -> bool {
    !first.is(Class::LETTER_OR_NUMBER)
        && first != Class::END
        && !matches!(text.as_bytes()[at], b'\r' | b'\n')
}

/// Llama 3: `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
fn llama3(text: &str, at: usize) -> usize {
    let (first, len) = class_at(text, at);
    if first.is(Class::LETTER) {
        return run(text, at + len, Class::LETTER);
    }
    if let Some(end) = contraction(text, at, true) {
        return end;
    }
    if may_lead_a_word(text, at, first) && class_at(text, at + len).0.is(Class::LETTER) {
        return run(text, at + len, Class::LETTER);
    }
    if first.is(Class::NUMBER) {
        return up_to_three_digits(text, at);
    }
    let (class, start) = after_space(text, at, first);
    if class.is(Class::OTHER) {
        return run_bytes(text, run(text, start, Class::OTHER), b"\r\n");
    }
    lines_or_whitespace(text, at)
}

/// Llama 4. With `U = [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`, `W = [\p{Ll}\p{Lm}\p{Lo}\p{M}]`, `C = (?i:'s|'t|'re|'ve|'m|'ll|'d)?`:
/// `[^\r\n\p{L}\p{N}]?U*W+C|[^\r\n\p{L}\p{N}]?U+W*C|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
fn llama4(text: &str, at: usize) -> usize {
    let (first, len) = class_at(text, at);
    let leads = may_lead_a_word(text, at, first);
    // Each alternative tries with the leading character first, then without.
    let with_lead = leads.then_some(at + len);
    let without = Some(at);
    let word = [with_lead, without]
        .into_iter()
        .flatten()
        .find_map(|start| lower_word(text, start));
    let word = word.or_else(|| {
        [with_lead, without]
            .into_iter()
            .flatten()
            .find_map(|start| upper_word(text, start))
    });
    if let Some(end) = word {
        return contraction(text, end, true).unwrap_or(end);
    }
    if first.is(Class::NUMBER) {
        return up_to_three_digits(text, at);
    }
    let (class, start) = after_space(text, at, first);
    if class.is(Class::OTHER) {
        return run_bytes(text, run(text, start, Class::OTHER), b"\r\n/");
    }
    lines_or_whitespace(text, at)
}

/// `U*W+`: capitals, then small letters. Letters without case and marks are in both `U` and `W`: where no
/// small letter follows the longest `U*`, the engine gives characters back until one of those stands for `W+`.
fn lower_word(text: &str, start: usize) -> Option<usize> {
    let mut at = start;
    let mut end_if_given_back = None;
    loop {
        let (class, len) = class_at(text, at);
        if !class.is(Class::UPPER) {
            let end = run(text, at, Class::LOWER);
            return if end > at {
                Some(end)
            } else {
                end_if_given_back
            };
        }
        at += len;
        if class.is(Class::LOWER) {
            end_if_given_back = Some(at);
        }
    }
}

/// `U+W*`, tried only where `U*W+` failed, so that no `W` can follow.
fn upper_word(text: &str, start: usize) -> Option<usize> {
    let end = run(text, start, Class::UPPER);
    (end > start).then_some(end)
}

/// llama.cpp's `default`, four cuts one after the other, each inside the pieces of the one before:
/// `[\p{P}\$\+<=>\^~\|]+`, then GPT-2's, then `\p{N}+`, then `[0-9][0-9][0-9]`.
///
/// So punctuation runs and number runs stand alone, and what lies between them is cut as GPT-2 does with
/// both counting as the end of the text.
fn default(text: &str, at: usize) -> usize {
    let (first, _) = class_at(text, at);
    if first.is(Class::DEFAULT_MARK) {
        return run(text, at, Class::DEFAULT_MARK);
    }
    if first.is(Class::NUMBER) {
        return default_number(text, at);
    }
    let (class, start) = after_space(text, at, first);
    if class.is(Class::LETTER) {
        return run(text, start, Class::LETTER);
    }
    // ` ?\p{N}+` matches, and then `\p{N}+` cuts the space off again.
    if start > at && class.is(Class::NUMBER) {
        return start;
    }
    if class.is(Class::DEFAULT_OTHER) {
        return run(text, start, Class::DEFAULT_OTHER);
    }
    whitespace(text, at, Class::DEFAULT_MARK)
}

/// Inside a run of numbers: three ASCII digits stand alone, and so does each stretch between such threes.
fn default_number(text: &str, at: usize) -> usize {
    let three = |i: usize| {
        text.as_bytes()
            .get(i..i + 3)
            .is_some_and(|d| d.iter().all(u8::is_ascii_digit))
    };
    if three(at) {
        return at + 3;
    }
    let mut end = at;
    loop {
        let (class, len) = class_at(text, end);
        if !class.is(Class::NUMBER) || (end > at && three(end)) {
            return end;
        }
        end += len;
    }
}
