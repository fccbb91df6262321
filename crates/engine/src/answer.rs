//! An answer under way: tokens become text, and text ends at a stop string.

use std::time::Duration;

use allotrope_model::{TokenStream, Tokenizer};

use crate::engine_core::Produced;
use crate::error::EngineError;
use crate::output::OutputText;
use crate::request::{Completion, Delta, FinishReason, Request};

/// One answer, from its first token to its last.
pub(crate) struct Answer {
    decoder: TokenStream,
    output: OutputText,
    text: String,
    tokens: Vec<u32>,
    end_tokens: Vec<u32>,
    prompt_tokens: usize,
    finish_reason: Option<FinishReason>,
    prefill: Duration,
    decode: Duration,
}

impl Answer {
    pub(crate) fn new(tokenizer: &Tokenizer, request: &Request) -> Self {
        Answer {
            decoder: tokenizer.stream(true),
            output: OutputText::new(&request.params.stop),
            text: String::new(),
            tokens: Vec::new(),
            end_tokens: request.end_tokens.clone(),
            prompt_tokens: request.prompt.len(),
            finish_reason: None,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finish_reason.is_some()
    }

    /// Takes the next token and gives the text that is now certain.
    pub(crate) fn push(&mut self, produced: &Produced) -> Result<Delta, EngineError> {
        self.tokens.push(produced.token);
        (self.prefill, self.decode) = (produced.prefill, produced.decode);
        let mut text = String::new();
        let mut finish_reason = produced.finish_reason;
        if !self.end_tokens.contains(&produced.token) {
            let piece = self.decoder.push(produced.token)?.unwrap_or_default();
            let emitted = self.output.push(&piece);
            text.push_str(&emitted.text);
            if emitted.stopped {
                finish_reason = Some(FinishReason::Stop);
            }
        }
        if finish_reason.is_some() {
            let rest = self.decoder.flush()?.unwrap_or_default();
            let emitted = self.output.push(&rest);
            text.push_str(&emitted.text);
            text.push_str(&self.output.finish());
            if emitted.stopped {
                finish_reason = Some(FinishReason::Stop);
            }
        }
        self.finish_reason = finish_reason;
        self.text.push_str(&text);
        Ok(Delta { text, token: produced.token, finish_reason })
    }

    /// The answer so far; one that was stopped from outside counts as ended by length.
    pub(crate) fn into_completion(self) -> Completion {
        Completion {
            text: self.text,
            tokens: self.tokens,
            finish_reason: self.finish_reason.unwrap_or(FinishReason::Length),
            prompt_tokens: self.prompt_tokens,
            prefill: self.prefill,
            decode: self.decode,
        }
    }
}
