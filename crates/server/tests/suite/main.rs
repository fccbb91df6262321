//! The server over real sockets, in front of an engine that plays what a test wants.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

mod chat;
mod completions;
mod engine_faults;
mod lifecycle;
mod real_engine;
mod routes;
mod security;
mod support;
mod transport;
