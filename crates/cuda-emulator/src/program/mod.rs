//! Kernels as the machine runs them: registers are indices, constants are registers with a value, labels are places.

mod lower;
mod operands;

use crate::machine::{Block, Outcome, Warp};
use crate::ptx::{Position, syntax::Space};

pub use lower::{Place, load};

/// A register that an instruction does not have.
pub const NONE: u32 = u32::MAX;

/// What runs an instruction for the lanes of a mask.
pub type Execute = fn(&mut Warp, &mut Block<'_>, &Instruction, u32) -> Outcome;

/// How an instruction moves the lanes that run it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// On to the next instruction.
    Plain,
    /// To `target`.
    Branch,
    /// To one of `targets`, chosen by a register.
    BranchIndexed,
    /// The thread is done.
    Exit,
    /// The thread stops the kernel with an error.
    Trap,
    /// Waits for other warps of the block.
    Barrier,
    /// Waits for the lanes of the mask in `member`, then runs.
    Converge,
}

/// Where an address comes from, before its offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Base {
    /// The offset alone.
    #[default]
    Absolute,
    /// A 32-bit register.
    Word(u32),
    /// A 64-bit register.
    Quad(u32),
}

/// An address operand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// The register.
    pub base: Base,
    /// What is added to it.
    pub offset: i64,
}

/// How memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The state space.
    pub space: Space,
    /// Bytes of one element.
    pub bytes: u8,
    /// Whether a loaded element is extended by its sign.
    pub signed: bool,
    /// Whether the registers are 64 bits wide.
    pub wide: bool,
    /// Whether other threads may access the bytes at the same time by right.
    pub shared_by_right: bool,
}

/// One instruction.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// What it does.
    pub execute: Execute,
    /// Where it leads.
    pub control: Control,
    /// The guard's predicate register, or [`NONE`].
    pub guard: u32,
    /// Whether the guard is negated.
    pub guard_negated: bool,
    /// The destination register.
    pub d: u32,
    /// The second destination.
    pub d2: u32,
    /// The first source.
    pub a: u32,
    /// The second source.
    pub b: u32,
    /// The third source.
    pub c: u32,
    /// The fourth source.
    pub e: u32,
    /// The register with the mask of the lanes that take part.
    pub member: u32,
    /// An immediate value.
    pub immediate: u64,
    /// The address operand.
    pub address: Address,
    /// The second address operand.
    pub source: Address,
    /// The registers of vector operands, one after the other.
    pub list: Box<[u32]>,
    /// How memory is accessed.
    pub access: Access,
    /// Where a branch leads.
    pub target: u32,
    /// Where an indexed branch leads.
    pub targets: Box<[u32]>,
    /// The opcode's pattern in the table.
    pub form: &'static str,
    /// Its place in the kernel's code.
    pub index: u32,
    /// Its place in the text.
    pub position: Position,
}

/// A register of one of the three files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// 8, 16 and 32 bits.
    Word(u32),
    /// 64 bits.
    Quad(u32),
    /// One bit.
    Predicate(u32),
}

/// A special register that stays the same while a warp runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// `%tid`
    Thread(usize),
    /// `%ntid`
    Threads(usize),
    /// `%ctaid`
    Block(usize),
    /// `%nctaid`
    Blocks(usize),
    /// `%laneid`
    Lane,
    /// `%warpid`
    Warp,
    /// `%nwarpid`
    Warps,
    /// `%smid`
    Processor,
    /// `%nsmid`
    Processors,
    /// `%lanemask_eq`
    MaskEqual,
    /// `%lanemask_lt`
    MaskLess,
    /// `%lanemask_le`
    MaskLessEqual,
    /// `%lanemask_gt`
    MaskGreater,
    /// `%lanemask_ge`
    MaskGreaterEqual,
    /// `%dynamic_smem_size`
    DynamicShared,
    /// `%total_smem_size`
    TotalShared,
    /// `%envreg1`: the upper half of where a cooperative grid waits for itself.
    WorkspaceHigh,
    /// `%envreg2`: the lower half.
    WorkspaceLow,
    /// Those of a cluster of one block that are zero.
    Zero,
    /// Those of a cluster of one block that are one.
    One,
}

/// A kernel parameter's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its first byte.
    pub offset: usize,
    /// Its size.
    pub bytes: usize,
}

/// A kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Its parameters.
    pub parameters: Vec<Parameter>,
    /// The bytes of all parameters.
    pub parameter_bytes: usize,
    /// The instructions; the last one is an exit.
    pub code: Vec<Instruction>,
    /// The number of 32-bit registers.
    pub words: u32,
    /// The number of 64-bit registers.
    pub quads: u32,
    /// The number of predicates.
    pub predicates: u32,
    /// 32-bit constants.
    pub word_constants: Vec<(u32, u32)>,
    /// 64-bit constants.
    pub quad_constants: Vec<(u32, u64)>,
    /// Constant predicates.
    pub predicate_constants: Vec<(u32, bool)>,
    /// Special registers, each a 32-bit register.
    pub specials: Vec<(u32, Special)>,
    /// Bytes of shared memory that are declared with a length.
    pub static_shared: usize,
    /// Bytes of local memory of a thread.
    pub local_bytes: usize,
    /// The most threads of a block.
    pub most_threads: u32,
    /// The line of each instruction's text, by index.
    pub lines: Vec<String>,
}

/// A module's variable in device memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Global {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: u64,
    /// Its size.
    pub bytes: u64,
}

/// A loaded module.
#[derive(Clone, Debug)]
pub struct Program {
    /// What it was compiled for, such as `sm_80`.
    pub target: String,
    /// The kernels.
    pub kernels: Vec<std::sync::Arc<Kernel>>,
    /// Variables in device memory.
    pub globals: Vec<Global>,
}
