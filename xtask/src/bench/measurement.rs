//! Everything that one run of the benchmark measured, as it is kept in JSON.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::agreement::Agreement;
use super::break_even::Course;
use super::machine::Machine;
use super::sample::Sample;
use super::statistics::Summary;
use super::work::Work;
use crate::error::TaskError;
use crate::workspace;

/// The form of the JSON; one with another number is refused.
const FORMAT: u32 = 1;
/// A cold start counts as cold if at least this share of the weight files came from storage.
const COLD_SHARE: f64 = 0.5;

/// A run of the benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Measurement {
    pub(super) format: u32,
    /// The checkpoint, as it was named.
    pub(super) model: String,
    /// The command that measured.
    pub(super) command: String,
    /// When it began, in UTC.
    pub(super) date: String,
    pub(super) checkpoint_bytes: u64,
    /// The name of the device that ran.
    pub(super) device: String,
    pub(super) runs: u32,
    /// Lengths of the prompts, ascending.
    pub(super) prompt_tokens: Vec<u32>,
    /// Sizes of the batches, ascending from 1.
    pub(super) batches: Vec<u32>,
    /// Tokens that each sequence is continued with.
    pub(super) new_tokens: u32,
    pub(super) work: Work,
    pub(super) machine: Machine,
    /// This build, and the one it was compared with if any.
    pub(super) builds: Vec<Build>,
    pub(super) bits: Agreement,
    /// What a reader must know of this run.
    pub(super) notes: Vec<String>,
}

/// A build of the program, and what was measured with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Build {
    /// Its commit; with `changed` where the working tree had changes.
    pub(super) commit: String,
    pub(super) levels: Vec<Level>,
}

/// The processes of one level. Lists of one build are in the order of the rounds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Level {
    pub(super) level: String,
    /// Starts with the checkpoint out of the page cache; one sequence with the shortest prompt.
    pub(super) cold: Vec<Sample>,
    /// Starts with the checkpoint in the page cache; one sequence with the shortest prompt.
    pub(super) warm: Vec<Sample>,
    /// Processes that ran prompts of all lengths one by one.
    pub(super) prompts: Vec<Sample>,
    /// Processes that decoded several sequences together.
    pub(super) batches: Vec<Batch>,
}

/// The processes of a batch of so many sequences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Batch {
    pub(super) sequences: u32,
    pub(super) samples: Vec<Sample>,
}

impl Level {
    /// A level of which nothing is measured yet.
    pub(super) fn new(level: String) -> Self {
        Level { level, ..Level::default() }
    }

    /// The processes that decoded so many sequences together: for one, the warm starts.
    pub(super) fn batch(&self, sequences: u32) -> &[Sample] {
        if sequences == 1 {
            return &self.warm;
        }
        self.batches.iter().find(|batch| batch.sequences == sequences).map_or(&[], |batch| &batch.samples)
    }

    /// The medians of the warm or cold starts.
    pub(super) fn course(&self, cold: bool) -> Option<Course> {
        let median = |value: fn(&Sample) -> Option<f64>| {
            let samples = if cold { &self.cold } else { &self.warm };
            Some(Summary::of(&samples.iter().filter_map(value).collect::<Vec<_>>())?.median)
        };
        Some(Course {
            first_token_seconds: median(Sample::first_token_seconds)?,
            decode_tokens_per_second: median(|sample| sample.decode_tokens_per_second)?,
        })
    }
}

/// The most that the machine allows, in tokens per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Ceiling {
    /// The memory can't be read faster.
    Memory(f64),
    /// No more can be multiplied.
    Arithmetic(f64),
}

impl Ceiling {
    /// The lower of two.
    fn lowest(memory: f64, arithmetic: f64) -> Self {
        if memory < arithmetic { Ceiling::Memory(memory) } else { Ceiling::Arithmetic(arithmetic) }
    }

    pub(super) fn tokens_per_second(self) -> f64 {
        let (Ceiling::Memory(speed) | Ceiling::Arithmetic(speed)) = self;
        speed
    }
}

impl Measurement {
    /// A measurement that begins now, without anything measured.
    pub(super) fn begin(model: String, command: String, machine: Machine) -> Self {
        Measurement {
            format: FORMAT,
            model,
            command,
            date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S").to_string(),
            checkpoint_bytes: 0,
            device: String::new(),
            runs: 0,
            prompt_tokens: Vec::new(),
            batches: Vec::new(),
            new_tokens: 0,
            work: Work::default(),
            machine,
            builds: Vec::new(),
            bits: Agreement::default(),
            notes: Vec::new(),
        }
    }

