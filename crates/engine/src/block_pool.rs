//! The free blocks of the paged KV cache.

/// Why blocks could not be given back. Both are bugs of the caller; the pool stays as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BlockPoolError {
    /// The block is free already, or occurs twice in the list.
    #[error("KV cache block {block} was given back twice (a bug in the scheduler)")]
    FreedTwice {
        /// The block's number.
        block: u32,
    },
    /// The pool has no such block.
    #[error("KV cache block {block} does not exist: the pool has {blocks} blocks (a bug in the scheduler)")]
    Unknown {
        /// The number given back.
        block: u32,
        /// The number of blocks of the pool.
        blocks: usize,
    },
}

/// Hands out the blocks of the paged KV cache, numbered from 0.
///
/// Every operation is deterministic: the same calls give the same blocks. A fresh pool hands out ascending numbers;
/// blocks that were given back are handed out again first, the latest first, because they are the likeliest to be in
/// a processor cache.
#[derive(Debug, Clone)]
pub(crate) struct BlockPool {
    /// The free blocks; the next one to hand out is the last.
    free: Vec<u32>,
    /// For each block, whether it is free.
    is_free: Vec<bool>,
}

impl BlockPool {
    /// A pool of `blocks` free blocks. It takes five bytes of memory per block, small beside the block itself.
    pub(crate) fn new(blocks: u32) -> Self {
        let free: Vec<u32> = (0..blocks).rev().collect();
        let is_free = vec![true; free.len()];
        Self { free, is_free }
    }

    /// Takes `count` blocks, or none at all if fewer are free.
    pub(crate) fn allocate(&mut self, count: usize) -> Option<Vec<u32>> {
        let rest = self.free.len().checked_sub(count)?;
        let mut blocks = self.free.split_off(rest);
        blocks.reverse();
        for &block in &blocks {
            if let Some(is_free) = self.slot(block) {
                *is_free = false;
            }
        }
        Some(blocks)
    }

    /// Gives `blocks` back.
    ///
    /// # Errors
    ///
    /// [`BlockPoolError`] if one of them is free already, occurs twice, or does not exist; then none is given back.
    pub(crate) fn free(&mut self, blocks: Vec<u32>) -> Result<(), BlockPoolError> {
        for (checked, &block) in blocks.iter().enumerate() {
            let error = match self.slot(block) {
                Some(is_free) if !*is_free => {
                    *is_free = true;
                    continue;
                }
                Some(_) => BlockPoolError::FreedTwice { block },
                None => BlockPoolError::Unknown { block, blocks: self.is_free.len() },
            };
            for &block in blocks.iter().take(checked) {
                if let Some(is_free) = self.slot(block) {
                    *is_free = false;
                }
            }
            return Err(error);
        }
        // Reversed, so that the next request gets the blocks of this one in their order.
        self.free.extend(blocks.into_iter().rev());
        Ok(())
    }

    /// How many blocks are free.
    #[cfg(test)]
    pub(crate) fn available(&self) -> usize {
        self.free.len()
    }

    fn slot(&mut self, block: u32) -> Option<&mut bool> {
        usize::try_from(block).ok().and_then(|block| self.is_free.get_mut(block))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_for_more_than_is_free_takes_nothing() {
        let mut pool = BlockPool::new(4);
        assert_eq!(pool.allocate(3), Some(vec![0, 1, 2]));
        assert_eq!(pool.allocate(2), None);
        assert_eq!(pool.allocate(usize::MAX), None);
        assert_eq!(pool.available(), 1);
        assert_eq!(pool.allocate(0), Some(vec![]));
        assert_eq!(pool.allocate(1), Some(vec![3]));
        assert_eq!(BlockPool::new(0).allocate(1), None);
    }

    #[test]
    fn blocks_given_back_are_the_next_ones_handed_out_in_the_same_order() {
        let mut pool = BlockPool::new(6);
        let first = pool.allocate(2).unwrap();
        let second = pool.allocate(2).unwrap();
        pool.free(first.clone()).unwrap();
        pool.free(second.clone()).unwrap();
        assert_eq!(pool.allocate(4).unwrap(), [second, first].concat());
    }

    #[test]
    fn a_block_given_back_wrongly_is_an_error_and_changes_nothing() {
        let mut pool = BlockPool::new(4);
        let blocks = pool.allocate(3).unwrap();
        assert_eq!(pool.free(vec![0, 1, 3]), Err(BlockPoolError::FreedTwice { block: 3 }));
        assert_eq!(pool.free(vec![0, 1, 0]), Err(BlockPoolError::FreedTwice { block: 0 }));
        assert_eq!(pool.free(vec![2, 4]), Err(BlockPoolError::Unknown { block: 4, blocks: 4 }));
        assert_eq!(pool.free(vec![u32::MAX]), Err(BlockPoolError::Unknown { block: u32::MAX, blocks: 4 }));
        assert_eq!(pool.available(), 1);
        assert_eq!(pool.free(blocks.clone()), Ok(()), "what failed before can still be given back");
        assert_eq!(pool.free(blocks), Err(BlockPoolError::FreedTwice { block: 0 }));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Allocate(usize),
        Free(usize),
    }

    proptest! {
        #[test]
        fn no_block_is_handed_out_twice_and_none_is_lost(
            blocks in 0u32..40,
            steps in proptest::collection::vec(
                prop_oneof![(0usize..12).prop_map(Step::Allocate), any::<usize>().prop_map(Step::Free)], 0..80,
            ),
        ) {
            let mut pool = BlockPool::new(blocks);
            let mut held: Vec<Vec<u32>> = Vec::new();
            for step in steps {
                match step {
                    Step::Allocate(count) => {
                        let available = pool.available();
                        let allocated = pool.allocate(count);
                        prop_assert_eq!(allocated.as_ref().map(Vec::len), (count <= available).then_some(count));
                        held.extend(allocated);
                    }
                    Step::Free(index) if !held.is_empty() => {
                        let index = index % held.len();
                        prop_assert_eq!(pool.free(held.swap_remove(index)), Ok(()));
                    }
                    Step::Free(_) => {}
                }
                let distinct: HashSet<u32> = held.iter().flatten().copied().collect();
                let handed_out = held.iter().map(Vec::len).sum::<usize>();
                prop_assert_eq!(distinct.len(), handed_out, "a block was handed out twice");
                prop_assert!(distinct.iter().all(|&block| block < blocks));
                prop_assert_eq!(handed_out + pool.available(), blocks as usize, "a block was lost");
            }
            for allocation in held {
                prop_assert_eq!(pool.free(allocation), Ok(()));
            }
            let mut all = pool.allocate(blocks as usize).unwrap();
            all.sort_unstable();
            prop_assert!(all.into_iter().eq(0..blocks));
        }
    }
}
