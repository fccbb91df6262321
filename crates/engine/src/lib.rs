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
mod async_llm;
mod block_pool;
mod client;
mod device;
mod dump;
mod engine_core;
mod engine_thread;
mod error;
mod live;
mod llm;
mod loaded;
mod output;
mod plan;
mod request;
mod sampling;
mod scheduler;
mod status;
mod stream;
mod structured;
mod text;

pub use allotrope_config::OptimizationLevel;
pub use allotrope_graph as graph;
pub use allotrope_graph::memory::MemoryPlan;
pub use allotrope_model::Message;
pub use allotrope_runtime::TuningReport;

pub use async_llm::{AnswerStream, AsyncLlm, ModelInfo};
pub use client::{
    Closed, Command, EngineClient, EngineInbox, Finish, PromptReport, QueueLimits, RequestFailure, Submission,
    SubmitError, TokenEvent, TokenOutput, TokenReceiver, channel,
};
pub use engine_core::Throughput;
pub use error::EngineError;
pub use llm::{Llm, LlmBuilder};
pub use loaded::Statistics;
pub use plan::Plan;
pub use request::{Completion, Delta, FinishReason, Prompt, StopReason, TokenLogits, TokenRequest};
pub use sampling::{
    DEFAULT_MAX_LOGPROBS, LogprobCount, SampledToken, Sampler, SamplingContext, SamplingError, SamplingParams,
    SamplingScratch, StructuredOutput, TokenCounts, TokenLogprobs,
};
pub use status::{EngineState, EngineStatus, STEP_TOKEN_BOUNDS};
pub use stream::CompletionStream;
pub use structured::{Grammar, GrammarCompiler, GrammarMatcher, StructuredOutputError};
pub use text::{RequestMaker, TextModel};
