//! Barriers of a block. Arriving is noted here; the schedule lets the threads go on.

use super::memory::operand_fault;
use super::{Form, form};
use crate::machine::{Block, Outcome, Waiter, Warp};
use crate::program::{Instruction, NONE};

/// What an arrival brings.
#[derive(Clone, Copy)]
struct Arrival {
    number: u32,
    threads: u32,
    predicate: u32,
    waits: bool,
}

fn arrive(warp: &mut Warp, block: &mut Block<'_>, i: &Instruction, mask: u32, arrival: Arrival) -> Outcome {
    let lane = mask.trailing_zeros() as usize;
    let value = |register: u32| if register == NONE { 0 } else { warp.words[register as usize][lane] };
    let (number, threads) = (value(arrival.number), value(arrival.threads));
    let limit = block.dimensions.threads_of_block().next_multiple_of(32);
    let Some(barrier) = block.barriers.get_mut(number as usize) else {
        return Err(operand_fault(lane, format!("barrier {number}; there are 16")));
    };
    if !threads.is_multiple_of(32) || threads > limit {
        return Err(operand_fault(
            lane,
            format!("a barrier for {threads} threads: no multiple of 32, or more than there are"),
        ));
    }
    if barrier.arrived > 0 && barrier.wanted != threads {
        let wanted = barrier.wanted;
        return Err(operand_fault(
            lane,
            format!("barrier {number} for {threads} threads, where others wait for {wanted}"),
        ));
    }
    if barrier.arrived == 0 {
        (barrier.wanted, barrier.all) = (threads, true);
    }
    // A barrier with a count counts warps: all lanes of one are there, also if the block ends in the middle of it.
    barrier.arrived += if threads > 0 && mask == warp.alive { 32 } else { mask.count_ones() };
    if arrival.predicate != NONE {
        let predicate = warp.predicates[arrival.predicate as usize] & mask;
        barrier.count += predicate.count_ones();
        barrier.all &= predicate == mask;
    }
    if arrival.waits {
        let place = i.index;
        barrier.waiting.push(Waiter { warp: warp.index, mask, place });
    } else {
        barrier.passed.push(warp.index);
    }
    Ok(())
}

fn wait(warp: &mut Warp, block: &mut Block<'_>, i: &Instruction, mask: u32) -> Outcome {
    arrive(warp, block, i, mask, Arrival { number: i.d, threads: i.a, predicate: NONE, waits: true })
}

fn pass(warp: &mut Warp, block: &mut Block<'_>, i: &Instruction, mask: u32) -> Outcome {
    arrive(warp, block, i, mask, Arrival { number: i.d, threads: i.a, predicate: NONE, waits: false })
}

/// `d, barrier, predicate`.
fn reduce(warp: &mut Warp, block: &mut Block<'_>, i: &Instruction, mask: u32) -> Outcome {
    arrive(warp, block, i, mask, Arrival { number: i.a, threads: NONE, predicate: i.b, waits: true })
}

/// Barriers.
pub(super) const FORMS: &[Form] = &[
    form!("bar.cta?.sync", "!w?w", 0, Barrier, wait),
    form!("bar.cta?.arrive", "!ww", 0, Plain, pass),
    form!("barrier.cta?.sync.aligned?", "!w?w", 0, Barrier, wait),
    form!("barrier.cta?.arrive.aligned?", "!ww", 0, Plain, pass),
    form!("bar.cta?.red.popc.u32", "wwp", 0, Barrier, reduce),
    form!("bar.cta?.red.and.pred", "pwp", 0, Barrier, reduce),
    form!("bar.cta?.red.or.pred", "pwp", 0, Barrier, reduce),
    form!("barrier.cta?.red.popc.aligned?.u32", "wwp", 0, Barrier, reduce),
    form!("barrier.cta?.red.and.aligned?.pred", "pwp", 0, Barrier, reduce),
    form!("barrier.cta?.red.or.aligned?.pred", "pwp", 0, Barrier, reduce),
];
