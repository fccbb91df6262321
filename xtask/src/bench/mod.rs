//! `cargo xtask bench`: what each optimization level costs and gives on a checkpoint.
//!
//! Every measurement is a fresh process of the release build of `allotrope`, as a person runs it, and reads the report
//! that the program itself writes. Cold runs begin with the checkpoint's files out of the page cache. Levels, and builds
//! where two are compared, take turns in every round, so that a disturbance of the machine hits all of them.

mod agreement;
mod break_even;
mod levels;
pub(crate) mod machine;
mod measurement;
pub(crate) mod page_cache;
mod passes;
mod process;
pub(crate) mod published;
mod report;
mod rows;
mod sample;
mod serving;
pub(crate) mod statistics;
mod table;
pub(crate) mod versus;
mod work;

use std::fs;
use std::path::{Path, PathBuf};

use allotrope_config::{DeviceChoice, OptimizationLevel};
use serde_json::Value;

use crate::error::TaskError;
use crate::workspace;
use agreement::Subject as Compared;
use levels::{Plan, Program};
use machine::Machine;
use measurement::Measurement;
use serving::Serving;
use work::Subject;

/// The checkpoint of the short form.
const QUICK_MODEL: &str = "tests/models/tiny-chat";

const QUICK_NOTE: &str = "The build was not optimized and each process ran once: the times mean nothing.";

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The folder of a Hugging Face checkpoint
    #[arg(long, short, value_name = "DIR", required_unless_present_any = ["quick", "from", "report"])]
    model: Option<PathBuf>,
    /// Rounds; in each, every level is started cold and warm, answers the prompts, and decodes each batch
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Lengths of the prompts, in tokens; the shortest is also that of starts and batches
    #[arg(long, value_name = "LENGTHS", value_delimiter = ',', default_value = "32,512,2048",
        value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: Vec<u32>,
    /// Numbers of sequences that decode together; 1 always belongs to them
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_value = "1,8,32",
        value_parser = clap::value_parser!(u32).range(1..))]
    batches: Vec<u32>,
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
    /// Another commit to build and compare with, level by level and in turns
    #[arg(long, value_name = "COMMIT", conflicts_with = "quick")]
    vs: Option<String>,
    /// Check in a few seconds, on tests/models/tiny-chat and an unoptimized build, that all that is measured can be, and that all
    /// levels give the same answers; its times mean nothing
    #[arg(long, conflicts_with_all = ["model", "runs", "prompt_tokens", "batches", "new_tokens", "device", "publish"])]
    quick: bool,
    /// Write a page with plots into a folder [default: bench/report in cargo's target folder]; without --model and --from, of all
    /// published measurements, whose tables and plots in the documentation are written again too
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    #[expect(clippy::option_option, reason = "a flag whose value is optional")]
    report: Option<Option<PathBuf>>,
    /// Show saved measurements, and measure nothing
    #[arg(long, value_name = "FILES", num_args = 1.., conflicts_with_all = ["model", "quick", "vs", "json", "passes", "serving"])]
    from: Vec<PathBuf>,
    /// Keep the measurement in docs/data/levels/NAME.json, and write its tables and plots into the documentation
    #[arg(long, value_name = "NAME", value_parser = published::name)]
    publish: Option<String>,
    /// Measure instead what each pass gains, in a decode step at O2 with the pass and without it, `--runs` times
    /// (run it as `cargo run --release --package xtask -- bench --passes …`: unoptimized, nothing can be measured)
    #[arg(long, requires = "model", conflicts_with_all = ["levels", "device", "json", "warm_only", "prompt_tokens", "new_tokens",
        "batches", "vs", "quick", "report", "publish"])]
    passes: bool,
    /// Measure instead what serving many at once gains: a batch against one sequence, and the prefix cache against none, at O2,
    /// `--runs` times, with the first of `--prompt-tokens`
    #[arg(long, requires = "model", conflicts_with_all = ["levels", "warm_only", "passes", "batches", "vs", "quick", "report",
        "publish"])]
    serving: bool,
    /// Where to write every measurement as JSON [default: bench/MODEL-DATE.json in cargo's target folder]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measures, prints the comparison and writes the JSON; or shows what was measured before.
///
/// # Errors
/// If a program can't be built, a run fails, its report can't be read, or the levels disagree in an answer or a bit.
pub(crate) fn run(options: &Options) -> Result<(), TaskError> {
    if !options.from.is_empty() {
        let measured =
            options.from.iter().map(|path| Measurement::read(path)).collect::<Result<Vec<_>, TaskError>>()?;
        return show(options, &measured);
    }
    let Some(given) = options.model.as_deref().or_else(|| options.quick.then(|| Path::new(QUICK_MODEL))) else {
        if let Some(name) = &options.publish {
            let message = format!("--publish {name} needs --model, or --from with one saved measurement");
            return Err(TaskError::Message(message));
        }
        let measured = published::all()?;
        published::write_documentation(&measured)?;
        let measured: Vec<Measurement> = measured.into_iter().map(|(_, measured)| measured).collect();
        return show_page(options, &measured);
    };
    let model = if options.quick { workspace::root().join(given) } else { given.to_path_buf() };
    let model = model.canonicalize().map_err(TaskError::file(given))?;
    let shown = given.display().to_string();
    if options.passes {
        if cfg!(debug_assertions) {
            let message =
                "unoptimized, nothing can be measured; run `cargo run --release --package xtask -- bench --passes …`";
            return Err(TaskError::Message(message.to_owned()));
        }
        return passes::run(&model, &shown, options.runs, &Machine::describe(page_cache::checkpoint_bytes(&model)?)?);
    }
    if options.serving {
        return serve(options, &model);
    }
    let measured = measure(options, &model, &shown)?;
    show(options, &[measured])
}

