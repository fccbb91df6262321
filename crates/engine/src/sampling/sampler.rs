//! The sampler of one request: its parameters and its own stream of random numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use allotrope_runtime::RowSampling;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::edits::{Penalties, add_bias, mask, mask_all_but, mask_bad_words};
use super::filters::{
    Candidate, candidates_from, candidates_to_weights, candidates_total, draw_candidate, keep_nucleus, nucleus_bar,
    top_candidates,
};
use super::row::{draw, logits_to_weights, most_likely};
use super::{LogprobCount, SamplingError, SamplingParams, TokenCounts, TokenLogprobs};
use crate::structured::GrammarMatcher;

/// Chooses the tokens of one request.
///
/// A device may choose in its place (`Sampler::on_device`); then it does for all tokens of the request.
///
/// The steps are vLLM's, in its order: probabilities to report, from the logits as they are; the allowed tokens, the biases, the
/// least number of tokens, the bad words and the grammar; the repetition, frequency and presence penalties; the temperature,
/// `min_p`, `top_k` and `top_p`; the draw. The random numbers depend on the seed and on how many tokens were drawn before, and on
/// nothing else: what else is in the batch does not change the output.
#[derive(Debug, Clone)]
pub struct Sampler {
    /// 0 is greedy.
    temperature: f32,
    top_p: f32,
    top_k: usize,
    min_p: f32,
    penalties: Penalties,
    logprobs: Option<LogprobCount>,
    logit_bias: BTreeMap<u32, f32>,
    allowed_token_ids: Option<Vec<u32>>,
    min_tokens: usize,
    /// The tokens that are masked before `min_tokens` of the output are there.
    end_tokens: Vec<u32>,
    bad_words: Arc<[Vec<u32>]>,
    /// Whether a grammar comes with each row.
    structured: bool,
    seed: u64,
    random: ChaCha8Rng,
}

/// What a choice depends on beside the logits.
#[derive(Debug)]
pub struct SamplingContext<'a> {
    /// The tokens of the prompt and the output so far. Only read if there are penalties.
    pub seen: &'a TokenCounts,
    /// The tokens of the output so far.
    pub output: &'a [u32],
    /// The grammar of the output, which accepted all of `output`. It is for the caller to let it accept the chosen token.
    pub grammar: Option<&'a mut GrammarMatcher>,
}

/// Rows that a sampler works in. They may be shared by all samplers of a thread; what they hold in between has no meaning.
#[derive(Debug, Default)]
pub struct SamplingScratch {
    logits: Vec<f32>,
    draw: DrawScratch,
}

#[derive(Debug, Default)]
struct DrawScratch {
    weights: Vec<f32>,
    candidates: Vec<Candidate>,
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub token: u32,
    /// How likely it and others were, if the parameters ask for it.
    pub logprobs: Option<TokenLogprobs>,
}

impl Sampler {
    /// A sampler for `params`. `seed` seeds its random numbers if the parameters name no seed.
    ///
    /// # Errors
    ///
    /// [`SamplingError::Parameter`] as [`SamplingParams::validate`] says.
    pub fn new(params: &SamplingParams, seed: u64) -> Result<Self, SamplingError> {
        params.validate()?;
        let seed = params.seed.unwrap_or(seed);
        Ok(Self {
            temperature: params.drawing_temperature(),
            top_p: params.top_p,
            top_k: usize::try_from(params.top_k).unwrap_or(usize::MAX),
            min_p: params.min_p,
            penalties: Penalties {
                repetition: params.repetition_penalty,
                frequency: params.frequency_penalty,
                presence: params.presence_penalty,
            },
            logprobs: params.logprobs,
            logit_bias: params.logit_bias.clone(),
            allowed_token_ids: params.allowed_token_ids.clone(),
            min_tokens: params.min_tokens,
            end_tokens: params.stop_token_ids.clone(),
            bad_words: Arc::default(),
            structured: params.structured_output.is_some(),
            seed,
            random: ChaCha8Rng::seed_from_u64(seed),
        })
    }

    /// Tells which tokens end the output beside those of `stop_token_ids`; they are masked before `min_tokens` are there.
    #[must_use]
    pub fn with_end_tokens(mut self, tokens: &[u32]) -> Self {
        self.end_tokens.extend_from_slice(tokens);
        self
    }

    /// Tells the tokens of the bad words: the sequences of each, as a tokenizer makes them with and without a space in front.
    #[must_use]
    pub fn with_bad_words(mut self, words: impl Into<Arc<[Vec<u32>]>>) -> Self {
        self.bad_words = words.into();
        self
    }

