//! Row programs: chains of row operations, run row by row in cache.
//!
//! A program is a list of instructions over *registers*, which hold a row of single-precision numbers each. Loads
//! widen, operations round their result to its storage type where the op ends, and stores narrow what is rounded already.
//! So a value is the same whether it stays in a register or goes through memory between two programs, and any chain of
//! row operations is one program without a kernel of its own.

pub(crate) mod math;
mod movement;
mod ops;

use crate::attention::CacheView;
use crate::element::ElementType;
use crate::isa::{Isa, Task};
use crate::linear::RawWeights;
use crate::simd::{BLOCK_BYTES, LANES, Simd};
use crate::team::Worker;
use math::{narrow, widen, with_rounding};
pub(crate) use movement::Movement;
use std::ops::Range;
use std::sync::Arc;

/// A row of `width` single-precision numbers in scratch, padded to whole chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register {
    offset: usize,
    pub(crate) width: usize,
}

/// A dense row-major matrix in memory, known by address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub(crate) begin: *mut u8,
    pub(crate) element: ElementType,
    pub(crate) width: usize,
}

/// Indices by row, and what they must be below.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Indices {
    pub(crate) begin: *const i32,
    pub(crate) limit: usize,
}

/// One step of a program, applied to every row.
#[derive(Clone, Debug)]
pub(crate) enum Instruction {
    /// Reads the row of a matrix.
    Load { to: Register, from: Matrix },
    /// Reads the row that an index names. An index that is out of range reads zeros.
    Gather { to: Register, from: RawWeights, indices: Indices },
    /// Writes the row of a matrix.
    Store { from: Register, to: Matrix },
    /// Another element type.
    Cast { to: Register, from: Register, element: ElementType },
    /// Root mean square norm of every run of as many numbers as the weight has: a row, or a head.
    RmsNorm { to: Register, from: Register, weight: Register, epsilon: f32, element: ElementType },
    /// Division by a scale and rounding to E4M3.
    Quantize { to: Register, from: Register, scale: f32 },
    /// Cosines and sines of the row's position.
    RopeAngles { to: Register, positions: *const i32, frequencies: Arc<[f32]>, scaling: f32 },
    /// Rotation of every head.
    Rope { to: Register, from: Register, angles: Register, heads: usize, element: ElementType },
    /// Writes key and value to the row's slot; a slot that is out of range, such as −1, writes nothing.
    KvWrite { keys: Register, values: Register, cache: CacheView, slots: *const i32 },
    /// `x / (1 + exp(−x))`.
    Silu { to: Register, from: Register, element: ElementType },
    /// Sum.
    Add { to: Register, a: Register, b: Register, element: ElementType },
    /// Difference.
    Sub { to: Register, a: Register, b: Register, element: ElementType },
    /// Product.
    Mul { to: Register, a: Register, b: Register, element: ElementType },
    /// Product with a number.
    MulScalar { to: Register, from: Register, factor: f32, element: ElementType },
    /// Sum with a number.
    AddScalar { to: Register, from: Register, term: f32, element: ElementType },
    /// Elements of one row to places in another, whose other elements stay as they are.
    Move { to: Register, from: Register, movement: Movement },
}

impl Instruction {
    /// Whether the registers and memory that the instruction names have the widths that it needs, and its result a type
    /// that it rounds to.
    pub(crate) fn fits(&self) -> bool {
        let element = match self {
            Self::Cast { element, .. } | Self::RmsNorm { element, .. } | Self::Rope { element, .. } => *element,
            Self::Silu { element, .. } | Self::MulScalar { element, .. } | Self::AddScalar { element, .. } => *element,
            Self::Add { element, .. } | Self::Sub { element, .. } | Self::Mul { element, .. } => *element,
            _ => ElementType::F32,
        };
        if element == ElementType::F8E4M3 {
            return false;
        }
        match self {
            Self::Load { to: register, from: matrix } | Self::Store { from: register, to: matrix } => {
                register.width == matrix.width
            }
            Self::Gather { to, from, .. } => to.width == from.columns,
            Self::Cast { to, from, .. }
            | Self::Quantize { to, from, .. }
            | Self::Silu { to, from, .. }
            | Self::MulScalar { to, from, .. }
            | Self::AddScalar { to, from, .. } => to.width == from.width,
            Self::RmsNorm { to, from, weight, .. } => {
                to.width == from.width && weight.width > 0 && from.width.is_multiple_of(weight.width)
            }
            Self::RopeAngles { to, frequencies, .. } => to.width == 2 * frequencies.len(),
            Self::Rope { to, from, angles, heads, .. } => {
                let even = angles.width > 0 && angles.width.is_multiple_of(2);
                even && to.width == from.width && angles.width.checked_mul(*heads) == Some(from.width)
            }
            Self::KvWrite { keys, values, cache, .. } => {
                keys.width == values.width && cache.kv_heads.checked_mul(cache.head_dim) == Some(keys.width)
            }
            Self::Add { to, a, b, .. } | Self::Sub { to, a, b, .. } | Self::Mul { to, a, b, .. } => {
                to.width == a.width && to.width == b.width
            }
            Self::Move { to, from, movement } => movement.fits(from.width, to.width),
        }
    }
}