/// Prints measurements, and writes the page if it is wanted.
fn show(options: &Options, measured: &[Measurement]) -> Result<(), TaskError> {
    for measured in measured {
        println!("\n{}", table::markdown(measured));
    }
    if let Some(name) = &options.publish {
        let [measured] = measured else {
            return Err(TaskError::Message(format!("--publish {name} needs one measurement, not {}", measured.len())));
        };
        published::keep(name, measured)?;
    }
    if options.report.is_some() { show_page(options, measured) } else { Ok(()) }
}

/// Writes the page.
fn show_page(options: &Options, measured: &[Measurement]) -> Result<(), TaskError> {
    let folder = match options.report.clone().flatten() {
        Some(folder) => folder,
        None => workspace::target_folder()?.join("bench/report"),
    };
    println!("the report: {}", report::write(&folder, measured)?.display());
    Ok(())
}

/// Measures the levels, and saves what was measured before it is judged.
fn measure(options: &Options, model: &Path, shown: &str) -> Result<Measurement, TaskError> {
    let subject = Subject::open(model)?;
    let target = workspace::target_folder()?;
    let mut programs =
        vec![Program { path: build(&target, !options.quick)?, commit: versus::current_commit(), other: false }];
    if let Some(commit) = &options.vs {
        let (path, commit) = versus::build(commit, &target)?;
        programs.push(Program { path, commit, other: true });
    }
    let folder = tempfile::tempdir().map_err(TaskError::file(Path::new("a temporary folder")))?;
    let size = Size::of(options, subject.longest())?;
    let checkpoint_bytes = page_cache::checkpoint_bytes(model)?;
    let machine = if options.quick { Machine::describe_only() } else { Machine::describe(checkpoint_bytes)? };
    let mut measured = Measurement::begin(shown.to_owned(), command(), machine);
    let plan = Plan {
        model,
        programs: &programs,
        folder: folder.path(),
        vocabulary: subject.vocabulary(),
        device: options.device,
        levels: &options.levels,
        runs: size.runs,
        prompt_tokens: &size.prompt_tokens,
        batches: &size.batches,
        new_tokens: size.new_tokens,
        warm_only: options.warm_only,
        measure_machine: !options.quick,
    };
    // First, as it takes seconds: what can't be compared is not measured for minutes.
    let (program, folder) = (programs.first().map_or(Path::new(""), |program| &program.path), folder.path());
    let (device, levels) = (options.device, &options.levels[..]);
    measured.bits =
        agreement::compare(&Compared { program, model, folder, vocabulary: subject.vocabulary(), device, levels })?;
    let outcome = plan.run(&mut measured.machine)?;
    let context = size.prompt_tokens.first().map_or(0, |shortest| shortest + size.new_tokens / 2);
    measured.work = subject.work(&size.prompt_tokens, context);
    measured.checkpoint_bytes = checkpoint_bytes;
    measured.runs = size.runs;
    measured.prompt_tokens = size.prompt_tokens;
    measured.batches = size.batches;
    measured.new_tokens = size.new_tokens;
    measured.device = outcome.device;
    measured.builds = outcome.builds;
    measured.notes = [size.notes, outcome.notes].concat();
    let date: String = measured.date.chars().filter(char::is_ascii_digit).collect();
    let name = format!("{}-{date}.json", measured.model_name());
    let json = options
        .json
        .clone()
        .unwrap_or_else(|| target.join("bench").join(if options.quick { "quick.json".into() } else { name }));
    measured.write(&json)?;
    println!("every measurement: {}", json.display());
    if !outcome.wrong.is_empty() {
        let message = format!("the answers differ from those at first, at: {}", outcome.wrong.join("; "));
        return Err(TaskError::Message(format!("{message}; a level must not change an answer")));
    }
    measured.bits.check()?;
    Ok(measured)
}

/// How much is measured.
struct Size {
    runs: u32,
    prompt_tokens: Vec<u32>,
    batches: Vec<u32>,
    new_tokens: u32,
    /// What was left out.
    notes: Vec<String>,
}

