//! What serving many at once gains: decoding of a batch against one sequence, the scheduler's part of a step, and the prefix
//! cache against none.
//!
//! As everywhere here, every measurement is a fresh process of the release build, and what is compared takes turns.

use std::fs;
use std::path::Path;

use allotrope_config::DeviceChoice;
use serde_json::{Value, json};

use super::machine::Machine;
use super::process;
use super::statistics::Summary;
use crate::error::TaskError;
use crate::runner::{numbered_prompt, prompt_lines};
use crate::server::Server;

/// Sequences that decode together.
const CONCURRENCY: u32 = 32;
/// Clients that share a system prompt.
const CLIENTS: u32 = 64;
/// Tokens of the system prompt that they share.
const SHARED_TOKENS: u32 = 512;
/// Tokens of each client's own.
const OWN_TOKENS: u32 = 16;

/// What to measure with.
pub(super) struct Serving<'a> {
    pub(super) program: &'a Path,
    pub(super) model: &'a Path,
    pub(super) folder: &'a Path,
    pub(super) vocabulary: u32,
    pub(super) device: DeviceChoice,
    pub(super) runs: u32,
    pub(super) prompt_tokens: u32,
    pub(super) new_tokens: u32,
}

/// One run of a batch.
struct Batch {
    decode_tokens_per_second: f64,
    /// Of the time of all steps, in percent.
    scheduler_percent: f64,
    sampling_percent: f64,
}

impl Serving<'_> {
    /// Measures, prints and gives the JSON of it.
    ///
    /// # Errors
    /// If a run fails or its report can't be read.
    pub(super) fn run(&self, machine: &Machine) -> Result<Value, TaskError> {
        let (mut one, mut many) = (Vec::new(), Vec::new());
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for round in 1..=self.runs {
            eprintln!("round {round} of {}", self.runs);
            one.push(self.batch(1)?);
            many.push(self.batch(CONCURRENCY)?);
            without.push(self.first_token(false)?);
            with.push(self.first_token(true)?);
        }
        let speeds = |batches: &[Batch]| batches.iter().map(|batch| batch.decode_tokens_per_second).collect::<Vec<_>>();
        let speedups =
            many.iter().zip(&one).map(|(many, one)| many.decode_tokens_per_second / one.decode_tokens_per_second);
        let gains = without.iter().zip(&with).map(|(without, with)| without / with);
        let lines = [
            Line::new("decode, batch 1", "tokens/s", &speeds(&one)),
            Line::new(&format!("decode, batch {CONCURRENCY}"), "tokens/s", &speeds(&many)),
            Line::new("speedup of the batch", "×", &speedups.collect::<Vec<_>>()),
            Line::new(
                "scheduler, of a step",
                "%",
                &many.iter().map(|batch| batch.scheduler_percent).collect::<Vec<_>>(),
            ),
            Line::new(
                "sampling by the host, of a step",
                "%",
                &many.iter().map(|batch| batch.sampling_percent).collect::<Vec<_>>(),
            ),
            Line::new("time to first token, no prefix cache", "ms", &without),
            Line::new("time to first token, prefix cache", "ms", &with),
            Line::new("gain of the prefix cache", "×", &gains.collect::<Vec<_>>()),
        ];
        println!("{}, {} on {}", self.model.display(), self.device, machine.name());
        println!(
            "batches: {} prompt tokens, {} new ones each; prefix cache: {CLIENTS} clients at once with {SHARED_TOKENS} shared tokens and \
             {OWN_TOKENS} of their own; medians of {} runs\n",
            self.prompt_tokens, self.new_tokens, self.runs
        );
        lines.iter().for_each(|line| println!("{}", line.text()));
        Ok(json!({
            "model": self.model.display().to_string(),
            "machine": machine,
            "runs": self.runs,
            "measured": lines.iter().map(Line::json).collect::<Vec<_>>(),
        }))
    }

    /// Decodes so many sequences together.
    fn batch(&self, sequences: u32) -> Result<Batch, TaskError> {
        let path = self.folder.join("prompts.jsonl");
        let prompts: Vec<_> =
            (0..sequences).map(|number| numbered_prompt(number, self.prompt_tokens, self.vocabulary)).collect();
        fs::write(&path, prompt_lines(&prompts)).map_err(TaskError::file(&path))?;
        let (model, prompts) = (self.model.to_string_lossy(), path.to_string_lossy());
        let (new_tokens, device) = (self.new_tokens.to_string(), self.device.to_string());
        let mut arguments = vec!["generate", "--model", &model, "--prompts", &prompts, "--format", "json", "-O2"];
        arguments.extend(["--max-tokens", &new_tokens, "--ignore-eos", "--temperature", "0", "--device", &device]);
        let output = process::capture(self.program, &arguments)?;
        let report = output.stderr.lines().rfind(|line| line.starts_with('{')).unwrap_or_default();
        let report: Value = serde_json::from_str(report)
            .map_err(|error| TaskError::Message(format!("the program's report: {error}")))?;
        let steps = number(&report, "/decode/seconds")? + number(&report, "/prefill/seconds")?;
        Ok(Batch {
            decode_tokens_per_second: number(&report, "/decode/tokens_per_second")?,
            scheduler_percent: 100.0 * number(&report, "/scheduler_seconds")? / steps,
            sampling_percent: 100.0 * number(&report, "/sampling_seconds")? / steps,
        })
    }

    /// The mean time to the first token, in milliseconds, of clients that come at once and begin alike.
    fn first_token(&self, prefix_caching: bool) -> Result<f64, TaskError> {
        let (clients, device) = (CLIENTS.to_string(), self.device.to_string());
        let caching = format!("--enable-prefix-caching={prefix_caching}");
        let server = Server::start(
            self.program,
            self.model,
            &["--device", &device, "-O2", "--max-num-seqs", &clients, &caching],
        )?;
        let (vocabulary, shared, own) =
            (self.vocabulary.to_string(), SHARED_TOKENS.to_string(), OWN_TOKENS.to_string());
        let folder = self.folder.to_string_lossy();
        let mut arguments = vec!["bench", "serve", "--base-url", &server.url, "--num-prompts", &clients];
        arguments.extend(["--random-prefix-len", &shared, "--random-input-len", &own, "--random-output-len", "2"]);
        arguments.extend(["--vocab-size", &vocabulary, "--ignore-eos", "--save-result", "--result-dir", &folder]);
        arguments.extend(["--result-filename", "serve.json"]);
        process::capture(self.program, &arguments)?;
        let path = self.folder.join("serve.json");
        let result: Value = serde_json::from_str(&crate::workspace::read(&path)?)
            .map_err(|error| TaskError::Message(format!("{}: {error}", path.display())))?;
        let completed = number(&result, "/completed")?;
        if completed != f64::from(CLIENTS) {
            return Err(TaskError::Message(format!("only {completed} of {CLIENTS} requests were answered: {result}")));
        }
        number(&result, "/mean_ttft_ms")
    }
}

