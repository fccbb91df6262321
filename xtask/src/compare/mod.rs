//! `cargo xtask compare`: the CPU device against llama.cpp and against transformers on PyTorch, on the same machine, with the
//! same weights, the same prompts and as many threads.
//!
//! Every measurement is a fresh process, and the engines take turns in every round, so that a disturbance of the machine hits
//! all of them. Of an engine that has settings to choose from, each is measured, and the best is what counts. Before anything
//! is measured, the logits of all engines are compared: another computation would be another race.

mod agreement;
mod contender;
mod contention;
mod install;
mod report;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::bench::machine::Machine;
use crate::bench::page_cache;
use crate::bench::{self, versus};
use crate::error::TaskError;
use crate::runner::{numbered_prompt, prompt_lines};
use crate::workspace;
use contender::{Contender, Engine, Workload};
use report::{Measure, Results};

/// What to compare, and how often.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The folder of a Llama checkpoint in bf16
    #[arg(long, short, value_name = "DIR")]
    model: PathBuf,
    /// Rounds; in each, every engine takes its turn with every workload
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Threads of each engine
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    threads: u32,
    /// Measure these alone: llama.cpp, transformers, contention
    #[arg(long, value_name = "PARTS", value_delimiter = ',', default_value = "llama.cpp,transformers,contention")]
    only: Vec<Part>,
    /// Where to write every measurement as JSON [default: compare/compare.json in cargo's target folder]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Allotrope and llama.cpp
    #[value(name = "llama.cpp")]
    LlamaCpp,
    /// Allotrope and transformers on PyTorch
    Transformers,
    /// Allotrope and llama.cpp while another process keeps one processor busy
    Contention,
}

/// Measures, prints the tables and writes the JSON.
///
/// # Errors
/// If an engine can't be installed or built, a run fails, or the engines compute something else.
pub(crate) fn run(options: &Options) -> Result<(), TaskError> {
    let model = options.model.canonicalize().map_err(TaskError::file(&options.model))?;
    let has = |part| options.only.contains(&part);
    if has(Part::Contention) {
        contention::check_processors(options.threads)?;
    }
    let target = workspace::target_folder()?;
    let folder = target.join("compare");
    fs::create_dir_all(&folder).map_err(TaskError::file(&folder))?;
    let program = bench::build(&target, true)?;
    let mut contenders = contender::allotrope(&program, &model);
    if has(Part::LlamaCpp) || has(Part::Contention) {
        contenders.extend(contender::llama_cpp(install::llama_cpp(&folder, &model)?));
    }
    if has(Part::Transformers) {
        contenders.push(contender::transformers(install::transformers(&folder)?, &model));
    }
    let prompts = Prompts::write(&model)?;
    let mut machine = Machine::describe(page_cache::checkpoint_bytes(&model)?)?;
    let about: Vec<String> = contenders.iter().filter_map(|one| one.about().transpose()).collect::<Result<_, _>>()?;
    let agreement = agreement::check(&contenders, &prompts, options.threads)?;
    agreement.iter().for_each(|line| eprintln!("{line}"));

    let mut results = Results::default();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        if has(Part::LlamaCpp) || has(Part::Transformers) {
            measure_round(&mut contenders, has, &prompts, options.threads, &mut results)?;
        }
        if has(Part::Contention) {
            contention::measure_round(&contenders, &prompts, options.threads, &mut results)?;
        }
        // Who is first in a round finds what another left behind, so it is another's turn.
        contenders.rotate_left(1);
        machine.measure_ceilings()?;
    }

    let commit = versus::current_commit();
    let shown = options.model.display().to_string();
    println!("{machine}\n{shown}, {} threads, {} rounds, commit {commit}", options.threads, options.rounds);
    about.iter().chain(&agreement).for_each(|line| println!("{line}"));
    println!("\n{}", results.tables());
    let json = options.json.clone().unwrap_or_else(|| folder.join("compare.json"));
    let measured: Value = json!({
        "model": shown,
        "commit": commit,
        "threads": options.threads,
        "rounds": options.rounds,
        "machine": machine,
        "engines": about,
        "agreement": agreement,
        "measured": results.to_json(),
    });
    fs::write(&json, format!("{measured:#}\n")).map_err(TaskError::file(&json))?;
    println!("every measurement: {}", json.display());
    Ok(())
}

