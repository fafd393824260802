//! Jinja2's `wordwrap` and `striptags`.
//!
//! `wordwrap` is Python's `textwrap.wrap` for each line: the text is cut into chunks (runs of white space, words, parts
//! of hyphenated words, dashes between words), and lines take as many chunks as they hold. It knows nothing of markup;
//! `striptags` knows comments, tags and character references, nothing of what they mean.

use crate::filters::invalid;
use crate::layout::{or_named, word_char};
use crate::python::{Meter, space, text};
use minijinja::value::{Kwargs, Rest, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, State, Value};
use std::collections::HashMap;
use std::sync::LazyLock;
use unicode_general_category::{GeneralCategory, get_general_category};

pub(crate) fn install(env: &mut Environment<'static>) {
    env.add_filter("wordwrap", word_wrap);
    env.add_filter("striptags", |state: &State, value: &Value| {
        let charge = |fuel| state.consume_fuel(fuel);
        strip_tags(&text(state, value)?, &mut Meter::new(&charge))
    });
}

/// `value|wordwrap(width=79, break_long_words=True, wrapstring="\n", break_on_hyphens=True)`.
fn word_wrap(state: &State, value: &Value, options: Rest<ValueOrKwargs>) -> Result<String, Error> {
    type Options = (
        Option<i64>,
        Option<bool>,
        Option<Value>,
        Option<bool>,
        Kwargs,
    );
    let given = options.into_values();
    let (width, long, mark, hyphens, options): Options = from_args(&given)?;
    let width = or_named(width, &options, "width")?.unwrap_or(79);
    let long = or_named(long, &options, "break_long_words")?.unwrap_or(true);
    let mark = or_named(mark, &options, "wrapstring")?.filter(|m| !m.is_none());
    let hyphens = or_named(hyphens, &options, "break_on_hyphens")?.unwrap_or(true);
    options.assert_all_used()?;
    let source = value
        .as_str()
        .ok_or_else(|| invalid("wordwrap: the value must be a string"))?;
    let mark = match &mark {
        Some(mark) => text(state, mark)?.into_owned(),
        None => "\n".to_owned(),
    };
    let charge = |fuel| state.consume_fuel(fuel);
    let mut meter = Meter::new(&charge);
    let mut out = String::new();
    for (i, line) in lines(source).into_iter().enumerate() {
        if i > 0 {
            out.push_str(&mark);
        }
        let width = usize::try_from(width).ok().filter(|w| *w > 0);
        let width = width.ok_or_else(|| invalid("wordwrap: the width must be above 0"))?;
        meter.add(4 * line.len())?;
        let line: Vec<char> = line.chars().collect();
        for (j, line) in wrapped(&line, width, long, hyphens).iter().enumerate() {
            if j > 0 {
                out.push_str(&mark);
            }
            out.extend(line.iter());
            meter.add(line.len() + mark.len() + 8)?;
        }
        meter.add(mark.len() + 8)?;
    }
    Ok(out)
}

/// Python's `str.splitlines`.
fn lines(text: &str) -> Vec<&str> {
    let ends = |c: char| {
        matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e')
            || matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some(at) = rest.find(ends) else {
            lines.push(rest);
            break;
        };
        lines.push(&rest[..at]);
        let crlf = rest[at..].starts_with("\r\n");
        let length = rest[at..].chars().next().map_or(1, char::len_utf8);
        rest = &rest[at + if crlf { 2 } else { length }..];
    }
    lines
}

/// The lines of `textwrap.wrap`, which drops white space at their ends.
fn wrapped(text: &[char], width: usize, long: bool, hyphens: bool) -> Vec<Vec<char>> {
    let blank = |chunk: &[char]| chunk.iter().all(|&c| space(c));
    let mut chunks = chunks(text, hyphens);
    chunks.reverse();
    let mut lines: Vec<Vec<char>> = Vec::new();
    while let Some(first) = chunks.last() {
        if blank(first) && !lines.is_empty() {
            chunks.pop();
        }
        let mut line: Vec<&[char]> = Vec::new();
        let mut len = 0;
        while let Some(chunk) = chunks.last().filter(|c| len + c.len() <= width) {
            len += chunk.len();
            line.push(chunk);
            chunks.pop();
        }
        if let Some(chunk) = chunks.last_mut().filter(|c| c.len() > width) {
            if long {
                let room = width - len;
                let hyphen = chunk[..room].iter().rposition(|&c| c == '-');
                let hyphen = hyphen.filter(|&at| hyphens && chunk[..at].iter().any(|&c| c != '-'));
                let (head, tail) = chunk.split_at(hyphen.map_or(room, |at| at + 1));
                line.push(head);
                *chunk = tail;
            } else if line.is_empty() {
                line.push(chunk);
                chunks.pop();
            }
        }
        if line.last().is_some_and(|last| blank(last)) {
            line.pop();
        }
        if !line.is_empty() {
            lines.push(line.concat());
        }
    }
    lines
}

