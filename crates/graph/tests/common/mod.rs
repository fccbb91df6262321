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
use allotrope_graph::evaluate::{EvaluateError, Evaluation, ReferenceCache, evaluate};
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

    fn may_overwrite(&self, _: &Graph, _: usize, _: ValueId, _: ValueId) -> bool {
        true
    }
}

/// A target that has a kernel for some groups and not for others, by chance.
pub struct Moody(pub u64);

impl Target for Moody {
    fn name(&self) -> &str {
        "moody"
    }

    fn accepts(&self, _: &Graph, ops: &[OpId]) -> Result<(), String> {
        let hash = ops.iter().fold(self.0, |hash, op| (hash ^ u64::from(op.0)).wrapping_mul(0x100_0000_01b3));
        if ops.len() == 1 || hash >> 32 & 3 != 0 { Ok(()) } else { Err(format!("not {} of these", ops.len())) }
    }

    fn may_overwrite(&self, _: &Graph, group: usize, _: ValueId, result: ValueId) -> bool {
        (self.0 ^ group as u64 ^ u64::from(result.0)) & 1 == 0
    }
}

/// A property is tried on 256 graphs, or on as many as `PROPTEST_CASES` says.
pub fn cases() -> proptest::test_runner::Config {
    proptest::test_runner::Config { failure_persistence: None, ..Default::default() }
}

