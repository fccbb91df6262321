//! The memory plan: where in one arena each value that outlives its launch is kept.
//!
//! Values whose lifetimes (in launches) do not overlap share bytes. Larger ones are placed first, each at the lowest offset
//! that is free for its whole life: the greedy-by-size strategy of Pisarchyk and Lee (2020). Before that, a result takes
//! over the bytes of an operand of the same size that dies in its launch, where the device says that it may
//! ([`Target::may_overwrite`]).

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::graph::{Graph, OpId, ValueId};
use crate::target::Target;
use crate::types::Sizes;

/// Where values live in the arena.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// For each value of the graph, its offset in bytes, if it is kept in the arena.
    pub offsets: Vec<Option<usize>>,
    /// Results that take over the bytes of an operand: result, operand.
    pub in_place: Vec<(ValueId, ValueId)>,
    /// Bytes of the arena.
    pub bytes: usize,
    /// The most bytes that are alive at once, with these results in place: no layout of the same buffers can be smaller.
    pub lower_bound: usize,
    /// The sizes for which the plan was made; batches may be smaller.
    pub limits: Sizes,
}

/// A value whose size at the given limits does not fit into the address space.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the buffer of %{value} ({ty}) is too large to address at {tokens} tokens and {logit_rows} rows of logits; lower \
     scheduler.max_num_batched_tokens, or run a smaller model"
)]
pub struct MemoryPlanError {
    value: String,
    ty: String,
    tokens: usize,
    logit_rows: usize,
}

/// Bytes that one value after another lives in.
struct Buffer {
    values: Vec<ValueId>,
    bytes: usize,
    first: usize,
    last: usize,
}

/// Lays out the values that cross launches, and those that `workspace` says a launch needs in memory while it runs.
///
/// `workspace[g]` lists values inside group `g`; `limits` are upper bounds of the symbolic sizes; offsets are
/// multiples of `alignment` bytes.
///
/// # Errors
/// If a buffer's size overflows.
pub fn plan_memory(
    graph: &Graph,
    target: &dyn Target,
    workspace: &[Vec<ValueId>],
    limits: Sizes,
    alignment: usize,
) -> Result<MemoryPlan, MemoryPlanError> {
    let lives = lifetimes(graph, workspace, limits, alignment)?;
    let (mut buffers, in_place) = share_in_place(graph, target, lives);
    let steps = graph.groups().len();
    let lower_bound = most_alive(&buffers, steps);
    buffers.sort_by_key(|buffer| (std::cmp::Reverse(buffer.bytes), buffer.values.first().copied()));
    let mut offsets = vec![None; graph.values().len()];
    let mut placed: Vec<(usize, usize)> = Vec::with_capacity(buffers.len());
    // For each launch the buffers that are alive in it, and those that begin in it: together each that overlaps a life once.
    let mut alive: Vec<Vec<usize>> = vec![Vec::new(); steps + 1];
    let mut begun: Vec<Vec<usize>> = vec![Vec::new(); steps + 1];
    let mut bytes = 0;
    for buffer in &buffers {
        let overlapping = alive[buffer.first].iter().chain(begun[buffer.first + 1..=buffer.last].iter().flatten());
        let mut taken: Vec<(usize, usize)> = overlapping.map(|index| placed[*index]).collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (start, end) in taken {
            if offset + buffer.bytes <= start {
                break;
            }
            offset = offset.max(end);
        }
        alive[buffer.first..=buffer.last].iter_mut().for_each(|step| step.push(placed.len()));
        begun[buffer.first].push(placed.len());
        placed.push((offset, offset + buffer.bytes));
        buffer.values.iter().for_each(|value| offsets[value.index()] = Some(offset));
        bytes = bytes.max(offset + buffer.bytes);
    }
    Ok(MemoryPlan { offsets, in_place, bytes, lower_bound, limits })
}

/// The most bytes that are alive in one launch.
fn most_alive(buffers: &[Buffer], steps: usize) -> usize {
    let mut begin = vec![0usize; steps + 2];
    let mut end = vec![0usize; steps + 2];
    for buffer in buffers {
        begin[buffer.first] += buffer.bytes;
        end[buffer.last + 1] += buffer.bytes;
    }
    let mut now = 0;
    let alive = begin.iter().zip(&end).map(|(begin, end)| {
        now = now + begin - end;
        now
    });
    alive.max().unwrap_or(0)
}

