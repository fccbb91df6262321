//! Recordings.

use std::sync::Arc;

use allotrope_graph::memory::plan_memory;
use allotrope_graph::{DType, Graph, Input, OpKind, Sizes, StepInputs};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::batches::{BLOCKS, plain_batch, shuffle, token};
use super::decoders::compiled;
use super::graphs::{Builder, DecoderSizes, decoder};
use super::runner::Setup;
use super::suite::Suite;
use super::{Report, Subject, Weights};
use crate::device::{CacheLayout, Device, Recorder};

const SIZES: DecoderSizes =
    DecoderSizes { layers: 1, hidden: 32, heads: 2, kv_heads: 1, head_dim: 16, inner: 48, vocabulary: 64 };
/// Token slots that the batches of these tests write and read, in blocks of 4.
const SLOTS: usize = 24;

/// A replay for any number of rows does what the launches would do with the inputs of now, and touches nothing beyond its rows;
/// between launches, in pieces, and made on another thread. A recording of memory that was replaced is refused, or right.
pub fn recordings<S: Subject>(subject: &S, random: &mut ChaCha8Rng) -> Report {
    let mut suite = Suite::new(subject);
    for quantized in [false, true] {
        for _ in 0..suite.effort.pick(1, 6) {
            replays(&mut suite, random, quantized);
            pieces(&mut suite, random, quantized);
            single_tokens(&mut suite, random, quantized);
        }
    }
    rows_beyond(&mut suite, random);
    replaced_memory(&mut suite, random);
    other_memory(&mut suite, random);
    on_another_thread(&mut suite, random);
    suite.finish("recordings")
}

/// A batch that writes some of the slots and reads any of them: the sequence's blocks are in another order each time.
fn any_slots(random: &mut ChaCha8Rng, tokens: usize) -> StepInputs {
    let mut slots: Vec<i32> = (0..SLOTS as i32).collect();
    shuffle(random, &mut slots);
    slots.truncate(tokens);
    let mut block_tables: Vec<i32> = (0..SLOTS as i32 / 4).collect();
    shuffle(random, &mut block_tables);
    let mut logit_rows: Vec<i32> = (0..tokens as i32).collect();
    shuffle(random, &mut logit_rows);
    logit_rows.truncate(random.random_range(1..=tokens));
    StepInputs {
        token_ids: slots.iter().map(|_| token(random)).collect(),
        positions: slots.iter().map(|_| random.random_range(0..SLOTS as i32)).collect(),
        token_sequences: vec![0; tokens],
        blocks: block_tables.len(),
        block_tables,
        logit_rows,
        slots,
    }
}

/// All slots, then batches of any sizes.
fn steps<S: Subject>(suite: &Suite<'_, S>, random: &mut ChaCha8Rng) -> Vec<StepInputs> {
    let sizes = (0..suite.effort.pick(8, 20)).map(|_| random.random_range(1..13));
    let sizes: Vec<usize> = [SLOTS].into_iter().chain(sizes).collect();
    sizes.into_iter().map(|tokens| any_slots(random, tokens)).collect()
}

/// A device that replays, and now and then launches, does as one that only launches: each step depends on all caches before it.
fn replays<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng, quantized: bool) {
    let graph = decoder(SIZES, DType::Bf16, quantized);
    let weights = Weights::random(random, &graph);
    let steps = steps(suite, random);
    let expected = suite.run(&graph, &weights, Setup::default(), &steps);
    let fused = compiled(&graph, suite.device.target(), |_| true);
    let mut runner = suite.runner(&fused, &weights, Setup { record: true, ..Setup::default() });
    for (number, (step, expected)) in steps.iter().zip(&expected).enumerate() {
        runner.record = number == 0 || random.random_range(0..4) > 0;
        let found = runner.step(step);
        suite.same(&found, expected, || {
            format!("step {number}, quantized={quantized}, replayed={}: {step:?}", runner.record)
        });
    }
    suite.report.steps += steps.len();
    suite.report.recordings += runner.recordings();
}

