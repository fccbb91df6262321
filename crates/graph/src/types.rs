//! Types of values: element types, symbolic dimensions, tensors and the KV cache.

use std::fmt;
use std::str::FromStr;

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of an `F32`.
    Bf16,
    /// FP8 e4m3fn: 4 exponent bits, 3 mantissa bits, no infinities, largest value 448.
    F8E4M3,
    /// 32-bit signed integers: token ids, positions and indices.
    I32,
}

impl DType {
    /// Bytes of one element.
    pub const fn size_in_bytes(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::Bf16 => 2,
            DType::F8E4M3 => 1,
        }
    }

    /// True for the types that activations between operations may have.
    pub const fn is_float(self) -> bool {
        !matches!(self, DType::I32)
    }
}

impl FromStr for DType {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let all = [DType::F32, DType::F16, DType::Bf16, DType::F8E4M3, DType::I32];
        all.into_iter().find(|dtype| dtype.to_string() == text).ok_or(())
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::F8E4M3 => "f8e4m3",
            DType::I32 => "i32",
        })
    }
}

/// One dimension of a tensor: known when the graph is built, or known when a batch arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dim {
    /// A size known from the model.
    Static(usize),
    /// `T`: the tokens of the batch, over all its sequences.
    Tokens,
    /// `S`: the sequences of the batch.
    Sequences,
    /// `R`: the tokens whose logits are wanted (for generation, the last of each sequence).
    LogitRows,
    /// `B`: the width of a block table, in KV blocks.
    Blocks,
}

impl Dim {
    /// The dimensions that a batch decides.
    pub const SYMBOLIC: [Dim; 4] = [Dim::Tokens, Dim::Sequences, Dim::LogitRows, Dim::Blocks];
}

/// A count in the one way in which counts are written: no sign, no zeros in front.
pub(crate) fn read_count(text: &str) -> Option<usize> {
    let odd = text.starts_with('+') || (text.len() > 1 && text.starts_with('0'));
    if odd { None } else { text.parse().ok() }
}

impl FromStr for Dim {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "T" => Ok(Dim::Tokens),
            "S" => Ok(Dim::Sequences),
            "R" => Ok(Dim::LogitRows),
            "B" => Ok(Dim::Blocks),
            _ => read_count(text).map(Dim::Static).ok_or(()),
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Static(size) => write!(f, "{size}"),
            Dim::Tokens => f.write_str("T"),
            Dim::Sequences => f.write_str("S"),
            Dim::LogitRows => f.write_str("R"),
            Dim::Blocks => f.write_str("B"),
        }
    }
}

/// Values of the symbolic dimensions, for one batch or as an upper bound over all batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Sizes {
    /// `T`, tokens in the batch.
    pub tokens: usize,
    /// `S`, sequences in the batch.
    pub sequences: usize,
    /// `R`, rows of logits.
    pub logit_rows: usize,
    /// `B`, KV blocks in one row of the block table.
    pub blocks: usize,
}

impl Sizes {
    /// The value of `dim` at these sizes.
    pub const fn of(&self, dim: Dim) -> usize {
        match dim {
            Dim::Static(size) => size,
            Dim::Tokens => self.tokens,
            Dim::Sequences => self.sequences,
            Dim::LogitRows => self.logit_rows,
            Dim::Blocks => self.blocks,
        }
    }

    /// Checks a batch's sizes against upper bounds.
    ///
    /// ```
    /// use allotrope_graph::Sizes;
    /// let limits = Sizes { tokens: 8, sequences: 2, logit_rows: 2, blocks: 4 };
    /// assert_eq!(limits.check_within(&limits), Ok(()));
    /// let batch = Sizes { tokens: 9, ..limits };
    /// assert_eq!(batch.check_within(&limits), Err("a batch with T = 9 exceeds 8".to_owned()));
    /// ```
    ///
    /// # Errors
    /// In words, the first dimension that exceeds its bound.
    pub fn check_within(&self, limits: &Sizes) -> Result<(), String> {
        match Dim::SYMBOLIC.into_iter().find(|dim| self.of(*dim) > limits.of(*dim)) {
            Some(dim) => Err(format!("a batch with {dim} = {} exceeds {}", self.of(dim), limits.of(dim))),
            None => Ok(()),
        }
    }
}

