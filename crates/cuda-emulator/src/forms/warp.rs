//! What lanes of a warp do together: shuffles, votes, matches, reductions.

use super::{Form, form};
use crate::machine::{Block, Outcome, Warp};
use crate::program::{Instruction, NONE};

/// Where a lane reads, and whether that is inside its segment.
fn shuffle(warp: &mut Warp, i: &Instruction, mask: u32, source: impl Fn(u32, u32, u32, u32) -> (u32, bool)) -> Outcome {
    let a = warp.words[i.a as usize];
    let (b, c) = (warp.words[i.b as usize], warp.words[i.c as usize]);
    let mut result = [0; 32];
    let mut inside = 0;
    for lane in 0..32u32 {
        let control = c[lane as usize];
        let segment = control >> 8 & 31;
        let last = (lane & segment) | (control & 31 & !segment);
        let (from, valid) = source(lane, b[lane as usize] & 31, segment, last);
        let from = if valid { from & 31 } else { lane };
        result[lane as usize] = a[from as usize];
        inside |= u32::from(valid) << lane;
        let active = mask >> lane & 1 == 1;
        if active && mask >> from & 1 == 0 {
            let message = format!("shfl reads lane {from}, which does not take part");
            return Err(super::memory::operand_fault(lane as usize, message));
        }
    }
    warp.fill(i.d, mask, |lane| result[lane]);
    if i.d2 != NONE {
        warp.set(i.d2, mask, inside);
    }
    Ok(())
}

/// For each lane the others whose mask is the same, which is its group.
fn groups(warp: &Warp, i: &Instruction, mask: u32) -> [u32; 32] {
    let members = warp.words[i.member as usize];
    std::array::from_fn(|lane| members[lane] & mask)
}

fn reduce(warp: &mut Warp, i: &Instruction, mask: u32, function: impl Fn(u32, u32) -> u32) -> Outcome {
    let a = warp.words[i.a as usize];
    let groups = groups(warp, i, mask);
    let all = |group: u32| (0..32).filter(|lane| group >> lane & 1 == 1).map(|lane| a[lane]).reduce(&function);
    warp.fill(i.d, mask, |lane| all(groups[lane]).unwrap_or_default());
    Ok(())
}

fn vote(warp: &mut Warp, i: &Instruction, mask: u32, function: impl Fn(u32, u32) -> bool) -> Outcome {
    let a = warp.predicates[i.a as usize];
    let groups = groups(warp, i, mask);
    let bits = (0..32).fold(0, |bits, lane| bits | u32::from(function(a & groups[lane], groups[lane])) << lane);
    warp.set(i.d, mask, bits);
    Ok(())
}

fn equal_lanes(group: u32, lane: usize, values: impl Fn(usize) -> u64) -> u32 {
    let same = (0..32).filter(|other| group >> other & 1 == 1 && values(*other) == values(lane));
    same.fold(0, |bits, other| bits | 1 << other)
}

fn match_any(warp: &mut Warp, _: &mut Block<'_>, i: &Instruction, mask: u32) -> Outcome {
    let groups = groups(warp, i, mask);
    let a = warp.words[i.a as usize];
    warp.fill(i.d, mask, |lane| equal_lanes(groups[lane], lane, |other| u64::from(a[other])));
    Ok(())
}

fn match_any_wide(warp: &mut Warp, _: &mut Block<'_>, i: &Instruction, mask: u32) -> Outcome {
    let groups = groups(warp, i, mask);
    let a = warp.quads[i.a as usize];
    warp.fill(i.d, mask, |lane| equal_lanes(groups[lane], lane, |other| a[other]));
    Ok(())
}

fn match_all(warp: &mut Warp, _: &mut Block<'_>, i: &Instruction, mask: u32) -> Outcome {
    let groups = groups(warp, i, mask);
    let a = warp.words[i.a as usize];
    let same = |lane: usize| equal_lanes(groups[lane], lane, |other| u64::from(a[other])) == groups[lane];
    let bits = (0..32).filter(|lane| same(*lane)).fold(0, |bits, lane| bits | 1 << lane);
    warp.fill(i.d, mask, |lane| if bits >> lane & 1 == 1 { groups[lane] } else { 0 });
    if i.d2 != NONE {
        warp.set(i.d2, mask, bits);
    }
    Ok(())
}

