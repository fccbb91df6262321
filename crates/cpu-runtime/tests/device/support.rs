//! Graphs, weights, batches and a runner for the device tests.

use allotrope_cpu_runtime::{CpuDevice, CpuKernel, CpuTarget, Isa};
use allotrope_graph::evaluate::{ReferenceCache, evaluate};
use allotrope_graph::memory::plan_memory;
use allotrope_graph::{
    DType, Definition, Dim, Graph, Input, KvCacheType, OpId, OpKind, Sizes, StepInputs, Target, TensorType, ValueId,
    ValueType, WeightData, WeightSource,
};
use allotrope_runtime::device::{CacheLayout, Device, DeviceError, Recorder};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

pub(crate) const VOCABULARY: usize = 50;
/// KV blocks of a test cache.
pub(crate) const BLOCKS: usize = 64;

/// A generator with a fresh seed, which a failing test prints.
pub(crate) fn random() -> ChaCha8Rng {
    let seed = RandomState::new().hash_one(std::time::SystemTime::now());
    println!("seed: {seed}");
    ChaCha8Rng::seed_from_u64(seed)
}

/// Weights in memory.
#[derive(Clone, Default)]
pub(crate) struct Weights(HashMap<String, (DType, Vec<usize>, Vec<u8>)>);

/// A way to spoil a tensor.
pub(crate) enum Change {
    Missing,
    Shape,
    Type,
    Truncated,
}

impl WeightSource for Weights {
    fn weight(&self, name: &str) -> Option<WeightData<'_>> {
        self.0.get(name).map(|(dtype, shape, bytes)| WeightData { dtype: *dtype, shape, bytes })
    }
}

fn encode(dtype: DType, value: f32) -> Vec<u8> {
    match dtype {
        DType::F32 => value.to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        DType::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        DType::F8E4M3 => vec![allotrope_graph::numerics::f32_to_e4m3(value)],
        DType::I32 => unreachable!("weights are numbers"),
    }
}

impl Weights {
    /// Random values for every weight of a graph.
    pub(crate) fn random(random: &mut ChaCha8Rng, graph: &Graph) -> Self {
        let mut weights = Self::default();
        for value in graph.values() {
            let (Definition::Weight(name), Some(tensor)) = (&value.definition, value.ty.tensor()) else { continue };
            let shape: Vec<usize> = tensor.shape.iter().map(|dim| Sizes::default().of(*dim)).collect();
            let count: usize = shape.iter().product();
            let bytes = (0..count).flat_map(|_| encode(tensor.dtype, random.random::<f32>() * 2.0 - 1.0)).collect();
            weights.0.insert(name.clone(), (tensor.dtype, shape, bytes));
        }
        weights
    }

    /// Sets one element.
    pub(crate) fn set(&mut self, name: &str, index: usize, value: f32) {
        let (dtype, _, bytes) = self.0.get_mut(name).unwrap();
        let code = encode(*dtype, value);
        bytes[index * code.len()..(index + 1) * code.len()].copy_from_slice(&code);
    }

    /// Spoils a tensor.
    pub(crate) fn change(&mut self, name: &str, change: Change) {
        let tensor = self.0.get_mut(name).unwrap();
        match change {
            Change::Missing => drop(self.0.remove(name)),
            Change::Shape => tensor.1.reverse(),
            Change::Type => tensor.0 = DType::F16,
            Change::Truncated => drop(tensor.2.pop()),
        }
    }
}

/// A device with a prepared graph.
pub(crate) struct Runner {
    pub(crate) device: CpuDevice,
    /// Whether steps run as one recording.
    pub(crate) record: bool,
    /// Results that the memory plan puts in the place of operands.
    pub(crate) in_place: usize,
    kernels: Vec<CpuKernel>,
    outputs: Vec<ValueId>,
}

