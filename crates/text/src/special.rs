//! Finding special-token strings in text.
//!
//! Knows a list of strings and their ids; the leftmost match wins, the longest among those that start together.
//! (llama.cpp cuts out the longest string of the whole text first. The two differ only where one special
//! string overlaps another, which no Llama vocabulary has.)

use aho_corasick::{AhoCorasick, MatchKind};

/// A fragment of a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fragment<'a> {
    /// Ordinary text, never empty.
    Text(&'a str),
    /// A special token.
    Token(u32),
}

/// A set of strings that are tokens.
#[derive(Debug, Default, Clone)]
pub(crate) struct Matcher {
    automaton: Option<AhoCorasick>,
    ids: Vec<u32>,
}

impl Matcher {
    /// A matcher of these strings; empty ones are left out. `None` when they are too many to search for.
    pub(crate) fn new<'a>(tokens: impl Iterator<Item = (u32, &'a [u8])>) -> Option<Matcher> {
        let (ids, texts): (Vec<u32>, Vec<&[u8]>) =
            tokens.filter(|(_, text)| !text.is_empty()).unzip();
        if ids.is_empty() {
            return Some(Matcher::default());
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts)
            .ok()?;
        Some(Matcher {
            automaton: Some(automaton),
            ids,
        })
    }

    /// Whether it has no strings to find.
    pub(crate) fn is_empty(&self) -> bool {
        self.automaton.is_none()
    }

    /// Cuts `text` at the special strings in it, in order.
    pub(crate) fn split<'a>(&self, text: &'a str, mut each: impl FnMut(Fragment<'a>)) {
        let mut at = 0;
        for found in self.automaton.iter().flat_map(|a| a.find_iter(text)) {
            // The strings need not be UTF-8 in a hostile file: then they match nothing.
            let (Some(before), Some(_)) = (text.get(at..found.start()), text.get(found.end()..))
            else {
                continue;
            };
            if !before.is_empty() {
                each(Fragment::Text(before));
            }
            each(Fragment::Token(self.ids[found.pattern().as_usize()]));
            at = found.end();
        }
        if at < text.len() {
            each(Fragment::Text(&text[at..]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split<'a>(strings: &[&str], text: &'a str) -> Vec<Fragment<'a>> {
        let matcher = Matcher::new(
            strings
                .iter()
                .enumerate()
                .map(|(i, s)| (i as u32, s.as_bytes())),
        )
        .unwrap();
        let mut fragments = Vec::new();
        matcher.split(text, |f| fragments.push(f));
        fragments
    }

    #[test]
    fn cuts_at_the_leftmost_longest() {
        use Fragment::{Text, Token};
        assert_eq!(
            split(&["<a>", "<a><b>"], "x<a><b>y<a>"),
            [Text("x"), Token(1), Text("y"), Token(0)]
        );
        assert_eq!(split(&["<a>"], "<a><a"), [Token(0), Text("<a")]);
        assert_eq!(split(&[], "<a>"), [Text("<a>")]);
        assert_eq!(split(&["<a>"], ""), []);
    }
}
