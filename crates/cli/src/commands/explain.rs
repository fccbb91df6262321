//! `allotrope explain`: the resolved settings, what the passes did, and what a step launches.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::time::Instant;

use allotrope_config::environment::Environment;
use allotrope_config::{Format, OptimizationLevel, RuntimeMode, Source, diff, explain};
use allotrope_engine::{EngineError, MemoryPlan, Plan};
use clap::ArgMatches;
use serde_json::{Value, json};

use crate::error::CliError;
use crate::{arguments, model, output};

pub(super) fn run(matches: &ArgMatches, started: Instant, environment: &Environment) -> Result<(), CliError> {
    let format = if matches.get_one::<String>(arguments::FORMAT).is_some_and(|format| format == arguments::JSON) {
        Format::Json
    } else {
        Format::Text { color: io::stdout().is_terminal() && !environment.no_color() }
    };
    let options = model::options(matches, environment)?;
    let plan_at = |level: Option<OptimizationLevel>| {
        let mut options = options.clone();
        if let Some(level) = level {
            options.set_optimization_level(level, Source::CommandLine { flag: format!("--{}", arguments::DIFF) });
        }
        Ok::<Plan, CliError>(model::builder(matches, options, started).plan()?)
    };
    let levels: Option<Vec<OptimizationLevel>> =
        matches.get_many(arguments::DIFF).map(|levels| levels.copied().collect());
    let text = match levels.as_deref() {
        Some(&[before, after]) => difference(&plan_at(Some(before))?, &plan_at(Some(after))?, &format)?,
        _ => explanation(&plan_at(None)?, matches.get_one(arguments::ONLY).map(String::as_str), &format)?,
    };
    output::show(text)
}

fn explanation(plan: &Plan, only: Option<&str>, format: &Format) -> Result<String, CliError> {
    let mut text = explain(plan.settings(), &plan.pass_lines(true), only, format)?;
    if only.is_some() {
        return Ok(text);
    }
    match format {
        Format::Json => with_member(&text, "step", step_json(plan)?),
        Format::Text { .. } => {
            let _ = write!(text, "\n{}", step_text(plan)?);
            Ok(text)
        }
    }
}

fn difference(before: &Plan, after: &Plan, format: &Format) -> Result<String, CliError> {
    let mut text = diff(before.settings(), after.settings(), format);
    match format {
        Format::Json => with_member(&text, "step", json!({ "before": step_json(before)?, "after": step_json(after)? })),
        Format::Text { .. } => {
            let _ = writeln!(
                text,
                "\nlaunches per step  {} → {}\npieces             {} → {}",
                before.launches(),
                after.launches(),
                before.pieces(),
                after.pieces()
            );
            Ok(text)
        }
    }
}

fn step_text(plan: &Plan) -> Result<String, CliError> {
    let compilation = &plan.settings().compilation;
    let sizes: Vec<String> = compilation.cudagraph_capture_sizes.iter().map(usize::to_string).collect();
    let mode = &*compilation.cudagraph_mode;
    let (decode, mixed) = (how(mode.decode()), how(mode.mixed()));
    let memory = memory(plan)?;
    let mut text = format!(
        "step\ndevice          {}\nlaunches        {} as built, {} after the passes\n\
         pieces          {}, cut at {} and where logits begin\n\
         memory          {} bytes between launches, of which at most {} are alive at once; {} results in place\n\
         decode batches  {decode}\nmixed batches   {mixed}\n",
        plan.device_name(),
        plan.launches_as_built(),
        plan.launches(),
        plan.pieces(),
        match compilation.splitting_ops.join(", ") {
            names if names.is_empty() => "no operation".to_owned(),
            names => names,
        },
        memory.bytes,
        memory.lower_bound,
        memory.in_place.len(),
    );
    if mode.decode() != RuntimeMode::None || mode.mixed() != RuntimeMode::None {
        let _ = writeln!(text, "recorded for    {} tokens", sizes.join(", "));
    }
    text.push_str(&launches_text(plan));
    Ok(text)
}

/// What a step launches and how often, and on a GPU the kernels for it, in the order in which each comes first.
fn launches_text(plan: &Plan) -> String {
    let mut rows: Vec<(usize, String, String)> = Vec::new();
    for (launch, label) in plan.launch_labels().into_iter().enumerate() {
        let kernels = plan.kernels(launch).join(", or with more rows ");
        match rows.iter_mut().find(|(_, known, by)| *known == label && *by == kernels) {
            Some((count, ..)) => *count += 1,
            None => rows.push((1, label, kernels)),
        }
    }
    let widest = rows.iter().map(|(_, label, _)| label.chars().count()).max().unwrap_or(0);
    let mut text = String::from("\nlaunches of a step\n");
    for (count, label, kernels) in rows {
        let _ = writeln!(text, "{}", format!("{count:>4} × {label:<widest$}  {kernels}").trim_end());
    }
    text
}

fn memory(plan: &Plan) -> Result<MemoryPlan, CliError> {
    Ok(plan.memory().map_err(EngineError::from)?)
}

/// How a batch runs, in words.
fn how(mode: RuntimeMode) -> &'static str {
    match mode {
        RuntimeMode::Full => "one recording of the whole step",
        RuntimeMode::Piecewise => "recorded pieces, the operations that cut them launched by themselves",
        RuntimeMode::None => "launch by launch",
    }
}

fn step_json(plan: &Plan) -> Result<Value, CliError> {
    let settings = plan.settings();
    let mode = &*settings.compilation.cudagraph_mode;
    let name = |mode: RuntimeMode| match mode {
        RuntimeMode::None => "none",
        RuntimeMode::Piecewise => "piecewise",
        RuntimeMode::Full => "full",
    };
    let recorded = mode.decode() != RuntimeMode::None || mode.mixed() != RuntimeMode::None;
    let sizes: &[usize] = if recorded { &settings.compilation.cudagraph_capture_sizes } else { &[] };
    let passes: Vec<Value> = plan
        .passes()
        .iter()
        .map(|report| {
            json!({
                "name": report.name,
                "launches": report.launches,
                "seconds": report.time.as_secs_f64(),
            })
        })
        .collect();
    let memory = memory(plan)?;
    Ok(json!({
        "device": plan.device_name(),
        "launches_as_built": plan.launches_as_built(),
        "launches": plan.launches(),
        "launch_labels": plan.launch_labels(),
        "launch_kernels": (0..plan.launches()).map(|launch| plan.kernels(launch)).collect::<Vec<_>>(),
        "pieces": plan.pieces(),
        "decode_batches": name(mode.decode()),
        "mixed_batches": name(mode.mixed()),
        "capture_sizes": sizes,
        "memory": {
            "bytes": memory.bytes,
            "most_alive": memory.lower_bound,
            "in_place": memory.in_place.len(),
            "launches_moved": plan.schedule().map(|schedule| schedule.moved),
        },
        "passes": passes,
    }))
}

/// A JSON object in text form with one more member.
fn with_member(text: &str, name: &str, member: Value) -> Result<String, CliError> {
    let internal =
        |error: serde_json::Error| CliError::Failure(format!("cannot write the explanation as JSON: {error}"));
    let mut object: serde_json::Map<String, Value> = serde_json::from_str(text).map_err(internal)?;
    object.insert(name.to_owned(), member);
    Ok(format!("{:#}\n", Value::Object(object)))
}