fn number(value: &Value, pointer: &str) -> Result<f64, TaskError> {
    let number = value.pointer(pointer).and_then(Value::as_f64);
    number.ok_or_else(|| TaskError::Message(format!("there is no number at {pointer} in {value}")))
}

/// One quantity of all runs.
struct Line {
    name: String,
    unit: &'static str,
    summary: Option<Summary>,
}

impl Line {
    fn new(name: &str, unit: &'static str, values: &[f64]) -> Self {
        Line { name: name.to_owned(), unit, summary: Summary::of(values) }
    }

    fn text(&self) -> String {
        match self.summary {
            Some(Summary { median, minimum, maximum }) => {
                format!("{:<38}{median:>10.2} {:<9}({minimum:.2} to {maximum:.2})", self.name, self.unit)
            }
            None => format!("{:<38}not measured", self.name),
        }
    }

    fn json(&self) -> Value {
        json!({ "name": self.name, "unit": self.unit, "summary": self.summary })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_median_and_spread_or_that_nothing_was_measured() {
        let text = Line::new("decode", "tokens/s", &[3.0, 1.0, 2.0]).text();
        assert!(
            text.starts_with("decode ") && text.contains("2.00 tokens/s") && text.contains("(1.00 to 3.00)"),
            "{text}"
        );
        assert!(Line::new("decode", "tokens/s", &[f64::NAN]).text().contains("not measured"));
    }

    #[test]
    fn a_missing_number_is_named() {
        let error = number(&json!({ "a": "b" }), "/a").map_err(|error| error.to_string());
        assert!(error.is_err_and(|error| error.contains("/a")));
    }
}
