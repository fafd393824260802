//! Stop strings across the borders of tokens.
//!
//! Text comes in pieces of any length. A piece's end may be the beginning of a stop string, so it
//! is held back until the text that follows decides. What is emitted therefore never contains a
//! stop string, and the outcome does not depend on how the text was cut into pieces.
//!
//! Which one counts if several occur: the one that is complete first; of those complete at the
//! same place, the longest. (Whoever reads the text letter by letter cannot do otherwise.)
//!
//! Knows text only. Must not know tokens.

use crate::error::Error;

/// Watches a stream of text for stop strings.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Watches for any of `stops`.
    ///
    /// # Errors
    /// [`Error::Parameter`] if one of them is empty.
    pub fn new(stops: &[String]) -> Result<StopStrings, Error> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::Parameter {
                field: "stop",
                value: "\"\"".into(),
                range: "a string of at least one character".into(),
            });
        }
        Ok(StopStrings {
            stops: stops.to_vec(),
            held: String::new(),
        })
    }

    /// Takes the next piece; returns the text that can be emitted now, and whether a stop string
    /// was met (what stands behind it is dropped, and the stream is over).
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        // A match ends in the new piece: what was held did not contain one.
        let from = self.held.len() + 1;
        self.held.push_str(piece);
        if let Some(start) = self.first_match(from) {
            self.held.truncate(start);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.longest_beginning();
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The text still held back, when no more will come.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the first stop string to be complete at or after byte `from` begins.
    fn first_match(&self, from: usize) -> Option<usize> {
        let text = self.held.as_bytes();
        (from..=text.len()).find_map(|end| {
            let complete = self
                .stops
                .iter()
                .filter(|stop| text[..end].ends_with(stop.as_bytes()));
            complete.map(|stop| end - stop.len()).min()
        })
    }

    /// Length of the longest end of the held text that begins a stop string. It starts at a
    /// character's border because stop strings do.
    fn longest_beginning(&self) -> usize {
        let text = self.held.as_bytes();
        let beginning = |stop: &String| {
            (1..stop.len())
                .rev()
                .find(|&n| text.ends_with(&stop.as_bytes()[..n]))
        };
        self.stops.iter().filter_map(beginning).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut watch = StopStrings::new(&stops).unwrap();
        let mut text = String::new();
        for piece in pieces {
            let (emit, stopped) = watch.push(piece);
            text += &emit;
            if stopped {
                return (text, true);
            }
        }
        text += &watch.finish();
        (text, false)
    }

    /// The definition: reads letter by letter.
    fn naive(stops: &[String], text: &str) -> (String, bool) {
        for (i, c) in text.char_indices() {
            let read = &text[..i + c.len_utf8()];
            let ends = stops.iter().filter(|s| read.ends_with(s.as_str()));
            if let Some(longest) = ends.map(String::len).max() {
                return (read[..read.len() - longest].to_string(), true);
            }
        }
        (text.to_string(), false)
    }

    #[test]
    fn across_pieces() {
        assert_eq!(run(&["END"], &["ab E", "N", "D cd"]), ("ab ".into(), true));
        assert_eq!(run(&["END"], &["ab E", "N", "d"]), ("ab ENd".into(), false));
        assert_eq!(run(&["END"], &["ab EN"]), ("ab EN".into(), false));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
        assert_eq!(run(&["b", "abc"], &["abc"]), ("a".into(), true));
        assert_eq!(run(&["c", "abc"], &["abc"]), (String::new(), true));
        assert_eq!(run(&["é"], &["caf", "é!"]), ("caf".into(), true));
    }

    #[test]
    fn text_is_not_held_longer_than_needed() {
        let mut watch = StopStrings::new(&["\n\n".into()]).unwrap();
        assert_eq!(watch.push("one\n"), ("one".into(), false));
        assert_eq!(watch.push("two"), ("\ntwo".into(), false));
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert!(StopStrings::new(&[String::new()]).is_err());
        assert_eq!(run(&[], &["abc"]), ("abc".into(), false));
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same(
            text in "[abcé]{0,30}",
            stops in prop::collection::vec("[abcé]{1,4}", 0..4),
            cuts in prop::collection::vec(0usize..31, 0..10),
        ) {
            let chars: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(chars.len())).collect();
            cuts.extend([0, chars.len()]);
            cuts.sort_unstable();
            let pieces: Vec<String> = cuts.windows(2).map(|w| chars[w[0]..w[1]].iter().collect()).collect();
            let refs: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let stop_refs: Vec<&str> = stops.iter().map(String::as_str).collect();
            let got = run(&stop_refs, &refs);
            prop_assert_eq!(&got, &naive(&stops, &text));
            for stop in &stops {
                prop_assert!(!got.0.contains(stop.as_str()));
            }
        }
    }
}