/// Shuffles, votes, matches, reductions.
pub(super) const FORMS: &[Form] = &[
    form!("shfl.sync.bfly.b32", "Wwwwm", 0, Converge, |warp, _, i, mask| {
        shuffle(warp, i, mask, |lane, b, _, last| (lane ^ b, (lane ^ b) <= last))
    }),
    form!("shfl.sync.down.b32", "Wwwwm", 0, Converge, |warp, _, i, mask| {
        shuffle(warp, i, mask, |lane, b, _, last| (lane + b, lane + b <= last))
    }),
    form!("shfl.sync.up.b32", "Wwwwm", 0, Converge, |warp, _, i, mask| {
        // Its bound is the first lane of the segment: the control's low bits are zero.
        shuffle(warp, i, mask, |lane, b, _, last| (lane.wrapping_sub(b), lane >= b && lane - b >= last))
    }),
    form!("shfl.sync.idx.b32", "Wwwwm", 0, Converge, |warp, _, i, mask| {
        shuffle(warp, i, mask, |lane, b, segment, last| {
            let from = (lane & segment) | (b & !segment);
            (from, from <= last)
        })
    }),
    form!("vote.sync.ballot.b32", "wpm", 0, Converge, |warp, _, i, mask| {
        let groups = groups(warp, i, mask);
        let a = warp.predicates[i.a as usize];
        warp.fill(i.d, mask, |lane| a & groups[lane]);
        Ok(())
    }),
    form!("vote.sync.any.pred", "ppm", 0, Converge, |warp, _, i, mask| vote(warp, i, mask, |set, _| set != 0)),
    form!("vote.sync.all.pred", "ppm", 0, Converge, |warp, _, i, mask| vote(warp, i, mask, |set, all| set == all)),
    form!("vote.sync.uni.pred", "ppm", 0, Converge, |warp, _, i, mask| {
        vote(warp, i, mask, |set, all| set == all || set == 0)
    }),
    form!("activemask.b32", "w", |warp, _, i, mask| {
        warp.fill(i.d, mask, |_| mask);
        Ok(())
    }),
    form!("match.any.sync.b32", "wwm", 0, Converge, match_any),
    form!("match.any.sync.b64", "wqm", 0, Converge, match_any_wide),
    form!("match.all.sync.b32", "Wwm", 0, Converge, match_all),
    form!("redux.sync.add.s32|u32", "wwm", 0, Converge, |warp, _, i, mask| reduce(warp, i, mask, u32::wrapping_add)),
    form!("redux.sync.min.u32", "wwm", 0, Converge, |warp, _, i, mask| reduce(warp, i, mask, u32::min)),
    form!("redux.sync.max.u32", "wwm", 0, Converge, |warp, _, i, mask| reduce(warp, i, mask, u32::max)),
    form!("redux.sync.min.s32", "wwm", 0, Converge, |warp, _, i, mask| {
        reduce(warp, i, mask, |a, b| a.cast_signed().min(b.cast_signed()).cast_unsigned())
    }),
    form!("redux.sync.max.s32", "wwm", 0, Converge, |warp, _, i, mask| {
        reduce(warp, i, mask, |a, b| a.cast_signed().max(b.cast_signed()).cast_unsigned())
    }),
    form!("redux.sync.and.b32", "wwm", 0, Converge, |warp, _, i, mask| reduce(warp, i, mask, |a, b| a & b)),
    form!("redux.sync.or.b32", "wwm", 0, Converge, |warp, _, i, mask| reduce(warp, i, mask, |a, b| a | b)),
    form!("redux.sync.xor.b32", "wwm", 0, Converge, |warp, _, i, mask| reduce(warp, i, mask, |a, b| a ^ b)),
    form!("bar.warp.sync", "!m", 0, Converge, |_, _, _, _| Ok(())),
    form!("elect.sync", "Wm", 0, Converge, |warp, _, i, mask| {
        let leader = mask.trailing_zeros();
        warp.fill(i.d, mask, |_| leader);
        if i.d2 != NONE {
            warp.set(i.d2, mask, 1 << leader);
        }
        Ok(())
    }),
];
