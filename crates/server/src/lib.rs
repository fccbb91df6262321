//! The OpenAI-compatible HTTP server in front of the engine.

pub mod protocol;
pub mod tools;