/// Some launches of a step recorded, some not.
fn pieces<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng, quantized: bool) {
    let graph = decoder(SIZES, DType::F16, quantized);
    let weights = Weights::random(random, &graph);
    let steps = steps(suite, random);
    let expected = suite.run(&graph, &weights, Setup::default(), &steps);
    let mut runner = suite.runner(&graph, &weights, Setup::default());
    let count = runner.kernels.len();
    let first = random.random_range(1..count / 2);
    let second = random.random_range(first + 1..count);
    let mut recorder = runner.device.recorder(false).unwrap();
    let limits = runner.limits;
    let mut record = |kernels: &[_]| recorder.record(kernels, &limits).unwrap();
    let (before, after) = (record(&runner.kernels[..first]), record(&runner.kernels[second..]));
    for (step, expected) in steps.iter().zip(&expected) {
        let sizes = step.sizes();
        runner.device.write_inputs(step).unwrap();
        runner.device.replay(&before, &sizes).unwrap();
        for kernel in &runner.kernels[first..second] {
            runner.device.launch(kernel, &sizes).unwrap();
        }
        runner.device.replay(&after, &sizes).unwrap();
        let found = runner.read(&sizes);
        suite.same(&found, expected, || format!("launches {first} to {second} between recordings: {step:?}"));
    }
    suite.report.steps += steps.len();
    suite.report.recordings += 2;
}

/// Decode steps of one token, recorded at that size as resident programs where a device can: the whole step, and in two parts
/// whose first leaves behind what the second reads.
fn single_tokens<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng, quantized: bool) {
    let sizes = DecoderSizes { layers: 2, kv_heads: random.random_range(1..3), ..SIZES };
    let graph = decoder(sizes, DType::Bf16, quantized);
    let weights = Weights::random(random, &graph);
    let lengths = [SLOTS].into_iter().chain([1; 5]);
    let steps: Vec<_> = lengths.map(|tokens| any_slots(random, tokens)).collect();
    let expected = suite.run(&graph, &weights, Setup::default(), &steps);
    let fused = compiled(&graph, suite.device.target(), |_| true);
    for (graph, variant) in
        [&graph, &fused].into_iter().flat_map(|g| (0..suite.subject.variants()).map(move |v| (g, v)))
    {
        let repack = suite.subject.layouts()[variant % suite.subject.layouts().len()];
        let mut runner = suite.runner(graph, &weights, Setup { variant, repack, ..Setup::default() });
        let single = Sizes { tokens: 1, logit_rows: 1, ..runner.limits };
        let cut = random.random_range(1..runner.kernels.len());
        let mut recorder = runner.device.recorder(true).unwrap();
        let mut record = |kernels: &[_]| recorder.record(kernels, &single).unwrap();
        let whole = [record(&runner.kernels)];
        let parts = [record(&runner.kernels[..cut]), record(&runner.kernels[cut..])];
        for (number, (step, expected)) in steps.iter().zip(&expected).enumerate() {
            let replayed = if number % 2 == 1 { &whole[..] } else { &parts[..] };
            let found = match number {
                0 => runner.step(step),
                _ => {
                    runner.device.write_inputs(step).unwrap();
                    replayed.iter().for_each(|part| runner.device.replay(part, &step.sizes()).unwrap());
                    runner.read(&step.sizes())
                }
            };
            suite.same(&found, expected, || {
                let parts = replayed.len();
                format!("step {number} in {parts}, cut at {cut}, variant {variant}, quantized={quantized}: {step:?}\n{graph}")
            });
        }
        suite.report.steps += steps.len();
        suite.report.recordings += 3;
    }
}

