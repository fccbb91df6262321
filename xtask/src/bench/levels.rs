//! Measuring the levels: what each process runs, in which order, and whether all give the same answers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use allotrope_config::{DeviceChoice, OptimizationLevel};

use super::machine::Machine;
use super::measurement::{Batch, Build, Level};
use super::sample::{Parsed, Sample};
use super::{page_cache, process};
use crate::error::TaskError;
use crate::runner::{numbered_prompt, prompt_lines};

/// Length of the prompt that is answered before prompts are timed.
const WARMUP_TOKENS: u32 = 16;
/// Sequences that the program runs together unless told otherwise.
const DEFAULT_SEQUENCES: u32 = 32;

/// A build of the program.
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) commit: String,
    /// Whether it may lack flags and fields that this build has.
    pub(super) other: bool,
}

/// What is measured, and with what.
pub(super) struct Plan<'a> {
    pub(super) model: &'a Path,
    pub(super) programs: &'a [Program],
    /// For files that are handed to the programs.
    pub(super) folder: &'a Path,
    pub(super) vocabulary: u32,
    pub(super) device: DeviceChoice,
    pub(super) levels: &'a [OptimizationLevel],
    pub(super) runs: u32,
    pub(super) prompt_tokens: &'a [u32],
    pub(super) batches: &'a [u32],
    pub(super) new_tokens: u32,
    pub(super) warm_only: bool,
    /// Whether the machine's ceilings are measured in every round.
    pub(super) measure_machine: bool,
}

/// What one process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Starts with the checkpoint out of the page cache and no tuned or compiled kernels kept, and continues the shortest
    /// prompt.
    Cold,
    /// The same once more: the checkpoint is in the page cache, kernels are kept, and the machine has handed out as much memory
    /// before, which takes virtual machines seconds for each gigabyte.
    Warm,
    /// Answers prompts of all lengths one by one, each with one token.
    Prompts,
    /// Continues so many prompts together.
    Batch(u32),
}

impl Kind {
    fn name(self) -> String {
        match self {
            Kind::Cold => "cold start".into(),
            Kind::Warm => "warm start".into(),
            Kind::Prompts => "prompts".into(),
            Kind::Batch(sequences) => format!("batch of {sequences}"),
        }
    }
}

/// What came out.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) builds: Vec<Build>,
    pub(super) device: String,
    /// What the other build does not know, or answers otherwise.
    pub(super) notes: Vec<String>,
    /// Levels of this build whose answers differ from those of the first, which is an error.
    pub(super) wrong: Vec<String>,
}

