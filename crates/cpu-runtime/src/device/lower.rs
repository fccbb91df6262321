//! Lowering: a group of ops becomes phases over resolved addresses.

use super::phase::{Phase, Work};
use super::rows::RowLowering;
use super::schedule::{PhaseKind, PhaseOps, schedule};
use super::{CpuTarget, Memory, internal, weights::LoadedWeights};
use crate::attention::{Attention, CacheView};
use crate::element::ElementType;
use crate::isa::Isa;
use crate::linear::tuning::Tunings;
use crate::linear::{Job, RawWeights};
use crate::row::Matrix;
use allotrope_graph::{Definition, Graph, Op, OpKind, Target, ValueId};
use allotrope_runtime::device::DeviceError;
use std::ops::Range;

/// What lowering refers to.
pub(super) struct Lowering<'a> {
    pub(super) graph: &'a Graph,
    pub(super) memory: &'a Memory,
    pub(super) weights: &'a LoadedWeights,
    pub(super) isa: Isa,
    pub(super) tunings: &'a Tunings,
}

impl Lowering<'_> {
    /// The phases of a group that the target accepted.
    pub(super) fn phases(&self, group: usize) -> Result<Vec<Phase>, DeviceError> {
        self.check_overlaps(group)?;
        schedule(self.graph, &self.graph.groups()[group].ops).iter().map(|phase| self.phase(phase)).collect()
    }

    /// Kernels write nothing that they still read: the memory plan gives all values of a launch bytes of their own, but
    /// for results in place of operands, and those only where the target said that they may be.
    fn check_overlaps(&self, group: usize) -> Result<(), DeviceError> {
        let graph = self.graph;
        let ranges = |values: Vec<ValueId>| -> Vec<(ValueId, Range<usize>)> {
            values.into_iter().filter_map(|value| Some((value, self.memory.range(value)?))).collect()
        };
        let outside = ranges(graph.group_inputs(&graph.groups()[group]));
        let made = ranges(graph.groups()[group].ops.iter().map(|op| graph.op(*op).output).collect());
        for (index, (result, range)) in made.iter().enumerate() {
            let overlaps = |other: &Range<usize>| range.start < other.end && other.start < range.end;
            let name = |value: &ValueId| &graph.value(*value).name;
            if let Some((other, _)) = made[..index].iter().find(|(_, other)| overlaps(other)) {
                return Err(internal(format!("the memory plan puts %{} over %{}", name(result), name(other))));
            }
            for (operand, other) in outside.iter().filter(|(_, other)| overlaps(other)) {
                if range.start != other.start || !CpuTarget.may_overwrite(graph, group, *operand, *result) {
                    let (result, operand) = (name(result), name(operand));
                    return Err(internal(format!(
                        "the memory plan puts %{result} over %{operand}, which its launch has still to read"
                    )));
                }
            }
        }
        Ok(())
    }

    fn phase(&self, phase: &PhaseOps) -> Result<Phase, DeviceError> {
        let first = phase.ops.first().copied().ok_or_else(|| internal("a phase without ops".to_owned()))?;
        let rows = self.graph.rows_of(first).map_err(internal)?;
        let work = match phase.kind {
            PhaseKind::Rows => Work::Rows(RowLowering::program(self, &phase.ops)?),
            PhaseKind::Linear => {
                Work::Linear(phase.ops.iter().map(|op| self.linear(self.graph.op(*op))).collect::<Result<_, _>>()?)
            }
            PhaseKind::Attention => Work::Attention(self.attention(self.graph.op(first))?),
        };
        Ok(Phase { work, rows })
    }

    fn linear(&self, op: &Op) -> Result<Job, DeviceError> {
        let OpKind::Linear { scale, .. } = op.kind else { return Err(self.broken(op, "not a linear")) };
        let (x, y) = (self.matrix(self.operand(op, 0)?)?, self.matrix(op.output)?);
        let weights = self.weight(self.operand(op, 1)?)?;
        if x.width != weights.columns || x.element != weights.element || y.width != weights.rows {
            return Err(self.broken(op, "its operands do not fit"));
        }
        let tuning = self.tunings.of(&weights);
        let scale = scale.unwrap_or(1.0);
        Ok(Job { isa: self.isa, x: x.begin, weights, scale, y: y.begin, output: y.element, tuning })
    }

    fn attention(&self, op: &Op) -> Result<Attention, DeviceError> {
        let OpKind::Attention { heads, scale } = op.kind else { return Err(self.broken(op, "not attention")) };
        let (queries, output) = (self.matrix(self.operand(op, 0)?)?, self.matrix(op.output)?);
        let cache = self.cache(self.operand(op, 1)?)?;
        let width = heads.checked_mul(cache.head_dim);
        let fits = heads > 0
            && heads.is_multiple_of(cache.kv_heads)
            && [queries.element, ElementType::F8E4M3].contains(&cache.element);
        if !fits || width != Some(queries.width) || queries.width != output.width || queries.element != output.element {
            return Err(self.broken(op, "its operands do not fit"));
        }
        Ok(Attention {
            queries: queries.begin,
            output: output.begin,
            element: queries.element,
            heads,
            scale,
            cache,
            positions: self.step_input(self.operand(op, 2)?)?,
            token_sequences: self.step_input(self.operand(op, 3)?)?,
            block_tables: self.step_input(self.operand(op, 4)?)?,
            records: self.memory.records(),
        })
    }

    pub(super) fn operand(&self, op: &Op, index: usize) -> Result<ValueId, DeviceError> {
        op.inputs.get(index).copied().ok_or_else(|| self.broken(op, "an operand is missing"))
    }

    /// A computed matrix in the arena.
    pub(super) fn matrix(&self, value: ValueId) -> Result<Matrix, DeviceError> {
        let name = &self.graph.value(value).name;
        let tensor = self.graph.tensor_type(value).ok_or_else(|| internal(format!("%{name} is no tensor")))?;
        let begin =
            self.memory.address(value, tensor).ok_or_else(|| internal(format!("%{name} has no place in the arena")))?;
        let element = element_of(self.graph, value)?;
        let width = tensor.width().ok_or_else(|| internal(format!("%{name} has no static width")))?;
        Ok(Matrix { begin, element, width })
    }

    pub(super) fn weight(&self, value: ValueId) -> Result<RawWeights, DeviceError> {
        self.weights
            .get(value)
            .ok_or_else(|| internal(format!("weight %{} was not loaded", self.graph.value(value).name)))
    }

    pub(super) fn step_input(&self, value: ValueId) -> Result<*const i32, DeviceError> {
        match self.graph.value(value).definition {
            Definition::Input(input) => Ok(self.memory.input(input)),
            _ => Err(internal(format!("%{} is no input of the step", self.graph.value(value).name))),
        }
    }

    /// The layer's cache that a state value stands for, before or after writes.
    pub(super) fn cache(&self, value: ValueId) -> Result<CacheView, DeviceError> {
        let name = &self.graph.value(value).name;
        let layer = self.graph.cache_layer(value).ok_or_else(|| internal(format!("%{name} is no KV cache")))?;
        self.memory.cache(layer).ok_or_else(|| internal(format!("layer {layer} has no KV cache")))
    }

    pub(super) fn broken(&self, op: &Op, what: &str) -> DeviceError {
        internal(format!("%{} = {}: {what}", self.graph.value(op.output).name, op.kind.name()))
    }
}

/// The element type of a computed value.
pub(super) fn element_of(graph: &Graph, value: ValueId) -> Result<ElementType, DeviceError> {
    let found = graph.tensor_type(value).and_then(|tensor| ElementType::from_dtype(tensor.dtype));
    found.ok_or_else(|| internal(format!("%{} has no float elements", graph.value(value).name)))
}