/// A chain of row operations with all addresses known.
#[derive(Clone, Debug, Default)]
pub(crate) struct RowProgram {
    /// Vectors that all rows share, read once by each member.
    constants: Vec<(Register, Matrix)>,
    instructions: Vec<Instruction>,
    /// Numbers of scratch.
    scratch: usize,
    /// The width of the widest register.
    widest: usize,
    /// Begin and length of what registers have after the end of a row.
    padding: Vec<(usize, usize)>,
}

// SAFETY: a program is addresses and numbers; its use across threads is governed by the contract of `run`.
unsafe impl Sync for RowProgram {}
// SAFETY: as above.
unsafe impl Send for RowProgram {}

impl RowProgram {
    /// A new register for rows of `width` numbers, or `None` if scratch would overflow.
    pub(crate) fn register(&mut self, width: usize) -> Option<Register> {
        let offset = self.scratch;
        self.scratch = width.checked_next_multiple_of(LANES)?.checked_add(offset)?;
        self.scratch_bytes().checked_mul(2)?;
        self.widest = self.widest.max(width);
        if self.scratch > offset + width {
            self.padding.push((offset + width, self.scratch - offset - width));
        }
        Some(Register { offset, width })
    }

    /// A register that holds a vector for all rows.
    pub(crate) fn constant(&mut self, vector: Matrix) -> Option<Register> {
        let register = self.register(vector.width)?;
        self.constants.push((register, vector));
        Some(register)
    }

    /// Appends an instruction.
    pub(crate) fn push(&mut self, instruction: Instruction) {
        self.instructions.push(instruction);
    }

    /// Bytes of scratch that each member needs.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.scratch.saturating_mul(4)
    }

    /// Does this member's share of `rows` rows. All members must call it; what it writes is complete after the next
    /// barrier.
    ///
    /// # Safety
    /// All addresses must be valid for `rows` rows. Until the barrier nobody else may write what the program reads, nor
    /// touch what it writes. A row that a `Store` writes may be, byte for byte, the row of the same number that one
    /// `Load` before it in the program reads and nothing else does; apart from that, nothing written may overlap anything
    /// that the program reads or writes. `scratch` must have `scratch_bytes` bytes and be aligned to a number. Registers
    /// must be of this program.
    pub(crate) unsafe fn run(&self, isa: Isa, worker: &Worker<'_>, rows: usize, scratch: &mut [u8]) {
        // SAFETY: forwarded.
        unsafe { self.run_rows(isa, worker.partition(rows), scratch) };
    }

    /// Does some rows.
    ///
    /// # Safety
    /// As [`RowProgram::run`], where "nobody else" is whoever runs no other rows of it.
    pub(crate) unsafe fn run_rows(&self, isa: Isa, rows: Range<usize>, scratch: &mut [u8]) {
        if !rows.is_empty() {
            debug_assert!(scratch.len() >= self.scratch_bytes());
            isa.dispatch(RunRows { program: self, rows, scratch: scratch.as_mut_ptr().cast() });
        }
    }

    /// The instructions.
    pub(crate) fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// Whether each number depends on numbers at the same place of rows only.
    fn is_elementwise(&self) -> bool {
        let elementwise = |instruction: &Instruction| match instruction {
            Instruction::Load { .. }
            | Instruction::Store { .. }
            | Instruction::Cast { .. }
            | Instruction::Quantize { .. }
            | Instruction::Silu { .. }
            | Instruction::Add { .. }
            | Instruction::Sub { .. }
            | Instruction::Mul { .. }
            | Instruction::MulScalar { .. }
            | Instruction::AddScalar { .. } => true,
            Instruction::Gather { .. }
            | Instruction::RmsNorm { .. }
            | Instruction::RopeAngles { .. }
            | Instruction::Rope { .. }
            | Instruction::KvWrite { .. }
            | Instruction::Move { .. } => false,
        };
        self.constants.is_empty() && self.instructions.iter().all(elementwise)
    }

    /// The program with other instructions over the same registers.
    pub(crate) fn with_instructions(&self, instructions: Vec<Instruction>) -> Self {
        Self { instructions, ..self.clone() }
    }
}

