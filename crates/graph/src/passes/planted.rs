//! Passes that are wrong on purpose. Tests run them to prove that the verifier, the properties and the bisection catch what
//! they are there to catch. They are compiled with the feature `planted-faults` only, and are in no pipeline by themselves.

use super::{Pass, PassKind, Session};
use crate::graph::{Definition, Graph, Group, Op, OpId, Rewriting, ValueId};
use crate::op::OpKind;
use crate::types::{DType, ValueType};

/// Every planted fault.
pub const FAULTS: &[Pass] = &[
    Pass {
        name: "drop_rounding",
        description: "multiply gate and activation without rounding the activation first (wrong on purpose)",
        identity: "none: the rounding point after silu is gone",
        kind: PassKind::Rewrite,
        enabled: |_| true,
        run: drop_rounding,
    },
    Pass {
        name: "drop_lossy_casts",
        description: "take a detour through a narrower type for a no-op (wrong on purpose)",
        identity: "none: the narrower type does not hold every value",
        kind: PassKind::Rewrite,
        enabled: |_| true,
        run: drop_lossy_casts,
    },
    Pass {
        name: "swap_subtraction",
        description: "swap the operands of subtractions (wrong on purpose)",
        identity: "none: a − b is not b − a",
        kind: PassKind::Rewrite,
        enabled: |_| true,
        run: swap_subtraction,
    },
    Pass {
        name: "swap_metadata",
        description: "swap positions and sequences of attention (wrong on purpose)",
        identity: "none: both are i32[T], and mean something else",
        kind: PassKind::Rewrite,
        enabled: |_| true,
        run: swap_metadata,
    },
    Pass {
        name: "read_before_write",
        description: "let attention read the KV cache as it was before the step wrote to it (wrong on purpose)",
        identity: "none: the step's own keys are missing",
        kind: PassKind::Rewrite,
        enabled: |_| true,
        run: read_before_write,
    },
    Pass {
        name: "widen_over_write",
        description: "widen the launch of a KV-cache write to the attention after it, in the wrong order (wrong on purpose)",
        identity: "none: attention runs before the write that it reads",
        kind: PassKind::Grouping,
        enabled: |_| true,
        run: widen_over_write,
    },
];

/// The fault of that name.
pub fn find(name: &str) -> Option<&'static Pass> {
    FAULTS.iter().find(|pass| pass.name == name)
}

/// mul(silu(x), y) → cast(mul(silu(cast<f32>(x)), cast<f32>(y))).
fn drop_rounding(session: &mut Session<'_>) {
    let products = session.ops_where(|kind| matches!(kind, OpKind::Mul));
    let silu_of = |session: &Session<'_>, product: OpId| {
        session.producer(product, 0).filter(|op| matches!(session.op(*op).kind, OpKind::Silu))
    };
    let mut chosen = Vec::new();
    for product in products {
        let narrow = session.graph.tensor_type(session.op(product).output).is_some_and(|ty| ty.dtype != DType::F32);
        if narrow && silu_of(session, product).is_some() && session.may_rewrite() {
            chosen.push(product);
        }
    }
    if chosen.is_empty() {
        return;
    }
    let old = std::mem::take(session.graph);
    let mut new = Graph::new();
    let mut ids: Vec<Option<ValueId>> = vec![None; old.values().len()];
    for id in old.op_ids() {
        let op = old.op(id);
        let name = &old.value(op.output).name;
        let inputs: Vec<ValueId> = op.inputs.iter().map(|input| copied(&old, &mut new, &mut ids, *input)).collect();
        let result = match old.tensor_type(op.output) {
            Some(ty) if chosen.contains(&id) => {
                let silu = old.producer(op.inputs[0]).map(|silu| old.op(silu).inputs[0]);
                let x = silu.map_or(inputs[0], |x| copied(&old, &mut new, &mut ids, x));
                let wide = |new: &mut Graph, what: &str, kind, inputs: &[ValueId]| {
                    new.push(format!("{name}.{what}"), kind, inputs).unwrap_or(inputs[0])
                };
                let to = DType::F32;
                let x = wide(&mut new, "x", OpKind::Cast { to }, &[x]);
                let y = wide(&mut new, "y", OpKind::Cast { to }, &[inputs[1]]);
                let activated = wide(&mut new, "activated", OpKind::Silu, &[x]);
                let product = wide(&mut new, "product", OpKind::Mul, &[activated, y]);
                new.push(name.clone(), OpKind::Cast { to: ty.dtype }, &[product])
            }
            _ => new.push(name.clone(), op.kind.clone(), &inputs),
        };
        ids[op.output.index()] = result.ok();
    }
    for output in old.outputs() {
        let output = copied(&old, &mut new, &mut ids, *output);
        new.add_output(output);
    }
    old.history().iter().for_each(|report| new.record(report.clone()));
    *session.graph = new;
}