/// What runs a graph, and how.
#[derive(Clone, Copy)]
pub(crate) struct Setup<'a> {
    /// What the memory plan asks.
    pub(crate) target: &'a dyn Target,
    pub(crate) isa: Isa,
    pub(crate) threads: usize,
    pub(crate) repack: bool,
    pub(crate) block_size: usize,
}

/// The CPU, asked by a memory plan with another answer to what may be overwritten.
pub(crate) struct Overwriting(pub(crate) bool);

impl Target for Overwriting {
    fn name(&self) -> &str {
        "cpu"
    }
    fn accepts(&self, graph: &Graph, ops: &[OpId]) -> Result<(), String> {
        CpuTarget.accepts(graph, ops)
    }
    fn may_overwrite(&self, _: &Graph, _: usize, _: ValueId, _: ValueId) -> bool {
        self.0
    }
}

impl Runner {
    pub(crate) fn new(graph: &Graph, weights: &Weights, isa: Isa, threads: usize, repack: bool) -> Self {
        Self::with_blocks(graph, weights, isa, threads, repack, 4)
    }

    pub(crate) fn with_blocks(
        graph: &Graph,
        weights: &Weights,
        isa: Isa,
        threads: usize,
        repack: bool,
        block_size: usize,
    ) -> Self {
        Self::try_new(graph, weights, isa, threads, repack, block_size).unwrap()
    }

    pub(crate) fn try_new(
        graph: &Graph,
        weights: &Weights,
        isa: Isa,
        threads: usize,
        repack: bool,
        block_size: usize,
    ) -> Result<Self, DeviceError> {
        Self::set_up(graph, weights, Setup { target: &CpuTarget, isa, threads, repack, block_size })
    }

    /// Prepares everything and runs a step over garbage, so that no buffer is clean.
    pub(crate) fn set_up(graph: &Graph, weights: &Weights, setup: Setup<'_>) -> Result<Self, DeviceError> {
        let Setup { target, isa, threads, repack, block_size } = setup;
        let mut device = CpuDevice::new(threads, isa)?;
        let limits = Sizes { tokens: 80, sequences: 8, logit_rows: 80, blocks: 16 };
        let workspace: Vec<_> = (0..graph.groups().len()).map(|group| device.workspace(graph, group)).collect();
        let plan = plan_memory(graph, target, &workspace, limits, device.alignment()).unwrap();
        let mut poisoned = weights.clone();
        for (dtype, _, bytes) in poisoned.0.values_mut() {
            let nan = encode(*dtype, f32::NAN);
            bytes.chunks_exact_mut(nan.len()).for_each(|value| value.copy_from_slice(&nan));
        }
        // Memory outlives the weights, so a step with weights of NaN leaves NaN in all of it.
        device.load_weights(graph, Arc::new(poisoned), false)?;
        device.allocate(graph, &plan, CacheLayout { blocks: BLOCKS, block_size })?;
        let outputs = graph.outputs().to_vec();
        let mut runner = Self { device, record: false, in_place: plan.in_place.len(), kernels: Vec::new(), outputs };
        runner.prepare(graph)?;
        let mut garbage = plain_inputs(vec![0; 80]);
        garbage.slots = (0..80).map(|slot| slot % (BLOCKS * block_size) as i32).collect();
        garbage.block_tables = (0..16).collect();
        garbage.blocks = 16;
        garbage.logit_rows = (0..80).collect();
        runner.step(&garbage);
        runner.device.load_weights(graph, Arc::new(weights.clone()), repack)?;
        runner.prepare(graph)?;
        Ok(runner)
    }