struct RunRows<'a> {
    program: &'a RowProgram,
    rows: Range<usize>,
    scratch: *mut f32,
}

impl Task for RunRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let program = self.program;
        let whole = Registers { begin: self.scratch, columns: 0..usize::MAX };
        // SAFETY: the contract of `RowProgram::run`; the features are present inside `dispatch`.
        unsafe {
            // Lanes after a row's end are computed with and never looked at; zeros are as fast there as any number,
            // which what another program left there might not be.
            for &(begin, len) in &program.padding {
                std::ptr::write_bytes(self.scratch.add(begin), 0, len);
            }
            for (register, vector) in &program.constants {
                widen::<S>(vector.element, vector.begin, whole.row_mut(*register));
            }
            // Wide rows are worked on in strips, whose registers the first-level cache holds.
            let strip = if program.is_elementwise() { STRIP } else { usize::MAX };
            for row in self.rows {
                for first in (0..program.widest.max(1)).step_by(strip) {
                    let registers = Registers { begin: self.scratch, columns: first..first.saturating_add(strip) };
                    for instruction in &program.instructions {
                        step::<S>(instruction, row, &registers);
                    }
                }
            }
        }
    }
}

/// Numbers of a strip: whole chunks, four kilobytes in each register.
const STRIP: usize = 1024;

/// The registers of a running program, with some columns of a row.
struct Registers {
    begin: *mut f32,
    columns: Range<usize>,
}

impl Registers {
    /// How many numbers of a row are at hand.
    #[inline(always)]
    fn width(&self, register: Register) -> usize {
        register.width.min(self.columns.end).saturating_sub(self.columns.start)
    }

    /// The address of the first of them in row `row` of a matrix.
    #[inline(always)]
    fn place(&self, matrix: &Matrix, row: usize) -> *mut u8 {
        matrix.begin.wrapping_add((row * matrix.width + self.columns.start) * matrix.element.bytes())
    }

    /// The numbers of a row, to be written.
    ///
    /// # Safety
    /// The register must be of the program whose scratch this is, and not be borrowed in any way.
    #[inline(always)]
    #[expect(
        clippy::mut_from_ref,
        reason = "registers are disjoint, and one that is written is not borrowed, by this function's contract"
    )]
    unsafe fn row_mut(&self, register: Register) -> &mut [f32] {
        // SAFETY: the program's scratch has room for all its registers.
        unsafe { std::slice::from_raw_parts_mut(self.begin.add(register.offset), self.width(register)) }
    }

    /// The whole chunks of a row, to be written.
    ///
    /// # Safety
    /// As [`Registers::row_mut`].
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "as above")]
    unsafe fn chunks_mut(&self, register: Register) -> &mut [f32] {
        let width = self.width(register).next_multiple_of(LANES);
        // SAFETY: registers are padded to whole chunks.
        unsafe { std::slice::from_raw_parts_mut(self.begin.add(register.offset), width) }
    }

    /// The numbers of a row.
    ///
    /// # Safety
    /// The register must be of the program whose scratch this is, and not be borrowed to be written.
    #[inline(always)]
    unsafe fn row(&self, register: Register) -> &[f32] {
        // SAFETY: the program's scratch has room for all its registers.
        unsafe { std::slice::from_raw_parts(self.begin.add(register.offset), self.width(register)) }
    }

    /// The whole chunks of a row.
    ///
    /// # Safety
    /// As [`Registers::row`].
    #[inline(always)]
    unsafe fn chunks(&self, register: Register) -> &[f32] {
        let width = self.width(register).next_multiple_of(LANES);
        // SAFETY: registers are padded to whole chunks.
        unsafe { std::slice::from_raw_parts(self.begin.add(register.offset), width) }
    }
}

