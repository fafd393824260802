//! Chat templates: messages in, the prompt's text out.
//!
//! A chat template is a Jinja2 program that comes with a model, out of anyone's hands. It is compiled once and
//! rendered by minijinja, set up as transformers sets up Jinja2 (`trim_blocks`, `lstrip_blocks`, loop controls,
//! its own `tojson`, `raise_exception`, `strftime_now`), so that the same messages give the same bytes.
//!
//! A template is hostile until it has ended: its source, its work (fuel), its output and its nesting are capped;
//! it runs on a thread of its own with a stack for the deepest value that fuel can build, and is given up after
//! a deadline. It can load nothing: no file, no other template.
//!
//! This module knows messages as JSON; it knows nothing of tokens (`chat.rs` does).

use crate::error::Error;
use crate::{filters, python, source};
use chrono::{Local, NaiveDate, NaiveDateTime, NaiveTime};
use indexmap::IndexMap;
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, State};
use serde_json::Value;
use std::fmt::Write as _;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Largest template source that is compiled, in bytes; the largest known templates are below 64 KiB.
const MAX_SOURCE: usize = 1 << 20;
/// Most text that messages, tools and variables may hold together, in bytes.
const MAX_INPUT: usize = 32 << 20;
/// Deepest nesting of messages, tools and variables.
const MAX_INPUT_DEPTH: usize = 128;
/// Output that any template may write, in bytes; a longer input may give a proportionally longer output.
const MIN_OUTPUT_CAP: usize = 8 << 20;
/// Fuel for a rendering (one unit: one instruction, or about 64 bytes handled), before what the input adds.
const BASE_FUEL: u64 = 300_000;
/// However long the input, no more fuel than this.
const MAX_FUEL: u64 = 40_000_000;
/// Frames that one level of loops and macros may take, of the engine's own 500.
const RECURSION_LIMIT: usize = 400;
/// Stack of a rendering's thread, in bytes: reserved, not used, unless a template nests its values as deep as
/// its fuel lets it.
const STACK: usize = 64 << 20;
/// How long a rendering may take. Fuel ends nearly all that is endless in well under a second; this is for the
/// few operations of the engine that fuel does not meter (comparing values that hold each other many times).
const DEADLINE: Duration = Duration::from_secs(10);
/// The template's name in the engine's messages.
const NAME: &str = "chat template";
/// The name, not spellable in a template, under which a rendering holds its date.
const DATE: &str = " date";

/// A compiled chat template. Cheap to clone; may be used from several threads at once.
#[derive(Clone)]
pub struct ChatTemplate {
    inner: Arc<Inner>,
}

struct Inner {
    env: Environment<'static>,
    source: String,
    literals: Vec<String>,
    bos: String,
    eos: String,
    /// Set when a rendering has run over its deadline: its thread may still run, there shall be no second.
    given_up: AtomicBool,
}

/// What a template is given beside the messages.
#[derive(Debug, Clone)]
pub struct RenderOptions {
    /// Tool definitions, as a list of JSON schemas; a template sees `none` where there are none.
    pub tools: Option<Value>,
    /// Further template variables (`date_string`, `enable_thinking`, `documents`, ..). They come before the
    /// template's own `bos_token` and `eos_token`, never before `messages`, `tools` and `add_generation_prompt`.
    pub vars: serde_json::Map<String, Value>,
    /// Whether the rendering ends with the header of the assistant's answer. True by default.
    pub add_generation_prompt: bool,
    /// What `strftime_now` calls today; the local clock by default.
    pub date: Option<NaiveDate>,
}

