//! Projections of one input.

use std::collections::{HashMap, HashSet};

use super::is_linear;
use crate::graph::{OpId, ValueId};
use crate::op::OpKind;
use crate::passes::Session;

/// Projections of one input that lead to the same attention.
pub(in crate::passes) fn fuse_qkv_proj(session: &mut Session<'_>) {
    fuse_siblings(session, |kind| matches!(kind, OpKind::KvWrite | OpKind::Attention { .. }));
}

/// Projections of one input whose results are multiplied.
pub(in crate::passes) fn fuse_gate_up_proj(session: &mut Session<'_>) {
    fuse_siblings(session, |kind| matches!(kind, OpKind::Mul));
}

/// Where siblings get their input from.
#[derive(PartialEq, Eq, Hash, Clone, Copy)]
enum Source {
    Value(ValueId),
    /// The group that makes it: siblings may each quantize one value by a scale of their own.
    Group(usize),
}

/// Joins the projections that read one value, or values of one group, if all of them lead through row operations to
/// one operation that `meets`.
fn fuse_siblings(session: &mut Session<'_>, meets: impl Fn(&OpKind) -> bool) {
    let mut families: Vec<Vec<OpId>> = Vec::new();
    let mut known: HashMap<(Source, OpId), usize> = HashMap::new();
    for linear in session.ops_where(is_linear) {
        let Some(&input) = session.op(linear).inputs.first() else { continue };
        let producer = session.graph.producer(input);
        let source = producer.map_or(Source::Value(input), |op| Source::Group(session.graph.group_of(op)));
        let Some(meeting) = last_below(session, linear, &meets) else { continue };
        let family = *known.entry((source, meeting)).or_insert_with(|| {
            families.push(Vec::new());
            families.len() - 1
        });
        families[family].push(linear);
    }
    for family in families {
        match family.as_slice() {
            [alone] => session.near_miss(*alone, "no other projection of its input meets it further down"),
            _ => {
                session.join(&family);
            }
        }
    }
}

/// The last operation that `meets` and that the result of `from` reaches through row operations: where siblings meet.
fn last_below(session: &Session<'_>, from: OpId, meets: &impl Fn(&OpKind) -> bool) -> Option<OpId> {
    let mut found = None;
    let mut seen = HashSet::from([from]);
    let mut open = vec![from];
    while let Some(op) = open.pop() {
        for &user in session.users(op) {
            let kind = &session.op(user).kind;
            if meets(kind) {
                found = found.max(Some(user));
            }
            let residual = matches!(kind, OpKind::Add)
                && session.op(user).inputs.iter().all(|input| session.graph.producer(*input).is_some());
            let stops =
                matches!(kind, OpKind::Linear { .. } | OpKind::Attention { .. } | OpKind::Mul | OpKind::RmsNorm { .. });
            if !residual && !stops && seen.insert(user) {
                open.push(user);
            }
        }
    }
    found
}
