//! Lowering: a group of ops becomes phases over resolved addresses.

use super::phase::{Phase, Work};
use super::schedule::{PhaseKind, PhaseOps, schedule};
use super::target::rows_of;
use super::{Memory, internal, weights::LoadedWeights};
use crate::attention::{Attention, CacheView};
use crate::element::ElementType;
use crate::isa::Isa;
use crate::linear::{Job, RawWeights, WeightLayout};
use crate::row::{Indices, Instruction, Matrix, Register, RowProgram};
use allotrope_graph::{Definition, Graph, Op, OpId, OpKind, ValueId};
use allotrope_runtime::device::DeviceError;
use std::collections::HashMap;

/// What lowering refers to.
pub(super) struct Lowering<'a> {
    pub(super) graph: &'a Graph,
    pub(super) memory: &'a Memory,
    pub(super) weights: &'a LoadedWeights,
    pub(super) isa: Isa,
}

impl Lowering<'_> {
    /// The phases of a group that the target accepted.
    pub(super) fn phases(&self, ops: &[OpId]) -> Result<Vec<Phase>, DeviceError> {
        schedule(self.graph, ops).iter().map(|phase| self.phase(phase)).collect()
    }

    fn phase(&self, phase: &PhaseOps) -> Result<Phase, DeviceError> {
        let first = phase.ops.first().copied().ok_or_else(|| internal("a phase without ops".to_owned()))?;
        let rows = rows_of(self.graph, first).map_err(internal)?;
        let work = match phase.kind {
            PhaseKind::Rows => Work::Rows(self.row_program(&phase.ops)?),
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
        Ok(Job { isa: self.isa, x: x.begin, weights, scale: scale.unwrap_or(1.0), y: y.begin, output: y.element })
    }

    fn attention(&self, op: &Op) -> Result<Attention, DeviceError> {
        let OpKind::Attention { heads, scale } = op.kind else { return Err(self.broken(op, "not attention")) };
        let (queries, output) = (self.matrix(self.operand(op, 0)?)?, self.matrix(op.output)?);
        let cache = self.cache(self.operand(op, 1)?)?;
        let width = heads.checked_mul(cache.head_dim);
        let fits = heads > 0 && heads.is_multiple_of(cache.kv_heads) && queries.element == cache.element;
        if !fits || width != Some(queries.width) || queries.width != output.width || queries.element != output.element {
            return Err(self.broken(op, "its operands do not fit"));
        }
        Ok(Attention {
            queries: queries.begin,
            output: output.begin,
            heads,
            scale,
            cache,
            positions: self.step_input(self.operand(op, 2)?)?,
            token_sequences: self.step_input(self.operand(op, 3)?)?,
            block_tables: self.step_input(self.operand(op, 4)?)?,
        })
    }

    /// The ops of a phase as one row program.
    fn row_program(&self, ops: &[OpId]) -> Result<RowProgram, DeviceError> {
        let mut rows = RowLowering { lowering: self, program: RowProgram::default(), registers: HashMap::new() };
        for op in ops {
            let op = self.graph.op(*op);
            if let OpKind::KvWrite = op.kind {
                rows.kv_write(op)?;
                continue;
            }
            let to = rows.register(op.output)?;
            let instruction = rows.instruction(op, to)?;
            if !instruction.fits() {
                return Err(self.broken(op, "its operands do not fit"));
            }
            rows.program.push(instruction);
            rows.registers.insert(op.output, to);
            if self.memory.offset(op.output).is_some() {
                rows.program.push(Instruction::Store { from: to, to: self.matrix(op.output)? });
            }
        }
        Ok(rows.program)
    }

    fn operand(&self, op: &Op, index: usize) -> Result<ValueId, DeviceError> {
        op.inputs.get(index).copied().ok_or_else(|| self.broken(op, "an operand is missing"))
    }

    /// A computed matrix in the arena.
    fn matrix(&self, value: ValueId) -> Result<Matrix, DeviceError> {
        let name = &self.graph.value(value).name;
        let tensor = self.graph.tensor_type(value).ok_or_else(|| internal(format!("%{name} is no tensor")))?;
        let begin =
            self.memory.address(value, tensor).ok_or_else(|| internal(format!("%{name} has no place in the arena")))?;
        let element = element_of(self.graph, value)?;
        let width = tensor.width().ok_or_else(|| internal(format!("%{name} has no static width")))?;
        Ok(Matrix { begin, element, width })
    }

    fn weight(&self, value: ValueId) -> Result<RawWeights, DeviceError> {
        self.weights
            .get(value)
            .ok_or_else(|| internal(format!("weight %{} was not loaded", self.graph.value(value).name)))
    }

    fn step_input(&self, value: ValueId) -> Result<*const i32, DeviceError> {
        match self.graph.value(value).definition {
            Definition::Input(input) => Ok(self.memory.input(input)),
            _ => Err(internal(format!("%{} is no input of the step", self.graph.value(value).name))),
        }
    }

    /// The layer's cache that a state value stands for, before or after writes.
    fn cache(&self, mut value: ValueId) -> Result<CacheView, DeviceError> {
        loop {
            let state = self.graph.value(value);
            match &state.definition {
                Definition::State { layer } => {
                    return self.memory.cache(*layer).ok_or_else(|| internal(format!("layer {layer} has no KV cache")));
                }
                Definition::Op(op) => value = self.operand(self.graph.op(*op), 0)?,
                _ => return Err(internal(format!("%{} is no KV cache", state.name))),
            }
        }
    }

    fn broken(&self, op: &Op, what: &str) -> DeviceError {
        internal(format!("%{} = {}: {what}", self.graph.value(op.output).name, op.kind.name()))
    }
}

