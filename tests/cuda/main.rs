//! The whole path on CUDA: checkpoints at every level and graph mode, on the emulator, or with `ALLOTROPE_TEST_DEVICE=cuda`
//! on the GPU of the machine.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bits;
mod recordings;
mod sampling;
mod serving;
