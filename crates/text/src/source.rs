//! The source of a chat template, made ready for the engine.
//!
//! Templates are written for Jinja2 as transformers sets it up; the engine is minijinja. What the engine does
//! not know, answers differently or does not guard is settled here on the text, tag by tag, so that every line
//! keeps its number:
//! - `{% generation %}` (transformers' mark of what a model is trained on) becomes `{% with %}`: the same scope,
//!   the same whitespace control, no output of its own;
//! - every value that gets a name (`set`, `for`, `with`, a macro's parameters) passes through a filter that bounds
//!   it ([`KEEP`], [`KEEP_ATTRIBUTE`]): fuel does not meter comparing or printing values that hold one another many
//!   times, so none may come to be;
//! - `{% for %}` refuses to walk `none` ([`ITERABLE`]), which the engine takes for an empty list;
//! - `a ~ b` becomes a call of [`CONCAT`], which prints as Python does and is metered;
//! - `a + b` becomes a call of [`ADD`] in templates that mark strings as safe: in Python such a string escapes
//!   what it is added to, whether or not the template escapes what it prints;
//! - line ends become `\n`, as Jinja2 reads them.
//!
//! It also lists the string literals of the template: what a template may look for in a message. It knows where
//! tags begin and end and how operators bind, not what anything means: a malformed tag is left for the engine
//! to report.

/// The filter that every value with a name passes through.
pub(crate) const KEEP: &str = "puna_keep";
/// The same for `{% set namespace.name = value %}`, the one way in which a template could build a circle.
pub(crate) const KEEP_ATTRIBUTE: &str = "puna_keep_attribute";
/// The filter that what a `{% for %}` walks passes through.
pub(crate) const ITERABLE: &str = "puna_iterable";
/// The function behind `~`.
pub(crate) const CONCAT: &str = "puna_concat";
/// The function behind `+` where strings may be marked as safe.
pub(crate) const ADD: &str = "puna_add";

/// Filters that give a safe string.
const SAFE_FILTERS: [&str; 4] = ["safe", "escape", "e", "forceescape"];
/// Brackets nested deeper than this are left to the engine, which refuses them.
const MAX_BRACKETS: usize = 200;
/// Most tokens in one tag, and most `elif` in a template: the engine's compiler recurses over long chains. The
/// longest known tags have a few hundred tokens.
const MAX_TOKENS: usize = 4000;
const MAX_ELIF: usize = 1000;

/// A template's text for the engine, and the string literals in it.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) text: String,
    pub(crate) literals: Vec<String>,
}

/// Rewrites a template's source. The error says what there is too much of.
pub(crate) fn prepare(source: &str) -> Result<Source, String> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut scan = Scan {
        src: &source,
        out: String::with_capacity(source.len() * 2),
        literals: Vec::new(),
        safe: false,
        elifs: 0,
        longest: 0,
    };
    scan.safe = scan.marks_strings_safe();
    scan.all();
    let Scan {
        out,
        mut literals,
        elifs,
        longest,
        ..
    } = scan;
    if longest > MAX_TOKENS {
        return Err(format!("a tag has more than {MAX_TOKENS} tokens"));
    }
    if elifs > MAX_ELIF {
        return Err(format!("it has more than {MAX_ELIF} elif tags"));
    }
    literals.retain(|l| !l.is_empty());
    literals.sort_unstable();
    literals.dedup();
    Ok(Source {
        text: out,
        literals,
    })
}

struct Scan<'a> {
    src: &'a str,
    out: String,
    literals: Vec<String>,
    /// Whether the template marks strings as safe.
    safe: bool,
    /// How many `elif` tags there are, and the tokens of the longest tag.
    elifs: usize,
    longest: usize,
}

