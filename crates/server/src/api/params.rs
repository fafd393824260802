//! A request's parameters, read as the [`super::table`] says, or as the fields of the routes that it
//! does not describe. A name that is in neither is logged, and refused if the server is strict;
//! `null` is the same as leaving a name out.

use std::sync::Arc;
use std::time::Duration;

use engine::{GenerateParams, SamplerParams, Speculation};
use serde_json::Value;

use super::adapters::{self, Chosen};
use super::table::{On, PARAMS, Treat};
use super::values::{count, strings};
use super::{Body, Call, Model, Served, invalid};
use crate::error::{ApiError, Kind};

/// Most answers to one prompt, stop strings, and bytes of a salt.
const MOST_ANSWERS: usize = 16;
const MOST_STOPS: usize = 16;
const LONGEST_STOP: usize = 256;
const LONGEST_SALT: usize = 256;

/// What a request asks for beside its prompt.
pub(crate) struct Asked {
    pub(crate) params: GenerateParams,
    pub(crate) n: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) salt: String,
    /// Tokens of the beginning that other keys may share ([`super::chat`] knows them).
    pub(crate) common: usize,
    /// Repeat the prompt before its answers.
    pub(crate) echo: bool,
    pub(crate) chosen: Chosen,
}

/// The value of a name, unless it is null.
pub(crate) fn given<'b>(body: &'b Body, name: &str) -> Option<&'b Value> {
    body.get(name).filter(|v| !v.is_null())
}

pub(crate) fn flag(body: &Body, name: &str) -> Result<bool, ApiError> {
    match given(body, name) {
        None => Ok(false),
        Some(v) => v
            .as_bool()
            .ok_or_else(|| invalid(name, "must be true or false")),
    }
}

/// A whole number within limits.
pub(crate) fn number(
    body: &Body,
    name: &str,
    low: usize,
    high: usize,
) -> Result<Option<usize>, ApiError> {
    let Some(value) = given(body, name) else {
        return Ok(None);
    };
    match count(value) {
        Some(n) if (low..=high).contains(&n) => Ok(Some(n)),
        _ => Err(invalid(
            name,
            &format!("is {value}, but must be a whole number from {low} to {high}"),
        )),
    }
}

impl Asked {
    pub(crate) async fn read(
        served: &Served,
        model: &Arc<Model>,
        body: &Body,
        route: On,
    ) -> Result<Asked, ApiError> {
        let mut sampler = SamplerParams {
            seed: model.seed.unwrap_or_else(drawn),
            ..model.sampler.clone()
        };
        let mut unknown = Vec::new();
        for (name, value) in body.iter().filter(|(_, v)| !v.is_null()) {
            if !check(&mut sampler, name, value, route)? {
                unknown.push(name.as_str());
            }
        }
        say_unknown(served, &unknown)?;
        let options = given(body, "stream_options").map(|v| {
            let options = v.as_object();
            options.ok_or_else(|| invalid("stream_options", "must be an object"))
        });
        let include_usage = match options.transpose()? {
            Some(options) => flag(options, "include_usage")?,
            None => false,
        };
        let salt = match given(body, "cache_salt") {
            None => "",
            Some(Value::String(salt)) if salt.len() <= LONGEST_SALT => salt,
            Some(_) => return Err(invalid("cache_salt", "must be a text of at most 256 bytes")),
        };
        Ok(Asked {
            params: GenerateParams {
                sampler,
                max_tokens: max_tokens(model, body, route)?,
                stop: stops(body)?.unwrap_or_else(|| model.stop.clone()),
                logprobs: logprobs(body, route)?,
                eog: [model.eog.clone(), stop_ids(body)?].concat(),
                ignore_eos: flag(body, "ignore_eos")?,
                speculate: speculation(model.speculation, model.scheduler.drafts(), body)?,
                ..GenerateParams::default()
            },
            n: number(body, "n", 1, MOST_ANSWERS)?.unwrap_or(1),
            stream: flag(body, "stream")?,
            include_usage,
            salt: salt.to_owned(),
            common: 0,
            echo: flag(body, "echo")?,
            chosen: adapters::chosen(model, body).await?,
        })
    }
}

/// One line for all that a request says and nobody knows, or a refusal if the server is strict.
fn say_unknown(served: &Served, names: &[&str]) -> Result<(), ApiError> {
    let short = |name: &&str| name.chars().take(64).collect::<String>();
    let some: Vec<String> = names.iter().take(8).map(short).collect();
    match some.first() {
        None => Ok(()),
        Some(name) if served.strict => Err(invalid(name, "is unknown, and this server is strict")),
        Some(_) => {
            let count = names.len();
            tracing::warn!("a request says {count} things that are unknown: {some:?}");
            Ok(())
        }
    }
}

/// Says or refuses what the body of a route has beside its fields ([`super::fields`]).
pub(crate) fn known(call: &Call, path: &str) -> Result<(), ApiError> {
    let fields = super::fields(path);
    let said = call.body.iter().filter(|(_, v)| !v.is_null());
    let unknown = said.filter(|(name, _)| fields.iter().all(|(field, _)| field != name));
    let names: Vec<&str> = unknown.map(|(name, _)| name.as_str()).collect();
    say_unknown(&call.served, &names)
}

/// Highest and lowest priority of a request, and its longest time, in milliseconds.
const PRIORITY: i64 = 100;
const LONGEST: usize = 24 * 3600 * 1000;

