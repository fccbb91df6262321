//! The sampler of one request: its parameters and its own stream of random numbers.

use allotrope_runtime::RowSampling;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::filters::{keep_top_k, keep_top_p, logits_to_weights, most_likely, penalize_repetition, total};
use super::{SamplingError, SamplingParams, TokenCounts};

/// Chooses the tokens of one request.
///
/// A device may choose in its place ([`Sampler::on_device`]); then it does for all tokens of the request.
///
/// The filters apply in vLLM's order: repetition penalty, temperature, `min_p`, `top_k`, `top_p`. The random numbers
/// depend on the seed and on how many tokens were drawn before, and on nothing else: what else is in the batch does not
/// change the output.
#[derive(Debug, Clone)]
pub(crate) struct Sampler {
    temperature: f32,
    top_p: f32,
    top_k: usize,
    min_p: f32,
    repetition_penalty: f32,
    seed: u64,
    random: ChaCha8Rng,
}

impl Sampler {
    /// A sampler for `params`. `seed` seeds its random numbers if the parameters name no seed.
    ///
    /// # Errors
    ///
    /// [`SamplingError::Parameter`] as [`SamplingParams::validate`] says.
    pub(crate) fn new(params: &SamplingParams, seed: u64) -> Result<Self, SamplingError> {
        params.validate()?;
        let seed = params.seed.unwrap_or(seed);
        Ok(Self {
            temperature: params.temperature,
            top_p: params.top_p,
            top_k: usize::try_from(params.top_k).unwrap_or(usize::MAX),
            min_p: params.min_p,
            repetition_penalty: params.repetition_penalty,
            seed,
            random: ChaCha8Rng::seed_from_u64(seed),
        })
    }

    /// How a device chooses the next token, after so many that were chosen for the request.
    ///
    /// What needs more than a temperature is read and sampled by the host. That depends on the parameters alone, so all tokens of
    /// a request are drawn in one place with one stream of random numbers, whatever else is in the batch.
    pub(crate) fn on_device(&self, chosen: u64) -> RowSampling {
        let filters = self.top_k != 0 || self.top_p < 1.0 || self.min_p > 0.0;
        if self.repetition_penalty != 1.0 {
            RowSampling::Read
        } else if self.temperature == 0.0 {
            RowSampling::Greedy
        } else if filters || self.temperature < RowSampling::LEAST_TEMPERATURE {
            RowSampling::Read
        } else {
            RowSampling::Seeded { temperature: self.temperature, seed: self.seed, counter: chosen }
        }
    }

    /// Chooses one token id from `logits`, one f32 per token of the vocabulary. A logit of negative infinity masks its
    /// token. `history` holds the tokens of the prompt and the output so far, and is only read if there is a repetition
    /// penalty.
    ///
    /// The logits are used as scratch space: what they hold afterwards has no meaning.
    ///
    /// # Errors
    ///
    /// [`SamplingError::Logit`] if a logit is NaN or positive infinity, [`SamplingError::NoCandidate`] if none is
    /// finite.
    pub(crate) fn sample(&mut self, logits: &mut [f32], history: &TokenCounts) -> Result<u32, SamplingError> {
        if self.repetition_penalty != 1.0 {
            penalize_repetition(logits, history, self.repetition_penalty);
        }
        let (first, largest) = most_likely(logits)?;
        let token = if self.temperature == 0.0 {
            first
        } else {
            // Which tokens `top_k` keeps does not depend on the temperature, so it may run before the exponentials and
            // spare most of them. `min_p` and `top_k` each keep a prefix of one ranking: their order does not matter.
            keep_top_k(logits, self.top_k);
            logits_to_weights(logits, largest, self.temperature, self.min_p);
            keep_top_p(logits, self.top_p);
            draw(logits, self.uniform()).unwrap_or(first)
        };
        u32::try_from(token).map_err(|_| SamplingError::NoCandidate { vocabulary: logits.len() })
    }

    /// The next random number of this request, uniform in [0, 1): the upper 53 bits of one 64-bit output.
    fn uniform(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The token at which the running sum of `weights` passes `uniform` of their total; the last token with a weight if
/// rounding keeps the sum below. `None` if no weight is positive.
fn draw(weights: &[f32], uniform: f64) -> Option<usize> {
    let target = uniform * total(weights);
    let mut sum = 0.0;
    let mut last = None;
    for (token, &weight) in weights.iter().enumerate() {
        if weight > 0.0 {
            sum += f64::from(weight);
            last = Some(token);
            if sum > target {
                break;
            }
        }
    }
    last
}

#[cfg(test)]
mod tests;
