//! What a model says, as a terminal shows it best: lines broken between words, and no control
//! characters. Elsewhere the text goes out as it is.
//!
//! A word is shown once its end is known, so that it can go to the next line as a whole; that
//! holds back a part of a word, never more. Between lines of three backticks nothing is broken:
//! code is copied.

use std::io::IsTerminal;

use anyhow::Result;
use unicode_width::UnicodeWidthChar;

/// Writes an answer to stdout piece by piece.
pub struct Answer {
    /// `None`: stdout is no terminal.
    lines: Option<Lines>,
}

impl Answer {
    /// For this process's stdout.
    pub fn new() -> Answer {
        let lines = std::io::stdout().is_terminal().then(|| {
            // A terminal that does not know its size breaks lines itself.
            let width = crossterm::terminal::size().map_or(0, |(columns, _)| columns);
            Lines::new(match width {
                0 => usize::MAX,
                width => width.into(),
            })
        });
        Answer { lines }
    }

    /// Shows a piece.
    pub fn push(&mut self, text: &str) -> Result<()> {
        match &mut self.lines {
            Some(lines) => crate::out::raw(lines.push(text).as_bytes()),
            None => crate::out::raw(text.as_bytes()),
        }
    }

    /// Shows what was held back.
    pub fn finish(&mut self) -> Result<()> {
        match &mut self.lines {
            Some(lines) => crate::out::raw(lines.finish().as_bytes()),
            None => Ok(()),
        }
    }
}

/// The state of a line that is being written.
struct Lines {
    /// Columns of the terminal.
    width: usize,
    /// Columns that are written.
    column: usize,
    /// The word whose end is not known yet, and its columns.
    word: String,
    word_width: usize,
    /// Characters of this line, as far as they tell a fence of code.
    line: String,
    code: bool,
}

const FENCE: &str = "```";

impl Lines {
    fn new(width: usize) -> Lines {
        Lines {
            width,
            column: 0,
            word: String::new(),
            word_width: 0,
            line: String::new(),
            code: false,
        }
    }

    fn push(&mut self, text: &str) -> String {
        let mut out = String::new();
        for c in text.chars() {
            match c {
                '\n' => self.newline(&mut out),
                ' ' | '\t' => self.space(c, &mut out),
                // A model (or who wrote its training text) must not move the cursor, set the
                // window's title or type for the person.
                c if c.is_control() => {}
                c => self.visible(c, &mut out),
            }
        }
        out
    }

    fn finish(&mut self) -> String {
        let mut out = String::new();
        self.end_word(&mut out);
        out
    }

    fn newline(&mut self, out: &mut String) {
        self.end_word(out);
        out.push('\n');
        self.column = 0;
        if self.line.trim_start().starts_with(FENCE) {
            self.code = !self.code;
        }
        self.line.clear();
    }

    fn space(&mut self, c: char, out: &mut String) {
        self.end_word(out);
        self.remember(c);
        let width = if c == '\t' { 8 - self.column % 8 } else { 1 };
        // A space at the end of a full line would begin the next one.
        if self.column.saturating_add(width) < self.width || self.code {
            out.push(c);
            self.column = self.column.saturating_add(width);
        }
    }

    fn visible(&mut self, c: char, out: &mut String) {
        self.remember(c);
        let width = c.width().unwrap_or(0);
        self.word.push(c);
        self.word_width += width;
        // Scripts without spaces may break anywhere; a word longer than a line must.
        if width > 1 || self.word_width >= self.width || self.code {
            self.end_word(out);
        }
    }

    fn end_word(&mut self, out: &mut String) {
        let after = self.column.saturating_add(self.word_width);
        if after > self.width && self.column > 0 && !self.code {
            out.push('\n');
            self.column = 0;
        }
        out.push_str(&self.word);
        self.column += self.word_width;
        self.word.clear();
        self.word_width = 0;
    }

    fn remember(&mut self, c: char) {
        if self.line.trim_start().len() < FENCE.len() && self.line.len() < 16 {
            self.line.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same whatever the pieces.
    fn wrapped(width: usize, text: &str) -> String {
        let mut whole = Lines::new(width);
        let whole = whole.push(text) + &whole.finish();
        let mut lines = Lines::new(width);
        let mut by_char: String = text.chars().map(|c| lines.push(&c.to_string())).collect();
        by_char += &lines.finish();
        assert_eq!(whole, by_char);
        whole
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrapped(10, "one two three four"), "one two \nthree four");
        assert_eq!(wrapped(5, "one two"), "one \ntwo");
        assert_eq!(wrapped(3, "one two"), "one\ntwo");
        assert_eq!(wrapped(80, "one two\n\n three"), "one two\n\n three");
        assert_eq!(wrapped(4, "abcdefghij"), "abcd\nefgh\nij");
        assert_eq!(wrapped(usize::MAX, "one two"), "one two");
    }

    #[test]
    fn wide_characters_break_anywhere() {
        assert_eq!(wrapped(6, "你好世界"), "你好世\n界");
    }

    #[test]
    fn code_is_left_as_it_is() {
        let code = "```rust\nlet a_long_line = 1 + 2;\n```\n";
        assert_eq!(wrapped(8, code), code);
        assert_eq!(
            wrapped(6, "```\na b c d e\n```\none two"),
            "```\na b c d e\n```\none \ntwo"
        );
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(wrapped(80, "a\x1b]0;title\x07b\r\u{9b}c"), "a]0;titlebc");
    }
}