impl Plan<'_> {
    /// Runs all rounds. In each, every kind of process runs at all levels of all builds in turn, in an order that is reversed
    /// from one turn to the next: no level always runs after another, and each one's neighbours in time are the others.
    ///
    /// # Errors
    /// If a process of this build fails, or its report can't be read or lacks a number.
    pub(super) fn run(&self, machine: &mut Machine) -> Result<Outcome, TaskError> {
        let levels = || self.levels.iter().map(|level| Level::new(level.to_string())).collect();
        let mut state = State {
            outcome: Outcome {
                builds: self
                    .programs
                    .iter()
                    .map(|program| Build { commit: program.commit.clone(), levels: levels() })
                    .collect(),
                ..Outcome::default()
            },
            ..State::default()
        };
        let mut kinds = vec![Kind::Warm, Kind::Prompts];
        kinds.extend(self.batches.iter().filter(|sequences| **sequences > 1).map(|sequences| Kind::Batch(*sequences)));
        if !self.warm_only {
            kinds.insert(0, Kind::Cold);
        }
        let mut forward = true;
        for round in 1..=self.runs {
            for kind in &kinds {
                let mut turns: Vec<(usize, usize)> = (0..self.levels.len())
                    .flat_map(|level| (0..self.programs.len()).map(move |program| (level, program)))
                    .collect();
                if !forward {
                    turns.reverse();
                }
                forward = !forward;
                eprintln!("round {round} of {}: {}", self.runs, kind.name());
                for (level, program) in turns {
                    self.turn(&mut state, *kind, level, program)?;
                }
            }
            if self.measure_machine {
                machine.measure_ceilings()?;
            }
        }
        Ok(state.finish())
    }

    /// Runs one process, unless the build is known not to be able to.
    fn turn(&self, state: &mut State, kind: Kind, level: usize, program: usize) -> Result<(), TaskError> {
        let (Some(build), Some(name)) = (self.programs.get(program), self.levels.get(level)) else { return Ok(()) };
        if state.unable.contains(&(program, kind)) {
            return Ok(());
        }
        let measured = match kind {
            Kind::Warm => self.measure(kind, *name, build).and_then(|_| self.measure(kind, *name, build)),
            _ => self.measure(kind, *name, build),
        };
        let parsed = match measured {
            Err(error) if build.other => {
                state.outcome.notes.push(format!(
                    "Not measured at {}, {}: {}",
                    build.commit,
                    kind.name(),
                    reason(&error)
                ));
                state.unable.push((program, kind));
                return Ok(());
            }
            parsed => parsed?,
        };
        if !parsed.missing.is_empty() {
            let missing = format!("the report of {} lacks {}", build.commit, parsed.missing.join(", "));
            if !build.other {
                return Err(TaskError::Message(missing));
            }
            state.outcome.note(format!("Not compared: {missing}."));
        }
        state.compare_answers(kind, &format!("{name}, {}", kind.name()), build, parsed.answers);
        let sample = kind.keep(parsed.sample);
        if !build.other {
            state.outcome.device = parsed.device;
        }
        let of_level = state.outcome.builds.get_mut(program).and_then(|build| build.levels.get_mut(level));
        if let Some(of_level) = of_level {
            of_level.add(kind, sample);
        }
        Ok(())
    }

    /// One process.
    fn measure(&self, kind: Kind, level: OptimizationLevel, program: &Program) -> Result<Parsed, TaskError> {
        let prompts = self.folder.join("prompts.jsonl");
        fs::write(&prompts, prompt_lines(&self.prompts(kind))).map_err(TaskError::file(&prompts))?;
        // Of each build and level its own: one must not find what another left.
        let cache = self.folder.join(format!("cache-{}-{level}", if program.other { "other" } else { "this" }));
        if kind == Kind::Cold {
            if cache.exists() {
                fs::remove_dir_all(&cache).map_err(TaskError::file(&cache))?;
            }
            page_cache::drop_files(self.model)?;
        }
        let (model, prompts) = (self.model.to_string_lossy(), prompts.to_string_lossy());
        let new_tokens = if kind == Kind::Prompts { 1 } else { self.new_tokens };
        let sequences = match kind {
            Kind::Prompts => Some(1),
            Kind::Batch(sequences) if sequences > DEFAULT_SEQUENCES => Some(sequences),
            _ => None,
        };
        let (level, new_tokens, device) = (level.to_string(), new_tokens.to_string(), self.device.to_string());
        let sequences = sequences.map(|sequences| sequences.to_string());
        let mut arguments = vec!["generate", "--model", &model, "--prompts", &prompts, "--format", "json"];
        arguments.extend(["--optimization-level", &level, "--max-tokens", &new_tokens]);
        arguments.extend(["--ignore-eos", "--temperature", "0", "--device", &device]);
        if let Some(sequences) = &sequences {
            arguments.extend(["--max-num-seqs", sequences]);
        }
        Parsed::read(&process::capture_with_cache(&program.path, &arguments, &cache)?)
    }

    /// The prompts of a kind of process. No two begin alike, so that the prefix cache has nothing to give.
    fn prompts(&self, kind: Kind) -> Vec<Vec<u32>> {
        let shortest = self.prompt_tokens.first().copied().unwrap_or(1);
        let lengths: Vec<u32> = match kind {
            Kind::Cold | Kind::Warm => vec![shortest],
            Kind::Prompts => {
                [WARMUP_TOKENS.min(shortest)].into_iter().chain(self.prompt_tokens.iter().copied()).collect()
            }
            Kind::Batch(sequences) => (0..sequences).map(|_| shortest).collect(),
        };
        (0..).zip(lengths).map(|(number, length)| numbered_prompt(number, length, self.vocabulary)).collect()
    }
}

impl Kind {
    /// Leaves out of a sample what its kind does not measure.
    fn keep(self, mut sample: Sample) -> Sample {
        match self {
            Kind::Cold | Kind::Warm => {}
            Kind::Prompts => {
                sample.startup_phases.take();
                // The first was there to warm up.
                sample.prompts.drain(..1.min(sample.prompts.len()));
            }
            Kind::Batch(_) => {
                sample.startup_phases.take();
                sample.prompts.clear();
            }
        }
        sample
    }
}

