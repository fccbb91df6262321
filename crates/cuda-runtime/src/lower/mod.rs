//! From a group to the launch that runs it: which kernel, how many blocks, how much shared memory, what its parameter
//! holds. Needs no device, so that plans for CUDA can be made, printed and checked on any machine.

mod attention;
mod describe;
mod linear;
mod parameter;
mod ptx;

use allotrope_graph::{Dim, Graph, OpId, OpKind, ValueId};

use crate::program::{Features, MOST_POINTERS, Pointer, RowProgram};

pub use describe::{describe, kernels};
pub use parameter::{Parameter, Word};
pub use ptx::{CodeError, KernelPtx, Templates};

/// The most dynamic shared memory that a launch may ask for, in bytes: what every architecture from 8.0 on can give a block.
pub const MOST_SHARED_MEMORY: usize = 96 << 10;

/// Where a kernel's code comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum KernelCode {
    /// A kernel of the bundle, compiled ahead of time.
    Bundled {
        /// The source that it is in.
        source: &'static str,
        /// Its name.
        entry: String,
    },
    /// A row program: a module of generated PTX.
    Generated(RowProgram),
    /// A template of the bundle with generated code in its slots.
    Filled {
        /// The source that the template is in.
        source: &'static str,
        /// Its name.
        entry: String,
        /// What its slots are filled with.
        slots: Slots,
    },
}

impl KernelCode {
    /// The kernel's name.
    pub fn entry(&self) -> &str {
        match self {
            KernelCode::Bundled { entry, .. } | KernelCode::Filled { entry, .. } => entry,
            KernelCode::Generated(program) => program.entry,
        }
    }
}

/// What the slots of a template are filled with, apart from the graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Slots {
    /// The operations before the products.
    pub prologue: Vec<OpId>,
    /// What each product multiplies.
    pub inputs: Vec<ValueId>,
    /// The results that a block has, and what comes after them.
    pub bundles: Vec<crate::program::Bundle>,
    /// Rows of a tile.
    pub rows: usize,
}

/// Blocks of a launch: so many for each run of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Blocks for the same rows.
    pub blocks: u32,
    /// Rows that these compute.
    pub rows: u32,
    /// Whether rows are the second axis of the grid and not the first.
    pub rows_second: bool,
}

impl Grid {
    /// The grid for a batch with so many rows.
    pub fn dimensions(&self, rows: usize) -> [u32; 3] {
        let tiles = u32::try_from(rows).unwrap_or(u32::MAX).div_ceil(self.rows.max(1));
        if self.rows_second { [self.blocks, tiles, 1] } else { [tiles, self.blocks, 1] }
    }
}

/// One way to run a group.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// Batches of up to so many rows run it.
    pub most_rows: usize,
    /// The launches, in order: one, but for large batches whose inputs are made by a launch of their own.
    pub launches: Vec<PlannedLaunch>,
}

/// A launch, but for addresses.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedLaunch {
    /// The kernel.
    pub code: KernelCode,
    /// How many blocks.
    pub grid: Grid,
    /// Dynamic shared memory in bytes.
    pub shared_memory: usize,
    /// What the parameter holds, but for the array of pointers of generated code.
    pub parameter: Parameter,
}

/// What runs a group: the variants, ascending by the rows that they are for. The last is for any number.
#[derive(Debug, Clone, PartialEq)]
pub struct LaunchPlan {
    /// What counts the rows.
    pub rows: Dim,
    /// The variants.
    pub variants: Vec<Variant>,
}

/// Plans the launch of operations that [`CudaTarget`](crate::CudaTarget) accepts together.
///
/// # Errors
/// In words, why there is no kernel for them.
pub fn plan(graph: &Graph, ops: &[OpId], features: Features) -> Result<LaunchPlan, String> {
    let first = ops.first().ok_or("a launch without operations")?;
    let rows = graph.rows_of(*first)?;
    let one = |launch: PlannedLaunch| vec![Variant { most_rows: usize::MAX, launches: vec![launch] }];
    let variants = match family(graph, ops) {
        Family::Products => linear::variants(graph, ops, rows, Some(features))?,
        Family::Attention => one(attention::launch(graph, ops)?),
        Family::Rows => one(row_program(graph, ops, &[], features)),
    };
    Ok(LaunchPlan { rows, variants })
}

/// What the kernel of a group is built around.
enum Family {
    Products,
    Attention,
    Rows,
}

fn family(graph: &Graph, ops: &[OpId]) -> Family {
    let has = |is: fn(&OpKind) -> bool| ops.iter().any(|op| is(&graph.op(*op).kind));
    if has(|kind| matches!(kind, OpKind::Linear { .. })) {
        Family::Products
    } else if has(|kind| matches!(kind, OpKind::Attention { .. })) {
        Family::Attention
    } else {
        Family::Rows
    }
}

/// The launch of a row program, which writes `handed_over` beside what crosses launches anyway.
fn row_program(graph: &Graph, ops: &[OpId], handed_over: &[ValueId], features: Features) -> PlannedLaunch {
    let program = RowProgram::generate(graph, ops, handed_over, features);
    let grid = Grid { blocks: 1, rows: program.rows_per_block, rows_second: false };
    let mut parameter = Parameter::default();
    program.pointers.entries().iter().for_each(|pointer| parameter.push(Word::Pointer(*pointer)));
    PlannedLaunch { code: KernelCode::Generated(program), grid, shared_memory: 0, parameter }
}

/// Values inside a group that need memory while it runs.
pub(crate) fn workspace(graph: &Graph, ops: &[OpId]) -> Vec<ValueId> {
    match family(graph, ops) {
        Family::Products => linear::workspace(graph, ops),
        Family::Attention | Family::Rows => Vec::new(),
    }
}

/// Whether there is a kernel for these operations together, as far as sizes and types decide it.
///
/// # Errors
/// In words, why there is none.
pub(crate) fn check(graph: &Graph, ops: &[OpId]) -> Result<(), String> {
    let first = ops.first().ok_or("a launch without operations")?;
    // An entry for each operand from outside, for each attribute, and for each result; the live sizes and keys beside values.
    let operands: usize = ops.iter().map(|op| graph.op(*op).inputs.len()).sum();
    let entries = operands + 2 * ops.len() + 2;
    if entries > MOST_POINTERS && entries - internal_operands(graph, ops) > MOST_POINTERS {
        return Err(format!("one launch names at most {MOST_POINTERS} values and numbers"));
    }
    match family(graph, ops) {
        Family::Products => linear::variants(graph, ops, graph.rows_of(*first)?, None).map(drop),
        Family::Attention => attention::launch(graph, ops).map(drop),
        Family::Rows => Ok(()),
    }
}

/// Operands that the operations make themselves, which need no entry.
fn internal_operands(graph: &Graph, ops: &[OpId]) -> usize {
    let operands = ops.iter().flat_map(|op| &graph.op(*op).inputs);
    operands.filter(|value| graph.producer(**value).is_some_and(|op| ops.contains(&op))).count()
}

/// The live sizes as the first thing in a parameter.
const SIZES: Word = Word::Pointer(Pointer::Sizes);
