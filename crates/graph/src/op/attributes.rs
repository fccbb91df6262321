//! The attributes of operations as text, and as words that tell two operations apart.
//!
//! Each operation's attributes are listed once, in [`OpKind::attributes`]; printing, parsing and comparing follow from it.

use std::fmt;
use std::sync::Arc;

use super::OpKind;
use crate::types::{DType, Dim, read_count};

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Attribute {
    DType(DType),
    Float(f32),
    Count(usize),
    Floats(Arc<[f32]>),
    Counts(Vec<usize>),
    Shape(Vec<Dim>),
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attribute::DType(dtype) => write!(f, "{dtype}"),
            // The shortest decimal that reads back as the same number.
            Attribute::Float(value) => write!(f, "{value:?}"),
            Attribute::Count(count) => write!(f, "{count}"),
            Attribute::Floats(values) => list(f, values.iter().map(|value| format!("{value:?}"))),
            Attribute::Counts(counts) => list(f, counts.iter().map(usize::to_string)),
            Attribute::Shape(dims) => list(f, dims.iter().map(Dim::to_string)),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, items: impl Iterator<Item = String>) -> fmt::Result {
    write!(f, "[{}]", items.collect::<Vec<_>>().join(", "))
}

/// An attribute as it was written: one word, or a list of words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AttributeText {
    Word(String),
    List(Vec<String>),
}

/// The attributes that were written for one operation. Each is taken once; what is left over is an error.
pub(crate) struct AttributeReader {
    op: &'static str,
    given: Vec<(String, AttributeText)>,
}

impl AttributeReader {
    fn take(&mut self, name: &str) -> Option<AttributeText> {
        let index = self.given.iter().position(|(given, _)| given == name)?;
        Some(self.given.remove(index).1)
    }

    fn word<T>(&mut self, name: &str, what: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, String> {
        self.optional(name, what, read)?.ok_or_else(|| format!("{} needs the attribute {name}, {what}", self.op))
    }

    fn optional<T>(&mut self, name: &str, what: &str, read: impl Fn(&str) -> Option<T>) -> Result<Option<T>, String> {
        match self.take(name) {
            None => Ok(None),
            Some(AttributeText::Word(word)) => {
                read(&word).map(Some).ok_or_else(|| format!("{name} of {} must be {what}, found `{word}`", self.op))
            }
            Some(AttributeText::List(_)) => Err(format!("{name} of {} must be {what}, found a list", self.op)),
        }
    }

    fn list<T>(&mut self, name: &str, what: &str, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
        match self.take(name) {
            Some(AttributeText::List(words)) => words
                .iter()
                .map(|word| read(word).ok_or_else(|| format!("{name} of {} must hold {what}, found `{word}`", self.op)))
                .collect(),
            Some(AttributeText::Word(word)) => {
                Err(format!("{name} of {} must be a list of {what}, found `{word}`", self.op))
            }
            None => Err(format!("{} needs the attribute {name}, a list of {what}", self.op)),
        }
    }

    fn float(&mut self, name: &str) -> Result<f32, String> {
        self.word(name, "a number", read_float)
    }

    fn count(&mut self, name: &str) -> Result<usize, String> {
        self.word(name, "a whole number", read_count)
    }

    fn dtype(&mut self, name: &str) -> Result<DType, String> {
        self.word(name, "an element type such as bf16", |word| word.parse().ok())
    }

    fn finish(self, kind: OpKind) -> Result<OpKind, String> {
        match self.given.first() {
            None => Ok(kind),
            Some((name, _)) => Err(format!("{} has no attribute {name}", self.op)),
        }
    }
}

fn read_float(word: &str) -> Option<f32> {
    word.parse().ok()
}

impl OpKind {
    /// The attributes in the order in which the text form has them.
    pub(crate) fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        use Attribute::{Count, Counts, DType, Float, Floats, Shape};
        match self {
            OpKind::Cast { to } => vec![("to", DType(*to))],
            OpKind::RmsNorm { epsilon } => vec![("epsilon", Float(*epsilon))],
            OpKind::HeadRmsNorm { heads, epsilon } => vec![("heads", Count(*heads)), ("epsilon", Float(*epsilon))],
            OpKind::Linear { to, scale } => {
                let scale = scale.map(|scale| ("scale", Float(scale)));
                [("to", DType(*to))].into_iter().chain(scale).collect()
            }
            OpKind::Quantize { scale } => vec![("scale", Float(*scale))],
            OpKind::RopeAngles { inverse_frequencies, attention_scaling } => vec![
                ("attention_scaling", Float(*attention_scaling)),
                ("inverse_frequencies", Floats(inverse_frequencies.clone())),
            ],
            OpKind::Rope { heads } => vec![("heads", Count(*heads))],
            OpKind::Attention { heads, scale } => vec![("heads", Count(*heads)), ("scale", Float(*scale))],
            OpKind::MulScalar { factor } => vec![("factor", Float(*factor))],
            OpKind::AddScalar { term } => vec![("term", Float(*term))],
            OpKind::Reshape { shape } => vec![("shape", Shape(shape.clone()))],
            OpKind::Slice { axis, start, end } => {
                vec![("axis", Count(*axis)), ("start", Count(*start)), ("end", Count(*end))]
            }
            OpKind::Concat { axis } => vec![("axis", Count(*axis))],
            OpKind::Transpose { permutation } => vec![("permutation", Counts(permutation.clone()))],
            OpKind::Embedding
            | OpKind::SelectRows
            | OpKind::KvWrite
            | OpKind::Silu
            | OpKind::Add
            | OpKind::Sub
            | OpKind::Mul => Vec::new(),
        }
    }