/// The launch that makes the result of an operation, and the last one that reads it: that after the last launch for a
/// result of the step.
fn life(graph: &Graph, op: OpId) -> (usize, usize) {
    let (id, first) = (graph.op(op).output, graph.group_of(op));
    let last = graph.users(id).iter().map(|user| graph.group_of(*user)).max().unwrap_or(first);
    (first, if graph.outputs().contains(&id) { graph.groups().len() } else { last })
}

/// The values to be kept, in the order in which they are made, each in a buffer of its own.
fn lifetimes(
    graph: &Graph,
    workspace: &[Vec<ValueId>],
    limits: Sizes,
    alignment: usize,
) -> Result<Vec<Buffer>, MemoryPlanError> {
    let mut lives = Vec::new();
    for op in graph.groups().iter().flat_map(|group| &group.ops) {
        let id = graph.op(*op).output;
        let Some(tensor) = graph.tensor_type(id) else { continue };
        let (first, last) = life(graph, *op);
        if last == first && !workspace.get(first).is_some_and(|inside| inside.contains(&id)) {
            continue;
        }
        let bytes = tensor
            .bytes(&limits)
            .and_then(|bytes| bytes.checked_next_multiple_of(alignment))
            .filter(|bytes| *bytes <= isize::MAX as usize / (graph.values().len() + 1))
            .ok_or_else(|| MemoryPlanError {
                value: graph.value(id).name.clone(),
                ty: tensor.to_string(),
                tokens: limits.tokens,
                logit_rows: limits.logit_rows,
            })?;
        lives.push(Buffer { values: vec![id], bytes, first, last });
    }
    Ok(lives)
}

/// Gives results the buffers of operands that die in their launch, and lists who took over from whom.
fn share_in_place(graph: &Graph, target: &dyn Target, lives: Vec<Buffer>) -> (Vec<Buffer>, Vec<(ValueId, ValueId)>) {
    let mut buffers: Vec<Buffer> = Vec::with_capacity(lives.len());
    let mut in_place = Vec::new();
    let mut buffer_of: Vec<Option<usize>> = vec![None; graph.values().len()];
    for life in lives {
        let (result, group) = (life.values[0], life.first);
        let operands = graph.group_inputs(&graph.groups()[group]);
        let dying = operands.into_iter().find_map(|operand| {
            let index = buffer_of[operand.index()]?;
            let buffer: &Buffer = &buffers[index];
            let dies_here = buffer.last == group && buffer.first < group && buffer.bytes == life.bytes;
            let lives_on = life.last > group;
            (dies_here && lives_on && target.may_overwrite(graph, group, operand, result)).then_some((index, operand))
        });
        match dying {
            Some((index, operand)) => {
                in_place.push((result, operand));
                buffers[index].values.push(result);
                buffers[index].last = life.last;
                buffer_of[result.index()] = Some(index);
            }
            None => {
                buffer_of[result.index()] = Some(buffers.len());
                buffers.push(life);
            }
        }
    }
    (buffers, in_place)
}

impl MemoryPlan {
    /// The plan as text: one line for each value in the arena, in the order in which they are made.
    pub fn to_text(&self, graph: &Graph) -> String {
        let Sizes { tokens, sequences, logit_rows, .. } = self.limits;
        let mut text = format!(
            "arena of {} bytes for up to {tokens} tokens of {sequences} sequences and {logit_rows} rows of logits; \
             at most {} bytes are alive at once\n\n",
            self.bytes, self.lower_bound
        );
        let _ = writeln!(text, "{:>12}  {:>12}  {:>9}  value", "offset", "bytes", "launches");
        let in_place: HashMap<ValueId, ValueId> = self.in_place.iter().copied().collect();
        for op in graph.groups().iter().flat_map(|group| &group.ops) {
            let id = graph.op(*op).output;
            let (Some(offset), Some(tensor)) = (self.offsets[id.index()], graph.tensor_type(id)) else { continue };
            let (first, last) = life(graph, *op);
            let last = if last == graph.groups().len() { "end".to_owned() } else { last.to_string() };
            let bytes = tensor.bytes(&self.limits).unwrap_or(0);
            let from = in_place.get(&id);
            let from = from.map_or_else(String::new, |operand| format!(", over %{}", graph.value(*operand).name));
            let lives = format!("{first}–{last}");
            let _ = writeln!(text, "{offset:>12}  {bytes:>12}  {lives:>9}  %{}: {tensor}{from}", graph.value(id).name);
        }
        text
    }

    /// Whether a value is an output or read in another launch than the one that makes it.
    pub fn crosses_launches(graph: &Graph, id: ValueId) -> bool {
        graph.producer(id).is_some_and(|op| {
            let (first, last) = life(graph, op);
            last > first
        })
    }
}
