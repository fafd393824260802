//! `puna config`: the settings in force, and where each came from.

use anyhow::Result;
use engine::SamplerParams;
use serde::Serialize;

use super::sampling;
use crate::args::{ConfigArgs, NetArgs};
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
    /// A variable's name, the file and what of it, the model that says so, or "default".
    source: String,
}

/// Settings that the environment has too.
const VARIABLES: [(&str, &str); 8] = [
    ("model", "PUNA_MODEL"),
    ("home", "PUNA_HOME"),
    ("threads", "PUNA_THREADS"),
    ("compute", "PUNA_COMPUTE"),
    ("simd", "PUNA_SIMD"),
    ("offline", "PUNA_OFFLINE"),
    ("serve.host", "PUNA_SERVE_HOST"),
    ("serve.port", "PUNA_SERVE_PORT"),
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
    let report = Report {
        settings: settings(&layers)?,
        model: found.map(|found| found.name),
        file,
    };
    out::print(args.format.format, &report, || describe(&report))
}

/// Every setting, from the highest layer that has it.
fn settings(layers: &[(String, config::Pairs)]) -> Result<Vec<Setting>> {
    let serve = config::SERVE.map(|name| format!("serve.{name}"));
    let plain = [&config::PROCESS[..], &config::MACHINE, &config::MODEL].concat();
    let names = plain.into_iter().map(str::to_owned).chain(serve);
    let defaults = defaults()?;
    Ok(names
        .map(|name| {
            let variable = VARIABLES.iter().find(|row| row.0 == name).map(|row| row.1);
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
            "{name:<20} {:<24} {source}",
            value.replace('\n', "\\n")
        ));
    }
    lines.join("\n")
}
