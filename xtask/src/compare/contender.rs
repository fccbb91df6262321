//! An engine with settings, and how it is run with a workload.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::Deserialize;

use super::Prompts;
use super::install::LlamaCpp;
use crate::error::TaskError;

/// Tokens that a prompt is continued with; the first comes with the prefill.
const NEW_TOKENS: u32 = 33;

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Engine {
    Allotrope,
    LlamaCpp,
    Transformers,
}

/// What an engine has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Workload {
    /// Prompts one after the other.
    Each,
    /// Prompts at once.
    Together,
    /// One token after a short prompt, from the start of the process.
    Start,
    /// A short prompt, continued.
    Short,
    /// The logits after a short prompt.
    Logits,
}

impl Workload {
    fn prompts(self) -> &'static str {
        match self {
            Workload::Each => "each",
            Workload::Together => "together",
            Workload::Start | Workload::Short | Workload::Logits => "short",
        }
    }

    fn new_tokens(self) -> u32 {
        if matches!(self, Workload::Start | Workload::Logits) { 1 } else { NEW_TOKENS }
    }

    /// The word for it that the drivers know.
    fn mode(self) -> &'static str {
        match self {
            Workload::Each | Workload::Start | Workload::Short => "each",
            Workload::Together => "together",
            Workload::Logits => "logits",
        }
    }
}

/// An engine with settings.
#[derive(Debug, Clone)]
pub(super) struct Contender {
    pub(super) engine: Engine,
    /// The engine, and the settings if they are not all.
    pub(super) name: String,
    program: PathBuf,
    /// What stands before everything else on its command line.
    script: Option<PathBuf>,
    model: PathBuf,
    /// What is added to its command line.
    flags: Vec<String>,
    environment: Vec<(&'static str, &'static str)>,
    /// The workloads that these settings are for.
    workloads: Vec<Workload>,
}

/// Allotrope as it is without a flag, and at the level that starts fastest.
pub(super) fn allotrope(program: &Path, model: &Path) -> Vec<Contender> {
    let contender = |name: &str, flags: &[&str], workloads: &[Workload]| Contender {
        engine: Engine::Allotrope,
        name: name.to_owned(),
        program: program.to_path_buf(),
        script: None,
        model: model.to_path_buf(),
        flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
        environment: Vec::new(),
        workloads: workloads.to_vec(),
    };
    use Workload::{Each, Logits, Short, Start, Together};
    vec![
        contender("Allotrope", &[], &[Each, Together, Start, Short, Logits]),
        contender("Allotrope at O0", &["-O0"], &[Start]),
    ]
}

/// llama.cpp with and without flash attention, with its weights in memory of its own, which decodes faster than mapped files,
/// and mapped for starts, which is faster there; and with threads that sleep where they wait.
pub(super) fn llama_cpp(installed: LlamaCpp) -> Vec<Contender> {
    let LlamaCpp { driver, gguf } = installed;
    let contender = |name: &str, flags: [&str; 2], workloads: &[Workload]| Contender {
        engine: Engine::LlamaCpp,
        name: format!("llama.cpp, {name}"),
        program: driver.clone(),
        script: None,
        model: gguf.clone(),
        flags: flags.map(str::to_owned).to_vec(),
        environment: Vec::new(),
        workloads: workloads.to_vec(),
    };
    use Workload::{Each, Logits, Short, Start, Together};
    let mut passive = contender("OMP_WAIT_POLICY=passive", ["on", "read"], &[Short]);
    passive.environment.push(("OMP_WAIT_POLICY", "passive"));
    vec![
        contender("flash attention", ["on", "read"], &[Each, Together, Short, Logits]),
        contender("no flash attention", ["off", "read"], &[Each, Together]),
        contender("flash attention, mapped", ["on", "mmap"], &[Start]),
        contender("no flash attention, mapped", ["off", "mmap"], &[Start]),
        passive,
    ]
}

