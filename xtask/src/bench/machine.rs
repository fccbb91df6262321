//! The machine that was measured on, and its ceilings: what its memory can read, which bounds decoding, and what it can
//! multiply, which bounds prompts and large batches.

use std::fmt;
use std::fs;

use allotrope_cpu_runtime::{BandwidthProbe, Isa, Team, available_threads, measure_dot_product_peak};
use serde::{Deserialize, Serialize};

use super::statistics::Summary;
use crate::error::TaskError;

/// Of how many bytes the bandwidth is measured at most: beyond any cache.
const MOST_PROBE_BYTES: u64 = 2 << 30;
/// How many bytes are read each time, and how often at least.
const PROBED: (u64, u64) = (1 << 30, 5);
const NOT_MEASURED: Summary = Summary { median: 0.0, minimum: 0.0, maximum: 0.0 };

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    processor: String,
    threads: usize,
    instruction_set: String,
    memory_bytes: Option<u64>,
    system: String,
    /// As many bytes as the model's weights have (up to 2 GiB), since what fits a cache is read faster.
    probe_bytes: u64,
    /// Bytes per second of reading so much memory in huge pages with all threads. Other work on the machine lowers it from
    /// moment to moment, so it is measured again in every round, and the best of all is the ceiling.
    pub(super) read_bandwidth: Summary,
    /// Floating-point operations per second of bfloat16 dot products in registers with all threads, measured as often.
    pub(super) dot_product_peak: Summary,
    #[serde(skip)]
    probes: Probes,
}

/// Every single measurement of the ceilings.
#[derive(Debug, Clone, Default, PartialEq)]
struct Probes {
    bandwidth: Vec<f64>,
    peak: Vec<f64>,
}

impl Machine {
    /// Asks the system, and measures the ceilings once, for a model with so many bytes of weights.
    ///
    /// # Errors
    /// If the memory or the threads for the measurement can't be had.
    pub(crate) fn describe(weight_bytes: u64) -> Result<Self, TaskError> {
        let mut machine = Machine::describe_only();
        machine.probe_bytes = weight_bytes.clamp(1, MOST_PROBE_BYTES);
        machine.measure_ceilings()?;
        Ok(machine)
    }

    /// Asks the system, and measures nothing.
    pub(super) fn describe_only() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Machine {
            processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            threads: available_threads(),
            instruction_set: Isa::detect().to_string(),
            memory_bytes: field(&read("/proc/meminfo"), "MemTotal").and_then(|text| kibibytes(&text)),
            system: format!("{} {}", std::env::consts::OS, read("/proc/sys/kernel/osrelease").trim()),
            probe_bytes: 0,
            read_bandwidth: NOT_MEASURED,
            dot_product_peak: NOT_MEASURED,
            probes: Probes::default(),
        }
    }

    /// The processor, its threads and its instruction set.
    pub(super) fn name(&self) -> String {
        format!("{}, {} threads, {}", self.processor, self.threads, self.instruction_set)
    }

    /// Measures the ceilings again; the summaries are over all measurements.
    ///
    /// # Errors
    /// If the memory or the threads can't be had.
    pub(crate) fn measure_ceilings(&mut self) -> Result<(), TaskError> {
        let message = |error: &dyn fmt::Display| TaskError::Message(format!("measuring the machine: {error}"));
        let team = Team::new(self.threads).map_err(|error| message(&error))?;
        let bytes = usize::try_from(self.probe_bytes).map_err(|error| message(&error))?;
        let mut probe = BandwidthProbe::new(&team, bytes).map_err(|error| message(&error))?;
        let rounds = (PROBED.0 / self.probe_bytes.max(1)).max(PROBED.1);
        self.probes.bandwidth.extend((0..rounds).map(|_| probe.measure(&team)));
        self.probes.peak.push(measure_dot_product_peak(&team, Isa::detect()));
        let summary = |values: &[f64]| Summary::of(values).ok_or_else(|| message(&"a speed is not a number"));
        self.read_bandwidth = summary(&self.probes.bandwidth)?;
        self.dot_product_peak = summary(&self.probes.peak)?;
        Ok(())
    }

    /// A machine that nobody has.
    #[cfg(test)]
    pub(super) fn for_tests(read_bandwidth: f64, dot_product_peak: f64) -> Self {
        let always = |value| Summary { median: value, minimum: value, maximum: value };
        Machine {
            processor: "a processor".into(),
            threads: 1,
            instruction_set: "a set".into(),
            memory_bytes: None,
            system: "a system".into(),
            probe_bytes: 0,
            read_bandwidth: always(read_bandwidth),
            dot_product_peak: always(dot_product_peak),
            probes: Probes::default(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name())?;
        if let Some(bytes) = self.memory_bytes {
            write!(f, ", {:.0} GiB", bytes as f64 / f64::from(1 << 30))?;
        }
        write!(f, ", {}", self.system)?;
        if self.read_bandwidth == NOT_MEASURED {
            return Ok(());
        }
        let (memory, peak) = (self.read_bandwidth, self.dot_product_peak);
        write!(
            f,
            "; {:.1} MB of memory read at best at {:.1} GB/s (median {:.1}), dot products of bf16 at {:.0} GFLOP/s (median {:.0})",
            self.probe_bytes as f64 / 1e6,
            memory.maximum / 1e9,
            memory.median / 1e9,
            peak.maximum / 1e9,
            peak.median / 1e9
        )
    }
}

/// The text after `NAME :` on its line.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Bytes of `N kB`.
fn kibibytes(text: &str) -> Option<u64> {
    text.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_system_are_read() {
        assert_eq!(field("a : 1\nmodel name\t: Some CPU\n", "model name").as_deref(), Some("Some CPU"));
        assert_eq!(kibibytes("24 kB"), Some(24 * 1024));
        assert_eq!(kibibytes("24"), None);
    }
}
