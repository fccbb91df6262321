//! The operations: what each takes, what it yields, and where it rounds.
//!
//! Every operation computes in `f32` (sums included) and rounds once, to its result's element type, unless its
//! documentation says otherwise. Where an operation ends, a value is rounded: that is why moving operations
//! into one launch never changes an answer. [`crate::evaluate`] defines each of them in plain Rust.

use std::fmt;
use std::sync::Arc;

use crate::types::{DType, Dim, KvCacheType, TensorType, ValueType};

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
    /// `(a, b) → a · b`.
    Mul,
}

impl OpKind {
    /// The operation's name in the text form of the IR.
    pub const fn name(&self) -> &'static str {
        match self {
            OpKind::Embedding => "embedding",
            OpKind::SelectRows => "select_rows",
            OpKind::Cast { .. } => "cast",
            OpKind::RmsNorm { .. } => "rms_norm",
            OpKind::Linear { .. } => "linear",
            OpKind::Quantize { .. } => "quantize",
            OpKind::RopeAngles { .. } => "rope_angles",
            OpKind::Rope { .. } => "rope",
            OpKind::KvWrite => "kv_write",
            OpKind::Attention { .. } => "attention",
            OpKind::Silu => "silu",
            OpKind::Add => "add",
            OpKind::Mul => "mul",
        }
    }

    /// The number of operands.
    pub const fn operands(&self) -> usize {
        match self {
            OpKind::Cast { .. } | OpKind::Quantize { .. } | OpKind::RopeAngles { .. } | OpKind::Silu => 1,
            OpKind::Embedding
            | OpKind::SelectRows
            | OpKind::RmsNorm { .. }
            | OpKind::Linear { .. }
            | OpKind::Rope { .. }
            | OpKind::Add
            | OpKind::Mul => 2,
            OpKind::KvWrite => 4,
            OpKind::Attention { .. } => 5,
        }
    }

    /// True for operations that map rows to rows with at most row-wise reductions: the members of row programs.
    pub const fn is_row_op(&self) -> bool {
        !matches!(self, OpKind::Linear { .. } | OpKind::Attention { .. })
    }

    /// The type of the result for operands of the given types.
    ///
    /// # Errors
    /// Says which rule the operands break.
    pub fn infer(&self, operands: &[&ValueType]) -> Result<ValueType, String> {
        if operands.len() != self.operands() {
            return Err(format!("{} takes {} operands, found {}", self.name(), self.operands(), operands.len()));
        }
        if let OpKind::KvWrite = self {
            return infer_kv_write(operands);
        }
        if let OpKind::Attention { heads, .. } = self {
            return infer_attention(*heads, operands);
        }
        let mut tensors = Vec::with_capacity(operands.len());
        for (index, operand) in operands.iter().enumerate() {
            tensors.push(
                operand
                    .tensor()
                    .ok_or_else(|| format!("operand {index} of {} is {operand}, not a tensor", self.name()))?,
            );
        }
        self.infer_tensor(&tensors).map(ValueType::Tensor)
    }

    fn infer_tensor(&self, operands: &[&TensorType]) -> Result<TensorType, String> {
        let rule = |holds: bool, text: &str| {
            if holds { Ok(()) } else { Err(format!("{}: {text}; found {}", self.name(), list(operands))) }
        };
        match (self, operands) {
            (OpKind::Embedding, [table, ids]) => {
                rule(is_matrix(table) && table.dtype.is_float(), "the table must be a float matrix")?;
                rule(is_indices(ids), "ids must be an i32 vector")?;
                Ok(TensorType::new(table.dtype, [ids.rows(), table.shape[1]]))
            }
            (OpKind::SelectRows, [x, rows]) => {
                rule(is_matrix(x), "x must be a matrix")?;
                rule(is_indices(rows), "rows must be an i32 vector")?;
                Ok(TensorType::new(x.dtype, [rows.rows(), x.shape[1]]))
            }
            (OpKind::Cast { to }, [x]) => {
                rule(x.dtype.is_float() && to.is_float(), "casts are between float types")?;
                Ok(TensorType::new(*to, x.shape.clone()))
            }
            (OpKind::RmsNorm { .. }, [x, weight]) => {
                rule(is_matrix(x) && is_wide_float(x.dtype), "x must be a matrix of f32, f16 or bf16")?;
                rule(
                    weight.shape[..] == x.shape[1..] && is_wide_float(weight.dtype),
                    "weight must be a float vector as long as a row of x",
                )?;
                Ok((*x).clone())
            }
            (OpKind::Linear { to, scale }, [x, weight]) => {
                rule(
                    is_matrix(x) && is_matrix(weight) && x.dtype == weight.dtype && x.dtype.is_float(),
                    "x and weight must be matrices of one float type",
                )?;
                rule(x.shape[1] == weight.shape[1], "rows of x and weight must be equally long")?;
                rule(
                    scale.is_some() == (x.dtype == DType::F8E4M3),
                    "a scale belongs to quantized operands, and to no others",
                )?;
                rule(is_wide_float(*to), "the result must be f32, f16 or bf16")?;
                Ok(TensorType::new(*to, [x.rows(), weight.rows()]))
            }
            (OpKind::Quantize { .. }, [x]) => {
                rule(is_wide_float(x.dtype), "x must be f32, f16 or bf16")?;
                Ok(TensorType::new(DType::F8E4M3, x.shape.clone()))
            }
            (OpKind::RopeAngles { inverse_frequencies, .. }, [positions]) => {
                rule(is_indices(positions), "positions must be an i32 vector")?;
                Ok(TensorType::matrix(DType::F32, positions.rows(), 2 * inverse_frequencies.len()))
            }
            (OpKind::Rope { heads }, [x, angles]) => {
                rule(is_matrix(x) && is_wide_float(x.dtype), "x must be a matrix of f32, f16 or bf16")?;
                rule(
                    is_matrix(angles) && angles.dtype == DType::F32 && angles.rows() == x.rows(),
                    "angles must be an f32 matrix with as many rows as x",
                )?;
                let fits = matches!((x.width(), angles.width()), (Some(width), Some(head_dim)) if head_dim.checked_mul(*heads) == Some(width) && head_dim % 2 == 0);
                rule(fits, "a row of x must be heads times a row of angles, which is even")?;
                Ok((*x).clone())
            }
            (OpKind::Silu, [x]) => {
                rule(is_wide_float(x.dtype), "x must be f32, f16 or bf16")?;
                Ok((*x).clone())
            }
            (OpKind::Add, [a, b]) => {
                let broadcast = is_matrix(a) && b.shape[..] == a.shape[1..];
                rule(
                    is_wide_float(a.dtype) && a.dtype == b.dtype && (a.shape == b.shape || broadcast),
                    "a and b must have one float type and one shape, or b be a vector as long as a row",
                )?;
                Ok((*a).clone())
            }
            (OpKind::Mul, [a, b]) => {
                rule(is_wide_float(a.dtype) && a == b, "a and b must have one float type and one shape")?;
                Ok((*a).clone())
            }
            _ => Err(format!("{}: wrong number of operands", self.name())),
        }
    }
}

