//! How steps run, on a device that only writes down what it is asked to do.

#![allow(clippy::unwrap_used, reason = "tests")]

mod recordings;
mod support;
mod tuning;

use allotrope_config::{GraphCapture, GraphMode};
use allotrope_graph::*;
use allotrope_runtime::{Executor, ExecutorError, RowSampling};
use support::{Call, Scribe, batch, executor, executor_of, graph};

/// What a step asks of the device, without what was recorded before.
fn calls(executor: &mut Executor<Scribe>, inputs: &StepInputs) -> Vec<Call> {
    let before = executor.device().calls().len();
    executor.step(inputs).unwrap();
    executor.device().calls()[before..].to_vec()
}

#[test]
fn without_graphs_every_group_is_launched_in_order() {
    let mut executor = executor(GraphMode::None, GraphCapture::Startup, false);
    assert_eq!(executor.recordings(), 0);
    assert_eq!(calls(&mut executor, &batch(&[3, 1])), (0..6).map(Call::Launch).collect::<Vec<_>>());
    assert_eq!((executor.statistics().launches, executor.statistics().submissions), (6, 6));
}

#[test]
fn decode_steps_replay_one_whole_recording_and_prefill_replays_pieces_around_attention() {
    let mut executor = executor(GraphMode::FullAndPiecewise, GraphCapture::Startup, false);
    assert_eq!(calls(&mut executor, &batch(&[1, 1, 1])), [Call::Replay((0..6).collect(), 4)]);
    assert_eq!((executor.statistics().launches, executor.statistics().submissions), (6, 1));
    let expected = [
        Call::Replay(vec![0, 1], 8),
        Call::Launch(2),
        Call::Replay(vec![3], 8),
        // Two rows of logits are wanted: the recording for two.
        Call::Replay(vec![4, 5], 2),
    ];
    assert_eq!(calls(&mut executor, &batch(&[3, 2])), expected);
    assert_eq!(executor.late_captures(), 0);
}

#[test]
fn full_graphs_replay_the_body_and_the_wanted_rows() {
    let mut executor = executor(GraphMode::Full, GraphCapture::Startup, false);
    let expected = [Call::Replay((0..4).collect(), 8), Call::Replay(vec![4, 5], 1)];
    assert_eq!(calls(&mut executor, &batch(&[6])), expected);
}

#[test]
fn captures_run_from_the_largest_size_to_the_smallest_and_not_beyond_what_can_run() {
    let executor = executor(GraphMode::FullDecodeOnly, GraphCapture::Startup, false);
    // A decode step has at most four sequences, so size 8 is never a whole step.
    let expected = [4, 2, 1].map(|size| Call::Record((0..6).collect(), size, size));
    assert_eq!(executor.device().calls()[1..], expected);
}

#[test]
fn lazy_captures_happen_once_at_first_use_and_are_counted() {
    let mut executor = executor(GraphMode::Full, GraphCapture::Lazy, false);
    assert_eq!(executor.recordings(), 0);
    let first = calls(&mut executor, &batch(&[1]));
    let all: Vec<usize> = (0..6).collect();
    let expected = [Call::WarmUp(all.clone()), Call::Record(all.clone(), 1, 1), Call::Replay(all.clone(), 1)];
    assert_eq!(first, expected);
    // What ran once is warm.
    let second = calls(&mut executor, &batch(&[1, 1]));
    assert_eq!(second, [Call::Record(all.clone(), 2, 2), Call::Replay(all, 2)]);
    assert_eq!(calls(&mut executor, &batch(&[1])), [Call::Replay((0..6).collect(), 1)]);
    assert_eq!(executor.late_captures(), 2);
}

#[test]
fn a_batch_beyond_the_captured_sizes_is_launched_or_refused() {
    let mut loose = executor(GraphMode::FullAndPiecewise, GraphCapture::Startup, false);
    assert_eq!(calls(&mut loose, &batch(&[9])), (0..6).map(Call::Launch).collect::<Vec<_>>());
    let mut strict = executor(GraphMode::FullAndPiecewise, GraphCapture::Startup, true);
    let error = strict.step(&batch(&[9])).unwrap_err();
    assert!(matches!(error, ExecutorError::GraphsRequired { tokens: 9, .. }), "{error}");
    assert!(error.to_string().contains("larger than the largest captured size"), "{error}");
}

