//! Filters and tests of chat templates that the engine lacks or answers differently from Jinja2, and what
//! `source.rs` and `rewrite.rs` put in the place of operators and names. Each is named after what it is in Jinja2.

use crate::python::{Meter, repr, strip, text};
use indexmap::IndexMap;
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use std::borrow::Cow;

/// Values nested deeper than this are not stored.
const MAX_DEPTH: usize = 128;

/// Puts filters, tests and methods into an environment.
pub(crate) fn install(env: &mut Environment<'static>) {
    env.add_filter("tojson", crate::tojson::tojson);
    env.add_filter("string", |state: &State, value: &Value| {
        text(state, value).map(Cow::into_owned)
    });
    env.add_filter("trim", trim);
    env.add_filter("join", join);
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter(crate::source::KEEP, |state: &State, value: &Value| {
        keep(state, value, false)
    });
    env.add_filter(
        crate::source::KEEP_ATTRIBUTE,
        |state: &State, value: &Value| keep(state, value, true),
    );
    env.add_filter("escape", escape);
    env.add_filter("e", escape);
    env.add_filter(
        "forceescape",
        |state: &State, value: &Value| -> Result<Value, Error> {
            Ok(Value::from_safe_string(escaped(&text(state, value)?)))
        },
    );
    env.add_filter(crate::source::ITERABLE, |value: &Value| {
        match value.is_none() {
            true => Err(invalid("none is not iterable")),
            false => Ok(value.clone()),
        }
    });
    env.add_filter("upper", |state: &State, value: &Value| {
        mapped(state, value, str::to_uppercase)
    });
    env.add_filter("lower", |state: &State, value: &Value| {
        mapped(state, value, str::to_lowercase)
    });
    env.add_filter("title", |state: &State, value: &Value| {
        mapped(state, value, |text| {
            minijinja::filters::title(Cow::Borrowed(text))
        })
    });
    env.add_filter("capitalize", |state: &State, value: &Value| {
        mapped(state, value, capitalized)
    });
    env.add_filter("replace", replace);
    env.add_filter("format", format_filter);
    env.add_filter("pprint", |state: &State, value: &Value| repr(state, value));
    env.add_filter("default", default);
    env.add_filter("d", default);
    env.add_filter("indent", indent);
    env.add_test("iterable", |value: &Value| {
        !value.is_none() && value.try_iter().is_ok()
    });
    env.add_test("sequence", sequence);
    env.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    env.add_function(crate::source::CONCAT, concat);
    env.add_function(crate::source::ADD, add);
    env.add_function(crate::source::WRAP, crate::variadic::wrap);
    crate::layout::install(env);
    crate::wrap::install(env);
    env.set_unknown_method_callback(crate::methods::call);
    // Not Jinja2's: it would print every variable.
    env.remove_global("debug");
}

