//! The operations: what each takes, what it yields, and where it rounds.
//!
//! Every operation computes in `f32` (sums included) and rounds once, to its result's element type, unless its
//! documentation says otherwise. Where an operation ends, a value is rounded: that is why moving operations
//! into one launch never changes an answer. [`crate::evaluate`] defines each of them in plain Rust, and [`catalogue`]
//! says in words what each does.

mod attributes;
pub mod catalogue;
mod infer;

use std::sync::Arc;

use crate::types::{DType, Dim, TensorType};

pub(crate) use attributes::AttributeText;

/// The inputs of a step, all `i32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// `[T]`: token ids.
    TokenIds,
    /// `[T]`: the position of each token in its sequence; −1 marks padding.
    Positions,
    /// `[T]`: the KV slot that each token is written to (`block × block_size + offset`); −1 writes nothing.
    Slots,
    /// `[T]`: the row of the block table that each token belongs to.
    TokenSequences,
    /// `[S, B]`: the KV blocks of each sequence, in order of position.
    BlockTables,
    /// `[R]`: the tokens whose logits are wanted.
    LogitRows,
}

impl Input {
    /// All inputs of a step.
    pub const ALL: [Input; 6] =
        [Input::TokenIds, Input::Positions, Input::Slots, Input::TokenSequences, Input::BlockTables, Input::LogitRows];

    /// The name of the input's value.
    pub const fn name(self) -> &'static str {
        match self {
            Input::TokenIds => "token_ids",
            Input::Positions => "positions",
            Input::Slots => "slots",
            Input::TokenSequences => "token_sequences",
            Input::BlockTables => "block_tables",
            Input::LogitRows => "logit_rows",
        }
    }

    /// The type of the input's value.
    pub fn tensor_type(self) -> TensorType {
        match self {
            Input::TokenIds | Input::Positions | Input::Slots | Input::TokenSequences => {
                TensorType::vector(DType::I32, Dim::Tokens)
            }
            Input::BlockTables => TensorType::new(DType::I32, [Dim::Sequences, Dim::Blocks]),
            Input::LogitRows => TensorType::vector(DType::I32, Dim::LogitRows),
        }
    }
}

