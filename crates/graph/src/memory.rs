//! The memory plan: where in one arena each value that outlives its launch is kept.
//!
//! Values whose lifetimes (in launches) do not overlap share bytes. Larger values are placed first, each at the
//! lowest offset that is free for its whole life: the greedy-by-size strategy of Pisarchyk and Lee (2020).

use crate::graph::{Definition, Graph, ValueId};
use crate::types::Sizes;

/// Where values live in the arena.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// For each value of the graph, its offset in bytes, if it is kept in the arena.
    pub offsets: Vec<Option<usize>>,
    /// Bytes of the arena.
    pub bytes: usize,
    /// The most bytes that are alive at once: no plan can be smaller.
    pub lower_bound: usize,
    /// The sizes for which the plan was made; batches may be smaller.
    pub limits: Sizes,
}

/// A value whose size at the given limits does not fit into the address space.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the buffer of %{value} ({ty}) is too large to address at {tokens} tokens and {logit_rows} rows of logits; lower scheduler.max_num_batched_tokens"
)]
pub struct MemoryPlanError {
    value: String,
    ty: String,
    tokens: usize,
    logit_rows: usize,
}

struct Life {
    value: ValueId,
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
    workspace: &[Vec<ValueId>],
    limits: Sizes,
    alignment: usize,
) -> Result<MemoryPlan, MemoryPlanError> {
    let mut lives = lifetimes(graph, workspace, limits, alignment)?;
    let lower_bound = (0..graph.groups().len())
        .map(|step| lives.iter().filter(|life| life.first <= step && step <= life.last).map(|life| life.bytes).sum())
        .max()
        .unwrap_or(0);
    lives.sort_by_key(|life| (std::cmp::Reverse(life.bytes), life.value));
    let mut offsets = vec![None; graph.values().len()];
    let mut placed: Vec<(usize, Life)> = Vec::with_capacity(lives.len());
    let mut bytes = 0;
    for life in lives {
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|(_, other)| other.first <= life.last && life.first <= other.last)
            .map(|(offset, other)| (*offset, offset + other.bytes))
            .collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (start, end) in taken {
            if offset + life.bytes <= start {
                break;
            }
            offset = offset.max(end);
        }
        offsets[life.value.index()] = Some(offset);
        bytes = bytes.max(offset + life.bytes);
        placed.push((offset, life));
    }
    Ok(MemoryPlan { offsets, bytes, lower_bound, limits })
}

fn lifetimes(
    graph: &Graph,
    workspace: &[Vec<ValueId>],
    limits: Sizes,
    alignment: usize,
) -> Result<Vec<Life>, MemoryPlanError> {
    let users = graph.users();
    let mut lives = Vec::new();
    for (index, value) in graph.values().iter().enumerate() {
        let id = ValueId(index as u32);
        let (Definition::Op(op), Some(tensor)) = (&value.definition, value.ty.tensor()) else { continue };
        let first = graph.group_of(*op);
        let last_use = users[index].iter().map(|user| graph.group_of(*user)).max().unwrap_or(first);
        let last = if graph.outputs().contains(&id) { graph.groups().len() } else { last_use };
        if last == first && !workspace.get(first).is_some_and(|inside| inside.contains(&id)) {
            continue;
        }
        let bytes = tensor
            .bytes(&limits)
            .and_then(|bytes| bytes.checked_next_multiple_of(alignment))
            .filter(|bytes| *bytes <= isize::MAX as usize / (graph.values().len() + 1))
            .ok_or_else(|| MemoryPlanError {
                value: value.name.clone(),
                ty: value.ty.to_string(),
                tokens: limits.tokens,
                logit_rows: limits.logit_rows,
            })?;
        lives.push(Life { value: id, bytes, first, last });
    }
    Ok(lives)
}
