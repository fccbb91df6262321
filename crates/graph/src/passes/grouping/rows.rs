//! Row operations with what comes right before them.

use super::{is_activation, is_norm, is_quantize, is_rope};
use crate::graph::OpId;
use crate::op::OpKind;
use crate::passes::Session;

/// add → rms_norm.
pub(in crate::passes) fn fuse_add_norm(session: &mut Session<'_>) {
    fuse_producers(session, is_norm, |kind| matches!(kind, OpKind::Add));
}

/// activation → mul.
pub(in crate::passes) fn fuse_act_mul(session: &mut Session<'_>) {
    fuse_producers(session, |kind| matches!(kind, OpKind::Mul), is_activation);
}

/// rms_norm → quantize.
pub(in crate::passes) fn fuse_norm_quant(session: &mut Session<'_>) {
    fuse_producers(session, is_quantize, is_norm);
}

/// activation (× gate) → quantize.
pub(in crate::passes) fn fuse_act_quant(session: &mut Session<'_>) {
    fuse_producers(session, is_quantize, |kind| matches!(kind, OpKind::Mul) || is_activation(kind));
}

/// attention → quantize.
pub(in crate::passes) fn fuse_attn_quant(session: &mut Session<'_>) {
    fuse_producers(session, is_quantize, |kind| matches!(kind, OpKind::Attention { .. }));
}

/// head_rms_norm → rope.
pub(in crate::passes) fn fuse_qk_norm_rope(session: &mut Session<'_>) {
    fuse_producers(session, is_rope, |kind| matches!(kind, OpKind::HeadRmsNorm { .. }));
}

/// Rotation of keys (and of the queries that meet them) → write to the KV cache.
pub(in crate::passes) fn fuse_rope_kvcache(session: &mut Session<'_>) {
    for write in session.ops_where(|kind| matches!(kind, OpKind::KvWrite)) {
        let keys = producers_where(session, write, is_rope);
        let readers = session.users(write).to_vec();
        let queries = readers.into_iter().flat_map(|reader| producers_where(session, reader, is_rope));
        let members: Vec<OpId> = keys.into_iter().chain(queries).chain([write]).collect();
        match members.len() {
            1 => session.near_miss(write, "neither its keys nor the queries that meet them are rotated"),
            _ => {
                session.join(&members);
            }
        }
    }
}

/// Joins every operation that `is_consumer` with the producers of its operands that `is_producer`.
fn fuse_producers(
    session: &mut Session<'_>,
    is_consumer: impl Fn(&OpKind) -> bool,
    is_producer: impl Fn(&OpKind) -> bool,
) {
    for consumer in session.ops_where(is_consumer) {
        let producers = producers_where(session, consumer, &is_producer);
        if producers.is_empty() {
            let found = session.producer(consumer, 0).map_or("a leaf", |producer| session.op(producer).kind.name());
            session.near_miss(consumer, format!("its operand comes from {found}"));
        }
        for producer in producers {
            session.join(&[producer, consumer]);
        }
    }
}

fn producers_where(session: &Session<'_>, op: OpId, is: impl Fn(&OpKind) -> bool) -> Vec<OpId> {
    let producers = session.op(op).inputs.iter().filter_map(|input| session.graph.producer(*input));
    producers.filter(|producer| is(&session.op(*producer).kind)).collect()
}
