//! What a request is read against.

use allotrope_engine::{LogprobCount, SamplingParams};

use super::error::ApiError;

/// What the server knows when it reads a request: the model's sizes, the defaults and the limits.
#[derive(Debug, Clone)]
pub struct RequestContext {
    /// Names that requests may give as `model`.
    pub model_names: Vec<String>,
    /// The width of the logits; every token id of a request must be below it.
    pub vocabulary: usize,
    /// The most tokens of prompt and answer together.
    pub max_model_len: usize,
    /// The most alternatives that may be asked for with each token; `All` also accepts -1 for the whole vocabulary.
    pub max_logprobs: LogprobCount,
    /// What holds where a request says nothing: what the model's own `generation_config.json` names, and otherwise the
    /// defaults of OpenAI's interface.
    pub defaults: SamplingParams,
    /// The most bytes of text in one prompt or conversation, so that nothing longer is tokenized: what
    /// `max_model_len` of the longest tokens would have.
    pub max_prompt_bytes: usize,
    /// The most bytes of text in all prompts of a request.
    pub max_text_bytes: usize,
    /// Whether a request may bring its own chat template, which is a program.
    pub trust_request_chat_template: bool,
}

impl RequestContext {
    /// Refuses a model that this server does not have. An absent name is accepted.
    pub(crate) fn check_model(&self, model: Option<&str>) -> Result<(), ApiError> {
        match model {
            Some(model) if !self.model_names.iter().any(|name| name == model) => Err(ApiError::model_not_found(model)),
            _ => Ok(()),
        }
    }

    /// Refuses a text that is too long to be a prompt.
    pub(crate) fn check_prompt_bytes(&self, bytes: usize) -> Result<(), ApiError> {
        if bytes > self.max_prompt_bytes {
            return Err(ApiError::text_too_long(bytes, self.max_prompt_bytes, self.max_model_len));
        }
        Ok(())
    }

    /// How many tokens may be generated after a prompt of `prompt_tokens` (what is left of it after truncation):
    /// as many as were asked for, or all that fit if `None`, and never more than fit.
    ///
    /// # Errors
    /// 400 if not even one fits.
    pub fn tokens_to_generate(&self, prompt_tokens: usize, asked: Option<usize>) -> Result<usize, ApiError> {
        let room = self.max_model_len.saturating_sub(prompt_tokens);
        if room == 0 {
            return Err(ApiError::prompt_too_long(prompt_tokens, self.max_model_len));
        }
        Ok(asked.unwrap_or(room).min(room))
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A context with a vocabulary of 100 and room for 64 tokens.
    pub(crate) fn context() -> RequestContext {
        RequestContext {
            model_names: vec!["tiny".to_owned()],
            vocabulary: 100,
            max_model_len: 64,
            max_logprobs: LogprobCount::Top(20),
            defaults: SamplingParams::default(),
            max_prompt_bytes: 1 << 20,
            max_text_bytes: 4 << 20,
            trust_request_chat_template: false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_prompt_needs_room_for_one_token_and_more_is_clamped() {
        let context = testing::context();
        assert_eq!(context.tokens_to_generate(63, Some(9)), Ok(1));
        assert_eq!(context.tokens_to_generate(1, None), Ok(63));
        assert_eq!(context.tokens_to_generate(1, Some(5)), Ok(5));
        for length in [64, 65, usize::MAX] {
            let error = context.tokens_to_generate(length, None).unwrap_err();
            assert!(error.message().contains("maximum context length"), "{error}");
        }
    }
}