/// The priority that a request asks for. One key's would hold up all others: above the usual it
/// takes an admin.
pub(crate) fn priority(call: &Call) -> Result<i8, ApiError> {
    let Some(value) = given(&call.body, "priority") else {
        return Ok(0);
    };
    let asked = value.as_i64().filter(|p| p.abs() <= PRIORITY);
    let asked = asked.and_then(|p| i8::try_from(p).ok());
    let asked = asked.ok_or_else(|| {
        let what = format!("is {value}, but must be a whole number from -{PRIORITY} to {PRIORITY}");
        invalid("priority", &what)
    })?;
    if asked > 0 && !call.keeps() {
        let what = "a priority above 0 needs a key with the scope admin";
        return Err(ApiError::new(Kind::Scope, what).param("priority"));
    }
    Ok(asked)
}

/// How long a request may take.
pub(crate) fn timeout(body: &Body) -> Result<Option<Duration>, ApiError> {
    let most = number(body, "timeout_ms", 1, LONGEST)?;
    Ok(most.map(|ms| Duration::from_millis(ms as u64)))
}

fn drawn() -> u64 {
    u64::from_str_radix(&crate::random_hex::<8>(), 16).unwrap_or(0)
}

/// Does with one name what the table says; false if it is unknown.
fn check(
    sampler: &mut SamplerParams,
    name: &str,
    value: &Value,
    route: On,
) -> Result<bool, ApiError> {
    let found = PARAMS
        .iter()
        .find(|(n, on, ..)| *n == name && on.knows(route));
    match found.map(|(_, _, treat, about)| (treat, about)) {
        Some((Treat::Honoured | Treat::Accepted, _)) => Ok(true),
        Some((Treat::Sampler(set), about)) => {
            let set = set(sampler, value).map(|()| true);
            set.ok_or_else(|| invalid(name, &format!("has a value of the wrong kind: {about}")))
        }
        Some((Treat::Refused(neutral), _)) if neutral(value) => Ok(true),
        Some((Treat::Refused(_), about)) => {
            let what = format!("{name} is not supported: {about}");
            Err(ApiError::new(Kind::Invalid, what).param(name))
        }
        None => Ok(false),
    }
}

/// What `max_tokens` is for completions that do not say.
const COMPLETION: usize = 16;

fn max_tokens(model: &Model, body: &Body, route: On) -> Result<Option<usize>, ApiError> {
    const MOST: usize = u32::MAX as usize;
    let names: &[&str] = match route {
        On::Chat => &["max_completion_tokens", "max_tokens"],
        _ => &["max_tokens"],
    };
    for name in names {
        if let Some(n) = number(body, name, 0, MOST)? {
            return Ok(Some(n));
        }
    }
    match given(body, "n_predict") {
        Some(v) if *v == -1 => Ok(None),
        Some(_) => number(body, "n_predict", 0, MOST),
        None => {
            let default = (route == On::Completions).then_some(COMPLETION);
            Ok(model.max_tokens.or(default))
        }
    }
}

/// Most tokens that may be guessed at a time: more rows are no cheaper than passes of their own.
const MOST_GUESSED: usize = 64;

/// How to guess ahead; `drafts`: there is a draft model.
fn speculation(own: Speculation, drafts: bool, body: &Body) -> Result<Speculation, ApiError> {
    let most = number(body, "speculative.n_max", 0, MOST_GUESSED)?;
    let usual = Speculation {
        most: most.unwrap_or(own.most),
        ..own
    };
    let name = match given(body, "speculative") {
        None => return Ok(usual),
        Some(name) => name.as_str().unwrap_or_default(),
    };
    // A server that never guesses of itself does so where it is asked to.
    let most = most.unwrap_or(match own.most {
        0 => Speculation::MOST,
        own => own,
    });
    let named = Speculation { most, ..own }.named(name);
    let asked = named.ok_or_else(|| {
        let names = Speculation::NAMES.join(", ");
        invalid("speculative", &format!("must be one of {names}"))
    })?;
    match name == "draft" && !drafts {
        true => Err(invalid(
            "speculative",
            "is draft, and this model has no draft model",
        )),
        false => Ok(asked),
    }
}

fn stops(body: &Body) -> Result<Option<Vec<String>>, ApiError> {
    let Some(value) = given(body, "stop") else {
        return Ok(None);
    };
    let fits = |s: &String| (1..=LONGEST_STOP).contains(&s.len());
    let list = strings(value).filter(|l| l.len() <= MOST_STOPS && l.iter().all(fits));
    list.map(Some).ok_or_else(|| {
        let what = "must be a text, or up to 16 texts, of 1 to 256 bytes each";
        invalid("stop", what)
    })
}

/// Most tokens that may end an answer.
const MOST_STOP_IDS: usize = 64;

fn stop_ids(body: &Body) -> Result<Vec<u32>, ApiError> {
    let Some(value) = given(body, "stop_token_ids") else {
        return Ok(Vec::new());
    };
    let list = value.as_array().filter(|l| l.len() <= MOST_STOP_IDS);
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = list.and_then(|l| l.iter().map(id).collect());
    ids.ok_or_else(|| invalid("stop_token_ids", "must be a list of up to 64 token ids"))
}

fn logprobs(body: &Body, route: On) -> Result<Option<usize>, ApiError> {
    match route {
        On::Completions => return number(body, "logprobs", 0, 5),
        On::Infill => return Ok(None),
        _ => {}
    }
    let top = number(body, "top_logprobs", 0, 20)?;
    match (flag(body, "logprobs")?, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(invalid("top_logprobs", "needs logprobs: true")),
    }
}
