//! Tests of the block pool: nothing leaks, and blocks are shared by what they hold alone.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn names(tokens: &[u32]) -> Vec<BlockHash> {
    let mut last = BlockHash::root(None);
    let name = |token: &u32| {
        last = last.then(&[*token]);
        last
    };
    tokens.iter().map(name).collect()
}

/// Takes blocks for a sequence with one token in each block, names them, and gives them.
fn run(pool: &mut BlockPool, tokens: &[u32]) -> (Vec<u32>, usize) {
    let names = names(tokens);
    let found = pool.find(&names);
    let blocks = pool.take(&found, tokens.len() - found.len()).unwrap();
    blocks.iter().zip(names).for_each(|(block, name)| pool.name(*block, name).unwrap());
    (blocks, found.len())
}

#[test]
fn a_request_for_more_than_is_free_takes_nothing() {
    let mut pool = BlockPool::new(4);
    assert_eq!(pool.take(&[], 3), Some(vec![0, 1, 2]));
    assert_eq!(pool.take(&[], 2), None);
    assert_eq!(pool.take(&[], usize::MAX), None);
    assert_eq!(pool.available(), 1);
    assert_eq!(pool.take(&[], 0), Some(vec![]));
    assert_eq!(pool.take(&[], 1), Some(vec![3]));
    assert_eq!(BlockPool::new(0).take(&[], 1), None);
}

#[test]
fn nameless_blocks_given_back_are_the_next_ones_handed_out_in_the_same_order() {
    let mut pool = BlockPool::new(6);
    let first = pool.take(&[], 2).unwrap();
    let second = pool.take(&[], 2).unwrap();
    pool.release(&first).unwrap();
    pool.release(&second).unwrap();
    assert_eq!(pool.take(&[], 4).unwrap(), [second, first].concat());
}

#[test]
fn a_beginning_that_is_known_is_shared_while_held_and_taken_back_while_free() {
    let mut pool = BlockPool::new(8);
    let (first, _) = run(&mut pool, &[1, 2, 3]);
    let (second, shared) = run(&mut pool, &[1, 2, 4]);
    assert_eq!((shared, &second[..2]), (2, &first[..2]));
    assert_eq!(pool.available(), 4);
    pool.release(&first).unwrap();
    pool.release(&second).unwrap();
    assert_eq!(pool.available(), 8);
    let (third, found) = run(&mut pool, &[1, 2, 4, 5]);
    assert_eq!((found, &third[..3]), (3, &second[..]));
    assert_eq!(run(&mut pool, &[2, 4]).1, 0, "a block is known by all tokens before it");
}

#[test]
fn blocks_found_are_not_evicted_by_the_same_request() {
    let mut pool = BlockPool::new(3);
    let (blocks, _) = run(&mut pool, &[1, 2]);
    pool.release(&blocks).unwrap();
    let found = pool.find(&names(&[1, 2, 3, 4]));
    assert_eq!(found.len(), 2);
    assert_eq!(pool.take(&found, 2), None, "one block is free beside the two that were found");
    assert_eq!(pool.available(), 3);
    assert_eq!(pool.take(&found, 1).unwrap().len(), 3);
}

#[test]
fn the_oldest_is_evicted_first_and_the_end_of_a_sequence_before_its_beginning() {
    let mut pool = BlockPool::new(4);
    let (old, _) = run(&mut pool, &[1, 2]);
    let (new, _) = run(&mut pool, &[3, 4]);
    pool.release(&old).unwrap();
    pool.release(&new).unwrap();
    assert_eq!(pool.take(&[], 1).unwrap(), [old[1]]);
    assert_eq!(pool.find(&names(&[1, 2])), [old[0]]);
    assert_eq!(pool.find(&names(&[3, 4])), new);
    assert_eq!(pool.take(&[], 2).unwrap(), [old[0], new[1]]);
    assert!(pool.find(&names(&[1])).is_empty());
}

#[test]
fn what_was_computed_twice_stays_until_each_is_evicted() {
    let mut pool = BlockPool::new(4);
    let name = names(&[1])[0];
    let blocks = pool.take(&[], 2).unwrap();
    blocks.iter().for_each(|block| pool.name(*block, name).unwrap());
    pool.release(&blocks[..1]).unwrap();
    assert_eq!(pool.take(&[], 3).unwrap().len(), 3, "the free one is evicted");
    assert_eq!(pool.find(&[name]), [blocks[1]]);
}