/// Runs one instruction on one row.
///
/// # Safety
/// The contract of [`RowProgram::run`].
#[inline(always)]
unsafe fn step<S: Simd>(instruction: &Instruction, row: usize, registers: &Registers) {
    // SAFETY: the addresses are valid for the row. No instruction reads the register that it writes, so the mutable
    // borrow is the only one of it; operands, which may be one register, are only read.
    unsafe {
        match instruction {
            Instruction::Load { to, from } => {
                widen::<S>(from.element, registers.place(from, row), registers.row_mut(*to));
            }
            Instruction::Gather { to, from, indices } => gather::<S>(registers.row_mut(*to), from, indices, row),
            Instruction::Store { from, to } => {
                narrow::<S>(to.element, registers.row(*from), registers.place(to, row));
            }
            Instruction::Cast { to, from, element } => {
                let (to, x) = (registers.chunks_mut(*to), registers.chunks(*from));
                with_rounding!(*element, R => ops::cast::<S, R>(to, x));
            }
            Instruction::RmsNorm { to, from, weight, epsilon, element } => {
                let (to, x, w) = (registers.row_mut(*to), registers.row(*from), registers.chunks(*weight));
                with_rounding!(*element, R => ops::rms_norm::<S, R>(to, x, w, weight.width, *epsilon));
            }
            Instruction::Quantize { to, from, scale } => {
                ops::quantize::<S, math::ToE4m3>(registers.chunks_mut(*to), registers.chunks(*from), *scale);
            }
            Instruction::RopeAngles { to, positions, frequencies, scaling } => {
                ops::rope_angles(registers.row_mut(*to), positions.add(row).read(), frequencies, *scaling);
            }
            Instruction::Rope { to, from, angles, heads, element } => {
                let (to, x, a) = (registers.chunks_mut(*to), registers.chunks(*from), registers.row(*angles));
                with_rounding!(*element, R => ops::rope::<S, R>(to, x, a, *heads, angles.width / 2));
            }
            Instruction::KvWrite { keys, values, cache, slots } => {
                let slot = slots.add(row).read();
                cache.write::<S>(slot, registers.row(*keys), registers.row(*values));
            }
            Instruction::Silu { to, from, element } => {
                let (to, x) = (registers.chunks_mut(*to), registers.chunks(*from));
                with_rounding!(*element, R => ops::silu_row::<S, R>(to, x));
            }
            Instruction::Add { to, a, b, element } => {
                let (to, a, b) = (registers.chunks_mut(*to), registers.chunks(*a), registers.chunks(*b));
                with_rounding!(*element, R => ops::add::<S, R>(to, a, b));
            }
            Instruction::Sub { to, a, b, element } => {
                let (to, a, b) = (registers.chunks_mut(*to), registers.chunks(*a), registers.chunks(*b));
                with_rounding!(*element, R => ops::sub::<S, R>(to, a, b));
            }
            Instruction::Mul { to, a, b, element } => {
                let (to, a, b) = (registers.chunks_mut(*to), registers.chunks(*a), registers.chunks(*b));
                with_rounding!(*element, R => ops::mul::<S, R>(to, a, b));
            }
            Instruction::MulScalar { to, from, factor, element } => {
                let (to, x) = (registers.chunks_mut(*to), registers.chunks(*from));
                with_rounding!(*element, R => ops::mul_scalar::<S, R>(to, x, *factor));
            }
            Instruction::AddScalar { to, from, term, element } => {
                let (to, x) = (registers.chunks_mut(*to), registers.chunks(*from));
                with_rounding!(*element, R => ops::add_scalar::<S, R>(to, x, *term));
            }
            Instruction::Move { to, from, movement } => movement.run(registers.row(*from), registers.row_mut(*to)),
        }
    }
}

/// Reads the row of a table that an index names.
///
/// # Safety
/// The table and the index of `row` must be readable.
#[inline(always)]
unsafe fn gather<S: Simd>(to: &mut [f32], from: &RawWeights, indices: &Indices, row: usize) {
    // SAFETY: the caller's contract; the index is checked before it is followed.
    unsafe {
        let index = indices.begin.add(row).read();
        let Some(index) = usize::try_from(index).ok().filter(|&index| index < indices.limit) else {
            to.fill(0.0);
            return;
        };
        let begin = from.begin.add(from.row_offset(index));
        let (_, block_stride) = from.strides();
        if block_stride == BLOCK_BYTES {
            widen::<S>(from.element, begin, to);
        } else {
            let per_block = BLOCK_BYTES / from.element.bytes();
            for (block, to) in to.chunks_mut(per_block).enumerate() {
                widen::<S>(from.element, begin.add(block * block_stride), to);
            }
        }
    }
}
