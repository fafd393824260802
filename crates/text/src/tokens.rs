//! The tokens of one tag of a chat template: enough to know where operands begin and end.
//!
//! It agrees with the engine's lexer on strings, numbers, brackets and end marks, and knows nothing of grammar:
//! what it cannot read, the engine must refuse.

/// Brackets nested deeper than this are not read: the engine refuses them.
const MAX_BRACKETS: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Names, numbers, strings, dots, pipes: parts of an operand.
    Operand,
    Open,
    Close,
    /// What binds looser than `+`, and so ends an operand of it: comparisons, `and`, commas, ..
    Boundary,
    Assign,
    /// What binds tighter than `~`.
    Operator,
    Plus,
    Minus,
    Tilde,
}

/// A token's kind and its bytes in the source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// The tokens of one tag.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    pub(crate) list: Vec<Token>,
    /// Where the tag's end mark stands. `None`: the tag does not end, or its brackets do not match.
    pub(crate) close: Option<usize>,
    /// The texts of its strings, escapes resolved.
    pub(crate) literals: Vec<String>,
}

impl Tokens {
    /// Reads tokens from `from` to the end mark `close` outside of brackets.
    pub(crate) fn read(src: &str, from: usize, close: &[u8; 2]) -> Tokens {
        let bytes = src.as_bytes();
        let mut tokens = Tokens::default();
        let mut depth = 0usize;
        let mut at = from;
        while at < bytes.len() {
            if depth == 0 && bytes[at..].starts_with(close) {
                tokens.close = Some(at);
                break;
            }
            if bytes[at].is_ascii_whitespace() {
                at += 1;
                continue;
            }
            let before = tokens.list.last().map(|t| &src[t.start..t.end]);
            let Some((kind, end)) = token(src, at, before) else {
                break;
            };
            match kind {
                Kind::Open => depth += 1,
                Kind::Close if depth == 0 => break,
                Kind::Close => depth -= 1,
                Kind::Operand if matches!(bytes[at], b'\'' | b'"') => {
                    tokens.literals.push(unescape(&src[at + 1..end - 1]));
                }
                _ => {}
            }
            if depth > MAX_BRACKETS {
                break;
            }
            tokens.list.push(Token {
                kind,
                start: at,
                end,
            });
            at = end;
        }
        tokens
    }

    /// The `=` of a `{% set target = value %}`, if a value follows.
    pub(crate) fn assignment(&self) -> Option<usize> {
        let mut depth = 0usize;
        for (i, token) in self.list.iter().enumerate() {
            match token.kind {
                Kind::Open => depth += 1,
                Kind::Close => depth = depth.saturating_sub(1),
                Kind::Assign if depth == 0 => {
                    let value = self.list[i + 1..]
                        .iter()
                        .any(|t| !matches!(t.kind, Kind::Plus | Kind::Minus));
                    return value.then_some(token.start);
                }
                _ => {}
            }
        }
        None
    }

    /// The names that a tag binds: the targets of `for` and `with`, the parameters of `macro` and `call`.
    pub(crate) fn bound<'s>(&self, tag: &str, src: &'s str) -> Vec<&'s str> {
        let mut names = Vec::new();
        let mut depth = 0usize;
        for (i, token) in self.list.iter().enumerate() {
            let text = &src[token.start..token.end];
            let next = self.list.get(i + 1).map(|t| &src[t.start..t.end]);
            match (token.kind, tag) {
                (Kind::Open, "call") if depth == 0 && i > 0 => break,
                (Kind::Open, _) => depth += 1,
                (Kind::Close, _) => depth = depth.saturating_sub(1),
                (Kind::Boundary, "for") if text == "in" => break,
                (Kind::Operand, "for") => names.push(text),
                (Kind::Operand, "with") if depth == 0 && next == Some("=") => names.push(text),
                (Kind::Operand, "macro" | "call") if depth == 1 && self.starts_parameter(i) => {
                    names.push(text)
                }
                _ => {}
            }
        }
        names.retain(|n| n.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'));
        names
    }

    /// The first token.
    pub(crate) fn first<'s>(&self, src: &'s str) -> &'s str {
        self.list.first().map_or("", |t| &src[t.start..t.end])
    }

    /// Whether a variable of this name is used: not an attribute, a filter or the name of an argument.
    pub(crate) fn say(&self, name: &str, src: &str) -> bool {
        let text = |i: usize| self.list.get(i).map(|t| &src[t.start..t.end]);
        (0..self.list.len()).any(|i| {
            let before = i.checked_sub(1).and_then(text);
            text(i) == Some(name)
                && !matches!(before, Some("." | "|"))
                && self.list.get(i + 1).is_none_or(|t| t.kind != Kind::Assign)
        })
    }

    /// Whether a token stands behind the bracket or the comma that opens a parameter.
    fn starts_parameter(&self, at: usize) -> bool {
        at.checked_sub(1).is_some_and(|before| {
            let token = self.list[before];
            token.kind == Kind::Open || token.kind == Kind::Boundary && token.end - token.start == 1
        })
    }

    /// What a `{% for target in walked if condition recursive %}` walks, from behind its `in`.
    pub(crate) fn walked(&self, src: &str) -> Option<(usize, usize)> {
        let mut depth = 0usize;
        let mut from = None;
        for token in &self.list {
            match (token.kind, &src[token.start..token.end], from) {
                (Kind::Open, ..) => depth += 1,
                (Kind::Close, ..) => depth = depth.saturating_sub(1),
                (Kind::Boundary, "in", None) if depth == 0 => from = Some(token.end),
                (Kind::Boundary, "if" | "recursive", Some(from)) if depth == 0 => {
                    return Some((from, token.start));
                }
                _ => {}
            }
        }
        let last = self.list.last()?.end;
        from.filter(|&from| from < last).zip(self.close)
    }
}

