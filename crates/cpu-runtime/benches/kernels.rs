//! Kernels against what the machine can do: `cargo bench -p allotrope-cpu-runtime`.
//!
//! Weights are large enough to come from memory. All threads that the process may use take part, and a table at the end says
//! which part of the machine's ceilings was reached.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a benchmark")]

mod roofline;

use allotrope_cpu_runtime::{
    BandwidthProbe, Buffer, CpuDevice, ElementType, Isa, Linear, Team, TileHeight, WeightLayout, Weights, Workspace,
    available_threads, linear, repack, tiled_bytes,
};
use allotrope_graph::memory::plan_memory;
use allotrope_graph::{
    DType, Dim, Graph, Input, KvCacheType, OpId, OpKind, Sizes, StepInputs, TensorType, ValueId, WeightData,
    WeightSource,
};
use allotrope_runtime::device::{CacheLayout, Device};
use criterion::{Criterion, Throughput, criterion_group};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

fn team() -> Team {
    Team::new(available_threads()).unwrap()
}

fn read_bandwidth(criterion: &mut Criterion) {
    let team = team();
    let bytes = 2 << 30;
    let mut probe = BandwidthProbe::new(&team, bytes).unwrap();
    let mut group = criterion.benchmark_group("read bandwidth");
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function("huge pages", |bencher| bencher.iter(|| probe.measure(&team)));
    group.finish();
}

/// The bytes of numbers between -1 and 1.
fn numbers(element: ElementType, count: usize) -> Buffer {
    let mut buffer = Buffer::new(count * element.bytes()).unwrap();
    let mut state = 1u32;
    for bytes in buffer.bytes_mut().chunks_exact_mut(element.bytes()) {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
        match element {
            ElementType::Bf16 => bytes.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
            ElementType::F16 => bytes.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
            ElementType::F32 => bytes.copy_from_slice(&value.to_le_bytes()),
            ElementType::F8E4M3 => bytes.copy_from_slice(&[(state >> 24) as u8 & 0xbf]),
        }
    }
    buffer
}

const ELEMENTS: [(&str, ElementType); 4] =
    [("bf16", ElementType::Bf16), ("fp8", ElementType::F8E4M3), ("f16", ElementType::F16), ("f32", ElementType::F32)];

/// One row of x (or a few) times weights of a gibibyte.
fn matrix_vector(criterion: &mut Criterion) {
    let team = team();
    let mut group = criterion.benchmark_group("matrix-vector");
    for (name, element) in ELEMENTS {
        let depth = 4096;
        let columns = (1 << 30) / depth / element.bytes();
        let file = numbers(element, columns * depth);
        let source = Weights::new(file.bytes(), element, WeightLayout::Rows, columns, depth).unwrap();
        let height = TileHeight::of(Isa::detect(), element);
        let mut tiled = Buffer::new(tiled_bytes(element, height, columns, depth).unwrap()).unwrap();
        repack(&team, &source, height, tiled.bytes_mut()).unwrap();
        for (layout_name, layout, bytes) in
            [("file", WeightLayout::Rows, file.bytes()), ("tiled", WeightLayout::Tiled(height), tiled.bytes())]
        {
            for rows in [1, 4, 8] {
                let x = numbers(element, rows * depth);
                let mut y = vec![0u8; rows * columns * 4];
                let mut workspace = Workspace::default();
                let product = Linear {
                    isa: Isa::detect(),
                    x: x.bytes(),
                    rows,
                    weights: Weights::new(bytes, element, layout, columns, depth).unwrap(),
                    scale: 1.0,
                    output: ElementType::F32,
                };
                group.throughput(Throughput::Bytes((columns * depth * element.bytes()) as u64));
                group.bench_function(format!("{name} {layout_name} {rows} rows"), |bencher| {
                    bencher.iter(|| linear(&team, &product, &mut y, &mut workspace).unwrap());
                });
            }
        }
    }
    group.finish();
}

