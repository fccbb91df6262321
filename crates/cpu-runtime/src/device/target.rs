//! What the CPU can run as one launch.

use allotrope_graph::{DType, Definition, Dim, Graph, OpId, OpKind, Target, ValueId, ValueType};

/// The CPU's answers to the grouping passes.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuTarget;

impl Target for CpuTarget {
    fn name(&self) -> &str {
        super::DEVICE
    }

    fn accepts(&self, graph: &Graph, ops: &[OpId]) -> Result<(), String> {
        let mut group_rows = None;
        for op in ops {
            let rows = rows_of(graph, *op)?;
            if *group_rows.get_or_insert(rows) != rows {
                return Err("one launch runs over tokens or over rows of logits, not both".into());
            }
            check_op(graph, *op)?;
        }
        Ok(())
    }
}

/// The symbolic size that an op runs over: `T` or `R`.
pub(super) fn rows_of(graph: &Graph, op: OpId) -> Result<Dim, String> {
    let op = graph.op(op);
    let value = match &op.kind {
        // Its result is the cache; it runs over the rows of the keys.
        OpKind::KvWrite => op.inputs.get(1).copied().unwrap_or(op.output),
        _ => op.output,
    };
    match graph.tensor_type(value).map(|tensor| tensor.rows()) {
        Some(rows @ (Dim::Tokens | Dim::LogitRows)) => Ok(rows),
        Some(rows) => Err(format!("{} over {rows} rows: only T and R are batch sizes", op.kind.name())),
        None => Err(format!("{} yields no tensor", op.kind.name())),
    }
}

/// Checks what the types alone do not say: where operands come from.
fn check_op(graph: &Graph, id: OpId) -> Result<(), String> {
    let op = graph.op(id);
    let definition = |index: usize| op.inputs.get(index).map(|&value| &graph.value(value).definition);
    let name = op.kind.name();
    let weight = |index: usize| match definition(index) {
        Some(Definition::Weight(_)) => Ok(()),
        _ => Err(format!("operand {index} of {name} must be a weight")),
    };
    let step_input = |index: usize| match definition(index) {
        Some(Definition::Input(_)) => Ok(()),
        _ => Err(format!("operand {index} of {name} must be an input of the step")),
    };
    let rows = |index: usize| match op.inputs.get(index) {
        Some(&value) => rows_operand(graph, id, value).map_err(|reason| format!("operand {index} of {name}: {reason}")),
        None => Err(format!("{name} lacks operand {index}")),
    };
    match &op.kind {
        OpKind::Embedding => weight(0).and(step_input(1)),
        OpKind::SelectRows => match definition(0) {
            Some(Definition::Op(_)) => step_input(1),
            _ => Err("select_rows takes rows of a computed value".into()),
        },
        OpKind::RmsNorm { .. } => rows(0).and(weight(1)),
        OpKind::Linear { .. } => rows(0).and(weight(1)),
        OpKind::RopeAngles { .. } => step_input(0),
        OpKind::Rope { .. } | OpKind::Mul => rows(0).and(rows(1)),
        OpKind::Add => {
            let vector = op.inputs.get(1).and_then(|&b| graph.tensor_type(b)).is_some_and(|b| b.shape.len() == 1);
            rows(0).and(if vector { weight(1) } else { rows(1) })
        }
        OpKind::KvWrite => cache_operand(graph, op.inputs.first()).and(rows(1)).and(rows(2)).and(step_input(3)),
        OpKind::Attention { .. } => {
            rows(0).and(cache_operand(graph, op.inputs.get(1))).and(step_input(2)).and(step_input(3)).and(step_input(4))
        }
        OpKind::Cast { .. } | OpKind::Quantize { .. } | OpKind::Silu => rows(0),
    }
}

/// A matrix that an op reads row by row must be computed, with as many rows as the op runs over.
fn rows_operand(graph: &Graph, op: OpId, value: ValueId) -> Result<(), String> {
    let computed = graph.producer(value).is_some();
    let tensor = graph.tensor_type(value).ok_or("it is no tensor")?;
    if !computed || tensor.shape.len() != 2 || tensor.width().is_none() {
        return Err("it must be a computed matrix".into());
    }
    if tensor.rows() != rows_of(graph, op)? {
        return Err("it has another number of rows".into());
    }
    Ok(())
}

fn cache_operand(graph: &Graph, value: Option<&ValueId>) -> Result<(), String> {
    match value.map(|&value| &graph.value(value).ty) {
        Some(ValueType::KvCache(cache)) if matches!(cache.dtype, DType::Bf16 | DType::F16 | DType::F32) => Ok(()),
        Some(ValueType::KvCache(cache)) => {
            Err(format!("a KV cache of {} has no kernel; bf16, f16 and f32 have", cache.dtype))
        }
        _ => Err("the operand must be a KV cache".into()),
    }
}
