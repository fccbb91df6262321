//! Persistent decode: a step of one token whose members wait for each other as rarely as the data allows.
//!
//! Every projection and attention needs what all members made before, so there is a barrier before each. What lies
//! between them are row programs, of one row here. Instead of one member doing that row while the others wait at two
//! barriers, every member does it for itself: the same instructions in the same order give the same bits. The first
//! member keeps results where a launch keeps them, so whoever reads them later finds them; the others in memory of their
//! own. Only the first writes to the KV cache.

use super::ALIGNMENT;
use super::hazards::{self, Access, Open, Who};
use super::phase::{Phase, Work};
use super::recording::{Part, PartWork, PerMember, projections};
use crate::attention::Attention;
use crate::linear::Job;
use crate::memory::{AllocationError, Buffer};
use crate::row::{Instruction, RowProgram};
use allotrope_graph::Sizes;
use std::ops::Range;

/// A phase reads a part of a value that every member has for itself, or more than one: it is not known where from.
struct Unclear;

/// The values that every member has for itself now: their bytes in the arena, and their offset in a member's own memory.
#[derive(Clone, Default)]
struct Private {
    values: Vec<(Range<usize>, usize)>,
    /// Offsets that were given out, which the same bytes get again.
    places: Vec<(Range<usize>, usize)>,
    bytes: usize,
}

impl Private {
    /// Where a value is that a phase reads: `None` if it is common to all members.
    fn find(&self, bytes: &Range<usize>) -> Result<Option<usize>, Unclear> {
        let overlapping = self.values.iter().find(|(value, _)| value.start < bytes.end && bytes.start < value.end);
        match overlapping {
            None => Ok(None),
            Some((value, offset)) if value == bytes => Ok(Some(*offset)),
            Some(_) => Err(Unclear),
        }
    }

    /// Somebody writes these bytes for all members.
    fn share(&mut self, bytes: &Range<usize>) {
        self.values.retain(|(value, _)| value.end <= bytes.start || bytes.end <= value.start);
    }

    /// Every member writes these bytes for itself.
    fn keep(&mut self, bytes: &Range<usize>) -> usize {
        self.share(bytes);
        let known = self.places.iter().find(|(place, _)| place == bytes).map(|(_, offset)| *offset);
        let offset = known.unwrap_or_else(|| {
            let offset = self.bytes;
            self.bytes += bytes.len().next_multiple_of(ALIGNMENT);
            self.places.push((bytes.clone(), offset));
            offset
        });
        self.values.push((bytes.clone(), offset));
        offset
    }
}

/// The parts of a step of one token, and the memory that they refer to; `None` if values lie in no way that is
/// understood here.
///
/// # Errors
/// [`AllocationError`] if the operating system gives no memory.
pub(super) fn parts<'a>(
    phases: impl Iterator<Item = ((usize, usize), &'a Phase)> + Clone,
    limits: &Sizes,
    threads: usize,
) -> Result<Option<(Vec<Part>, Buffer)>, AllocationError> {
    // More than is needed, of which nobody touches the rest.
    let stored = phases.clone().map(|(_, phase)| match &phase.work {
        Work::Rows(program) => program.instructions().iter().map(stored_bytes).sum(),
        _ => 0usize,
    });
    let each = stored.fold(0usize, usize::saturating_add);
    let mut memory = Buffer::new(each.saturating_mul(threads - 1))?;
    let begin = memory.bytes_mut().as_mut_ptr();
    let own = Own { begin, each, threads };
    let (mut private, mut open) = (Private::default(), Open::default());
    let mut parts = Vec::new();
    for (place, phase) in phases {
        let made = match &phase.work {
            Work::Rows(program) => row_program(program, &mut private, &own),
            Work::Linear(jobs) => linear(jobs, &mut private, &own),
            Work::Attention(_) => attention(phase, limits, &mut private, &own),
        };
        let Ok((work, accesses)) = made else { return Ok(None) };
        parts.push(Part { place, barrier: open.add(accesses), rows: phase.rows, work });
    }
    debug_assert!(private.bytes <= each);
    Ok(Some((parts, memory)))
}

fn stored_bytes(instruction: &Instruction) -> usize {
    match instruction {
        Instruction::Store { to, .. } => (to.width * to.element.bytes()).next_multiple_of(ALIGNMENT),
        _ => 0,
    }
}

/// The memory of members but the first.
struct Own {
    begin: *mut u8,
    each: usize,
    threads: usize,
}

impl Own {
    /// Where a member has what is at `common` for the first member, and at an offset in the memory of the others.
    fn address(&self, member: usize, common: *mut u8, offset: Option<usize>) -> *mut u8 {
        match (member.checked_sub(1), offset) {
            (Some(other), Some(offset)) => self.begin.wrapping_add(other * self.each + offset),
            _ => common,
        }
    }
}

