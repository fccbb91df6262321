//! Who runs next: lanes of a warp, warps of a block, in a random order from the seed.

use super::block::{Barrier, Block, Waiter};
use super::fault::{Fault, FaultKind, Outcome};
use super::random::Random;
use super::warp::{Fragment, State, Warp};
use crate::program::{Control, Instruction, Kernel, NONE};

/// The most instructions that a warp runs before another has its turn.
const SLICE: usize = 256;

/// One slice in so many goes to any lanes that can run instead of those that are furthest behind, so that lanes which
/// wait for others in a loop do not wait for ever.
const STRAY: usize = 16;

/// What came of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The warp can go on.
    Ready,
    /// All its lanes wait or are done.
    Blocked,
}

/// A fault at an instruction of a warp.
pub(super) struct Located {
    pub(super) fault: Box<Fault>,
    pub(super) warp: u32,
    pub(super) place: u32,
}

/// Runs a warp for a while.
pub(super) fn slice(
    warp: &mut Warp,
    block: &mut Block<'_>,
    kernel: &Kernel,
    random: &mut Random,
) -> Result<Progress, Located> {
    let mut budget = 1 + random.below(SLICE);
    let mut stray = random.below(STRAY) == 0;
    while budget > 0 {
        merge(warp);
        let Some(chosen) = choose(warp, stray.then_some(&mut *random)) else { return Ok(Progress::Blocked) };
        let limit = (!stray).then(|| limit(warp, chosen)).flatten().unwrap_or(u32::MAX);
        stray = false;
        run(warp, block, kernel, chosen, limit, &mut budget)?;
    }
    Ok(Progress::Ready)
}

/// Joins lanes that are at the same instruction.
fn merge(warp: &mut Warp) {
    if warp.fragments.len() < 2 {
        return;
    }
    let mut index = 0;
    while index < warp.fragments.len() {
        let Fragment { place, state, .. } = warp.fragments[index];
        let mut other = index + 1;
        while other < warp.fragments.len() && state != State::Waiting {
            let found = warp.fragments[other];
            if found.place == place && found.state != State::Waiting {
                warp.fragments[index].mask |= found.mask;
                // More lanes are here now: look again whether all are.
                warp.fragments[index].state = State::Running;
                warp.fragments.swap_remove(other);
            } else {
                other += 1;
            }
        }
        index += 1;
    }
}

/// The lanes that are furthest behind, or any.
fn choose(warp: &Warp, random: Option<&mut Random>) -> Option<usize> {
    let running = || warp.fragments.iter().enumerate().filter(|(_, fragment)| fragment.state == State::Running);
    match random {
        None => running().min_by_key(|(_, fragment)| fragment.place).map(|(index, _)| index),
        Some(random) => running().nth(random.below(running().count())).map(|(index, _)| index),
    }
}

/// The next place where other lanes stand, at which those that run stop to join them.
fn limit(warp: &Warp, chosen: usize) -> Option<u32> {
    let here = warp.fragments[chosen].place;
    let others = warp.fragments.iter().filter(|other| other.place > here && other.state != State::Waiting);
    others.map(|other| other.place).min()
}

fn run(
    warp: &mut Warp,
    block: &mut Block<'_>,
    kernel: &Kernel,
    chosen: usize,
    limit: u32,
    budget: &mut usize,
) -> Result<(), Located> {
    let Fragment { mut place, mask, .. } = warp.fragments[chosen];
    let lanes = u64::from(mask.count_ones());
    loop {
        let instruction = &kernel.code[place as usize];
        *budget = budget.saturating_sub(1);
        warp.executed += 1;
        warp.thread_instructions += lanes;
        let active = if instruction.guard == NONE {
            mask
        } else {
            let predicate = warp.predicates[instruction.guard as usize];
            mask & if instruction.guard_negated { !predicate } else { predicate }
        };
        if active == 0 {
            place += 1;
        } else if instruction.control == Control::Plain {
            let outcome = (instruction.execute)(warp, block, instruction, active);
            outcome.map_err(|fault| Located { fault, warp: warp.index, place })?;
            place += 1;
        } else if instruction.control == Control::Branch && active == mask {
            place = instruction.target;
            if *budget == 0 || place >= limit {
                break;
            }
            continue;
        } else {
            warp.fragments[chosen].place = place;
            return leave(warp, block, instruction, chosen, active).map_err(|fault| Located {
                fault,
                warp: warp.index,
                place,
            });
        }
        if *budget == 0 || place >= limit {
            break;
        }
    }
    warp.fragments[chosen].place = place;
    Ok(())
}

