//! One measured process: the numbers of its report.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::process::Output;
use crate::error::TaskError;

/// The numbers of one process. A number is `None` where the program does not report it, as older builds may not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sample {
    /// From the first line of `main` until the model can answer.
    pub(super) ready_seconds: Option<f64>,
    /// Time until ready that no phase of the startup ledger claims.
    pub(super) unclaimed_seconds: Option<f64>,
    /// From the first step of each prompt to its first token, where prompts ran one by one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) prompts: Vec<PromptTime>,
    /// Over all sequences, in steps that only decode.
    pub(super) decode_tokens_per_second: Option<f64>,
    /// Bytes of weights that one decode step reads.
    pub(super) weight_bytes_per_step: Option<f64>,
    pub(super) launches_per_decode_step: Option<f64>,
    /// Launches and replays that start them.
    pub(super) submissions_per_decode_step: Option<f64>,
    pub(super) recordings: Option<f64>,
    pub(super) peak_memory_bytes: Option<u64>,
    /// Bytes that the process read from storage.
    pub(super) read_bytes: Option<u64>,
    /// The phases of the start.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub(super) startup_phases: Value,
}

/// How long a prompt took to its first token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct PromptTime {
    pub(super) tokens: u32,
    pub(super) seconds: f64,
}

/// A process as it was read.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Parsed {
    pub(super) sample: Sample,
    /// The tokens of each answer.
    pub(super) answers: Vec<Vec<u32>>,
    /// The name of the device that ran.
    pub(super) device: String,
    /// Fields that the report lacks.
    pub(super) missing: Vec<String>,
}

impl Sample {
    /// From the first line of `main` to the first token of the first prompt.
    pub(super) fn first_token_seconds(&self) -> Option<f64> {
        Some(self.ready_seconds? + self.prompts.first()?.seconds)
    }

    /// How long a prompt of so many tokens took to its first token.
    pub(super) fn prompt_seconds(&self, tokens: u32) -> Option<f64> {
        Some(self.prompts.iter().find(|prompt| prompt.tokens == tokens)?.seconds)
    }
}

impl Parsed {
    /// Reads the answers and the report that `allotrope generate --format json` wrote. What the report lacks is listed.
    ///
    /// # Errors
    /// If one is not JSON, or there is no answer.
    pub(super) fn read(output: &Output) -> Result<Self, TaskError> {
        let lines = output.stdout.lines().filter(|line| !line.trim().is_empty());
        let answers =
            lines.map(|line| json(line, "an answer on standard output")).collect::<Result<Vec<Value>, TaskError>>()?;
        if answers.is_empty() {
            return Err(TaskError::Message("the program wrote no answer to standard output".to_owned()));
        }
        let report = output.stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        let report = json(report, "the report on standard error")?;
        let mut parsed = Parsed {
            device: report.get("device").and_then(Value::as_str).unwrap_or_default().to_owned(),
            ..Parsed::default()
        };
        for answer in &answers {
            let tokens = answer.get("tokens").and_then(Value::as_array);
            let tokens = tokens.into_iter().flatten().filter_map(|token| u32::try_from(token.as_u64()?).ok());
            parsed.answers.push(tokens.collect());
            let seconds = parsed.number(answer, "/timings/prefill_seconds");
            let tokens = parsed.number(answer, "/prompt_tokens");
            if let (Some(seconds), Some(tokens)) = (seconds, tokens) {
                parsed.sample.prompts.push(PromptTime { tokens: tokens as u32, seconds });
            }
        }
        let decodes = parsed.answers.iter().any(|tokens| tokens.len() > 1);
        parsed.sample = Sample {
            ready_seconds: parsed.number(&report, "/startup/ready_seconds"),
            unclaimed_seconds: parsed.number(&report, "/startup/unclaimed_seconds"),
            prompts: std::mem::take(&mut parsed.sample.prompts),
            decode_tokens_per_second: decodes.then(|| parsed.number(&report, "/decode/tokens_per_second")).flatten(),
            weight_bytes_per_step: parsed.number(&report, "/weight_bytes_per_step"),
            launches_per_decode_step: parsed.number(&report, "/launches_per_decode_step"),
            submissions_per_decode_step: parsed.number(&report, "/submissions_per_decode_step"),
            recordings: parsed.number(&report, "/recordings"),
            peak_memory_bytes: output.peak_memory_bytes,
            read_bytes: output.read_bytes,
            startup_phases: report.pointer("/startup/phases").cloned().unwrap_or_default(),
        };
        Ok(parsed)
    }

