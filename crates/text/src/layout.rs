//! Filters of Jinja2 that lay text out or encode it for other uses than a prompt: few templates have them, and the
//! engine lacks them. Each is named after what it is in Jinja2.

use crate::filters::{escaped, invalid};
use crate::python::{Meter, text};
use minijinja::value::{ArgType, Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, State, Value};
use unicode_general_category::{GeneralCategory as C, get_general_category};

/// How much longer than asked a text may be before `truncate` cuts it.
const LEEWAY: i64 = 5;

pub(crate) fn install(env: &mut Environment<'static>) {
    env.add_filter("center", center);
    env.add_filter("wordcount", |state: &State, value: &Value| {
        Ok::<_, Error>(word_count(&text(state, value)?))
    });
    env.add_filter("truncate", truncate);
    env.add_filter("urlencode", url_encode);
    env.add_filter("xmlattr", xml_attributes);
    env.add_filter("filesizeformat", file_size);
    env.add_function("cycler", |items: Rest<Value>| match items.is_empty() {
        true => Err(invalid("cycler: at least one item has to be provided")),
        false => minijinja_contrib::globals::cycler(items.0),
    });
    env.add_function("joiner", minijinja_contrib::globals::joiner);
}

/// An argument by its place, or else by its name.
pub(crate) fn or_named<'a, T>(
    given: Option<T>,
    options: &'a Kwargs,
    name: &'a str,
) -> Result<Option<T>, Error>
where
    Option<T>: ArgType<'a, Output = Option<T>>,
{
    match given {
        Some(_) => Ok(given),
        None => options.get(name),
    }
}

/// Text made of a value: safe if that was.
fn like(value: &Value, made: String) -> Result<Value, Error> {
    Ok(match value.is_safe() {
        true => Value::from_safe_string(made),
        false => Value::from(made),
    })
}

/// Where `padded` leaves the text.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Side {
    Left,
    Right,
    Both,
}

/// Python's `str.ljust`, `rjust` and `center`; what is filled is paid for.
pub(crate) fn padded(
    state: &State,
    text: &str,
    width: i64,
    fill: char,
    side: Side,
) -> Result<String, Error> {
    let (width, len) = (usize::try_from(width).unwrap_or(0), text.chars().count());
    let Some(missing) = width.checked_sub(len).filter(|n| *n > 0) else {
        return Ok(text.to_owned());
    };
    state.consume_fuel(missing as u64 / 16)?;
    let before = match side {
        Side::Left => 0,
        Side::Right => missing,
        // Of an odd number more stand before the text where the width is odd.
        Side::Both => missing / 2 + (missing & width & 1),
    };
    let mut out = String::with_capacity(text.len() + missing * fill.len_utf8());
    out.extend(std::iter::repeat_n(fill, before));
    out.push_str(text);
    out.extend(std::iter::repeat_n(fill, missing - before));
    Ok(out)
}

/// `value|center(width=80)`.
fn center(
    state: &State,
    value: &Value,
    width: Option<i64>,
    options: Kwargs,
) -> Result<Value, Error> {
    let width = or_named(width, &options, "width")?.unwrap_or(80);
    options.assert_all_used()?;
    let text = text(state, value)?;
    like(value, padded(state, &text, width, ' ', Side::Both)?)
}

/// How many runs of letters, numbers and underscores there are.
fn word_count(text: &str) -> usize {
    text.split(|c| !word_char(c))
        .filter(|word| !word.is_empty())
        .count()
}

/// Python's `\w`: a letter, a number, an underscore.
pub(crate) fn word_char(c: char) -> bool {
    use C::{
        DecimalNumber, LetterNumber, LowercaseLetter, ModifierLetter, OtherLetter, OtherNumber,
        TitlecaseLetter, UppercaseLetter,
    };
    let letters = [
        UppercaseLetter,
        LowercaseLetter,
        TitlecaseLetter,
        ModifierLetter,
        OtherLetter,
    ];
    let numbers = [DecimalNumber, LetterNumber, OtherNumber];
    let kind = get_general_category(c);
    c == '_' || letters.contains(&kind) || numbers.contains(&kind)
}

/// `value|truncate(length=255, killwords=False, end="...", leeway=5)`.
fn truncate(value: &Value, options: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    type Options = (
        Option<i64>,
        Option<bool>,
        Option<String>,
        Option<i64>,
        Kwargs,
    );
    let given = options.into_values();
    let (length, kill, end, leeway, options): Options = from_args(&given)?;
    let length = or_named(length, &options, "length")?.unwrap_or(255);
    let kill = or_named(kill, &options, "killwords")?.unwrap_or(false);
    let end = or_named(end, &options, "end")?.unwrap_or_else(|| "...".into());
    let leeway = or_named(leeway, &options, "leeway")?.unwrap_or(LEEWAY);
    options.assert_all_used()?;
    let source = value
        .as_str()
        .ok_or_else(|| invalid("truncate: the value must be a string"))?;
    let room = length - end.chars().count() as i64;
    let Ok(room) = usize::try_from(room) else {
        return Err(invalid(format!(
            "truncate: {length} is shorter than its end"
        )));
    };
    if leeway < 0 {
        return Err(invalid(format!("truncate: a leeway of {leeway}")));
    }
    if source.chars().count() as i64 <= length.saturating_add(leeway) {
        return Ok(value.clone());
    }
    let cut = source
        .char_indices()
        .nth(room)
        .map_or(source, |(at, _)| &source[..at]);
    let cut = match kill {
        true => cut,
        false => cut.rsplit_once(' ').map_or(cut, |(words, _)| words),
    };
    like(value, format!("{cut}{end}"))
}

