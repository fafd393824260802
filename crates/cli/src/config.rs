//! `puna.toml`: settings of a person or a project, under the environment and the options.
//!
//! ```toml
//! model = "smollm2:135m"     # PUNA_MODEL
//! threads = 4                # --threads, PUNA_THREADS
//! temperature = 0.6          # the samplers, --ctx, --cache-type, --system, ...
//!
//! [serve]
//! port = 7862                # PUNA_SERVE_PORT
//! keep-alive = "5m"          # PUNA_SERVE_KEEP_ALIVE
//!
//! [models."llama3:8b"]       # for one model, over its own settings
//! ctx = 8192
//! ```
//!
//! Names are those of the options; `_` does for `-`. One file counts: the one that `PUNA_CONFIG`
//! names, else `puna.toml` in the current directory, else the person's own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::Result;
use clap::ValueEnum;
use hub::Resolved;
use server::KeepAlive;
use toml::{Table, Value};

use crate::args::Simd;
use crate::exit::usage;
use crate::lower::Lower;

/// The largest file that is read.
const LARGEST: u64 = 1 << 20;

/// Settings of the machine: they stand for options of many verbs.
pub const MACHINE: [&str; 4] = ["threads", "compute", "simd", "offline"];
/// Settings of the process that no option has.
pub const PROCESS: [&str; 2] = ["model", "home"];
/// Settings of the server.
pub const SERVE: [&str; 4] = ["host", "port", "on-demand", "keep-alive"];
/// Those of them that stand where the default of an option of `serve` would.
pub const RESIDENCE: [&str; 2] = ["on-demand", "keep-alive"];
/// Settings that a model may have of its own: options of `run`.
pub const MODEL: [&str; 31] = [
    "ctx",
    "cache-type",
    "system",
    "template",
    "max-tokens",
    "stop",
    "draft",
    "speculate",
    "temperature",
    "top-k",
    "top-p",
    "min-p",
    "typical-p",
    "top-n-sigma",
    "repeat-penalty",
    "repeat-last-n",
    "presence-penalty",
    "frequency-penalty",
    "dry-multiplier",
    "dry-base",
    "dry-allowed-length",
    "dry-penalty-last-n",
    "xtc-probability",
    "xtc-threshold",
    "dynatemp-range",
    "dynatemp-exponent",
    "mirostat",
    "mirostat-tau",
    "mirostat-eta",
    "seed",
    "logit-bias",
];

/// Names and values, as the options take them.
pub type Pairs = Vec<(String, String)>;

/// What the file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The file; `None` if there is none.
    pub file: Option<PathBuf>,
    /// For all models and verbs.
    pub general: Pairs,
    /// For the server.
    pub serve: Pairs,
    /// For single models, by the names that the file has for them.
    pub models: BTreeMap<String, Pairs>,
}

static CONFIG: OnceLock<Config> = OnceLock::new();

/// What [`load`] found; nothing before it.
pub fn get() -> &'static Config {
    static NONE: Config = Config {
        file: None,
        general: Vec::new(),
        serve: Vec::new(),
        models: BTreeMap::new(),
    };
    CONFIG.get().unwrap_or(&NONE)
}

/// Reads the file, once.
pub fn load() -> Result<&'static Config> {
    let config = match find()? {
        Some(path) => read(&path)?,
        None => Config::default(),
    };
    Ok(CONFIG.get_or_init(|| config))
}

/// The places, in order. An empty variable counts as unset.
fn find() -> Result<Option<PathBuf>> {
    if let Some(path) = crate::env::os("PUNA_CONFIG").map(PathBuf::from) {
        if path.is_file() {
            return Ok(Some(path));
        }
        let what = format!("PUNA_CONFIG: there is no file {}", path.display());
        return Err(usage(what, "unset it, or name a puna.toml"));
    }
    let xdg = crate::env::os("XDG_CONFIG_HOME").map(PathBuf::from);
    let own = xdg.filter(|dir| dir.is_absolute()).or_else(|| {
        let home = crate::env::os("HOME").map(PathBuf::from);
        home.map(|home| home.join(".config"))
    });
    let own = own.map(|dir| dir.join("puna/puna.toml"));
    let places = [Some(PathBuf::from("puna.toml")), own];
    Ok(places.into_iter().flatten().find(|path| path.is_file()))
}

fn read(path: &Path) -> Result<Config> {
    let wrong = |why: String| {
        usage(
            format!("{}: {why}", path.display()),
            "docs/configuration.md has the names; PUNA_CONFIG names another file",
        )
    };
    let size = std::fs::metadata(path).map_or(0, |meta| meta.len());
    if size > LARGEST {
        return Err(wrong(format!("it is larger than {LARGEST} bytes")));
    }
    let text = crate::input::text(path)?;
    let mut config = parse(&text).map_err(wrong)?;
    let whose = path.display().to_string();
    let sections = config.models.values().chain([&config.general]);
    for pairs in sections {
        Lower::read(of_options(pairs), &whose)?;
    }
    config.file = Some(path.to_path_buf());
    Ok(config)
}

