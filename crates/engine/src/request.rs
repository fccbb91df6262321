//! What goes into the engine and what comes out.

use std::time::Duration;

use allotrope_model::Message;

use crate::sampling::SamplingParams;

/// A prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Text, tokenized with the special tokens that the tokenizer adds by itself.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
    /// A conversation, put into the checkpoint's chat template with the opening of an answer.
    Chat(Vec<Message>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Prompt::Text(text.to_string())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Prompt::Text(text)
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended it, or a stop string did.
    Stop,
    /// `max_tokens` or the context length was reached.
    Length,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The text, without special tokens and stop strings.
    pub text: String,
    /// The token ids, the one that ended the answer included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// From the request's first step to its first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// The next part of an answer that is streamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// Text that is now certain; may be empty while a character or a possible stop string is incomplete.
    pub text: String,
    /// The token.
    pub token: u32,
    /// Set with the last token.
    pub finish_reason: Option<FinishReason>,
}

/// The logits of a prompt and of a greedy continuation.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogits {
    /// `[prompt tokens, vocabulary]`, row-major.
    pub prompt: Vec<f32>,
    /// The tokens of the greedy continuation.
    pub tokens: Vec<u32>,
    /// `[tokens, vocabulary]`: the logits that each token was picked from.
    pub steps: Vec<f32>,
    /// The vocabulary's size.
    pub vocabulary: usize,
}

/// A request as the engine core takes it: token ids in, and what ends it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) prompt: Vec<u32>,
    pub(crate) params: SamplingParams,
    /// Tokens to generate at most; at least 1.
    pub(crate) max_tokens: usize,
    /// Tokens that end the answer.
    pub(crate) end_tokens: Vec<u32>,
}
