//! What a chat template expects of Python: how values print, and the filters and methods that the engine lacks
//! or answers differently. Chat templates are written for Jinja2, which is Python underneath: `{{ 1e16 }}` is
//! `1e+16`, a dict prints with single quotes, `"x"|int` is 0.
//!
//! It knows values of the template engine; it knows nothing of messages or tokens. Whatever walks a value is
//! metered: the engine charges for what a function returns, not for how long it took to make.

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use std::borrow::Cow;
use unicode_general_category::{GeneralCategory, get_general_category};

/// Values nested deeper than this are refused where they are printed or stored.
const MAX_DEPTH: usize = 128;
/// The name, not spellable in a template, under which a rendering holds its marks.
pub(crate) const MARKS: &str = " marks";

/// Characters that stand in for others during one rendering (see `chat.rs`): printed raw wherever Python would
/// escape a character that is not printable.
pub(crate) struct Marks(Option<Value>);

impl Marks {
    pub(crate) fn of(state: &State) -> Marks {
        Marks(state.lookup(MARKS))
    }

    pub(crate) fn contains(&self, c: char) -> bool {
        c > '\u{d7ff}'
            && self
                .0
                .as_ref()
                .and_then(Value::as_str)
                .is_some_and(|marks| marks.contains(c))
    }
}

/// Charges a rendering's fuel for bytes written while a value is walked.
pub(crate) struct Meter<'a> {
    charge: &'a dyn Fn(u64) -> Result<(), Error>,
    bytes: usize,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(charge: &'a dyn Fn(u64) -> Result<(), Error>) -> Meter<'a> {
        Meter { charge, bytes: 0 }
    }

    pub(crate) fn add(&mut self, bytes: usize) -> Result<(), Error> {
        self.bytes += bytes;
        if self.bytes >= 1024 {
            (self.charge)(self.bytes as u64 / 16)?;
            self.bytes = 0;
        }
        Ok(())
    }
}

fn invalid(what: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Python's `repr` of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
pub(crate) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_string();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_string();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(e) if value != 0.0 && !(-4..16).contains(&e) => {
            format!("{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs())
        }
        _ => {
            let mut fixed = value.to_string();
            if !fixed.contains('.') {
                fixed.push_str(".0");
            }
            fixed
        }
    }
}

/// Python's `str(value)`: what `{{ value }}` prints.
pub(crate) fn text<'v>(state: &State, value: &'v Value) -> Result<Cow<'v, str>, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Cow::Borrowed(text));
    }
    if value.is_undefined() {
        return Ok(Cow::Borrowed(""));
    }
    repr(state, value).map(Cow::Owned)
}

/// Python's `repr(value)`: how it stands inside a list.
pub(crate) fn repr(state: &State, value: &Value) -> Result<String, Error> {
    let marks = Marks::of(state);
    let charge = |fuel| state.consume_fuel(fuel);
    let mut printer = Printer {
        out: String::new(),
        marks: &marks,
        meter: Meter::new(&charge),
    };
    printer.repr(value, 0)?;
    Ok(printer.out)
}

struct Printer<'a> {
    out: String,
    marks: &'a Marks,
    meter: Meter<'a>,
}

impl Printer<'_> {
    fn repr(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid(format!(
                "a value nested deeper than {MAX_DEPTH} cannot be printed"
            )));
        }
        let before = self.out.len();
        match value.kind() {
            ValueKind::Invalid => return Err(invalid(value.to_string())),
            ValueKind::Undefined => self.out.push_str("Undefined"),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Number if !value.is_integer() => {
                self.out
                    .push_str(&float(f64::try_from(value.clone()).unwrap_or(f64::NAN)));
            }
            ValueKind::Seq | ValueKind::Iterable
                if value.downcast_object_ref::<Tuple>().is_some() =>
            {
                self.items(value, depth, '(', ')')?;
            }
            ValueKind::Seq | ValueKind::Iterable => self.items(value, depth, '[', ']')?,
            ValueKind::Map => self.map(value, depth)?,
            _ => self.out.push_str(&value.to_string()),
        }
        self.meter.add(self.out.len() - before)
    }

    fn items(&mut self, value: &Value, depth: usize, open: char, close: char) -> Result<(), Error> {
        let mut count = 0;
        self.out.push(open);
        for item in value.try_iter()?.checked() {
            if count > 0 {
                self.out.push_str(", ");
            }
            count += 1;
            self.repr(&item?, depth + 1)?;
            self.meter.add(2)?;
        }
        if open == '(' && count == 1 {
            self.out.push(',');
        }
        self.out.push(close);
        Ok(())
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('{');
        for (i, key) in value.try_iter()?.checked().enumerate() {
            let key = key?;
            if i > 0 {
                self.out.push_str(", ");
            }
            let item = value.get_item(&key)?;
            self.repr(&key, depth + 1)?;
            self.out.push_str(": ");
            self.repr(&item, depth + 1)?;
            self.meter.add(4)?;
        }
        self.out.push('}');
        Ok(())
    }

    fn string(&mut self, text: &str) {
        let quote = if text.contains('\'') && !text.contains('"') {
            '"'
        } else {
            '\''
        };
        self.out.push(quote);
        for c in text.chars() {
            match c {
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                c if c == quote => {
                    self.out.push('\\');
                    self.out.push(c);
                }
                c if printable(c) || self.marks.contains(c) => self.out.push(c),
                c => self.out.push_str(&match c as u32 {
                    n @ ..=0xff => format!("\\x{n:02x}"),
                    n @ ..=0xffff => format!("\\u{n:04x}"),
                    n => format!("\\U{n:08x}"),
                }),
            }
        }
        self.out.push(quote);
    }
}

/// Python's `str.isprintable` of one character.
fn printable(c: char) -> bool {
    use GeneralCategory as G;
    matches!(c, ' '..='~')
        || c > '~'
            && !matches!(
                get_general_category(c),
                G::Control
                    | G::Format
                    | G::Surrogate
                    | G::PrivateUse
                    | G::Unassigned
                    | G::LineSeparator
                    | G::ParagraphSeparator
                    | G::SpaceSeparator
            )
}

/// Python's `str.isspace` of one character: Unicode's white space and the four information separators.
pub(crate) fn space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// `str.strip` and its one-sided forms; `chars` are the characters to take away, white space by default.
pub(crate) fn strip<'t>(text: &'t str, chars: Option<&str>, left: bool, right: bool) -> &'t str {
    let drop = |c: char| chars.map_or_else(|| space(c), |set| set.contains(c));
    let text = if left {
        text.trim_start_matches(drop)
    } else {
        text
    };
    if right {
        text.trim_end_matches(drop)
    } else {
        text
    }
}