/// An instruction after which the lanes may not be together any more.
fn leave(warp: &mut Warp, block: &mut Block<'_>, i: &Instruction, chosen: usize, active: u32) -> Outcome {
    let Fragment { place, mask, .. } = warp.fragments[chosen];
    let rest = mask & !active;
    let lane = active.trailing_zeros();
    match i.control {
        Control::Branch => split(warp, chosen, &[(i.target, active), (place + 1, rest)]),
        Control::BranchIndexed => {
            let index = warp.words[i.d as usize];
            let mut parts = vec![(place + 1, rest)];
            for (number, target) in i.targets.iter().enumerate() {
                let lanes = (0..32).filter(|lane| active >> lane & 1 == 1 && index[*lane] as usize == number);
                parts.push((*target, lanes.fold(0, |mask, lane| mask | 1 << lane)));
            }
            if parts.iter().fold(0, |all, (_, mask)| all | mask) != mask {
                return Err(Fault::new(FaultKind::Operand, lane, "an index is beyond the list of branch targets"));
            }
            split(warp, chosen, &parts);
        }
        Control::Exit => {
            warp.alive &= !active;
            split(warp, chosen, &[(place + 1, rest)]);
            // Those that wait for these lanes need not wait any more.
            for fragment in &mut warp.fragments {
                if fragment.state == State::Converging {
                    fragment.state = State::Running;
                }
            }
        }
        Control::Trap => return Err(Fault::new(FaultKind::Trap, lane, "the kernel stopped itself with `trap`")),
        Control::Converge => return converge(warp, block, i, chosen, active),
        Control::Barrier => {
            if rest != 0 {
                split(warp, chosen, &[(place, active), (place + 1, rest)]);
                if let Some(fragment) = warp.fragments.iter_mut().find(|fragment| fragment.mask == active) {
                    fragment.state = State::Waiting;
                }
            } else {
                warp.fragments[chosen].state = State::Waiting;
            }
            return (i.execute)(warp, block, i, active);
        }
        Control::Plain => {}
    }
    Ok(())
}

/// Replaces lanes that were together by parts, leaving out empty ones.
fn split(warp: &mut Warp, chosen: usize, parts: &[(u32, u32)]) {
    warp.fragments.swap_remove(chosen);
    let parts = parts.iter().filter(|(_, mask)| *mask != 0);
    warp.fragments.extend(parts.map(|(place, mask)| Fragment { place: *place, mask: *mask, state: State::Running }));
}

/// Runs a `.sync` instruction for the lanes whose partners are all here; the others wait.
fn converge(warp: &mut Warp, block: &mut Block<'_>, i: &Instruction, chosen: usize, active: u32) -> Outcome {
    let Fragment { place, mask, .. } = warp.fragments[chosen];
    let members = warp.words[i.member as usize];
    let mut ready = 0;
    for lane in (0..32u32).filter(|lane| active >> lane & 1 == 1) {
        let wanted = members[lane as usize];
        if wanted >> lane & 1 == 0 {
            let message = format!("lane {lane} is not in its own mask {wanted:#010x}");
            return Err(Fault::new(FaultKind::Operand, lane, message));
        }
        if wanted & warp.alive & !active == 0 {
            ready |= 1 << lane;
        }
    }
    if ready != 0 {
        (i.execute)(warp, block, i, ready)?;
    }
    let rest = mask & !active;
    let waiting = active & !ready;
    warp.fragments.swap_remove(chosen);
    for (mask, place, state) in [(ready | rest, place + 1, State::Running), (waiting, place, State::Converging)] {
        if mask != 0 {
            warp.fragments.push(Fragment { place, mask, state });
        }
    }
    Ok(())
}

