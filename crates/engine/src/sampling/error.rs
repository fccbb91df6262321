//! What can go wrong while choosing a token.

use crate::structured::StructuredOutputError;

/// Why sampling parameters were refused, or why no token could be chosen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// The request's fault: a parameter lies outside its range.
    #[error("sampling parameter `{name}` is {found}, but must be {allowed}")]
    Parameter {
        /// The field of [`SamplingParams`](super::SamplingParams).
        name: &'static str,
        /// The value found, as text.
        found: String,
        /// The accepted values, in words.
        allowed: String,
    },
    /// The model's fault, or a kernel's: a logit is NaN or positive infinity. No token is chosen from such a row.
    #[error(
        "the logit of token {token} is {value}: the weights of the checkpoint hold NaN or infinity, or a computation overflowed; no token can be chosen"
    )]
    Logit {
        /// The first token id with such a logit.
        token: usize,
        /// The logit.
        value: f32,
    },
    /// The request's fault: together its parameters allow no token.
    #[error(
        "no token can be chosen: allowed_token_ids, logit_bias, bad_words, min_tokens and the structured output together allow none"
    )]
    Masked,
    /// A bug of the caller: there is nothing to choose from, because the row is empty or every logit is negative
    /// infinity.
    #[error("no token can be chosen: none of the {vocabulary} logits is finite")]
    NoCandidate {
        /// The number of logits in the row.
        vocabulary: usize,
    },
    /// A bug of the caller: the row has no such token.
    #[error("token {token} has no logit: the row has {vocabulary}")]
    Token {
        /// The token id.
        token: u32,
        /// The number of logits in the row.
        vocabulary: usize,
    },
    /// The grammar of a structured output can't say which tokens may follow.
    #[error("the structured output can't go on: {0}")]
    Grammar(#[from] StructuredOutputError),
}
