//! The type of an operation's result, and the rules that its operands must keep to.

use super::{OpKind, catalogue};
use crate::types::{DType, Dim, KvCacheType, TensorType, ValueType};

impl OpKind {
    /// The type of the result for operands of the given types.
    ///
    /// # Errors
    /// Says which rule the operands or the attributes break.
    pub fn infer(&self, operands: &[&ValueType]) -> Result<ValueType, String> {
        self.check_attributes()?;
        match self {
            OpKind::KvWrite => infer_kv_write(operands),
            OpKind::Attention { heads, .. } => infer_attention(*heads, operands),
            _ => {
                let mut tensors = Vec::with_capacity(operands.len());
                for (index, operand) in operands.iter().enumerate() {
                    let tensor = operand.tensor();
                    tensors.push(
                        tensor
                            .ok_or_else(|| format!("operand {index} of {} is {operand}, not a tensor", self.name()))?,
                    );
                }
                self.infer_tensor(&tensors).map(ValueType::Tensor)
            }
        }
    }

    /// Numbers that no kernel could make sense of.
    fn check_attributes(&self) -> Result<(), String> {
        let wrong = |attribute: &str, rule: &str| Err(format!("{}: {attribute} must be {rule}", self.name()));
        match self {
            OpKind::RmsNorm { epsilon } | OpKind::HeadRmsNorm { epsilon, .. }
                if !(epsilon.is_finite() && *epsilon >= 0.0) =>
            {
                wrong("epsilon", "a finite number that is not negative")
            }
            OpKind::Quantize { scale } | OpKind::Linear { scale: Some(scale), .. }
                if !(scale.is_finite() && *scale > 0.0) =>
            {
                wrong("scale", "a finite number above zero")
            }
            OpKind::Attention { scale, .. } if !scale.is_finite() => wrong("scale", "a finite number"),
            OpKind::RopeAngles { inverse_frequencies, attention_scaling }
                if !attention_scaling.is_finite() || inverse_frequencies.iter().any(|value| !value.is_finite()) =>
            {
                wrong("every frequency and the scaling", "a finite number")
            }
            OpKind::MulScalar { factor } if !factor.is_finite() => wrong("factor", "a finite number"),
            OpKind::AddScalar { term } if !term.is_finite() => wrong("term", "a finite number"),
            _ => Ok(()),
        }
    }