impl Default for RenderOptions {
    fn default() -> RenderOptions {
        RenderOptions {
            tools: None,
            vars: serde_json::Map::new(),
            add_generation_prompt: true,
            date: None,
        }
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("source", &self.inner.source)
            .field("bos", &self.inner.bos)
            .field("eos", &self.inner.eos)
            .finish()
    }
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the texts of the model's tokens, empty where it has none.
    ///
    /// # Errors
    /// [`Error::Template`] with the line where the source is not a template, [`Error::TemplateLimit`] where it is
    /// too long.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, Error> {
        if source.len() > MAX_SOURCE {
            return Err(limit(format!(
                "its source of {} bytes is longer than {MAX_SOURCE}",
                source.len()
            )));
        }
        let source::Source {
            text,
            literals,
            whole,
        } = source::prepare(source).map_err(limit)?;
        let env = on_its_own_thread(move || {
            let mut env = environment().clone();
            env.add_template_owned(NAME, text)
                .map_err(|e| engine_error(&e))?;
            Ok(env)
        })?;
        if !whole {
            return Err(template_error("a tag cannot be read", None));
        }
        let (source, bos, eos) = (source.to_string(), bos.to_string(), eos.to_string());
        let given_up = AtomicBool::new(false);
        Ok(ChatTemplate {
            inner: Arc::new(Inner {
                env,
                source,
                literals,
                bos,
                eos,
                given_up,
            }),
        })
    }

    /// The source this template was compiled from.
    pub fn source(&self) -> &str {
        &self.inner.source
    }

    /// Renders a conversation: the prompt as text, for people and for other programs. What is fed to a model is
    /// [`ChatTemplate::encode`].
    ///
    /// # Errors
    /// [`Error::Refused`] with the template's message where it calls `raise_exception`; [`Error::Template`] where
    /// it fails otherwise; [`Error::TemplateLimit`] where it, or the input, is too much.
    pub fn render(&self, messages: &[Value], options: &RenderOptions) -> Result<String, Error> {
        self.render_with(messages, options, "", &mut |_, text| {
            minijinja::Value::from(text)
        })
    }

    /// The string literals of the template's source: what it may look for in a message.
    pub(crate) fn literals(&self) -> &[String] {
        &self.inner.literals
    }

    /// The texts of the BOS and EOS tokens the template was given.
    pub(crate) fn token_texts(&self) -> [&str; 2] {
        [&self.inner.bos, &self.inner.eos]
    }

    /// Renders with every string from outside as `text` gives it to the template; `marks` are the characters
    /// that `text` may have put in the place of others.
    pub(crate) fn render_with(
        &self,
        messages: &[Value],
        options: &RenderOptions,
        marks: &str,
        text: &mut dyn FnMut(Place, &str) -> minijinja::Value,
    ) -> Result<String, Error> {
        let mut input = Input { text, bytes: 0 };
        let context = context(&self.inner, messages, options, marks, &mut input)?;
        let (bytes, turns) = (input.bytes as u64, messages.len() as u64);
        let fuel = BASE_FUEL
            + 2 * bytes
            + turns.saturating_mul(2_000)
            + turns.saturating_mul(turns).saturating_mul(2);
        let cap = MIN_OUTPUT_CAP.max(input.bytes.saturating_mul(4));
        let inner = Arc::clone(&self.inner);
        if inner.given_up.load(Ordering::Relaxed) {
            return Err(overdue());
        }
        let rendered = on_its_own_thread(move || {
            let mut env = inner.env.clone();
            env.set_fuel(Some(fuel.min(MAX_FUEL)));
            let template = env.get_template(NAME).map_err(|e| engine_error(&e))?;
            let mut out = Capped {
                bytes: Vec::new(),
                cap,
                full: false,
            };
            let rendered = template.render_captured_to(context, &mut out).map(drop);
            if out.full {
                return Err(limit(format!("it writes more than {cap} bytes")));
            }
            rendered.map_err(|e| engine_error(&e))?;
            String::from_utf8(out.bytes)
                .map_err(|_| template_error("the output is not UTF-8", None))
        });
        if matches!(&rendered, Err(Error::TemplateLimit { what }) if *what == OVERDUE) {
            self.inner.given_up.store(true, Ordering::Relaxed);
        }
        rendered
    }
}

/// Where a string from outside stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A key of an object.
    Key,
    /// A message's role.
    Role,
    /// Anything else.
    Content,
}