    /// A number of a report; one that is not there is noted.
    fn number(&mut self, value: &Value, pointer: &str) -> Option<f64> {
        let number = value.pointer(pointer).and_then(Value::as_f64);
        if number.is_none() && !self.missing.iter().any(|missing| missing == pointer) {
            self.missing.push(pointer.to_owned());
        }
        number
    }
}

fn json(line: &str, what: &str) -> Result<Value, TaskError> {
    serde_json::from_str(line).map_err(|error| TaskError::Message(format!("{what} is not JSON ({error}): {line}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const ANSWERS: &str = "{\"tokens\":[1,2],\"prompt_tokens\":7,\"timings\":{\"prefill_seconds\":0.5}}\n\
        {\"tokens\":[3],\"prompt_tokens\":9,\"timings\":{\"prefill_seconds\":0.25}}\n";
    const REPORT: &str = r#"{"startup":{"phases":[],"ready_seconds":1.5,"unclaimed_seconds":0.01},"weight_bytes_per_step":1000,
        "decode":{"tokens_per_second":4.0},"launches_per_decode_step":7,"submissions_per_decode_step":1,"recordings":3}"#;

    fn output(stdout: &str, stderr: &str) -> Output {
        Output { stdout: stdout.into(), stderr: stderr.into(), peak_memory_bytes: Some(9), read_bytes: None }
    }

    #[test]
    fn a_report_is_read() {
        let report = REPORT.replace('\n', "");
        let parsed = Parsed::read(&output(ANSWERS, &format!("a warning\n{report}\n"))).unwrap();
        let sample = &parsed.sample;
        assert_eq!((sample.ready_seconds, sample.first_token_seconds()), (Some(1.5), Some(2.0)));
        assert_eq!((sample.prompt_seconds(9), sample.prompt_seconds(8)), (Some(0.25), None));
        assert_eq!((sample.launches_per_decode_step, sample.recordings), (Some(7.0), Some(3.0)));
        assert_eq!(sample.decode_tokens_per_second, Some(4.0));
        assert_eq!(parsed.answers, [vec![1, 2], vec![3]]);
        assert!(parsed.missing.is_empty(), "{:?}", parsed.missing);
    }

    #[test]
    fn what_a_report_lacks_is_named_and_the_rest_is_read() {
        let parsed = Parsed::read(&output(ANSWERS, r#"{"startup":{"ready_seconds":2.0},"recordings":null}"#)).unwrap();
        assert_eq!(parsed.sample.ready_seconds, Some(2.0));
        for missing in ["/startup/unclaimed_seconds", "/recordings", "/decode/tokens_per_second"] {
            assert!(parsed.missing.iter().any(|found| found == missing), "{missing}: {:?}", parsed.missing);
        }
    }

    #[test]
    fn the_speed_of_decoding_is_not_missed_where_nothing_is_decoded() {
        let one = "{\"tokens\":[1],\"prompt_tokens\":7,\"timings\":{\"prefill_seconds\":0.5}}";
        let report = REPORT.replace('\n', "").replace("4.0", "null");
        let parsed = Parsed::read(&output(one, &report)).unwrap();
        assert_eq!((parsed.sample.decode_tokens_per_second, parsed.missing.len()), (None, 0));
    }

    #[test]
    fn no_answer_and_no_report_are_errors() {
        assert!(Parsed::read(&output("", REPORT)).unwrap_err().to_string().contains("standard output"));
        assert!(Parsed::read(&output(ANSWERS, "")).unwrap_err().to_string().contains("standard error"));
    }
}