impl Scan<'_> {
    fn marks_strings_safe(&self) -> bool {
        self.src.split('|').skip(1).any(|after| {
            let name = after.trim_start();
            let end = name
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(name.len());
            SAFE_FILTERS.contains(&&name[..end])
        })
    }

    fn all(&mut self) {
        let bytes = self.src.as_bytes();
        let mut copied = 0;
        let mut at = 0;
        while at + 1 < bytes.len() {
            if bytes[at] != b'{' {
                at += 1;
                continue;
            }
            match bytes[at + 1] {
                b'#' => at = self.find("#}", at + 2).map_or(bytes.len(), |end| end + 2),
                b'{' | b'%' => {
                    self.push(&[&self.src[copied..at]]);
                    at = if bytes[at + 1] == b'{' {
                        self.print(at)
                    } else {
                        self.tag(at)
                    };
                    copied = at;
                }
                _ => at += 1,
            }
        }
        self.push(&[&self.src[copied..]]);
    }

    fn find(&self, what: &str, from: usize) -> Option<usize> {
        self.src.get(from..)?.find(what).map(|i| from + i)
    }

    fn push(&mut self, parts: &[&str]) {
        parts.iter().for_each(|p| self.out.push_str(p));
    }

    /// Copies the `{{ expression }}` that opens at `start`, rewritten; returns where it ends.
    fn print(&mut self, start: usize) -> usize {
        let from = after_sign(self.src, start + 2);
        let Some(tokens) = self.tokens(from, b"}}") else {
            return self.rest(start);
        };
        let close = tokens.close;
        let value_end = before_sign(self.src, from, close);
        let expression = self.expression(&tokens, from, value_end);
        self.push(&[
            &self.src[start..from],
            &expression,
            &self.src[value_end..close + 2],
        ]);
        close + 2
    }

    /// Copies the tag that opens at `start` (its `{%`), rewritten; returns where it ends.
    fn tag(&mut self, start: usize) -> usize {
        let src = self.src;
        let name_at = src.len() - src[after_sign(src, start + 2)..].trim_start().len();
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let name_end = src[name_at..]
            .find(|c| !word(c))
            .map_or(src.len(), |i| name_at + i);
        let name = &src[name_at..name_end];
        let Some(tokens) = self.tokens(name_end, b"%}") else {
            return self.rest(start);
        };
        let end = tokens.close + 2;
        let value_end = before_sign(src, name_end, tokens.close);
        let (head, tail) = (&src[start..name_at], &src[value_end..end]);
        self.elifs += usize::from(name == "elif");
        match name {
            "generation" => self.push(&[head, "with", &src[name_end..end]]),
            "endgeneration" => self.push(&[head, "endwith", &src[name_end..end]]),
            "raw" => {
                let end = self.end_of_raw(end);
                self.push(&[&src[start..end]]);
                return end;
            }
            "set" => match tokens.assignment() {
                Some(equals) => {
                    let target = &src[name_end..equals];
                    let value = self.expression(&tokens, equals + 1, value_end);
                    let filter = if target.contains('.') {
                        KEEP_ATTRIBUTE
                    } else {
                        KEEP
                    };
                    self.push(&[head, name, target, "= (", &value, ")|", filter, " ", tail]);
                }
                None => self.push(&[&src[start..end]]),
            },
            "for" | "macro" | "call" | "with" => {
                let rest = match tokens.walked(src).filter(|_| name == "for") {
                    Some((from, to)) => {
                        let to = to.min(value_end);
                        let walked = self.expression(&tokens, from, to);
                        let filter = self.expression(&tokens, to, value_end);
                        format!("{} ({walked})|{ITERABLE} {filter}", &src[name_end..from])
                    }
                    None => self.expression(&tokens, name_end, value_end),
                };
                self.push(&[head, name, &rest]);
                for bound in tokens.bound(name, src) {
                    self.push(&[" %}{% set ", bound, " = (", bound, ")|", KEEP, " "]);
                }
                self.push(&[tail]);
            }
            _ => {
                let rest = self.expression(&tokens, name_end, value_end);
                self.push(&[head, name, &rest, tail]);
            }
        }
        end
    }

    /// Copies what cannot be read as it is.
    fn rest(&mut self, start: usize) -> usize {
        self.push(&[&self.src[start..]]);
        self.src.len()
    }

    /// Where the `{% endraw %}` after `from` ends, or the end of the source.
    fn end_of_raw(&self, from: usize) -> usize {
        let mut at = from;
        while let Some(open) = self.find("{%", at) {
            let name = self.src[after_sign(self.src, open + 2)..].trim_start();
            if name.starts_with("endraw") {
                return self.find("%}", open).map_or(self.src.len(), |end| end + 2);
            }
            at = open + 2;
        }
        self.src.len()
    }

    /// Reads tokens from `from` to the tag's end mark, noting literals. `None`: the tag does not end, or its
    /// brackets do not match or are too deep.
    fn tokens(&mut self, from: usize, close: &[u8; 2]) -> Option<Tokens> {
        let bytes = self.src.as_bytes();
        let mut list = Vec::new();
        let mut depth = 0usize;
        let mut at = from;
        while at < bytes.len() {
            let start = at;
            let pair = bytes.get(at..at + 2).unwrap_or_default();
            let kind = match bytes[at] {
                quote @ (b'\'' | b'"') => {
                    let end = string_end(bytes, at + 1, quote)?;
                    self.literals.push(unescape(&self.src[at + 1..end]));
                    at = end;
                    Kind::Operand
                }
                _ if depth == 0 && pair == close => {
                    self.longest = self.longest.max(list.len());
                    return Some(Tokens { list, close: at });
                }
                b'(' | b'[' | b'{' => {
                    depth += 1;
                    if depth > MAX_BRACKETS {
                        return None;
                    }
                    Kind::Open
                }
                b')' | b']' | b'}' => {
                    depth = depth.checked_sub(1)?;
                    Kind::Close
                }
                b'=' | b'!' | b'<' | b'>' if bytes.get(at + 1) == Some(&b'=') => {
                    at += 1;
                    Kind::Boundary
                }
                b'=' => Kind::Assign,
                b'<' | b'>' | b',' | b':' => Kind::Boundary,
                b'*' | b'/' | b'%' => Kind::Operator,
                b'+' => Kind::Plus,
                b'-' => Kind::Minus,
                b'~' => Kind::Tilde,
                b if b.is_ascii_whitespace() => {
                    at += 1;
                    continue;
                }
                b if b.is_ascii_alphabetic() || b == b'_' => {
                    while bytes
                        .get(at + 1)
                        .is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
                    {
                        at += 1;
                    }
                    word(
                        &self.src[start..=at],
                        list.last().map(|t: &Token| &self.src[t.start..t.end]),
                    )
                }
                _ => Kind::Operand,
            };
            at += 1;
            list.push(Token {
                kind,
                start,
                end: at,
            });
        }
        None
    }

    /// The source from `from` to `to` with its `~` and `+` rewritten.
    fn expression(&self, tokens: &Tokens, from: usize, to: usize) -> String {
        let first = tokens.list.partition_point(|t| t.start < from);
        let mut rewriter = Rewriter {
            src: self.src,
            tokens: &tokens.list,
            next: first,
            safe: self.safe,
        };
        rewriter.group(from, to)
    }
}