    fn prepare(&mut self, graph: &Graph) -> Result<(), DeviceError> {
        let groups = 0..graph.groups().len();
        self.kernels = groups.map(|group| self.device.prepare(graph, group)).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Runs a step and gives the outputs, one after the other.
    pub(crate) fn step(&mut self, inputs: &StepInputs) -> Vec<f32> {
        let sizes = inputs.sizes();
        self.device.write_inputs(inputs).unwrap();
        if self.record {
            // Recorded for more rows than the step has.
            let larger = Sizes { tokens: sizes.tokens + 3, logit_rows: sizes.logit_rows + 1, ..sizes };
            let recording = self.device.recorder().unwrap().record(&self.kernels, &larger).unwrap();
            self.device.replay(&recording, &sizes).unwrap();
        } else {
            for kernel in &self.kernels {
                self.device.launch(kernel, &sizes).unwrap();
            }
        }
        let mut values = Vec::new();
        for output in self.outputs.clone() {
            values.extend(self.device.read_output(output, &sizes).unwrap());
        }
        values
    }
}

/// A unit in the last place of numbers from 1 to 2.
pub(crate) fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        _ => 2f64.powi(-23),
    }
}

fn plain_inputs(token_ids: Vec<i32>) -> StepInputs {
    let tokens = token_ids.len();
    StepInputs {
        positions: (0..tokens as i32).map(|position| position % VOCABULARY as i32).collect(),
        slots: (0..tokens as i32).collect(),
        token_sequences: vec![0; tokens],
        block_tables: vec![0; 16],
        blocks: 16,
        logit_rows: (0..tokens as i32).collect(),
        token_ids,
    }
}

/// Random tokens at positions of their own; for graphs without attention.
pub(crate) fn plain_batch(random: &mut ChaCha8Rng, tokens: usize) -> StepInputs {
    plain_inputs((0..tokens).map(|_| random.random_range(0..VOCABULARY as i32)).collect())
}

/// Tokens of one sequence, whose blocks are in descending order.
pub(crate) fn sequence_batch(ids: &[i32], range: std::ops::Range<usize>, block_size: usize) -> StepInputs {
    let table: Vec<i32> = (0..8).map(|block| 40 - block).collect();
    let slot = |position: usize| table[position / block_size] * block_size as i32 + (position % block_size) as i32;
    StepInputs {
        token_ids: ids[range.clone()].to_vec(),
        positions: range.clone().map(|position| position as i32).collect(),
        slots: range.clone().map(slot).collect(),
        token_sequences: vec![0; range.len()],
        logit_rows: (0..range.len() as i32).collect(),
        blocks: table.len(),
        block_tables: table,
    }
}

/// Steps of three sequences: prompts of different lengths, then decoding with padding among the tokens, then a mixture.
pub(crate) fn conversation(random: &mut ChaCha8Rng, block_size: usize) -> Vec<StepInputs> {
    let mut blocks: Vec<i32> = (0..BLOCKS as i32).collect();
    for index in (1..blocks.len()).rev() {
        blocks.swap(index, random.random_range(0..=index));
    }
    let tables: Vec<Vec<i32>> = blocks.chunks(16).map(<[i32]>::to_vec).take(3).collect();
    let mut lengths = [0usize; 3];
    let prompts = [random.random_range(1..12), random.random_range(1..20), 3];
    let rounds = [prompts, [1, 1, 1], [1, 0, 7], [1, 1, 1]];
    let mut steps = Vec::new();
    for (round, counts) in rounds.into_iter().enumerate() {
        let mut step = StepInputs { blocks: 16, block_tables: tables.concat(), ..StepInputs::default() };
        for (sequence, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let position = lengths[sequence];
                let block = tables[sequence][position / block_size];
                step.token_ids.push(random.random_range(0..VOCABULARY as i32));
                step.positions.push(position as i32);
                step.slots.push(block * block_size as i32 + (position % block_size) as i32);
                step.token_sequences.push(sequence as i32);
                lengths[sequence] += 1;
            }
            if count > 0 {
                step.logit_rows.push(step.token_ids.len() as i32 - 1);
            }
            if round == 1 {
                step.token_ids.push(0);
                step.positions.push(-1);
                step.slots.push(-1);
                step.token_sequences.push(0);
            }
        }
        steps.push(step);
    }
    steps
}

