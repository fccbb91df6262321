//! What the tests that cross crates share: the fixtures, their references, batches, and comparisons.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "helpers of tests fail by panicking"
)]

mod batch;

use std::fs;
use std::path::PathBuf;

use safetensors::SafeTensors;
use serde_json::Value;

pub use allotrope_cuda_emulator::testing::outside;
use allotrope_engine::{Llm, LlmBuilder};
pub use batch::BatchRunner;

/// A builder that loads the checkpoint of a folder on the CPU, whatever else this machine has.
#[must_use]
pub fn on_the_cpu(folder: impl Into<PathBuf>) -> LlmBuilder {
    Llm::builder(folder).set("device", "cpu").expect("there is a CPU")
}

/// A builder that loads the checkpoint of a folder on CUDA, for a test within [`on_cuda!`].
#[must_use]
pub fn with_cuda(folder: impl Into<PathBuf>) -> LlmBuilder {
    Llm::builder(folder).set("device", "cuda").expect("there is such a device")
}

/// Tests that need CUDA: each runs in a process of its own that has the emulator for its driver, or in this one if
/// `ALLOTROPE_TEST_DEVICE` is `cuda`, on the GPU of the machine. What it writes is shown as of any test.
#[macro_export]
macro_rules! on_cuda {
    ($($(#[$attribute:meta])* fn $test:ident() $body:block)*) => {$(
        $(#[$attribute])*
        #[test]
        fn $test() {
            let name = concat!(module_path!(), "::", stringify!($test));
            // Harnesses leave out the name of the binary.
            let name = name.split_once("::").map_or(name, |(_, name)| name);
            match $crate::outside(name, &[]) {
                Some(text) => $crate::print(&text),
                None => $body,
            }
        }
    )*};
}

/// Prints what another process wrote.
#[allow(clippy::print_stdout, reason = "the harness shows it with `--nocapture`, or where the test fails")]
pub fn print(text: &str) {
    println!("{text}");
}

/// Shows what a test has counted.
pub fn show(text: impl std::fmt::Display) {
    allotrope_cuda_emulator::testing::tell(text);
}

/// Calls the macro `$tests` with every checkpoint whose numbers are known: `test_name: "checkpoint",` each.
#[macro_export]
macro_rules! for_every_checkpoint {
    ($tests:ident) => {
        $tests! {
            grouped_query_bf16: "gqa-bf16",
            multi_head_untied_bf16: "mha-untied-bf16",
            multi_query_odd_sizes_bf16: "mqa-bf16",
            sharded_untied_bf16: "sharded-bf16",
            biases_bf16: "bias-bf16",
            rope_llama3_bf16: "rope-llama3-bf16",
            grouped_query_f16: "gqa-f16",
            grouped_query_f32: "gqa-f32",
            rope_linear_f32: "rope-linear-f32",
            rope_llama3_f32: "rope-llama3-f32",
            rope_yarn_f32: "rope-yarn-f32",
            grouped_query_fp8: "gqa-fp8",
            trained_bf16: "tiny-chat",
            trained_fp8: "tiny-chat-fp8",
        }
    };
}

/// A checkpoint of `fixtures/` (or a trained one of `models/`) whose numbers are known.
#[must_use]
pub fn checkpoint(name: &str) -> PathBuf {
    let folder = if name.starts_with("tiny-chat") { "models" } else { "fixtures" };
    here().join(folder).join(name)
}

/// A folder with the configuration and the tokenizer of a checkpoint, and no weights.
#[must_use]
pub fn without_weights(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(checkpoint(name).join(file), folder.path().join(file)).expect("a file of a checkpoint");
    }
    folder
}

/// The folder of this package; where the tests were taken to another machine, that below `ALLOTROPE_TEST_ROOT`.
#[must_use]
pub fn here() -> PathBuf {
    match std::env::var_os("ALLOTROPE_TEST_ROOT") {
        Some(root) => PathBuf::from(root).join("tests"),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")),
    }
}

/// What transformers computes from a checkpoint in float32.
#[derive(Debug)]
pub struct Reference {
    /// The checkpoint's name.
    pub name: String,
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// Largest error that storing in the checkpoint's type makes in a logit, as transformers itself shows it.
    pub numeric_error: f64,
    /// Root mean square of that error.
    pub numeric_error_rms: f64,
    /// Prompts with their logits.
    pub prompts: Vec<ReferencePrompt>,
}

/// One prompt of a reference.
#[derive(Debug)]
pub struct ReferencePrompt {
    /// Token ids, `[T]`.
    pub prompt: Vec<u32>,
    /// Logits of the last positions of the prompt, `[≤ T, V]` row-major: of all, or of the last alone.
    pub logits: Vec<f32>,
    /// Greedy continuation, `[N]`.
    pub tokens: Vec<u32>,
    /// The logits that each was picked from, `[N, V]`.
    pub step_logits: Vec<f32>,
}

impl Reference {
    /// Reads `fixtures/reference/NAME.{safetensors,json}`.
    #[must_use]
    pub fn load(name: &str) -> Self {
        let path = here().join("fixtures/reference").join(name);
        let bytes = fs::read(path.with_extension("safetensors")).expect("the reference tensors");
        let tensors = SafeTensors::deserialize(&bytes).expect("the reference tensors");
        let described: Value =
            serde_json::from_slice(&fs::read(path.with_extension("json")).expect("the reference's description"))
                .unwrap();
        let rows = described["prompts"].as_array().unwrap();
        let largest = |key: &str| rows.iter().map(|row| row[key].as_f64().unwrap()).fold(0.0, f64::max);
        let floats = |name: String| -> Vec<f32> {
            let data = tensors.tensor(&name).unwrap();
            data.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        let ids = |name: String| -> Vec<u32> {
            let data = tensors.tensor(&name).unwrap();
            let ids = data.data().as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
            ids.map(|id| u32::try_from(id).unwrap()).collect()
        };
        let prompts = (0..rows.len()).map(|index| ReferencePrompt {
            prompt: ids(format!("prompt.{index}")),
            logits: floats(format!("logits.{index}")),
            tokens: ids(format!("tokens.{index}")),
            step_logits: floats(format!("step_logits.{index}")),
        });
        Reference {
            name: name.to_owned(),
            vocabulary: tensors.tensor("step_logits.0").unwrap().shape()[1],
            numeric_error: largest("numeric_error"),
            numeric_error_rms: largest("numeric_error_rms"),
            prompts: prompts.collect(),
        }
    }

    /// Whether greedy continuations must be equal token by token: not where random weights are quantized, since a
    /// rounding that falls the other way moves a logit by more than the runner-up is away.
    #[must_use]
    pub fn is_decisive(&self) -> bool {
        self.name != "gqa-fp8"
    }
}

impl ReferencePrompt {
    /// The prompt and its continuation but for the last token: what a whole pass runs to get `expected`.
    #[must_use]
    pub fn forced(&self) -> Vec<u32> {
        let continuation = &self.tokens[..self.tokens.len() - 1];
        [&self.prompt, continuation].concat()
    }

    /// Logits of a whole pass over [`ReferencePrompt::forced`], of its last positions, `[.., V]`.
    #[must_use]
    pub fn expected(&self, vocabulary: usize) -> Vec<f32> {
        let before_last = &self.logits[..self.logits.len() - vocabulary];
        [before_last, &self.step_logits].concat()
    }
}

/// Asserts that every element is within `tolerance` of what is expected, and that the root of the mean square of the
/// differences is within `rms`. NaN is never within anything.
pub fn assert_close(context: &str, actual: &[f32], expected: &[f32], tolerance: f64, rms: f64) {
    assert_eq!(actual.len(), expected.len(), "{context}: lengths differ");
    let mut squares = 0.0;
    for (index, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(*actual) - f64::from(*expected)).abs();
        assert!(
            error <= tolerance,
            "{context}, element {index}: {actual} instead of {expected}, tolerance {tolerance:.2e}"
        );
        squares += error * error;
    }
    let found = (squares / expected.len().max(1) as f64).sqrt();
    assert!(found <= rms, "{context}: the root mean square of the error is {found:.2e}, allowed {rms:.2e}");
}

/// Asserts that two tensors have the same bits.
pub fn assert_same_bits(context: &str, actual: &[f32], expected: &[f32]) {
    assert_eq!(actual.len(), expected.len(), "{context}: lengths differ");
    let difference = actual.iter().zip(expected).position(|(actual, expected)| actual.to_bits() != expected.to_bits());
    if let Some(index) = difference {
        let (actual, expected) = (actual[index], expected[index]);
        panic!(
            "{context}: element {index} is {actual:e} ({:08x}) instead of {expected:e} ({:08x})",
            actual.to_bits(),
            expected.to_bits()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "element 1")]
    fn nan_is_not_close_to_anything() {
        assert_close("test", &[0.0, f32::NAN], &[0.0, f32::NAN], 1e9, 1e9);
    }

    #[test]
    #[should_panic(expected = "root mean square")]
    fn many_small_errors_are_not_close() {
        assert_close("test", &[0.5; 4], &[0.0; 4], 0.6, 0.1);
    }

    #[test]
    #[should_panic(expected = "element 2")]
    fn zeros_of_other_signs_have_other_bits() {
        assert_same_bits("test", &[1.0, 2.0, 0.0], &[1.0, 2.0, -0.0]);
    }
}