impl Size {
    /// What was asked for, as far as sequences of at most `longest` tokens hold it.
    ///
    /// # Errors
    /// If they don't hold the shortest prompt and its answer.
    fn of(options: &Options, longest: u32) -> Result<Self, TaskError> {
        let mut size = if options.quick {
            Size {
                runs: 1,
                prompt_tokens: vec![8, 600],
                batches: vec![1, 3],
                new_tokens: 6,
                notes: vec![QUICK_NOTE.into()],
            }
        } else {
            Size {
                runs: options.runs,
                prompt_tokens: options.prompt_tokens.clone(),
                batches: [&[1], &options.batches[..]].concat(),
                new_tokens: options.new_tokens,
                notes: Vec::new(),
            }
        };
        size.prompt_tokens.sort_unstable();
        size.prompt_tokens.dedup();
        size.batches.sort_unstable();
        size.batches.dedup();
        // The shortest is continued; of the others one token is wanted, and the batch's prompts are made of longer ones.
        let shortest = size.prompt_tokens.first().copied().unwrap_or(1);
        if shortest.saturating_add(size.new_tokens) > longest {
            return Err(TaskError::Message(format!(
                "a prompt of {shortest} tokens and {} new ones are more than the {longest} that this model takes; give a shorter \
                 --prompt-tokens or fewer --new-tokens",
                size.new_tokens
            )));
        }
        let fits = |tokens: &u32| tokens.saturating_add(1) <= longest;
        let left_out: Vec<String> =
            size.prompt_tokens.iter().filter(|tokens| !fits(tokens)).map(u32::to_string).collect();
        if !left_out.is_empty() {
            let left_out = left_out.join(", ");
            size.notes.push(format!("Prompts of {left_out} tokens are left out: this model takes {longest} at most."));
        }
        size.prompt_tokens.retain(fits);
        Ok(size)
    }
}

/// This command, as it can be repeated.
fn command() -> String {
    let arguments = std::env::args().skip(1).map(|argument| match argument.contains(char::is_whitespace) {
        true => format!("'{argument}'"),
        false => argument,
    });
    ["cargo".to_owned(), "xtask".to_owned()].into_iter().chain(arguments).collect::<Vec<String>>().join(" ")
}

/// Measures what serving gains.
fn serve(options: &Options, model: &Path) -> Result<(), TaskError> {
    let machine = Machine::describe(page_cache::checkpoint_bytes(model)?)?;
    let vocabulary = Subject::open(model)?.vocabulary();
    let target = workspace::target_folder()?;
    let program = build(&target, true)?;
    let folder = tempfile::tempdir().map_err(TaskError::file(Path::new("a temporary folder")))?;
    let serving = Serving {
        program: &program,
        model,
        folder: folder.path(),
        vocabulary,
        device: options.device,
        runs: options.runs,
        prompt_tokens: options.prompt_tokens.first().copied().unwrap_or(1),
        new_tokens: options.new_tokens,
    };
    let measured: Value = serving.run(&machine)?;
    let json = options.json.clone().unwrap_or_else(|| target.join("bench.json"));
    fs::write(&json, format!("{measured:#}\n")).map_err(TaskError::file(&json))?;
    println!("every measurement: {}", json.display());
    Ok(())
}

/// Builds the program and gives its path.
pub(crate) fn build(target: &Path, optimized: bool) -> Result<PathBuf, TaskError> {
    let release: &[&str] = if optimized { &["--release"] } else { &[] };
    workspace::run("cargo", &[&["build", "--package", "allotrope"], release].concat())?;
    let folder = if optimized { "release" } else { "debug" };
    Ok(target.join(folder).join(format!("allotrope{}", std::env::consts::EXE_SUFFIX)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::{FromArgMatches, Parser};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(line: &[&str]) -> Result<Options, clap::Error> {
        let command = <Line as clap::CommandFactory>::command();
        let matches = command.try_get_matches_from([&["bench"], line].concat())?;
        Ok(Line::from_arg_matches(&matches)?.options)
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for line in [
            &["--quick", "--model", "m"][..],
            &["--from", "a.json", "--model", "m"],
            &["--passes"],
            &["--quick", "--vs", "HEAD"],
            &["--model", "m", "--publish", "../x"],
            &["--model", "m", "--batches", "0"],
            &[],
        ] {
            assert!(options(line).is_err(), "{line:?}");
        }
        for line in [&["--quick"][..], &["--report"], &["--report", "dir", "--from", "a.json", "b.json"]] {
            assert!(options(line).is_ok(), "{line:?}");
        }
    }

    #[test]
    fn what_a_model_does_not_take_is_left_out_and_said() {
        let given = options(&["--model", "m", "--batches", "32,8", "--prompt-tokens", "2048,32,512"]).unwrap();
        let size = Size::of(&given, 1024).unwrap();
        assert_eq!((&size.prompt_tokens[..], &size.batches[..]), (&[32, 512][..], &[1, 8, 32][..]));
        assert!(size.notes[0].contains("2048"), "{:?}", size.notes);
        assert!(Size::of(&given, 4096).unwrap().notes.is_empty());
        let Err(error) = Size::of(&given, 90) else { panic!("90 tokens hold 32 and 64") };
        assert!(error.to_string().contains("--prompt-tokens"), "{error}");
    }
}