pub(crate) fn invalid(what: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Lets a value through that is not too deep, and, for a namespace's attribute, holds no namespace: those are the
/// only values that can change, so none can ever hold itself. Every item that is reached is charged, so a value
/// that holds another many times cannot grow beyond fuel. What the engine computes on demand (slices, sums of
/// lists, `map`) becomes a list: a chain of those would be walked anew, link by link, at each use.
pub(crate) fn keep(state: &State, value: &Value, in_namespace: bool) -> Result<Value, Error> {
    fn walk(
        value: &Value,
        depth: usize,
        in_namespace: bool,
        meter: &mut Meter,
    ) -> Result<(), Error> {
        let children = match value.kind() {
            ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => value.try_iter()?,
            _ => return Ok(()),
        };
        if depth > MAX_DEPTH {
            return Err(invalid(format!(
                "a value nested deeper than {MAX_DEPTH} cannot be stored"
            )));
        }
        let map = value.kind() == ValueKind::Map;
        if map
            && in_namespace
            && value
                .downcast_object_ref::<IndexMap<Value, Value>>()
                .is_none()
        {
            return Err(invalid("a namespace cannot be stored in a namespace"));
        }
        for child in children.checked() {
            meter.add(8)?;
            let child = child?;
            if map {
                walk(&value.get_item(&child)?, depth + 1, in_namespace, meter)?;
            }
            walk(&child, depth + 1, in_namespace, meter)?;
        }
        Ok(())
    }
    let charge = |fuel| state.consume_fuel(fuel);
    let mut meter = Meter::new(&charge);
    if value.kind() != ValueKind::Iterable {
        walk(value, 0, in_namespace, &mut meter)?;
        return Ok(value.clone());
    }
    let mut items = Vec::new();
    for item in value.try_iter()?.checked() {
        let item = item?;
        meter.add(8)?;
        walk(&item, 1, in_namespace, &mut meter)?;
        items.push(item);
    }
    Ok(Value::from(items))
}

/// `a ~ b ~ c`.
fn concat(state: &State, operands: Rest<Value>) -> Result<String, Error> {
    let charge = |fuel| state.consume_fuel(fuel);
    let mut meter = Meter::new(&charge);
    operands.iter().try_fold(String::new(), |mut out, operand| {
        let text = text(state, operand)?;
        meter.add(text.len())?;
        out.push_str(&text);
        Ok(out)
    })
}

/// `a + b + c` where strings may be safe: what is added to a safe string is escaped, and the sum is safe.
fn add(state: &State, operands: Rest<Value>) -> Result<Value, Error> {
    let mut operands = operands.0.into_iter();
    let first = operands.next().unwrap_or_default();
    operands.try_fold(first, |sum, operand| {
        match (sum.as_str(), operand.as_str()) {
            (Some(a), Some(b)) if sum.is_safe() || operand.is_safe() => {
                let half = |text: &str, safe| {
                    if safe {
                        text.to_string()
                    } else {
                        escaped(text)
                    }
                };
                Ok(Value::from_safe_string(
                    half(a, sum.is_safe()) + &half(b, operand.is_safe()),
                ))
            }
            _ => {
                let operands =
                    IndexMap::from([(Value::from("a"), sum), (Value::from("b"), operand)]);
                state
                    .env()
                    .compile_expression("a + b")?
                    .eval(Value::from_object(operands))
            }
        }
    })
}

/// `value|escape`: a safe string stays as it is.
fn escape(state: &State, value: &Value) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value.clone());
    }
    Ok(Value::from_safe_string(escaped(&text(state, value)?)))
}

/// Text escaped for HTML as Python's markupsafe does it.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

fn trim(state: &State, value: &Value, chars: Option<&Value>) -> Result<Value, Error> {
    let chars = chars.and_then(Value::as_str);
    let text = text(state, value)?;
    let trimmed = strip(&text, chars, true, true);
    Ok(if value.is_safe() {
        Value::from_safe_string(trimmed.to_string())
    } else {
        Value::from(trimmed)
    })
}

/// A filter that maps text to text; a safe string stays safe.
fn mapped(state: &State, value: &Value, map: impl Fn(&str) -> String) -> Result<Value, Error> {
    let out = map(&text(state, value)?);
    Ok(if value.is_safe() {
        Value::from_safe_string(out)
    } else {
        Value::from(out)
    })
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| {
        first
            .to_uppercase()
            .chain(chars.as_str().to_lowercase().chars())
            .collect()
    })
}

/// `value|replace(old, new, count=None)`.
fn replace(
    state: &State,
    value: &Value,
    old: &Value,
    new: &Value,
    options: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    let values = options.into_values();
    let (count, options): (Option<i64>, Kwargs) = from_args(&values)?;
    let count = match count {
        Some(count) => Some(count),
        None => options.get::<Option<i64>>("count")?,
    };
    options.assert_all_used()?;
    let (source, old, new) = (text(state, value)?, text(state, old)?, text(state, new)?);
    let out = replaced(state, &source, &old, &new, count)?;
    Ok(if value.is_safe() {
        Value::from_safe_string(out)
    } else {
        Value::from(out)
    })
}

