//! The reference evaluator: what every operation means, in plain Rust.
//!
//! It is slow on purpose: sums run in `f64` over one row after the other, then round to `f32` and on to the result's
//! type. Kernels are tested against it; it is tested against the Hugging Face implementation. Indices are kept as `f32` like
//! everything else, so they must be below 2²⁴.

use crate::graph::{Definition, Graph, Op, ValueId};
use crate::numerics::{E4M3_MAX, decode, round_to};
use crate::op::OpKind;
use crate::step::StepInputs;
use crate::types::{DType, KvCacheType};
use crate::weights::WeightSource;

/// The KV cache of one layer: keys and values by slot, each `[slots, kv width]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceCache {
    keys: Vec<f32>,
    values: Vec<f32>,
    width: usize,
    dtype: DType,
}

impl ReferenceCache {
    /// A cache of `slots` token slots, filled with NaN so that reading what was never written shows.
    pub fn new(ty: &KvCacheType, slots: usize) -> Self {
        let filled = vec![f32::NAN; slots * ty.width()];
        ReferenceCache { keys: filled.clone(), values: filled, width: ty.width(), dtype: ty.dtype }
    }
}

/// All values of one step.
#[derive(Debug, Clone)]
pub struct Evaluation {
    tensors: Vec<Option<Vec<f32>>>,
}

impl Evaluation {
    /// A tensor's elements, row-major. Weights and states have none.
    pub fn tensor(&self, value: ValueId) -> Option<&[f32]> {
        self.tensors[value.index()].as_deref()
    }
}

/// What keeps a graph from being evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("evaluating %{value}: {message}")]
pub struct EvaluateError {
    value: String,
    message: String,
}

/// Runs one step of a graph that [`verify`](crate::verify::verify) accepts, launch by launch. `inputs` must be
/// [valid](StepInputs::validate) for the vocabulary and the caches, as those of a device must. `caches` holds one cache for each decoder layer and is updated; `block_size` is in tokens.
///
/// # Errors
/// If a weight is missing, or the batch refers to a cache that is not there.
pub fn evaluate(
    graph: &Graph,
    weights: &dyn WeightSource,
    inputs: &StepInputs,
    caches: &mut [ReferenceCache],
    block_size: usize,
) -> Result<Evaluation, EvaluateError> {
    let mut tensors: Vec<Option<Vec<f32>>> = vec![None; graph.values().len()];
    let mut layers: Vec<Option<usize>> = vec![None; graph.values().len()];
    for (index, value) in graph.values().iter().enumerate() {
        match &value.definition {
            Definition::Input(input) => tensors[index] = Some(inputs.get(*input).iter().map(|v| *v as f32).collect()),
            Definition::Weight(name) => {
                let data = weights.weight(name).ok_or_else(|| EvaluateError {
                    value: value.name.clone(),
                    message: "the weight is not in the checkpoint".into(),
                })?;
                tensors[index] = Some(decode(data.dtype, data.bytes));
            }
            Definition::State { layer } => layers[index] = Some(*layer),
            Definition::Op(_) => {}
        }
    }
    // Launch by launch, so that launches in a wrong order show.
    for op in graph.groups().iter().flat_map(|group| &group.ops).map(|op| graph.op(*op)) {
        let context = Context { graph, op, tensors: &tensors, inputs, block_size };
        let fail =
            |message: &str| EvaluateError { value: graph.value(op.output).name.clone(), message: message.into() };
        if let Some(missing) =
            op.inputs.iter().find(|input| tensors[input.index()].is_none() && layers[input.index()].is_none())
        {
            return Err(fail(&format!("%{} is not there yet", graph.value(*missing).name)));
        }
        match &op.kind {
            OpKind::KvWrite => {
                let layer = layers[op.inputs[0].index()];
                let cache = layer.and_then(|layer| caches.get_mut(layer)).ok_or_else(|| fail("no cache was given"))?;
                context.kv_write(cache).map_err(|message| fail(&message))?;
                layers[op.output.index()] = layer;
            }
            OpKind::Attention { heads, scale } => {
                let layer = layers[op.inputs[1].index()];
                let cache = layer.and_then(|layer| caches.get(layer)).ok_or_else(|| fail("no cache was given"))?;
                let result = context.attention(cache, *heads, *scale).map_err(|message| fail(&message))?;
                tensors[op.output.index()] = Some(result);
            }
            _ => {
                let result = context.tensor_op().map_err(|message| fail(&message))?;
                tensors[op.output.index()] = Some(result);
            }
        }
    }
    Ok(Evaluation { tensors })
}

struct Context<'a> {
    graph: &'a Graph,
    op: &'a Op,
    tensors: &'a [Option<Vec<f32>>],
    inputs: &'a StepInputs,
    block_size: usize,
}

