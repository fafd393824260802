//! From ids back to text, all at once or as they come.
//!
//! A token may hold part of a character, so bytes are gathered and only whole characters are given out. What can
//! no longer become a character is given out as U+FFFD, the way `String::from_utf8_lossy` counts it.
//!
//! SentencePiece puts a space before every text; at the start of a text exactly one is taken off again.

use crate::tokenizer::Tokenizer;

/// Turns the tokens of one text into characters as they come.
#[derive(Debug, Clone)]
pub struct Decoder<'t> {
    tokenizer: &'t Tokenizer,
    /// Bytes of a character that is not complete yet: at most 3 between calls.
    pending: Vec<u8>,
    /// The next text is the first, so that SentencePiece's space comes off.
    at_start: bool,
    keep_special: bool,
}

impl<'t> Decoder<'t> {
    /// A decoder for what follows a prompt. `prompt_nonempty`: text comes before, so a leading space is real.
    /// Special tokens give no text.
    pub fn new(tokenizer: &'t Tokenizer, prompt_nonempty: bool) -> Decoder<'t> {
        Decoder {
            tokenizer,
            pending: Vec::new(),
            at_start: !prompt_nonempty,
            keep_special: false,
        }
    }

    /// A decoder for what follows these tokens. Special tokens are no text: after a lone begin-of-text token a
    /// text still starts, and SentencePiece's space comes off.
    pub fn after(tokenizer: &'t Tokenizer, prompt: &[u32]) -> Decoder<'t> {
        let has_text = prompt.iter().any(|&id| !tokenizer.is_special(id));
        Decoder::new(tokenizer, has_text)
    }

    /// Whether special tokens give their names (`<|eot_id|>`) as text.
    #[must_use]
    pub fn keep_special(mut self, keep: bool) -> Decoder<'t> {
        self.keep_special = keep;
        self
    }

    /// The characters that `id` completes; often none, when a character takes several tokens.
    /// An id outside the vocabulary gives none.
    pub fn push(&mut self, id: u32) -> String {
        self.tokenizer
            .append_piece(id, self.keep_special, &mut self.at_start, &mut self.pending);
        let mut text = String::new();
        let whole = self.pending.len() - incomplete_tail(&self.pending);
        text.push_str(&String::from_utf8_lossy(&self.pending[..whole]));
        self.pending.drain(..whole);
        text
    }

    /// What is left when no more tokens come: U+FFFD for a character that was cut off, or nothing.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// How many bytes at the end of `bytes` may still become a character.
fn incomplete_tail(bytes: &[u8]) -> usize {
    // The last character to begin starts at most 3 bytes before the end.
    let from = bytes.len().saturating_sub(3);
    (from..bytes.len())
        .find(|&at| match std::str::from_utf8(&bytes[at..]) {
            Err(e) => e.valid_up_to() == 0 && e.error_len().is_none(),
            Ok(_) => false,
        })
        .map_or(0, |at| bytes.len() - at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `bytes` in the given cuts through the same steps as [`Decoder::push`].
    fn stream(bytes: &[u8], cuts: &[usize]) -> String {
        let (mut pending, mut text, mut rest) = (Vec::new(), String::new(), bytes);
        for &cut in cuts.iter().chain([&bytes.len()]) {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            pending.extend_from_slice(now);
            rest = later;
            let whole = pending.len() - incomplete_tail(&pending);
            text.push_str(&String::from_utf8_lossy(&pending[..whole]));
            pending.drain(..whole);
            assert!(pending.len() <= 3);
        }
        text + &String::from_utf8_lossy(&pending)
    }

    proptest! {
        #[test]
        fn streaming_equals_all_at_once(
            parts in prop::collection::vec(prop_oneof![any::<char>().prop_map(|c| c.to_string().into_bytes()), prop::collection::vec(any::<u8>(), 0..4)], 0..20),
            cuts in prop::collection::vec(0usize..4, 0..60),
        ) {
            let bytes = parts.concat();
            prop_assert_eq!(stream(&bytes, &cuts), String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn waits_only_for_what_can_still_come() {
        assert_eq!(incomplete_tail("🦙".as_bytes()), 0);
        assert_eq!(incomplete_tail(&"a🦙".as_bytes()[..4]), 3);
        assert_eq!(incomplete_tail(b"a\xc3"), 1);
        assert_eq!(incomplete_tail(b"\x80\x80"), 0);
        assert_eq!(incomplete_tail(b"\xff"), 0);
        // E0 80 is no beginning of any character.
        assert_eq!(incomplete_tail(b"\xe0\x80"), 0);
    }
}