#[test]
fn what_is_known_can_be_forgotten_while_blocks_are_held() {
    let mut pool = BlockPool::new(4);
    let (blocks, _) = run(&mut pool, &[1, 2]);
    pool.forget_all();
    assert!(pool.find(&names(&[1, 2])).is_empty());
    pool.release(&blocks).unwrap();
    assert_eq!(pool.available(), 4);
    assert!(pool.find(&names(&[1, 2])).is_empty());
}

#[test]
fn a_block_given_back_or_named_wrongly_is_an_error_and_changes_nothing() {
    let mut pool = BlockPool::new(4);
    let blocks = pool.take(&[], 3).unwrap();
    assert_eq!(pool.release(&[0, 1, 3]), Err(BlockPoolError::FreedTwice { block: 3 }));
    assert_eq!(pool.release(&[0, 1, 0]), Err(BlockPoolError::FreedTwice { block: 0 }));
    assert_eq!(pool.release(&[2, 4]), Err(BlockPoolError::Unknown { block: 4, blocks: 4 }));
    assert_eq!(pool.release(&[u32::MAX]), Err(BlockPoolError::Unknown { block: u32::MAX, blocks: 4 }));
    assert_eq!(pool.name(3, BlockHash::root(None)), Err(BlockPoolError::NamedFree { block: 3 }));
    assert_eq!(pool.available(), 1);
    assert_eq!(pool.release(&blocks), Ok(()), "what failed before can still be given back");
    assert_eq!(pool.release(&blocks), Err(BlockPoolError::FreedTwice { block: 0 }));
}

#[derive(Debug, Clone)]
enum Step {
    Run(Vec<u32>),
    Take(usize),
    Release(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        // Few different tokens, so that beginnings are shared.
        4 => proptest::collection::vec(0u32..2, 0..8).prop_map(Step::Run),
        1 => (0usize..6).prop_map(Step::Take),
        4 => any::<usize>().prop_map(Step::Release),
    ]
}

proptest! {
    /// Each held block is counted as often as sequences hold it, free and held blocks are all, and a block is in two sequences only
    /// by its name.
    #[test]
    fn nothing_leaks_and_blocks_are_shared_only_by_name(
        blocks in 0u32..24, steps in proptest::collection::vec(step(), 0..120),
    ) {
        let mut pool = BlockPool::new(blocks);
        let mut held: Vec<(Vec<u32>, Vec<BlockHash>)> = Vec::new();
        for step in steps {
            match step {
                Step::Run(tokens) => {
                    let names = names(&tokens);
                    let found = pool.find(&names);
                    let (free, idle) = (pool.available(), found.iter().filter(|block| !held.iter().any(|(blocks, _)| blocks.contains(block))).count());
                    let wanted = tokens.len() - found.len();
                    let taken = pool.take(&found, wanted);
                    prop_assert_eq!(taken.is_some(), free - idle >= wanted);
                    let Some(taken) = taken else { continue };
                    prop_assert_eq!(&taken[..found.len()], &found[..]);
                    for (block, name) in taken.iter().zip(&names) {
                        prop_assert_eq!(pool.name(*block, *name), Ok(()));
                    }
                    held.push((taken, names));
                }
                Step::Take(count) => {
                    let free = pool.available();
                    let taken = pool.take(&[], count);
                    prop_assert_eq!(taken.is_some(), count <= free);
                    held.extend(taken.map(|blocks| (blocks, Vec::new())));
                }
                Step::Release(index) if !held.is_empty() => {
                    let (blocks, _) = held.swap_remove(index % held.len());
                    prop_assert_eq!(pool.release(&blocks), Ok(()));
                }
                Step::Release(_) => {}
            }
            let mut holders: HashMap<u32, Vec<Option<BlockHash>>> = HashMap::new();
            for (blocks, names) in &held {
                for (place, block) in blocks.iter().enumerate() {
                    holders.entry(*block).or_default().push(names.get(place).copied());
                }
            }
            prop_assert_eq!(holders.len() + pool.available(), blocks as usize, "a block was lost");
            for (block, names) in &holders {
                prop_assert_eq!(pool.blocks[*block as usize].references as usize, names.len());
                prop_assert!(names.len() == 1 || (names[0].is_some() && names.iter().all(|name| *name == names[0])));
            }
        }
        for (blocks, _) in held {
            prop_assert_eq!(pool.release(&blocks), Ok(()));
        }
        let mut all = pool.take(&[], blocks as usize).unwrap();
        all.sort_unstable();
        prop_assert!(all.into_iter().eq(0..blocks));
        prop_assert!(pool.named.is_empty(), "names of evicted blocks are forgotten");
    }
}
