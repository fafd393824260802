//! `puna quantize`: a smaller file of a model, with the error of each tensor.

use std::path::Path;

use anyhow::Result;
use kernels::Type;
use model::convert::Input;
use model::quantize::{Imatrix, Plan, Recipe, Step, Wanted, plan, write};
use regex::Regex;
use serde::Serialize;

use crate::args::{Format, QuantizeArgs};
use crate::exit::{Code, failure, usage};
use crate::load::Material;
use crate::{interrupt, load, machine, out};

#[derive(Serialize)]
struct Report {
    out: String,
    #[serde(rename = "type")]
    ty: String,
    tensors: Vec<Line>,
    bytes_before: u64,
    bytes: u64,
    bits_per_weight: f64,
}

/// One tensor. Errors are of what was converted, not of what was copied.
#[derive(Serialize)]
struct Line {
    name: String,
    shape: Vec<usize>,
    from: &'static str,
    to: &'static str,
    bytes_before: u64,
    bytes: u64,
    imatrix: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    rmse: Option<f64>,
    /// Root of the squared errors over the squared values.
    #[serde(skip_serializing_if = "Option::is_none")]
    relative_error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    largest_error: Option<f32>,
}

pub fn run(args: &QuantizeArgs) -> Result<()> {
    let recipe = match args.ty.eq_ignore_ascii_case("COPY") {
        true => None,
        false => Some(recipe(&args.ty)?),
    };
    let special = special(&args.tensor_type)?;
    let ty = |given: &Option<String>| given.as_deref().map(storage).transpose();
    let (head, embedding) = (
        ty(&args.output_tensor_type)?,
        ty(&args.token_embedding_type)?,
    );
    let imatrix = args.imatrix.as_deref().map(Imatrix::open).transpose()?;
    let file = args.imatrix.as_deref().map(Path::display);
    let file = file.map(|f| f.to_string()).unwrap_or_default();
    let Material {
        path: input,
        licence,
        adapters,
    } = load::material(&args.input, args.net)?;
    load::room_to_open(&input)?;
    let threads = args.threads.unwrap_or_else(machine::threads);
    let opened = Input::open_on(&input, threads)?;
    let adapters = crate::adapt::merged(&adapters, &opened)?;
    let source = super::convert::gguf_source(&opened, adapters, licence.as_deref())?;
    let wanted = Wanted {
        recipe,
        imatrix: imatrix.as_ref().map(|i| (i, file.as_str())),
        special: &|name| special.iter().find(|s| s.0.is_match(name)).map(|s| s.1),
        pure: args.pure,
        head,
        embedding,
        leave_head: args.leave_output_tensor,
        requantize: args.allow_requantize,
    };
    let plan = plan(&source, &wanted)?;
    for step in &plan.steps {
        if let Some(ty) = step.instead_of {
            let info = &step.info;
            tracing::warn!(
                "{}: rows of {} do not fit {ty}; {} instead",
                info.name,
                info.shape.last().copied().unwrap_or(1),
                info.dtype
            );
        }
    }
    let text = args.format.format == Format::Text;
    let mut lines = out::Lines::new();
    let mut failed = None;
    let mut on_step = |step: &Step| {
        if text && let Err(error) = lines.line(&describe(step)).and_then(|()| lines.flush()) {
            failed = Some(error);
        }
        failed.is_none() && !interrupt::asked()
    };
    let done = if args.dry_run {
        plan.steps.iter().all(&mut on_step).then_some(plan)
    } else {
        let threads = args.threads.unwrap_or_else(machine::threads);
        let work = || write(&source, &plan, &wanted, &args.out, threads, &mut on_step);
        interrupt::listen(work).0?
    };
    drop(lines);
    if let Some(error) = failed {
        return Err(error);
    }
    let done = done.ok_or_else(|| failure(Code::Interrupted, "interrupted", ""))?;
    let report = report(args, &done);
    out::print(args.format.format, &report, || summary(&report))
}

fn recipe(given: &str) -> Result<Recipe> {
    given
        .parse()
        .map_err(|e: model::Error| usage(e.to_string(), "COPY changes no tensor"))
}

fn storage(given: &str) -> Result<Type> {
    Ok(given.parse()?)
}

/// `REGEX=TYPE`, one by one.
fn special(given: &[String]) -> Result<Vec<(Regex, Type)>> {
    let one = |given: &String| {
        let Some((pattern, ty)) = given.rsplit_once('=') else {
            return Err(usage(
                format!("--tensor-type {given} names no type"),
                "write REGEX=TYPE, e.g. --tensor-type 'ffn_down=Q6_K'",
            ));
        };
        let pattern = Regex::new(pattern)
            .map_err(|e| usage(format!("--tensor-type {given}: {e}"), "mend the pattern"))?;
        Ok((pattern, storage(ty)?))
    };
    given.iter().map(one).collect()
}

fn report(args: &QuantizeArgs, plan: &Plan) -> Report {
    let (bytes_before, bytes) = plan.bytes();
    Report {
        out: args.out.display().to_string(),
        ty: args.ty.to_uppercase(),
        tensors: plan.steps.iter().map(line).collect(),
        bytes_before,
        bytes,
        bits_per_weight: plan.bits_per_weight(),
    }
}

fn line(step: &Step) -> Line {
    Line {
        name: step.info.name.clone(),
        shape: step.info.shape.clone(),
        from: step.from.name(),
        to: step.info.dtype.name(),
        bytes_before: step.bytes.0,
        bytes: step.bytes.1,
        imatrix: step.weighted,
        rmse: step.deviation.map(|d| d.rmse()),
        relative_error: step.deviation.map(|d| d.relative()),
        largest_error: step.deviation.map(|d| d.largest),
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

fn describe(step: &Step) -> String {
    let shape: Vec<String> = step.info.shape.iter().map(usize::to_string).collect();
    let start = format!(
        "{:<28} {:>14}  {:>7} -> {:<7} {:9.3} MiB",
        step.info.name,
        shape.join(" x "),
        step.from.name(),
        step.info.dtype.name(),
        mib(step.bytes.1)
    );
    match step.deviation {
        Some(d) => format!(
            "{start}  rmse {:.3e}, {:.2} %{}",
            d.rmse(),
            100.0 * d.relative(),
            if step.weighted { ", weighted" } else { "" }
        ),
        None => start,
    }
}

fn summary(r: &Report) -> String {
    format!(
        "{}: {:.1} MiB -> {:.1} MiB, {:.2} bits per weight",
        r.out,
        mib(r.bytes_before),
        mib(r.bytes),
        r.bits_per_weight
    )
}
