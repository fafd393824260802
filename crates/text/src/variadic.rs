//! Macros that take whatever they are called with: in Jinja2 a macro whose body says `varargs` or `kwargs` catches the
//! arguments that have no parameter. The engine's macros have none of that, so `source.rs` gives such a macro
//! parameters of these names and wraps it in [`wrap`], which fills them.

use crate::filters::invalid;
use indexmap::IndexMap;
use minijinja::value::{Kwargs, Object, ObjectRepr, Tuple};
use minijinja::{Error, State, Value};
use std::fmt;
use std::sync::Arc;

/// The names under which a macro finds what it has caught.
pub(crate) const VARARGS: &str = "varargs";
pub(crate) const KWARGS: &str = "kwargs";

/// A macro of the engine's, and what it catches.
#[derive(Debug)]
struct Variadic {
    inner: Value,
    /// The names of its own parameters.
    parameters: Vec<String>,
    varargs: bool,
    kwargs: bool,
    /// Whether it says `caller`.
    caller: bool,
}

/// `macro` as a macro that catches what `varargs` and `kwargs` say: its last parameters have their names.
pub(crate) fn wrap(inner: Value, varargs: bool, kwargs: bool) -> Result<Value, Error> {
    let mut parameters = Vec::new();
    for name in inner.get_attr("arguments")?.try_iter()?.checked() {
        let name = name?;
        let name = name.as_str().unwrap_or_default();
        parameters.push(name.to_owned());
    }
    let own = parameters
        .len()
        .checked_sub(usize::from(varargs) + usize::from(kwargs));
    parameters.truncate(own.ok_or_else(|| invalid("no macro that catches arguments"))?);
    let caller = inner.get_attr("caller")?.is_true();
    Ok(Value::from_object(Variadic {
        inner,
        parameters,
        varargs,
        kwargs,
        caller,
    }))
}

impl Object for Variadic {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "name" => self.inner.get_attr("name").ok(),
            "arguments" => Some(Value::from_iter(self.parameters.iter().map(String::as_str))),
            "caller" => Some(Value::from(self.caller)),
            "catch_varargs" => Some(Value::from(self.varargs)),
            "catch_kwargs" => Some(Value::from(self.kwargs)),
            _ => None,
        }
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        let (positional, named) = match args.split_last() {
            Some((last, before)) if last.is_kwargs() => (before, Some(last)),
            _ => (args, None),
        };
        let own = self.parameters.len().min(positional.len());
        let (taken, extra) = positional.split_at(own);
        if !extra.is_empty() && !self.varargs {
            let (name, most) = (self.inner.get_attr("name")?, self.parameters.len());
            return Err(invalid(format!(
                "macro {name} takes not more than {most} argument(s)"
            )));
        }
        let mut passed: Vec<(String, Value)> = Vec::new();
        let mut caught = IndexMap::new();
        if let Some(named) = named {
            let named = Kwargs::try_from(named.clone())?;
            for name in named.args() {
                let value: Value = named.get(name)?;
                let parameter = self.parameters[own..].iter().any(|p| p == name);
                match parameter || self.caller && name == "caller" {
                    true => passed.push((name.to_owned(), value)),
                    false if self.kwargs => drop(caught.insert(Value::from(name), value)),
                    false => return Err(invalid(format!("unknown keyword argument `{name}`"))),
                }
            }
        }
        if self.varargs {
            passed.push((VARARGS.to_owned(), Value::from(Tuple::from(extra.to_vec()))));
        }
        if self.kwargs {
            passed.push((KWARGS.to_owned(), Value::from_object(caught)));
        }
        let mut args = taken.to_vec();
        args.push(Value::from(passed.into_iter().collect::<Kwargs>()));
        self.inner.call(state, &args)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner)
    }
}
