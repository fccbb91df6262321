//! What CUDA can run as one launch. There are three kinds:
//!
//! - **row programs**: row operations over tokens or over rows of logits, a block for one row or several;
//! - **projections**: matrix products of one input, or of several that the launch makes of one, each block a tile of columns. Before
//!   them a *prologue* of row operations
//!   that make the input, which every block computes for its rows; after them an *epilogue* of operations that work on a
//!   tile, element by element or head by head;
//! - **attention**, split over the context and merged by the last block, which may also scale, cast or quantize the result.

use allotrope_graph::{DType, Definition, Dim, Graph, OpId, OpKind, Target, ValueId};

use crate::lower;

/// CUDA's answers to the grouping passes.
#[derive(Debug, Clone, Copy, Default)]
pub struct CudaTarget;

impl Target for CudaTarget {
    fn name(&self) -> &str {
        "cuda"
    }

    fn accepts(&self, graph: &Graph, ops: &[OpId]) -> Result<(), String> {
        let mut group_rows = None;
        for op in ops {
            check_operands(graph, *op)?;
            check_gather(graph, *op, ops)?;
            let rows = graph.rows_of(*op)?;
            if *group_rows.get_or_insert(rows) != rows {
                return Err("one launch runs over tokens or over rows of logits, not both".into());
            }
        }
        let count = |is: fn(&OpKind) -> bool| ops.iter().filter(|op| is(&graph.op(**op).kind)).count();
        let linears = count(|kind| matches!(kind, OpKind::Linear { .. }));
        let attentions = count(|kind| matches!(kind, OpKind::Attention { .. }));
        match (linears, attentions) {
            (0, 0) => Ok(()),
            (_, 0) => check_projections(graph, ops),
            (0, 1) => check_attention(graph, ops),
            (0, _) => Err("one launch runs one attention".into()),
            _ => Err("attention and matrix products take launches of their own".into()),
        }?;
        lower::check(graph, ops)
    }
}

/// Checks what the types alone do not say.
fn check_operands(graph: &Graph, id: OpId) -> Result<(), String> {
    let op = graph.op(id);
    let name = op.kind.name();
    let is_weight = |index: usize| {
        op.inputs.get(index).is_some_and(|value| matches!(graph.value(*value).definition, Definition::Weight(_)))
    };
    let is_input = |index: usize| {
        op.inputs.get(index).is_some_and(|value| matches!(graph.value(*value).definition, Definition::Input(_)))
    };
    let inputs = match op.kind {
        OpKind::Embedding | OpKind::SelectRows => 1..2,
        OpKind::RopeAngles { .. } => 0..1,
        OpKind::KvWrite => 3..4,
        OpKind::Attention { .. } => 2..5,
        _ => 0..0,
    };
    if let Some(index) = inputs.clone().find(|index| !is_input(*index)) {
        return Err(format!("operand {index} of {name} must be an input of the step"));
    }
    for (index, value) in op.inputs.iter().enumerate().filter(|(index, _)| !inputs.contains(index)) {
        let problem = match graph.tensor_type(*value) {
            Some(tensor) if tensor.dtype == DType::I32 => format!("rows of {} have no kernel", tensor.dtype),
            Some(tensor) if tensor.width().is_none() => format!("its rows have no static size: {tensor}"),
            Some(tensor) if !is_weight(index) && matches!(tensor.rows(), Dim::Static(_)) => {
                format!("it has {} rows, whatever the batch", tensor.rows())
            }
            _ => continue,
        };
        return Err(format!("operand {index} of {name}, %{}: {problem}", graph.value(*value).name));
    }
    match &op.kind {
        OpKind::Embedding if !is_weight(0) => Err("the table of embedding must be a weight".into()),
        OpKind::Linear { .. } | OpKind::RmsNorm { .. } | OpKind::HeadRmsNorm { .. } if !is_weight(1) => {
            Err(format!("operand 1 of {name} must be a weight"))
        }
        OpKind::KvWrite | OpKind::Attention { .. } => {
            let caches = op.inputs.iter().filter_map(|value| graph.value(*value).ty.kv_cache());
            match caches.map(|cache| cache.dtype).find(|dtype| matches!(dtype, DType::F8E4M3 | DType::I32)) {
                Some(dtype) => Err(format!("a KV cache of {dtype} has no kernel; bf16, f16 and f32 have")),
                None => Ok(()),
            }
        }
        OpKind::Reshape { .. } | OpKind::Transpose { .. } if !keeps_rows(graph, id) => {
            Err(format!("{name} moves elements between rows"))
        }
        OpKind::Slice { axis: 0, .. } | OpKind::Concat { axis: 0 } => Err(format!("{name} along the rows")),
        _ => Ok(()),
    }
}

