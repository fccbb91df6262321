//! The machine that was measured on, and its read bandwidth: the ceiling of decoding.

use std::fmt;
use std::fs;

use allotrope_cpu_runtime::{BandwidthProbe, Isa, Team, available_threads};
use serde::Serialize;

use super::statistics::Summary;
use crate::error::TaskError;

/// Bytes that the bandwidth is measured on, well above any cache.
const PROBE_BYTES: usize = 1 << 30;
/// How often it is read each time.
const PROBE_ROUNDS: usize = 10;

/// A machine.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    processor: String,
    threads: usize,
    instruction_set: String,
    memory_bytes: Option<u64>,
    system: String,
    /// Bytes per second of reading memory in huge pages with all threads. Other work on the machine lowers it from
    /// moment to moment, so it is measured again in every round, and the best of all is the ceiling.
    pub(super) read_bandwidth: Summary,
    #[serde(skip)]
    probes: Vec<f64>,
}

impl Machine {
    /// Asks the system, and measures the bandwidth once.
    ///
    /// # Errors
    /// If the memory or the threads for the measurement can't be had.
    pub(super) fn describe() -> Result<Self, TaskError> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mut machine = Machine {
            processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            threads: available_threads(),
            instruction_set: Isa::detect().to_string(),
            memory_bytes: field(&read("/proc/meminfo"), "MemTotal").and_then(|text| kibibytes(&text)),
            system: format!("{} {}", std::env::consts::OS, read("/proc/sys/kernel/osrelease").trim()),
            read_bandwidth: Summary { median: 0.0, minimum: 0.0, maximum: 0.0 },
            probes: Vec::new(),
        };
        machine.measure_bandwidth()?;
        Ok(machine)
    }

    /// The processor, its threads and its instruction set.
    pub(super) fn name(&self) -> String {
        format!("{}, {} threads, {}", self.processor, self.threads, self.instruction_set)
    }

    /// Measures the bandwidth again; the summary is over all measurements.
    ///
    /// # Errors
    /// If the memory or the threads can't be had.
    pub(super) fn measure_bandwidth(&mut self) -> Result<(), TaskError> {
        let message = |error: &dyn fmt::Display| TaskError::Message(format!("measuring the read bandwidth: {error}"));
        let team = Team::new(self.threads).map_err(|error| message(&error))?;
        let mut probe = BandwidthProbe::new(&team, PROBE_BYTES).map_err(|error| message(&error))?;
        self.probes.extend((0..PROBE_ROUNDS).map(|_| probe.measure(&team)));
        self.read_bandwidth = Summary::of(&self.probes).ok_or_else(|| message(&"it is not a number"))?;
        Ok(())
    }

    /// A machine that nobody has.
    #[cfg(test)]
    pub(super) fn for_tests(read_bandwidth: Summary) -> Self {
        let (processor, instruction_set, system) = ("a processor".into(), "a set".into(), "a system".into());
        Machine {
            processor,
            threads: 1,
            instruction_set,
            memory_bytes: None,
            system,
            read_bandwidth,
            probes: Vec::new(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "machine: {}", self.name())?;
        if let Some(bytes) = self.memory_bytes {
            write!(f, ", {:.0} GiB", bytes as f64 / f64::from(1 << 30))?;
        }
        let Summary { median, maximum, .. } = self.read_bandwidth;
        write!(f, ", {}; memory read at best {:.1} GB/s (median {:.1})", self.system, maximum / 1e9, median / 1e9)
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
