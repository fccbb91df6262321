//! `cargo xtask bench`: what each optimization level costs and gives on a checkpoint.
//!
//! Every measurement is a fresh process of the release build of `allotrope`, as a person runs it, and reads the report
//! that the program itself writes. Cold runs begin with the checkpoint's files out of the page cache. Levels take turns
//! in every round, so that a disturbance of the machine hits all of them.

mod agreement;
mod machine;
mod page_cache;
mod process;
mod report;
mod sample;
mod statistics;

use std::fs;
use std::path::{Path, PathBuf};

use allotrope_config::OptimizationLevel;
use serde_json::{Value, json};

use crate::error::TaskError;
use crate::workspace;
use machine::Machine;
use report::{Comparison, Row};
use sample::Sample;

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
    /// Measure warm starts alone
    #[arg(long)]
    warm_only: bool,
    /// Where to write every measurement as JSON
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    json: PathBuf,
}

/// Whether the checkpoint's files are in the page cache when a process starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Cold,
    Warm,
}

/// Measures, prints the comparison and writes the JSON.
///
/// # Errors
/// If the program can't be built, a run fails, its report can't be read, or the levels disagree in a bit.
pub(crate) fn run(options: &Options) -> Result<(), TaskError> {
    let program = build()?;
    let vocabulary = vocabulary(&options.model)?;
    let machine = Machine::describe()?;
    println!("{machine}");
    let folder = tempfile::tempdir().map_err(TaskError::file(Path::new("a temporary folder")))?;
    let prompts = folder.path().join("prompt.jsonl");
    let tokens = prompt(options.prompt_tokens, vocabulary);
    fs::write(&prompts, format!("{}\n", json!({ "tokens": tokens }))).map_err(TaskError::file(&prompts))?;
    let mut rows: Vec<Row> = options.levels.iter().map(|level| Row::new(*level)).collect();
    for round in 1..=options.runs {
        for row in &mut rows {
            eprintln!("round {round} of {}, {}", options.runs, row.level);
            if !options.warm_only {
                page_cache::drop_files(&options.model)?;
                row.cold.push(measure(&program, options, &prompts, row.level, Start::Cold)?);
            }
            row.warm.push(measure(&program, options, &prompts, row.level, Start::Warm)?);
        }
    }
    let bits = agreement::compare(&program, &options.model, &options.levels, vocabulary, folder.path())?;
    let comparison = Comparison {
        model: options.model.display().to_string(),
        checkpoint_bytes: page_cache::checkpoint_bytes(&options.model)?,
        prompt_tokens: options.prompt_tokens,
        new_tokens: options.new_tokens,
        machine,
        rows,
        bits,
    };
    println!("{comparison}");
    let target = workspace::root().join(&options.json);
    fs::write(&target, format!("{:#}\n", comparison.to_json())).map_err(TaskError::file(&target))?;
    println!("every measurement: {}", target.display());
    comparison.bits.check()
}

/// Builds the program and gives its path.
fn build() -> Result<PathBuf, TaskError> {
    workspace::run("cargo", &["build", "--release", "--package", "allotrope"])?;
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let output = process::capture(Path::new("cargo"), &arguments)?;
    let metadata: Value = serde_json::from_str(&output.stdout)
        .map_err(|error| TaskError::Message(format!("cargo metadata is not JSON: {error}")))?;
    let target = metadata.get("target_directory").and_then(Value::as_str);
    let target = target.ok_or_else(|| TaskError::Message("cargo metadata names no target_directory".into()))?;
    Ok(Path::new(target).join("release").join(format!("allotrope{}", std::env::consts::EXE_SUFFIX)))
}

/// One process: load, prefill, decode.
fn measure(
    program: &Path,
    options: &Options,
    prompts: &Path,
    level: OptimizationLevel,
    start: Start,
) -> Result<Sample, TaskError> {
    let model = options.model.to_string_lossy();
    let (prompts, level) = (prompts.to_string_lossy(), level.to_string());
    let new_tokens = options.new_tokens.to_string();
    let arguments = [
        "generate",
        "--model",
        &model,
        "--prompts",
        &prompts,
        "--format",
        "json",
        "--optimization-level",
        &level,
        "--max-tokens",
        &new_tokens,
        "--ignore-eos",
        "--temperature",
        "0",
    ];
    let output = process::capture(program, &arguments)?;
    let sample = Sample::parse(&output)?;
    if start == Start::Cold { Ok(sample) } else { Ok(Sample { read_bytes: None, ..sample }) }
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

/// Token ids that differ from each other, spread over the vocabulary.
fn prompt(tokens: u32, vocabulary: u32) -> Vec<u32> {
    let spread = |index: u32| (u64::from(index) * 7919 + 13) % u64::from(vocabulary);
    (0..tokens).filter_map(|index| u32::try_from(spread(index)).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_stay_inside_the_vocabulary() {
        for vocabulary in [1, 2, 512, 128_256, u32::MAX] {
            let tokens = prompt(100, vocabulary);
            assert_eq!(tokens.len(), 100);
            assert!(tokens.iter().all(|token| *token < vocabulary));
        }
    }
}