/// A row program, products and a choice of rows, all of whose results stay in memory.
fn plain_graph() -> Graph {
    let mut b = Builder::default();
    let x = b.rows("x", DType::F32, 24, Input::TokenIds);
    let doubled = b.push("doubled", OpKind::Add, &[x, x]);
    let product = b.linear("product", x, 40, DType::F32);
    let rows = b.graph.input(Input::LogitRows);
    let selected = b.push("selected", OpKind::SelectRows, &[product, rows]);
    let logits = b.linear("logits", selected, 33, DType::F32);
    [x, doubled, product, selected, logits].into_iter().for_each(|value| b.graph.add_output(value));
    b.graph
}

/// What a step of fewer rows leaves of the results of one of more.
fn rows_beyond<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng) {
    let graph = plain_graph();
    let weights = Weights::random(random, &graph);
    for record in [false, true] {
        let mut runner = suite.runner(&graph, &weights, Setup { record, ..Setup::default() });
        let many = plain_batch(random, 29);
        let all = runner.step(&many);
        for tokens in [28, 17, 8, 1] {
            let mut few = plain_batch(random, tokens);
            few.logit_rows.truncate(tokens.div_ceil(3));
            let now = runner.step(&few);
            let found = runner.read(&many.sizes());
            // Of each output the rows of now, then those of before; `now` and `all` hold one output after the other.
            let (mut now, mut before, mut expected) = (&now[..], &all[..], Vec::new());
            for output in graph.outputs() {
                let tensor = graph.tensor_type(*output).unwrap();
                let (live, all) = (tensor.elements(&few.sizes()).unwrap(), tensor.elements(&many.sizes()).unwrap());
                expected.extend_from_slice(&now[..live]);
                expected.extend_from_slice(&before[live..all]);
                (now, before) = (&now[live..], &before[all..]);
            }
            suite.same(&found, &expected, || format!("{tokens} tokens after 29, record={record}"));
            // The rows of before are back for the next.
            let again = runner.step(&many);
            suite.same(&again, &all, || format!("29 tokens again, record={record}"));
        }
        suite.report.steps += 9;
        suite.report.recordings += runner.recordings();
    }
}

/// After the weights or the memory are replaced, an old recording or kernel is refused, or does what a new one does.
fn replaced_memory<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng) {
    let graph = plain_graph();
    let (weights, others) = (Weights::random(random, &graph), Weights::random(random, &graph));
    let inputs = plain_batch(random, 9);
    let sizes = inputs.sizes();
    for memory in [false, true] {
        let mut runner = suite.runner(&graph, &weights, Setup { record: true, ..Setup::default() });
        let valid = if memory { &weights } else { &others };
        let expected = suite.run(&graph, valid, Setup::default(), std::slice::from_ref(&inputs)).remove(0);
        let mut recorder = runner.device.recorder(false).unwrap();
        let recording = recorder.record(&runner.kernels, &sizes).unwrap();
        runner.device.write_inputs(&inputs).unwrap();
        runner.device.replay(&recording, &sizes).unwrap();
        if memory {
            let workspace: Vec<_> =
                (0..runner.kernels.len()).map(|group| runner.device.workspace(&graph, group)).collect();
            let target = runner.device.target();
            let limits = Sizes { tokens: 10, sequences: 1, logit_rows: 10, blocks: 16 };
            let plan = plan_memory(&graph, target, &workspace, limits, runner.device.alignment()).unwrap();
            runner.device.allocate(&graph, &plan, CacheLayout { blocks: BLOCKS, block_size: 4 }).unwrap();
        } else {
            runner.device.load_weights(&graph, Arc::new(others.clone()), false).unwrap();
        }
        runner.device.write_inputs(&inputs).unwrap();
        if runner.device.replay(&recording, &sizes).is_ok() {
            let found = runner.read(&sizes);
            suite.same(&found, &expected, || format!("a recording after other memory={memory}"));
        }
        if runner.kernels.iter().all(|kernel| runner.device.launch(kernel, &sizes).is_ok()) {
            let found = runner.read(&sizes);
            suite.same(&found, &expected, || format!("kernels after other memory={memory}"));
        }
        if let Ok(late) = recorder.record(&runner.kernels, &sizes)
            && runner.device.replay(&late, &sizes).is_ok()
        {
            let found = runner.read(&sizes);
            suite.same(&found, &expected, || format!("a recording made after other memory={memory}"));
        }
        let groups = 0..graph.groups().len();
        runner.kernels = groups.map(|group| runner.device.prepare(&graph, group).unwrap()).collect();
        let recording = runner.device.recorder(false).unwrap().record(&runner.kernels, &sizes).unwrap();
        runner.device.replay(&recording, &sizes).unwrap();
        let found = runner.read(&sizes);
        suite.same(&found, &expected, || format!("a new recording after other memory={memory}"));
        suite.report.recordings += 2;
        suite.report.steps += 2;
    }
}