/// Behind the whitespace sign of a tag that opens before `at`.
fn after_sign(src: &str, at: usize) -> usize {
    at + usize::from(src[at..].starts_with(['-', '+']))
}

/// Before the whitespace sign of a tag that closes at `close`.
fn before_sign(src: &str, from: usize, close: usize) -> usize {
    close - usize::from(close > from && src[..close].ends_with(['-', '+']))
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
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

#[derive(Debug, Clone, Copy)]
struct Token {
    kind: Kind,
    start: usize,
    end: usize,
}

/// The tokens of one tag, and where its end mark stands.
struct Tokens {
    list: Vec<Token>,
    close: usize,
}

impl Tokens {
    /// The `=` of a `{% set target = value %}`, if a value follows.
    fn assignment(&self) -> Option<usize> {
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
    fn bound<'s>(&self, tag: &str, src: &'s str) -> Vec<&'s str> {
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

    /// Whether a token stands behind the bracket or the comma that opens a parameter.
    fn starts_parameter(&self, at: usize) -> bool {
        at.checked_sub(1).is_some_and(|before| {
            let token = self.list[before];
            token.kind == Kind::Open || token.kind == Kind::Boundary && token.end - token.start == 1
        })
    }

    /// What a `{% for target in walked if condition recursive %}` walks, from behind its `in`.
    fn walked(&self, src: &str) -> Option<(usize, usize)> {
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
        from.filter(|&from| from < last)
            .map(|from| (from, self.close))
    }
}

/// Rewrites one bracket's content at a time, from the inside out.
struct Rewriter<'a> {
    src: &'a str,
    tokens: &'a [Token],
    next: usize,
    safe: bool,
}

