//! The syntax tree. Names are slices of the text that was parsed.

use std::fmt;

/// A place in the text; lines and columns count from one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column, in bytes.
    pub column: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}, column {}", self.line, self.column)
    }
}

/// Why a text was refused, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Where.
    pub position: Position,
    /// Why.
    pub message: String,
}

impl Error {
    /// An error at a place.
    pub fn new(position: Position, message: impl Into<String>) -> Self {
        Self { position, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PTX {}: {}", self.position, self.message)
    }
}

impl std::error::Error for Error {}

/// A state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Whatever the address says.
    Generic,
    /// Device memory.
    Global,
    /// Constant memory.
    Constant,
    /// A block's shared memory.
    Shared,
    /// A thread's own memory.
    Local,
    /// Kernel parameters.
    Parameter,
}

/// A declared variable or parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable<'a> {
    /// Where it lives.
    pub space: Space,
    /// Its name.
    pub name: &'a str,
    /// The alignment of its first byte.
    pub alignment: u64,
    /// Its size in bytes; zero for an array without a length.
    pub bytes: u64,
    /// The initial bytes, if given; shorter than `bytes` when the rest is zero.
    pub initial: Vec<u8>,
    /// Whether it is declared `.extern`.
    pub external: bool,
    /// Where it was declared.
    pub position: Position,
}

/// A register declaration: one name, or a prefix with a count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers<'a> {
    /// The type without its dot, such as `b32` or `pred`.
    pub kind: &'a str,
    /// The name or prefix.
    pub name: &'a str,
    /// `Some(n)` declares `name0` to `name(n-1)`.
    pub count: Option<u32>,
    /// Where.
    pub position: Position,
}

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand<'a> {
    /// A register, label or symbol, with what is added to it.
    Name(&'a str, i64),
    /// `!p`.
    Not(&'a str),
    /// `d|p`.
    Pair(&'a str, &'a str),
    /// A number, as the 64 bits of an integer.
    Integer(u64),
    /// `0f…`: the bits of an `f32`.
    Single(u32),
    /// `0d…`: the bits of an `f64`.
    Double(u64),
    /// `{a, b}`.
    Vector(Vec<Operand<'a>>),
    /// `[base + offset]`; no base for an absolute address.
    Address(Option<&'a str>, i64),
}

/// One instruction as written.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction<'a> {
    /// The guard's register, and whether it is negated.
    pub guard: Option<(&'a str, bool)>,
    /// The opcode with its modifiers.
    pub opcode: &'a str,
    /// The operands.
    pub operands: Vec<Operand<'a>>,
    /// Where the instruction begins.
    pub position: Position,
}

/// A statement of a body.
#[derive(Clone, Debug, PartialEq)]
pub enum Statement<'a> {
    /// `{`
    Open,
    /// `}`
    Close,
    /// `.reg …`
    Registers(Registers<'a>),
    /// A variable.
    Variable(Variable<'a>),
    /// `name:`
    Label(&'a str, Position),
    /// `name: .branchtargets a, b;`
    Targets(&'a str, Vec<&'a str>),
    /// An instruction.
    Instruction(Instruction<'a>),
}

/// An entry function.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its parameters.
    pub parameters: Vec<Variable<'a>>,
    /// The most threads of a block (`.maxntid`, `.reqntid`), multiplied.
    pub most_threads: Option<u32>,
    /// The statements.
    pub body: Vec<Statement<'a>>,
    /// Where.
    pub position: Position,
}

/// A whole text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Module<'a> {
    /// The language version, major and minor.
    pub version: (u32, u32),
    /// The target, such as `sm_80`.
    pub target: &'a str,
    /// Variables outside functions.
    pub variables: Vec<Variable<'a>>,
    /// Kernels.
    pub entries: Vec<Entry<'a>>,
}