/// What an operation does. Operands are written in the order in which they are passed.
#[derive(Debug, Clone, PartialEq)]
pub enum OpKind {
    /// `(table [V, H], ids i32[N]) → [N, H]`: one row of the table per id.
    Embedding,
    /// `(x [T, H], rows i32[R]) → [R, H]`: the chosen rows.
    SelectRows,
    /// `(x) → x` in another element type, rounded to nearest even.
    Cast {
        /// The element type of the result.
        to: DType,
    },
    /// `(x [N, H], weight [H]) → [N, H]`: root mean square norm (Zhang and Sennrich, 2019).
    /// `x · rsqrt(mean(x²) + epsilon)` is rounded to the type of `x`, then multiplied by `weight` and rounded again,
    /// as Hugging Face's Llama does.
    RmsNorm {
        /// Added to the mean of squares.
        epsilon: f32,
    },
    /// `(x [N, heads · D], weight [D]) → [N, heads · D]`: [`RmsNorm`](OpKind::RmsNorm) of each head of a row by itself,
    /// as Qwen3 normalizes queries and keys.
    HeadRmsNorm {
        /// Heads in a row of `x`.
        heads: usize,
        /// Added to the mean of squares.
        epsilon: f32,
    },
    /// `(x [N, K], weight [M, K]) → [N, M]`: `x · weightᵀ`, summed in `f32`; with a scale, the sum times it.
    Linear {
        /// The element type of the result.
        to: DType,
        /// For quantized operands: input scale × weight scale, as an `f32`.
        scale: Option<f32>,
    },
    /// `(x [N, H]) → f8e4m3[N, H]`: `x / scale`, clamped to ±448, rounded to nearest even.
    Quantize {
        /// The static scale of the tensor.
        scale: f32,
    },
    /// `(positions i32[T]) → f32[T, D]`: the cosines (first half of a row), then the sines, of `position · frequency`,
    /// both times the attention scaling (which is 1 for all kinds of RoPE but YaRN).
    RopeAngles {
        /// `D / 2` inverse frequencies.
        inverse_frequencies: Arc<[f32]>,
        /// A factor on every cosine and sine.
        attention_scaling: f32,
    },
    /// `(x [T, heads · D], angles f32[T, D]) → [T, heads · D]`: rotary position embedding (Su et al., 2021) of each
    /// head, in the half-split form: `[x₁·cos − x₂·sin, x₂·cos + x₁·sin]`.
    Rope {
        /// Heads in a row of `x`.
        heads: usize,
    },
    /// `(cache, k [T, kv width], v [T, kv width], slots i32[T]) → cache`: writes each token's key and value to its slot.
    KvWrite,
    /// `(q [T, heads · D], cache, positions i32[T], token_sequences i32[T], block_tables i32[S, B]) → [T, heads · D]`:
    /// causal attention of each token over positions `0..=position` of its sequence, grouped-query where the cache
    /// has fewer heads. Scores, softmax and sums are `f32`; the result is rounded once. Padding yields zeros.
    Attention {
        /// Query heads.
        heads: usize,
        /// Multiplies each score before the softmax; usually `1/√D`.
        scale: f32,
    },
    /// `(x) → x / (1 + exp(−x))`.
    Silu,
    /// `(a, b) → a + b`; `b` may be a vector that is added to every row.
    Add,
    /// `(a, b) → a − b`.
    Sub,
    /// `(a, b) → a · b`.
    Mul,
    /// `(x) → x · factor`.
    MulScalar {
        /// The factor, a finite number.
        factor: f32,
    },
    /// `(x) → x + term`.
    AddScalar {
        /// The term, a finite number.
        term: f32,
    },
    /// `(x) → x` under another shape: the same elements in row-major order.
    Reshape {
        /// The shape of the result: the same symbols as in that of `x`, and as many elements.
        shape: Vec<Dim>,
    },
    /// `(x) → x[.., start..end, ..]` along one axis.
    Slice {
        /// The axis, whose size is static.
        axis: usize,
        /// The first index that is kept.
        start: usize,
        /// One past the last index that is kept.
        end: usize,
    },
    /// `(x, …) → ` its operands one after the other along one axis.
    Concat {
        /// The axis, whose sizes are static.
        axis: usize,
    },
    /// `(x) → x` with its axes permuted.
    Transpose {
        /// For each axis of the result the axis of `x` that it is.
        permutation: Vec<usize>,
    },
}

impl OpKind {
    /// The operation's name in the text form of the IR.
    pub const fn name(&self) -> &'static str {
        match self {
            OpKind::Embedding => "embedding",
            OpKind::SelectRows => "select_rows",
            OpKind::Cast { .. } => "cast",
            OpKind::RmsNorm { .. } => "rms_norm",
            OpKind::HeadRmsNorm { .. } => "head_rms_norm",
            OpKind::Linear { .. } => "linear",
            OpKind::Quantize { .. } => "quantize",
            OpKind::RopeAngles { .. } => "rope_angles",
            OpKind::Rope { .. } => "rope",
            OpKind::KvWrite => "kv_write",
            OpKind::Attention { .. } => "attention",
            OpKind::Silu => "silu",
            OpKind::Add => "add",
            OpKind::Sub => "sub",
            OpKind::Mul => "mul",
            OpKind::MulScalar { .. } => "mul_scalar",
            OpKind::AddScalar { .. } => "add_scalar",
            OpKind::Reshape { .. } => "reshape",
            OpKind::Slice { .. } => "slice",
            OpKind::Concat { .. } => "concat",
            OpKind::Transpose { .. } => "transpose",
        }
    }

    /// True for operations that map rows to rows with at most row-wise reductions: the members of row programs.
    pub const fn is_row_op(&self) -> bool {
        !matches!(self, OpKind::Linear { .. } | OpKind::Attention { .. })
    }
}