fn infer_kv_write(operands: &[&ValueType]) -> Result<ValueType, String> {
    let [cache, k, v, slots] = operands else { return Err("kv_write: wrong number of operands".into()) };
    let cache_type = cache.kv_cache().ok_or("kv_write: the first operand must be a KV cache")?;
    for (name, operand) in [("k", k), ("v", v)] {
        let fits = operand.tensor().is_some_and(|tensor| {
            is_matrix(tensor) && tensor.dtype == cache_type.dtype && tensor.width() == Some(cache_type.width())
        });
        if !fits {
            return Err(format!(
                "kv_write: {name} must be {}[T, {}], found {operand}",
                cache_type.dtype,
                cache_type.width()
            ));
        }
    }
    if !slots.tensor().is_some_and(is_indices) {
        return Err(format!("kv_write: slots must be an i32 vector, found {slots}"));
    }
    Ok((*cache).clone())
}

fn infer_attention(heads: usize, operands: &[&ValueType]) -> Result<ValueType, String> {
    let [q, cache, positions, token_sequences, block_tables] = operands else {
        return Err("attention: wrong number of operands".into());
    };
    let cache: &KvCacheType = cache.kv_cache().ok_or("attention: the second operand must be a KV cache")?;
    let q_type = q.tensor().ok_or("attention: q must be a tensor")?;
    let fits = is_matrix(q_type) && q_type.dtype == cache.dtype && q_type.width() == heads.checked_mul(cache.head_dim);
    if !fits {
        return Err(format!(
            "attention: q must be {}[T, {heads} × {}] to match its cache, found {q}",
            cache.dtype, cache.head_dim
        ));
    }
    if cache.kv_heads == 0 || !heads.is_multiple_of(cache.kv_heads) {
        return Err(format!("attention: {heads} query heads are no multiple of {} KV heads", cache.kv_heads));
    }
    for (name, operand) in [("positions", positions), ("token_sequences", token_sequences)] {
        if !operand.tensor().is_some_and(is_indices) {
            return Err(format!("attention: {name} must be an i32 vector, found {operand}"));
        }
    }
    if !block_tables.tensor().is_some_and(|tensor| tensor.dtype == DType::I32 && is_matrix(tensor)) {
        return Err(format!("attention: block_tables must be an i32 matrix, found {block_tables}"));
    }
    Ok((*q).clone())
}

fn is_matrix(tensor: &TensorType) -> bool {
    tensor.shape.len() == 2
}

fn is_indices(tensor: &TensorType) -> bool {
    tensor.shape.len() == 1 && tensor.dtype == DType::I32
}

fn is_wide_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::Bf16)
}

fn list(operands: &[&TensorType]) -> String {
    operands.iter().map(|operand| operand.to_string()).collect::<Vec<_>>().join(", ")
}

/// The name and the attributes, as the text form shows them: `rms_norm(epsilon=0.00001)`. Two kinds with the same
/// text compute the same.
impl fmt::Display for OpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            OpKind::Cast { to } => write!(f, "<{to}>"),
            OpKind::RmsNorm { epsilon } => write!(f, "<epsilon={epsilon}>"),
            OpKind::Linear { to, scale: None } => write!(f, "<{to}>"),
            OpKind::Linear { to, scale: Some(scale) } => write!(f, "<{to}, scale={scale}>"),
            OpKind::Quantize { scale } => write!(f, "<scale={scale}>"),
            OpKind::RopeAngles { inverse_frequencies, attention_scaling } => {
                f.write_str("<inverse_frequencies=[")?;
                for (index, frequency) in inverse_frequencies.iter().enumerate() {
                    write!(f, "{}{frequency}", if index > 0 { ", " } else { "" })?;
                }
                write!(f, "], attention_scaling={attention_scaling}>")
            }
            OpKind::Rope { heads } => write!(f, "<heads={heads}>"),
            OpKind::Attention { heads, scale } => write!(f, "<heads={heads}, scale={scale}>"),
            OpKind::Embedding | OpKind::SelectRows | OpKind::KvWrite | OpKind::Silu | OpKind::Add | OpKind::Mul => {
                Ok(())
            }
        }
    }
}
