//! Lowering of one row phase to a row program.

use super::internal;
use super::lower::{Lowering, element_of};
use super::operands::row_shape;
use super::steps::{Step, steps};
use crate::element::ElementType;
use crate::linear::{RawWeights, WeightLayout};
use crate::row::{Indices, Instruction, Matrix, Movement, Register, RowProgram};
use allotrope_graph::{Definition, Op, OpId, OpKind, ValueId};
use allotrope_runtime::device::DeviceError;
use std::collections::HashMap;

/// A row program under construction.
pub(super) struct RowLowering<'a> {
    lowering: &'a Lowering<'a>,
    program: RowProgram,
    registers: HashMap<ValueId, Register>,
}

impl<'a> RowLowering<'a> {
    /// The ops of a phase as one row program.
    pub(super) fn program(lowering: &'a Lowering<'a>, ops: &[OpId]) -> Result<RowProgram, DeviceError> {
        let graph = lowering.graph;
        let mut rows = Self { lowering, program: RowProgram::default(), registers: HashMap::new() };
        for step in steps(graph, ops, |value| lowering.memory.offset(value).is_some()) {
            match step {
                Step::Load(value) => {
                    let (from, to) = (lowering.matrix(value)?, rows.register(value)?);
                    rows.program.push(Instruction::Load { to, from });
                    rows.registers.insert(value, to);
                }
                Step::Run(op) => rows.run(graph.op(op))?,
                Step::Store(value) => {
                    let (from, to) = (rows.held(value)?, lowering.matrix(value)?);
                    rows.program.push(Instruction::Store { from, to });
                }
            }
        }
        Ok(rows.program)
    }

    fn run(&mut self, op: &Op) -> Result<(), DeviceError> {
        match &op.kind {
            OpKind::KvWrite => self.kv_write(op),
            // The numbers of a row are the same under any shape.
            OpKind::Reshape { .. } => {
                let register = self.operand(op, 0)?;
                self.registers.insert(op.output, register);
                Ok(())
            }
            OpKind::Concat { axis } => self.concat(op, *axis),
            _ => {
                let to = self.register(op.output)?;
                let instruction = self.instruction(op, to)?;
                self.registers.insert(op.output, to);
                self.push(op, instruction)
            }
        }
    }

    fn push(&mut self, op: &Op, instruction: Instruction) -> Result<(), DeviceError> {
        if !instruction.fits() {
            return Err(self.lowering.broken(op, "its operands do not fit"));
        }
        self.program.push(instruction);
        Ok(())
    }

    /// A new register for rows of a value.
    fn register(&mut self, value: ValueId) -> Result<Register, DeviceError> {
        let graph = self.lowering.graph;
        let width = graph.tensor_type(value).and_then(|tensor| tensor.width());
        width
            .and_then(|width| self.program.register(width))
            .ok_or_else(|| internal(format!("a row of %{} has no size", graph.value(value).name)))
    }

    /// The register that holds a value: a vector for all rows, or a row that was loaded or computed.
    fn held(&mut self, value: ValueId) -> Result<Register, DeviceError> {
        if let Some(register) = self.registers.get(&value) {
            return Ok(*register);
        }
        let lowering = self.lowering;
        let Definition::Weight(name) = &lowering.graph.value(value).definition else {
            return Err(internal(format!("%{} was not loaded", lowering.graph.value(value).name)));
        };
        let raw = lowering.weight(value)?;
        if raw.rows != 1 || raw.layout != WeightLayout::Rows {
            return Err(internal(format!("weight `{name}` is no vector")));
        }
        let vector = Matrix { begin: raw.begin.cast_mut(), element: raw.element, width: raw.columns };
        let register = self.program.constant(vector).ok_or_else(|| internal(format!("weight `{name}` is too long")))?;
        self.registers.insert(value, register);
        Ok(register)
    }

    fn operand(&mut self, op: &Op, index: usize) -> Result<Register, DeviceError> {
        let value = self.lowering.operand(op, index)?;
        self.held(value)
    }

