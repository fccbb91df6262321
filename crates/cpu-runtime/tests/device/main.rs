//! The CPU device: the suite that every device must pass, on every instruction-set path, and what is the CPU's alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

mod conformance;
mod describe;
mod hostile;
mod in_place;
mod target;
