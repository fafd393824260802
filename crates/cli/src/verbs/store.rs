//! The store: `puna pull`, `list`, `show`, `rm`, `cp`, `verify`.

mod create;
mod show;

use anyhow::Result;
use hub::{Entry, PullOptions, PullReport, Removed, Verified};
use serde_json::json;

pub use create::create;
pub use show::show;

use crate::args::{CpArgs, ListArgs, NetArgs, PullArgs, RmArgs, VerifyArgs};
use crate::exit::{Code, failure};
use crate::machine::size;
use crate::progress::Shown;
use crate::{interrupt, load, out};

/// Verbs that only look at the store never use the network.
const LOCAL: NetArgs = NetArgs { offline: true };

pub fn pull(args: &PullArgs) -> Result<()> {
    let hub = load::hub(args.net)?;
    let options = PullOptions {
        dry_run: args.dry_run,
        force: args.force,
    };
    let mut progress = Shown::new();
    let (report, _) = interrupt::listen(|| hub.pull(&args.model, options, &mut progress));
    drop(progress);
    let report = report?;
    out::print(args.format.format, &report, || describe_pull(&report))
}

fn describe_pull(r: &PullReport) -> String {
    let known = |bytes: Option<u64>| bytes.map_or("size unknown".to_owned(), size);
    let state = match (r.dry_run, r.already) {
        (_, true) => "is here already",
        (true, false) => "would be fetched",
        (false, false) => "is here",
    };
    let mut text = format!("{} {state}, from {}", r.name, r.source);
    for file in &r.files {
        text.push_str(&format!("\n  {}  {}", file.path, known(file.bytes)));
        if let Some(sha256) = &file.sha256 {
            text.push_str(&format!("  sha256 {sha256}"));
        }
    }
    text.push_str(&format!("\nin all    {}", known(r.bytes)));
    text.push_str(&format!(
        "\nmemory    {} for the weights, and the cache",
        known(r.memory_bytes)
    ));
    text.push_str(&format!(
        "\nlicence   {}",
        r.licence.as_deref().unwrap_or("unknown")
    ));
    for line in r.terms.iter().flat_map(|terms| terms.lines()) {
        text.push_str(&format!("\n          {line}"));
    }
    if let Some(path) = &r.path {
        text.push_str(&format!("\npath      {}", path.display()));
    }
    text
}

pub fn list(args: &ListArgs) -> Result<()> {
    let hub = load::hub(LOCAL)?;
    let models = hub.list()?;
    let answer = json!({ "store": hub.home(), "models": models });
    if models.is_empty() {
        out::note(&format!("no models in {}", hub.home().display()));
    }
    out::print(args.format.format, &answer, || table(&models))
}

fn table(models: &[Entry]) -> String {
    let width = models
        .iter()
        .map(|m| m.name.len())
        .max()
        .unwrap_or(0)
        .max(4);
    let mut text = format!(
        "{:<width$}  {:>9}  {:<12}  source",
        "name", "size", "licence"
    );
    for m in models {
        let licence = m.licence.as_deref().unwrap_or("unknown");
        text.push_str(&format!(
            "\n{:<width$}  {:>9}  {licence:<12}  {}",
            m.name,
            size(m.bytes),
            match &m.recipe {
                Some(recipe) if m.place == "puna" => format!("made from {}", recipe.from),
                _ => m.source.clone(),
            }
        ));
        if let Some(damage) = &m.damage {
            text.push_str(&format!("\n{:<width$}  damaged: {damage}", ""));
        }
    }
    text
}

pub fn rm(args: &RmArgs) -> Result<()> {
    let hub = load::hub(LOCAL)?;
    // All names are looked up first: a wrong one takes nothing away.
    for name in &args.names {
        match hub.show(name) {
            // What cannot be read can still be removed.
            Ok(_) | Err(hub::Error::Damaged { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let removed: Vec<Removed> = args
        .names
        .iter()
        .map(|name| hub.rm(name))
        .collect::<Result<_, _>>()?;
    out::print(args.format.format, &json!({ "removed": removed }), || {
        let line = |r: &Removed| format!("{} removed, {} freed", r.name, size(r.freed));
        removed.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

pub fn cp(args: &CpArgs) -> Result<()> {
    let entry = load::hub(LOCAL)?.cp(&args.from, &args.to)?;
    out::print(args.format.format, &entry, || {
        format!("{} is {} too", args.from, entry.name)
    })
}

pub fn verify(args: &VerifyArgs) -> Result<()> {
    let hub = load::hub(LOCAL)?;
    let mut progress = Shown::new();
    let (found, _) = interrupt::listen(|| -> Result<Vec<Verified>, hub::Error> {
        if args.names.is_empty() {
            return hub.verify(None, &mut progress);
        }
        let each = args
            .names
            .iter()
            .map(|name| hub.verify(Some(name), &mut progress));
        Ok(each.collect::<Result<Vec<_>, _>>()?.concat())
    });
    drop(progress);
    let found = found?;
    let damaged: Vec<&str> = found
        .iter()
        .filter(|v| !v.damage.is_empty())
        .map(|v| &*v.name)
        .collect();
    let answer = json!({ "ok": damaged.is_empty(), "models": found });
    out::print(args.format.format, &answer, || describe_verified(&found))?;
    if damaged.is_empty() {
        return Ok(());
    }
    let what = format!("damaged: {}", damaged.join(", "));
    Err(failure(
        Code::Invalid,
        what,
        "`puna rm` and `puna pull` fetch a model again",
    ))
}

fn describe_verified(found: &[Verified]) -> String {
    let mut lines = Vec::new();
    for v in found {
        match v.damage.is_empty() {
            true => lines.push(format!("{}: as it should be", v.name)),
            false => lines.extend(
                v.damage
                    .iter()
                    .map(|damage| format!("{}: {damage}", v.name)),
            ),
        }
    }
    if lines.is_empty() {
        lines.push("no models in the store".into());
    }
    lines.join("\n")
}
