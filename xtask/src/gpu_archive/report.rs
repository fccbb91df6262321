//! What the script has found, as tables: the comparisons, the starts, the steps, and last the parts that failed.

use std::fmt::Write;
use std::path::PathBuf;

use serde_json::Value;

use super::lines;
use crate::error::TaskError;

/// Where the results are.
#[derive(clap::Args)]
pub(super) struct Options {
    /// A file with a line of JSON for each result
    #[arg(long, value_name = "FILE")]
    results: PathBuf,
}

/// Prints the tables.
///
/// # Errors
/// If the file can't be read.
pub(super) fn run(options: &Options) -> Result<(), TaskError> {
    print!("{}", tables(&lines(&options.results)?));
    Ok(())
}

/// The tables of some results.
fn tables(results: &[Value]) -> String {
    let of = |kind: &str| results.iter().filter(|result| text(result, "/kind") == kind).collect::<Vec<_>>();
    let measurements = of("measurement");
    let steps: Vec<&Value> = measurements.iter().copied().filter(|result| result.get("steps").is_some()).collect();
    let mut all = String::new();
    let mut devices: Vec<String> = results.iter().map(|result| text(result, "/device")).collect();
    devices.retain(|device| !device.is_empty());
    devices.sort();
    devices.dedup();
    if !devices.is_empty() {
        let _ = writeln!(all, "device: {}", devices.join(", "));
    }
    all.push_str(&compared(&of("comparison")));
    all.push_str(&started(&measurements));
    all.push_str(&stepped(&steps));
    all.push_str(&parts(&of("part")));
    all
}

fn compared(results: &[&Value]) -> String {
    let row = |result: &&Value| {
        let other = items(result, "/levels_with_other_bits").iter().map(|level| text(level, "")).collect::<Vec<_>>();
        let largest = number(result, "/largest_logit");
        vec![
            text(result, "/model"),
            items(result, "/levels").iter().map(|level| text(level, "")).collect::<Vec<_>>().join(" "),
            if other.is_empty() { "yes".to_owned() } else { format!("not {}", other.join(" ")) },
            if result.pointer("/passed") == Some(&Value::Bool(true)) { "passed" } else { "FAILED" }.to_owned(),
            format!("{} of {}", show(number(result, "/tokens_as_on_cpu"), 0), show(number(result, "/tokens"), 0)),
            show(number(result, "/largest_difference").zip(largest).map(|(by, of)| 100.0 * by / of), 2),
        ]
    };
    let header = ["checkpoint", "levels", "same bits", "", "tokens as on CPU", "largest difference, %"];
    table("Checkpoints against the CPU", &header, 4, results.iter().map(row))
}

fn started(results: &[&Value]) -> String {
    let row = |result: &&Value| {
        let phase = |names: &[&str]| {
            let phases = result.get("phases_ms").and_then(Value::as_object).into_iter().flatten();
            let named = phases.filter(|(phase, _)| names.iter().any(|name| phase.starts_with(name)));
            let times = named.filter_map(|(_, time)| time.as_f64());
            times.fold(None, |sum: Option<f64>, time| Some(sum.unwrap_or(0.0) + time))
        };
        let upload = number(result, "/upload_ms");
        let bandwidth = upload.zip(number(result, "/upload_bytes")).map(|(time, bytes)| bytes / time / 1e6);
        vec![
            text(result, "/model"),
            text(result, "/level"),
            text(result, "/start"),
            show(number(result, "/ready_ms"), 1),
            show(phase(&["open device"]), 1),
            show(phase(&["generate kernels", "compile kernels", "load kernels", "warm up kernels"]), 1),
            show(upload, 1),
            show(bandwidth, 2),
            show(phase(&["capture"]), 1),
            show(number(result, "/capture_bytes").map(|bytes| bytes / f64::from(1 << 20)), 1),
            show(number(result, "/recordings"), 0),
        ]
    };
    let header = [
        "checkpoint",
        "level",
        "start",
        "ready, ms",
        "context, ms",
        "kernels, ms",
        "weights, ms",
        "weights, GB/s",
        "capture, ms",
        "capture, MiB",
        "recordings",
    ];
    table("Starts", &header, 3, results.iter().map(row))
}

fn stepped(results: &[&Value]) -> String {
    let mut batches: Vec<u64> = results
        .iter()
        .flat_map(|result| items(result, "/steps"))
        .filter_map(|step| step.get("batch")?.as_u64())
        .collect();
    batches.sort_unstable();
    batches.dedup();
    let row = |result: &&Value| {
        let mut row = vec![text(result, "/model"), text(result, "/level")];
        row.extend(batches.iter().map(|batch| {
            let step = items(result, "/steps").iter().find(|step| step.get("batch") == Some(&Value::from(*batch)));
            spread(step.and_then(|step| step.get("microseconds")), 1)
        }));
        row.extend([
            spread(result.get("prefill_tokens_per_second"), 0),
            show(number(result, "/launches"), 0),
            show(number(result, "/submissions"), 0),
        ]);
        row
    };
    let mut header = vec!["checkpoint".to_owned(), "level".to_owned()];
    header.extend(batches.iter().map(|batch| format!("step of {batch}, µs")));
    header.extend(["prefill, tokens/s", "launches a step", "submissions a step"].map(str::to_owned));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    table("Steps", &header, 2, results.iter().map(row))
}