/// The engine set up as transformers sets up Jinja2; made once.
fn environment() -> &'static Environment<'static> {
    static ENVIRONMENT: OnceLock<Environment<'static>> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let mut env = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        // Jinja2's own marks: the builder can only refuse others.
        if let Ok(syntax) = syntax.build() {
            env.set_syntax(syntax);
        }
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_recursion_limit(RECURSION_LIMIT);
        // For the names of undefined values in messages.
        env.set_debug(true);
        filters::install(&mut env);
        env.add_function("raise_exception", raise_exception);
        env.add_function("strftime_now", strftime_now);
        env.set_formatter(|out, state, value| {
            if !matches!(state.auto_escape(), AutoEscape::None) {
                return minijinja::escape_formatter(out, state, value);
            }
            let text = python::text(state, value)?;
            Ok(out.write_str(&text)?)
        });
        env
    })
}

/// The variables a template sees.
fn context(
    inner: &Inner,
    messages: &[Value],
    options: &RenderOptions,
    marks: &str,
    input: &mut Input,
) -> Result<minijinja::Value, Error> {
    use minijinja::Value as V;
    let mut context: Vec<(String, V)> = vec![
        ("bos_token".into(), V::from(inner.bos.as_str())),
        ("eos_token".into(), V::from(inner.eos.as_str())),
    ];
    context.push(("tools".into(), V::from(())));
    context.push(("documents".into(), V::from(())));
    for (name, value) in &options.vars {
        context.push((name.clone(), input.value(value, 0)?));
    }
    let messages = messages
        .iter()
        .map(|m| input.message(m))
        .collect::<Result<Vec<V>, Error>>()?;
    context.push(("messages".into(), V::from(messages)));
    if let Some(tools) = &options.tools {
        context.push(("tools".into(), input.value(tools, 0)?));
    }
    context.push((
        "add_generation_prompt".into(),
        V::from(options.add_generation_prompt),
    ));
    if let Some(date) = options.date {
        context.push((DATE.into(), V::from(date.format("%Y-%m-%d").to_string())));
    }
    context.push((python::MARKS.into(), V::from(marks)));
    let context: IndexMap<V, V> = context
        .into_iter()
        .map(|(name, value)| (V::from(name), value))
        .collect();
    Ok(V::from_object(context))
}

/// JSON from outside on its way to a template: counted, its depth capped, its strings as the caller gives them.
struct Input<'a> {
    text: &'a mut dyn FnMut(Place, &str) -> minijinja::Value,
    bytes: usize,
}

impl Input<'_> {
    fn message(&mut self, message: &Value) -> Result<minijinja::Value, Error> {
        match message {
            Value::Object(fields) => self.object(fields, 0, true),
            other => self.value(other, 0),
        }
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<minijinja::Value, Error> {
        use minijinja::Value as V;
        if depth > MAX_INPUT_DEPTH {
            return Err(limit(format!(
                "the messages or tools are nested deeper than {MAX_INPUT_DEPTH}"
            )));
        }
        Ok(match value {
            Value::Null => V::from(()),
            Value::Bool(b) => V::from(*b),
            Value::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
                (Some(i), ..) => V::from(i),
                (_, Some(u), _) => V::from(u),
                (.., f) => V::from(f.unwrap_or(f64::NAN)),
            },
            Value::String(text) => self.string(Place::Content, text)?,
            Value::Array(items) => V::from(
                items
                    .iter()
                    .map(|item| self.value(item, depth + 1))
                    .collect::<Result<Vec<V>, Error>>()?,
            ),
            Value::Object(fields) => self.object(fields, depth, false)?,
        })
    }

    fn object(
        &mut self,
        fields: &serde_json::Map<String, Value>,
        depth: usize,
        message: bool,
    ) -> Result<minijinja::Value, Error> {
        let mut object = IndexMap::with_capacity(fields.len());
        for (name, value) in fields {
            let value = match value {
                Value::String(role) if message && name == "role" => {
                    self.string(Place::Role, role)?
                }
                value => self.value(value, depth + 1)?,
            };
            object.insert(self.string(Place::Key, name)?, value);
        }
        Ok(minijinja::Value::from_object(object))
    }

    fn string(&mut self, place: Place, text: &str) -> Result<minijinja::Value, Error> {
        // A little for each string, so that many empty ones count too.
        self.bytes += text.len() + 8;
        if self.bytes > MAX_INPUT {
            return Err(limit(format!(
                "the messages and tools hold more than {MAX_INPUT} bytes"
            )));
        }
        Ok((self.text)(place, text))
    }
}