/// transformers with PyTorch's scaled dot-product attention. Its start is left out: most of it is importing a build that has the
/// libraries of CUDA with it.
pub(super) fn transformers((python, script): (PathBuf, PathBuf), model: &Path) -> Contender {
    use Workload::{Each, Logits, Together};
    Contender {
        engine: Engine::Transformers,
        name: "transformers".into(),
        program: python,
        script: Some(script),
        model: model.to_path_buf(),
        flags: Vec::new(),
        environment: Vec::new(),
        workloads: vec![Each, Together, Logits],
    }
}

impl Contender {
    /// Whether its settings are for a workload.
    pub(super) fn runs(&self, workload: Workload) -> bool {
        self.workloads.contains(&workload)
    }

    /// What the engine says of itself, once for each engine that can.
    ///
    /// # Errors
    /// If it can't be run.
    pub(super) fn about(&self) -> Result<Option<String>, TaskError> {
        if self.engine == Engine::Allotrope || !self.runs(Workload::Logits) {
            return Ok(None);
        }
        let mut command = Command::new(&self.program);
        command.args(&self.script).arg("info");
        let name = self.name.split(',').next().unwrap_or_default();
        Ok(Some(format!("{name}: {}", String::from_utf8_lossy(&output(&mut command)?).trim())))
    }

    /// Runs a workload in a process of its own and gives the answers.
    ///
    /// # Errors
    /// If the process fails, or what it wrote are no answers.
    pub(super) fn answers(
        &self,
        workload: Workload,
        prompts: &Prompts,
        threads: u32,
    ) -> Result<Vec<Answer>, TaskError> {
        let written = output(&mut self.command(workload, prompts, threads))?;
        parse(&String::from_utf8_lossy(&written)).map_err(|error| TaskError::Message(format!("{}: {error}", self.name)))
    }

    /// The logits after the short prompt, as the driver writes them: `[vocabulary]`, f32, little-endian.
    ///
    /// # Errors
    /// If the process fails.
    pub(super) fn driver_logits(&self, prompts: &Prompts, threads: u32) -> Result<Vec<u8>, TaskError> {
        output(&mut self.command(Workload::Logits, prompts, threads))
    }

    /// Writes Allotrope's logits of the short prompt to a file, in the format of safetensors.
    ///
    /// # Errors
    /// If the process fails.
    pub(super) fn write_logits(&self, prompts: &Prompts, threads: u32, file: &Path) -> Result<(), TaskError> {
        let mut command = Command::new(&self.program);
        command.args(["logits", "--device", "cpu", "--new-tokens", "1", "--threads", &threads.to_string(), "--model"]);
        command.arg(&self.model).arg("--tokens").arg(prompts.path("short", "json")).arg("--out").arg(file);
        output(&mut command).map(|_| ())
    }

    /// From before the process is started to its first token.
    ///
    /// # Errors
    /// If it can't be started, or ends without one.
    pub(super) fn seconds_to_first_token(&self, prompts: &Prompts, threads: u32) -> Result<f64, TaskError> {
        let mut command = self.command(Workload::Start, prompts, threads);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let started = Instant::now();
        let mut child =
            command.spawn().map_err(|source| TaskError::Start { command: format!("{command:?}"), source })?;
        let mut first = [0];
        let read = child.stdout.as_mut().map(|pipe| pipe.read(&mut first));
        let seconds = started.elapsed().as_secs_f64();
        // It has nothing more to do.
        let _ = child.kill();
        let _ = child.wait();
        match read {
            Some(Ok(1)) => Ok(seconds),
            _ => Err(TaskError::Message(format!("`{command:?}` gave no token"))),
        }
    }

    fn command(&self, workload: Workload, prompts: &Prompts, threads: u32) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.script).envs(self.environment.iter().copied());
        let (threads, new_tokens) = (threads.to_string(), workload.new_tokens().to_string());
        if self.engine == Engine::Allotrope {
            command.args(["generate", "--format", "json", "--device", "cpu", "--ignore-eos", "--temperature", "0"]);
            command.args(["--threads", &threads, "--max-tokens", &new_tokens]);
            if workload == Workload::Each {
                command.args(["--max-num-seqs", "1"]);
            }
            command.arg("--model").arg(&self.model);
            command.arg("--prompts").arg(prompts.path(workload.prompts(), "jsonl"));
        } else {
            command.arg(&self.model).arg(&threads).arg(prompts.path(workload.prompts(), "txt"));
            command.args([&new_tokens, workload.mode()]);
        }
        command.args(&self.flags);
        command
    }
}

