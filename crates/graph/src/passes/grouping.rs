//! The passes that join groups. None of them touches an operation: joined, a group runs the same operations with the
//! same rounding points in one launch. So each is legal wherever joining makes no cycle ([`Graph::merge`]) and the
//! target has a kernel for the result ([`Target::accepts`]).

use super::Outcome;
use crate::graph::{Graph, OpId, ValueId};
use crate::op::OpKind;
use crate::target::Target;

/// add → rms_norm.
pub(super) fn fuse_add_norm(graph: &mut Graph, target: &dyn Target) -> Outcome {
    fuse_producers(graph, target, is_norm, |kind| matches!(kind, OpKind::Add))
}

/// activation → mul.
pub(super) fn fuse_act_mul(graph: &mut Graph, target: &dyn Target) -> Outcome {
    fuse_producers(graph, target, |kind| matches!(kind, OpKind::Mul), is_activation)
}

/// rms_norm → quantize.
pub(super) fn fuse_norm_quant(graph: &mut Graph, target: &dyn Target) -> Outcome {
    fuse_producers(graph, target, is_quantize, is_norm)
}

/// activation (× gate) → quantize.
pub(super) fn fuse_act_quant(graph: &mut Graph, target: &dyn Target) -> Outcome {
    fuse_producers(graph, target, is_quantize, |kind| matches!(kind, OpKind::Mul) || is_activation(kind))
}

/// attention → quantize.
pub(super) fn fuse_attn_quant(graph: &mut Graph, target: &dyn Target) -> Outcome {
    fuse_producers(graph, target, is_quantize, |kind| matches!(kind, OpKind::Attention { .. }))
}

/// Projections of one input that lead to the same attention.
pub(super) fn fuse_qkv_proj(graph: &mut Graph, target: &dyn Target) -> Outcome {
    fuse_siblings(graph, target, |kind| matches!(kind, OpKind::KvWrite | OpKind::Attention { .. }))
}

/// Projections of one input whose results are multiplied.
pub(super) fn fuse_gate_up_proj(graph: &mut Graph, target: &dyn Target) -> Outcome {
    fuse_siblings(graph, target, |kind| matches!(kind, OpKind::Mul))
}

/// Rotation of keys (and of the queries that meet them) → write to the KV cache.
pub(super) fn fuse_rope_kvcache(graph: &mut Graph, target: &dyn Target) -> Outcome {
    let users = graph.users();
    let writes = ops_where(graph, |kind| matches!(kind, OpKind::KvWrite));
    let mut outcome = Outcome::default();
    for write in writes {
        let mut members = vec![write];
        members.extend(producers_where(graph, &graph.op(write).inputs, is_rope));
        for reader in &users[graph.op(write).output.index()] {
            members.extend(producers_where(graph, &graph.op(*reader).inputs, is_rope));
        }
        if members.len() > 1 {
            join(graph, target, &members, &mut outcome);
        }
    }
    outcome
}

/// projection → its bias, and then the launch of row operations that reads its result: one epilogue for each launch of
/// projections, so that what the smaller passes did not join stays apart.
pub(super) fn fuse_gemm_epilogue(graph: &mut Graph, target: &dyn Target) -> Outcome {
    let users = graph.users();
    let linears = ops_where(graph, |kind| matches!(kind, OpKind::Linear { .. }));
    let mut outcome = Outcome::default();
    let first_user = |graph: &Graph, op: OpId| users[graph.op(op).output.index()].first().copied();
    let bias_of = |graph: &Graph, linear: OpId| first_user(graph, linear).filter(|user| is_bias(graph, *user));
    for &linear in &linears {
        if let Some(bias) = bias_of(graph, linear) {
            join(graph, target, &[linear, bias], &mut outcome);
        }
    }
    for &linear in &linears {
        let projections = &graph.groups()[graph.group_of(linear)].ops;
        let bare = projections.iter().all(|op| !graph.op(*op).kind.is_row_op() || is_bias(graph, *op));
        let result = bias_of(graph, linear).filter(|bias| graph.group_of(*bias) == graph.group_of(linear));
        let Some(consumer) = first_user(graph, result.unwrap_or(linear)) else { continue };
        let only_rows = graph.groups()[graph.group_of(consumer)].ops.iter().all(|op| graph.op(*op).kind.is_row_op());
        if bare && only_rows {
            join(graph, target, &[linear, consumer], &mut outcome);
        }
    }
    outcome
}