impl Level {
    fn add(&mut self, kind: Kind, sample: Sample) {
        match kind {
            Kind::Cold => self.cold.push(sample),
            Kind::Warm => self.warm.push(sample),
            Kind::Prompts => self.prompts.push(sample),
            Kind::Batch(sequences) => match self.batches.iter_mut().find(|batch| batch.sequences == sequences) {
                Some(batch) => batch.samples.push(sample),
                None => self.batches.push(Batch { sequences, samples: vec![sample] }),
            },
        }
    }
}

/// What is known while measuring.
#[derive(Default)]
struct State {
    outcome: Outcome,
    /// The first answers of this build (`false`) and of the other one to each kind of process.
    answers: BTreeMap<(bool, Kind), Vec<Vec<u32>>>,
    /// Kinds that a program can't run.
    unable: Vec<(usize, Kind)>,
}

impl State {
    /// Holds answers against the first ones of the same build and kind. Those of this build must be the same at all levels;
    /// those of another one are its own affair.
    fn compare_answers(&mut self, kind: Kind, what: &str, build: &Program, answers: Vec<Vec<u32>>) {
        // A cold start answers what a warm one does.
        let kind = if kind == Kind::Cold { Kind::Warm } else { kind };
        let expected = self.answers.entry((build.other, kind)).or_insert_with(|| answers.clone());
        if *expected == answers {
            return;
        }
        if build.other {
            self.outcome.note(format!("The levels of {} do not give the same answers.", build.commit));
        } else {
            self.outcome.wrong.push(what.to_owned());
        }
    }

    /// What came out, with a note where the other build answers otherwise: it may sum in another order.
    fn finish(mut self) -> Outcome {
        for ((other, kind), answers) in &self.answers {
            if *other && self.answers.get(&(false, *kind)).is_some_and(|expected| expected != answers) {
                self.outcome.note(format!("The two builds give different answers ({}).", kind.name()));
            }
        }
        self.outcome
    }
}