/// The element type of a computed value.
fn element_of(graph: &Graph, value: ValueId) -> Result<ElementType, DeviceError> {
    let found = graph.tensor_type(value).and_then(|tensor| ElementType::from_dtype(tensor.dtype));
    found.ok_or_else(|| internal(format!("%{} has no float elements", graph.value(value).name)))
}

/// A row program under construction.
struct RowLowering<'a> {
    lowering: &'a Lowering<'a>,
    program: RowProgram,
    registers: HashMap<ValueId, Register>,
}

impl RowLowering<'_> {
    fn register(&mut self, value: ValueId) -> Result<Register, DeviceError> {
        let graph = self.lowering.graph;
        let width = graph.tensor_type(value).and_then(|tensor| tensor.width());
        width
            .and_then(|width| self.program.register(width))
            .ok_or_else(|| internal(format!("a row of %{} has no size", graph.value(value).name)))
    }

    /// The register of an operand, loaded on first use.
    fn load(&mut self, value: ValueId) -> Result<Register, DeviceError> {
        if let Some(register) = self.registers.get(&value) {
            return Ok(*register);
        }
        let lowering = self.lowering;
        let register = if let Definition::Weight(name) = &lowering.graph.value(value).definition {
            let raw = lowering.weight(value)?;
            if raw.rows != 1 || raw.layout != WeightLayout::Rows {
                return Err(internal(format!("weight `{name}` is no vector")));
            }
            let vector = Matrix { begin: raw.begin.cast_mut(), element: raw.element, width: raw.columns };
            self.program.constant(vector).ok_or_else(|| internal(format!("weight `{name}` is too long")))?
        } else {
            let register = self.register(value)?;
            self.program.push(Instruction::Load { to: register, from: lowering.matrix(value)? });
            register
        };
        self.registers.insert(value, register);
        Ok(register)
    }

    fn operand(&mut self, op: &Op, index: usize) -> Result<Register, DeviceError> {
        let value = self.lowering.operand(op, index)?;
        self.load(value)
    }

    fn instruction(&mut self, op: &Op, to: Register) -> Result<Instruction, DeviceError> {
        let lowering = self.lowering;
        let element = element_of(lowering.graph, op.output)?;
        Ok(match &op.kind {
            OpKind::Embedding => {
                let from = lowering.weight(lowering.operand(op, 0)?)?;
                let begin = lowering.step_input(lowering.operand(op, 1)?)?;
                Instruction::Gather { to, from, indices: Indices { begin, limit: from.rows } }
            }
            OpKind::SelectRows => {
                let source = lowering.operand(op, 0)?;
                let matrix = lowering.matrix(source)?;
                let rows = lowering.memory.rows(lowering.graph, source);
                let from = RawWeights {
                    begin: matrix.begin,
                    element: matrix.element,
                    layout: WeightLayout::Rows,
                    rows,
                    columns: matrix.width,
                };
                let begin = lowering.step_input(lowering.operand(op, 1)?)?;
                Instruction::Gather { to, from, indices: Indices { begin, limit: rows } }
            }
            OpKind::Cast { .. } if element == ElementType::F8E4M3 => {
                Instruction::Quantize { to, from: self.operand(op, 0)?, scale: 1.0 }
            }
            OpKind::Cast { .. } => Instruction::Cast { to, from: self.operand(op, 0)?, element },
            OpKind::RmsNorm { epsilon } => Instruction::RmsNorm {
                to,
                from: self.operand(op, 0)?,
                weight: self.operand(op, 1)?,
                epsilon: *epsilon,
                element,
            },
            OpKind::Quantize { scale } => Instruction::Quantize { to, from: self.operand(op, 0)?, scale: *scale },
            OpKind::RopeAngles { inverse_frequencies, attention_scaling } => Instruction::RopeAngles {
                to,
                positions: lowering.step_input(lowering.operand(op, 0)?)?,
                frequencies: inverse_frequencies.clone(),
                scaling: *attention_scaling,
            },
            OpKind::Rope { heads } => Instruction::Rope {
                to,
                from: self.operand(op, 0)?,
                angles: self.operand(op, 1)?,
                heads: *heads,
                element,
            },
            OpKind::Silu => Instruction::Silu { to, from: self.operand(op, 0)?, element },
            OpKind::Add => Instruction::Add { to, a: self.operand(op, 0)?, b: self.operand(op, 1)?, element },
            OpKind::Mul => Instruction::Mul { to, a: self.operand(op, 0)?, b: self.operand(op, 1)?, element },
            OpKind::Linear { .. } | OpKind::Attention { .. } | OpKind::KvWrite => {
                return Err(lowering.broken(op, "it yields no row"));
            }
        })
    }

    fn kv_write(&mut self, op: &Op) -> Result<(), DeviceError> {
        let cache = self.lowering.cache(self.lowering.operand(op, 0)?)?;
        let (keys, values) = (self.operand(op, 1)?, self.operand(op, 2)?);
        let slots = self.lowering.step_input(self.lowering.operand(op, 3)?)?;
        let instruction = Instruction::KvWrite { keys, values, cache, slots };
        if !instruction.fits() {
            return Err(self.lowering.broken(op, "its operands do not fit"));
        }
        self.program.push(instruction);
        Ok(())
    }
}