/// Recordings, recorders and kernels of another device are refused.
fn other_memory<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng) {
    let graph = plain_graph();
    let weights = Weights::random(random, &graph);
    let inputs = plain_batch(random, 3);
    let sizes = inputs.sizes();
    let mut one = suite.runner(&graph, &weights, Setup::default());
    let mut other = suite.runner(&graph, &weights, Setup::default());
    let mut recorder = one.device.recorder(false).unwrap();
    assert!(recorder.record(&other.kernels, &sizes).is_err(), "kernels of another device were recorded");
    let too_many = Sizes { tokens: one.limits.tokens + 1, ..sizes };
    assert!(recorder.record(&one.kernels, &too_many).is_err(), "a recording beyond the limits");
    // A recorder that failed can be used again.
    let recording = recorder.record(&one.kernels, &sizes).unwrap();
    other.device.write_inputs(&inputs).unwrap();
    assert!(other.device.replay(&recording, &sizes).is_err(), "a recording of another device was replayed");
    one.device.write_inputs(&inputs).unwrap();
    one.device.replay(&recording, &sizes).unwrap();
    let (found, expected) = (one.read(&sizes), other.step(&inputs));
    suite.same(&found, &expected, || "after a recorder has refused".to_owned());
    suite.report.recordings += 1;
    suite.report.steps += 2;
}

/// Recordings are made on another thread while steps are launched.
fn on_another_thread<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng) {
    let graph = decoder(SIZES, DType::Bf16, false);
    let weights = Weights::random(random, &graph);
    let steps = steps(suite, random);
    let expected = suite.run(&graph, &weights, Setup::default(), &steps);
    let mut runner = suite.runner(&graph, &weights, Setup::default());
    runner.device.warm_up(&runner.kernels).unwrap();
    let mut recorder = runner.device.recorder(false).unwrap();
    let (kernels, limits) = (runner.kernels.clone(), runner.limits);
    let count = suite.effort.pick(3, 12);
    let thread = std::thread::spawn(move || {
        let sizes = (0..count).map(|less| Sizes { tokens: limits.tokens - less, ..limits });
        sizes.map(|sizes| recorder.record(&kernels, &sizes)).collect::<Vec<_>>()
    });
    for (step, expected) in steps.iter().zip(&expected) {
        let found = runner.step(step);
        suite.same(&found, expected, || format!("launched while another thread records: {step:?}"));
    }
    let made = thread.join().expect("recording does not panic");
    for recording in made {
        let recording = recording.unwrap();
        // All slots are written anew first, so that the caches are as they were for these steps.
        for (step, expected) in steps.iter().zip(&expected) {
            runner.device.write_inputs(step).unwrap();
            runner.device.replay(&recording, &step.sizes()).unwrap();
            let found = runner.read(&step.sizes());
            suite.same(&found, expected, || format!("a recording of another thread: {step:?}"));
        }
    }
    suite.report.steps += steps.len() * (count + 1);
    suite.report.recordings += count;
}
