//! One measured process: the numbers of its report.

use serde::Serialize;
use serde_json::Value;

use super::process::Output;
use crate::error::TaskError;

/// The numbers of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Sample {
    /// From the first line of `main` until the model can answer.
    pub(super) ready_seconds: f64,
    /// Time until ready that no phase of the startup ledger claims.
    pub(super) unclaimed_seconds: f64,
    /// From the first line of `main` to the first token.
    pub(super) first_token_seconds: f64,
    pub(super) prefill_tokens_per_second: f64,
    pub(super) decode_tokens_per_second: f64,
    /// Bytes of weights that one decode step reads.
    pub(super) weight_bytes_per_step: f64,
    pub(super) launches_per_decode_step: f64,
    /// Launches and replays that start them.
    pub(super) submissions_per_decode_step: f64,
    pub(super) recordings: f64,
    pub(super) peak_memory_bytes: Option<u64>,
    /// Bytes that the process read from storage.
    pub(super) read_bytes: Option<u64>,
    /// The phases of the start.
    pub(super) startup_phases: Value,
    /// The tokens that were generated.
    pub(super) tokens: Value,
    /// The name of the device that ran.
    pub(super) device: String,
}

impl Sample {
    /// Reads the answer and the report that `allotrope generate --format json` wrote.
    ///
    /// # Errors
    /// If one is not JSON or lacks a number, naming it.
    pub(super) fn parse(output: &Output) -> Result<Self, TaskError> {
        let answer = last_line(&output.stdout, "the answer on standard output")?;
        let report = last_line(&output.stderr, "the report on standard error")?;
        let ready_seconds = number(&report, "/startup/ready_seconds")?;
        Ok(Sample {
            ready_seconds,
            unclaimed_seconds: number(&report, "/startup/unclaimed_seconds")?,
            first_token_seconds: ready_seconds + number(&answer, "/timings/prefill_seconds")?,
            prefill_tokens_per_second: number(&answer, "/timings/prefill_tokens_per_second")?,
            decode_tokens_per_second: number(&answer, "/timings/decode_tokens_per_second")?,
            weight_bytes_per_step: number(&report, "/weight_bytes_per_step")?,
            launches_per_decode_step: number(&report, "/launches_per_decode_step")?,
            submissions_per_decode_step: number(&report, "/submissions_per_decode_step")?,
            recordings: number(&report, "/recordings")?,
            peak_memory_bytes: output.peak_memory_bytes,
            read_bytes: output.read_bytes,
            startup_phases: report.pointer("/startup/phases").cloned().unwrap_or_default(),
            tokens: answer.get("tokens").cloned().unwrap_or_default(),
            device: report.get("device").and_then(Value::as_str).unwrap_or_default().to_owned(),
        })
    }

    /// Weights read per second while decoding, in bytes.
    pub(super) fn weight_bandwidth(&self) -> f64 {
        self.weight_bytes_per_step * self.decode_tokens_per_second
    }
}

fn last_line(text: &str, what: &str) -> Result<Value, TaskError> {
    let line = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    serde_json::from_str(line).map_err(|error| TaskError::Message(format!("{what} is not JSON ({error}): {line}")))
}

fn number(value: &Value, pointer: &str) -> Result<f64, TaskError> {
    let number = value.pointer(pointer).and_then(Value::as_f64);
    number.ok_or_else(|| TaskError::Message(format!("the program's report has no number at {pointer}: {value}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const ANSWER: &str = r#"{"tokens":[1,2],"timings":{"prefill_seconds":0.5,"prefill_tokens_per_second":20.0,"decode_tokens_per_second":4.0}}"#;
    const REPORT: &str = r#"{"startup":{"phases":[],"ready_seconds":1.5,"unclaimed_seconds":0.01},"weight_bytes_per_step":1000,
        "launches_per_decode_step":7,"submissions_per_decode_step":1,"recordings":3}"#;

    fn output(stdout: &str, stderr: &str) -> Output {
        Output { stdout: stdout.into(), stderr: stderr.into(), peak_memory_bytes: Some(9), read_bytes: None }
    }

    #[test]
    fn a_report_is_read() {
        let report = REPORT.replace('\n', "");
        let sample = Sample::parse(&output(&format!("{ANSWER}\n"), &format!("a warning\n{report}\n"))).unwrap();
        assert_eq!((sample.ready_seconds, sample.first_token_seconds), (1.5, 2.0));
        assert_eq!((sample.launches_per_decode_step, sample.recordings), (7.0, 3.0));
        assert_eq!(sample.weight_bandwidth(), 4000.0);
    }

    #[test]
    fn a_missing_number_is_named() {
        let error = Sample::parse(&output(ANSWER, r#"{"startup":{"ready_seconds":null}}"#)).unwrap_err().to_string();
        assert!(error.contains("/startup/ready_seconds"), "{error}");
        assert!(Sample::parse(&output("", REPORT)).unwrap_err().to_string().contains("standard output"));
    }
}