impl Outcome {
    /// Adds a note that is not there yet.
    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// The line of a failure that says why.
fn reason(error: &TaskError) -> String {
    let text = error.to_string();
    let said = text.lines().find(|line| line.starts_with("error"));
    said.or_else(|| text.lines().next()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn plan<'a>(model: &'a Path, programs: &'a [Program]) -> Plan<'a> {
        Plan {
            model,
            programs,
            folder: model,
            vocabulary: 100,
            device: DeviceChoice::Cpu,
            levels: &[OptimizationLevel::O0, OptimizationLevel::O2],
            runs: 2,
            prompt_tokens: &[4, 30],
            batches: &[1, 3],
            new_tokens: 3,
            warm_only: false,
            measure_machine: false,
        }
    }

    #[test]
    fn no_two_prompts_of_a_process_begin_alike() {
        let plan = plan(Path::new("."), &[]);
        for kind in [Kind::Prompts, Kind::Batch(3)] {
            let prompts = plan.prompts(kind);
            let mut begins: Vec<u32> = prompts.iter().map(|prompt| prompt[0]).collect();
            begins.sort_unstable();
            begins.dedup();
            assert_eq!((begins.len(), prompts.len()), (3, 3));
        }
        assert_eq!(plan.prompts(Kind::Prompts).iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 30]);
        assert_eq!(plan.prompts(Kind::Warm).iter().map(Vec::len).collect::<Vec<_>>(), [4]);
    }

    /// A program that writes down how it was called and answers so many prompts as it was given.
    #[cfg(unix)]
    fn script(folder: &Path, name: &str, answer: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join(name);
        let calls = folder.join("calls").display().to_string();
        let found = folder.join("found").display().to_string();
        let text = format!(
            "#!/bin/sh\necho {name} \"$@\" >> {calls}\n{answer}\n\
             if [ -d $XDG_CACHE_HOME ]; then echo 1; else mkdir $XDG_CACHE_HOME; echo 0; fi >> {found}\nfor p in $(cat \"$5\" | tr -d ' '); do\n\
             echo '{{\"tokens\":[1,2],\"prompt_tokens\":4,\"timings\":{{\"prefill_seconds\":0.5}}}}'; done\n\
             echo '{{\"device\":\"cpu\",\"startup\":{{\"ready_seconds\":1,\"unclaimed_seconds\":0}},\"weight_bytes_per_step\":1,\
             \"decode\":{{\"tokens_per_second\":4}},\"launches_per_decode_step\":1,\"submissions_per_decode_step\":1,\"recordings\":1}}' >&2\n"
        );
        let source = folder.join(format!("{name}.sh"));
        fs::write(&source, text).unwrap();
        // A file that this process has had open for writing may still be open in a child that another test just forked, and
        // could not be run then.
        assert!(std::process::Command::new("cp").args([&source, &path]).status().unwrap().success());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    #[cfg(unix)]
    fn builds_and_levels_take_turns_in_alternating_order_and_what_the_other_does_not_know_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let old =
            "case \"$*\" in *max-num-seqs*) echo \"error: unexpected argument '--max-num-seqs'\" >&2; exit 2;; esac";
        let programs = [
            Program { path: script(folder.path(), "new", ""), commit: "new".into(), other: false },
            Program { path: script(folder.path(), "old", old), commit: "old".into(), other: true },
        ];
        let mut machine = Machine::for_tests(1.0, 1.0);
        let outcome = plan(folder.path(), &programs).run(&mut machine).unwrap();
        assert_eq!(outcome.wrong, [""; 0]);
        assert_eq!(outcome.notes.len(), 1, "{:?}", outcome.notes);
        assert!(
            outcome.notes[0].contains("'--max-num-seqs'") && outcome.notes[0].contains("prompts"),
            "{:?}",
            outcome.notes
        );
        for build in &outcome.builds {
            for level in &build.levels {
                let prompts = if build.commit == "new" { 2 } else { 0 };
                assert_eq!((level.cold.len(), level.warm.len(), level.prompts.len()), (2, 2, prompts));
                assert_eq!((level.batch(3).len(), level.batch(1).len()), (2, 2));
            }
        }
        let calls = fs::read_to_string(folder.path().join("calls")).unwrap();
        // Each build and level has a cache of its own, which is empty at a cold start and stays for the others.
        let found = fs::read_to_string(folder.path().join("found")).unwrap();
        let expected = [&["0"; 4][..], &["1"; 2 * 4 + 2 + 4]].concat();
        assert_eq!(found.lines().collect::<Vec<_>>(), [&expected[..], &expected[..]].concat());
        let order: Vec<String> = calls
            .lines()
            .map(|line| {
                let level = line.split("--optimization-level ").nth(1).unwrap().split(' ').next().unwrap();
                format!("{} {level}", line.split(' ').next().unwrap())
            })
            .collect();
        assert_eq!(order[..4], ["new O0", "old O0", "new O2", "old O2"]);
        // Twice each: what the first leaves behind makes the second warm.
        assert_eq!(order[4..12], ["old O2", "old O2", "new O2", "new O2", "old O0", "old O0", "new O0", "new O0"]);
    }

    #[test]
    fn another_answer_is_wrong_in_this_build_and_noted_in_another() {
        let build = |other| Program { path: PathBuf::new(), commit: "a".into(), other };
        let mut state = State::default();
        // The other build may be first.
        state.compare_answers(Kind::Warm, "O1, warm start", &build(true), vec![vec![2]]);
        state.compare_answers(Kind::Cold, "O0, cold start", &build(false), vec![vec![1]]);
        state.compare_answers(Kind::Warm, "O1, warm start", &build(false), vec![vec![1]]);
        state.compare_answers(Kind::Batch(2), "O1, batch of 2", &build(false), vec![vec![3]]);
        state.compare_answers(Kind::Batch(2), "O1, batch of 2", &build(true), vec![vec![3]]);
        assert!(state.outcome.wrong.is_empty() && state.outcome.notes.is_empty());
        state.compare_answers(Kind::Warm, "O2, warm start", &build(false), vec![vec![2]]);
        state.compare_answers(Kind::Warm, "O2, warm start", &build(true), vec![vec![1]]);
        let outcome = state.finish();
        assert_eq!(outcome.wrong, ["O2, warm start"]);
        assert_eq!(outcome.notes.len(), 2, "{:?}", outcome.notes);
        assert!(
            outcome.notes[0].contains("The levels of a") && outcome.notes[1].contains("warm start"),
            "{:?}",
            outcome.notes
        );
    }
}
