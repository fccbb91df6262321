//! `cargo xtask gpu-archive`: everything that is to be seen on a machine with an NVIDIA GPU, in one file that needs nothing but
//! the driver, bash and coreutils there. The script in it ([`run.sh`](run.sh)) uses this program for what a shell can't do:
//! `compare`, `measure` and `report`.

mod compare;
mod measure;
mod pack;
mod report;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use allotrope_config::{DeviceChoice, OptimizationLevel};
use allotrope_engine::{Llm, LlmBuilder};
use serde_json::Value;

use crate::error::TaskError;

/// What to do.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The archive to write [default: allotrope-gpu.tar.gz in cargo's target folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(subcommand)]
    action: Option<Action>,
}

/// What the script in the archive asks for.
#[derive(clap::Subcommand)]
enum Action {
    /// Compare a checkpoint's logits at every level with each other and with the CPU's
    Compare(compare::Options),
    /// Start once and measure steps; the results are one line of JSON
    Measure(measure::Options),
    /// Print what was found as tables
    Report(report::Options),
}

/// Builds the archive, or does a part of what its script does.
///
/// # Errors
/// If something can't be built, run or written, or a comparison fails.
pub(crate) fn run(options: &Options) -> Result<(), TaskError> {
    match &options.action {
        None => pack::run(options.out.as_deref()),
        Some(Action::Compare(options)) => compare::run(options),
        Some(Action::Measure(options)) => measure::run(options),
        Some(Action::Report(options)) => report::run(options),
    }
}

/// A checkpoint at a level on a device.
#[derive(clap::Args)]
struct Subject {
    /// The folder of a checkpoint
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The device: cpu or cuda
    #[arg(long, value_name = "DEVICE", default_value = "cuda")]
    device: DeviceChoice,
    /// The file that results are added to, one line of JSON each
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// The folder of compiled kernels
    #[arg(long, value_name = "DIR")]
    kernel_cache: Option<PathBuf>,
}

impl Subject {
    /// The checkpoint's name: that of its folder.
    fn name(&self) -> String {
        self.model.file_name().map_or_else(|| self.model.display().to_string(), |name| name.to_string_lossy().into())
    }

    /// Says how the checkpoint is loaded.
    fn builder(&self, level: OptimizationLevel) -> Result<LlmBuilder, TaskError> {
        let builder = Llm::builder(&self.model).optimization_level(level);
        let builder = builder.set("device", &self.device.to_string()).map_err(message)?;
        match &self.kernel_cache {
            None => Ok(builder),
            Some(folder) => builder.set("kernel.kernel_cache", &folder.to_string_lossy()).map_err(message),
        }
    }

    /// Prints a result and adds it to the file.
    fn tell(&self, result: &Value) -> Result<(), TaskError> {
        println!("{result}");
        let Some(path) = &self.results else { return Ok(()) };
        let opened = File::options().create(true).append(true).open(path);
        opened.and_then(|mut file| writeln!(file, "{result}")).map_err(TaskError::file(path))
    }
}

/// Any error as a message.
fn message(error: impl std::fmt::Display) -> TaskError {
    TaskError::Message(error.to_string())
}

/// Lines of JSON of a file.
fn lines(path: &Path) -> Result<Vec<Value>, TaskError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = crate::workspace::read(path)?;
    let parse = |line: &str| {
        serde_json::from_str(line).map_err(|error| TaskError::Message(format!("{}: {error}: {line}", path.display())))
    };
    text.lines().map(parse).collect()
}
