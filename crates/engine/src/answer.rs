//! From the tokens of one request to its text: decoding, stop strings, and the whole answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use allotrope_model::{TokenStream, Tokenizer};

use crate::client::{PromptReport, TokenOutput};
use crate::error::EngineError;
use crate::output::OutputText;
use crate::request::{Completion, Delta, FinishReason, StopReason, TokenRequest};
use crate::sampling::SamplingParams;

/// One answer, from its first token to its last.
#[derive(Debug)]
pub(crate) struct Answer {
    index: usize,
    decoder: TokenStream,
    /// Made with the first token, as requests may wait for long and in numbers.
    output: Option<OutputText>,
    params: Arc<SamplingParams>,
    produced: usize,
    is_finished: bool,
}

impl Answer {
    /// The answer to a request, the one of `index` of several to a prompt.
    pub(crate) fn new(tokenizer: &Tokenizer, request: &TokenRequest, index: usize) -> Self {
        Answer {
            index,
            decoder: tokenizer.stream(request.params.skip_special_tokens),
            output: None,
            params: Arc::clone(&request.params),
            produced: 0,
            is_finished: false,
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Takes the next token and gives the text that is now certain.
    pub(crate) fn push(&mut self, output: TokenOutput) -> Result<Delta, EngineError> {
        let TokenOutput { token, logprobs, finish, prompt } = output;
        self.produced += 1;
        let mut text = String::new();
        let mut stopped = None;
        if !finish.is_some_and(|finish| finish.by_token) {
            let piece = self.decoder.push(token)?.unwrap_or_default();
            stopped = self.show(&piece, &mut text);
        }
        if finish.is_some() && stopped.is_none() {
            let rest = self.decoder.flush()?.unwrap_or_default();
            stopped = self.show(&rest, &mut text);
            text.push_str(&self.output().finish());
        }
        let by_token = finish.and_then(|finish| finish.stop_token).map(StopReason::Token);
        let by_string = stopped.and_then(|place| self.params.stop.get(place).cloned()).map(StopReason::String);
        let finish_reason = match stopped {
            Some(_) => Some(FinishReason::Stop),
            None => finish.map(|finish| finish.reason),
        };
        self.is_finished = finish_reason.is_some();
        let stop_reason = by_string.or(by_token);
        Ok(Delta { index: self.index, text, token, logprobs, finish_reason, stop_reason, prompt })
    }

    /// Adds what may be shown of a piece to `text`; gives the stop string that ends the answer, by its place.
    fn show(&mut self, piece: &str, text: &mut String) -> Option<usize> {
        let may_stop = self.params.min_tokens == 0 || self.produced > self.params.min_tokens;
        let emitted = self.output().push(piece, may_stop);
        text.push_str(&emitted.text);
        emitted.stopped
    }

    fn output(&mut self) -> &mut OutputText {
        let params = &self.params;
        self.output.get_or_insert_with(|| OutputText::new(&params.stop, params.include_stop_str_in_output))
    }
}

/// An answer as it is put together from its parts.
#[derive(Debug)]
pub(crate) struct Collected {
    completion: Completion,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Collected {
    /// Nothing yet of the answer to a prompt of so many tokens.
    pub(crate) fn new(prompt_tokens: usize) -> Self {
        let completion = Completion {
            text: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            // One that is stopped from outside counts as ended by length.
            finish_reason: FinishReason::Length,
            stop_reason: None,
            prompt_tokens,
            cached_tokens: 0,
            prompt_logprobs: Vec::new(),
            queued: Duration::ZERO,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
            inter_token: Vec::new(),
        };
        Collected { completion, first: None, last: None }
    }

    /// Adds the next part.
    pub(crate) fn push(&mut self, delta: &Delta) {
        let completion = &mut self.completion;
        completion.text.push_str(&delta.text);
        completion.tokens.push(delta.token);
        completion.logprobs.extend(delta.logprobs.clone());
        if let Some(reason) = delta.finish_reason {
            completion.finish_reason = reason;
        }
        completion.stop_reason.clone_from(&delta.stop_reason);
        if let Some(prompt) = &delta.prompt {
            let PromptReport { cached_tokens, queued, prefill, logprobs } = &**prompt;
            (completion.cached_tokens, completion.queued, completion.prefill) = (*cached_tokens, *queued, *prefill);
            completion.prompt_logprobs.clone_from(logprobs);
        }
        let now = Instant::now();
        completion.decode = now - *self.first.get_or_insert(now);
        completion.inter_token.extend(self.last.replace(now).map(|last| now - last));
    }

    /// The answer as far as it came.
    pub(crate) fn into_completion(self) -> Completion {
        self.completion
    }
}
