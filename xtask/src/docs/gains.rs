//! What each pass gains, as `cargo xtask bench --passes` measured it and wrote it down.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bench::statistics::Summary;
use crate::error::TaskError;
use crate::workspace;

/// What one pass gains on a checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PassGain {
    pub(crate) name: String,
    /// Launches of a decode step with this pass off and all others on.
    pub(crate) launches_without: usize,
    /// Time of a step without the pass to that with it, where every launch is dispatched by itself.
    pub(crate) launched: Summary,
    /// The same where the whole step is one recording.
    pub(crate) recorded: Summary,
}

/// A measurement of all passes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Gains {
    pub(crate) model: String,
    pub(crate) machine: String,
    pub(crate) command: String,
    /// How often blocks of steps took turns.
    pub(crate) blocks: u32,
    /// Launches of a decode step with every pass on.
    pub(crate) launches: usize,
    pub(crate) passes: Vec<PassGain>,
}

impl Gains {
    /// Where the measurement is kept.
    pub(crate) fn path() -> PathBuf {
        workspace::root().join("docs/data/pass-gains.json")
    }

    pub(super) fn read() -> Result<Self, TaskError> {
        let path = Gains::path();
        let text = fs::read_to_string(&path).map_err(TaskError::file(&path))?;
        serde_json::from_str(&text).map_err(|error| TaskError::Message(format!("{}: {error}", path.display())))
    }

    pub(crate) fn write(&self) -> Result<PathBuf, TaskError> {
        let path = Gains::path();
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(TaskError::file(folder))?;
        }
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| TaskError::Message(format!("{}: {error}", path.display())))?;
        fs::write(&path, format!("{text}\n")).map_err(TaskError::file(&path))?;
        Ok(path)
    }

    pub(super) fn heading(&self) -> &'static str {
        "step without it, launched / recorded"
    }

    /// Launches without a pass, and its gains in speed.
    pub(super) fn cells(&self, pass: &str) -> (String, String) {
        let Some(gain) = self.passes.iter().find(|gain| gain.name == pass) else {
            return ("–".to_owned(), "not measured".to_owned());
        };
        let percent = |ratio: Summary| match ((ratio.median - 1.0) * 100.0).round() as i32 {
            0 => "0 %".to_owned(),
            more @ 1.. => format!("+{more} %"),
            less => format!("−{} %", less.unsigned_abs()),
        };
        (gain.launches_without.to_string(), format!("{} / {}", percent(gain.launched), percent(gain.recorded)))
    }

    pub(super) fn note(&self) -> String {
        format!(
            "Launches of a step of {} at `-O2` on the CPU: {} with every pass, and as many as the table says\n\
             with one pass off (as many again where another pass takes in what it leaves). Steps are decode steps of one\n\
             sequence: how much longer one takes with the pass off and all others on, where launches are dispatched one by one, and\n\
             where the whole step is one recording; medians of {} ratios of steps that take turns in one process, on\n\
             {}.\n\
             `fuse_qk_norm_rope` matches nothing in this model: its row shows how far such medians move by themselves. Measured by\n\
             `{}`.",
            self.model, self.launches, self.blocks, self.machine, self.command
        )
    }
}