/// `value|urlencode`: a text, or a query of pairs.
fn url_encode(state: &State, value: &Value) -> Result<String, Error> {
    let charge = |fuel| state.consume_fuel(fuel);
    let (mut meter, mut out) = (Meter::new(&charge), String::new());
    let pairs = matches!(
        value.kind(),
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable
    );
    if !pairs {
        quote(&text(state, value)?, "/", &mut out, &mut meter)?;
        return Ok(out);
    }
    let map = value.kind() == ValueKind::Map;
    for (i, item) in value.try_iter()?.checked().enumerate() {
        let item = item?;
        let (name, content) = match map {
            true => (item.clone(), value.get_item(&item)?),
            false if item.len() == Some(2) => (
                item.get_item(&Value::from(0))?,
                item.get_item(&Value::from(1))?,
            ),
            false => return Err(invalid("urlencode: the items must be pairs")),
        };
        if i > 0 {
            out.push('&');
        }
        quote(&text(state, &name)?, "", &mut out, &mut meter)?;
        out.push('=');
        quote(&text(state, &content)?, "", &mut out, &mut meter)?;
    }
    Ok(out)
}

/// Python's `quote`; where nothing more is `safe`, the text stands in a query and a space is a plus.
fn quote(text: &str, safe: &str, out: &mut String, meter: &mut Meter) -> Result<(), Error> {
    for byte in text.bytes() {
        match byte {
            b' ' if safe.is_empty() => out.push('+'),
            b if b.is_ascii_alphanumeric() || b"_.-~".contains(&b) => out.push(char::from(b)),
            b if safe.as_bytes().contains(&b) => out.push(char::from(b)),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    meter.add(3 * text.len() + 8)
}

/// `mapping|xmlattr(autospace=True)`.
fn xml_attributes(
    state: &State,
    value: &Value,
    space: Option<bool>,
    options: Kwargs,
) -> Result<String, Error> {
    let space = or_named(space, &options, "autospace")?.unwrap_or(true);
    options.assert_all_used()?;
    if value.kind() != ValueKind::Map {
        return Err(invalid("xmlattr: the value must be a mapping"));
    }
    let charge = |fuel| state.consume_fuel(fuel);
    let (mut meter, mut out) = (Meter::new(&charge), String::new());
    for name in value.try_iter()?.checked() {
        let name = name?;
        let content = value.get_item(&name)?;
        if content.is_none() || content.is_undefined() {
            continue;
        }
        let name = text(state, &name)?.into_owned();
        if name.contains([' ', '\t', '\n', '\r', '\x0b', '\x0c', '/', '>', '=']) {
            return Err(invalid(format!("xmlattr: {name:?} is no name")));
        }
        if space || !out.is_empty() {
            out.push(' ');
        }
        let content = text(state, &content)?;
        meter.add(6 * (name.len() + content.len()) + 8)?;
        out.push_str(&format!("{}=\"{}\"", escaped(&name), escaped(&content)));
    }
    Ok(out)
}

/// `bytes|filesizeformat(binary=False)`.
fn file_size(value: &Value, binary: Option<bool>, options: Kwargs) -> Result<String, Error> {
    let binary = or_named(binary, &options, "binary")?.unwrap_or(false);
    options.assert_all_used()?;
    let number = match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None => f64::try_from(value.clone()).ok(),
    };
    let bytes: f64 = number.ok_or_else(|| invalid("filesizeformat: the value must be a number"))?;
    let (base, kilo, end): (f64, &str, &str) = match binary {
        true => (1024.0, "K", "iB"),
        false => (1000.0, "k", "B"),
    };
    if bytes == 1.0 {
        return Ok("1 Byte".into());
    }
    if bytes < base {
        return Ok(format!("{} Bytes", bytes.trunc()));
    }
    let prefixes = [kilo, "M", "G", "T", "P", "E", "Z", "Y"];
    let mut unit = base * base;
    let mut chosen = prefixes[0];
    for prefix in prefixes {
        chosen = prefix;
        if bytes < unit || prefix == "Y" {
            break;
        }
        unit *= base;
    }
    Ok(format!("{:.1} {chosen}{end}", base * bytes / unit))
}
