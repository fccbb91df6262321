//! `allotrope serve` as people run it: a process, its signals, and clients over the network.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod documents;
mod faults;
mod gpu_faults;
mod process;
mod soak;
