//! The blocks of the paged KV cache: who holds them, which are free, and what the free ones still hold.
//!
//! A full block has a name ([`BlockHash`]) by which later sequences find it: they share it while others hold it, and take
//! it back from the free ones while nothing has overwritten it. Free blocks lie in a doubly linked list, so that one is taken from
//! its middle in constant time; the head is handed out next. Blocks without a name go to the head, as nothing is lost with
//! them; named ones go to the tail, the end of a sequence before its beginning, so that what has not been used for longest goes
//! first, and long prefixes are eaten from their ends.

mod hash;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

pub(crate) use hash::BlockHash;

/// No block: the end of the list.
const NONE: u32 = u32::MAX;

/// Why blocks could not be given back or named. All are bugs of the caller; the pool stays as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BlockPoolError {
    /// Nobody holds the block as often as it is given back.
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
    /// A block that nobody holds can't get a name.
    #[error("KV cache block {block} is free and can't get a name (a bug in the scheduler)")]
    NamedFree {
        /// The block's number.
        block: u32,
    },
}

/// One block.
#[derive(Debug, Clone)]
struct Block {
    /// How many sequences hold it; free at 0.
    references: u32,
    name: Option<BlockHash>,
    /// Neighbours in the list of free blocks; meaningless while it is held.
    previous: u32,
    next: u32,
}

/// Hands out the blocks of the paged KV cache, numbered from 0.
///
/// Every operation is deterministic: the same calls give the same blocks.
#[derive(Debug, Clone)]
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    head: u32,
    tail: u32,
    free: usize,
    /// The blocks of a name; more than one where sequences computed the same at the same time.
    named: HashMap<BlockHash, Vec<u32>>,
    /// Grows with everything that may let a request find or take more than before.
    changes: u64,
}

impl BlockPool {
    /// A pool of `blocks` free blocks without names. It takes about 60 bytes of memory per block, small beside the block itself.
    pub(crate) fn new(blocks: u32) -> Self {
        let mut pool = BlockPool {
            blocks: vec![Block { references: 0, name: None, previous: NONE, next: NONE }; blocks as usize],
            head: NONE,
            tail: NONE,
            free: 0,
            named: HashMap::new(),
            changes: 0,
        };
        (0..blocks).for_each(|block| pool.push_back(block));
        pool
    }

    /// Blocks that there are.
    pub(crate) fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody holds.
    pub(crate) fn available(&self) -> usize {
        self.free
    }

    /// A number that stays the same while what a request finds and whether it is served stays the same.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// The longest run of blocks that hold the beginning of a sequence with these names, at most one for each.
    pub(crate) fn find(&self, names: &[BlockHash]) -> Vec<u32> {
        let block = |name: &BlockHash| self.named.get(name).and_then(|blocks| blocks.first()).copied();
        names.iter().map_while(block).collect()
    }

    /// Takes the blocks of `found`, which [`BlockPool::find`] gave just now, and `count` more; or none at all if fewer are free.
    /// The new ones lose their names.
    pub(crate) fn take(&mut self, found: &[u32], count: usize) -> Option<Vec<u32>> {
        let idle = |block: &&u32| self.blocks.get(**block as usize).is_some_and(|block| block.references == 0);
        let revived = found.iter().filter(idle).count();
        if self.free.checked_sub(revived)? < count {
            return None;
        }
        let mut taken = Vec::with_capacity(found.len() + count);
        for block in found {
            if self.blocks[*block as usize].references == 0 {
                self.unlink(*block);
            }
            self.blocks[*block as usize].references += 1;
            taken.push(*block);
        }
        for _ in 0..count {
            let block = self.head;
            self.unlink(block);
            self.forget_name(block);
            self.blocks[block as usize].references = 1;
            taken.push(block);
        }
        Some(taken)
    }

    /// Gives a held block its name, by which it is found from now on. A block that has one keeps it.
    ///
    /// # Errors
    /// If there is no such block or nobody holds it.
    pub(crate) fn name(&mut self, block: u32, name: BlockHash) -> Result<(), BlockPoolError> {
        let blocks = self.blocks.len();
        let held = self.blocks.get_mut(block as usize).ok_or(BlockPoolError::Unknown { block, blocks })?;
        if held.references == 0 {
            return Err(BlockPoolError::NamedFree { block });
        }
        if held.name.is_none() {
            held.name = Some(name);
            self.named.entry(name).or_default().push(block);
            self.changes += 1;
        }
        Ok(())
    }

    /// Gives the blocks of one sequence back, in the order of their positions.
    ///
    /// # Errors
    /// [`BlockPoolError`] if one of them is not held, occurs twice, or does not exist; then none is given back.
    pub(crate) fn release(&mut self, blocks: &[u32]) -> Result<(), BlockPoolError> {
        for (checked, block) in blocks.iter().enumerate() {
            let error = match self.blocks.get_mut(*block as usize) {
                Some(held) if held.references > 0 => {
                    held.references -= 1;
                    continue;
                }
                Some(_) => BlockPoolError::FreedTwice { block: *block },
                None => BlockPoolError::Unknown { block: *block, blocks: self.blocks.len() },
            };
            for block in &blocks[..checked] {
                self.blocks[*block as usize].references += 1;
            }
            return Err(error);
        }
        self.changes += 1;
        for block in blocks.iter().rev() {
            let released = &self.blocks[*block as usize];
            match (released.references, released.name) {
                (0, Some(_)) => self.push_back(*block),
                (0, None) => self.push_front(*block),
                _ => {}
            }
        }
        Ok(())
    }

    /// Forgets what all blocks hold, those that are held among them.
    pub(crate) fn forget_all(&mut self) {
        self.named.clear();
        self.blocks.iter_mut().for_each(|block| block.name = None);
    }

    fn forget_name(&mut self, block: u32) {
        let Some(name) = self.blocks[block as usize].name.take() else { return };
        if let Some(blocks) = self.named.get_mut(&name) {
            blocks.retain(|other| *other != block);
            if blocks.is_empty() {
                self.named.remove(&name);
            }
        }
    }

    fn push_back(&mut self, block: u32) {
        let last = self.tail;
        (self.blocks[block as usize].previous, self.blocks[block as usize].next) = (last, NONE);
        match last {
            NONE => self.head = block,
            last => self.blocks[last as usize].next = block,
        }
        self.tail = block;
        self.free += 1;
    }

    fn push_front(&mut self, block: u32) {
        let first = self.head;
        (self.blocks[block as usize].previous, self.blocks[block as usize].next) = (NONE, first);
        match first {
            NONE => self.tail = block,
            first => self.blocks[first as usize].previous = block,
        }
        self.head = block;
        self.free += 1;
    }

    fn unlink(&mut self, block: u32) {
        let Block { previous, next, .. } = self.blocks[block as usize];
        match previous {
            NONE => self.head = next,
            previous => self.blocks[previous as usize].next = next,
        }
        match next {
            NONE => self.tail = previous,
            next => self.blocks[next as usize].previous = previous,
        }
        self.free -= 1;
    }
}
