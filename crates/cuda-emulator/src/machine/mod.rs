//! The machine: grids of blocks of warps of 32 lanes, and what they can see of memory.

mod block;
mod fault;
mod grid;
pub mod memory;
mod random;
mod schedule;
pub mod shared;
mod warp;

pub use block::{Block, Dimensions, Place, Waiter};
pub use fault::{Fault, FaultKind, Outcome, Report};
pub use grid::{Counts, Launch, run};
pub use memory::{LOCAL_WINDOW, SHARED_WINDOW};
pub use random::Random;
pub use warp::{Copy, Fragment, Quads, State, Warp, Words};