    fn instruction(&mut self, op: &Op, to: Register) -> Result<Instruction, DeviceError> {
        let element = element_of(self.lowering.graph, op.output)?;
        let from = |rows: &mut Self| rows.operand(op, 0);
        let other = |rows: &mut Self| rows.operand(op, 1);
        Ok(match &op.kind {
            OpKind::Embedding | OpKind::SelectRows => self.gather(op, to)?,
            OpKind::RopeAngles { inverse_frequencies, attention_scaling } => Instruction::RopeAngles {
                to,
                positions: self.lowering.step_input(self.lowering.operand(op, 0)?)?,
                frequencies: inverse_frequencies.clone(),
                scaling: *attention_scaling,
            },
            OpKind::Cast { .. } if element == ElementType::F8E4M3 => {
                Instruction::Quantize { to, from: from(self)?, scale: 1.0 }
            }
            OpKind::Cast { .. } => Instruction::Cast { to, from: from(self)?, element },
            OpKind::Quantize { scale } => Instruction::Quantize { to, from: from(self)?, scale: *scale },
            OpKind::RmsNorm { epsilon } | OpKind::HeadRmsNorm { epsilon, .. } => {
                Instruction::RmsNorm { to, from: from(self)?, weight: other(self)?, epsilon: *epsilon, element }
            }
            OpKind::Rope { heads } => {
                Instruction::Rope { to, from: from(self)?, angles: other(self)?, heads: *heads, element }
            }
            OpKind::Silu => Instruction::Silu { to, from: from(self)?, element },
            OpKind::Add => Instruction::Add { to, a: from(self)?, b: other(self)?, element },
            OpKind::Sub => Instruction::Sub { to, a: from(self)?, b: other(self)?, element },
            OpKind::Mul => Instruction::Mul { to, a: from(self)?, b: other(self)?, element },
            OpKind::MulScalar { factor } => Instruction::MulScalar { to, from: from(self)?, factor: *factor, element },
            OpKind::AddScalar { term } => Instruction::AddScalar { to, from: from(self)?, term: *term, element },
            OpKind::Slice { .. } | OpKind::Transpose { .. } => {
                Instruction::Move { to, from: from(self)?, movement: self.movement(op)? }
            }
            OpKind::Reshape { .. }
            | OpKind::Concat { .. }
            | OpKind::KvWrite
            | OpKind::Linear { .. }
            | OpKind::Attention { .. } => return Err(self.lowering.broken(op, "it is no single instruction")),
        })
    }

    /// Rows of a table, or of a value that another phase computed.
    fn gather(&self, op: &Op, to: Register) -> Result<Instruction, DeviceError> {
        let lowering = self.lowering;
        let source = lowering.operand(op, 0)?;
        let begin = lowering.step_input(lowering.operand(op, 1)?)?;
        let from = match op.kind {
            OpKind::Embedding => lowering.weight(source)?,
            _ => {
                let Matrix { begin, element, width: columns } = lowering.matrix(source)?;
                let rows = lowering.memory.rows(lowering.graph, source);
                RawWeights { begin, element, layout: WeightLayout::Rows, rows, columns }
            }
        };
        Ok(Instruction::Gather { to, from, indices: Indices { begin, limit: from.rows } })
    }

    fn row_shape(&self, op: &Op, index: usize) -> Result<Vec<usize>, DeviceError> {
        let shape = row_shape(self.lowering.graph, self.lowering.operand(op, index)?);
        shape.ok_or_else(|| self.lowering.broken(op, "a row of an operand has no size"))
    }

    /// A slice or a transposition within rows: axes are those of a row, without axis 0.
    fn movement(&self, op: &Op) -> Result<Movement, DeviceError> {
        let shape = self.row_shape(op, 0)?;
        match &op.kind {
            OpKind::Slice { axis, start, end } if *axis > 0 && start < end => {
                Ok(Movement::slice(&shape, axis - 1, *start, *end))
            }
            OpKind::Transpose { permutation } if permutation.first() == Some(&0) => {
                let permutation: Vec<usize> = permutation[1..].iter().map(|axis| axis - 1).collect();
                Ok(Movement::transpose(&shape, &permutation))
            }
            _ => Err(self.lowering.broken(op, "it would move rows")),
        }
    }

    /// One part of the result after the other.
    fn concat(&mut self, op: &Op, axis: usize) -> Result<(), DeviceError> {
        let result = row_shape(self.lowering.graph, op.output);
        let row_axis = axis.checked_sub(1);
        let (Some(axis), Some(result)) = (row_axis, result) else {
            return Err(self.lowering.broken(op, "it would append rows"));
        };
        let total = result.get(axis).copied().unwrap_or(0);
        let to = self.register(op.output)?;
        let mut start = 0;
        for index in 0..op.inputs.len() {
            let (from, shape) = (self.operand(op, index)?, self.row_shape(op, index)?);
            let movement = Movement::part(&shape, axis, start, total);
            self.push(op, Instruction::Move { to, from, movement })?;
            start += shape.get(axis).copied().unwrap_or(0);
        }
        self.registers.insert(op.output, to);
        Ok(())
    }

    fn kv_write(&mut self, op: &Op) -> Result<(), DeviceError> {
        let cache = self.lowering.cache(self.lowering.operand(op, 0)?)?;
        let (keys, values) = (self.operand(op, 1)?, self.operand(op, 2)?);
        let slots = self.lowering.step_input(self.lowering.operand(op, 3)?)?;
        self.push(op, Instruction::KvWrite { keys, values, cache, slots })
    }
}
