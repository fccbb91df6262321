//! Allotrope as a library: load a checkpoint once, answer many prompts.
//!
//! ```no_run
//! use allotrope_engine::{Llm, OptimizationLevel, Prompt, SamplingParams};
//!
//! let mut llm = Llm::builder("tests/models/tiny-chat").optimization_level(OptimizationLevel::O2).build()?;
//! for part in llm.stream(&Prompt::from("Once upon a time"), &SamplingParams::greedy())? {
//!     print!("{}", part?.text);
//! }
//! # Ok::<(), allotrope_engine::EngineError>(())
//! ```

mod answer;
mod block_pool;
mod device;
mod dump;
mod engine_core;
mod error;
mod llm;
mod output;
mod plan;
mod request;
mod sampling;
mod scheduler;
mod stream;
mod structured;

pub use allotrope_config::OptimizationLevel;
pub use allotrope_graph as graph;
pub use allotrope_graph::memory::MemoryPlan;
pub use allotrope_model::Message;

pub use engine_core::Throughput;
pub use error::EngineError;
pub use llm::{Llm, LlmBuilder, Statistics};
pub use plan::Plan;
pub use request::{Completion, Delta, FinishReason, Prompt, TokenLogits};
pub use sampling::{
    DEFAULT_MAX_LOGPROBS, LogprobCount, SampledToken, Sampler, SamplingContext, SamplingError, SamplingParams,
    SamplingScratch, StructuredOutput, TokenCounts, TokenLogprobs,
};
pub use stream::CompletionStream;
pub use structured::{Grammar, GrammarCompiler, GrammarMatcher, StructuredOutputError};
