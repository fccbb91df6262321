//! Attention with what comes after it: `kernels/attention.cuh`.

use allotrope_graph::memory::MemoryPlan;
use allotrope_graph::{DType, Graph, OpId, OpKind};

use super::linear::{type_code, type_name};
use super::{Grid, KernelCode, MOST_SHARED_MEMORY, Parameter, PlannedLaunch, SIZES, Slots, Word};
use crate::program::{Bundle, MOST_POINTERS, Pointer};

/// Where the parameter has its array of pointers, in bytes.
pub(super) const POINTERS_OFFSET: usize = 96;

/// Positions of the context that the kernel works on at a time.
const CONTEXT: usize = 32;

/// Bytes of the kernel's own shared memory, as its header says.
fn own_bytes(group: usize, head_dim: usize) -> usize {
    4 * (group * head_dim + CONTEXT * (head_dim | 1) + 35 * group + CONTEXT)
}

pub(super) fn launch(graph: &Graph, ops: &[OpId]) -> Result<PlannedLaunch, String> {
    let is_attention = |op: &&OpId| matches!(graph.op(**op).kind, OpKind::Attention { .. });
    let id = *ops.iter().find(is_attention).ok_or("no attention")?;
    let op = graph.op(id);
    let OpKind::Attention { heads, scale } = op.kind else { return Err("no attention".into()) };
    let &[queries, cache_value, positions, token_sequences, block_tables] = op.inputs.as_slice() else {
        return Err("attention of other than five operands".into());
    };
    let cache = graph.value(cache_value).ty.kv_cache().ok_or("attention over something else than a KV cache")?;
    let dtype = graph.tensor_type(queries).map_or(DType::F32, |tensor| tensor.dtype);
    if dtype != cache.dtype {
        return Err(format!("attention of {dtype} queries over a cache of {} has no kernel", cache.dtype));
    }
    let (kv_heads, head_dim) = (cache.kv_heads, cache.head_dim);
    if kv_heads == 0 || head_dim == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(format!("{heads} query heads over {kv_heads} KV heads of {head_dim} have no kernel"));
    }
    let group = heads / kv_heads;
    let layer = graph.cache_layer(cache_value).ok_or("attention over a cache of no layer")?;
    let epilogue: Vec<OpId> = ops.iter().filter(|op| **op != id).copied().collect();
    let name = format!("attention_{}", type_name(dtype));
    let tile_offset = own_bytes(group, head_dim).next_multiple_of(16);
    let scratch_offset = (tile_offset + 4 * group * head_dim).next_multiple_of(16);
    let bundle =
        Bundle { values: vec![op.output], columns: heads * head_dim, tile_columns: group * head_dim, epilogue };
    let slots = Slots { prologue: Vec::new(), inputs: Vec::new(), bundles: vec![bundle], rows: 1 };
    let shared_memory = scratch_offset + slots.filling(graph).scratch_bytes();
    if shared_memory > MOST_SHARED_MEMORY {
        return Err(format!("attention needs {shared_memory} bytes of shared memory; {MOST_SHARED_MEMORY} can be had"));
    }
    let is_plain = ops.len() == 1 && MemoryPlan::crosses_launches(graph, op.output);
    let output = if is_plain { Pointer::Value(op.output) } else { Pointer::Nothing };
    let mut parameter = Parameter::default();
    parameter.push(SIZES);
    let addresses = [
        Pointer::Value(queries),
        Pointer::Keys { layer },
        Pointer::Values { layer },
        Pointer::Value(positions),
        Pointer::Value(token_sequences),
        Pointer::Value(block_tables),
        output,
    ];
    parameter.extend(addresses.map(Word::Pointer));
    let counts = [heads, kv_heads, head_dim];
    parameter.extend(counts.map(|count| Word::Number(u32::try_from(count).unwrap_or(u32::MAX))));
    parameter.push(Word::BlockSize);
    let code = graph.tensor_type(op.output).map_or(0, |tensor| type_code(tensor.dtype));
    let offsets = [scale.to_bits(), tile_offset as u32, scratch_offset as u32, code];
    parameter.extend(offsets.map(Word::Number));
    parameter.pad(POINTERS_OFFSET + 8 * MOST_POINTERS);
    let code = match is_plain {
        true => KernelCode::Bundled { source: "attention", entry: name },
        false => KernelCode::Filled { source: "attention_slots", entry: format!("{name}_slots"), slots },
    };
    let blocks = u32::try_from(kv_heads).map_err(|_| "too many KV heads")?;
    let grid = Grid { blocks, rows: 1, rows_second: false };
    Ok(PlannedLaunch { code, grid, shared_memory, parameter })
}