/// Opens every barrier at which all have arrived. Returns whether any did.
pub(super) fn open_barriers(warps: &mut [Warp], block: &mut Block<'_>, kernel: &Kernel) -> Result<bool, Located> {
    let mut opened = false;
    for number in 0..block.barriers.len() {
        let barrier = &block.barriers[number];
        if barrier.arrived == 0 {
            continue;
        }
        let alive: u32 = warps.iter().map(|warp| warp.alive.count_ones()).sum();
        let wanted = if barrier.wanted == 0 { alive } else { barrier.wanted };
        if barrier.arrived < wanted {
            continue;
        }
        let barrier = std::mem::take(&mut block.barriers[number]);
        check_together(warps, kernel, &barrier)?;
        let mut waiting: Vec<u32> = barrier.waiting.iter().map(|waiter| waiter.warp).collect();
        waiting.dedup();
        let mut from = waiting.clone();
        from.extend(&barrier.passed);
        block.shared.barrier(&from, &waiting);
        let any = barrier.count > 0;
        for Waiter { warp, mask, place } in barrier.waiting {
            let warp = &mut warps[warp as usize];
            for fragment in &mut warp.fragments {
                if fragment.state == State::Waiting && fragment.mask & mask != 0 {
                    (fragment.state, fragment.place) = (State::Running, place + 1);
                }
            }
            let i = &kernel.code[place as usize];
            if i.form.contains("popc") {
                warp.fill(i.d, mask, |_| barrier.count);
            } else if i.form.contains("red.and") {
                warp.set(i.d, mask, if barrier.all { mask } else { 0 });
            } else if i.form.contains("red.or") {
                warp.set(i.d, mask, if any { mask } else { 0 });
            }
        }
        opened = true;
    }
    Ok(opened)
}

/// Lanes of a warp that wait at different instructions for the same barrier: on a device that is undefined.
fn check_together(warps: &[Warp], kernel: &Kernel, barrier: &Barrier) -> Result<(), Located> {
    for (index, waiter) in barrier.waiting.iter().enumerate() {
        let aligned = !kernel.code[waiter.place as usize].form.starts_with("barrier");
        let apart = |other: &&Waiter| other.warp == waiter.warp && other.place != waiter.place;
        if aligned && let Some(other) = barrier.waiting[..index].iter().find(apart) {
            let line = kernel.code[other.place as usize].position.line;
            let message = format!("lanes of one warp wait at two barriers: this one and that of line {line}");
            let fault = Fault::new(FaultKind::Deadlock, waiter.mask.trailing_zeros(), message);
            return Err(Located { fault, warp: warps[waiter.warp as usize].index, place: waiter.place });
        }
    }
    Ok(())
}

/// What a block waits for that can't go on.
pub(super) fn deadlock(warps: &[Warp]) -> Located {
    let stuck = warps.iter().find_map(|warp| {
        let converging = warp.fragments.iter().find(|fragment| fragment.state == State::Converging);
        converging.map(|fragment| (warp, fragment))
    });
    let waiting = || warps.iter().find_map(|warp| warp.fragments.first().map(|fragment| (warp, fragment)));
    let Some((warp, fragment)) = stuck.or_else(waiting) else {
        let fault = Fault::new(FaultKind::Deadlock, 0, "deadlock");
        return Located { fault, warp: 0, place: 0 };
    };
    let message = if fragment.state == State::Converging {
        format!("deadlock: lanes {:#010x} wait for lanes of their mask that never come", fragment.mask)
    } else {
        let count: u32 = warps.iter().flat_map(|warp| &warp.fragments).map(|fragment| fragment.mask.count_ones()).sum();
        format!("deadlock: {count} threads wait at barriers for others that never come")
    };
    let fault = Fault::new(FaultKind::Deadlock, fragment.mask.trailing_zeros(), message);
    Located { fault, warp: warp.index, place: fragment.place }
}