/// Caches for every layer of a graph.
pub(crate) fn reference_caches(graph: &Graph, block_size: usize) -> Vec<ReferenceCache> {
    let types = graph.values().iter().filter_map(|value| match (&value.definition, &value.ty) {
        (Definition::State { .. }, ValueType::KvCache(ty)) => Some(ty),
        _ => None,
    });
    types.map(|ty| ReferenceCache::new(ty, BLOCKS * block_size)).collect()
}

/// The reference's outputs of a step, one after the other.
pub(crate) fn reference_step(
    graph: &Graph,
    weights: &Weights,
    inputs: &StepInputs,
    caches: &mut [ReferenceCache],
    block_size: usize,
) -> Vec<f32> {
    let evaluation = evaluate(graph, weights, inputs, caches, block_size).unwrap();
    graph.outputs().iter().flat_map(|output| evaluation.tensor(*output).unwrap().to_vec()).collect()
}

/// Queries, keys and values from tables, written to a cache and attended to.
pub(crate) fn attention_graph(dtype: DType, heads: usize, kv_heads: usize, head_dim: usize) -> Graph {
    let mut graph = Graph::new();
    let ids = graph.input(Input::TokenIds);
    let state = graph.state(0, KvCacheType { dtype, kv_heads, head_dim });
    let mut row = |name: &str, width: usize| {
        let table = graph.weight(name, TensorType::new(dtype, [Dim::Static(VOCABULARY), Dim::Static(width)]));
        graph.push(format!("{name}.rows"), OpKind::Embedding, &[table, ids]).unwrap()
    };
    let (q, k, v) = (row("q", heads * head_dim), row("k", kv_heads * head_dim), row("v", kv_heads * head_dim));
    let attention = attend(&mut graph, "attention", [q, k, v], state, heads, 4.0 / (head_dim as f32).sqrt());
    let output = graph.push("output", OpKind::Cast { to: DType::F32 }, &[attention]).unwrap();
    graph.add_output(output);
    graph
}

fn attend(graph: &mut Graph, name: &str, [q, k, v]: [ValueId; 3], state: ValueId, heads: usize, scale: f32) -> ValueId {
    let slots = graph.input(Input::Slots);
    let written = graph.push(format!("{name}.cache"), OpKind::KvWrite, &[state, k, v, slots]).unwrap();
    let positions = graph.input(Input::Positions);
    let sequences = graph.input(Input::TokenSequences);
    let tables = graph.input(Input::BlockTables);
    let kind = OpKind::Attention { heads, scale };
    graph.push(name, kind, &[q, written, positions, sequences, tables]).unwrap()
}

/// The bits of numbers.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The reference's outputs of a step without KV caches.
pub(crate) fn reference(graph: &Graph, weights: &Weights, inputs: &StepInputs) -> Vec<f32> {
    reference_step(graph, weights, inputs, &mut [], 1)
}

