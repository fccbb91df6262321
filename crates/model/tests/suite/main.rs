//! What a caller of `allotrope-model` notices: good checkpoints are read exactly, bad ones are refused with a message that
//! names file and field, and nothing panics.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't set itself up should stop")]

mod chat;
mod checkpoints;
mod config;
mod conversation;
mod dummy;
mod quantization;
mod rope;
mod token_stream;
mod tokenizer;
mod weights;
