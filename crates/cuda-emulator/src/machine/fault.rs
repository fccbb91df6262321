//! What is wrong with a kernel, and where.

use std::fmt;

/// The kind of a fault, which decides the driver's error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Out of bounds, freed, or never allocated: `CUDA_ERROR_ILLEGAL_ADDRESS`.
    Address,
    /// `CUDA_ERROR_MISALIGNED_ADDRESS`.
    Alignment,
    /// A read of bytes that nobody wrote: `CUDA_ERROR_LAUNCH_FAILED`.
    Uninitialized,
    /// Two warps access the same bytes with nothing to order them: `CUDA_ERROR_LAUNCH_FAILED`.
    Race,
    /// Threads wait for each other for ever: `CUDA_ERROR_LAUNCH_FAILED`.
    Deadlock,
    /// The kernel stopped itself: `CUDA_ERROR_LAUNCH_FAILED`.
    Trap,
    /// An operand that the instruction does not allow: `CUDA_ERROR_LAUNCH_FAILED`.
    Operand,
}

/// A fault of one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind.
    pub kind: FaultKind,
    /// The lane of the warp.
    pub lane: u32,
    /// What happened.
    pub message: String,
}

impl Fault {
    /// A fault, boxed since it is rare.
    #[cold]
    pub fn new(kind: FaultKind, lane: u32, message: impl Into<String>) -> Box<Self> {
        Box::new(Self { kind, lane, message: message.into() })
    }
}

/// What an instruction returns.
pub type Outcome = Result<(), Box<Fault>>;

/// A fault with the place where it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What kind.
    pub kind: FaultKind,
    /// The kernel.
    pub kernel: String,
    /// The block.
    pub block: [u32; 3],
    /// The thread.
    pub thread: [u32; 3],
    /// What happened.
    pub message: String,
    /// The line of the PTX text; zero if no instruction is to blame.
    pub line: u32,
    /// The text of that line.
    pub text: String,
    /// The seed of the order in which blocks and warps ran.
    pub seed: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        let [a, b, c] = self.thread;
        writeln!(formatter, "{}", self.message)?;
        writeln!(formatter, "  kernel `{}`, block ({x}, {y}, {z}), thread ({a}, {b}, {c})", self.kernel)?;
        if self.line > 0 {
            writeln!(formatter, "  PTX line {}: {}", self.line, self.text)?;
        }
        write!(formatter, "  seed {}", self.seed)
    }
}
