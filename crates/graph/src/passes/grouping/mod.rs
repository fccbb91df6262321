//! The passes that move operations into one launch. None of them touches an operation: grouped, the same operations run
//! with the same rounding points. So each is legal wherever it makes no cycle ([`Graph::regroup`](crate::Graph::regroup))
//! and the target has a kernel for the result ([`Target::accepts`](crate::Target::accepts)).

pub(super) mod gemm;
pub(super) mod rows;
pub(super) mod siblings;

use crate::graph::OpId;
use crate::op::OpKind;
use crate::passes::Session;

fn is_norm(kind: &OpKind) -> bool {
    matches!(kind, OpKind::RmsNorm { .. })
}

fn is_activation(kind: &OpKind) -> bool {
    matches!(kind, OpKind::Silu)
}

fn is_quantize(kind: &OpKind) -> bool {
    matches!(kind, OpKind::Quantize { .. })
}

fn is_rope(kind: &OpKind) -> bool {
    matches!(kind, OpKind::Rope { .. })
}

fn is_linear(kind: &OpKind) -> bool {
    matches!(kind, OpKind::Linear { .. })
}

/// True for the addition of a weight to every row.
fn is_bias(session: &Session<'_>, op: OpId) -> bool {
    matches!(session.op(op).kind, OpKind::Add) && session.producer(op, 1).is_none()
}