/// Runs a program to its end and gives what it wrote to standard output.
fn output(command: &mut Command) -> Result<Vec<u8>, TaskError> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|source| TaskError::Start { command: format!("{command:?}"), source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(TaskError::Message(format!("`{command:?}` failed ({}):\n{}", output.status, said.trim_end())))
}

/// An answer to a prompt, and how long it took.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Answer {
    prompt_tokens: u32,
    timings: Timings,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Timings {
    /// From handing over the prompt to the first token.
    prefill_seconds: f64,
    /// From each token to the next.
    inter_token_seconds: Vec<f64>,
}

impl Answer {
    /// Tokens of the prompt per second.
    pub(super) fn prefill_rate(&self) -> f64 {
        f64::from(self.prompt_tokens) / self.timings.prefill_seconds
    }

    /// Tokens after the first, per second.
    pub(super) fn decode_rate(&self) -> f64 {
        decode_rate_together(std::slice::from_ref(self))
    }

    /// From each token to the next, in seconds.
    pub(super) fn intervals(&self) -> &[f64] {
        &self.timings.inter_token_seconds
    }
}

/// Tokens after the first of all answers, per second of the one that took longest.
pub(super) fn decode_rate_together(answers: &[Answer]) -> f64 {
    let tokens: usize = answers.iter().map(|answer| answer.intervals().len()).sum();
    let longest = answers.iter().map(|answer| answer.intervals().iter().sum::<f64>()).fold(0.0, f64::max);
    tokens as f64 / longest
}

/// Reads answers, one JSON object on a line.
fn parse(text: &str) -> Result<Vec<Answer>, String> {
    let answer = |line: &str| serde_json::from_str(line).map_err(|error| format!("no answer ({error}): {line}"));
    text.lines().filter(|line| !line.trim().is_empty()).map(answer).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const LINE: &str = r#"{"text":"","tokens":[1,2,3],"prompt_tokens":10,
        "timings":{"prefill_seconds":0.5,"decode_seconds":1.0,"inter_token_seconds":[0.25,0.75]}}"#;

    #[test]
    fn answers_are_read_and_rated() {
        let line = LINE.replace('\n', "");
        let answers = parse(&format!("{line}\n\n{line}\n")).unwrap();
        assert_eq!(answers.len(), 2);
        assert_eq!((answers[0].prefill_rate(), answers[0].decode_rate()), (20.0, 2.0));
        assert_eq!(decode_rate_together(&answers), 4.0);
    }

    #[test]
    fn the_longest_answer_counts_together() {
        let mut slow = parse(&LINE.replace('\n', "")).unwrap().remove(0);
        let fast = slow.clone();
        slow.timings.inter_token_seconds = vec![1.0, 3.0];
        assert_eq!(decode_rate_together(&[fast, slow]), 1.0);
    }

    #[test]
    fn what_is_no_answer_is_shown() {
        let error = parse(r#"{"tokens":[1],"prompt_tokens":1}"#).unwrap_err();
        assert!(error.contains("timings") && error.contains("prompt_tokens"), "{error}");
    }

    #[test]
    fn a_process_without_a_token_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let prompts = Prompts { folder };
        let mut contender = allotrope(Path::new("false"), Path::new("a-model")).remove(0);
        let error = contender.seconds_to_first_token(&prompts, 1).unwrap_err().to_string();
        assert!(error.contains("gave no token"), "{error}");
        contender.program = "no-such-program".into();
        assert!(matches!(contender.answers(Workload::Each, &prompts, 1), Err(TaskError::Start { .. })));
    }
}