/// Those pairs that [`Lower`] knows.
fn of_options(pairs: &Pairs) -> impl Iterator<Item = (&str, &str)> {
    let known = |name: &str| MODEL.contains(&name) || ["threads", "compute"].contains(&name);
    let pairs = pairs
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    pairs.filter(move |(name, _)| known(name))
}

/// The file's text as names and values. What no option could take is an error that names it.
fn parse(text: &str) -> Result<Config, String> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| {
            text.get(..span.start)
                .map_or(1, |before| before.matches('\n').count() + 1)
        });
        format!("line {line}: {}", error.message())
    })?;
    let mut config = Config::default();
    let general: Vec<&str> = [&MACHINE[..], &PROCESS, &MODEL, &["serve", "models"]].concat();
    for (name, value) in &table {
        match (name.as_str(), value) {
            ("serve", Value::Table(table)) => {
                config.serve = section(table, &SERVE, "serve.")?;
                serving(&config.serve)?;
            }
            ("models", Value::Table(models)) => {
                for (model, value) in models {
                    let Value::Table(table) = value else {
                        return Err(format!("models.{model:?} is no table of settings"));
                    };
                    let pairs = section(table, &MODEL, &format!("models.{model:?}."))?;
                    config.models.insert(model.clone(), pairs);
                }
            }
            ("serve" | "models", _) => return Err(format!("{name} is no table of settings")),
            _ => pairs(&mut config.general, name, value, &general, "")?,
        }
    }
    let simd = config.general.iter().find(|(name, _)| name == "simd");
    if let Some((_, level)) = simd
        && Simd::from_str(level, true).is_err()
    {
        return Err(format!("there is no SIMD level {level:?}"));
    }
    let offline = config.general.iter().find(|(name, _)| name == "offline");
    match offline {
        Some((_, value)) if !["true", "false"].contains(&value.as_str()) => {
            Err("offline is true or false".into())
        }
        _ => Ok(config),
    }
}

/// What the options of `serve` could not take.
fn serving(serve: &Pairs) -> Result<(), String> {
    for (name, value) in serve {
        let (fits, what) = match name.as_str() {
            "port" => (value.parse::<u16>().is_ok(), "no number of a port"),
            "on-demand" => (
                ["true", "false"].contains(&value.as_str()),
                "not true or false",
            ),
            "keep-alive" => (value.parse::<KeepAlive>().is_ok(), "no time like 5m"),
            _ => continue,
        };
        if !fits {
            return Err(format!("serve.{name} {value:?} is {what}"));
        }
    }
    Ok(())
}

fn section(table: &Table, known: &[&str], whose: &str) -> Result<Pairs, String> {
    let mut out = Pairs::new();
    for (name, value) in table {
        pairs(&mut out, name, value, known, whose)?;
    }
    Ok(out)
}

/// Adds what one key says: a list is the option given several times.
fn pairs(
    out: &mut Pairs,
    typed: &str,
    value: &Value,
    known: &[&str],
    whose: &str,
) -> Result<(), String> {
    let name = typed.replace('_', "-");
    if !known.contains(&name.as_str()) {
        let near = hub::nearest(&name, known.iter().copied());
        let near = near
            .first()
            .map_or(String::new(), |near| format!("; did you mean {near}?"));
        return Err(format!("there is no setting {whose}{typed}{near}"));
    }
    if out.iter().any(|(old, _)| *old == name) {
        return Err(format!("{whose}{name} is set twice"));
    }
    let one = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(n) => Ok(n.to_string()),
        Value::Float(x) => Ok(x.to_string()),
        Value::Boolean(on) => Ok(on.to_string()),
        _ => Err(format!("{whose}{name} takes no {}", value.type_str())),
    };
    match value {
        Value::Array(values) if ["stop", "logit-bias"].contains(&name.as_str()) => {
            for value in values {
                out.push((name.clone(), one(value)?));
            }
        }
        value => out.push((name.clone(), one(value)?)),
    }
    Ok(())
}

impl Config {
    /// The value of a setting for all models.
    pub fn general(&self, name: &str) -> Option<&str> {
        let pair = self.general.iter().find(|(known, _)| known == name);
        pair.map(|(_, value)| value.as_str())
    }

    /// The value of a setting of the server.
    pub fn serve(&self, name: &str) -> Option<&str> {
        let pair = self.serve.iter().find(|(known, _)| known == name);
        pair.map(|(_, value)| value.as_str())
    }