    /// Reads one that was saved.
    ///
    /// # Errors
    /// If it can't be read, or is of another form.
    pub(super) fn read(path: &Path) -> Result<Self, TaskError> {
        let failed = |error: &dyn std::fmt::Display| TaskError::Message(format!("{}: {error}", path.display()));
        let value: serde_json::Value = serde_json::from_str(&workspace::read(path)?).map_err(|error| failed(&error))?;
        if value.get("format").and_then(serde_json::Value::as_u64) != Some(u64::from(FORMAT)) {
            return Err(failed(&format!("this is no measurement of format {FORMAT}; measure again")));
        }
        serde_json::from_value(value).map_err(|error| failed(&error))
    }

    /// Writes it, with the folders that its path needs.
    ///
    /// # Errors
    /// If that can't be done.
    pub(super) fn write(&self, path: &Path) -> Result<(), TaskError> {
        let text =
            serde_json::to_string(self).map_err(|error| TaskError::Message(format!("{}: {error}", path.display())))?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(TaskError::file(folder))?;
        }
        fs::write(path, format!("{text}\n")).map_err(TaskError::file(path))
    }

    /// What was measured with this build.
    pub(super) fn levels(&self) -> &[Level] {
        self.builds.first().map_or(&[], |build| &build.levels)
    }

    /// The last part of the model's path.
    pub(super) fn model_name(&self) -> String {
        Path::new(&self.model)
            .file_name()
            .map_or_else(|| self.model.clone(), |name| name.to_string_lossy().into_owned())
    }

    /// Whether the CPU ran, whose memory and arithmetic are those of the machine.
    pub(super) fn on_cpu(&self) -> bool {
        self.device == allotrope_config::DeviceChoice::Cpu.to_string()
    }

    /// Whether the ceilings of the device that ran were measured.
    pub(super) fn has_ceilings(&self) -> bool {
        self.on_cpu() && self.machine.read_bandwidth.maximum > 0.0 && self.machine.dot_product_peak.maximum > 0.0
    }

    /// Operations of a prompt of so many tokens.
    pub(super) fn prompt_work(&self, tokens: u32) -> Option<f64> {
        Some(self.work.prompts.iter().find(|(length, _)| *length == tokens)?.1)
    }

    /// The most prompt tokens per second that the machine allows with a prompt of so many tokens.
    pub(super) fn prompt_ceiling(&self, tokens: u32) -> Option<Ceiling> {
        let arithmetic = f64::from(tokens) * self.machine.dot_product_peak.maximum / self.prompt_work(tokens)?;
        let memory = f64::from(tokens) * self.machine.read_bandwidth.maximum / self.weight_bytes()?;
        self.has_ceilings().then(|| Ceiling::lowest(memory, arithmetic))
    }

    /// The most tokens per second that the machine allows in decoding so many sequences together.
    pub(super) fn decode_ceiling(&self, sequences: u32) -> Option<Ceiling> {
        let arithmetic = self.machine.dot_product_peak.maximum / self.work.decoded_token;
        let memory = f64::from(sequences) * self.machine.read_bandwidth.maximum / self.weight_bytes()?;
        self.has_ceilings().then(|| Ceiling::lowest(memory, arithmetic))
    }

    /// Bytes of weights that a step reads.
    fn weight_bytes(&self) -> Option<f64> {
        self.levels().iter().flat_map(|level| &level.warm).find_map(|sample| sample.weight_bytes_per_step)
    }

    /// Why the cold starts are not cold, if they are not.
    pub(super) fn cold_problem(&self) -> Option<String> {
        let levels = self.builds.iter().flat_map(|build| &build.levels);
        let cold: Vec<&Sample> = levels.flat_map(|level| &level.cold).collect();
        if cold.is_empty() {
            return None;
        }
        let read: Option<Vec<f64>> = cold.iter().map(|sample| Some(sample.read_bytes? as f64)).collect();
        let Some(read) = read.as_deref().and_then(Summary::of) else {
            return Some(
                "This system does not tell what a process reads from storage, so cold starts may be warm.".into(),
            );
        };
        (read.minimum < COLD_SHARE * self.checkpoint_bytes as f64).then(|| {
            format!(
                "The page cache could not be dropped: cold starts read {:.1} to {:.1} MB from storage, of {:.1} MB.",
                read.minimum / 1e6,
                read.maximum / 1e6,
                self.checkpoint_bytes as f64 / 1e6
            )
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::Value;

    use super::super::sample::PromptTime;
    use super::*;

    /// A process that started in so many seconds and decoded so many tokens per second.
    pub(in crate::bench) fn sample(ready: f64, decode: f64) -> Sample {
        let prompt = |tokens: u32| PromptTime { tokens, seconds: f64::from(tokens) / 64.0 };
        Sample {
            ready_seconds: Some(ready),
            unclaimed_seconds: Some(0.02 * ready),
            prompts: vec![prompt(10), prompt(50)],
            decode_tokens_per_second: Some(decode),
            weight_bytes_per_step: Some(1e9),
            launches_per_decode_step: Some(3.0),
            submissions_per_decode_step: Some(1.0),
            recordings: Some(2.0),
            peak_memory_bytes: Some(7_000_000),
            read_bytes: Some(900),
            startup_phases: Value::Null,
        }
    }

    /// Two levels, of which the second starts later and decodes faster, in three rounds, in numbers that floats hold.
    pub(in crate::bench) fn measurement() -> Measurement {
        let level = |name: &str, ready: f64, decode: f64| {
            let rounds = |ready: f64, decode: f64| {
                vec![sample(ready, decode), sample(2.0 * ready, decode), sample(1.5 * ready, decode)]
            };
            Level {
                level: name.into(),
                cold: rounds(10.0 * ready, decode),
                warm: rounds(ready, decode),
                prompts: rounds(ready, decode),
                batches: vec![Batch { sequences: 8, samples: rounds(ready, 8.0 * decode) }],
            }
        };
        let levels = vec![level("O0", 0.125, 4.0), level("O1", 0.625, 8.0)];
        Measurement {
            checkpoint_bytes: 1000,
            device: "cpu".into(),
            runs: 3,
            prompt_tokens: vec![10, 50],
            batches: vec![1, 8],
            new_tokens: 4,
            work: Work { prompts: vec![(10, 2e10), (50, 1.1e11)], decoded_token: 2e9 },
            builds: vec![Build { commit: "a0b1c2".into(), levels }],
            bits: Agreement { reference: "O0".into(), others: vec![("O1".into(), true)], bytes: 4 },
            ..Measurement::begin("models/m".into(), "cargo xtask bench".into(), Machine::for_tests(2e10, 1e12))
        }
    }

    #[test]
    fn what_is_saved_is_what_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (path, measured) = (folder.path().join("new/m.json"), measurement());
        measured.write(&path).unwrap();
        assert_eq!(Measurement::read(&path).unwrap(), measured);
    }

    #[test]
    fn another_form_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.json");
        for text in ["{\"format\": 0}", "{}", "[]", "{\"format\": \"1\"}"] {
            fs::write(&path, text).unwrap();
            let error = Measurement::read(&path).unwrap_err().to_string();
            assert!(error.contains("measure again") && error.contains("m.json"), "{text}: {error}");
        }
    }

    #[test]
    fn warm_cold_starts_are_reported() {
        let with = |read_bytes: Option<u64>| {
            let mut measured = measurement();
            measured.builds[0].levels[0].cold[0].read_bytes = read_bytes;
            measured.cold_problem()
        };
        assert!(with(Some(2)).unwrap().contains("could not be dropped"));
        assert!(with(None).unwrap().contains("does not tell"));
        assert_eq!(with(Some(900)), None);
    }

    #[test]
    fn ceilings_are_the_lower_of_memory_and_arithmetic() {
        let measured = measurement();
        assert_eq!(measured.decode_ceiling(1), Some(Ceiling::Memory(20.0)));
        assert_eq!(measured.decode_ceiling(8), Some(Ceiling::Memory(160.0)));
        assert_eq!(measured.decode_ceiling(32), Some(Ceiling::Arithmetic(500.0)));
        assert_eq!(measured.prompt_ceiling(10), Some(Ceiling::Memory(200.0)));
        assert_eq!(measured.prompt_ceiling(50), Some(Ceiling::Arithmetic(1e12 * 50.0 / 1.1e11)));
        assert_eq!(measured.prompt_ceiling(11), None);
        assert_eq!(Measurement { device: "a GPU".into(), ..measured }.decode_ceiling(1), None);
    }

    #[test]
    fn a_course_is_of_medians() {
        let measured = measurement();
        let course = measured.levels()[0].course(false).unwrap();
        assert_eq!((course.first_token_seconds, course.decode_tokens_per_second), (0.34375, 4.0));
    }
}