/// The token that starts at `at`, and its end; `before` is the token before it. `None`: a string that does not end.
fn token(src: &str, at: usize, before: Option<&str>) -> Option<(Kind, usize)> {
    let bytes = src.as_bytes();
    let kind = match bytes[at] {
        quote @ (b'\'' | b'"') => return Some((Kind::Operand, string_end(bytes, at + 1, quote)?)),
        b'(' | b'[' | b'{' => Kind::Open,
        b')' | b']' | b'}' => Kind::Close,
        b'=' | b'!' | b'<' | b'>' if bytes.get(at + 1) == Some(&b'=') => {
            return Some((Kind::Boundary, at + 2));
        }
        b'=' => Kind::Assign,
        b'<' | b'>' | b',' | b':' => Kind::Boundary,
        b'*' | b'/' | b'%' => Kind::Operator,
        b'+' => Kind::Plus,
        b'-' => Kind::Minus,
        b'~' => Kind::Tilde,
        b'0'..=b'9' => return Some((Kind::Operand, number_end(bytes, at))),
        b if b.is_ascii_alphabetic() || b == b'_' => {
            let end = bytes[at..]
                .iter()
                .position(|b| !b.is_ascii_alphanumeric() && *b != b'_')
                .map_or(bytes.len(), |i| at + i);
            return Some((word(&src[at..end], before), end));
        }
        _ => {
            let length = src[at..].chars().next().map_or(1, char::len_utf8);
            return Some((Kind::Operand, at + length));
        }
    };
    Some((kind, at + 1))
}

/// What a word is to the expressions around it.
fn word(word: &str, before: Option<&str>) -> Kind {
    match (word, before) {
        (_, Some("." | "|")) => Kind::Operand,
        // The name of a test, not an operator.
        ("not" | "in", Some("is")) => Kind::Operand,
        ("and" | "or" | "not" | "in" | "if" | "else" | "recursive", _) => Kind::Boundary,
        _ => Kind::Operand,
    }
}

/// Where the number that starts at `at` ends: `1.5e-3` is one token.
fn number_end(bytes: &[u8], at: usize) -> usize {
    let radix = matches!(
        bytes.get(at + 1),
        Some(b'x' | b'X' | b'o' | b'O' | b'b' | b'B')
    );
    let mut end = at + 1;
    while let Some(&b) = bytes.get(end) {
        let exponent = !radix && matches!(bytes[end - 1], b'e' | b'E') && matches!(b, b'+' | b'-');
        if !exponent && !b.is_ascii_alphanumeric() && b != b'_' && b != b'.' {
            break;
        }
        end += 1;
    }
    end
}

/// Behind the closing quote of the string that began before `from`.
fn string_end(bytes: &[u8], from: usize, quote: u8) -> Option<usize> {
    let mut at = from;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b if b == quote => return Some(at + 1),
            _ => {}
        }
        at += 1;
    }
    None
}

/// The text of a literal, its escapes resolved; an escape that is not known stays as it is written.
fn unescape(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        let Some(kind) = tail.chars().next() else {
            out.push('\\');
            return out;
        };
        let digits = match kind {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        let number = tail
            .get(1..1 + digits)
            .and_then(|d| u32::from_str_radix(d, 16).ok())
            .and_then(char::from_u32);
        let mut taken = kind.len_utf8();
        match (kind, number) {
            ('n', _) => out.push('\n'),
            ('t', _) => out.push('\t'),
            ('r', _) => out.push('\r'),
            ('\\' | '\'' | '"', _) => out.push(kind),
            ('x' | 'u' | 'U', Some(c)) => {
                out.push(c);
                taken = 1 + digits;
            }
            _ => {
                out.push('\\');
                out.push(kind);
            }
        }
        rest = &tail[taken..];
    }
    out.push_str(rest);
    out
}
