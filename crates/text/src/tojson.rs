//! `tojson` as transformers gives it to chat templates: Python's `json.dumps`, not Jinja's HTML-safe one.
//!
//! Keys stay in their order, non-ASCII text stays as it is unless `ensure_ascii` asks otherwise, floats look as
//! Python prints them. It knows values of the template engine and how Python spells them, nothing of messages.

use crate::python::{self, Marks, Meter};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Nesting beyond this is refused: no schema or message is that deep, a hostile template may be.
const MAX_DEPTH: usize = 128;

/// The filter: `value|tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(crate) fn tojson(
    state: &State,
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let named = |name: &str| options.get::<Option<Value>>(name);
    let or_named = |given: Option<Value>, name: &str| match given {
        Some(value) => Ok(Some(value)),
        None => named(name),
    };
    let ensure_ascii = or_named(ensure_ascii, "ensure_ascii")?.is_some_and(|v| v.is_true());
    let indent = or_named(indent, "indent")?.filter(|v| !v.is_none() && !v.is_undefined());
    let separators = named("separators")?.filter(|v| !v.is_none() && !v.is_undefined());
    let sort_keys = named("sort_keys")?.is_some_and(|v| v.is_true());
    options.assert_all_used()?;

    let indent = indent.map(|v| indent_text(&v)).transpose()?;
    let (item, key) = match &separators {
        Some(pair) => separator_pair(pair)?,
        None if indent.is_some() => (",".to_string(), ": ".to_string()),
        None => (", ".to_string(), ": ".to_string()),
    };
    let marks = Marks::of(state);
    let charge = |fuel| state.consume_fuel(fuel);
    let mut writer = Writer {
        out: String::new(),
        style: Style {
            ensure_ascii,
            indent,
            item,
            key,
            sort_keys,
        },
        marks: &marks,
        meter: Meter::new(&charge),
    };
    writer.value(value, 0)?;
    Ok(writer.out)
}

fn indent_text(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_string());
    }
    let width = value
        .as_i64()
        .filter(|_| value.is_integer())
        .or_else(|| (value.kind() == ValueKind::Bool).then(|| i64::from(value.is_true())))
        .ok_or_else(|| invalid("tojson: indent must be an integer or a string"))?;
    // Python multiplies a space by the width: what is negative gives none.
    match usize::try_from(width).unwrap_or(0) {
        n if n <= 1024 => Ok(" ".repeat(n)),
        _ => Err(invalid("tojson: indent is larger than 1024")),
    }
}

fn separator_pair(value: &Value) -> Result<(String, String), Error> {
    let bad = || invalid("tojson: separators must be two strings");
    let mut items = value.try_iter().map_err(|_| bad())?;
    let mut next = || {
        items
            .next()
            .and_then(|v| v.as_str().map(String::from))
            .ok_or_else(bad)
    };
    let pair = (next()?, next()?);
    if items.next().is_some() {
        Err(bad())
    } else {
        Ok(pair)
    }
}

fn invalid(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

struct Style {
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

struct Writer<'a> {
    out: String,
    style: Style,
    marks: &'a Marks,
    meter: Meter<'a>,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid(format!("tojson: nested deeper than {MAX_DEPTH}")));
        }
        let before = self.out.len();
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self
                .out
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => return self.list(value, depth),
            ValueKind::Map => return self.map(value, depth),
            _ => {
                return Err(invalid(format!(
                    "tojson: a value of type {} is not JSON serializable",
                    value.kind()
                )));
            }
        }
        self.meter.add(self.out.len() - before)
    }

    fn number(&mut self, value: &Value) {
        if value.is_integer() {
            self.out.push_str(&value.to_string());
        } else {
            self.out.push_str(&json_float(
                f64::try_from(value.clone()).unwrap_or(f64::NAN),
            ));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                ' '..='~' => self.out.push(c),
                c if c >= ' ' && !self.style.ensure_ascii || self.marks.contains(c) => {
                    self.out.push(c)
                }
                c => c
                    .encode_utf16(&mut [0; 2])
                    .iter()
                    .for_each(|u| self.out.push_str(&format!("\\u{u:04x}"))),
            }
        }
        self.out.push('"');
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut any = false;
        self.out.push('[');
        for item in value.try_iter()?.checked() {
            self.before_item(any, depth)?;
            any = true;
            self.value(&item?, depth + 1)?;
        }
        self.after_items(any, depth, ']')
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys = value
            .try_iter()?
            .checked()
            .collect::<Result<Vec<Value>, Error>>()?;
        if self.style.sort_keys {
            // As Python refuses to order a string and a number.
            if keys.iter().any(|k| k.kind() == ValueKind::String)
                && keys.iter().any(|k| k.kind() != ValueKind::String)
            {
                return Err(invalid("tojson: keys of different types cannot be sorted"));
            }
            keys.sort();
        }
        let mut any = false;
        self.out.push('{');
        for key in keys {
            let item = value.get_item(&key)?;
            let text = key_text(&key)?;
            self.before_item(any, depth)?;
            any = true;
            self.string(&text);
            self.out.push_str(&self.style.key);
            self.meter.add(text.len() + self.style.key.len())?;
            self.value(&item, depth + 1)?;
        }
        self.after_items(any, depth, '}')
    }

    fn before_item(&mut self, any: bool, depth: usize) -> Result<(), Error> {
        let before = self.out.len();
        if any {
            self.out.push_str(&self.style.item);
        }
        self.line(depth + 1);
        self.meter.add(self.out.len() - before + 1)
    }

    fn after_items(&mut self, any: bool, depth: usize, close: char) -> Result<(), Error> {
        let before = self.out.len();
        if any {
            self.line(depth);
        }
        self.out.push(close);
        self.meter.add(self.out.len() - before + 1)
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            (0..depth).for_each(|_| self.out.push_str(indent));
        }
    }
}

/// A key as `json.dumps` spells it: what is not a string becomes one.
fn key_text(key: &Value) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().to_string(),
        ValueKind::None => "null".to_string(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_string(),
        ValueKind::Number if key.is_integer() => key.to_string(),
        ValueKind::Number => json_float(f64::try_from(key.clone()).unwrap_or(f64::NAN)),
        kind => {
            return Err(invalid(format!(
                "tojson: keys must be str, int, float, bool or None, not {kind}"
            )));
        }
    })
}

fn json_float(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_string()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity" } else { "-Infinity" }.to_string()
    } else {
        python::float(value)
    }
}