/// The parts of an expression on their way: the sums between two boundaries, the chains of `~` between two `+`.
#[derive(Default)]
struct Parts {
    done: String,
    /// Finished operands of `+` and `-`, each with the operator before it.
    sum: Vec<(String, char)>,
    /// Finished operands of `~`.
    chain: Vec<String>,
    /// The operand that is being read.
    operand: String,
    /// Whether an operator may stand here, not a sign.
    has_value: bool,
    sign: char,
}

impl Rewriter<'_> {
    /// Whether the `*` at `at` may repeat a list that a bracket before it has made: repeated lists are made on
    /// demand, and lists of them would be larger than anything fuel meters.
    fn repeats(&self, at: usize) -> bool {
        let star = |i: usize| {
            self.tokens
                .get(i)
                .is_some_and(|t| &self.src[t.start..t.end] == "*")
        };
        at > 0 && self.tokens[at - 1].kind == Kind::Close && !star(at + 1)
    }

    /// The content of a bracket, or of the whole tag, that ends at `to`.
    fn group(&mut self, from: usize, to: usize) -> String {
        let mut parts = Parts::default();
        let mut copied = from;
        while let Some(&token) = self.tokens.get(self.next).filter(|t| t.start < to) {
            if token.kind == Kind::Close {
                break;
            }
            self.next += 1;
            parts.operand.push_str(&self.src[copied..token.start]);
            copied = token.end;
            let text = &self.src[token.start..token.end];
            match token.kind {
                Kind::Open => {
                    let repeated = parts.operand.trim_end().ends_with('*') && text == "[";
                    parts.operand.push_str(text);
                    parts.operand.push_str(&self.group(token.end, to));
                    copied = self.tokens.get(self.next).map_or(to, |close| close.start);
                    if let Some(close) = self.tokens.get(self.next).filter(|t| t.start < to) {
                        parts.operand.push_str(&self.src[close.start..close.end]);
                        copied = close.end;
                        self.next += 1;
                    }
                    if repeated
                        && !self
                            .tokens
                            .get(self.next)
                            .is_some_and(|t| self.src[t.start..].starts_with(['.', '[', '(', '|']))
                    {
                        parts.operand.push_str(&format!("|{KEEP}"));
                    }
                    parts.has_value = true;
                }
                Kind::Boundary | Kind::Assign => {
                    parts.end_sum(self.safe);
                    parts.done.push_str(text);
                }
                Kind::Plus | Kind::Minus if parts.has_value => {
                    parts.end_chain();
                    parts.sign = if token.kind == Kind::Plus { '+' } else { '-' };
                }
                Kind::Tilde => parts.end_operand(),
                Kind::Operator if text == "*" && self.repeats(self.next - 1) => {
                    parts.operand.push_str(&format!("|{KEEP} *"));
                    parts.has_value = false;
                }
                kind => {
                    parts.operand.push_str(text);
                    parts.has_value = kind == Kind::Operand;
                }
            }
        }
        let end = self.tokens.get(self.next).map_or(to, |t| t.start.min(to));
        parts.operand.push_str(&self.src[copied..end]);
        parts.end_sum(self.safe);
        parts.done
    }
}

impl Parts {
    fn end_operand(&mut self) {
        self.chain.push(std::mem::take(&mut self.operand));
        self.has_value = false;
    }

    /// Ends a chain of `~`: an operand of a sum.
    fn end_chain(&mut self) {
        let sign = std::mem::replace(&mut self.sign, '+');
        self.end_operand();
        let chain = std::mem::take(&mut self.chain);
        self.sum.push((call(CONCAT, chain), sign));
    }