/// A decoder of two layers with tied embeddings, biases on the queries, and odd sizes; with `quantized`, FP8
/// projections.
pub(crate) fn decoder(dtype: DType, quantized: bool) -> Graph {
    let (width, heads, kv_heads, head_dim, inner) = (44, 6, 2, 10, 102);
    let mut graph = Graph::new();
    let ids = graph.input(Input::TokenIds);
    let positions = graph.input(Input::Positions);
    let table = graph.weight("embedding", TensorType::new(dtype, [Dim::Static(VOCABULARY), Dim::Static(width)]));
    let mut x = graph.push("embedded", OpKind::Embedding, &[table, ids]).unwrap();
    let linear = |graph: &mut Graph, name: &str, x: ValueId, rows: usize| {
        let columns = graph.tensor_type(x).unwrap().width().unwrap();
        let (x, operand, scale) = if quantized {
            let kind = OpKind::Quantize { scale: 0.01 };
            (graph.push(format!("{name}.quantized"), kind, &[x]).unwrap(), DType::F8E4M3, Some(0.002))
        } else {
            (x, dtype, None)
        };
        let weight = graph.weight(name, TensorType::new(operand, [Dim::Static(rows), Dim::Static(columns)]));
        graph.push(format!("{name}.y"), OpKind::Linear { to: dtype, scale }, &[x, weight]).unwrap()
    };
    let norm = |graph: &mut Graph, name: &str, x: ValueId| {
        let weight = graph.weight(name, TensorType::vector(dtype, Dim::Static(width)));
        graph.push(format!("{name}.y"), OpKind::RmsNorm { epsilon: 1e-5 }, &[x, weight]).unwrap()
    };
    for layer in 0..2 {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let state = graph.state(layer, KvCacheType { dtype, kv_heads, head_dim });
        let normed = norm(&mut graph, &name("norm1"), x);
        let q = linear(&mut graph, &name("q_proj"), normed, heads * head_dim);
        let k = linear(&mut graph, &name("k_proj"), normed, kv_heads * head_dim);
        let v = linear(&mut graph, &name("v_proj"), normed, kv_heads * head_dim);
        let bias = graph.weight(&name("q_bias"), TensorType::vector(dtype, Dim::Static(heads * head_dim)));
        let q = graph.push(name("q_biased"), OpKind::Add, &[q, bias]).unwrap();
        let frequencies: Vec<f32> = (0..head_dim / 2).map(|i| 100f32.powf(-(i as f32) / 5.0)).collect();
        let kind = OpKind::RopeAngles { inverse_frequencies: frequencies.into(), attention_scaling: 1.0 };
        let angles = graph.push(name("angles"), kind, &[positions]).unwrap();
        let q = graph.push(name("q_rotated"), OpKind::Rope { heads }, &[q, angles]).unwrap();
        let k = graph.push(name("k_rotated"), OpKind::Rope { heads: kv_heads }, &[k, angles]).unwrap();
        let attention = attend(&mut graph, &name("attention"), [q, k, v], state, heads, 0.3);
        let projected = linear(&mut graph, &name("o_proj"), attention, width);
        x = graph.push(name("sum1"), OpKind::Add, &[x, projected]).unwrap();
        let normed = norm(&mut graph, &name("norm2"), x);
        let gate = linear(&mut graph, &name("gate_proj"), normed, inner);
        let up = linear(&mut graph, &name("up_proj"), normed, inner);
        let gate = graph.push(name("silu"), OpKind::Silu, &[gate]).unwrap();
        let product = graph.push(name("product"), OpKind::Mul, &[gate, up]).unwrap();
        let down = linear(&mut graph, &name("down_proj"), product, width);
        x = graph.push(name("sum2"), OpKind::Add, &[x, down]).unwrap();
    }
    let rows = graph.input(Input::LogitRows);
    let selected = graph.push("selected", OpKind::SelectRows, &[x, rows]).unwrap();
    let normed = norm(&mut graph, "norm", selected);
    let kind = OpKind::Linear { to: DType::F32, scale: None };
    let logits = graph.push("logits", kind, &[normed, table]).unwrap();
    graph.add_output(logits);
    graph
}

/// The graph with every op by itself, with all passes applied, and with random groups that the target takes.
pub(crate) fn groupings(random: &mut ChaCha8Rng, graph: &Graph) -> Vec<(String, Graph)> {
    let mut all = vec![("flat".to_string(), graph.clone())];
    for number in 0..3 {
        let mut grouped = graph.clone();
        for _ in 0..60 {
            let count = grouped.groups().len();
            let first = random.random_range(0..count);
            let second = (first + random.random_range(1..4)).min(count - 1);
            let mut ops: Vec<OpId> =
                [first, second].iter().flat_map(|place| grouped.groups()[*place].ops.clone()).collect();
            ops.sort_unstable();
            ops.dedup();
            if CpuTarget.accepts(&grouped, &ops).is_ok() {
                // What would make a cycle stays as it is.
                let _ = grouped.regroup(&ops);
            }
        }
        assert!(grouped.groups().len() < graph.groups().len());
        all.push((format!("random {number}, {} groups", grouped.groups().len()), grouped));
    }
    all
}
