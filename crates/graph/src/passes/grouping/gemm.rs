//! Matrix products with the row operations around them.

use super::{is_bias, is_linear, is_norm, is_quantize};
use crate::graph::OpId;
use crate::op::OpKind;
use crate::passes::Session;

/// projection → its bias, and then the launch of row operations that reads its result, or as much of the beginning of it as
/// the target can run after a matrix product: one epilogue for each launch of projections, so that what the smaller passes
/// did not join stays apart.
pub(in crate::passes) fn fuse_gemm_epilogue(session: &mut Session<'_>) {
    let linears = session.ops_where(is_linear);
    for &linear in &linears {
        if let Some(bias) = bias_of(session, linear) {
            session.join(&[linear, bias]);
        }
    }
    for &linear in &linears {
        let result = bias_of(session, linear)
            .filter(|bias| session.graph.group_of(*bias) == session.graph.group_of(linear))
            .unwrap_or(linear);
        let Some(&consumer) = session.users(result).first() else { continue };
        let launch = session.group(linear);
        let bare = launch.iter().all(|op| !session.op(*op).kind.is_row_op() || is_bias(session, *op));
        if !bare || session.graph.group_of(consumer) == session.graph.group_of(linear) {
            continue;
        }
        match session.group(consumer).iter().find(|op| !session.op(**op).kind.is_row_op()) {
            Some(other) => {
                let found = session.op(*other).kind.name();
                session.near_miss(linear, format!("its result is read by a launch with {found}"));
            }
            None => join_beginning(session, linear, consumer),
        }
    }
}

/// Joins the launch of `linear` with the longest beginning of the launch of `consumer` that the target takes, down to the
/// operations that need nothing but results of the projections and of other launches.
fn join_beginning(session: &mut Session<'_>, linear: OpId, consumer: OpId) {
    let (projections, rows) = (session.group(linear).to_vec(), session.group(consumer).to_vec());
    let mut first_reason = None;
    for length in (1..=rows.len()).rev() {
        let beginning = &rows[..length];
        if !beginning.contains(&consumer) {
            break;
        }
        let ops: Vec<OpId> = projections.iter().chain(beginning).copied().collect();
        match session.form(&ops) {
            Ok(_) if length == rows.len() => return,
            Ok(_) => break,
            Err(reason) => {
                first_reason.get_or_insert(reason);
            }
        }
    }
    if let Some(reason) = first_reason {
        session.near_miss(linear, reason);
    }
}

/// The launches of row operations with a norm or a quantization that make the inputs of projections → the projections.
pub(in crate::passes) fn fuse_gemm_prologue(session: &mut Session<'_>) {
    for linear in session.ops_where(is_linear) {
        let projections = session.group(linear).iter().filter(|op| is_linear(&session.op(**op).kind));
        // Projections of one launch are seen to together, with the first of them.
        if projections.clone().next() != Some(&linear) {
            continue;
        }
        let producers = projections.filter_map(|op| session.producer(*op, 0));
        let others: Vec<OpId> =
            producers.filter(|op| session.graph.group_of(*op) != session.graph.group_of(linear)).collect();
        let is_row_op = |op: &OpId| session.op(*op).kind.is_row_op();
        let makes_input = |op: &OpId| is_norm(&session.op(*op).kind) || is_quantize(&session.op(*op).kind);
        let (rows, mixed): (Vec<OpId>, Vec<OpId>) = others.into_iter().partition(|producer| {
            let launch = session.group(*producer);
            launch.iter().all(is_row_op) && launch.iter().any(makes_input)
        });
        if let Some(&other) = mixed.first() {
            let found = session.graph.group_label(session.graph.group_of(other));
            session.near_miss(linear, format!("its input is made by the launch {found}"));
        }
        let Some(&first) = rows.first() else { continue };
        let members: Vec<OpId> = rows.into_iter().chain([linear]).collect();
        let with_gather: Option<Vec<OpId>> =
            gather_of(session, first).map(|gather| [gather].into_iter().chain(members.iter().copied()).collect());
        if !with_gather.is_some_and(|members| session.join_quietly(&members)) {
            session.join(&members);
        }
    }
}

/// The choice of rows that a launch of row operations works on, if the launch is its only reader.
fn gather_of(session: &Session<'_>, op: OpId) -> Option<OpId> {
    let launch = session.group(op);
    let reads = launch.iter().flat_map(|op| &session.op(*op).inputs);
    let mut producers = reads.filter_map(|input| session.graph.producer(*input));
    producers.find(|producer| {
        matches!(session.op(*producer).kind, OpKind::SelectRows)
            && session.group(*producer).len() == 1
            && session.users(*producer).iter().all(|user| launch.contains(user))
    })
}

fn bias_of(session: &Session<'_>, linear: OpId) -> Option<OpId> {
    session.users(linear).first().copied().filter(|user| is_bias(session, *user))
}
