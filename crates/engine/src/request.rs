//! What goes into the engine and what comes out.

use std::sync::Arc;
use std::time::Duration;

use allotrope_model::Message;

use crate::client::PromptReport;
use crate::sampling::{SamplingParams, TokenLogprobs};
use crate::structured::Grammar;

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

/// What ended an answer, where it was asked for by the request.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum StopReason {
    /// A token of `stop_token_ids`.
    Token(u32),
    /// A string of `stop`.
    String(String),
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The text, without special tokens and stop strings.
    pub text: String,
    /// The token ids, the one that ended the answer included.
    pub tokens: Vec<u32>,
    /// For each token its probability and the likeliest others; empty if not asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What of the request ended it, if anything did.
    pub stop_reason: Option<StopReason>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of them were in the prefix cache.
    pub cached_tokens: usize,
    /// For each token of the prompt its probability, `None` for the first; empty if not asked for.
    pub prompt_logprobs: Vec<Option<TokenLogprobs>>,
    /// From arrival to the request's first step.
    pub queued: Duration,
    /// From the request's first step to its first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
    /// From each token to the next: one fewer than there are tokens.
    pub inter_token: Vec<Duration>,
}

/// The next part of an answer that is streamed.
#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    /// Which of the `n` answers to the prompt, from 0.
    pub index: usize,
    /// Text that is now certain; may be empty while a character or a possible stop string is incomplete.
    pub text: String,
    /// The token.
    pub token: u32,
    /// Its probability and the likeliest others, if asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// Set with the last token.
    pub finish_reason: Option<FinishReason>,
    /// Set with the last token if something of the request ended the answer.
    pub stop_reason: Option<StopReason>,
    /// With the first token.
    pub prompt: Option<Box<PromptReport>>,
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

/// A request as the engine takes it: token ids in, and what ends it.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    /// The prompt; not empty.
    pub prompt: Arc<[u32]>,
    /// How tokens are chosen; several requests may share it. Its strings mean nothing to the engine, and `seed` is what seeds.
    pub params: Arc<SamplingParams>,
    /// Seeds the request's random numbers.
    pub seed: u64,
    /// Tokens to generate at most; at least 1, and with the prompt no more than the context.
    pub max_tokens: usize,
    /// Tokens that end the answer, other than `stop_token_ids`.
    pub end_tokens: Arc<[u32]>,
    /// `bad_words`, as tokens.
    pub bad_words: Arc<[Vec<u32>]>,
    /// What the output must be, compiled from `params`.
    pub grammar: Option<Grammar>,
    /// Lower is more urgent, where the scheduler asks for it.
    pub priority: i64,
    /// Requests of different salts share nothing in the prefix cache.
    pub cache_salt: Option<Arc<str>>,
}
