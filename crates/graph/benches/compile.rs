//! How long compiling a step takes: the whole pipeline at O2, with its verification, the schedule and the memory plan, for
//! Llamas of 16 to 128 layers. Elements per second are layers: as many for deep models as for shallow ones where the time
//! grows linearly.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::time::Duration;

use allotrope_config::OptimizationLevel;
use allotrope_graph::memory::plan_memory;
use allotrope_graph::partition::SplittingOps;
use allotrope_graph::passes::optimize;
use allotrope_graph::schedule::schedule;
use allotrope_graph::text::parse;
use allotrope_graph::verify::verify;
use allotrope_graph::{Graph, Sizes};
use common::{Architecture, Everything, LLAMA, LLAMA_FP8, decoder, passes_of};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const LIMITS: Sizes = Sizes { tokens: 512, sequences: 32, logit_rows: 32, blocks: 256 };

fn compiled(mut graph: Graph, architecture: Architecture) -> Graph {
    let config = passes_of(OptimizationLevel::O2, architecture.quantized);
    optimize(&mut graph, &config, true, &Everything).unwrap();
    schedule(&mut graph, &LIMITS, &SplittingOps::default());
    black_box(plan_memory(&graph, &Everything, &[], LIMITS, 64).unwrap());
    graph
}

fn compile(criterion: &mut Criterion) {
    for (name, architecture) in [("bf16", LLAMA), ("fp8", LLAMA_FP8)] {
        let mut group = criterion.benchmark_group(format!("compile_o2_{name}"));
        for layers in [16usize, 32, 64, 128] {
            let graph = decoder(layers, architecture);
            group.throughput(Throughput::Elements(layers as u64));
            group.bench_with_input(BenchmarkId::from_parameter(layers), &graph, |bencher, graph| {
                bencher.iter_batched(|| graph.clone(), |graph| compiled(graph, architecture), BatchSize::LargeInput);
            });
        }
        group.finish();
    }
}

fn text(criterion: &mut Criterion) {
    let graph = compiled(decoder(16, LLAMA_FP8), LLAMA_FP8);
    let printed = graph.to_string();
    let mut group = criterion.benchmark_group("text_of_16_layers");
    group.throughput(Throughput::Bytes(printed.len() as u64));
    group.bench_function("print", |bencher| bencher.iter(|| black_box(&graph).to_string()));
    group.bench_function("parse", |bencher| bencher.iter(|| parse(black_box(&printed)).unwrap()));
    group.bench_function("verify", |bencher| bencher.iter(|| verify(black_box(&graph)).unwrap()));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2)).sample_size(20);
    targets = compile, text
}
criterion_main!(benches);