/// Who touches what is at an offset of members' own memory, or common.
fn who(offset: Option<usize>) -> Who {
    if offset.is_some() { Who::First } else { Who::Anybody }
}

type Made = Result<(PartWork, Vec<Access>), Unclear>;

/// A row program that every member does for itself; where its result takes the place of something that all members read,
/// one that the first member does for all.
fn row_program(program: &RowProgram, private: &mut Private, own: &Own) -> Made {
    let mut after = private.clone();
    let (work, accesses) = every_row(program, &mut after, own)?;
    if !hazards::conflict(&accesses) {
        *private = after;
        return Ok((work, accesses));
    }
    let of_first = accesses.into_iter().map(|access| Access { who: Who::First, ..access }).collect::<Vec<_>>();
    of_first.iter().filter(|access| access.writes).for_each(|access| private.share(&access.bytes));
    Ok((PartWork::Rows(program.clone()), of_first))
}

fn every_row(program: &RowProgram, private: &mut Private, own: &Own) -> Made {
    let mut accesses = Vec::new();
    let mut offsets = Vec::with_capacity(program.instructions().len());
    for instruction in program.instructions() {
        let (access, offset) = match instruction {
            Instruction::Load { from, .. } => {
                let bytes = hazards::matrix(from, 1);
                let offset = private.find(&bytes)?;
                (Access::read(bytes, who(offset)), offset)
            }
            Instruction::Gather { from, .. } => {
                let bytes = hazards::bytes(from.begin, 1, from.row_bytes());
                let offset = private.find(&bytes)?;
                (Access::read(hazards::table(from), who(offset)), offset)
            }
            Instruction::Store { to, .. } => {
                let bytes = hazards::matrix(to, 1);
                let offset = Some(private.keep(&bytes));
                (Access::write(bytes, Who::First), offset)
            }
            Instruction::KvWrite { cache, .. } => (Access::write(cache.addresses(), Who::First), None),
            _ => {
                offsets.push(None);
                continue;
            }
        };
        accesses.push(access);
        offsets.push(offset);
    }
    let of_member = |member: usize| {
        let instructions = program.instructions().iter().zip(&offsets);
        let translated = instructions.filter_map(|(instruction, &offset)| {
            let mut instruction = instruction.clone();
            match &mut instruction {
                Instruction::Load { from: matrix, .. } | Instruction::Store { to: matrix, .. } => {
                    matrix.begin = own.address(member, matrix.begin, offset);
                }
                Instruction::Gather { from, indices, .. } if member > 0 && offset.is_some() => {
                    from.begin = own.address(member, from.begin.cast_mut(), offset);
                    (from.rows, indices.limit) = (1, 1);
                }
                Instruction::KvWrite { .. } if member > 0 => return None,
                _ => {}
            }
            Some(instruction)
        });
        program.with_instructions(translated.collect())
    };
    Ok((PartWork::EveryRow(PerMember::each(own.threads, of_member)), accesses))
}

fn linear(jobs: &[Job], private: &mut Private, own: &Own) -> Made {
    let mut accesses = Vec::new();
    let mut offsets = Vec::with_capacity(jobs.len());
    for job in jobs {
        let x = hazards::bytes(job.x, 1, job.weights.row_bytes());
        let offset = private.find(&x)?;
        accesses.push(Access::read(x, who(offset)));
        offsets.push(offset);
    }
    for job in jobs {
        let y = hazards::bytes(job.y, 1, job.weights.rows * job.output.bytes());
        private.share(&y);
        accesses.push(Access::write(y, Who::Anybody));
    }
    let of_member = |member: usize| {
        let x = |job: &Job, offset| own.address(member, job.x.cast_mut(), offset);
        jobs.iter().zip(&offsets).map(|(job, &offset)| Job { x: x(job, offset), ..*job }).collect::<Vec<_>>()
    };
    let own_x = offsets.iter().any(Option::is_some);
    let jobs = if own_x { PerMember::each(own.threads, of_member) } else { PerMember::same(jobs.to_vec()) };
    Ok((projections(true, own.threads, jobs), accesses))
}

fn attention(phase: &Phase, limits: &Sizes, private: &mut Private, own: &Own) -> Made {
    let Work::Attention(attention) = phase.work else { return Err(Unclear) };
    let one_head = attention.cache.kv_heads == 1;
    let mut accesses = hazards::accesses(&phase.work, phase.rows, limits);
    let mut offset = None;
    for access in &mut accesses {
        if access.writes {
            private.share(&access.bytes);
        } else if access.bytes.start == attention.queries.addr() {
            offset = private.find(&access.bytes)?;
            access.who = who(offset);
        }
    }
    let queries = |member| own.address(member, attention.queries.cast_mut(), offset).cast_const();
    let of_member = |member| Attention { queries: queries(member), ..attention };
    let attention = PerMember::each(own.threads, of_member);
    Ok((if one_head { PartWork::Heads(attention) } else { PartWork::Attention(attention) }, accesses))
}
