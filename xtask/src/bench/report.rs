//! The comparison as a table for people and as JSON for programs.

use std::fmt;

use allotrope_config::OptimizationLevel;
use serde_json::{Value, json};

use super::agreement::Agreement;
use super::machine::Machine;
use super::sample::Sample;
use super::statistics::Summary;

/// A cold start counts as cold if at least this share of the weight files came from storage.
const COLD_SHARE: f64 = 0.5;

/// The measurements of one level.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) level: OptimizationLevel,
    pub(super) cold: Vec<Sample>,
    pub(super) warm: Vec<Sample>,
}

impl Row {
    pub(super) fn new(level: OptimizationLevel) -> Self {
        Row { level, cold: Vec::new(), warm: Vec::new() }
    }
}

/// Everything that was measured.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) model: String,
    pub(super) checkpoint_bytes: u64,
    pub(super) prompt_tokens: u32,
    pub(super) new_tokens: u32,
    /// The name of the device that ran.
    pub(super) device: String,
    pub(super) machine: Machine,
    pub(super) rows: Vec<Row>,
    pub(super) bits: Agreement,
}

/// A line of the table: its name, the starts it is taken from, its digits after the point, and its number.
struct Metric {
    name: &'static str,
    cold: bool,
    digits: usize,
    value: fn(&Sample, &Machine) -> Option<f64>,
}

const METRICS: [Metric; 13] = [
    Metric { name: "ready, cold, ms", cold: true, digits: 1, value: |sample, _| Some(sample.ready_seconds * 1e3) },
    Metric { name: "ready, warm, ms", cold: false, digits: 1, value: |sample, _| Some(sample.ready_seconds * 1e3) },
    Metric {
        name: "of it in no phase, %",
        cold: false,
        digits: 1,
        value: |sample, _| Some(100.0 * sample.unclaimed_seconds / sample.ready_seconds),
    },
    Metric {
        name: "first token, cold, ms",
        cold: true,
        digits: 1,
        value: |sample, _| Some(sample.first_token_seconds * 1e3),
    },
    Metric {
        name: "first token, warm, ms",
        cold: false,
        digits: 1,
        value: |sample, _| Some(sample.first_token_seconds * 1e3),
    },
    Metric {
        name: "prefill, tokens/s",
        cold: false,
        digits: 1,
        value: |sample, _| Some(sample.prefill_tokens_per_second),
    },
    Metric {
        name: "decode, tokens/s",
        cold: false,
        digits: 1,
        value: |sample, _| Some(sample.decode_tokens_per_second),
    },
    Metric {
        name: "weights read in decode, GB/s",
        cold: false,
        digits: 1,
        value: |sample, _| Some(sample.weight_bandwidth() / 1e9),
    },
    Metric {
        name: "of the best read bandwidth, %",
        cold: false,
        digits: 0,
        value: |sample, machine| Some(100.0 * sample.weight_bandwidth() / machine.read_bandwidth.maximum),
    },
    Metric {
        name: "launches per decode step",
        cold: false,
        digits: 0,
        value: |sample, _| Some(sample.launches_per_decode_step),
    },
    Metric {
        name: "submissions per decode step",
        cold: false,
        digits: 0,
        value: |sample, _| Some(sample.submissions_per_decode_step),
    },
    Metric { name: "recordings", cold: false, digits: 0, value: |sample, _| Some(sample.recordings) },
    Metric {
        name: "peak memory, MB",
        cold: false,
        digits: 1,
        value: |sample, _| Some(sample.peak_memory_bytes? as f64 / 1e6),
    },
];

impl Metric {
    fn summary(&self, row: &Row, machine: &Machine) -> Option<Summary> {
        let samples = if self.cold { &row.cold } else { &row.warm };
        Summary::of(&samples.iter().filter_map(|sample| (self.value)(sample, machine)).collect::<Vec<_>>())
    }

    /// `median (minimum..maximum)`, or the median alone where all are the same.
    fn cell(&self, row: &Row, machine: &Machine) -> String {
        let Some(Summary { median, minimum, maximum }) = self.summary(row, machine) else { return "–".into() };
        let digits = self.digits;
        if minimum == maximum {
            return format!("{median:.digits$}");
        }
        format!("{median:.digits$} ({minimum:.digits$}..{maximum:.digits$})")
    }
}

impl Comparison {
    /// Why the cold starts are not cold, if they are not.
    fn cold_problem(&self) -> Option<String> {
        let cold: Vec<&Sample> = self.rows.iter().flat_map(|row| &row.cold).collect();
        if cold.is_empty() {
            return None;
        }
        let read: Option<Vec<f64>> = cold.iter().map(|sample| Some(sample.read_bytes? as f64)).collect();
        let Some(read) = read.as_deref().and_then(Summary::of) else {
            return Some(
                "this system does not tell what a process reads from storage, so cold starts may be warm".into(),
            );
        };
        (read.minimum < COLD_SHARE * self.checkpoint_bytes as f64).then(|| {
            format!(
                "the page cache could not be dropped: cold starts read {:.1} to {:.1} MB from storage, of {:.1} MB",
                read.minimum / 1e6,
                read.maximum / 1e6,
                self.checkpoint_bytes as f64 / 1e6
            )
        })
    }

