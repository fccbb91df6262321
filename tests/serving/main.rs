//! The engine as servers use it: many requests at once, of which each gets the answer that it gets alone, whatever happens to
//! the others.
#![allow(clippy::unwrap_used)]

mod async_llm;
mod company;

use std::hash::{BuildHasher, RandomState};

/// Random numbers from a seed that failures name (SplitMix64, Steele et al. 2014).
pub(crate) struct Random {
    pub(crate) seed: u64,
    state: u64,
}

impl Random {
    /// Other numbers in each run.
    pub(crate) fn fresh() -> Self {
        let seed = RandomState::new().hash_one(0);
        Random { seed, state: seed }
    }

    /// The next number, below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}
