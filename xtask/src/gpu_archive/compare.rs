//! A checkpoint at every level on a device: all levels must give the same bits, and greedy tokens must be the CPU's unless two
//! logits are as close as the checkpoint's number format can tell apart.

use allotrope_config::{DeviceChoice, OptimizationLevel};
use allotrope_engine::{LlmBuilder, TokenLogits};
use allotrope_model::Checkpoint;
use serde_json::json;

use super::{Subject, message};
use crate::error::TaskError;
use crate::runner::prompt;

/// What to compare.
#[derive(clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    subject: Subject,
    /// Levels to compare; the bits of the first are expected of all
    #[arg(long, value_name = "LEVELS", value_delimiter = ',', default_value = "0,1,2,3")]
    levels: Vec<OptimizationLevel>,
    /// Lengths of the prompts, in tokens; less where the context does not hold so many
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,17,48")]
    prompts: Vec<u32>,
    /// Tokens that each is continued with
    #[arg(long, value_name = "N", default_value_t = 8)]
    new_tokens: usize,
}

/// Runs the prompts at every level and on the CPU, compares, and prints.
///
/// # Errors
/// If something fails to run, a level has other bits, or the CPU's answer is another one.
pub(super) fn run(options: &Options) -> Result<(), TaskError> {
    let subject = &options.subject;
    let checkpoint = Checkpoint::open(&subject.model).map_err(message)?;
    let vocabulary = u32::try_from(checkpoint.config().vocab_size).map_err(message)?;
    // A prompt that the context does not hold is as long as it can be.
    let longest = checkpoint.config().max_position_embeddings.saturating_sub(options.new_tokens).max(1);
    let longest = u32::try_from(longest).unwrap_or(u32::MAX);
    let lengths = options.prompts.iter().map(|length| (*length).min(longest));
    let prompts: Vec<Vec<u32>> = lengths.map(|length| prompt(length, vocabulary)).collect();
    let mut device = String::new();
    let mut logits = |builder: LlmBuilder| -> Result<Vec<TokenLogits>, TaskError> {
        let mut llm = builder.build().map_err(message)?;
        device = llm.device_name().to_owned();
        prompts.iter().map(|prompt| llm.logits(prompt, options.new_tokens).map_err(message)).collect()
    };
    let on_cpu = Subject { device: DeviceChoice::Cpu, results: None, kernel_cache: None, model: subject.model.clone() };
    let expected = logits(on_cpu.builder(OptimizationLevel::O2)?)?;
    let mut of_levels: Vec<(OptimizationLevel, Vec<TokenLogits>)> = Vec::new();
    for level in &options.levels {
        of_levels.push((*level, logits(subject.builder(*level)?)?));
    }
    let Some((first_level, first)) = of_levels.first() else { return Err(message("no levels were given")) };
    let differing: Vec<String> =
        of_levels.iter().filter(|(_, found)| !same_bits(first, found)).map(|(level, _)| level.to_string()).collect();
    let mut comparison = Comparison::default();
    for (expected, found) in expected.iter().zip(first) {
        comparison.add(expected, found);
    }
    let tolerance = tolerance(&checkpoint);
    let passed = differing.is_empty() && comparison.holds(tolerance);
    subject.tell(&json!({
        "kind": "comparison",
        "model": subject.name(),
        "device": device,
        "passed": passed,
        "levels": options.levels.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "levels_with_other_bits": differing,
        "tokens": comparison.tokens,
        "tokens_as_on_cpu": comparison.same_tokens,
        "largest_difference": comparison.difference,
        "largest_logit": comparison.largest,
        "largest_gap": comparison.gap,
        "tolerance": tolerance,
    }))?;
    if passed {
        return Ok(());
    }
    let reason = if differing.is_empty() {
        format!("the logits are not those of the CPU within {tolerance} of the largest: {comparison:?}")
    } else {
        format!("{} differ in bits from {first_level}", differing.join(", "))
    };
    Err(message(format!("{}: {reason}", subject.name())))
}