/// Rows that indices name may be any block's: they must be complete before the launch.
fn check_gather(graph: &Graph, id: OpId, ops: &[OpId]) -> Result<(), String> {
    let op = graph.op(id);
    let source = op.inputs.first().and_then(|value| graph.producer(*value));
    let inside = source.is_some_and(|source| ops.binary_search(&source).is_ok());
    match op.kind {
        OpKind::SelectRows | OpKind::Embedding if inside => {
            Err(format!("{} chooses among rows that other blocks of the launch make", op.kind.name()))
        }
        _ => Ok(()),
    }
}

/// Whether the first axis of the result is the first axis of the operand.
fn keeps_rows(graph: &Graph, id: OpId) -> bool {
    let op = graph.op(id);
    match &op.kind {
        OpKind::Transpose { permutation } => permutation.first() == Some(&0),
        _ => {
            let rows = |value: &ValueId| graph.tensor_type(*value).map(|tensor| tensor.rows());
            op.inputs.first().and_then(rows) == rows(&op.output)
        }
    }
}

/// For each operation, whether it needs a result of one of `sources`, all in one group.
fn depend_on(graph: &Graph, ops: &[OpId], is_source: impl Fn(&OpKind) -> bool) -> Vec<bool> {
    let mut depends = vec![false; ops.len()];
    for (index, op) in ops.iter().enumerate() {
        let producers = graph.op(*op).inputs.iter().filter_map(|input| graph.producer(*input));
        let places = producers.filter_map(|producer| ops[..index].binary_search(&producer).ok());
        let needs: Vec<usize> = places.collect();
        depends[index] = needs.into_iter().any(|place| depends[place] || is_source(&graph.op(ops[place]).kind));
    }
    depends
}

fn check_projections(graph: &Graph, ops: &[OpId]) -> Result<(), String> {
    let is_linear = |kind: &OpKind| matches!(kind, OpKind::Linear { .. });
    let after = depend_on(graph, ops, is_linear);
    for (op, after) in ops.iter().zip(after) {
        let kind = &graph.op(*op).kind;
        let name = kind.name();
        match (is_linear(kind), after) {
            (true, true) => return Err("a matrix product can't wait for another one inside a launch".into()),
            (true, false) => {}
            (false, true) if !works_on_tiles(kind) => {
                return Err(format!("{name} needs whole rows, which no block has after a matrix product"));
            }
            (false, true) => {}
            (false, false) if matches!(kind, OpKind::KvWrite) => {
                return Err("every block computes the prologue, so it can't write the KV cache".into());
            }
            (false, false) => {
                let output = graph.op(*op).output;
                let leaves = graph.outputs().contains(&output)
                    || graph.users(output).iter().any(|user| ops.binary_search(user).is_err());
                if leaves {
                    return Err(format!("every block computes the prologue, so the result of {name} can't leave it"));
                }
            }
        }
    }
    let inputs = ops.iter().map(|op| graph.op(*op)).filter(|op| is_linear(&op.kind));
    let mut inputs: Vec<ValueId> = inputs.filter_map(|op| op.inputs.first().copied()).collect();
    inputs.dedup();
    let is_made_here = |value: &ValueId| graph.producer(*value).is_some_and(|op| ops.binary_search(&op).is_ok());
    if inputs.len() > 1 && !inputs.iter().all(is_made_here) {
        return Err("matrix products of one launch have one input, or inputs that its prologue makes".into());
    }
    Ok(())
}

/// Operations that need no more of a row than an element, a pair of a rotation or a head.
fn works_on_tiles(kind: &OpKind) -> bool {
    is_elementwise(kind) || matches!(kind, OpKind::Rope { .. } | OpKind::HeadRmsNorm { .. } | OpKind::KvWrite)
}

fn is_elementwise(kind: &OpKind) -> bool {
    matches!(
        kind,
        OpKind::Cast { .. }
            | OpKind::Quantize { .. }
            | OpKind::Silu
            | OpKind::Add
            | OpKind::Sub
            | OpKind::Mul
            | OpKind::MulScalar { .. }
            | OpKind::AddScalar { .. }
    )
}

fn check_attention(graph: &Graph, ops: &[OpId]) -> Result<(), String> {
    let after = depend_on(graph, ops, |kind| matches!(kind, OpKind::Attention { .. }));
    for (op, after) in ops.iter().zip(after) {
        let kind = &graph.op(*op).kind;
        let name = kind.name();
        match kind {
            OpKind::Attention { .. } => {}
            _ if !after => return Err(format!("{name} before attention takes a launch of its own")),
            _ if !is_elementwise(kind) => {
                return Err(format!("{name} needs whole rows, which attention does not have at its end"));
            }
            _ => {}
        }
    }
    Ok(())
}
