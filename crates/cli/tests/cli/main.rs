//! The binary as a person runs it, on the small chat model of the repository.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

mod chat;
#[cfg(target_os = "linux")]
mod cuda;
mod device;
mod explain;
mod generate;
mod graph;
mod json_schema;
mod logits;
mod prompts_file;
mod settings;
mod support;
mod usage;