/// 512 rows of x times the largest projections of a model of a billion parameters.
fn matrix_matrix(criterion: &mut Criterion) {
    let team = team();
    let mut group = criterion.benchmark_group("matrix-matrix 512 rows");
    for (name, element) in ELEMENTS {
        for (columns, depth) in [(2048, 2048), (2048, 8192), (16384, 2048)] {
            let (x, w) = (numbers(element, 512 * depth), numbers(element, columns * depth));
            let file = Weights::new(w.bytes(), element, WeightLayout::Rows, columns, depth).unwrap();
            let height = TileHeight::of(Isa::detect(), element);
            let mut tiled = Buffer::new(tiled_bytes(element, height, columns, depth).unwrap()).unwrap();
            repack(&team, &file, height, tiled.bytes_mut()).unwrap();
            let tiled = Weights::new(tiled.bytes(), element, WeightLayout::Tiled(height), columns, depth).unwrap();
            let mut y = vec![0u8; 512 * columns * 4];
            let mut workspace = Workspace::default();
            // Elements are floating-point operations here.
            group.throughput(Throughput::Elements((2 * 512 * columns * depth) as u64));
            for (layout, weights) in [("file", file), ("tiled", tiled)] {
                let (isa, output) = (Isa::detect(), ElementType::F32);
                let product = Linear { isa, x: x.bytes(), rows: 512, weights, scale: 1.0, output };
                group.bench_function(format!("{name} {layout} {columns}x{depth}"), |bencher| {
                    bencher.iter(|| linear(&team, &product, &mut y, &mut workspace).unwrap());
                });
            }
        }
    }
    group.finish();
}

struct Tensors(HashMap<String, (Vec<usize>, Buffer)>);

impl WeightSource for Tensors {
    fn weight(&self, name: &str) -> Option<WeightData<'_>> {
        let (shape, buffer) = self.0.get(name)?;
        Some(WeightData { dtype: DType::Bf16, shape, bytes: buffer.bytes() })
    }
}

/// Slots of the KV cache.
const SLOTS: usize = 33 * 1024;
/// Slots in a block.
const BLOCK_SIZE: usize = 16;
/// The most tokens in a batch.
const MOST_TOKENS: usize = 512;

/// A graph's last group on the device, ready to be launched again and again. All of the KV cache was written before:
/// memory that never was is one page of zeros, which is always in the cache of the processor.
fn bench_group(criterion: &mut Criterion, name: &str, graph: &Graph, inputs: &StepInputs, throughput: Throughput) {
    let mut tensors = HashMap::new();
    for value in graph.values() {
        let allotrope_graph::Definition::Weight(name) = &value.definition else { continue };
        let shape: Vec<usize> = value.ty.tensor().unwrap().shape.iter().map(|dim| Sizes::default().of(*dim)).collect();
        tensors.insert(name.clone(), (shape.clone(), numbers(ElementType::Bf16, shape.iter().product())));
    }
    let mut device = CpuDevice::new(available_threads(), Isa::detect()).unwrap();
    let workspace: Vec<_> = (0..graph.groups().len()).map(|group| device.workspace(graph, group)).collect();
    let limits = Sizes { tokens: MOST_TOKENS, ..inputs.sizes() };
    let plan = plan_memory(graph, device.target(), &workspace, limits, device.alignment()).unwrap();
    device.load_weights(graph, Arc::new(Tensors(tensors)), false).unwrap();
    device.allocate(graph, &plan, CacheLayout { blocks: SLOTS / BLOCK_SIZE, block_size: BLOCK_SIZE }).unwrap();
    let kernels: Vec<_> = (0..graph.groups().len()).map(|group| device.prepare(graph, group).unwrap()).collect();
    let fill = (0..SLOTS).step_by(MOST_TOKENS).map(|first| StepInputs {
        slots: (first..first + MOST_TOKENS).map(|slot| slot as i32).collect(),
        positions: vec![0; MOST_TOKENS],
        block_tables: vec![0; limits.blocks],
        blocks: limits.blocks,
        ..batch(MOST_TOKENS, MOST_TOKENS)
    });
    for inputs in fill.chain([inputs.clone()]) {
        device.write_inputs(&inputs).unwrap();
        for kernel in &kernels {
            device.launch(kernel, &inputs.sizes()).unwrap();
        }
    }
    let mut group = criterion.benchmark_group("groups");
    group.throughput(throughput);
    group.bench_function(name, |bencher| {
        bencher.iter(|| device.launch(kernels.last().unwrap(), &inputs.sizes()).unwrap());
    });
    group.finish();
}

/// Tokens of one sequence at the last positions of a context.
fn batch(tokens: usize, context: usize) -> StepInputs {
    sequences(1, tokens, context)
}

/// Tokens of each of some sequences at the last positions of their contexts.
fn sequences(count: usize, tokens: usize, context: usize) -> StepInputs {
    let blocks = context.div_ceil(BLOCK_SIZE);
    let places = (0..count).flat_map(|sequence| (context - tokens..context).map(move |place| (sequence, place)));
    let positions: Vec<i32> = places.clone().map(|(_, place)| place as i32).collect();
    StepInputs {
        token_ids: positions.iter().map(|position| position % 500).collect(),
        slots: places.clone().map(|(sequence, place)| (sequence * blocks * BLOCK_SIZE + place) as i32).collect(),
        positions,
        token_sequences: places.map(|(sequence, _)| sequence as i32).collect(),
        block_tables: (0..(count * blocks) as i32).collect(),
        blocks,
        logit_rows: Vec::new(),
    }
}

