//! A request while the engine core has it: its sampler, what it has seen, and its times.

use std::time::Instant;

use allotrope_runtime::RowSampling;

use crate::client::{Finish, PromptReport, RequestFailure, TokenEvent, TokenLogprobs, TokenOutput};
use crate::request::{FinishReason, TokenRequest};
use crate::sampling::{Sampler, SamplingError, TokenCounts};

pub(crate) struct Live {
    request: TokenRequest,
    sampler: Sampler,
    seen: TokenCounts,
    generated: usize,
    cached_tokens: usize,
    prompt_logprobs: Vec<Option<TokenLogprobs>>,
    arrived: Instant,
    started: Option<Instant>,
}

impl Live {
    pub(crate) fn new(request: TokenRequest, arrived: Instant) -> Result<Self, SamplingError> {
        let sampler = Sampler::new(&request.params, request.seed)?;
        let mut seen = TokenCounts::default();
        request.prompt.iter().for_each(|token| seen.add(*token));
        let rows = if request.params.prompt_logprobs.is_some() { request.prompt.len() } else { 0 };
        Ok(Live {
            sampler,
            seen,
            generated: 0,
            cached_tokens: 0,
            prompt_logprobs: vec![None; rows],
            arrived,
            started: None,
            request,
        })
    }

    pub(crate) fn priority(&self) -> i64 {
        self.request.priority
    }

    /// Says that a step with the request begins; true if it is the first.
    pub(crate) fn start(&mut self, now: Instant, cached_tokens: usize) -> bool {
        if self.started.is_some() {
            return false;
        }
        (self.started, self.cached_tokens) = (Some(now), cached_tokens);
        true
    }

    /// How the device chooses the next token.
    pub(crate) fn on_device(&self) -> RowSampling {
        self.sampler.on_device(self.generated as u64)
    }

    /// Chooses the next token from a row of logits.
    pub(crate) fn choose(&mut self, logits: &[f32], scratch: &mut Vec<f32>) -> TokenEvent {
        scratch.clear();
        scratch.extend_from_slice(logits);
        let token = self.sampler.sample(scratch, &self.seen);
        Ok(self.take(token.map_err(|error| RequestFailure::Sampling(error.to_string()))?, None))
    }

    /// Takes the probability of the token of the prompt at `position`.
    pub(crate) fn take_prompt_row(&mut self, _logits: &[f32], _token: u32, _position: usize) {}

    /// Takes the next token.
    pub(crate) fn take(&mut self, token: u32, logprobs: Option<TokenLogprobs>) -> TokenOutput {
        self.seen.add(token);
        self.generated += 1;
        let finish = |reason, stop_token| Some(Finish { reason, stop_token });
        let finish = if self.request.end_tokens.contains(&token) {
            finish(FinishReason::Stop, None)
        } else if self.request.params.stop_token_ids.contains(&token) {
            finish(FinishReason::Stop, Some(token))
        } else if self.generated >= self.request.max_tokens {
            finish(FinishReason::Length, None)
        } else {
            None
        };
        let prompt = (self.generated == 1).then(|| Box::new(self.report()));
        TokenOutput { token, logprobs, finish, prompt }
    }

    fn report(&mut self) -> PromptReport {
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        PromptReport {
            cached_tokens: self.cached_tokens,
            queued: started.saturating_duration_since(self.arrived),
            prefill: now.saturating_duration_since(started),
            logprobs: std::mem::take(&mut self.prompt_logprobs),
        }
    }
}
