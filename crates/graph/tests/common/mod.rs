//! Graphs to test with: decoder layers as the model builder writes them, and random ones.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses a part of this; tests may panic"
)]

use std::collections::HashMap;
use std::sync::Arc;

use allotrope_config::{DeviceFacts, ModelFacts, OptimizationLevel, Options, PassConfig, Source, resolve};
use allotrope_graph::evaluate::{Evaluation, ReferenceCache, evaluate};
use allotrope_graph::numerics::f32_to_e4m3;
use allotrope_graph::*;

/// A target with a kernel for everything.
pub struct Everything;

impl Target for Everything {
    fn name(&self) -> &str {
        "everything"
    }

    fn accepts(&self, _: &Graph, _: &[OpId]) -> Result<(), String> {
        Ok(())
    }
}

/// The pass settings of a level, for a model that quantizes activations statically or not at all.
pub fn passes_of(level: OptimizationLevel, quantized: bool) -> PassConfig {
    let mut options = Options::default();
    options.set_optimization_level(level, Source::Builder);
    let mut model = ModelFacts::assumed();
    if quantized {
        model.activation_quantization = allotrope_config::ActivationQuantization::Static;
    }
    resolve(&options, &model, &DeviceFacts::assumed()).unwrap().compilation.pass_config
}

/// A small generator of pseudo-random numbers (xorshift64*), so that a failure needs only its seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        ((self.next() >> 33) as usize) % bound
    }

    /// Roughly uniform between −1 and 1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Random values for every weight of a graph.
pub struct RandomWeights(HashMap<String, (DType, Vec<usize>, Vec<u8>)>);

impl RandomWeights {
    pub fn new(graph: &Graph, random: &mut Random) -> Self {
        let mut weights = HashMap::new();
        for value in graph.values() {
            let (Definition::Weight(name), Some(tensor)) = (&value.definition, value.ty.tensor()) else { continue };
            let sizes = Sizes::default();
            let shape: Vec<usize> = tensor.shape.iter().map(|dim| sizes.of(*dim)).collect();
            let mut bytes = Vec::new();
            for _ in 0..tensor.elements(&sizes).unwrap() {
                let value = random.float();
                match tensor.dtype {
                    DType::Bf16 => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
                    DType::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
                    DType::F8E4M3 => bytes.push(f32_to_e4m3(value * 16.0)),
                    _ => bytes.extend(value.to_le_bytes()),
                }
            }
            weights.insert(name.clone(), (tensor.dtype, shape, bytes));
        }
        RandomWeights(weights)
    }
}

impl WeightSource for RandomWeights {
    fn weight(&self, name: &str) -> Option<WeightData<'_>> {
        let (dtype, shape, bytes) = self.0.get(name)?;
        Some(WeightData { dtype: *dtype, shape, bytes })
    }
}

pub const BLOCK_SIZE: usize = 4;
pub const VOCABULARY: usize = 11;
const CACHE: KvCacheType = KvCacheType { dtype: DType::Bf16, kv_heads: 2, head_dim: 4 };
const HIDDEN: usize = 16;

/// A batch of two sequences: one prefills, one decodes beyond a first block.
pub fn batch() -> StepInputs {
    StepInputs {
        token_ids: vec![1, 2, 3, 4, 5, 6],
        positions: vec![0, 1, 2, 0, 1, 2],
        slots: vec![4, 5, 6, 0, 1, 2],
        token_sequences: vec![0, 0, 0, 1, 1, 1],
        block_tables: vec![1, 0],
        blocks: 1,
        logit_rows: vec![2, 5],
    }
}

/// Evaluates a graph on fresh caches.
pub fn run(graph: &Graph, weights: &dyn WeightSource) -> Evaluation {
    let layers = graph.values().iter().filter(|value| matches!(value.definition, Definition::State { .. })).count();
    let mut caches = vec![ReferenceCache::new(&CACHE, 2 * BLOCK_SIZE); layers];
    evaluate(graph, weights, &batch(), &mut caches, BLOCK_SIZE).unwrap()
}

/// Builds graphs operation by operation.
pub struct Builder {
    pub graph: Graph,
    names: usize,
}

impl Builder {
    pub fn new() -> Self {
        Builder { graph: Graph::new(), names: 0 }
    }

    pub fn push(&mut self, kind: OpKind, inputs: &[ValueId]) -> ValueId {
        self.names += 1;
        self.graph.push(format!("v{}", self.names), kind, inputs).unwrap()
    }

    pub fn weight(&mut self, dtype: DType, shape: &[usize]) -> ValueId {
        self.names += 1;
        let dims: Vec<Dim> = shape.iter().map(|size| Dim::Static(*size)).collect();
        self.graph.weight(&format!("w{}", self.names), TensorType::new(dtype, dims))
    }

    pub fn norm(&mut self, x: ValueId) -> ValueId {
        let weight = self.weight(DType::Bf16, &[HIDDEN]);
        self.push(OpKind::RmsNorm { epsilon: 1e-5 }, &[x, weight])
    }

