//! `allotrope bench startup`: fresh processes, with an empty kernel cache and with a filled one.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use allotrope_config::OptimizationLevel;
use clap::ArgMatches;
use indicatif::ProgressBar;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::numbers::Sample;
use super::offline::{check_output, save};
use super::{count, progress};
use crate::error::CliError;
use crate::{arguments, model, output};

/// The setting that this benchmark makes itself.
const KERNEL_CACHE: &str = "--kernel-cache=";

/// What a process is asked: one token that every vocabulary has.
const PROMPT: &[u8] = b"{\"tokens\": [0]}\n";

/// The phases of a start that compile, as the report names them.
const COMPILING: [&str; 2] = ["run passes", "prepare kernels"];

pub(super) fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let settings = model::setting_flags(matches);
    if settings.iter().any(|flag| flag.to_string_lossy().starts_with(KERNEL_CACHE)) {
        let message = "--kernel-cache is chosen by the benchmark: an empty one for each cold start; leave it out";
        return Err(CliError::Usage(message.to_owned()));
    }
    check_output(matches)?;
    let iterations = Iterations {
        cold: count(matches, arguments::NUM_ITERS_COLD),
        fill: count(matches, arguments::NUM_ITERS_WARMUP),
        warm: count(matches, arguments::NUM_ITERS_WARM),
    };
    let levels: Vec<OptimizationLevel> = matches.get_many(arguments::LEVELS).into_iter().flatten().copied().collect();
    let levels: Vec<Option<OptimizationLevel>> =
        if levels.is_empty() { vec![None] } else { levels.into_iter().map(Some).collect() };
    let starter = Starter::new(&model::folder(matches), settings)?;
    let progress = progress(iterations.total().saturating_mul(levels.len()), "starts");
    let mut measured = Vec::new();
    for level in levels {
        measured.push(starter.measure(level, &iterations, &progress)?);
    }
    progress.finish_and_clear();
    output::show(table(&measured))?;
    let by_level: Map<String, Value> = measured.iter().map(|level| (level.name.clone(), level.json())).collect();
    let device = measured.first().map(|level| level.device.as_str());
    save(matches, &json!({ "model": model::folder(matches), "device": device, "levels": by_level }))
}

struct Iterations {
    cold: usize,
    /// Starts that fill the cache before the warm ones.
    fill: usize,
    warm: usize,
}

impl Iterations {
    fn total(&self) -> usize {
        self.cold.saturating_add(self.fill).saturating_add(self.warm)
    }
}

/// Starts processes of this program.
struct Starter {
    program: PathBuf,
    model: PathBuf,
    settings: Vec<OsString>,
}

/// One start.
#[derive(Debug, Clone, PartialEq)]
struct Start {
    level: String,
    device: String,
    /// Until the model was ready.
    ready: f64,
    compiling: f64,
    /// Until the first token was there.
    first_token: f64,
    /// From the start of the process to its end, with one token.
    process: f64,
}

/// The starts of one level.
#[derive(Debug, Default)]
struct Level {
    name: String,
    device: String,
    cold: Vec<Start>,
    warm: Vec<Start>,
}

impl Starter {
    fn new(model: &Path, settings: Vec<OsString>) -> Result<Self, CliError> {
        let program = std::env::current_exe()
            .map_err(|error| CliError::Failure(format!("cannot find this program to start it: {error}")))?;
        Ok(Self { program, model: model.to_owned(), settings })
    }

    fn measure(
        &self,
        level: Option<OptimizationLevel>,
        iterations: &Iterations,
        progress: &ProgressBar,
    ) -> Result<Level, CliError> {
        let mut measured = Level::default();
        for _ in 0..iterations.cold {
            measured.cold.push(self.start(level, temporary()?.path(), progress)?);
        }
        let cache = temporary()?;
        for iteration in 0..iterations.fill.saturating_add(iterations.warm) {
            let start = self.start(level, cache.path(), progress)?;
            if iteration >= iterations.fill {
                measured.warm.push(start);
            }
        }
        if let Some(start) = measured.cold.first().or(measured.warm.first()) {
            (measured.name, measured.device) = (start.level.clone(), start.device.clone());
        }
        Ok(measured)
    }

