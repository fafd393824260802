//! Methods of Python's values that the engine's compatibility layer lacks or answers differently.

use crate::filters::{invalid, join, keep, replaced, small_numbers};
use crate::layout::{Side, padded};
use crate::python::{space, strip};
use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat;
use unicode_general_category::{GeneralCategory, get_general_category};

/// Calls a method that the engine does not know.
pub(crate) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => string_method(state, text, method, args)
            .unwrap_or_else(|| fallback(state, value, method, args)),
        None => fallback(state, value, method, args),
    }
}

/// Methods of `str` that the engine's compatibility layer lacks or answers differently. `None`: not one of them.
fn string_method(
    state: &State,
    text: &str,
    method: &str,
    args: &[Value],
) -> Option<Result<Value, Error>> {
    Some(match method {
        "strip" => stripped(text, args, true, true),
        "lstrip" => stripped(text, args, true, false),
        "rstrip" => stripped(text, args, false, true),
        "isspace" => Ok(Value::from(!text.is_empty() && text.chars().all(space))),
        "removeprefix" => {
            one(args).map(|p: &str| Value::from(text.strip_prefix(p).unwrap_or(text)))
        }
        "removesuffix" => {
            one(args).map(|p: &str| Value::from(text.strip_suffix(p).unwrap_or(text)))
        }
        "partition" => one(args).and_then(|sep: &str| {
            let (head, tail) = text
                .split_once(nonempty(sep)?)
                .map_or((text, None), |(h, t)| (h, Some(t)));
            Ok(Value::from((
                head,
                tail.map_or("", |_| sep),
                tail.unwrap_or(""),
            )))
        }),
        "rpartition" => one(args).and_then(|sep: &str| {
            let (head, tail) = text
                .rsplit_once(nonempty(sep)?)
                .map_or((None, text), |(h, t)| (Some(h), t));
            Ok(Value::from((
                head.unwrap_or(""),
                head.map_or("", |_| sep),
                tail,
            )))
        }),
        "split" => split(text, args, false),
        "rsplit" => split(text, args, true),
        "replace" => from_args::<(&str, &str, Option<i64>)>(args)
            .and_then(|(old, new, count)| replaced(state, text, old, new, count).map(Value::from)),
        "format" => format_method(state, text, args),
        "center" => justified(state, text, args, Side::Both),
        "ljust" => justified(state, text, args, Side::Left),
        "rjust" => justified(state, text, args, Side::Right),
        "zfill" => from_args::<(i64,)>(args).and_then(|(width,)| {
            let (sign, digits) = match text.starts_with(['+', '-']) {
                true => text.split_at(1),
                false => ("", text),
            };
            let width = width.saturating_sub(sign.len() as i64);
            let digits = padded(state, digits, width, '0', Side::Right)?;
            Ok(Value::from(format!("{sign}{digits}")))
        }),
        "index" | "rindex" => one(args).and_then(|what: &str| {
            let found = match method {
                "index" => text.find(what),
                _ => text.rfind(what),
            };
            let at = found.ok_or_else(|| invalid("substring not found"))?;
            Ok(Value::from(text[..at].chars().count()))
        }),
        "casefold" if text.is_ascii() => Ok(Value::from(text.to_ascii_lowercase())),
        "isdecimal" => Ok(Value::from(!text.is_empty() && text.chars().all(decimal))),
        "istitle" => Ok(Value::from(is_title(text))),
        "swapcase" => Ok(Value::from(
            text.chars()
                .flat_map(|c| -> Vec<char> {
                    if c.is_uppercase() {
                        c.to_lowercase().collect()
                    } else {
                        c.to_uppercase().collect()
                    }
                })
                .collect::<String>(),
        )),
        _ => return None,
    })
}

/// `str.format`; what a container prints is metered, widths are small and not taken from other arguments.
fn format_method(state: &State, form: &str, args: &[Value]) -> Result<Value, Error> {
    small_numbers(form)?;
    // Without the doubled braces, which stand for themselves.
    let fields = form.replace("{{", "").replace("}}", "");
    let nested = fields.split('}').any(|f| f.matches('{').count() > 1);
    if nested {
        return Err(invalid(
            "str.format: fields within fields are not supported",
        ));
    }
    for value in args {
        keep(state, value, false)?;
    }
    minijinja::formatting::format(minijinja::formatting::FormatStyle::StrFormat, form, args)
        .map(Value::from)
}

/// `str.center`, `ljust` and `rjust`: a width, and what to fill with.
fn justified(state: &State, text: &str, args: &[Value], side: Side) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let mut chars = fill.unwrap_or(" ").chars();
    let (Some(fill), None) = (chars.next(), chars.next()) else {
        return Err(invalid("the fill character must be one character"));
    };
    padded(state, text, width, fill, side).map(Value::from)
}