    /// Seeds the random numbers, whatever the parameters say: of several answers with the same parameters each has its own.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        (self.seed, self.random) = (seed, ChaCha8Rng::seed_from_u64(seed));
        self
    }

    /// Whether the tokens that were seen matter: only then need they be counted.
    pub fn counts_tokens(&self) -> bool {
        !self.penalties.is_off()
    }

    /// How a device chooses the next token, after so many that were chosen for the request.
    ///
    /// What needs more than a temperature is read and sampled by the host. That depends on the request alone, so all tokens of
    /// a request are drawn in one place with one stream of random numbers, whatever else is in the batch.
    pub(crate) fn on_device(&self, chosen: u64) -> RowSampling {
        let filters = self.top_k != 0 || self.top_p < 1.0 || self.min_p > 0.0;
        if self.edits() || self.structured || self.logprobs.is_some() {
            RowSampling::Read
        } else if self.temperature == 0.0 {
            RowSampling::Greedy
        } else if filters || self.temperature < RowSampling::LEAST_TEMPERATURE {
            RowSampling::Read
        } else {
            RowSampling::Seeded { temperature: self.temperature, seed: self.seed, counter: chosen }
        }
    }

    /// Chooses one token from `logits`, one f32 per token of the vocabulary, as the model gave them. A logit of negative infinity
    /// masks its token.
    ///
    /// Where the grammar allows nothing but the end, it ends, whatever `min_tokens` says.
    ///
    /// # Errors
    ///
    /// [`SamplingError::Logit`] if a logit is NaN or positive infinity, [`SamplingError::NoCandidate`] if none is
    /// finite, [`SamplingError::Masked`] if the request allows none of them, [`SamplingError::Grammar`] if the grammar can't go on.
    pub fn sample(
        &mut self,
        logits: &[f32],
        scratch: &mut SamplingScratch,
        context: SamplingContext<'_>,
    ) -> Result<SampledToken, SamplingError> {
        let raw = most_likely(logits)?;
        let SamplingScratch { logits: edited, draw } = scratch;
        let token = if self.edits() || context.grammar.is_some() {
            edited.clear();
            edited.extend_from_slice(logits);
            self.edit(edited, context)?;
            // The model left something to choose from, so it is the request that does not.
            let best = most_likely(edited).map_err(|_| SamplingError::Masked)?;
            self.choose(edited, best, draw)
        } else {
            self.choose(logits, raw, draw)
        };
        let token = u32::try_from(token).map_err(|_| SamplingError::NoCandidate { vocabulary: logits.len() })?;
        let logprobs = self.logprobs.map(|count| TokenLogprobs::of_checked(logits, raw.1, token, count));
        Ok(SampledToken { token, logprobs: logprobs.transpose()? })
    }

    /// Whether the parameters change logits before a token is chosen.
    fn edits(&self) -> bool {
        self.allowed_token_ids.is_some()
            || !self.logit_bias.is_empty()
            || self.min_tokens > 0
            || !self.bad_words.is_empty()
            || !self.penalties.is_off()
    }

    fn edit(&self, logits: &mut [f32], context: SamplingContext<'_>) -> Result<(), SamplingError> {
        if let Some(allowed) = &self.allowed_token_ids {
            mask_all_but(logits, allowed);
        }
        add_bias(logits, &self.logit_bias);
        let must_end = context.grammar.as_ref().is_some_and(|grammar| grammar.is_finished());
        if context.output.len() < self.min_tokens && !must_end {
            mask(logits, &self.end_tokens);
        }
        mask_bad_words(logits, &self.bad_words, context.output);
        if let Some(grammar) = context.grammar {
            grammar.mask(logits)?;
        }
        if !self.penalties.is_off() {
            self.penalties.apply(logits, context.seen);
        }
        Ok(())
    }

    /// Chooses among the logits that are finite. `first` is the most likely token and `largest` its logit.
    fn choose(&mut self, logits: &[f32], (first, largest): (usize, f32), scratch: &mut DrawScratch) -> usize {
        if self.temperature == 0.0 {
            return first;
        }
        let uniform = self.uniform();
        let DrawScratch { weights, candidates } = scratch;
        // Which tokens `top_k` keeps does not depend on the temperature, so it may run before the exponentials and
        // spare most of them. `min_p` and `top_k` each keep a prefix of one ranking: their order does not matter.
        let total = if self.top_k != 0 && self.top_k < logits.len() {
            *candidates = top_candidates(logits, self.top_k);
            candidates_to_weights(candidates, largest, self.temperature);
            candidates.retain(|candidate| candidate.value > 0.0 && candidate.value >= self.min_p);
            candidates_total(candidates)
        } else {
            let total = logits_to_weights(logits, largest, self.temperature, weights);
            if self.min_p > 0.0 {
                candidates_from(weights, self.min_p, candidates);
                candidates_total(candidates)
            } else if self.top_p < 1.0 {
                candidates_from(weights, nucleus_bar(weights, total, self.top_p), candidates);
                total
            } else {
                return draw(weights, uniform * total).unwrap_or(first);
            }
        };
        if self.top_p < 1.0 {
            keep_nucleus(candidates, total, self.top_p);
        }
        let token = draw_candidate(candidates, uniform * candidates_total(candidates));
        token.and_then(|token| usize::try_from(token).ok()).unwrap_or(first)
    }

    /// The next random number of this request, uniform in [0, 1): the upper 53 bits of one 64-bit output.
    fn uniform(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests;