    /// Ends a sum, and with it everything that binds tighter than a boundary.
    fn end_sum(&mut self, safe: bool) {
        self.end_chain();
        let sum = std::mem::take(&mut self.sum);
        self.sign = '+';
        if safe && sum.iter().all(|(_, sign)| *sign != '-') {
            self.done
                .push_str(&call(ADD, sum.into_iter().map(|(text, _)| text).collect()));
            return;
        }
        for (i, (text, sign)) in sum.iter().enumerate() {
            if i > 0 {
                self.done.push(*sign);
            }
            self.done.push_str(text);
        }
    }
}

/// A call of `function` with the operands of a chain; a single operand as it is.
fn call(function: &str, mut operands: Vec<String>) -> String {
    match operands.len() {
        1 => operands.pop().unwrap_or_default(),
        _ => format!(" {function}({})", operands.join(",")),
    }
}

/// Where the string that began before `from` closes.
fn string_end(bytes: &[u8], from: usize, quote: u8) -> Option<usize> {
    let mut at = from;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b if b == quote => return Some(at),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(cases: &[(&str, &str)]) {
        for (from, to) in cases {
            let squeeze = |s: &str| s.replace(' ', "");
            assert_eq!(squeeze(&prepare(from).unwrap().text), squeeze(to), "{from}");
        }
    }

    #[test]
    fn generation_tags_become_a_scope_with_the_same_whitespace_control() {
        for (from, to) in [
            (
                "a{% generation %}b{% endgeneration %}c",
                "a{% with %}b{% endwith %}c",
            ),
            (
                "a{%- generation -%}b{%+endgeneration+%}c",
                "a{%- with -%}b{%+endwith+%}c",
            ),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            ("{# {% generation %} #}x", "{# {% generation %} #}x"),
            (
                "{% raw %}{% generation %}{% endraw %}x",
                "{% raw %}{% generation %}{% endraw %}x",
            ),
            (
                "{% if generation %}x{% endif %}",
                "{% if generation %}x{% endif %}",
            ),
        ] {
            assert_eq!(prepare(from).unwrap().text, to, "{from}");
        }
    }

    #[test]
    fn stored_values_pass_a_filter() {
        rewritten(&[
            ("{% set a = b %}", "{% set a = (b)|puna_keep %}"),
            (
                "{%- set n.a = '=%}' -%}",
                "{%- set n.a = ('=%}')|puna_keep_attribute -%}",
            ),
            ("{% set a %}x{% endset %}", "{% set a %}x{% endset %}"),
            ("{% set a, b = 1, 2 %}", "{% set a, b = (1, 2)|puna_keep %}"),
            (
                "{% set a={'b': {}} %}",
                "{% set a= ({'b': {}})|puna_keep %}",
            ),
            ("{% set a = ", "{% set a = "),
            ("{% set a = -%}", "{% set a = -%}"),
        ]);
    }

    #[test]
    fn names_that_tags_bind_are_bounded() {
        let set = |n: &str| format!("{{%set{n}=({n})|puna_keep");
        for (from, to) in [
            (
                "{%- for x in a ~ b if c ~ d recursive -%}",
                format!(
                    "{{%- for x in (puna_concat(a,b))|puna_iterable if puna_concat(c,d) recursive %}}{} -%}}",
                    set("x")
                ),
            ),
            (
                "{% for (a, b), c in [d if e else f] %}",
                format!(
                    "{{% for (a, b), c in ([d if e else f])|puna_iterable %}}{} %}}{} %}}{} %}}",
                    set("a"),
                    set("b"),
                    set("c")
                ),
            ),
            (
                "{% macro m(a, b=[c, 1], d='x,y') +%}",
                format!(
                    "{{% macro m(a, b=[c, 1], d='x,y') %}}{} %}}{} %}}{} +%}}",
                    set("a"),
                    set("b"),
                    set("d")
                ),
            ),
            (
                "{% call(x) m(y, z) %}",
                format!("{{% call(x) m(y, z) %}}{} %}}", set("x")),
            ),
            ("{% call m(y) %}", "{% call m(y) %}".to_string()),
            (
                "{% with a = [b, c], d = e %}",
                format!(
                    "{{% with a = [b, c], d = e %}}{} %}}{} %}}",
                    set("a"),
                    set("d")
                ),
            ),
            (
                "{% for x in %}",
                format!("{{% for x in %}}{} %}}", set("x")),
            ),
        ] {
            rewritten(&[(from, &to)]);
        }
    }

    #[test]
    fn tags_that_are_too_long_are_refused() {
        assert!(prepare(&format!("{{{{ 1{} }}}}", "+1".repeat(3000))).is_err());
        assert!(prepare(&"{% elif 1 %}".repeat(2000)).is_err());
    }

    #[test]
    fn concatenations_become_calls_with_their_precedence() {
        rewritten(&[
            ("{{ a ~ b }}", "{{ puna_concat(a, b) }}"),
            (
                "{{- a ~ b.c|upper ~ d[0] -}}",
                "{{- puna_concat(a, b.c|upper, d[0]) -}}",
            ),
            (
                "{{ a + b ~ c * 2 - d ~ -e }}",
                "{{ a + puna_concat(b, c * 2) - puna_concat(d, -e) }}",
            ),
            (
                "{{ f(x ~ 'a~b', k=[y ~ z]) ~ w }}",
                "{{ puna_concat(f(puna_concat(x,'a~b'), k=[puna_concat(y,z)]), w) }}",
            ),
            (
                "{% if a ~ b == c ~ d and not e ~ f %}",
                "{% if puna_concat(a,b) == puna_concat(c,d) and not puna_concat(e,f) %}",
            ),
            (
                "{% if a ~ b is not none %}",
                "{% if puna_concat(a, b is not none) %}",
            ),
            ("{% if x in a ~ b %}", "{% if x in puna_concat(a,b) %}"),
            (
                "{{ a ~ b if c else d ~ e }}",
                "{{ puna_concat(a,b) if c else puna_concat(d,e) }}",
            ),
            (
                "{{ {'a': b ~ c, 'd': -1} }}",
                "{{ {'a': puna_concat(b,c), 'd': -1} }}",
            ),
            ("{{ a + b }}{{ a - b }}", "{{ a + b }}{{ a - b }}"),
            (
                "{{ [0] * 3 * n ** 2 }}{{ (2) ** 3 }}",
                "{{ [0]|puna_keep * 3 * n ** 2 }}{{ (2) ** 3 }}",
            ),
            (
                "{{ 3 * [x * 2] + 2 * [1][0] }}",
                "{{ 3 * [x * 2]|puna_keep + 2 * [1][0] }}",
            ),
            ("{{ f(*a, **b) }}", "{{ f(*a, **b) }}"),
        ]);
    }

    #[test]
    fn sums_become_calls_where_strings_may_be_safe() {
        rewritten(&[
            (
                "{{ 'a'|safe + b ~ c + (d + e) }}",
                "{{ puna_add('a'|safe, puna_concat(b,c), (puna_add(d,e))) }}",
            ),
            (
                "{{ 'a' | e }}{{ b - c + d }}",
                "{{ 'a' | e }}{{ b - c + d }}",
            ),
            (
                "{{ 'a' | e }}{% if x + y > z %}",
                "{{ 'a' | e }}{% if puna_add(x,y) > z %}",
            ),
        ]);
    }

    #[test]
    fn what_cannot_be_read_stays_as_it_is() {
        for text in [
            "{{ a ~ ) }}",
            "{{ (a ~ b }}",
            "{% if 'a ~ b %}",
            "{{",
            "{%",
            "{% set",
            "{#",
            "{{ }",
            "x{",
            "{%-",
            "{{-",
        ] {
            assert_eq!(prepare(text).unwrap().text, text);
        }
    }

    #[test]
    fn lines_keep_their_numbers() {
        let text = "{{ a\n~ b }}\n{% set\nx\n=\n1 + \n2 %}\r\n{{ 'x'|safe\n+ y }}\rz";
        assert_eq!(prepare(text).unwrap().text.matches('\n').count(), 9);
    }

    #[test]
    fn literals_are_listed_once_with_their_escapes_resolved() {
        let source = prepare(
            "{{ 'a\\n' + \"b\" }}'no'{% if x == 'b' %}{% endif %}{# 'c' #}{{ '\\u0041\\q' }}",
        )
        .unwrap();
        assert_eq!(source.literals, ["A\\q", "a\n", "b"]);
    }
}
