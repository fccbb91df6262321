//! How each operation reads its operands, said once for the target, the lowering and the description.

use allotrope_graph::{Graph, Op, OpKind, ValueId};

/// How an operation reads an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// A computed tensor, of which row `i` is read for row `i` of the result.
    Rows,
    /// A computed tensor, of which rows are read that indices name.
    Gathered,
    /// A weight.
    Weight,
    /// An input of the step.
    StepInput,
    /// A KV cache.
    Cache,
}

/// How `op` reads its operand at `index`.
pub(super) fn operand_use(graph: &Graph, op: &Op, index: usize) -> Use {
    match (&op.kind, index) {
        (OpKind::Embedding, 0) => Use::Weight,
        (OpKind::SelectRows, 0) => Use::Gathered,
        (OpKind::Embedding | OpKind::SelectRows, _) | (OpKind::RopeAngles { .. }, _) => Use::StepInput,
        (OpKind::RmsNorm { .. } | OpKind::HeadRmsNorm { .. } | OpKind::Linear { .. }, 1) => Use::Weight,
        (OpKind::Add, 1) if is_vector_sum(graph, op) => Use::Weight,
        (OpKind::KvWrite, 0) | (OpKind::Attention { .. }, 1) => Use::Cache,
        (OpKind::KvWrite, 3) | (OpKind::Attention { .. }, 2..) => Use::StepInput,
        _ => Use::Rows,
    }
}

/// Whether the second operand of a sum is one vector for all rows.
fn is_vector_sum(graph: &Graph, op: &Op) -> bool {
    let shape = |index: usize| op.inputs.get(index).and_then(|value| graph.tensor_type(*value)).map(|ty| &ty.shape);
    shape(0) != shape(1)
}

/// The sizes of one row of a tensor, outermost first, if they are known from the model.
pub(super) fn row_shape(graph: &Graph, value: ValueId) -> Option<Vec<usize>> {
    graph.tensor_type(value)?.shape.iter().skip(1).map(|dim| super::static_size(*dim)).collect()
}
