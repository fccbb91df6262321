//! The binary as a person runs it, on the small chat model of the repository.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

mod bench_offline;
mod bench_serve;
mod chat;
mod chat_server;
mod complete;
#[cfg(target_os = "linux")]
mod cuda;
mod device;
mod explain;
mod generate;
mod graph;
mod json_schema;
mod logits;
mod prompts_file;
mod scripted_server;
mod settings;
mod support;
mod usage;
