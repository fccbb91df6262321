//! `cargo xtask bench`: what each optimization level costs and gives on a checkpoint.
//!
//! Every measurement is a fresh process of the release build of `allotrope`, as a person runs it, and reads the report
//! that the program itself writes. Cold runs begin with the checkpoint's files out of the page cache. Levels take turns
//! in every round, so that a disturbance of the machine hits all of them.

mod agreement;
mod machine;
pub(crate) mod page_cache;
mod passes;
mod process;
mod report;
mod sample;
mod serving;
pub(crate) mod statistics;

use std::fs;
use std::path::{Path, PathBuf};

use allotrope_config::{DeviceChoice, OptimizationLevel};
use serde_json::{Value, json};

use crate::error::TaskError;
use crate::runner::prompt;
use crate::workspace;
use machine::Machine;
use report::{Comparison, Row};
use sample::Sample;
use serving::Serving;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The folder of a Hugging Face checkpoint
    #[arg(long, short, value_name = "DIR")]
    model: PathBuf,
    /// Rounds; in each, every level is started cold and then warm
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Length of the prompt, in tokens
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens to generate; the first is the prefill's, the others are decoded
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..))]
    new_tokens: u32,
    /// Levels to compare
    #[arg(long, value_name = "LEVELS", value_delimiter = ',', default_value = "0,1,2,3")]
    levels: Vec<OptimizationLevel>,
    /// The device to measure: cpu or cuda
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: DeviceChoice,
    /// Measure warm starts alone
    #[arg(long)]
    warm_only: bool,
    /// Measure instead what each pass gains, in a decode step at O2 with the pass and without it, `--runs` times
    /// (run it as `cargo run --release --package xtask -- bench --passes …`: unoptimized, nothing can be measured)
    #[arg(long, conflicts_with_all = ["levels", "device", "json", "warm_only", "prompt_tokens", "new_tokens"])]
    passes: bool,
    /// Measure instead what serving many at once gains: a batch against one sequence, and the prefix cache against none, at O2,
    /// `--runs` times
    #[arg(long, conflicts_with_all = ["levels", "warm_only", "passes"])]
    serving: bool,
    /// Where to write every measurement as JSON [default: bench.json in cargo's target folder]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measures, prints the comparison and writes the JSON.
///
/// # Errors
/// If the program can't be built, a run fails, its report can't be read, or the levels disagree in a bit.
pub(crate) fn run(options: &Options) -> Result<(), TaskError> {
    let model = options.model.canonicalize().map_err(TaskError::file(&options.model))?;
    let mut machine = Machine::describe()?;
    if options.passes {
        if cfg!(debug_assertions) {
            let message =
                "unoptimized, nothing can be measured; run `cargo run --release --package xtask -- bench --passes …`";
            return Err(TaskError::Message(message.to_owned()));
        }
        return passes::run(&model, &options.model.display().to_string(), options.runs, &machine);
    }
    let vocabulary = vocabulary(&model)?;
    let target = workspace::target_folder()?;
    let program = build(&target)?;
    let folder = tempfile::tempdir().map_err(TaskError::file(Path::new("a temporary folder")))?;
    let json = options.json.clone().unwrap_or_else(|| target.join("bench.json"));
    if options.serving {
        let serving = Serving {
            program: &program,
            model: &model,
            folder: folder.path(),
            vocabulary,
            device: options.device,
            runs: options.runs,
            prompt_tokens: options.prompt_tokens,
            new_tokens: options.new_tokens,
        };
        return write(&json, &serving.run(&machine)?);
    }
    let bench = Bench { options, model: &model, program: &program, folder: folder.path(), vocabulary };
    let rows = bench.rounds(&mut machine)?;
    let comparison = Comparison {
        model: options.model.display().to_string(),
        checkpoint_bytes: page_cache::checkpoint_bytes(&model)?,
        prompt_tokens: options.prompt_tokens,
        new_tokens: options.new_tokens,
        device: rows.iter().find_map(|row| Some(row.warm.first()?.device.clone())).unwrap_or_default(),
        machine,
        rows,
        bits: agreement::compare(&bench)?,
    };
    println!("{comparison}");
    write(&json, &comparison.to_json())?;
    comparison.bits.check()
}

/// Writes the measurements and says where.
fn write(path: &Path, measured: &Value) -> Result<(), TaskError> {
    fs::write(path, format!("{measured:#}\n")).map_err(TaskError::file(path))?;
    println!("every measurement: {}", path.display());
    Ok(())
}

/// Builds the program and gives its path.
fn build(target: &Path) -> Result<PathBuf, TaskError> {
    workspace::run("cargo", &["build", "--release", "--package", "allotrope"])?;
    Ok(target.join("release").join(format!("allotrope{}", std::env::consts::EXE_SUFFIX)))
}

/// What every measurement needs.
struct Bench<'a> {
    options: &'a Options,
    model: &'a Path,
    program: &'a Path,
    /// For files that are handed to the program.
    folder: &'a Path,
    vocabulary: u32,
}

impl Bench<'_> {
    /// Measures all levels in turn, as often as wanted.
    fn rounds(&self, machine: &mut Machine) -> Result<Vec<Row>, TaskError> {
        let prompts = self.folder.join("prompt.jsonl");
        let tokens = prompt(self.options.prompt_tokens, self.vocabulary);
        fs::write(&prompts, format!("{}\n", json!({ "tokens": tokens }))).map_err(TaskError::file(&prompts))?;
        let mut rows: Vec<Row> = self.options.levels.iter().map(|level| Row::new(*level)).collect();
        for round in 1..=self.options.runs {
            // Each level is first, second, … in turn, so that no level always finds what another left behind.
            let turn = round as usize % rows.len().max(1);
            let (before, after) = rows.split_at_mut(turn);
            for row in after.iter_mut().chain(before) {
                eprintln!("round {round} of {}, {}", self.options.runs, row.level);
                if !self.options.warm_only {
                    page_cache::drop_files(self.model)?;
                    row.cold.push(self.measure(&prompts, row.level)?);
                }
                row.warm.push(self.measure(&prompts, row.level)?);
            }
            machine.measure_bandwidth()?;
        }
        Ok(rows)
    }

    /// One process: load, prefill, decode.
    fn measure(&self, prompts: &Path, level: OptimizationLevel) -> Result<Sample, TaskError> {
        let (model, prompts) = (self.model.to_string_lossy(), prompts.to_string_lossy());
        let (level, new_tokens) = (level.to_string(), self.options.new_tokens.to_string());
        let device = self.options.device.to_string();
        let mut arguments = vec!["generate", "--model", &model, "--prompts", &prompts, "--format", "json"];
        arguments.extend(["--optimization-level", &level, "--max-tokens", &new_tokens]);
        arguments.extend(["--ignore-eos", "--temperature", "0", "--device", &device]);
        Sample::parse(&process::capture(self.program, &arguments)?)
    }
}

/// `vocab_size` of a checkpoint.
fn vocabulary(model: &Path) -> Result<u32, TaskError> {
    let path = model.join("config.json");
    let config: Value = serde_json::from_str(&workspace::read(&path)?)
        .map_err(|error| TaskError::Message(format!("{}: {error}", path.display())))?;
    let size = config.get("vocab_size").and_then(Value::as_u64).and_then(|size| u32::try_from(size).ok());
    match size {
        Some(size) if size > 0 => Ok(size),
        _ => Err(TaskError::Message(format!("{}: vocab_size is missing or no positive number", path.display()))),
    }
}
