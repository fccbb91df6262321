//! What can't be done is an error.

use allotrope_graph::DType;
use rand_chacha::ChaCha8Rng;

use super::batches::plain_batch;
use super::graphs::{DecoderSizes, decoder};
use super::runner::{Runner, Setup};
use super::suite::Suite;
use super::{Change, Report, Subject, Weights};
use crate::device::{Device, Recorder, RowSampling};

const SIZES: DecoderSizes =
    DecoderSizes { layers: 1, hidden: 20, heads: 2, kv_heads: 1, head_dim: 8, inner: 24, vocabulary: 50 };

/// Calls out of order, batches beyond the limits, kernels and recordings of other devices, and weights that are not as the graph
/// says are errors, after which the device still works.
pub fn misuse<S: Subject>(subject: &S, random: &mut ChaCha8Rng) -> Report {
    let mut suite = Suite::new(subject);
    out_of_order(&suite, random);
    beyond(&mut suite, random);
    wrong_weights(&suite, random);
    suite.finish("misuse")
}

fn out_of_order<S: Subject>(suite: &Suite<'_, S>, random: &mut ChaCha8Rng) {
    let graph = decoder(SIZES, DType::Bf16, false);
    let inputs = plain_batch(random, 2);
    let mut device = suite.subject.open(0);
    assert!(device.prepare(&graph, 0).is_err(), "a kernel before weights");
    assert!(device.recorder(false).is_err(), "a recorder before memory");
    assert!(device.write_inputs(&inputs).is_err(), "inputs before memory");
    assert!(device.read_output(graph.outputs()[0], &inputs.sizes()).is_err(), "an output before memory");
    assert!(device.read_rows(graph.outputs()[0], &inputs.sizes(), 0..1).is_err(), "rows of an output before memory");
    // A device that does not sample has no opinion.
    let sampled = device.sample(graph.outputs()[0], &inputs.sizes(), &[RowSampling::Greedy; 2]);
    assert!(!matches!(sampled, Ok(Some(_))), "tokens before memory");
}

fn beyond<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng) {
    let graph = decoder(SIZES, DType::Bf16, false);
    let weights = Weights::random(random, &graph);
    let mut runner = suite.runner(&graph, &weights, Setup::default());
    let mut other = suite.runner(&graph, &weights, Setup::default());
    let mut inputs = plain_batch(random, 2);
    inputs.block_tables = (0..16).collect();
    let sizes = inputs.sizes();
    let expected = other.step(&inputs);
    let kernel = runner.device.prepare(&graph, 0).unwrap();
    assert!(other.device.launch(&kernel, &sizes).is_err(), "a kernel of another device");
    assert!(runner.device.prepare(&graph, graph.groups().len()).is_err(), "a group that is not there");
    let mut large = sizes;
    large.tokens = 1 << 20;
    assert!(runner.device.launch(&kernel, &large).is_err(), "a launch beyond the limits");
    let recording = runner.device.recorder(false).unwrap().record(std::slice::from_ref(&kernel), &sizes).unwrap();
    large.tokens = sizes.tokens + 1;
    assert!(runner.device.replay(&recording, &large).is_err(), "a replay beyond the recording");
    let mut long = plain_batch(random, 2);
    long.token_ids = vec![0; 1 << 20];
    assert!(runner.device.write_inputs(&long).is_err(), "inputs beyond the limits");
    let weight = graph.op(allotrope_graph::OpId(0)).inputs[0];
    assert!(runner.device.read_output(weight, &sizes).is_err(), "a weight is no output");
    let found = runner.step(&inputs);
    suite.same(&found, &expected, || "a step after what was refused".to_owned());
    suite.report.steps += 2;
    suite.report.recordings += 1;
}

fn wrong_weights<S: Subject>(suite: &Suite<'_, S>, random: &mut ChaCha8Rng) {
    let graph = decoder(SIZES, DType::Bf16, false);
    for change in [Change::Missing, Change::Shape, Change::Type, Change::Truncated] {
        for repack in suite.subject.layouts() {
            let mut weights = Weights::random(random, &graph);
            weights.change("layers.0.k_proj.weight", change);
            let setup = Setup { repack: *repack, ..Setup::default() };
            let error = Runner::new(suite.subject, &graph, &weights, setup).err().expect("an error").to_string();
            assert!(error.contains("layers.0.k_proj.weight"), "{change:?}: {error}");
        }
    }
}