fn rows_of(graph: &mut Graph, name: &str, width: usize) -> ValueId {
    let ids = graph.input(Input::TokenIds);
    let table = graph.weight(name, TensorType::new(DType::Bf16, [Dim::Static(512), Dim::Static(width)]));
    graph.push(format!("{name}.rows"), OpKind::Embedding, &[table, ids]).unwrap()
}

fn attention(criterion: &mut Criterion) {
    let (heads, kv_heads, head_dim) = (32, 8, 64);
    let mut graph = Graph::new();
    let state = graph.state(0, KvCacheType { dtype: DType::Bf16, kv_heads, head_dim });
    let q = rows_of(&mut graph, "q", heads * head_dim);
    let k = rows_of(&mut graph, "k", kv_heads * head_dim);
    let v = rows_of(&mut graph, "v", kv_heads * head_dim);
    let slots = graph.input(Input::Slots);
    let cache = graph.push("cache", OpKind::KvWrite, &[state, k, v, slots]).unwrap();
    let operands =
        [q, cache, graph.input(Input::Positions), graph.input(Input::TokenSequences), graph.input(Input::BlockTables)];
    let output = graph.push("attention", OpKind::Attention { heads, scale: 0.125 }, &operands).unwrap();
    graph.add_output(output);
    // Elements are floating-point operations here. A single token's context is read once, and so are its bytes.
    for (count, tokens, context) in [(1, 512, 512), (1, 512, 4096), (1, 1, 2048), (32, 1, 1024)] {
        let pairs: usize = (context - tokens + 1..=context).sum();
        let throughput = match tokens {
            1 => Throughput::Bytes((count * context * 2 * kv_heads * head_dim * 2) as u64),
            _ => Throughput::Elements((4 * count * pairs * heads * head_dim) as u64),
        };
        let name = format!("attention, {count} sequences, {tokens} tokens of {context}");
        bench_group(criterion, &name, &graph, &sequences(count, tokens, context), throughput);
    }
}

fn row_groups(criterion: &mut Criterion) {
    let width = 2048;
    let mut graph = Graph::new();
    let (a, b) = (rows_of(&mut graph, "a", width), rows_of(&mut graph, "b", width));
    let sum = graph.push("sum", OpKind::Add, &[a, b]).unwrap();
    let weight = graph.weight("norm", TensorType::vector(DType::Bf16, Dim::Static(width)));
    let normed = graph.push("normed", OpKind::RmsNorm { epsilon: 1e-5 }, &[sum, weight]).unwrap();
    graph.regroup(&[OpId(2), OpId(3)]).unwrap();
    graph.add_output(sum);
    graph.add_output(normed);
    for rows in [1, 512] {
        // Two rows are read, two written.
        let throughput = Throughput::Bytes((rows * width * 4 * 2) as u64);
        bench_group(criterion, &format!("add and norm, {rows} rows"), &graph, &batch(rows, 2048), throughput);
    }
    let width = 8192;
    let mut graph = Graph::new();
    let (gate, up) = (rows_of(&mut graph, "gate", width), rows_of(&mut graph, "up", width));
    let silu = graph.push("silu", OpKind::Silu, &[gate]).unwrap();
    let product = graph.push("product", OpKind::Mul, &[silu, up]).unwrap();
    graph.regroup(&[OpId(2), OpId(3)]).unwrap();
    graph.add_output(product);
    // Kept, so that the product takes the place of neither: launched again and again, it would shrink to subnormal numbers.
    graph.add_output(gate);
    graph.add_output(up);
    for rows in [1, 512] {
        // Two rows are read, one written.
        let throughput = Throughput::Bytes((rows * width * 3 * 2) as u64);
        bench_group(criterion, &format!("silu and mul, {rows} rows"), &graph, &batch(rows, 2048), throughput);
    }
}

fn dispatch(criterion: &mut Criterion) {
    let team = team();
    let mut group = criterion.benchmark_group("team");
    group.bench_function("dispatch", |bencher| bencher.iter(|| team.run(|_| ())));
    group.bench_function("dispatch with 100 barriers", |bencher| {
        bencher.iter(|| team.run(|worker| (0..100).for_each(|_| worker.barrier())));
    });
    group.finish();
}

criterion_group! {
    name = kernels;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .without_plots();
    targets = read_bandwidth, matrix_vector, matrix_matrix, attention, row_groups, dispatch
}

fn main() {
    let begin = SystemTime::now();
    kernels();
    Criterion::default().configure_from_args().final_summary();
    roofline::print(begin);
}