/// What a line may end behind.
fn chunks(text: &[char], hyphens: bool) -> Vec<&[char]> {
    let white = |c: char| matches!(c, '\t' | '\n' | '\x0b' | '\x0c' | '\r' | ' ');
    let mut chunks = Vec::new();
    let mut from = 0;
    while from < text.len() {
        let run = |inside: &dyn Fn(char) -> bool| {
            let outside = text[from..].iter().position(|&c| !inside(c));
            outside.map_or(text.len(), |n| from + n)
        };
        let end = if white(text[from]) {
            run(&white)
        } else if !hyphens {
            run(&|c| !white(c))
        } else if dashes(text, from) {
            run(&|c| c == '-')
        } else {
            let ends = |&at: &usize| ends_word(text, at, &white);
            (from + 1..text.len()).find(ends).unwrap_or(text.len())
        };
        // A hyphen belongs to the part before it.
        let end = end + usize::from(hyphens && !white(text[from]) && hyphen(text, end, from));
        chunks.push(&text[from..end]);
        from = end;
    }
    chunks
}

/// Whether a word ends before `at`: with the text, before white space, at a hyphen, or before dashes.
fn ends_word(text: &[char], at: usize, white: &dyn Fn(char) -> bool) -> bool {
    white(text[at]) || hyphen(text, at, 0) || dashes(text, at)
}

/// Whether two or more dashes stand here, between words.
fn dashes(text: &[char], at: usize) -> bool {
    let punctuation = |c: char| word_char(c) || "!\"'&.,?".contains(c);
    if at == 0 || text[at] != '-' || !punctuation(text[at - 1]) {
        return false;
    }
    let count = text[at..].iter().take_while(|&&c| c == '-').count();
    count > 1 && text.get(at + count).is_some_and(|&c| word_char(c))
}

/// Whether a hyphen stands here, within a word that begins before it: between two letters and two letters, of which
/// another hyphen may keep one apart.
fn hyphen(text: &[char], at: usize, from: usize) -> bool {
    let letter = |i: Option<usize>| i.and_then(|i| text.get(i)).is_some_and(|&c| is_letter(c));
    let dash = |i: Option<usize>| i.and_then(|i| text.get(i)) == Some(&'-');
    let back = |n: usize| at.checked_sub(n);
    let punctuation = |c: &char| word_char(*c) || "!\"'&.,?".contains(*c);
    if at <= from || !dash(Some(at)) {
        return false;
    }
    let before = letter(back(2)) && letter(back(1))
        || letter(back(3)) && dash(back(2)) && text.get(at - 1).is_some_and(punctuation);
    let after = letter(Some(at + 1))
        && (letter(Some(at + 2)) || dash(Some(at + 2)) && letter(Some(at + 3)));
    before && after
}

fn is_letter(c: char) -> bool {
    word_char(c) && get_general_category(c) != GeneralCategory::DecimalNumber
}

/// The text without comments and tags, its white space made single spaces, its character references resolved.
fn strip_tags(text: &str, meter: &mut Meter) -> Result<String, Error> {
    meter.add(text.len())?;
    meter.add(16 * text.bytes().filter(|b| *b == b'&').count())?;
    let (mut kept, mut from) = (String::new(), 0);
    while let Some(start) = text[from..].find('<').map(|i| from + i) {
        let (mark, skip) = match text[start..].starts_with("<!--") {
            true => ("-->", 4),
            false => (">", 0),
        };
        let end = text[start + skip..].find(mark);
        let Some(end) = end.map(|i| start + skip + i + mark.len()) else {
            break;
        };
        kept.push_str(&text[from..start]);
        from = end;
    }
    kept.push_str(&text[from..]);
    let words: Vec<&str> = kept.split(space).filter(|w| !w.is_empty()).collect();
    unescape(&words.join(" "))
}

/// HTML's character references of U+00A0 to U+00FF, in this order; they need no semicolon.
const LATIN: &str = "nbsp iexcl cent pound curren yen brvbar sect uml copy ordf laquo not shy reg macr deg plusmn sup2 \
    sup3 acute micro para middot cedil sup1 ordm raquo frac14 frac12 frac34 iquest Agrave Aacute Acirc Atilde Auml \
    Aring AElig Ccedil Egrave Eacute Ecirc Euml Igrave Iacute Icirc Iuml ETH Ntilde Ograve Oacute Ocirc Otilde Ouml \
    times Oslash Ugrave Uacute Ucirc Uuml Yacute THORN szlig agrave aacute acirc atilde auml aring aelig ccedil egrave \
    eacute ecirc euml igrave iacute icirc iuml eth ntilde ograve oacute ocirc otilde ouml divide oslash ugrave uacute \
    ucirc uuml yacute thorn yuml";