fn decimal(c: char) -> bool {
    get_general_category(c) == GeneralCategory::DecimalNumber
}

/// Whether words begin with capitals, and have none elsewhere.
fn is_title(text: &str) -> bool {
    let (mut cased, mut inside) = (false, false);
    for c in text.chars() {
        let (upper, lower) = (c.is_uppercase(), c.is_lowercase());
        if upper && inside || lower && !inside {
            return false;
        }
        inside = upper || lower;
        cased |= inside;
    }
    cased
}

fn one(args: &[Value]) -> Result<&str, Error> {
    from_args::<(&str,)>(args).map(|(a,)| a)
}

fn nonempty(separator: &str) -> Result<&str, Error> {
    if separator.is_empty() {
        Err(invalid("empty separator"))
    } else {
        Ok(separator)
    }
}

fn stripped(text: &str, args: &[Value], left: bool, right: bool) -> Result<Value, Error> {
    let (chars,): (Option<&Value>,) = from_args(args)?;
    let chars = match chars {
        Some(chars) if !chars.is_none() => Some(
            chars
                .as_str()
                .ok_or_else(|| invalid("strip: the argument must be None or a string"))?,
        ),
        _ => None,
    };
    Ok(Value::from(strip(text, chars, left, right)))
}

/// `str.split(sep=None, maxsplit=-1)`, and `rsplit` from the right.
fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator, limit, options): (Option<&Value>, Option<i64>, Kwargs) = from_args(args)?;
    let named: Option<Value> = options.get("sep")?;
    let limit = match limit {
        Some(limit) => Some(limit),
        None => options.get::<Option<i64>>("maxsplit")?,
    };
    options.assert_all_used()?;
    let limit = limit
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(usize::MAX);
    let separator = separator
        .or(named.as_ref())
        .filter(|s| !s.is_none() && !s.is_undefined());
    let mut parts: Vec<&str> = match separator {
        None => words(text, limit, from_right),
        Some(separator) => {
            let separator = nonempty(
                separator
                    .as_str()
                    .ok_or_else(|| invalid("split: the separator must be a string"))?,
            )?;
            let parts = limit.saturating_add(1);
            if from_right {
                text.rsplitn(parts, separator).collect()
            } else {
                text.splitn(parts, separator).collect()
            }
        }
    };
    if from_right {
        parts.reverse();
    }
    Ok(Value::from_iter(parts))
}

/// The words of a text, at most `limit` splits; from the right the last word comes first.
fn words(text: &str, limit: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = strip(text, None, !from_right, from_right);
    while !rest.is_empty() {
        let cut = if parts.len() >= limit {
            None
        } else if from_right {
            rest.char_indices()
                .rev()
                .find(|(_, c)| space(*c))
                .map(|(i, c)| (&rest[i + c.len_utf8()..], &rest[..i]))
        } else {
            rest.char_indices()
                .find(|(_, c)| space(*c))
                .map(|(i, _)| (&rest[..i], &rest[i..]))
        };
        let Some((word, tail)) = cut else {
            // What is left of the last split keeps its far end, as in Python.
            parts.push(if parts.len() < limit {
                strip(rest, None, true, true)
            } else {
                rest
            });
            break;
        };
        parts.push(word);
        rest = strip(tail, None, !from_right, from_right);
    }
    parts
}

/// What is no method of ours is the compatibility layer's.
fn fallback(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match (value.kind(), method) {
        // `join` prints its items as the engine does; only strings may be joined in Python.
        (ValueKind::String, "join") => {
            let (items,): (&Value,) = from_args(args)?;
            let parts = items
                .try_iter()?
                .checked()
                .collect::<Result<Vec<Value>, Error>>()?;
            if parts.iter().any(|p| p.kind() != ValueKind::String) {
                return Err(invalid("str.join: the items must be strings"));
            }
            join(
                state,
                items,
                Some(value),
                None,
                Kwargs::from_iter(Vec::<(&str, Value)>::new()),
            )
            .map(Value::from)
        }
        (ValueKind::Map, "copy") | (ValueKind::Seq, "copy") => {
            from_args::<(Rest<Value>,)>(args)?;
            Ok(value.clone())
        }
        (ValueKind::Seq, "index") => {
            let (what,): (&Value,) = from_args(args)?;
            let found = value
                .try_iter()?
                .checked()
                .position(|item| item.is_ok_and(|item| item == *what));
            found
                .map(Value::from)
                .ok_or_else(|| invalid("the value is not in the list"))
        }
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}