/// `str.replace`, its result paid for before it is made.
pub(crate) fn replaced(
    state: &State,
    source: &str,
    old: &str,
    new: &str,
    count: Option<i64>,
) -> Result<String, Error> {
    let most = count
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(usize::MAX);
    let found = if new.len() > old.len() {
        source.matches(old).take(most).count()
    } else {
        0
    };
    state.consume_fuel(
        (found as u64).saturating_mul((new.len().saturating_sub(old.len())) as u64) / 64,
    )?;
    Ok(source.replacen(old, new, most))
}

/// `format|format(values)`, as Python's `%`; containers are printed first, and metered.
fn format_filter(state: &mut State, form: &Value, values: Rest<Value>) -> Result<Value, Error> {
    let mut arguments = Vec::with_capacity(values.len());
    for value in values.iter() {
        let container = matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::Iterable | ValueKind::Map
        );
        let printed = container && !value.is_kwargs();
        arguments.push(if printed {
            Value::from(text(state, value)?)
        } else {
            value.clone()
        });
    }
    let form = text(state, form)?.into_owned();
    small_numbers(&form)?;
    minijinja::formatting::format(
        minijinja::formatting::FormatStyle::Printf,
        &form,
        &arguments,
    )
    .map(Value::from)
}

/// Refuses a format whose widths or precisions could make a long text of a short one.
pub(crate) fn small_numbers(form: &str) -> Result<(), Error> {
    let mut digits = 0;
    for c in form.chars() {
        digits = if c.is_ascii_digit() { digits + 1 } else { 0 };
        if digits > 3 || c == '*' {
            return Err(invalid(
                "format: a width or precision of more than three digits",
            ));
        }
    }
    Ok(())
}

/// `value|join(d="", attribute=None)`.
pub(crate) fn join(
    state: &State,
    value: &Value,
    separator: Option<&Value>,
    attribute: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let named: Option<Value> = options.get("d")?;
    let attribute = match attribute {
        Some(attribute) => Some(attribute),
        None => options.get::<Option<Value>>("attribute")?,
    };
    options.assert_all_used()?;
    let separator = match separator.or(named.as_ref()) {
        Some(separator) => text(state, separator)?,
        None => Cow::Borrowed(""),
    };
    let charge = |fuel| state.consume_fuel(fuel);
    let mut meter = Meter::new(&charge);
    let mut out = String::new();
    for (i, item) in value.try_iter()?.checked().enumerate() {
        let item = item?;
        let item = match &attribute {
            Some(path) => attribute_of(&item, path)?,
            None => item,
        };
        if i > 0 {
            out.push_str(&separator);
        }
        let item = text(state, &item)?;
        out.push_str(&item);
        meter.add(item.len() + separator.len() + 8)?;
    }
    Ok(out)
}

