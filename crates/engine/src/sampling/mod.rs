//! Choosing the next token of a request: its parameters, the filters over the distribution, and the draw.

mod edits;
mod error;
mod filters;
mod logprobs;
mod params;
mod row;
mod sampler;
mod token_counts;
mod validate;

pub use error::SamplingError;
pub use logprobs::TokenLogprobs;
pub use params::{LogprobCount, SamplingParams, StructuredOutput};
pub use sampler::{SampledToken, Sampler, SamplingContext, SamplingScratch};
pub use token_counts::TokenCounts;
pub use validate::DEFAULT_MAX_LOGPROBS;
pub(crate) use validate::validate_structured_output;
