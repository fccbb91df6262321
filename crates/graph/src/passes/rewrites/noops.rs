//! No-op elimination and dead code.

use crate::graph::{Graph, OpId, Rewriting, ValueId};
use crate::op::OpKind;
use crate::passes::Session;
use crate::types::{DType, TensorType};

/// What a rule makes of an operation.
enum Found {
    /// A value that has the same bits.
    Value(ValueId),
    /// Another operation on another operand, with the same bits.
    Op(OpKind, ValueId),
    /// It looks like a no-op, and is none for this reason.
    NearMiss(&'static str),
}

/// Drops operations that give back their operand bit by bit, shortens chains of operations to one where that gives the same
/// bits, and drops what nothing reads.
pub(in crate::passes) fn eliminate_noops(session: &mut Session<'_>) {
    let mut rewriting = Rewriting::of(session.graph);
    let mut index = 0;
    while index < rewriting.ops.len() {
        let id = OpId(index as u32);
        rewriting.settled(id);
        match rule(session.graph, &rewriting, id) {
            Some(Found::NearMiss(reason)) => session.near_miss(id, reason),
            Some(found) if session.may_rewrite() => match found {
                Found::Value(value) => rewriting.replace(id, value),
                Found::Op(kind, operand) => {
                    let op = &mut rewriting.ops[index];
                    (op.kind, op.inputs) = (kind, vec![operand]);
                    // What it became may match again. Each time its operand is one further up, so this ends.
                    continue;
                }
                Found::NearMiss(_) => {}
            },
            _ => {}
        }
        index += 1;
    }
    drop_dead(session, &mut rewriting);
    if session.matches > 0 {
        rewriting.finish(session.graph);
    }
}

fn rule(graph: &Graph, rewriting: &Rewriting, id: OpId) -> Option<Found> {
    let op = &rewriting.ops[id.index()];
    let (&operand, result) = (op.inputs.first()?, graph.tensor_type(op.output)?);
    let ty = graph.tensor_type(operand)?;
    let origin = graph.producer(operand).map(|producer| &rewriting.ops[producer.index()]);
    let before = origin.and_then(|origin| Some((&origin.kind, *origin.inputs.first()?)));
    match &op.kind {
        OpKind::Cast { to } => cast(graph, *to, operand, ty, before),
        // x · 1 = x.
        OpKind::MulScalar { factor } if *factor == 1.0 => Some(Found::Value(operand)),
        // x + (−0) = x. But x + 0 is +0 where x is −0.
        OpKind::AddScalar { term } if *term == 0.0 => Some(if term.is_sign_negative() {
            Found::Value(operand)
        } else {
            Found::NearMiss("x + 0 is no no-op: it turns −0 into +0")
        }),
        OpKind::Reshape { shape } => match before {
            // reshape(x) = x where the shape is that of x.
            _ if result == ty => Some(Found::Value(operand)),
            // reshape(reshape(x)) = reshape(x): both keep the row-major order.
            Some((OpKind::Reshape { .. }, x)) => Some(Found::Op(OpKind::Reshape { shape: shape.clone() }, x)),
            _ => None,
        },
        OpKind::Transpose { permutation } => transpose(permutation, operand, before),
        OpKind::Slice { axis, start, end } => slice(graph, rewriting, (*axis, *start, *end), operand, before),
        OpKind::Concat { axis } => concat(graph, rewriting, *axis, &op.inputs),
        _ => None,
    }
}

fn cast(
    graph: &Graph,
    to: DType,
    operand: ValueId,
    ty: &TensorType,
    before: Option<(&OpKind, ValueId)>,
) -> Option<Found> {
    // cast<t>(x: t) = x.
    if ty.dtype == to {
        return Some(Found::Value(operand));
    }
    let (OpKind::Cast { to: between }, x) = before? else { return None };
    let from = graph.tensor_type(x)?.dtype;
    // cast<t>(cast<u>(x: s)) = cast<t>(x), and x itself where s = t, if u holds every value of s.
    match holds_all(*between, from) {
        true if from == to => Some(Found::Value(x)),
        true => Some(Found::Op(OpKind::Cast { to }, x)),
        false => Some(Found::NearMiss("the type in between does not hold every value: the cast to it rounds")),
    }
}

fn transpose(permutation: &[usize], operand: ValueId, before: Option<(&OpKind, ValueId)>) -> Option<Found> {
    // transpose<0, 1, …>(x) = x.
    if permutation.iter().copied().eq(0..permutation.len()) {
        return Some(Found::Value(operand));
    }
    // transpose<p>(transpose<q>(x)) = transpose<q[p[i]]>(x): axis i of the result is axis p[i] of what q made of x.
    let (OpKind::Transpose { permutation: inner }, x) = before? else { return None };
    let both = permutation.iter().map(|axis| inner.get(*axis).copied()).collect::<Option<Vec<_>>>()?;
    Some(Found::Op(OpKind::Transpose { permutation: both }, x))
}

fn slice(
    graph: &Graph,
    rewriting: &Rewriting,
    (axis, start, end): (usize, usize, usize),
    operand: ValueId,
    before: Option<(&OpKind, ValueId)>,
) -> Option<Found> {
    // slice<0..size>(x) = x.
    if start == 0 && graph.tensor_type(operand)?.static_size(axis)? == end {
        return Some(Found::Value(operand));
    }
    match before? {
        // slice<a..b>(slice<c..d>(x)) = slice<a + c..b + c>(x) along one axis.
        (OpKind::Slice { axis: inner, start: offset, .. }, x) if *inner == axis => {
            Some(Found::Op(OpKind::Slice { axis, start: start + offset, end: end + offset }, x))
        }
        // slice(concat(…, x, …)) = x where the slice is where x was put.
        (OpKind::Concat { axis: inner }, _) if *inner == axis => {
            let parts = &rewriting.ops[graph.producer(operand)?.index()].inputs;
            let mut begin = 0;
            for part in parts {
                let size = graph.tensor_type(*part)?.static_size(axis)?;
                if (begin, begin + size) == (start, end) {
                    return Some(Found::Value(*part));
                }
                begin += size;
            }
            Some(Found::NearMiss("the slice is not exactly one of the parts that were concatenated"))
        }
        _ => None,
    }
}

fn concat(graph: &Graph, rewriting: &Rewriting, axis: usize, parts: &[ValueId]) -> Option<Found> {
    // concat(x) = x.
    if let [only] = parts {
        return Some(Found::Value(*only));
    }
    // concat(slice<0..a>(x), slice<a..b>(x), …) = x where the slices cover x in order.
    let mut whole = None;
    let mut next = 0;
    for part in parts {
        let slice = &rewriting.ops[graph.producer(*part)?.index()];
        let (OpKind::Slice { axis: along, start, end }, Some(x)) = (&slice.kind, slice.inputs.first()) else {
            return None;
        };
        if *along != axis || *whole.get_or_insert(*x) != *x {
            return None;
        }
        if *start != next {
            return Some(Found::NearMiss("the slices that are concatenated do not cover their operand in order"));
        }
        next = *end;
    }
    let whole = whole?;
    match graph.tensor_type(whole)?.static_size(axis)? == next {
        true => Some(Found::Value(whole)),
        false => Some(Found::NearMiss("the slices that are concatenated do not cover their operand in order")),
    }
}

/// Drops operations whose result nothing reads. What writes state is alive.
fn drop_dead(session: &mut Session<'_>, rewriting: &mut Rewriting) {
    let mut alive = vec![false; session.graph.values().len()];
    session.graph.outputs().iter().for_each(|output| alive[rewriting.resolve(*output).index()] = true);
    for id in session.graph.op_ids().rev() {
        if rewriting.is_dropped(id) {
            continue;
        }
        let op = rewriting.settled(id);
        let is_alive = alive[op.output.index()] || matches!(op.kind, OpKind::KvWrite);
        if !is_alive && session.may_rewrite() {
            rewriting.drop(id);
            continue;
        }
        op.inputs.iter().for_each(|input| alive[input.index()] = true);
    }
}

/// True if every value of `narrow`, NaN payloads aside, is a value of `wide`.
fn holds_all(wide: DType, narrow: DType) -> bool {
    wide == narrow
        || matches!(
            (wide, narrow),
            (DType::F32, DType::F16 | DType::Bf16 | DType::F8E4M3) | (DType::F16 | DType::Bf16, DType::F8E4M3)
        )
}
