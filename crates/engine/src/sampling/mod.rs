//! Choosing the next token of a request: its parameters, the filters over the distribution, and the draw.

mod error;
mod filters;
mod params;
mod sampler;
mod token_counts;

pub use error::SamplingError;
pub use params::{LogprobCount, SamplingParams, StructuredOutput};
pub(crate) use sampler::Sampler;
pub(crate) use token_counts::TokenCounts;