    fn start(&self, level: Option<OptimizationLevel>, cache: &Path, progress: &ProgressBar) -> Result<Start, CliError> {
        let failed =
            |reason: String| CliError::Failure(format!("a start of {} failed: {reason}", self.program.display()));
        let mut command = Command::new(&self.program);
        command.arg(arguments::GENERATE).arg("--model").arg(&self.model).args(&self.settings);
        if let Some(level) = level {
            command.arg(format!("--optimization-level={level}"));
        }
        let mut kernel_cache = OsString::from(KERNEL_CACHE);
        kernel_cache.push(cache);
        command.arg(kernel_cache).args(["--format=json", "--max-tokens=1", "--temperature=0", "--prompts=-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let began = Instant::now();
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        if let Some(mut input) = child.stdin.take() {
            // A process that fails early does not read it, and says why.
            let _ = input.write_all(PROMPT);
        }
        let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
        let process = began.elapsed().as_secs_f64();
        let stderr = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(failed(stderr.trim().trim_start_matches("error: ").to_owned()));
        }
        progress.inc(1);
        let report = stderr.lines().last().unwrap_or_default();
        read_report(report, process).map_err(|error| failed(format!("its report cannot be read: {error}")))
    }
}

fn temporary() -> Result<TempDir, CliError> {
    TempDir::new()
        .map_err(|error| CliError::Failure(format!("cannot make a temporary folder for the kernel cache: {error}")))
}

/// The report of a process, as far as it is needed.
#[derive(Deserialize)]
struct Report {
    device: String,
    optimization_level: String,
    startup: Startup,
}

#[derive(Deserialize)]
struct Startup {
    phases: Vec<Phase>,
    ready_seconds: f64,
    first_token_seconds: f64,
}

#[derive(Deserialize)]
struct Phase {
    name: String,
    seconds: f64,
}

fn read_report(line: &str, process: f64) -> Result<Start, serde_json::Error> {
    let report: Report = serde_json::from_str(line)?;
    let compiling = report.startup.phases.iter().filter(|phase| COMPILING.contains(&phase.name.as_str()));
    Ok(Start {
        level: report.optimization_level,
        device: report.device,
        ready: report.startup.ready_seconds,
        compiling: compiling.map(|phase| phase.seconds).sum(),
        first_token: report.startup.first_token_seconds,
        process,
    })
}

impl Level {
    fn json(&self) -> Value {
        let mut members = Map::new();
        for (kind, starts) in [("cold", &self.cold), ("warm", &self.warm)] {
            for (what, of) in TIMES {
                let times: Vec<f64> = starts.iter().map(of).collect();
                let sample = Sample::new(times.clone());
                members.insert(format!("avg_{kind}_{what}_time"), sample.mean().into());
                members.insert(format!("{kind}_{what}_times"), times.into());
                members.insert(format!("{kind}_{what}_percentiles"), sample.percentiles().into());
            }
        }
        members.into()
    }
}

/// A time of a start.
type Time = fn(&Start) -> f64;

/// The times of a start by their names in the result.
const TIMES: [(&str, Time); 4] = [
    ("startup", |start| start.ready),
    ("compilation", |start| start.compiling),
    ("first_token", |start| start.first_token),
    ("process", |start| start.process),
];

fn table(levels: &[Level]) -> String {
    let mut text = format!(
        "{:<7}{:<6}{:>7}{:>12}{:>12}{:>12}{:>14}{:>16}{:>12}\n",
        "level", "start", "starts", "mean s", "p50 s", "p99 s", "compiling s", "first token s", "process s"
    );
    for level in levels {
        for (kind, starts) in [("cold", &level.cold), ("warm", &level.warm)] {
            if starts.is_empty() {
                continue;
            }
            let [ready, compiling, first_token, process] =
                TIMES.map(|(_, of)| Sample::new(starts.iter().map(of).collect()));
            text.push_str(&format!(
                "{:<7}{kind:<6}{:>7}{:>12.4}{:>12.4}{:>12.4}{:>14.4}{:>16.4}{:>12.4}\n",
                level.name,
                starts.len(),
                ready.mean(),
                ready.percentile(50.0),
                ready.percentile(99.0),
                compiling.mean(),
                first_token.mean(),
                process.mean()
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    fn start(ready: f64) -> Start {
        let (level, device) = ("O1".to_owned(), "cpu".to_owned());
        Start { level, device, ready, compiling: 0.25, first_token: ready + 0.5, process: ready + 1.0 }
    }

    #[test]
    fn the_report_of_a_process_is_read() {
        let report = json!({
            "device": "cpu",
            "optimization_level": "O1",
            "startup": {
                "phases": [
                    { "name": "run passes", "seconds": 0.125 },
                    { "name": "capture", "seconds": 9.0 },
                    { "name": "prepare kernels", "seconds": 0.125 },
                ],
                "ready_seconds": 2.0,
                "first_token_seconds": 2.5,
            },
        });
        assert_eq!(read_report(&report.to_string(), 3.0).unwrap(), start(2.0));
        assert!(read_report("error", 3.0).is_err());
    }

    #[test]
    fn results_are_told_for_cold_and_warm_starts_apart() {
        let level = Level { name: "O1".to_owned(), cold: vec![start(2.0), start(4.0)], ..Level::default() };
        let json = level.json();
        assert_eq!(json["avg_cold_startup_time"], 3.0);
        assert_eq!(json["cold_startup_times"], json!([2.0, 4.0]));
        assert_eq!(json["cold_startup_percentiles"]["50"], 3.0);
        assert_eq!(json["avg_cold_compilation_time"], 0.25);
        assert_eq!(json["avg_cold_first_token_time"], 3.5);
        assert_eq!(json["avg_cold_process_time"], 4.0);
        assert_eq!(json["warm_startup_times"], json!([]));
        let table = table(&[level]);
        assert_eq!(table.lines().count(), 2, "no line for no starts: {table}");
        assert!(table.contains("O1     cold        2      3.0000"), "{table}");
    }
}
