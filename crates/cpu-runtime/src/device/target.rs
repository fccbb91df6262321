//! What the CPU can run as one launch, and what such a launch may write over.

use super::operands::{Use, operand_use};
use super::schedule::{PhaseKind, schedule};
use super::steps::{Step, steps};
use allotrope_graph::{Definition, Dim, Graph, Op, OpId, OpKind, Target, ValueId, ValueType};

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
            check_movement(graph, graph.op(*op))?;
            let rows = graph.rows_of(*op)?;
            if *group_rows.get_or_insert(rows) != rows {
                return Err("one launch runs over tokens or over rows of logits, not both".into());
            }
            check_op(graph, *op)?;
        }
        Ok(())
    }

    /// Only for what one row program both reads and writes: it runs row by row, each in one thread, so a row may be
    /// overwritten once it has been loaded, if it lies where the row of the same number is written. Projections,
    /// attention and gathers read rows at other times than they are written.
    fn may_overwrite(&self, graph: &Graph, group: usize, operand: ValueId, result: ValueId) -> bool {
        let Some(group) = graph.groups().get(group) else { return false };
        let row = row_bytes(graph, operand);
        if row.is_none() || row != row_bytes(graph, result) {
            return false;
        }
        let phases = schedule(graph, &group.ops);
        let mut reading =
            phases.iter().filter(|phase| phase.ops.iter().any(|op| graph.op(*op).inputs.contains(&operand)));
        let (Some(phase), None) = (reading.next(), reading.next()) else { return false };
        phase.kind == PhaseKind::Rows
            && phase.ops.iter().all(|op| reads_by_rows(graph, graph.op(*op), operand))
            && loads_before_storing(graph, &phase.ops, operand, result)
    }
}

/// The symbolic number of rows, and the bytes of each.
fn row_bytes(graph: &Graph, value: ValueId) -> Option<(Dim, usize)> {
    let tensor = graph.tensor_type(value)?;
    Some((tensor.rows(), tensor.width()?.checked_mul(tensor.dtype.size_in_bytes())?))
}

fn reads_by_rows(graph: &Graph, op: &Op, operand: ValueId) -> bool {
    let mut places = (0..op.inputs.len()).filter(|index| op.inputs[*index] == operand);
    places.all(|index| operand_use(graph, op, index) == Use::Rows)
}

/// Whether the row program of these ops loads a row of `operand` before it stores the row of `result`.
fn loads_before_storing(graph: &Graph, ops: &[OpId], operand: ValueId, result: ValueId) -> bool {
    let steps = steps(graph, ops, |value| value == result);
    let place = |step: Step| steps.iter().position(|other| *other == step);
    let (load, store) = (place(Step::Load(operand)), place(Step::Store(result)));
    load.is_some() && store.is_some() && load < store
}

/// A row program has its rows along axis 0, and can move elements within a row only.
fn check_movement(graph: &Graph, op: &Op) -> Result<(), String> {
    let rows = |value: ValueId| graph.tensor_type(value).map(|tensor| tensor.rows());
    let problem = match &op.kind {
        OpKind::Reshape { .. } => match (op.inputs.first().and_then(|x| rows(*x)), rows(op.output)) {
            (Some(before), Some(after)) if before != after => {
                format!("reshape changes axis 0 from {before} to {after}")
            }
            _ => return Ok(()),
        },
        OpKind::Slice { axis: 0, .. } => "slice takes a part of axis 0".to_owned(),
        OpKind::Concat { axis: 0 } => "concat appends along axis 0".to_owned(),
        OpKind::Transpose { permutation } if permutation.first().is_some_and(|axis| *axis != 0) => {
            "transpose moves axis 0".to_owned()
        }
        _ => return Ok(()),
    };
    Err(format!("{problem}: the CPU runs row by row along it, and moves elements within rows only"))
}

/// Checks what the types alone do not say: where operands come from, and that rows have a size.
fn check_op(graph: &Graph, id: OpId) -> Result<(), String> {
    let op = graph.op(id);
    let name = op.kind.name();
    for (index, &value) in op.inputs.iter().enumerate() {
        let definition = &graph.value(value).definition;
        let problem = match operand_use(graph, op, index) {
            Use::Rows => rows_problem(graph, id, value),
            Use::Gathered => computed_problem(graph, value),
            Use::Weight => (!matches!(definition, Definition::Weight(_))).then_some("it must be a weight".into()),
            Use::StepInput => {
                (!matches!(definition, Definition::Input(_))).then_some("it must be an input of the step".into())
            }
            Use::Cache => cache_problem(graph, value),
        };
        if let Some(problem) = problem {
            return Err(format!("operand {index} of {name}, %{}: {problem}", graph.value(value).name));
        }
    }
    match graph.tensor_type(op.output) {
        Some(tensor) if tensor.width().is_none() => Err(format!("the rows of {name} have no static size: {tensor}")),
        _ => Ok(()),
    }
}

/// A tensor that an op reads row by row must be computed, with as many rows as the op runs over.
fn rows_problem(graph: &Graph, op: OpId, value: ValueId) -> Option<String> {
    let rows = graph.tensor_type(value).map(|tensor| tensor.rows());
    computed_problem(graph, value).or_else(|| match (rows, graph.rows_of(op)) {
        (Some(rows), Ok(expected)) if rows == expected => None,
        (Some(rows), Ok(expected)) => Some(format!("it has {rows} rows where the operation runs over {expected}")),
        (None, _) => Some("it is no tensor".into()),
        (_, Err(problem)) => Some(problem),
    })
}

/// What kernels read from the arena: rows of numbers that an operation computed.
fn computed_problem(graph: &Graph, value: ValueId) -> Option<String> {
    match (graph.producer(value), graph.tensor_type(value)) {
        (_, None) => Some("it is no tensor".into()),
        (None, _) => Some("it must be computed by an operation".into()),
        (_, Some(tensor)) if !tensor.dtype.is_float() => Some(format!("rows of {} have no kernel", tensor.dtype)),
        (_, Some(tensor)) if tensor.width().is_none() => Some(format!("its rows have no static size: {tensor}")),
        _ => None,
    }
}

fn cache_problem(graph: &Graph, value: ValueId) -> Option<String> {
    let is_cache = matches!(graph.value(value).ty, ValueType::KvCache(_));
    (!is_cache).then(|| "it must be a KV cache".into())
}
