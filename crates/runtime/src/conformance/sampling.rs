//! Tokens that the device chooses, and logits that are read by row.

use std::collections::BTreeSet;

use allotrope_graph::DType;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::batches::plain_batch;
use super::graphs::{DecoderSizes, decoder};
use super::runner::Setup;
use super::suite::Suite;
use super::{Report, Subject, Weights};
use crate::device::{Device, RowSampling};

const SIZES: DecoderSizes =
    DecoderSizes { layers: 1, hidden: 24, heads: 2, kv_heads: 1, head_dim: 8, inner: 24, vocabulary: 150 };

/// How often one row is drawn from, to see that draws differ.
const DRAWS: u64 = 40;

/// Rows that are read by themselves have the bits that they have among all. A device that chooses tokens takes the first of the
/// greatest logits, draws the same token with the same seed and counter whatever else it chooses, and gives none where none is
/// asked for.
pub fn sampling<S: Subject>(subject: &S, random: &mut ChaCha8Rng) -> Report {
    let mut suite = Suite::new(subject);
    let graph = decoder(SIZES, DType::Bf16, false);
    let weights = Weights::random(random, &graph);
    let mut runner = suite.runner(&graph, &weights, Setup::default());
    let output = graph.outputs()[0];
    for _ in 0..suite.effort.pick(2, 20) {
        let count = random.random_range(2..9);
        let inputs = plain_batch(random, count);
        let (logits, sizes) = (runner.step(&inputs), inputs.sizes());
        let width = logits.len() / count;
        let first = random.random_range(0..count);
        let some = first..random.random_range(first + 1..=count);
        let read = runner.device.read_rows(output, &sizes, some.clone()).unwrap().to_vec();
        suite.same(&read, &logits[some.start * width..some.end * width], || format!("rows {some:?} of {count}"));
        assert!(runner.device.read_rows(output, &sizes, first..count + 1).is_err(), "more rows than there are");
        suite.report.steps += 1;

        let rows: Vec<RowSampling> = (0..count).map(|_| any(random)).collect();
        let Some(tokens) = runner.device.sample(output, &sizes, &rows).unwrap() else { continue };
        assert_eq!(tokens.len(), count);
        for (row, (token, logits)) in tokens.iter().zip(logits.chunks(width)).enumerate() {
            let context = format!("{}: {:?} of row {row} of {rows:?}", suite.subject.name(), rows[row]);
            match rows[row] {
                RowSampling::Read => assert_eq!(*token, None, "{context}"),
                RowSampling::Greedy => assert_eq!(*token, likeliest(logits), "{context}"),
                RowSampling::Seeded { .. } => {
                    assert!(token.is_some_and(|token| (token as usize) < width), "{context}: {token:?}");
                    let mut alone = vec![RowSampling::Read; count];
                    alone[row] = rows[row];
                    let mut expected = vec![None; count];
                    expected[row] = *token;
                    let found = runner.device.sample(output, &sizes, &alone).unwrap();
                    assert_eq!(found, Some(expected), "{context}, alone");
                }
            }
        }
        let draw = |counter| vec![RowSampling::Seeded { temperature: 2.0, seed: 7, counter }; count];
        let mut draws =
            (0..DRAWS).map(|counter| runner.device.sample(output, &sizes, &draw(counter)).unwrap().unwrap()[0]);
        let distinct: BTreeSet<_> = draws.by_ref().collect();
        assert!(distinct.len() > 1, "{}: {DRAWS} draws are all {distinct:?}", suite.subject.name());
        assert!(runner.device.sample(output, &sizes, &rows[1..]).is_err(), "fewer rows than there are");
    }
    suite.finish("sampling")
}

fn any(random: &mut ChaCha8Rng) -> RowSampling {
    match random.random_range(0..3) {
        0 => RowSampling::Read,
        1 => RowSampling::Greedy,
        _ => {
            let temperature = random.random_range(RowSampling::LEAST_TEMPERATURE..2.0);
            RowSampling::Seeded { temperature, seed: random.random(), counter: random.random() }
        }
    }
}

/// The first of the greatest.
fn likeliest(logits: &[f32]) -> Option<u32> {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|logit| *logit == greatest).map(|token| token as u32)
}
