//! A request while the engine core has it: its sampler, what it has seen, and its times.

use std::time::Instant;

use allotrope_runtime::RowSampling;

use crate::client::{Finish, PromptReport, TokenEvent, TokenOutput};
use crate::request::{FinishReason, TokenRequest};
use crate::sampling::{Sampler, SamplingContext, SamplingError, SamplingScratch, TokenCounts, TokenLogprobs};
use crate::structured::{Grammar, GrammarMatcher};

pub(crate) struct Live {
    request: TokenRequest,
    sampler: Sampler,
    seen: TokenCounts,
    output: Vec<u32>,
    grammar: Option<GrammarMatcher>,
    /// Why its prompt has no probabilities, until somebody can be told.
    failure: Option<SamplingError>,
    cached_tokens: usize,
    prompt_logprobs: Vec<Option<TokenLogprobs>>,
    arrived: Instant,
    started: Option<Instant>,
}

impl Live {
    pub(crate) fn new(request: TokenRequest, arrived: Instant) -> Result<Self, SamplingError> {
        let sampler = Sampler::new(&request.params, request.seed)?
            .with_end_tokens(&request.end_tokens)
            .with_bad_words(request.bad_words.clone());
        let seen = TokenCounts::of_prompt(&request.prompt);
        let grammar = request.grammar.as_ref().map(Grammar::matcher);
        let rows = if request.params.prompt_logprobs.is_some() { request.prompt.len() } else { 0 };
        Ok(Live {
            sampler,
            seen,
            output: Vec::new(),
            grammar,
            failure: None,
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
        self.sampler.on_device(self.output.len() as u64)
    }

    /// Chooses the next token from a row of logits.
    pub(crate) fn choose(&mut self, logits: &[f32], scratch: &mut SamplingScratch) -> TokenEvent {
        if let Some(failure) = self.failure.take() {
            return Err(failure.into());
        }
        let context = SamplingContext { seen: &self.seen, output: &self.output, grammar: self.grammar.as_mut() };
        let chosen = self.sampler.sample(logits, scratch, context)?;
        if let Some(grammar) = &mut self.grammar
            && !self.request.end_tokens.contains(&chosen.token)
        {
            grammar.accept(chosen.token).map_err(SamplingError::from)?;
        }
        Ok(self.take(chosen.token, chosen.logprobs))
    }

    /// Takes the probability of the token of the prompt at `position`.
    pub(crate) fn take_prompt_row(&mut self, logits: &[f32], token: u32, position: usize) {
        let Some(count) = self.request.params.prompt_logprobs else { return };
        match TokenLogprobs::of(logits, token, count) {
            Ok(logprobs) => {
                if let Some(place) = self.prompt_logprobs.get_mut(position) {
                    *place = Some(logprobs);
                }
            }
            Err(error) => self.failure = Some(error),
        }
    }

    /// Takes the next token.
    pub(crate) fn take(&mut self, token: u32, logprobs: Option<TokenLogprobs>) -> TokenOutput {
        self.seen.add_output(token);
        self.output.push(token);
        let is_whole = self.grammar.as_ref().is_some_and(GrammarMatcher::is_finished);
        let finish = |reason, stop_token| Some(Finish { reason, stop_token });
        let finish = if self.request.end_tokens.contains(&token) || is_whole {
            finish(FinishReason::Stop, None)
        } else if self.request.params.stop_token_ids.contains(&token) {
            finish(FinishReason::Stop, Some(token))
        } else if self.output.len() >= self.request.max_tokens {
            finish(FinishReason::Length, None)
        } else {
            None
        };
        let prompt = (self.output.len() == 1).then(|| Box::new(self.report()));
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