/// The pass settings of a level, for a model that quantizes activations statically or not at all.
pub fn passes_of(level: OptimizationLevel, quantized: bool) -> PassConfig {
    let mut options = Options::default();
    options.set_optimization_level(level, Source::Builder);
    let mut model = ModelFacts::assumed();
    if quantized {
        model.activation_quantization = allotrope_config::ActivationQuantization::Static;
    }
    model.has_qk_norm = true;
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
pub fn try_run(graph: &Graph, weights: &dyn WeightSource) -> Result<Evaluation, EvaluateError> {
    let layers = graph.values().iter().filter(|value| matches!(value.definition, Definition::State { .. })).count();
    let mut caches = vec![ReferenceCache::new(&CACHE, 2 * BLOCK_SIZE); layers];
    evaluate(graph, weights, &batch(), &mut caches, BLOCK_SIZE)
}

/// The bits of all outputs of a graph.
pub fn output_bits(graph: &Graph, weights: &dyn WeightSource) -> Vec<u32> {
    let evaluation = try_run(graph, weights).unwrap();
    let outputs = graph.outputs().iter().map(|output| evaluation.tensor(*output).unwrap());
    outputs.flatten().map(|value| value.to_bits()).collect()
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

    pub fn head_norm(&mut self, x: ValueId, heads: usize) -> ValueId {
        let width = self.graph.tensor_type(x).unwrap().width().unwrap();
        let weight = self.weight(DType::Bf16, &[width / heads]);
        self.push(OpKind::HeadRmsNorm { heads, epsilon: 1e-6 }, &[x, weight])
    }

    /// Casts that lose nothing, and casts that do.
    pub fn casts(&mut self, random: &mut Random, x: ValueId) -> ValueId {
        let mut value = x;
        for _ in 0..=random.below(3) {
            let to = [DType::F32, DType::F16, DType::Bf16, DType::F8E4M3][random.below(4)];
            value = self.push(OpKind::Cast { to }, &[value]);
        }
        self.push(OpKind::Cast { to: DType::Bf16 }, &[value])
    }

    /// Products and sums with numbers that change nothing, or little.
    pub fn scalars(&mut self, random: &mut Random, x: ValueId) -> ValueId {
        let factor = [1.0, -1.0, 0.5, 0.0][random.below(4)];
        let term = [0.0, -0.0, 0.25][random.below(3)];
        let product = self.push(OpKind::MulScalar { factor }, &[x]);
        self.push(OpKind::AddScalar { term }, &[product])
    }

    /// Reshapes and transposes that may cancel each other.
    pub fn moves(&mut self, random: &mut Random, x: ValueId) -> ValueId {
        let shape = |dims: &[usize]| {
            let sizes = dims.iter().map(|size| Dim::Static(*size));
            OpKind::Reshape { shape: std::iter::once(Dim::Tokens).chain(sizes).collect() }
        };
        let mut value = self.push(shape(&[HIDDEN]), &[x]);
        value = self.push(shape(&[2, 2, HIDDEN / 4]), &[value]);
        for _ in 0..random.below(4) {
            let permutation = [vec![0, 1, 2, 3], vec![0, 2, 1, 3], vec![0, 1, 3, 2], vec![0, 3, 1, 2]];
            let permutation = permutation[random.below(4)].clone();
            value = self.push(OpKind::Transpose { permutation }, &[value]);
        }
        if random.below(2) == 0 {
            value = self.push(shape(&[4, HIDDEN / 4]), &[value]);
        }
        self.push(shape(&[HIDDEN]), &[value])
    }

    /// The tokens moved to another axis and back, by transposes that cancel each other or go all the way round.
    pub fn turns(&mut self, random: &mut Random, x: ValueId) -> ValueId {
        let shape = vec![Dim::Static(4), Dim::Tokens, Dim::Static(HIDDEN / 4)];
        let apart = vec![Dim::Tokens, Dim::Static(4), Dim::Static(HIDDEN / 4)];
        let split = self.push(OpKind::Reshape { shape: apart }, &[x]);
        let mut value = self.push(OpKind::Transpose { permutation: vec![1, 0, 2] }, &[split]);
        value = self.push(OpKind::Reshape { shape }, &[value]);
        let back = [vec![vec![1, 0, 2]], vec![vec![1, 2, 0], vec![0, 2, 1]]][random.below(2)].clone();
        for permutation in back {
            value = self.push(OpKind::Transpose { permutation }, &[value]);
        }
        self.push(OpKind::Reshape { shape: vec![Dim::Tokens, Dim::Static(HIDDEN)] }, &[value])
    }

    /// Slices of one or two values, concatenated: in order, or not.
    pub fn parts(&mut self, random: &mut Random, x: ValueId, y: ValueId) -> ValueId {
        let cut = 1 + random.below(HIDDEN - 1);
        let whole = self.push(OpKind::Slice { axis: 1, start: 0, end: HIDDEN }, &[x]);
        let low = self.push(OpKind::Slice { axis: 1, start: 0, end: cut }, &[whole]);
        let from = if random.below(2) == 0 { x } else { y };
        let high = self.push(OpKind::Slice { axis: 1, start: cut, end: HIDDEN }, &[from]);
        let parts = if random.below(2) == 0 { [low, high] } else { [high, low] };
        let both = self.push(OpKind::Concat { axis: 1 }, &parts);
        match random.below(3) {
            0 => both,
            1 => {
                // One of the parts again, and with it all that is needed to make a row.
                let part = self.push(OpKind::Slice { axis: 1, start: 0, end: cut }, &[both]);
                let inner = self.push(OpKind::Slice { axis: 1, start: cut / 2, end: cut }, &[part]);
                let rest = self.push(OpKind::Slice { axis: 1, start: 0, end: HIDDEN - (cut - cut / 2) }, &[both]);
                self.push(OpKind::Concat { axis: 1 }, &[inner, rest])
            }
            _ => self.push(OpKind::Concat { axis: 1 }, &[both]),
        }
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

    pub fn attention(
        &mut self,
        layer: usize,
        x: ValueId,
        angles: ValueId,
        quantized: Option<f32>,
        Architecture { bias, qk_norm, .. }: Architecture,
    ) -> ValueId {
        let mut project = |width: usize| {
            let projected = self.linear(x, width, quantized);
            if !bias {
                return projected;
            }
            let bias = self.weight(DType::Bf16, &[width]);
            self.push(OpKind::Add, &[projected, bias])
        };
        let (mut q, mut k, v) = (project(HIDDEN), project(CACHE.width()), project(CACHE.width()));
        if qk_norm {
            (q, k) = (self.head_norm(q, 4), self.head_norm(k, 2));
        }
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

/// What tells decoders apart.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Architecture {
    /// FP8 weights, and activations quantized by static scales.
    pub quantized: bool,
    /// Biases in the projections of attention, as Qwen2 has them.
    pub bias: bool,
    /// Norms of query and key heads, as Qwen3 has them.
    pub qk_norm: bool,
}

pub const LLAMA: Architecture = Architecture { quantized: false, bias: false, qk_norm: false };
pub const LLAMA_FP8: Architecture = Architecture { quantized: true, ..LLAMA };
pub const QWEN2: Architecture = Architecture { bias: true, ..LLAMA };
pub const QWEN3: Architecture = Architecture { qk_norm: true, ..LLAMA };
pub const QWEN3_FP8: Architecture = Architecture { quantized: true, ..QWEN3 };

/// A decoder of `layers` layers as the model builder writes it.
pub fn decoder(layers: usize, architecture: Architecture) -> Graph {
    let scale = |value| architecture.quantized.then_some(value);
    let mut builder = Builder::new();
    let mut stream = builder.embedding();
    let angles = builder.angles();
    for layer in 0..layers {
        let normalized = builder.norm(stream);
        let attended = builder.attention(layer, normalized, angles, scale(0.01), architecture);
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

/// A random well-typed graph over all operations, with shared values and state, no-ops and what only looks like them.
pub fn random_graph(random: &mut Random) -> Graph {
    let mut builder = Builder::new();
    let mut values = vec![builder.embedding()];
    let angles = builder.angles();
    let mut layers = 0;
    for _ in 0..random.below(30) {
        let x = values[random.below(values.len())];
        let y = values[random.below(values.len())];
        let quantized = [None, Some(0.05), Some(0.1)][random.below(3)];
        let next = match random.below(15) {
            0 => builder.norm(x),
            1 => builder.linear(x, HIDDEN, quantized),
            2 => builder.push(OpKind::Add, &[x, y]),
            3 => builder.push(OpKind::Silu, &[x]),
            4 => builder.push(OpKind::Mul, &[x, y]),
            5 => builder.casts(random, x),
            6 => {
                layers += 1;
                let architecture = Architecture { bias: random.below(3) == 0, qk_norm: random.below(3) == 0, ..LLAMA };
                builder.attention(layers - 1, x, angles, quantized, architecture)
            }
            7 => {
                let bias = builder.weight(DType::Bf16, &[HIDDEN]);
                builder.push(OpKind::Add, &[x, bias])
            }
            8 => builder.push(OpKind::Sub, &[x, y]),
            9 => builder.scalars(random, x),
            10 => builder.moves(random, x),
            11 => builder.parts(random, x, y),
            12 => builder.turns(random, x),
            13 => {
                let normalized = builder.head_norm(x, 4);
                builder.push(OpKind::Rope { heads: 4 }, &[normalized, angles])
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
    // What nothing reads is an output, so that a wrong value shows, or dead code.
    for value in &values {
        if builder.graph.users(*value).is_empty() && random.below(3) > 0 {
            builder.graph.add_output(*value);
        }
    }
    let mut last = values[values.len() - 1];
    if random.below(2) == 0 {
        // Operations on rows of logits, besides the norm and the projection that come last.
        let rows = builder.graph.input(Input::LogitRows);
        let chosen = builder.push(OpKind::SelectRows, &[last, rows]);
        let chosen = builder.casts(random, chosen);
        let activated = builder.push(OpKind::Silu, &[chosen]);
        let projected = builder.linear(activated, HIDDEN, [None, Some(0.05)][random.below(2)]);
        let sum = builder.push(OpKind::Add, &[chosen, projected]);
        builder.graph.add_output(sum);
        last = values[random.below(values.len())];
    }
    builder.finish(last)
}