impl Context<'_> {
    fn operand(&self, index: usize) -> &[f32] {
        self.tensors[self.op.inputs[index].index()].as_deref().unwrap_or(&[])
    }

    /// An operand that is a list of indices, which must be below `limit`, and why one is not.
    fn indices(&self, index: usize, limit: usize) -> Result<Vec<usize>, String> {
        let indices = self.operand(index).iter().map(|value| {
            let found = (*value >= 0.0 && *value < limit as f32).then_some(*value as usize);
            found.ok_or_else(|| format!("operand {index} has the index {value}, beyond {limit}"))
        });
        indices.collect()
    }

    /// Elements in a row of an operand.
    fn width(&self, index: usize) -> usize {
        self.graph.tensor_type(self.op.inputs[index]).and_then(|tensor| tensor.width()).unwrap_or(1)
    }

    fn dtype(&self) -> DType {
        self.graph.tensor_type(self.op.output).map_or(DType::F32, |tensor| tensor.dtype)
    }

    fn rounded(&self, values: impl Iterator<Item = f32>) -> Vec<f32> {
        values.map(|value| round_to(self.dtype(), value)).collect()
    }

    fn tensor_op(&self) -> Result<Vec<f32>, String> {
        let x = self.operand(0);
        Ok(match &self.op.kind {
            OpKind::Embedding | OpKind::SelectRows => {
                let width = self.width(0);
                let rows = self.indices(1, x.len() / width.max(1))?;
                rows.into_iter().flat_map(|row| x[row * width..][..width].to_vec()).collect()
            }
            OpKind::Cast { .. } => self.rounded(x.iter().copied()),
            OpKind::RmsNorm { epsilon } | OpKind::HeadRmsNorm { epsilon, .. } => self.rms_norm(*epsilon),
            OpKind::Linear { scale, .. } => self.linear(scale.unwrap_or(1.0)),
            OpKind::Quantize { scale } => self.rounded(x.iter().map(|v| (v / scale).clamp(-E4M3_MAX, E4M3_MAX))),
            OpKind::RopeAngles { inverse_frequencies, attention_scaling } => {
                let mut angles = Vec::with_capacity(x.len() * 2 * inverse_frequencies.len());
                for position in x {
                    let phase = |frequency: &f32| f64::from(position * frequency);
                    angles.extend(inverse_frequencies.iter().map(|f| phase(f).cos() as f32 * attention_scaling));
                    angles.extend(inverse_frequencies.iter().map(|f| phase(f).sin() as f32 * attention_scaling));
                }
                angles
            }
            OpKind::Rope { heads } => self.rope(*heads),
            OpKind::Silu => self.rounded(x.iter().map(|v| v / (1.0 + (-v).exp()))),
            OpKind::Add => {
                let b = self.operand(1);
                self.rounded(x.iter().enumerate().map(|(index, a)| a + b[index % b.len()]))
            }
            OpKind::Sub => self.rounded(x.iter().zip(self.operand(1)).map(|(a, b)| a - b)),
            OpKind::Mul => self.rounded(x.iter().zip(self.operand(1)).map(|(a, b)| a * b)),
            OpKind::MulScalar { factor } => self.rounded(x.iter().map(|v| v * factor)),
            OpKind::AddScalar { term } => self.rounded(x.iter().map(|v| v + term)),
            OpKind::Reshape { .. } => x.to_vec(),
            OpKind::Slice { axis, start, end } => self.slice(*axis, *start, *end),
            OpKind::Concat { axis } => self.concat(*axis),
            OpKind::Transpose { permutation } => self.transpose(permutation),
            OpKind::KvWrite | OpKind::Attention { .. } => Vec::new(),
        })
    }

    /// Sizes of an operand in this batch.
    fn shape(&self, index: usize) -> Vec<usize> {
        let tensor = self.graph.tensor_type(self.op.inputs[index]);
        let sizes = self.inputs.sizes();
        tensor.map_or_else(Vec::new, |tensor| tensor.shape.iter().map(|dim| sizes.of(*dim)).collect())
    }

    fn slice(&self, axis: usize, start: usize, end: usize) -> Vec<f32> {
        let shape = self.shape(0);
        let inner: usize = shape[axis + 1..].iter().product();
        let rows = self.operand(0).chunks_exact((shape[axis] * inner).max(1));
        rows.flat_map(|row| row[start * inner..end * inner].to_vec()).collect()
    }

    fn concat(&self, axis: usize) -> Vec<f32> {
        let shapes: Vec<Vec<usize>> = (0..self.op.inputs.len()).map(|index| self.shape(index)).collect();
        let outer: usize = shapes[0][..axis].iter().product();
        let mut result = Vec::new();
        for row in 0..outer {
            for (index, shape) in shapes.iter().enumerate() {
                let length: usize = shape[axis..].iter().product();
                result.extend(&self.operand(index)[row * length..][..length]);
            }
        }
        result
    }

    fn transpose(&self, permutation: &[usize]) -> Vec<f32> {
        let (x, shape) = (self.operand(0), self.shape(0));
        let stride = |axis: usize| shape[axis + 1..].iter().product::<usize>();
        let sizes: Vec<usize> = permutation.iter().map(|axis| shape[*axis]).collect();
        let strides: Vec<usize> = permutation.iter().map(|axis| stride(*axis)).collect();
        let element = |mut index: usize| {
            let mut offset = 0;
            for (size, stride) in sizes.iter().zip(&strides).rev() {
                offset += index % size * stride;
                index /= size;
            }
            x[offset]
        };
        (0..x.len()).map(element).collect()
    }

    /// Of each run of as many elements as there are weights: a row, or a head.
    fn rms_norm(&self, epsilon: f32) -> Vec<f32> {
        let (x, weight) = (self.operand(0), self.operand(1));
        let width = weight.len();
        let mut result = Vec::with_capacity(x.len());
        for row in x.chunks_exact(width) {
            let squares: f64 = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
            let inverse = 1.0 / ((squares / width as f64) as f32 + epsilon).sqrt();
            result.extend(row.iter().zip(weight).map(|(v, w)| {
                let normalized = round_to(self.dtype(), v * inverse);
                round_to(self.dtype(), normalized * w)
            }));
        }
        result
    }

    fn linear(&self, scale: f32) -> Vec<f32> {
        let (x, weight, width) = (self.operand(0), self.operand(1), self.width(0));
        let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
        let rows = x.chunks_exact(width);
        rows.flat_map(|row| self.rounded(weight.chunks_exact(width).map(|column| dot(row, column) as f32 * scale)))
            .collect()
    }

    fn rope(&self, heads: usize) -> Vec<f32> {
        let (x, angles) = (self.operand(0), self.operand(1));
        let head_dim = self.width(1);
        let half = head_dim / 2;
        let mut result = Vec::with_capacity(x.len());
        for (index, head) in x.chunks_exact(head_dim).enumerate() {
            let (cosines, sines) = angles[index / heads * head_dim..][..head_dim].split_at(half);
            let (first, second) = head.split_at(half);
            result.extend(self.rounded((0..half).map(|i| first[i] * cosines[i] - second[i] * sines[i])));
            result.extend(self.rounded((0..half).map(|i| second[i] * cosines[i] + first[i] * sines[i])));
        }
        result
    }

    fn kv_write(&self, cache: &mut ReferenceCache) -> Result<(), String> {
        let width = cache.width;
        let slots = cache.keys.len() / width.max(1);
        for (token, slot) in self.operand(3).iter().enumerate().filter(|(_, slot)| **slot >= 0.0) {
            let slot = *slot as usize;
            if slot >= slots {
                return Err(format!("token {token} has slot {slot}, but the cache has {slots}"));
            }
            for (operand, to) in [(1, &mut cache.keys), (2, &mut cache.values)] {
                let from = &self.operand(operand)[token * width..][..width];
                let stored = from.iter().map(|number| match cache.dtype {
                    DType::F8E4M3 => round_to(DType::F8E4M3, number.clamp(-E4M3_MAX, E4M3_MAX)),
                    _ => *number,
                });
                to[slot * width..][..width].iter_mut().zip(stored).for_each(|(to, number)| *to = number);
            }
        }
        Ok(())
    }

    /// The cache slots of a token's context: those of positions 0 to its own; none for padding.
    fn context_slots(&self, token: usize, slots: usize) -> Result<Vec<usize>, String> {
        let (position, blocks) = (self.operand(2)[token], self.inputs.blocks);
        if position < 0.0 {
            return Ok(Vec::new());
        }
        let row = self.operand(3)[token].max(0.0) as usize * blocks;
        let slot = |position: usize| {
            let block = row + position / self.block_size;
            let block = self.operand(4).get(block).filter(|_| position / self.block_size < blocks);
            let slot = block.map(|block| *block as usize * self.block_size + position % self.block_size);
            slot.filter(|slot| *slot < slots)
                .ok_or_else(|| format!("position {position} of token {token} is in no block of the cache"))
        };
        (0..=position as usize).map(slot).collect()
    }

    fn attention(&self, cache: &ReferenceCache, heads: usize, scale: f32) -> Result<Vec<f32>, String> {
        let q = self.operand(0);
        let head_dim = self.width(0) / heads;
        let queries_per_kv_head = heads * head_dim / cache.width;
        let mut result = Vec::with_capacity(q.len());
        for token in 0..q.len() / (heads * head_dim) {
            let slots = self.context_slots(token, cache.keys.len() / cache.width)?;
            for head in 0..heads {
                let offset = head / queries_per_kv_head * head_dim;
                let query = &q[(token * heads + head) * head_dim..][..head_dim];
                let row = |from: &[f32], slot: usize| from[slot * cache.width + offset..][..head_dim].to_vec();
                let scores: Vec<f64> = slots
                    .iter()
                    .map(|slot| {
                        query
                            .iter()
                            .zip(row(&cache.keys, *slot))
                            .map(|(a, b)| f64::from(*a) * f64::from(b))
                            .sum::<f64>()
                            * f64::from(scale)
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                let mut sums = vec![0f64; head_dim];
                for (slot, weight) in slots.iter().zip(&weights) {
                    for (sum, value) in sums.iter_mut().zip(row(&cache.values, *slot)) {
                        *sum += weight / total * f64::from(value);
                    }
                }
                result.extend(self.rounded(sums.into_iter().map(|sum| sum as f32)));
            }
        }
        Ok(result)
    }
}
