//! `puna config`: the settings in force, and where each came from.

use std::time::Duration;

use anyhow::Result;
use clap::CommandFactory;
use engine::{SamplerParams, SchedulerParams};
use hub::Resolved;
use kernels::KvType;
use serde::Serialize;

use super::sampling;
use crate::args::{Cli, ConfigArgs, NetArgs};
use crate::config;
use crate::{load, out};

#[derive(Serialize)]
struct Report {
    /// The puna.toml that was read.
    file: Option<String>,
    /// The model whose settings these are; `None`: of every model.
    model: Option<String>,
    settings: Vec<Setting>,
}

#[derive(Serialize, PartialEq, Debug)]
struct Setting {
    name: String,
    /// `None`: it is not set, and the model or the machine decides.
    value: Option<String>,
    /// A variable's name, the file and what of it, the model that says so, "default", or "fixed"
    /// where nothing can say otherwise.
    source: String,
}

/// Settings that the environment has too.
const VARIABLES: [(&str, &str); 7] = [
    ("model", "PUNA_MODEL"),
    ("home", "PUNA_HOME"),
    ("threads", "PUNA_THREADS"),
    ("compute", "PUNA_COMPUTE"),
    ("simd", "PUNA_SIMD"),
    ("offline", "PUNA_OFFLINE"),
    ("memory", "PUNA_MEMORY"),
];

pub fn run(args: &ConfigArgs) -> Result<()> {
    let config = config::get();
    let found = match &args.model {
        Some(typed) => Some(load::find_model(NetArgs { offline: true }, typed)?),
        None => None,
    };
    let file = config.file.as_ref().map(|file| file.display().to_string());
    let mut layers = Vec::new();
    if let (Some(found), Some(file)) = (&found, &file)
        && let Some((name, pairs)) = config.of_model(found)
    {
        layers.push((format!("{file} [models.{name:?}]"), pairs.clone()));
    }
    if let Some((found, recipe)) = found.as_ref().and_then(|f| Some((f, f.recipe.as_ref()?))) {
        let mut pairs = recipe.parameters.clone();
        let texts = [("system", &recipe.system), ("template", &recipe.template)];
        let texts = texts
            .into_iter()
            .filter_map(|(name, text)| Some((name, text.clone()?)));
        pairs.extend(texts.map(|(name, text)| (name.to_owned(), text)));
        layers.push((format!("the model {}", found.name), pairs));
    }
    if let Some(file) = &file {
        layers.push((file.clone(), config.general.clone()));
        let serve = config.serve.iter().cloned();
        let serve = serve.map(|(name, value)| (format!("serve.{name}"), value));
        layers.push((format!("{file} [serve]"), serve.collect()));
    }
    if let Some(found) = &found {
        layers.extend(recommended(found)?);
    }
    let report = Report {
        settings: settings(&layers)?.into_iter().chain(fixed()).collect(),
        model: found.map(|found| found.name),
        file,
    };
    out::print(args.format.format, &report, || describe(&report))
}

/// The samplers that the model recommends, or the catalogue for it: under everything else.
fn recommended(found: &Resolved) -> Result<Option<(String, config::Pairs)>> {
    let set = sampling::any_set(&load::lower(found)?.sampling);
    let Some(json) = load::recommended(&found.path, found.sha256.as_deref(), set)? else {
        return Ok(None);
    };
    let file = found.path.join(load::GENERATION);
    let source = match file.is_file() {
        true => file.display().to_string(),
        false => "the catalogue".to_owned(),
    };
    let plain = sampling::listed(&SamplerParams::default());
    let with = SamplerParams::default().with_generation_config(&json)?;
    let with = sampling::listed(&with).into_iter().zip(plain);
    let said =
        with.filter(|((name, value), (_, plain))| value != plain || json.get(name).is_some());
    let pairs = said.map(|((name, value), _)| (name.replace('_', "-"), value));
    Ok(Some((source, pairs.collect())))
}