/// The other references that need no semicolon.
const PLAIN: [(&str, char); 10] = [
    ("amp", '&'),
    ("AMP", '&'),
    ("lt", '<'),
    ("LT", '<'),
    ("gt", '>'),
    ("GT", '>'),
    ("quot", '"'),
    ("QUOT", '"'),
    ("COPY", '\u{a9}'),
    ("REG", '\u{ae}'),
];

/// Letters of the longest of these names.
const LONGEST: usize = 6;

/// Python's `html.unescape`. Of the references by name it knows those that need no semicolon, and `&apos;`; another
/// name that ends in a semicolon is refused, for it may be one of HTML's two thousand.
fn unescape(text: &str) -> Result<String, Error> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        let taken = match tail.strip_prefix('#') {
            Some(number) => numbered(number, &mut out).map_or(0, |n| n + 1),
            None => named(tail, &mut out)?,
        };
        if taken == 0 {
            out.push('&');
        }
        rest = &tail[taken..];
    }
    out.push_str(rest);
    Ok(out)
}

/// `123;` or `x7b;`: how much of it was read, or nothing.
fn numbered(text: &str, out: &mut String) -> Option<usize> {
    let hex = text.starts_with(['x', 'X']);
    let digits = &text[usize::from(hex)..];
    let radix = if hex { 16 } else { 10 };
    let end = digits.find(|c: char| !c.is_digit(radix));
    let end = end.unwrap_or(digits.len());
    if end == 0 {
        return None;
    }
    // Beyond every character: what follows is the same for all.
    let code = u32::from_str_radix(&digits[..end], radix).unwrap_or(u32::MAX);
    match code {
        0 => out.push('\u{fffd}'),
        0x0d => out.push('\r'),
        // Windows' code page 1252, where it has characters.
        0x80..=0x9f => out.push(WINDOWS[code as usize - 0x80]),
        1..=8 | 0x0b | 0x0e..=0x1f | 0x7f | 0xfdd0..=0xfdef => {}
        _ if code & 0xfffe == 0xfffe && code <= 0x10_ffff => {}
        _ => out.push(char::from_u32(code).unwrap_or('\u{fffd}')),
    }
    let semicolon = digits[end..].starts_with(';');
    Some(usize::from(hex) + end + usize::from(semicolon))
}

/// What HTML takes the references of 0x80 to 0x9F for.
const WINDOWS: [char; 32] = [
    '\u{20ac}', '\u{81}', '\u{201a}', '\u{192}', '\u{201e}', '\u{2026}', '\u{2020}', '\u{2021}',
    '\u{2c6}', '\u{2030}', '\u{160}', '\u{2039}', '\u{152}', '\u{8d}', '\u{17d}', '\u{8f}',
    '\u{90}', '\u{2018}', '\u{2019}', '\u{201c}', '\u{201d}', '\u{2022}', '\u{2013}', '\u{2014}',
    '\u{2dc}', '\u{2122}', '\u{161}', '\u{203a}', '\u{153}', '\u{9d}', '\u{17e}', '\u{178}',
];

/// A reference by name: the longest that is known; how much of it was read, 0 if it is none.
fn named(text: &str, out: &mut String) -> Result<usize, Error> {
    static KNOWN: LazyLock<HashMap<&str, char>> = LazyLock::new(|| {
        let latin = LATIN.split_whitespace().zip('\u{a0}'..='\u{ff}');
        PLAIN.into_iter().chain(latin).collect()
    });
    if !text.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Ok(0);
    }
    let end = text.find(|c: char| !c.is_ascii_alphanumeric());
    let end = end.unwrap_or(text.len());
    let (name, semicolon) = (&text[..end], text[end..].starts_with(';'));
    if semicolon && name == "apos" {
        out.push('\'');
        return Ok(end + 1);
    }
    let mut longest = (1..=name.len().min(LONGEST)).rev();
    let found = longest.find_map(|len| KNOWN.get_key_value(&name[..len]));
    let whole = found.is_some_and(|(known, _)| *known == name);
    if semicolon && !whole {
        return Err(invalid(format!("striptags: &{name}; is not implemented")));
    }
    Ok(found.map_or(0, |(known, c)| {
        out.push(*c);
        known.len() + usize::from(semicolon && whole)
    }))
}
