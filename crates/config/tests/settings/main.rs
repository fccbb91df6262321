//! Tests of the settings through the crate's public face.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop at a surprise")]

mod command_line;
mod documents;
mod facts;
mod hostile;
mod layers;
mod limits;
mod parity;
mod properties;
mod snapshots;