/// `value|default(default_value="", boolean=False)`.
fn default(
    value: &Value,
    otherwise: Option<Value>,
    boolean: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let otherwise = match otherwise {
        Some(otherwise) => otherwise,
        None => options
            .get::<Option<Value>>("default_value")?
            .unwrap_or_else(|| Value::from("")),
    };
    let boolean = match boolean {
        Some(boolean) => boolean,
        None => options.get::<Option<bool>>("boolean")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    Ok(if value.is_undefined() || boolean && !value.is_true() {
        otherwise
    } else {
        value.clone()
    })
}

/// `value|indent(width=4, first=False, blank=False)`; the width may be a string.
fn indent(state: &State, value: &Value, options: Rest<ValueOrKwargs>) -> Result<String, Error> {
    type Options = (Option<Value>, Option<bool>, Option<bool>, Kwargs);
    let values = options.into_values();
    let (width, first, blank, options): Options = from_args(&values)?;
    let width = match width {
        Some(width) => width,
        None => options
            .get::<Option<Value>>("width")?
            .unwrap_or_else(|| Value::from(4)),
    };
    let named = |given: Option<bool>, name: &str| match given {
        Some(given) => Ok(given),
        None => options
            .get::<Option<bool>>(name)
            .map(|v| v.unwrap_or(false)),
    };
    let (first, blank) = (named(first, "first")?, named(blank, "blank")?);
    options.assert_all_used()?;
    let pad = match (width.as_str(), width.as_usize()) {
        (Some(text), _) => text.to_string(),
        (None, Some(n)) if n <= 4096 => " ".repeat(n),
        _ => {
            return Err(invalid(
                "indent: the width must be a string or a number up to 4096",
            ));
        }
    };
    let charge = |fuel| state.consume_fuel(fuel);
    let mut meter = Meter::new(&charge);
    let mut out = String::new();
    for (i, line) in text(state, value)?.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if if i == 0 {
            first
        } else {
            blank || !line.is_empty()
        } {
            out.push_str(&pad);
        }
        out.push_str(line);
        meter.add(line.len() + pad.len() + 8)?;
    }
    Ok(out)
}

/// Jinja2's test: what has a length and items by key, so also texts and mappings.
fn sequence(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined => true,
        ValueKind::Iterable => value.len().is_some(),
        _ => false,
    }
}

/// An attribute by its dotted path or index, as Jinja2's `attribute=` takes it.
fn attribute_of(item: &Value, path: &Value) -> Result<Value, Error> {
    let Some(path) = path.as_str() else {
        return item.get_item(path);
    };
    path.split('.')
        .try_fold(item.clone(), |value, part| match part.parse::<usize>() {
            Ok(index) => value.get_item(&Value::from(index)),
            Err(_) => value.get_attr(part),
        })
}

/// `value|int(default=0, base=10)`: what is no number is the default, never an error.
fn int(
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    options: Kwargs,
) -> Result<Value, Error> {
    let default = match default {
        Some(default) => default,
        None => options
            .get::<Option<Value>>("default")?
            .unwrap_or_else(|| Value::from(0)),
    };
    let base = match base {
        Some(base) => base,
        None => options.get::<Option<u32>>("base")?.unwrap_or(10),
    };
    options.assert_all_used()?;
    let from_float = |f: f64| f.is_finite().then(|| Value::from(f.trunc() as i128));
    Ok(match value.kind() {
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        ValueKind::Number => f64::try_from(value.clone()).ok().and_then(from_float),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            parse_int(text, base)
                .map(Value::from)
                .or_else(|| parse_float(text).and_then(from_float))
        }
        _ => None,
    }
    .unwrap_or(default))
}

/// `value|float(default=0.0)`.
fn float(value: &Value, default: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let default = match default {
        Some(default) => default,
        None => options
            .get::<Option<Value>>("default")?
            .unwrap_or_else(|| Value::from(0.0)),
    };
    options.assert_all_used()?;
    Ok(match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::String => parse_float(value.as_str().unwrap_or_default()),
        _ => None,
    }
    .map_or(default, Value::from))
}

/// Python's `int(text, base)`.
fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = strip(text, None, true, true);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        3..=36 => "",
        _ => return None,
    };
    let digits = match digits.get(..2) {
        Some(head) if !prefix.is_empty() && head.eq_ignore_ascii_case(prefix) => &digits[2..],
        _ => digits,
    };
    if digits.is_empty()
        || digits.starts_with(['_', '+', '-'])
        || digits.ends_with('_')
        || digits.contains("__")
    {
        return None;
    }
    let value = i128::from_str_radix(&digits.replace('_', ""), base).ok()?;
    Some(if negative { -value } else { value })
}

/// Python's `float(text)`, without the underscores it would take.
fn parse_float(text: &str) -> Option<f64> {
    strip(text, None, true, true).parse().ok()
}