/// Runs the engine where deep code and deep values find stack enough, and gives it up after the deadline.
fn on_its_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name(NAME.to_string())
        .stack_size(STACK)
        .spawn(move || {
            // Nobody listens after the deadline.
            let _ = sender.send(work());
        })
        .map_err(|e| limit(format!("no thread to render on: {e}")))?;
    match receiver.recv_timeout(DEADLINE) {
        Err(RecvTimeoutError::Timeout) => Err(overdue()),
        // The thread is at its end, one way or the other: leave nothing of it behind.
        answered => thread
            .join()
            .ok()
            .and(answered.ok())
            .unwrap_or_else(|| Err(template_error("the template engine failed", None))),
    }
}

/// A buffer that refuses to grow over its cap.
struct Capped {
    bytes: Vec<u8>,
    cap: usize,
    full: bool,
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.cap {
            self.full = true;
            return Err(io::Error::other("the output is longer than its cap"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A template's own refusal, told apart from other errors as the source of the engine's error.
#[derive(Debug)]
struct Refusal(String);

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

fn raise_exception(
    state: &State,
    message: Option<&minijinja::Value>,
) -> Result<minijinja::Value, minijinja::Error> {
    let message = match message {
        Some(message) => python::text(state, message)?.into_owned(),
        None => String::new(),
    };
    let message: String = message.chars().take(2000).collect();
    Err(
        minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception")
            .with_source(Refusal(message)),
    )
}

fn strftime_now(state: &State, format: &str) -> Result<String, minijinja::Error> {
    let date = state
        .lookup(DATE)
        .and_then(|d| d.as_str().and_then(|d| d.parse::<NaiveDate>().ok()));
    let now = date.map_or_else(
        || Local::now().naive_local(),
        |date| NaiveDateTime::new(date, NaiveTime::MIN),
    );
    let bad = || {
        minijinja::Error::new(
            ErrorKind::InvalidOperation,
            "strftime_now: not a date format",
        )
    };
    if format.len() > 1024 {
        return Err(bad());
    }
    let mut out = String::new();
    write!(out, "{}", now.format(&chrono_format(format))).map_err(|_| bad())?;
    Ok(out)
}

/// A date format of Python's as chrono reads it: a local time without a zone has neither `%z` nor `%Z`, and `%f`
/// are microseconds.
fn chrono_format(format: &str) -> String {
    let mut out = String::with_capacity(format.len());
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '%' { chars.next() } else { None }) {
            ('%', Some('z' | 'Z')) => {}
            ('%', Some('f')) => out.push_str("%6f"),
            ('%', Some(kind)) => out.extend(['%', kind]),
            (c, _) => out.push(c),
        }
    }
    out
}

/// What is said of a rendering that was given up.
const OVERDUE: &str = "it takes longer than 10 s";

fn overdue() -> Error {
    limit(OVERDUE.to_string())
}

fn limit(what: String) -> Error {
    Error::TemplateLimit { what }
}

fn template_error(what: impl Into<String>, line: Option<usize>) -> Error {
    Error::Template {
        what: what.into(),
        line,
    }
}

/// The engine's error as ours: a refusal, a limit, or what went wrong and in which line.
fn engine_error(error: &minijinja::Error) -> Error {
    let mut line = error.line();
    let mut innermost = error;
    let mut next: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(source) = next {
        if let Some(refusal) = source.downcast_ref::<Refusal>() {
            return Error::Refused {
                message: refusal.0.clone(),
            };
        }
        if let Some(inner) = source.downcast_ref::<minijinja::Error>() {
            innermost = inner;
            line = inner.line().or(line);
        }
        next = source.source();
    }
    if innermost.kind() == ErrorKind::OutOfFuel {
        return limit("it does more work than a template may".to_string());
    }
    let kind = innermost.kind();
    let what = innermost
        .detail()
        .map_or_else(|| kind.to_string(), |detail| format!("{kind}: {detail}"));
    template_error(what.chars().take(2000).collect::<String>(), line)
}