fn parts(results: &[&Value]) -> String {
    let failed = results.iter().filter(|result| number(result, "/status") != Some(0.0));
    let row = |result: &&Value| {
        let status = match number(result, "/status") {
            Some(124.0 | 137.0) => "out of time".to_owned(),
            Some(-1.0) => "not run, no time was left".to_owned(),
            status => format!("exit status {}", show(status, 0)),
        };
        vec![text(result, "/name"), status, show(number(result, "/seconds"), 1)]
    };
    let count = failed.clone().count();
    let mut all = format!("\n{} of {} parts passed\n", results.len() - count, results.len());
    if count > 0 {
        all.push_str(&table("Parts that FAILED", &["part", "why", "seconds"], 2, failed.map(row)));
    }
    all
}

/// A table with a title. The first so many columns are names, to the left, and the others numbers, to the right.
fn table(title: &str, header: &[&str], names: usize, rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut all: Vec<Vec<String>> = vec![header.iter().map(|cell| (*cell).to_owned()).collect()];
    all.extend(rows);
    if all.len() == 1 {
        return String::new();
    }
    let length = |row: &Vec<String>, column: usize| row.get(column).map_or(0, |cell| cell.chars().count());
    let widths: Vec<usize> =
        (0..header.len()).map(|column| all.iter().map(|row| length(row, column)).max().unwrap_or(0)).collect();
    let mut text = format!("\n{title}\n\n");
    for (index, row) in all.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column < names { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let _ = writeln!(text, "| {} |", cells.collect::<Vec<_>>().join(" | "));
        if index == 0 {
            let rules = widths.iter().enumerate().map(|(column, width)| {
                if column < names { "-".repeat(width + 2) } else { format!("{}:", "-".repeat(width + 1)) }
            });
            let _ = writeln!(text, "|{}|", rules.collect::<Vec<_>>().join("|"));
        }
    }
    text
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn number(value: &Value, pointer: &str) -> Option<f64> {
    value.pointer(pointer)?.as_f64()
}

fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A number for people; a dash where there is none.
fn show(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

/// A median with its range; a dash where there is none.
fn spread(summary: Option<&Value>, digits: usize) -> String {
    let Some(summary) = summary else { return show(None, digits) };
    let part = |name: &str| show(number(summary, name), digits);
    format!("{} ({}..{})", part("/median"), part("/minimum"), part("/maximum"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_show_what_was_found_and_what_failed() {
        let text = tables(&[
            json!({"kind": "part", "name": "conformance", "status": 0, "seconds": 1.0}),
            json!({"kind": "part", "name": "ptx", "status": 124, "seconds": 60.0}),
            json!({"kind": "comparison", "model": "gqa", "passed": false, "levels": ["O0", "O2"], "tokens": 8,
                   "levels_with_other_bits": ["O2"], "tokens_as_on_cpu": 7, "largest_difference": 0.5, "largest_logit": 10.0}),
            json!({"kind": "measurement", "model": "tiny", "level": "O2", "start": "cold", "device": "a GPU", "ready_ms": 12.34,
                   "phases_ms": {"compile kernels (3, 1 cached)": 1.5, "load kernels": 0.25, "capture": 3.0}, "upload_ms": 2.0,
                   "upload_bytes": 4e6, "capture_bytes": null}),
            json!({"kind": "measurement", "model": "tiny", "level": "O2", "start": "warm", "device": "a GPU", "ready_ms": 1.0,
                   "phases_ms": {}, "prefill_tokens_per_second": {"median": 1000.0, "minimum": 900.0, "maximum": 1100.0},
                   "steps": [{"batch": 8, "microseconds": {"median": 42.0, "minimum": 40.0, "maximum": 90.5}}],
                   "launches": 23, "submissions": 1}),
        ]);
        let line = |parts: &[&str]| text.lines().any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(line(&["device: a GPU"]), "{text}");
        assert!(line(&["gqa", "not O2", "FAILED", "7 of 8", "5.00"]), "{text}");
        assert!(line(&["tiny", "cold", "12.3", "1.8", "2.0", "2.00", "3.0", "–"]), "{text}");
        assert!(
            line(&["step of 8, µs"]) && line(&["tiny", "42.0 (40.0..90.5)", "1000 (900..1100)", "23", "1"]),
            "{text}"
        );
        assert!(line(&["1 of 2 parts passed"]) && line(&["ptx", "out of time", "60.0"]), "{text}");
        assert!(tables(&[]).contains("0 of 0 parts"));
    }
}
