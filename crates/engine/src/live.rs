//! A request while the engine core has it: its sampler, what it has seen, and its times.

use std::sync::Arc;
use std::time::Instant;

use allotrope_runtime::RowSampling;

use crate::client::{Finish, PromptReport, RequestFailure, TokenEvent, TokenOutput};
use crate::request::{FinishReason, TokenRequest};
use crate::sampling::{
    SampledToken, Sampler, SamplingContext, SamplingError, SamplingScratch, TokenCounts, TokenLogprobs,
};
use crate::structured::{Grammar, GrammarMatcher};

pub(crate) struct Live {
    request: TokenRequest,
    /// What it takes to choose tokens; made with the first step, as requests may wait for long and in numbers.
    chooser: Option<Chooser>,
    /// Why no token can be chosen, until somebody can be told.
    failure: Option<SamplingError>,
    output: Vec<u32>,
    cached_tokens: usize,
    prompt_logprobs: Vec<Option<TokenLogprobs>>,
    arrived: Instant,
    started: Option<Instant>,
}

struct Chooser {
    sampler: Sampler,
    /// Empty where nothing asks for it.
    seen: TokenCounts,
    grammar: Option<GrammarMatcher>,
}

impl Chooser {
    fn new(request: &TokenRequest) -> Result<Self, SamplingError> {
        let sampler = Sampler::new(&request.params, request.seed)?
            .with_seed(request.seed)
            .with_end_tokens(&request.end_tokens)
            .with_bad_words(Arc::clone(&request.bad_words));
        let seen =
            if sampler.counts_tokens() { TokenCounts::of_prompt(&request.prompt) } else { TokenCounts::default() };
        Ok(Chooser { sampler, seen, grammar: request.grammar.as_ref().map(Grammar::matcher) })
    }

    fn choose(
        &mut self,
        logits: &[f32],
        scratch: &mut SamplingScratch,
        (output, end_tokens): (&[u32], &[u32]),
    ) -> Result<SampledToken, SamplingError> {
        let context = SamplingContext { seen: &self.seen, output, grammar: self.grammar.as_mut() };
        let chosen = self.sampler.sample(logits, scratch, context)?;
        if let Some(grammar) = &mut self.grammar
            && !end_tokens.contains(&chosen.token)
        {
            grammar.accept(chosen.token)?;
        }
        Ok(chosen)
    }
}

impl Live {
    pub(crate) fn new(request: TokenRequest, arrived: Instant) -> Self {
        Live {
            chooser: None,
            failure: None,
            output: Vec::new(),
            cached_tokens: 0,
            prompt_logprobs: Vec::new(),
            arrived,
            started: None,
            request,
        }
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
        match Chooser::new(&self.request) {
            Ok(chooser) => self.chooser = Some(chooser),
            Err(error) => self.failure = Some(error),
        }
        if self.request.params.prompt_logprobs.is_some() {
            self.prompt_logprobs = vec![None; self.request.prompt.len()];
        }
        true
    }

    /// How the device chooses the next token.
    pub(crate) fn on_device(&self) -> RowSampling {
        match &self.chooser {
            Some(chooser) if self.failure.is_none() => chooser.sampler.on_device(self.output.len() as u64),
            _ => RowSampling::Read,
        }
    }

    /// Chooses the next token from a row of logits.
    pub(crate) fn choose(&mut self, logits: &[f32], scratch: &mut SamplingScratch) -> TokenEvent {
        if let Some(failure) = self.failure.take() {
            return Err(failure.into());
        }
        let Some(chooser) = &mut self.chooser else {
            return Err(RequestFailure::Sampling("the request was not started (a bug)".into()));
        };
        let chosen = chooser.choose(logits, scratch, (&self.output, &self.request.end_tokens))?;
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
        self.output.push(token);
        let mut is_whole = false;
        if let Some(chooser) = &mut self.chooser {
            if chooser.sampler.counts_tokens() {
                chooser.seen.add_output(token);
            }
            is_whole = chooser.grammar.as_ref().is_some_and(GrammarMatcher::is_finished);
        }
        let finish = |reason, by_token, stop_token| Some(Finish { reason, by_token, stop_token });
        let finish = if self.request.end_tokens.contains(&token) {
            finish(FinishReason::Stop, true, None)
        } else if self.request.params.stop_token_ids.contains(&token) {
            finish(FinishReason::Stop, true, Some(token))
        } else if is_whole {
            finish(FinishReason::Stop, false, None)
        } else if self.output.len() >= self.request.max_tokens {
            finish(FinishReason::Length, false, None)
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