#[test]
fn a_chunk_that_wants_no_logits_runs_only_what_runs_over_tokens() {
    let mut inputs = batch(&[3]);
    inputs.logit_rows.clear();
    for (mode, expected) in [
        (GraphMode::None, (0..4).map(Call::Launch).collect::<Vec<_>>()),
        (GraphMode::Full, vec![Call::Replay((0..4).collect(), 4)]),
        (GraphMode::Piecewise, vec![Call::Replay(vec![0, 1], 4), Call::Launch(2), Call::Replay(vec![3], 4)]),
    ] {
        let mut executor = executor(mode, GraphCapture::Startup, false);
        assert_eq!(calls(&mut executor, &inputs), expected, "{mode:?}");
        assert!(executor.step(&inputs).unwrap().is_empty());
    }
}

#[test]
fn logits_are_those_of_the_last_step_that_ran() {
    let mut executor = executor(GraphMode::None, GraphCapture::Startup, false);
    assert!(executor.logits(0..1).is_err() && executor.sample(&[RowSampling::Greedy]).is_err(), "before any step");
    executor.run(&batch(&[3, 1, 2])).unwrap();
    assert_eq!(executor.logits(0..3).unwrap().len(), 24);
    assert_eq!(executor.logits(1..3).unwrap().len(), 16);
    assert!(executor.logits(1..4).is_err(), "a row that is not there");
    assert_eq!(executor.sample(&[RowSampling::Greedy; 3]).unwrap(), None, "a device that does not sample");
    assert!(executor.run(&batch(&[17])).is_err());
    assert!(
        executor.logits(0..1).is_err() && executor.sample(&[RowSampling::Greedy]).is_err(),
        "after a step that failed"
    );
}

#[test]
fn batches_that_break_a_limit_or_point_outside_are_refused_before_the_device_sees_them() {
    let mut executor = executor(GraphMode::None, GraphCapture::Startup, false);
    let mut broken: Vec<(&str, StepInputs)> = vec![("tokens", batch(&[17])), ("sequences", batch(&[1; 5]))];
    let mut with = |name, change: fn(&mut StepInputs)| {
        let mut inputs = batch(&[2, 1]);
        change(&mut inputs);
        broken.push((name, inputs));
    };
    with("vocabulary", |inputs| inputs.token_ids[0] = 8);
    with("vocabulary", |inputs| inputs.token_ids[0] = -1);
    with("slot", |inputs| inputs.slots[1] = 64);
    with("sequence", |inputs| inputs.token_sequences[2] = 2);
    with("position", |inputs| inputs.positions[2] = 16);
    with("block", |inputs| inputs.block_tables[0] = 16);
    with("logits are wanted of", |inputs| inputs.logit_rows[0] = 3);
    with("equally long", |inputs| inputs.slots.truncate(1));
    for (name, inputs) in broken {
        let error = executor.step(&inputs).unwrap_err().to_string();
        assert!(error.contains(name), "{name}: {error}");
    }
    assert!(executor.device().calls().is_empty());
}

/// A step without wanted logits stops before the launches over rows of logits: what came after them would be skipped.
#[test]
fn a_graph_that_works_on_tokens_after_rows_of_logits_is_refused() {
    let mut late = graph();
    let z = late.ops()[3].output;
    let after = late.push("late", OpKind::Silu, &[z]).unwrap();
    late.add_output(after);
    for mode in [GraphMode::None, GraphMode::FullAndPiecewise] {
        let error = executor_of(late.clone(), mode, GraphCapture::Startup, false).err().unwrap().to_string();
        assert!(
            error.contains("the launch 6 (silu) runs over tokens, but comes after launches over rows of logits"),
            "{error}"
        );
    }
}

#[test]
fn a_graph_that_works_on_rows_of_logits_alone_records_no_empty_part() {
    let mut graph = Graph::new();
    let table = graph.weight("table", TensorType::new(DType::F32, [Dim::Static(8), Dim::Static(8)]));
    let rows = graph.input(Input::LogitRows);
    let logits = graph.push("logits", OpKind::Embedding, &[table, rows]).unwrap();
    graph.add_output(logits);
    let mut executor = executor_of(graph, GraphMode::Full, GraphCapture::Startup, false).unwrap();
    executor.step(&batch(&[3, 1])).unwrap();
    assert_eq!((executor.statistics().launches, executor.statistics().submissions), (1, 1));
}