/// A dense row-major tensor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// The type of the elements.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<Dim>,
}

impl TensorType {
    /// A tensor type from its parts.
    pub fn new(dtype: DType, shape: impl Into<Vec<Dim>>) -> Self {
        TensorType { dtype, shape: shape.into() }
    }

    /// A matrix of `rows` × `width` elements.
    pub fn matrix(dtype: DType, rows: Dim, width: usize) -> Self {
        TensorType::new(dtype, [rows, Dim::Static(width)])
    }

    /// A vector of `size` elements.
    pub fn vector(dtype: DType, size: Dim) -> Self {
        TensorType::new(dtype, [size])
    }

    /// The size of an axis, if there is such an axis and its size is static.
    pub fn static_size(&self, axis: usize) -> Option<usize> {
        match self.shape.get(axis)? {
            Dim::Static(size) => Some(*size),
            _ => None,
        }
    }

    /// The outermost dimension; a scalar has one row.
    pub fn rows(&self) -> Dim {
        self.shape.first().copied().unwrap_or(Dim::Static(1))
    }

    /// Elements in one row, if all dimensions but the first are static and their product fits.
    pub fn width(&self) -> Option<usize> {
        self.shape.iter().skip(1).try_fold(1usize, |product, dim| match dim {
            Dim::Static(size) => product.checked_mul(*size),
            _ => None,
        })
    }

    /// Elements at the given sizes, or `None` if the product overflows.
    pub fn elements(&self, sizes: &Sizes) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |product, dim| product.checked_mul(sizes.of(*dim)))
    }

    /// Bytes at the given sizes, or `None` if the product overflows.
    pub fn bytes(&self, sizes: &Sizes) -> Option<usize> {
        self.elements(sizes)?.checked_mul(self.dtype.size_in_bytes())
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (index, dim) in self.shape.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{dim}")?;
        }
        f.write_str("]")
    }
}

/// The paged key/value cache of one layer: blocks of `block_size` token slots, chosen when memory is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KvCacheType {
    /// The storage type of keys and values.
    pub dtype: DType,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
}

impl KvCacheType {
    /// Elements of one token's keys (and as many values).
    pub const fn width(&self) -> usize {
        self.kv_heads.saturating_mul(self.head_dim)
    }

    /// Whether keys and values of a type can be written to it, and queries of that type read it: those of its own type, and where
    /// it is E4M3, of any wider one, rounded and clamped to ±448.
    pub const fn stores(&self, dtype: DType) -> bool {
        let wide = matches!(dtype, DType::F32 | DType::F16 | DType::Bf16);
        wide && (matches!(self.dtype, DType::F8E4M3) || dtype as u8 == self.dtype as u8)
    }

    /// The types that it [stores](KvCacheType::stores), for messages.
    pub(crate) fn stored(&self) -> String {
        match self.dtype {
            DType::F8E4M3 => "f32, f16 or bf16 ".to_owned(),
            dtype => dtype.to_string(),
        }
    }

    /// Bytes that one token takes in this layer, keys and values together.
    pub const fn bytes_per_token(&self) -> usize {
        self.width().saturating_mul(2 * self.dtype.size_in_bytes())
    }
}

impl fmt::Display for KvCacheType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kv_cache<{}, kv_heads={}, head_dim={}>", self.dtype, self.kv_heads, self.head_dim)
    }
}

/// The type of a value in the graph.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// A tensor.
    Tensor(TensorType),
    /// State: the KV cache of one layer, as it is at one point of the step.
    KvCache(KvCacheType),
}

impl ValueType {
    /// The tensor type, if this is a tensor.
    pub fn tensor(&self) -> Option<&TensorType> {
        match self {
            ValueType::Tensor(tensor) => Some(tensor),
            ValueType::KvCache(_) => None,
        }
    }

    /// The cache type, if this is a KV cache.
    pub fn kv_cache(&self) -> Option<&KvCacheType> {
        match self {
            ValueType::Tensor(_) => None,
            ValueType::KvCache(cache) => Some(cache),
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueType::Tensor(tensor) => tensor.fmt(f),
            ValueType::KvCache(cache) => cache.fmt(f),
        }
    }
}
