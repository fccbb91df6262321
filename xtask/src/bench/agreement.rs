//! Whether all levels give the same bits: `allotrope logits` at each, and its files compared byte by byte.

use std::fs;
use std::path::Path;

use allotrope_config::{DeviceChoice, OptimizationLevel};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::process;
use crate::error::TaskError;
use crate::runner::prompt;

/// Lengths of the prompts that are compared, in tokens.
const PROMPTS: [u32; 3] = [1, 17, 48];
/// Tokens that each is continued with.
const NEW_TOKENS: &str = "8";

/// What is compared.
pub(super) struct Subject<'a> {
    pub(super) program: &'a Path,
    pub(super) model: &'a Path,
    /// For files that are handed to the program.
    pub(super) folder: &'a Path,
    pub(super) vocabulary: u32,
    pub(super) device: DeviceChoice,
    pub(super) levels: &'a [OptimizationLevel],
}

/// Which levels gave the bits of the first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Agreement {
    /// The level that the others are compared with.
    pub(super) reference: String,
    /// The others, and whether each agrees in every byte.
    pub(super) others: Vec<(String, bool)>,
    /// Bytes that were compared.
    pub(super) bytes: usize,
}

impl Agreement {
    /// Makes a difference an error.
    ///
    /// # Errors
    /// Names the levels that differ.
    pub(super) fn check(&self) -> Result<(), TaskError> {
        let differing = self.others.iter().filter(|(_, agrees)| !agrees);
        let differing: Vec<&str> = differing.map(|(level, _)| level.as_str()).collect();
        if differing.is_empty() {
            return Ok(());
        }
        let (others, reference) = (differing.join(", "), &self.reference);
        Err(TaskError::Message(format!(
            "logits at {others} differ from those at {reference}: a level must not change a bit"
        )))
    }
}

/// Runs `logits` at every level in a fresh process and compares the files.
///
/// # Errors
/// If a run fails.
pub(super) fn compare(subject: &Subject<'_>) -> Result<Agreement, TaskError> {
    let Subject { program, model, folder, vocabulary, device, levels } = *subject;
    let prompts = folder.join("prompts.json");
    let tokens: Vec<Vec<u32>> = PROMPTS.iter().map(|length| prompt(*length, vocabulary)).collect();
    fs::write(&prompts, json!(tokens).to_string()).map_err(TaskError::file(&prompts))?;
    let mut first: Option<(OptimizationLevel, Vec<u8>)> = None;
    let mut agreement = Agreement { reference: String::new(), others: Vec::new(), bytes: 0 };
    let device = device.to_string();
    for level in levels {
        let out = folder.join("logits.safetensors");
        let (model, prompts, out_name) = (model.to_string_lossy(), prompts.to_string_lossy(), out.to_string_lossy());
        let level_name = level.to_string();
        let arguments = [
            "logits",
            "--model",
            &model,
            "--tokens",
            &prompts,
            "--out",
            &out_name,
            "--new-tokens",
            NEW_TOKENS,
            "--optimization-level",
            &level_name,
            "--device",
            &device,
            "--quiet",
        ];
        process::capture_with_cache(program, &arguments, &folder.join("cache"))?;
        let bytes = fs::read(&out).map_err(TaskError::file(&out))?;
        match &first {
            Some((_, expected)) => agreement.others.push((level_name, bytes == *expected)),
            None => {
                agreement.reference = level_name;
                agreement.bytes = bytes.len();
                first = Some((*level, bytes));
            }
        }
    }
    Ok(agreement)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_difference_is_an_error_that_names_the_level() {
        let agreement =
            |o2| Agreement { reference: "O0".into(), others: vec![("O1".into(), true), ("O2".into(), o2)], bytes: 1 };
        assert!(agreement(true).check().is_ok());
        let error = agreement(false).check().unwrap_err().to_string();
        assert!(error.contains("O2") && !error.contains("O1"), "{error}");
    }
}