    /// A projection to `width`; quantized ones get a scale of their own from `random`.
    pub fn linear(&mut self, x: ValueId, width: usize, quantized: Option<f32>) -> ValueId {
        let columns = self.graph.tensor_type(x).unwrap().width().unwrap();
        let (x, dtype) = match quantized {
            Some(scale) => (self.push(OpKind::Quantize { scale }, &[x]), DType::F8E4M3),
            None => (x, DType::Bf16),
        };
        let weight = self.weight(dtype, &[width, columns]);
        self.push(OpKind::Linear { to: DType::Bf16, scale: quantized.map(|scale| scale * 0.01) }, &[x, weight])
    }

    pub fn embedding(&mut self) -> ValueId {
        let ids = self.graph.input(Input::TokenIds);
        let table = self.weight(DType::Bf16, &[VOCABULARY, HIDDEN]);
        let embedding = self.push(OpKind::Embedding, &[table, ids]);
        self.push(OpKind::Cast { to: DType::Bf16 }, &[embedding])
    }

    pub fn attention(&mut self, layer: usize, x: ValueId, angles: ValueId, quantized: Option<f32>) -> ValueId {
        let q = self.linear(x, HIDDEN, quantized);
        let k = self.linear(x, CACHE.width(), quantized);
        let v = self.linear(x, CACHE.width(), quantized);
        let q = self.push(OpKind::Rope { heads: 4 }, &[q, angles]);
        let k = self.push(OpKind::Rope { heads: 2 }, &[k, angles]);
        let cache = self.graph.state(layer, CACHE);
        let slots = self.graph.input(Input::Slots);
        let cache = self.push(OpKind::KvWrite, &[cache, k, v, slots]);
        let metadata =
            [Input::Positions, Input::TokenSequences, Input::BlockTables].map(|input| self.graph.input(input));
        let operands = [q, cache, metadata[0], metadata[1], metadata[2]];
        self.push(OpKind::Attention { heads: 4, scale: 0.5 }, &operands)
    }

    pub fn angles(&mut self) -> ValueId {
        let positions = self.graph.input(Input::Positions);
        let inverse_frequencies: Arc<[f32]> = Arc::from([1.0, 0.1]);
        self.push(OpKind::RopeAngles { inverse_frequencies, attention_scaling: 1.0 }, &[positions])
    }

    pub fn finish(mut self, stream: ValueId) -> Graph {
        let rows = self.graph.input(Input::LogitRows);
        let wanted = self.push(OpKind::SelectRows, &[stream, rows]);
        let normalized = self.norm(wanted);
        let head = self.weight(DType::Bf16, &[VOCABULARY, HIDDEN]);
        let logits = self.push(OpKind::Linear { to: DType::F32, scale: None }, &[normalized, head]);
        self.graph.add_output(logits);
        self.graph
    }
}

/// A Llama of `layers` layers as the model builder writes it.
pub fn decoder(layers: usize, quantized: bool) -> Graph {
    let scale = |value| quantized.then_some(value);
    let mut builder = Builder::new();
    let mut stream = builder.embedding();
    let angles = builder.angles();
    for layer in 0..layers {
        let normalized = builder.norm(stream);
        let attended = builder.attention(layer, normalized, angles, scale(0.01));
        let attended = builder.linear(attended, HIDDEN, scale(0.02));
        stream = builder.push(OpKind::Add, &[stream, attended]);
        let normalized = builder.norm(stream);
        let gate = builder.linear(normalized, 24, scale(0.03));
        let up = builder.linear(normalized, 24, scale(0.03));
        let activated = builder.push(OpKind::Silu, &[gate]);
        let gated = builder.push(OpKind::Mul, &[activated, up]);
        let projected = builder.linear(gated, HIDDEN, scale(0.04));
        stream = builder.push(OpKind::Add, &[stream, projected]);
    }
    builder.finish(stream)
}

/// A random well-typed graph over all operations, with shared values and state.
pub fn random_graph(random: &mut Random) -> Graph {
    let mut builder = Builder::new();
    let mut values = vec![builder.embedding()];
    let angles = builder.angles();
    let mut layers = 0;
    for _ in 0..random.below(30) {
        let x = values[random.below(values.len())];
        let y = values[random.below(values.len())];
        let quantized = [None, Some(0.05), Some(0.1)][random.below(3)];
        let next = match random.below(9) {
            0 => builder.norm(x),
            1 => builder.linear(x, HIDDEN, quantized),
            2 => builder.push(OpKind::Add, &[x, y]),
            3 => builder.push(OpKind::Silu, &[x]),
            4 => builder.push(OpKind::Mul, &[x, y]),
            5 => {
                let wide = builder.push(OpKind::Cast { to: DType::F32 }, &[x]);
                builder.push(OpKind::Cast { to: DType::Bf16 }, &[wide])
            }
            6 => {
                layers += 1;
                builder.attention(layers - 1, x, angles, quantized)
            }
            7 => {
                let bias = builder.weight(DType::Bf16, &[HIDDEN]);
                builder.push(OpKind::Add, &[x, bias])
            }
            // The same operation again, for the pass that finds such.
            _ => {
                let first = builder.push(OpKind::Silu, &[x]);
                let second = builder.push(OpKind::Silu, &[x]);
                builder.push(OpKind::Mul, &[first, second])
            }
        };
        values.push(next);
    }
    let last = values[values.len() - 1];
    builder.finish(last)
}
