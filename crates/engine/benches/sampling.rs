//! Choosing tokens on the host: `cargo bench -p allotrope-engine`.
//!
//! Each measurement is one token for each of 32 rows of 128 256 logits, on one thread, as a step with 32 requests needs them.
//! `peaked` rows are like those of a language model: a normal distribution with a few likely tokens far above it. `flat` ones have
//! no such tokens, so that a nucleus holds thousands; they are the hardest that a filter meets.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::collections::BTreeMap;
use std::hint::black_box;

use allotrope_engine::{LogprobCount, Sampler, SamplingContext, SamplingParams, SamplingScratch, TokenCounts};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const ROWS: usize = 32;
const VOCABULARY: usize = 128_256;

/// Logits with a standard deviation of 2, and `peaks` tokens of up to 16 more.
fn rows(peaks: usize) -> Vec<Vec<f32>> {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut uniform = || (random.next_u32() >> 8) as f32 / (1 << 24) as f32;
    let mut row = || {
        // The sum of twelve uniform numbers has variance 1.
        let mut row: Vec<f32> =
            (0..VOCABULARY).map(|_| 2.0 * ((0..12).map(|_| uniform()).sum::<f32>() - 6.0)).collect();
        for rank in 0..peaks {
            let token = (uniform() * VOCABULARY as f32) as usize;
            row[token.min(VOCABULARY - 1)] = 16.0 - 1.5 * rank as f32;
        }
        row
    };
    (0..ROWS).map(|_| row()).collect()
}

fn sampling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("32 rows of 128256");
    group.throughput(Throughput::Elements((ROWS * VOCABULARY) as u64));
    let drawn = SamplingParams { temperature: 0.8, ..SamplingParams::default() };
    let bias: BTreeMap<u32, f32> = (0..100).map(|token| (token * 1000, 1.0)).collect();
    let cases = [
        ("greedy", SamplingParams::greedy()),
        ("greedy, logprobs 5", SamplingParams { logprobs: Some(LogprobCount::Top(5)), ..SamplingParams::greedy() }),
        ("temperature 0.8", drawn.clone()),
        ("temperature 0.8, top_p 0.9", SamplingParams { top_p: 0.9, ..drawn.clone() }),
        ("temperature 0.8, top_k 50, top_p 0.9", SamplingParams { top_k: 50, top_p: 0.9, ..drawn.clone() }),
        ("temperature 0.8, min_p 0.05", SamplingParams { min_p: 0.05, ..drawn.clone() }),
        (
            "temperature 0.8, top_p 0.9, penalties and biases",
            SamplingParams { top_p: 0.9, repetition_penalty: 1.1, presence_penalty: 0.5, logit_bias: bias, ..drawn },
        ),
    ];
    for (shape, rows) in [("peaked", rows(8)), ("flat", rows(0))] {
        for (name, params) in &cases {
            let mut seen = TokenCounts::of_prompt(&(0..1000).map(|token| token * 100).collect::<Vec<u32>>());
            (0..200).for_each(|token| seen.add_output(token * 17));
            let mut samplers: Vec<Sampler> = (0..ROWS).map(|row| Sampler::new(params, row as u64).unwrap()).collect();
            let mut scratch = SamplingScratch::default();
            group.bench_function(format!("{shape}, {name}"), |bencher| {
                bencher.iter(|| {
                    for (sampler, row) in samplers.iter_mut().zip(&rows) {
                        let context = SamplingContext { seen: &seen, output: &[], grammar: None };
                        black_box(sampler.sample(black_box(row), &mut scratch, context).unwrap());
                    }
                });
            });
        }
    }
    group.finish();
}

fn settings() -> Criterion {
    Criterion::default().sample_size(20)
}

criterion_group! { name = benches; config = settings(); targets = sampling }
criterion_main!(benches);