    /// The whole comparison, each single measurement included.
    pub(super) fn to_json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let summaries: serde_json::Map<String, Value> = METRICS
                    .iter()
                    .map(|metric| (metric.name.to_owned(), json!(metric.summary(row, &self.machine))))
                    .collect();
                json!({ "level": row.level.to_string(), "summary": summaries, "cold": row.cold, "warm": row.warm })
            })
            .collect();
        json!({
            "model": self.model,
            "checkpoint_bytes": self.checkpoint_bytes,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "device": self.device,
            "machine": self.machine,
            "levels": rows,
            "same_bits": self.bits.holds(),
            "bits": self.bits,
            "cold_problem": self.cold_problem(),
        })
    }
}

impl fmt::Display for Comparison {
    /// A Markdown table, which reads well on a terminal too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = self.checkpoint_bytes as f64 / 1e6;
        writeln!(f, "\n{}", self.machine)?;
        writeln!(
            f,
            "\n{} ({megabytes:.1} MB of weights) on {}, prompt of {} tokens, {} new; median (least..most) of {} runs\n",
            self.model,
            self.device,
            self.prompt_tokens,
            self.new_tokens,
            self.rows.first().map_or(0, |row| row.warm.len())
        )?;
        let mut table = vec![vec![String::new()]];
        table[0].extend(self.rows.iter().map(|row| row.level.to_string()));
        for metric in METRICS.iter().filter(|metric| !metric.cold || self.rows.iter().any(|row| !row.cold.is_empty())) {
            let mut line = vec![metric.name.to_owned()];
            line.extend(self.rows.iter().map(|row| metric.cell(row, &self.machine)));
            table.push(line);
        }
        write_table(f, &table)?;
        if let Some(problem) = self.cold_problem() {
            writeln!(f, "\n{problem}")?;
        }
        let Agreement { reference, others, bytes } = &self.bits;
        let verdict = |agrees: &bool| if *agrees { "the same bits" } else { "OTHER BITS" };
        let others: Vec<String> = others.iter().map(|(level, agrees)| format!("{level} {}", verdict(agrees))).collect();
        write!(f, "\nlogits ({bytes} bytes) compared with {reference}: {}", others.join(", "))
    }
}

/// Writes a Markdown table with aligned columns; the first line is its head.
fn write_table(f: &mut fmt::Formatter<'_>, table: &[Vec<String>]) -> fmt::Result {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| table.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for (index, line) in table.iter().enumerate() {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(f, "| {} |", cells.join(" | "))?;
        if index == 0 {
            let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            writeln!(f, "|-{}-|", rules.join("-|-"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn machine() -> Machine {
        Machine::for_tests(Summary { median: 1e10, minimum: 1e10, maximum: 1e10 })
    }

    fn sample(ready_seconds: f64, read_bytes: Option<u64>) -> Sample {
        Sample {
            ready_seconds,
            unclaimed_seconds: 0.02 * ready_seconds,
            first_token_seconds: 2.0,
            prefill_tokens_per_second: 10.0,
            decode_tokens_per_second: 5.0,
            weight_bytes_per_step: 1e9,
            launches_per_decode_step: 3.0,
            submissions_per_decode_step: 1.0,
            recordings: 2.0,
            peak_memory_bytes: Some(7_000_000),
            read_bytes,
            startup_phases: Value::Null,
            tokens: Value::Null,
            device: "cpu".into(),
        }
    }

    #[test]
    fn cells_show_the_median_and_the_spread() {
        let warm = vec![sample(0.3, None), sample(0.1, None), sample(0.2, None)];
        let row = Row { level: OptimizationLevel::O0, cold: Vec::new(), warm };
        let cell = |name: &str| METRICS.iter().find(|metric| metric.name == name).unwrap().cell(&row, &machine());
        assert_eq!(cell("ready, warm, ms"), "200.0 (100.0..300.0)");
        assert_eq!(cell("ready, cold, ms"), "–");
        assert_eq!(cell("of it in no phase, %"), "2.0");
        assert_eq!(cell("weights read in decode, GB/s"), "5.0");
        assert_eq!(cell("of the best read bandwidth, %"), "50");
        assert_eq!(cell("peak memory, MB"), "7.0");
    }

    #[test]
    fn warm_cold_starts_are_reported() {
        let comparison = |read| Comparison {
            model: "m".into(),
            checkpoint_bytes: 1000,
            prompt_tokens: 1,
            new_tokens: 2,
            device: "cpu".into(),
            machine: machine(),
            rows: vec![Row {
                level: OptimizationLevel::O0,
                cold: vec![sample(0.1, read)],
                warm: vec![sample(0.1, None)],
            }],
            bits: Agreement { reference: "O0".into(), others: vec![("O1".into(), false)], bytes: 4 },
        };
        assert!(comparison(Some(2)).cold_problem().unwrap().contains("could not be dropped"));
        assert!(comparison(None).cold_problem().is_some());
        assert!(comparison(Some(900)).cold_problem().is_none());
        let text = comparison(Some(900)).to_string();
        assert!(text.contains("| ready, cold, ms ") && text.contains("O1 OTHER BITS"), "{text}");
        assert_eq!(comparison(Some(900)).to_json()["same_bits"], false);
    }
}