    /// The operation of that name with these attributes.
    ///
    /// # Errors
    /// If there is no such operation, or an attribute is missing, unknown or of the wrong kind.
    pub(crate) fn from_text(name: &str, given: Vec<(String, AttributeText)>) -> Result<Self, String> {
        let Some(info) = super::catalogue::find(name) else {
            return Err(format!("there is no operation `{name}`{}", super::catalogue::did_you_mean(name)));
        };
        let mut reader = AttributeReader { op: info.name, given };
        let kind = match info.name {
            "embedding" => OpKind::Embedding,
            "select_rows" => OpKind::SelectRows,
            "cast" => OpKind::Cast { to: reader.dtype("to")? },
            "rms_norm" => OpKind::RmsNorm { epsilon: reader.float("epsilon")? },
            "head_rms_norm" => OpKind::HeadRmsNorm { heads: reader.count("heads")?, epsilon: reader.float("epsilon")? },
            "linear" => {
                OpKind::Linear { to: reader.dtype("to")?, scale: reader.optional("scale", "a number", read_float)? }
            }
            "quantize" => OpKind::Quantize { scale: reader.float("scale")? },
            "rope_angles" => OpKind::RopeAngles {
                attention_scaling: reader.float("attention_scaling")?,
                inverse_frequencies: reader.list("inverse_frequencies", "numbers", read_float)?.into(),
            },
            "rope" => OpKind::Rope { heads: reader.count("heads")? },
            "kv_write" => OpKind::KvWrite,
            "attention" => OpKind::Attention { heads: reader.count("heads")?, scale: reader.float("scale")? },
            "silu" => OpKind::Silu,
            "add" => OpKind::Add,
            "sub" => OpKind::Sub,
            "mul" => OpKind::Mul,
            "mul_scalar" => OpKind::MulScalar { factor: reader.float("factor")? },
            "add_scalar" => OpKind::AddScalar { term: reader.float("term")? },
            "reshape" => OpKind::Reshape { shape: reader.list("shape", "sizes", |word| word.parse().ok())? },
            "slice" => {
                OpKind::Slice { axis: reader.count("axis")?, start: reader.count("start")?, end: reader.count("end")? }
            }
            "concat" => OpKind::Concat { axis: reader.count("axis")? },
            "transpose" => {
                let permutation = reader.list("permutation", "axes", read_count)?;
                OpKind::Transpose { permutation }
            }
            other => return Err(format!("the operation `{other}` has no text form")),
        };
        reader.finish(kind)
    }

    /// Words that are equal for two operations exactly if both compute the same bits from the same operands: unlike
    /// `==`, they tell +0 from −0, and a NaN is itself.
    pub(crate) fn identity(&self) -> (&'static str, Vec<u64>) {
        let mut words = Vec::new();
        let float = |value: f32| u64::from(value.to_bits());
        for (name, attribute) in self.attributes() {
            // Optional attributes must not be mistaken for each other.
            words.push(name.len() as u64);
            match attribute {
                Attribute::DType(dtype) => words.push(dtype as u64),
                Attribute::Float(value) => words.push(float(value)),
                Attribute::Count(count) => words.push(count as u64),
                Attribute::Floats(values) => words.extend(values.iter().map(|value| float(*value))),
                Attribute::Counts(counts) => words.extend(counts.iter().map(|count| *count as u64)),
                Attribute::Shape(dims) => words.extend(dims.iter().flat_map(|dim| match dim {
                    Dim::Static(size) => [0, *size as u64],
                    Dim::Tokens => [1, 0],
                    Dim::Sequences => [2, 0],
                    Dim::LogitRows => [3, 0],
                    Dim::Blocks => [4, 0],
                })),
            }
        }
        (self.name(), words)
    }
}

/// The name and the attributes, as the text form shows them: `rms_norm<epsilon=1e-5>`.
impl fmt::Display for OpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        let attributes = self.attributes();
        for (index, (name, value)) in attributes.iter().enumerate() {
            write!(f, "{}{name}={value}", if index == 0 { "<" } else { ", " })?;
        }
        if attributes.is_empty() { Ok(()) } else { f.write_str(">") }
    }
}