/// How far apart two logits may be where devices pick different tokens, and how far logits may differ on the two, as a part of
/// the largest logit.
fn tolerance(checkpoint: &Checkpoint) -> f32 {
    let config = checkpoint.config();
    match (&config.quantization, checkpoint.dtype()) {
        (Some(_), _) => 1.0 / 8.0,
        (None, allotrope_graph::DType::F32) => 1e-3,
        (None, _) => 1.0 / 32.0,
    }
}

fn same_bits(some: &[TokenLogits], others: &[TokenLogits]) -> bool {
    let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
    some.len() == others.len()
        && some.iter().zip(others).all(|(one, other)| {
            one.tokens == other.tokens
                && bits(&one.prompt) == bits(&other.prompt)
                && bits(&one.steps) == bits(&other.steps)
        })
}

/// What a comparison with the CPU has found.
#[derive(Debug, Default)]
struct Comparison {
    tokens: usize,
    same_tokens: usize,
    /// Between logits of the same tokens.
    difference: f32,
    largest: f32,
    /// Where other tokens were picked: how much lower the CPU has the one that the device picked.
    gap: f32,
    not_finite: bool,
}

impl Comparison {
    /// Compares the logits of a prompt, and of its continuation as far as it is the same.
    fn add(&mut self, expected: &TokenLogits, found: &TokenLogits) {
        self.logits(&expected.prompt, &found.prompt);
        self.tokens += expected.tokens.len();
        let vocabulary = expected.vocabulary.max(1);
        let steps = expected.steps.chunks(vocabulary).zip(found.steps.chunks(vocabulary));
        for ((expected_logits, found_logits), (token, other)) in steps.zip(expected.tokens.iter().zip(&found.tokens)) {
            self.logits(expected_logits, found_logits);
            if token != other {
                let of = |token: &u32| expected_logits.get(*token as usize).copied().unwrap_or(f32::NAN);
                self.gap = self.gap.max(of(token) - of(other));
                // What follows belongs to another text.
                return;
            }
            self.same_tokens += 1;
        }
    }

    fn logits(&mut self, expected: &[f32], found: &[f32]) {
        self.not_finite |= expected.len() != found.len();
        for (expected, found) in expected.iter().zip(found) {
            self.not_finite |= !found.is_finite();
            self.difference = self.difference.max((expected - found).abs());
            self.largest = self.largest.max(expected.abs());
        }
    }

    fn holds(&self, tolerance: f32) -> bool {
        let most = tolerance * self.largest;
        !self.not_finite && self.tokens > 0 && self.difference <= most && self.gap <= most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(steps: &[f32], tokens: &[u32]) -> TokenLogits {
        TokenLogits { prompt: vec![1.0, 2.0], tokens: tokens.to_vec(), steps: steps.to_vec(), vocabulary: 2 }
    }

    fn compared(found: &TokenLogits) -> Comparison {
        let mut comparison = Comparison::default();
        comparison.add(&logits(&[1.0, 2.0, 1.0, 1.01], &[1, 1]), found);
        comparison
    }

    #[test]
    fn another_token_is_accepted_where_logits_are_close() {
        let near = compared(&logits(&[1.0, 2.0, 1.01, 1.0], &[1, 0]));
        assert!(near.holds(0.03) && near.same_tokens == 1 && near.tokens == 2, "{near:?}");
        let far = compared(&logits(&[2.0, 1.0, 1.0, 1.0], &[0, 1]));
        assert!(!far.holds(0.03) && far.same_tokens == 0, "{far:?}");
    }

    #[test]
    fn what_is_no_number_is_no_answer() {
        let mut broken = logits(&[1.0, 2.0, 1.0, 1.01], &[1, 1]);
        assert!(compared(&broken).holds(0.03));
        broken.steps[2] = f32::NAN;
        assert!(!compared(&broken).holds(0.03));
        broken.steps.truncate(2);
        broken.prompt.clear();
        assert!(!compared(&broken).holds(0.03));
        assert!(!same_bits(&[logits(&[0.0, 1.0], &[1])], &[logits(&[-0.0, 1.0], &[1])]));
    }
}