    /// The section of one model, and the name that it has there.
    pub fn of_model(&self, found: &Resolved) -> Option<(&str, &Pairs)> {
        let means = |key: &str| {
            let name = hub::parse_name(key).map(|(name, tag)| format!("{name}:{tag}"));
            key == found.name || key == found.source || name.as_ref() == Some(&found.name)
        };
        let mut models = self.models.iter();
        let found = models.find(|(key, _)| means(key));
        found.map(|(key, pairs)| (key.as_str(), pairs))
    }

    /// What lies under the options for one model: its section, what it says itself, and what is
    /// said for all models.
    pub fn lower(&self, found: &Resolved) -> Result<Lower> {
        let whose = self
            .file
            .as_ref()
            .map_or(String::new(), |file| file.display().to_string());
        let mut lower = match self.of_model(found) {
            Some((_, pairs)) => Lower::read(of_options(pairs), &whose)?,
            None => Lower::default(),
        };
        if let Some(recipe) = &found.recipe {
            lower = lower.over(Lower::of_recipe(recipe, &found.name)?);
        }
        Ok(lower.over(Lower::read(of_options(&self.general), &whose)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_names_and_values() {
        let config = parse(
            "model = \"m\"\ncache_type = \"q8_0\"\ntemperature = 0.5\nstop = [\"a\", \"b\"]\noffline = true\n\
             [serve]\nport = 80\n[models.\"m:latest\"]\nctx = 64\nseed = 7",
        )
        .unwrap();
        let all: Vec<String> = config
            .general
            .iter()
            .map(|(n, v)| format!("{n}={v}"))
            .collect();
        assert_eq!(
            all,
            [
                "cache-type=q8_0",
                "model=m",
                "offline=true",
                "stop=a",
                "stop=b",
                "temperature=0.5"
            ]
        );
        assert_eq!(config.serve, [("port".to_owned(), "80".to_owned())]);
        let found = |name: &str| Resolved {
            name: name.into(),
            path: PathBuf::new(),
            source: "x".into(),
            sha256: None,
            licence: None,
            bytes: 0,
            recipe: None,
        };
        let lower = config.lower(&found("m:latest")).unwrap();
        assert_eq!(
            (lower.ctx, lower.sampling.temperature),
            (Some(64), Some(0.5))
        );
        assert_eq!(config.lower(&found("n:latest")).unwrap().ctx, None);
        // What a made model says lies between.
        let mut made = found("m:latest");
        let recipe = "FROM x\nPARAMETER num_ctx 9\nPARAMETER temperature 0.1";
        made.recipe = hub::parse_modelfile(recipe).ok();
        let lower = config.lower(&made).unwrap();
        assert_eq!(
            (lower.ctx, lower.sampling.temperature),
            (Some(64), Some(0.1))
        );
    }

    #[test]
    fn what_no_option_takes_is_named() {
        for (text, why) in [
            (
                "temprature = 1",
                "no setting temprature; did you mean temperature?",
            ),
            ("x = [", "line 1"),
            ("a = 1\nb = = 2", "line 2"),
            ("[models.m]\nthreads = 2", "no setting models.\"m\".threads"),
            ("[serve]\nhots = \"x\"", "did you mean host?"),
            ("[serve]\nport = 70000", "no number of a port"),
            ("[serve]\nkeep-alive = \"soon\"", "no time like 5m"),
            ("[serve]\non-demand = 3", "not true or false"),
            ("models = 3", "no table"),
            ("[models]\nm = 3", "no table"),
            ("ctx = { a = 1 }", "ctx takes no table"),
            ("ctx = [1, 2]", "ctx takes no array"),
            ("stop = [[1]]", "stop takes no array"),
            ("simd = \"mmx\"", "no SIMD level"),
            ("offline = \"perhaps\"", "true or false"),
            ("top-k = 1\ntop_k = 2", "top-k is set twice"),
        ] {
            let said = parse(text).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    /// Every setting of the server is an option of `serve` that the environment has too.
    #[test]
    fn settings_of_the_server_are_options() {
        let command = <crate::args::Cli as clap::CommandFactory>::command();
        let serve = command.find_subcommand("serve").expect("a verb");
        for name in SERVE {
            let mut all = serve.get_arguments();
            let found = all.find(|a| a.get_long() == Some(name));
            assert!(found.is_some_and(|a| a.get_env().is_some()), "{name}");
        }
    }

    /// Every setting of a model is an option of `run`.
    #[test]
    fn settings_are_options() {
        let command = crate::args::command();
        let run = command.find_subcommand("run").expect("a verb");
        for name in MODEL.iter().chain(&MACHINE) {
            assert!(
                run.get_arguments().any(|a| a.get_long() == Some(name)),
                "{name}"
            );
        }
    }
}