/// One turn of every contender with every workload.
fn measure_round(
    contenders: &mut [Contender],
    has: impl Fn(Part) -> bool,
    prompts: &Prompts,
    threads: u32,
    results: &mut Results,
) -> Result<(), TaskError> {
    let takes_part = |contender: &&Contender| match contender.engine {
        Engine::Allotrope => true,
        Engine::LlamaCpp => has(Part::LlamaCpp),
        Engine::Transformers => has(Part::Transformers),
    };
    for workload in [Workload::Each, Workload::Together, Workload::Start] {
        for contender in contenders.iter().filter(takes_part).filter(|contender| contender.runs(workload)) {
            eprintln!("  {}: {workload:?}", contender.name);
            if workload == Workload::Start {
                // Directly after another, so that the machine has handed out what memory it takes: virtual machines need seconds
                // for a gigabyte that was not used before.
                contender.seconds_to_first_token(prompts, threads)?;
                let seconds = contender.seconds_to_first_token(prompts, threads)?;
                results.add(contender, Measure::Start, seconds);
                continue;
            }
            let answers = contender.answers(workload, prompts, threads)?;
            match (workload, answers.as_slice()) {
                // The first is to warm up: memory is touched and kernels are made then, which `Start` is about.
                (Workload::Each, [_, long, short]) => {
                    results.add(contender, Measure::Prefill, long.prefill_rate());
                    results.add(contender, Measure::DecodeLong, long.decode_rate());
                    results.add(contender, Measure::DecodeShort, short.decode_rate());
                }
                (Workload::Together, several) => {
                    results.add(contender, Measure::Batch, contender::decode_rate_together(several));
                }
                _ => {
                    let message = format!("{} gave {} answers instead of 3", contender.name, answers.len());
                    return Err(TaskError::Message(message));
                }
            }
        }
    }
    Ok(())
}

/// Files with prompts of token ids, as the engines read them.
pub(crate) struct Prompts {
    folder: tempfile::TempDir,
}

/// Lengths of prompts, in tokens.
const LONG: u32 = 512;
const SHORT: u32 = 32;
/// Sequences that are answered together.
const SEQUENCES: u32 = 8;

impl Prompts {
    /// Writes them into a temporary folder.
    fn write(model: &Path) -> Result<Self, TaskError> {
        let folder = tempfile::tempdir().map_err(TaskError::file(Path::new("a temporary folder")))?;
        let prompts = Prompts { folder };
        let vocabulary = vocabulary(model)?;
        let tokens = |number, length| numbered_prompt(number, length, vocabulary);
        let short = [tokens(2, SHORT)];
        prompts.add("each", &[tokens(0, LONG), tokens(1, LONG), tokens(2, SHORT)])?;
        prompts.add("together", &(0..SEQUENCES).map(|index| tokens(index, SHORT)).collect::<Vec<_>>())?;
        prompts.add("short", &short)?;
        let path = prompts.path("short", "json");
        fs::write(&path, json!(short).to_string()).map_err(TaskError::file(&path))?;
        Ok(prompts)
    }

    /// Writes prompts in both forms: a JSON object on a line for Allotrope, and token ids on a line for the others.
    fn add(&self, name: &str, prompts: &[Vec<u32>]) -> Result<(), TaskError> {
        let words = |tokens: &Vec<u32>| tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" ") + "\n";
        let lines: String = prompts.iter().map(words).collect();
        for (ending, text) in [("jsonl", prompt_lines(prompts)), ("txt", lines)] {
            let path = self.path(name, ending);
            fs::write(&path, text).map_err(TaskError::file(&path))?;
        }
        Ok(())
    }

    /// Where prompts are: `each`, `together` or `short`, as `jsonl` or `txt`.
    fn path(&self, name: &str, ending: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.{ending}"))
    }
}

/// `vocab_size` of a checkpoint.
fn vocabulary(model: &Path) -> Result<u32, TaskError> {
    let checkpoint = allotrope_model::Checkpoint::open(model);
    let checkpoint = checkpoint.map_err(|error| TaskError::Message(error.to_string()))?;
    u32::try_from(checkpoint.config().vocab_size).map_err(|error| TaskError::Message(error.to_string()))
}