/// Joins every operation that `is_consumer` with the producers of its operands that `is_producer`.
fn fuse_producers(
    graph: &mut Graph,
    target: &dyn Target,
    is_consumer: impl Fn(&OpKind) -> bool,
    is_producer: impl Fn(&OpKind) -> bool,
) -> Outcome {
    let mut outcome = Outcome::default();
    for consumer in ops_where(graph, is_consumer) {
        for producer in producers_where(graph, &graph.op(consumer).inputs, &is_producer) {
            join(graph, target, &[producer, consumer], &mut outcome);
        }
    }
    outcome
}

/// Joins the projections that read one value, or values of one group, if all of them lead through row operations to
/// one operation that `meets`.
fn fuse_siblings(graph: &mut Graph, target: &dyn Target, meets: impl Fn(&OpKind) -> bool) -> Outcome {
    let users = graph.users();
    let mut outcome = Outcome::default();
    let mut families: Vec<(Source, OpId, Vec<OpId>)> = Vec::new();
    for linear in ops_where(graph, |kind| matches!(kind, OpKind::Linear { .. })) {
        let Some(&input) = graph.op(linear).inputs.first() else { continue };
        let source =
            graph.producer(input).map_or(Source::Value(input), |producer| Source::Group(graph.group_of(producer)));
        let Some(meeting) = first_below(graph, &users, linear, &meets) else { continue };
        match families.iter_mut().rev().find(|(known, at, _)| *known == source && *at == meeting) {
            Some((_, _, family)) => family.push(linear),
            None => families.push((source, meeting, vec![linear])),
        }
    }
    for (_, _, family) in families.into_iter().filter(|(_, _, family)| family.len() > 1) {
        join(graph, target, &family, &mut outcome);
    }
    outcome
}

/// Where siblings get their input from.
#[derive(PartialEq)]
enum Source {
    Value(ValueId),
    Group(usize),
}

/// The last operation that `meets` and that `from`'s result reaches through row operations: where siblings meet.
fn first_below(graph: &Graph, users: &[Vec<OpId>], from: OpId, meets: &impl Fn(&OpKind) -> bool) -> Option<OpId> {
    let mut found = None;
    let mut open = vec![from];
    while let Some(op) = open.pop() {
        for &user in &users[graph.op(op).output.index()] {
            let kind = &graph.op(user).kind;
            if meets(kind) {
                found = found.max(Some(user));
            }
            let residual = matches!(kind, OpKind::Add)
                && graph.op(user).inputs.iter().all(|input| graph.producer(*input).is_some());
            let stops =
                matches!(kind, OpKind::Linear { .. } | OpKind::Attention { .. } | OpKind::Mul | OpKind::RmsNorm { .. });
            if !residual && !stops {
                open.push(user);
            }
        }
    }
    found
}

/// Joins the groups that hold `members`, or notes why not.
fn join(graph: &mut Graph, target: &dyn Target, members: &[OpId], outcome: &mut Outcome) {
    let mut places: Vec<usize> = members.iter().map(|op| graph.group_of(*op)).collect();
    places.sort_unstable();
    places.dedup();
    if places.len() < 2 {
        return;
    }
    let mut ops: Vec<OpId> = places.iter().flat_map(|place| graph.groups()[*place].ops.iter().copied()).collect();
    ops.sort_unstable();
    let result = match target.accepts(graph, &ops) {
        Err(reason) => Err(format!("{}: {reason}", target.name())),
        Ok(()) => graph.merge(&places).map(|_| ()).ok_or_else(|| "joining would make a cycle".to_string()),
    };
    match result {
        Ok(()) => outcome.matches += 1,
        Err(reason) if !outcome.declined.contains(&reason) => outcome.declined.push(reason),
        Err(_) => {}
    }
}

fn ops_where(graph: &Graph, is: impl Fn(&OpKind) -> bool) -> Vec<OpId> {
    let ids = (0..graph.ops().len()).map(|index| OpId(index as u32));
    ids.filter(|op| is(&graph.op(*op).kind)).collect()
}

fn producers_where(graph: &Graph, inputs: &[ValueId], is: impl Fn(&OpKind) -> bool) -> Vec<OpId> {
    inputs.iter().filter_map(|input| graph.producer(*input)).filter(|op| is(&graph.op(*op).kind)).collect()
}

/// True for the addition of a weight to every row.
fn is_bias(graph: &Graph, op: OpId) -> bool {
    let op = graph.op(op);
    matches!(op.kind, OpKind::Add) && op.inputs.last().is_some_and(|b| graph.producer(*b).is_none())
}

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