    fn infer_tensor(&self, operands: &[&TensorType]) -> Result<TensorType, String> {
        match (self, operands) {
            (OpKind::Concat { axis }, [_, ..]) => return self.infer_concat(*axis, operands),
            (OpKind::Linear { to, scale }, [x, weight]) => return self.infer_linear(*to, scale.is_some(), x, weight),
            (OpKind::RmsNorm { .. } | OpKind::HeadRmsNorm { .. } | OpKind::Rope { .. }, [x, other]) => {
                return self.infer_head_op(x, other);
            }
            (OpKind::Reshape { .. } | OpKind::Slice { .. } | OpKind::Transpose { .. }, [x]) => {
                return self.infer_movement(x);
            }
            _ => {}
        }
        let rule = |holds: bool, text: &str| self.rule(holds, text, operands);
        match (self, operands) {
            (OpKind::Embedding, [table, ids]) => {
                rule(is_matrix(table) && table.dtype.is_float(), "the table must be a float matrix")?;
                rule(table.width().is_some(), "a row of the table must have a static size")?;
                rule(is_indices(ids), "ids must be an i32 vector")?;
                Ok(TensorType::new(table.dtype, [ids.rows(), table.shape[1]]))
            }
            (OpKind::SelectRows, [x, rows]) => {
                rule(is_matrix(x) && x.dtype.is_float(), "x must be a float matrix")?;
                rule(x.width().is_some(), "a row of x must have a static size")?;
                rule(is_indices(rows), "rows must be an i32 vector")?;
                Ok(TensorType::new(x.dtype, [rows.rows(), x.shape[1]]))
            }
            (OpKind::Cast { to }, [x]) => {
                rule(x.dtype.is_float() && to.is_float(), "casts are between float types")?;
                Ok(TensorType::new(*to, x.shape.clone()))
            }
            (OpKind::Quantize { .. }, [x]) => {
                rule(is_wide_float(x.dtype), "x must be f32, f16 or bf16")?;
                Ok(TensorType::new(DType::F8E4M3, x.shape.clone()))
            }
            (OpKind::RopeAngles { inverse_frequencies, .. }, [positions]) => {
                rule(is_indices(positions), "positions must be an i32 vector")?;
                rule(!inverse_frequencies.is_empty(), "there must be a frequency")?;
                Ok(TensorType::matrix(DType::F32, positions.rows(), 2 * inverse_frequencies.len()))
            }
            (OpKind::Silu | OpKind::MulScalar { .. } | OpKind::AddScalar { .. }, [x]) => {
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
            (OpKind::Sub | OpKind::Mul, [a, b]) => {
                rule(is_wide_float(a.dtype) && a == b, "a and b must have one float type and one shape")?;
                Ok((*a).clone())
            }
            _ => Err(self.wrong_number(operands.len())),
        }
    }

    /// The norms and the rotation: a matrix, and what is used for every row or head of it.
    fn infer_head_op(&self, x: &TensorType, other: &TensorType) -> Result<TensorType, String> {
        let rule = |holds: bool, text: &str| self.rule(holds, text, &[x, other]);
        rule(is_matrix(x) && is_wide_float(x.dtype), "x must be a matrix of f32, f16 or bf16")?;
        match self {
            OpKind::RmsNorm { .. } => rule(
                other.shape[..] == x.shape[1..] && is_wide_float(other.dtype),
                "weight must be a float vector as long as a row of x",
            )?,
            OpKind::HeadRmsNorm { heads, .. } => {
                let head = match other.shape.as_slice() {
                    [Dim::Static(size)] => Some(*size),
                    _ => None,
                };
                rule(is_wide_float(other.dtype) && head.is_some(), "weight must be a float vector")?;
                let width = head.and_then(|head| head.checked_mul(*heads));
                rule(width.is_some() && width == x.width(), "a row of x must be heads times the weight")?;
            }
            _ => {
                rule(
                    is_matrix(other) && other.dtype == DType::F32 && other.rows() == x.rows(),
                    "angles must be an f32 matrix with as many rows as x",
                )?;
                let OpKind::Rope { heads } = self else { return Err(self.wrong_number(2)) };
                let fits = matches!((x.width(), other.width()), (Some(width), Some(head_dim)) if head_dim.checked_mul(*heads) == Some(width) && head_dim % 2 == 0);
                rule(fits, "a row of x must be heads times a row of angles, which is even")?;
            }
        }
        Ok(x.clone())
    }

    fn infer_linear(&self, to: DType, scaled: bool, x: &TensorType, weight: &TensorType) -> Result<TensorType, String> {
        let rule = |holds: bool, text: &str| self.rule(holds, text, &[x, weight]);
        rule(
            is_matrix(x) && is_matrix(weight) && x.dtype == weight.dtype && x.dtype.is_float(),
            "x and weight must be matrices of one float type",
        )?;
        rule(x.shape[1] == weight.shape[1], "rows of x and weight must be equally long")?;
        rule(x.width().is_some(), "rows of x and weight must have a static size")?;
        rule(scaled == (x.dtype == DType::F8E4M3), "a scale belongs to quantized operands, and to no others")?;
        rule(is_wide_float(to), "the result must be f32, f16 or bf16")?;
        Ok(TensorType::new(to, [x.rows(), weight.rows()]))
    }

    /// The operations that move elements of one tensor.
    fn infer_movement(&self, x: &TensorType) -> Result<TensorType, String> {
        let rule = |holds: bool, text: &str| self.rule(holds, text, &[x]);
        match self {
            OpKind::Reshape { shape } => {
                let counted = element_count(shape).filter(|count| element_count(&x.shape).as_ref() == Some(count));
                rule(counted.is_some(), "the shape must have the symbols and the number of elements of x")?;
                Ok(TensorType::new(x.dtype, shape.clone()))
            }
            OpKind::Slice { axis, start, end } => {
                let size = x.static_size(*axis);
                rule(size.is_some(), "axis must be one of x whose size is static")?;
                rule(start < end && size.is_some_and(|size| *end <= size), "start..end must be a range of the axis")?;
                let mut shape = x.shape.clone();
                if let Some(dim) = shape.get_mut(*axis) {
                    *dim = Dim::Static(end - start);
                }
                Ok(TensorType::new(x.dtype, shape))
            }
            OpKind::Transpose { permutation } => {
                let mut sorted = permutation.clone();
                sorted.sort_unstable();
                rule(sorted.into_iter().eq(0..x.shape.len()), "permutation must hold every axis of x once")?;
                Ok(TensorType::new(x.dtype, permutation.iter().map(|axis| x.shape[*axis]).collect::<Vec<_>>()))
            }
            _ => Err(self.wrong_number(1)),
        }
    }

    fn infer_concat(&self, axis: usize, operands: &[&TensorType]) -> Result<TensorType, String> {
        let [first, others @ ..] = operands else { return Err(self.wrong_number(0)) };
        let mut result = (*first).clone();
        let mut total = first.static_size(axis);
        for other in others {
            let mut shape = other.shape.clone();
            let size = other.static_size(axis);
            if let (Some(dim), Some(expected)) = (shape.get_mut(axis), first.shape.get(axis)) {
                *dim = *expected;
            }
            self.rule(
                size.is_some() && other.dtype == first.dtype && shape == first.shape,
                "the operands must have one type, and shapes that are equal but for a static size of the axis",
                operands,
            )?;
            total = total.zip(size).and_then(|(total, size)| total.checked_add(size));
        }
        match (total, result.shape.get_mut(axis)) {
            (Some(total), Some(dim)) => *dim = Dim::Static(total),
            _ => return self.rule(false, "axis must be one of x whose size is static", operands).map(|()| result),
        }
        Ok(result)
    }

    fn rule(&self, holds: bool, text: &str, operands: &[&TensorType]) -> Result<(), String> {
        if holds { Ok(()) } else { Err(format!("{}: {text}; found {}", self.name(), list(operands))) }
    }

    fn wrong_number(&self, found: usize) -> String {
        let names = catalogue::find(self.name()).map_or(&[][..], |info| info.operands);
        format!("{} takes the operands ({}), found {found} operands", self.name(), names.join(", "))
    }
}

fn infer_kv_write(operands: &[&ValueType]) -> Result<ValueType, String> {
    let [cache, k, v, slots] = operands else { return Err(OpKind::KvWrite.wrong_number(operands.len())) };
    let cache_type = cache.kv_cache().ok_or("kv_write: the first operand must be a KV cache")?;
    let rows = slots.tensor().filter(|slots| is_indices(slots)).map(TensorType::rows);
    let width = cache_type.kv_heads.checked_mul(cache_type.head_dim);
    let rows = rows.ok_or_else(|| format!("kv_write: slots must be an i32 vector, found {slots}"))?;
    for (name, operand) in [("k", k), ("v", v)] {
        let fits = operand.tensor().is_some_and(|tensor| {
            is_matrix(tensor)
                && cache_type.stores(tensor.dtype)
                && width.is_some()
                && tensor.width() == width
                && tensor.rows() == rows
        });
        if !fits {
            return Err(format!(
                "kv_write: {name} must be {}[{rows}, {} × {}], found {operand}",
                cache_type.stored(),
                cache_type.kv_heads,
                cache_type.head_dim
            ));
        }
    }
    Ok((*cache).clone())
}

fn infer_attention(heads: usize, operands: &[&ValueType]) -> Result<ValueType, String> {
    let [q, cache, positions, token_sequences, block_tables] = operands else {
        return Err(OpKind::Attention { heads, scale: 1.0 }.wrong_number(operands.len()));
    };
    let cache: &KvCacheType = cache.kv_cache().ok_or("attention: the second operand must be a KV cache")?;
    let q_type = q.tensor().ok_or("attention: q must be a tensor")?;
    let width = heads.checked_mul(cache.head_dim);
    let fits = is_matrix(q_type) && cache.stores(q_type.dtype) && width.is_some() && q_type.width() == width;
    if !fits {
        return Err(format!(
            "attention: q must be {}[T, {heads} × {}] to match its cache, found {q}",
            cache.stored(),
            cache.head_dim
        ));
    }
    if cache.kv_heads == 0 || !heads.is_multiple_of(cache.kv_heads) {
        return Err(format!("attention: {heads} query heads are no multiple of {} KV heads", cache.kv_heads));
    }
    for (name, operand) in [("positions", positions), ("token_sequences", token_sequences)] {
        if !operand.tensor().is_some_and(|tensor| is_indices(tensor) && tensor.rows() == q_type.rows()) {
            return Err(format!("attention: {name} must be i32[{}], found {operand}", q_type.rows()));
        }
    }
    if !block_tables.tensor().is_some_and(|tensor| tensor.dtype == DType::I32 && is_matrix(tensor)) {
        return Err(format!("attention: block_tables must be an i32 matrix, found {block_tables}"));
    }
    Ok((*q).clone())
}

/// The symbols of a shape in order, and the product of its static sizes; `None` if that overflows.
fn element_count(shape: &[Dim]) -> Option<(Vec<Dim>, usize)> {
    let mut symbols: Vec<Dim> = shape.iter().copied().filter(|dim| !matches!(dim, Dim::Static(_))).collect();
    symbols.sort_unstable();
    let product = shape.iter().try_fold(1usize, |product, dim| match dim {
        Dim::Static(size) => product.checked_mul(*size),
        _ => Some(product),
    })?;
    Some((symbols, product))
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