/// Every setting, from the highest layer that has it.
fn settings(layers: &[(String, config::Pairs)]) -> Result<Vec<Setting>> {
    let memory = ["memory"];
    let plain = [
        &config::PROCESS[..],
        &config::MACHINE,
        &memory,
        &config::MODEL,
    ];
    let plain = plain.concat();
    let serve = of_serve();
    let names = plain.into_iter().map(str::to_owned);
    let names = names.chain(serve.iter().map(|option| option.name.clone()));
    let mut defaults = defaults()?;
    defaults.extend(
        serve
            .iter()
            .filter_map(|o| Some((o.name.clone(), o.default.clone()?))),
    );
    Ok(names
        .map(|name| {
            let variable = VARIABLES.iter().find(|row| row.0 == name).map(|row| row.1);
            let of_option = || serve.iter().find(|o| o.name == name)?.variable.as_deref();
            let variable = variable.or_else(of_option);
            let said = variable.and_then(|v| Some((crate::env::text(v)?, v.to_owned())));
            let of_layer = |(source, pairs): &(String, config::Pairs)| {
                let values = pairs.iter().filter(|(known, _)| *known == name);
                let values: Vec<&str> = values.map(|(_, value)| value.as_str()).collect();
                (!values.is_empty()).then(|| (values.join(", "), source.clone()))
            };
            // What the file says of the machine counts before what a model says of it.
            let below = || match config::MACHINE.contains(&name.as_str()) {
                true => layers.iter().rev().find_map(of_layer),
                false => layers.iter().find_map(of_layer),
            };
            match said.or_else(below) {
                Some((value, source)) => Setting {
                    name,
                    value: Some(value),
                    source,
                },
                None => Setting {
                    value: defaults.iter().find(|d| d.0 == name).map(|d| d.1.clone()),
                    source: "default".into(),
                    name,
                },
            }
        })
        .collect())
}

/// The server's limits that no option changes.
fn fixed() -> impl Iterator<Item = Setting> {
    let seconds = |time: Duration| format!("{}s", time.as_secs());
    let engine = SchedulerParams::new(KvType::F16, 1, 1);
    let of_models = [
        ("load-timeout", seconds(super::serve::PATIENCE)),
        ("model-queue", engine.queue.to_string()),
        ("model-write-timeout", seconds(engine.patience)),
    ];
    let all = server::limits().into_iter().chain(of_models);
    all.map(|(name, value)| Setting {
        name: format!("serve.{name}"),
        value: Some(value),
        source: "fixed".into(),
    })
}

/// An option of `serve`; some of them the environment has too, and puna.toml.
struct ServeOption {
    name: String,
    variable: Option<String>,
    default: Option<String>,
}

/// All of them, but for those of the machine and of models, which are there already.
fn of_serve() -> Vec<ServeOption> {
    let command = Cli::command();
    let there = [&config::PROCESS[..], &config::MACHINE, &config::MODEL].concat();
    let verb = command.find_subcommand("serve").into_iter();
    let options = verb
        .flat_map(clap::Command::get_arguments)
        .filter_map(|arg| {
            let long = arg.get_long().filter(|long| !there.contains(long))?;
            let default = arg.get_default_values().first();
            let switch = (!arg.get_action().takes_values()).then(|| "false".to_owned());
            Some(ServeOption {
                name: format!("serve.{long}"),
                variable: arg.get_env().and_then(|v| Some(v.to_str()?.to_owned())),
                default: default.map_or(switch, |value| Some(value.to_string_lossy().into_owned())),
            })
        });
    options.collect()
}

/// What holds where nobody says anything; a model may say otherwise of its samplers.
fn defaults() -> Result<Vec<(String, String)>> {
    let hub = load::hub(NetArgs { offline: true })?;
    let level = kernels::Level::best().name().to_owned();
    let mut all: Vec<(String, String)> = [
        ("model", hub.default_model().to_owned()),
        ("home", hub.home().display().to_string()),
        ("threads", crate::machine::threads().to_string()),
        ("compute", "fast".to_owned()),
        ("simd", level),
        ("offline", "false".to_owned()),
        ("serve.host", "127.0.0.1".to_owned()),
        ("serve.port", "7862".to_owned()),
        (
            "serve.state",
            hub.home().join("server.sqlite").display().to_string(),
        ),
        ("cache-type", "f16".to_owned()),
        ("speculate", "8".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let samplers = sampling::listed(&SamplerParams::default()).into_iter();
    all.extend(samplers.map(|(name, value)| (name.replace('_', "-"), value)));
    Ok(all)
}

fn describe(report: &Report) -> String {
    let mut lines = vec![match &report.file {
        Some(file) => format!("settings in {file}"),
        None => "no puna.toml".to_owned(),
    }];
    for Setting {
        name,
        value,
        source,
    } in &report.settings
    {
        let value = value.as_deref().unwrap_or("-");
        lines.push(format!(
            "{name:<27} {:<24} {source}",
            value.replace('\n', "\\n")
        ));
    }
    lines.join("\n")
}
