//! What goes over the wire, without the wire: request bodies to typed requests, answers to JSON, and every error.
//!
//! Shapes, defaults and names are those of vLLM's OpenAI-compatible server. Where its frontends disagree about a bad
//! request, the stricter answer is taken. Unknown fields are ignored; a `null` counts as absent.

pub mod chat;
pub mod completion;
mod context;
pub mod error;
mod fields;
pub mod identifiers;
pub mod json;
pub mod logprobs;
mod options;
pub mod response;
mod sampling;
pub mod sse;
mod structured;
pub mod tokenize;

pub use context::RequestContext;
pub use error::ApiError;
pub(crate) use error::for_log;
pub use options::{RequestOptions, StreamOptions};

/// The most prompts of one request.
pub const MAX_PROMPTS: usize = 1024;
/// The most answers to one prompt.
pub const MAX_ANSWERS: usize = 128;
/// The most answers that one request may ask for: prompts times answers to each.
pub const MAX_SEQUENCES: usize = 4096;
/// The most messages of one conversation.
pub const MAX_MESSAGES: usize = 4096;
/// The most tools of one request, and the most calls of one message.
pub const MAX_TOOLS: usize = 128;
/// Levels of nesting in a JSON schema.
pub const MAX_SCHEMA_DEPTH: usize = 64;
/// Levels of nesting in the schema of a tool's parameters, which is put into another schema where calls are forced.
pub const MAX_PARAMETERS_DEPTH: usize = 56;