/// The value of a new graph that stands for one of the old.
fn copied(old: &Graph, new: &mut Graph, ids: &mut [Option<ValueId>], id: ValueId) -> ValueId {
    if let Some(known) = ids[id.index()] {
        return known;
    }
    let value = old.value(id);
    let copy = match (&value.definition, &value.ty) {
        (Definition::Input(input), _) => new.input(*input),
        (Definition::Weight(name), ValueType::Tensor(ty)) => new.weight(name, ty.clone()),
        (Definition::State { layer }, ValueType::KvCache(ty)) => new.state(*layer, *ty),
        _ => id,
    };
    ids[id.index()] = Some(copy);
    copy
}

/// cast<t>(cast<u>(x: t)) → x whatever u is.
fn drop_lossy_casts(session: &mut Session<'_>) {
    let mut rewriting = Rewriting::of(session.graph);
    for cast in session.ops_where(|kind| matches!(kind, OpKind::Cast { .. })) {
        let Some(before) = session.producer(cast, 0) else { continue };
        let x = session.op(before).inputs[0];
        let same = session.graph.value(x).ty == session.graph.value(session.op(cast).output).ty;
        if matches!(session.op(before).kind, OpKind::Cast { .. }) && same && session.may_rewrite() {
            rewriting.replace(cast, x);
        }
    }
    rewriting.finish(session.graph);
}

/// sub(a, b) → sub(b, a).
fn swap_subtraction(session: &mut Session<'_>) {
    let mut rewriting = Rewriting::of(session.graph);
    for subtraction in session.ops_where(|kind| matches!(kind, OpKind::Sub)) {
        if session.may_rewrite() {
            rewriting.ops[subtraction.index()].inputs.reverse();
        }
    }
    rewriting.finish(session.graph);
}

/// attention(q, cache, positions, token_sequences, …) → attention(q, cache, token_sequences, positions, …).
fn swap_metadata(session: &mut Session<'_>) {
    let mut rewriting = Rewriting::of(session.graph);
    for attention in session.ops_where(|kind| matches!(kind, OpKind::Attention { .. })) {
        if session.may_rewrite() {
            rewriting.ops[attention.index()].inputs.swap(2, 3);
        }
    }
    rewriting.finish(session.graph);
}

/// attention(q, kv_write(cache, …), …) → attention(q, cache, …).
fn read_before_write(session: &mut Session<'_>) {
    let mut rewriting = Rewriting::of(session.graph);
    for attention in session.ops_where(|kind| matches!(kind, OpKind::Attention { .. })) {
        let Some(write) = session.producer(attention, 1) else { continue };
        let cache = session.op(write).inputs[0];
        if session.may_rewrite() {
            rewriting.ops[attention.index()].inputs[1] = cache;
        }
    }
    rewriting.finish(session.graph);
}

/// [kv_write], …, [attention] → …, [attention, kv_write].
fn widen_over_write(session: &mut Session<'_>) {
    let mut groups: Vec<Group> = session.graph.groups().to_vec();
    for attention in session.ops_where(|kind| matches!(kind, OpKind::Attention { .. })) {
        let Some(write) = session.producer(attention, 1) else { continue };
        if !session.may_rewrite() {
            break;
        }
        groups.iter_mut().for_each(|group| group.ops.retain(|op| *op != write));
        if let Some(group) = groups.iter_mut().find(|group| group.ops.contains(&attention)) {
            group.ops.push(write);
        }
    }
    groups.retain(|group| !group.ops.is_empty());
    let old = std::mem::take(session.graph);
    let ops: Vec<Op> = old.ops().to_vec();
    *session.graph =
        Graph::from_parts(old.values().to_vec(), ops, groups, old.outputs().to_vec(), old.history().to_vec());
}
