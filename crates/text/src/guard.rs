//! The guard rails that Meta's Llama 3 and 4 tokenizers put before their BPE.
//!
//! A text is cut every 400,000 characters, and after every 25,000 characters without a change between
//! whitespace and the rest. Beside bounding the work, this decides the ids of such texts: so it is part of the tokenizer.

/// Characters between forced cuts.
const MAX_CHARS: usize = 400_000;
/// The longest run of whitespace, or of anything else, in characters.
const MAX_RUN: usize = 25_000;

/// The slices of `text`, in order, without gaps; `text` itself unless `guarded`.
pub(crate) fn slices<'t>(text: &'t str, guarded: bool, mut each: impl FnMut(&'t str)) {
    // Fewer bytes cannot hold a run that is too long.
    if !guarded || text.len() <= MAX_RUN {
        each(text);
        return;
    }
    let (mut start, mut run, mut in_space) = (0, 0, false);
    let mut left = MAX_CHARS;
    for (at, c) in text.char_indices() {
        if left == 0 {
            each(&text[start..at]);
            (start, run, left) = (at, 0, MAX_CHARS);
        }
        left -= 1;
        let space = is_python_space(c);
        if space != in_space || run == 0 {
            (run, in_space) = (1, space);
        } else {
            run += 1;
            if run > MAX_RUN {
                each(&text[start..at]);
                (start, run) = (at, 1);
            }
        }
    }
    each(&text[start..]);
}

/// Python's `str.isspace`: White_Space and the four ASCII separators.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(text: &str) -> Vec<usize> {
        let mut lengths = Vec::new();
        slices(text, true, |s| lengths.push(s.chars().count()));
        lengths
    }

    #[test]
    fn cuts_long_runs_and_long_texts() {
        assert_eq!(lengths(&"é".repeat(60_000)), [25_000, 25_000, 10_000]);
        assert_eq!(lengths(&"a ".repeat(30_000)), [60_000]);
        assert_eq!(lengths(&format!("a{}", " ".repeat(25_001))), [25_001, 1]);
        assert_eq!(lengths(&"ab ".repeat(200_000)), [400_000, 200_000]);
        assert_eq!(lengths(""), [0]);
        // The forced cut starts a new run: 20,000 characters before it do not count.
        assert_eq!(
            lengths(&format!("{}{}", "a ".repeat(190_000), "b".repeat(40_000))),
            [400_000, 20_000]
        );
    }
}
