//! When recordings are made, and what follows where one can't be.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use allotrope_config::{GraphCapture, GraphMode, RuntimeMode};
use allotrope_runtime::{Executor, ExecutorError};

use crate::support::{Call, Scribe, batch, build, executor, graph, options};

/// How the steps so far ran, by mode and reason.
fn steps(executor: &Executor<Scribe>) -> Vec<(&'static str, &'static str, u64)> {
    executor.dispatch_counts().steps.iter().map(|((mode, reason), count)| (*mode, *reason, *count)).collect()
}

fn replays(executor: &Executor<Scribe>) -> Vec<Call> {
    executor.device().calls().into_iter().filter(|call| matches!(call, Call::Replay(..))).collect()
}

/// An executor that records in the background, one recording for each permit.
fn in_the_background(mode: GraphMode, explicit: bool, device: Scribe) -> (Executor<Scribe>, Sender<()>) {
    let (permit, gate) = channel();
    let device = Scribe { gate: Some(Arc::new(Mutex::new(gate))), ..device };
    let mut options = options(mode, GraphCapture::Background, false);
    options.explicit_graph_mode = explicit;
    (build(device, graph(), options).unwrap(), permit)
}

/// Steps until there are so many recordings and failures.
fn step_until(executor: &mut Executor<Scribe>, made: usize) {
    let started = Instant::now();
    while executor.recordings() + executor.failed_captures() < made {
        assert!(started.elapsed() < Duration::from_secs(60), "nothing arrives");
        executor.step(&batch(&[1])).unwrap();
        std::thread::yield_now();
    }
}

#[test]
fn kernels_run_once_before_they_are_recorded_and_the_memory_is_measured() {
    let full = executor(GraphMode::FullDecodeOnly, GraphCapture::Startup, false);
    assert_eq!(full.device().calls()[0], Call::WarmUp((0..6).collect()));
    assert_eq!((full.recordings(), full.capture_memory()), (3, Some(30)));
    let pieces = executor(GraphMode::Piecewise, GraphCapture::Startup, false);
    // Attention is in no piece that is recorded.
    assert_eq!(pieces.device().calls()[0], Call::WarmUp(vec![0, 1, 3, 4, 5]));
    let none = executor(GraphMode::None, GraphCapture::Startup, false);
    assert_eq!((none.device().calls(), none.capture_memory()), (vec![], None));
}

#[test]
fn a_default_mode_goes_on_without_what_failed_and_counts_it() {
    let fails = |groups: &[usize], tokens: usize| groups.len() == 6 && tokens == 2;
    let device = Scribe { fails: Some(fails), ..Scribe::default() };
    for capture in [GraphCapture::Startup, GraphCapture::Lazy] {
        let mut executor =
            build(device.clone(), graph(), options(GraphMode::FullAndPiecewise, capture, false)).unwrap();
        for _ in 0..2 {
            executor.step(&batch(&[1, 1])).unwrap();
        }
        assert_eq!(executor.failed_captures(), 1);
        match capture {
            // The next larger whole step is there.
            GraphCapture::Startup => {
                assert_eq!(steps(&executor), [("full", "the next best, as its recording failed", 2)]);
                assert_eq!(replays(&executor).last(), Some(&Call::Replay((0..6).collect(), 4)));
            }
            // Nothing larger was needed yet: the pieces are the next best.
            _ => assert_eq!(steps(&executor), [("piecewise", "the next best, as its recording failed", 2)]),
        }
    }
}

#[test]
fn where_nothing_can_be_recorded_every_step_runs_launch_by_launch() {
    let device = Scribe { fails: Some(|_, _| true), ..Scribe::default() };
    for capture in [GraphCapture::Startup, GraphCapture::Lazy] {
        let options = options(GraphMode::FullAndPiecewise, capture, false);
        let mut executor = build(device.clone(), graph(), options).unwrap();
        executor.step(&batch(&[1, 1])).unwrap();
        executor.step(&batch(&[3])).unwrap();
        assert_eq!(steps(&executor), [("none", "its recording failed", 2)], "{capture:?}");
        assert_eq!((replays(&executor), executor.recordings()), (vec![], 0));
    }
}

#[test]
fn graphs_that_are_required_are_missed_where_they_failed() {
    let device = Scribe { fails: Some(|_, _| true), ..Scribe::default() };
    let options = options(GraphMode::FullAndPiecewise, GraphCapture::Startup, true);
    let error = build(device, graph(), options).unwrap().step(&batch(&[1])).unwrap_err();
    assert!(matches!(error, ExecutorError::GraphsRequired { reason: "its recording failed", .. }), "{error}");
}

#[test]
fn an_explicit_mode_stops_with_size_and_cause() {
    let device = Scribe { fails: Some(|_, tokens| tokens == 2), ..Scribe::default() };
    let mut options = options(GraphMode::FullDecodeOnly, GraphCapture::Startup, false);
    options.explicit_graph_mode = true;
    let wanted = "recording the whole step at size 2 failed: scribe: the paper is full; \
                  compilation.cudagraph_mode=FULL_DECODE_ONLY was asked for";
    let error = build(device.clone(), graph(), options.clone()).err().unwrap().to_string();
    assert!(error.starts_with(wanted), "{error}");

    options.capture = GraphCapture::Lazy;
    let mut lazy = build(device.clone(), graph(), options).unwrap();
    lazy.step(&batch(&[1])).unwrap();
    let error = lazy.step(&batch(&[1, 1])).unwrap_err().to_string();
    assert!(error.starts_with(wanted), "{error}");
    assert_eq!(lazy.step(&batch(&[1])).unwrap_err().to_string(), error, "and it stays stopped");

    let (mut background, permits) = in_the_background(GraphMode::FullDecodeOnly, true, device);
    (0..3).for_each(|_| permits.send(()).unwrap());
    let started = Instant::now();
    let error = loop {
        assert!(started.elapsed() < Duration::from_secs(60), "the failure does not arrive");
        if let Err(error) = background.step(&batch(&[1])) {
            break error.to_string();
        }
    };
    assert!(error.starts_with(wanted), "{error}");
}

#[test]
fn steps_run_with_what_has_arrived_from_the_background() {
    let (mut executor, permits) = in_the_background(GraphMode::FullDecodeOnly, false, Scribe::default());
    executor.step(&batch(&[1])).unwrap();
    assert_eq!(steps(&executor), [("none", "its recording is not there yet", 1)]);
    permits.send(()).unwrap();
    step_until(&mut executor, 1);
    executor.step(&batch(&[1])).unwrap();
    // The largest comes first, and holds smaller batches until theirs is there.
    assert_eq!(replays(&executor).last(), Some(&Call::Replay((0..6).collect(), 4)));
    let (mode, reason, _) = steps(&executor)[0];
    assert_eq!((mode, reason), ("full", "the next best, as its recording is not there yet"));
    drop(permits);
    step_until(&mut executor, 3);
    executor.step(&batch(&[1])).unwrap();
    assert_eq!(replays(&executor).last(), Some(&Call::Replay((0..6).collect(), 1)));
    assert!(executor.dispatch_counts().total(RuntimeMode::Full) > 1);
    assert_eq!(executor.late_captures(), 3);
    let recorded: Vec<usize> = executor.device().calls().iter().filter_map(recorded_tokens).collect();
    assert_eq!(recorded, [4, 2, 1]);
}

fn recorded_tokens(call: &Call) -> Option<usize> {
    match call {
        Call::Record(_, tokens, _) => Some(*tokens),
        _ => None,
    }
}

#[test]
fn an_executor_that_is_dropped_stops_its_recorder() {
    let (executor, permits) = in_the_background(GraphMode::FullAndPiecewise, false, Scribe::default());
    let device = executor.device().clone();
    permits.send(()).unwrap();
    let dropping = std::thread::spawn(move || drop(executor));
    // The recording under way is waited for, and none begins after it.
    while !dropping.is_finished() {
        std::thread::sleep(Duration::from_millis(20));
        let _ = permits.send(());
    }
    dropping.join().unwrap();
    let all = crate::executor(GraphMode::FullAndPiecewise, GraphCapture::Startup, false).recordings();
    let recorded = device.calls().iter().filter_map(recorded_tokens).count();
    assert!(recorded < all, "{recorded} recordings of {all}");
}

#[test]
fn a_recorder_that_dies_is_missed() {
    let device = Scribe { fails: Some(|_, tokens| tokens < 4 && panic!("on purpose")), ..Scribe::default() };
    let (mut executor, permits) = in_the_background(GraphMode::FullDecodeOnly, false, device);
    drop(permits);
    step_until(&mut executor, 3);
    assert_eq!((executor.recordings(), executor.failed_captures()), (1, 2));
    assert_eq!(executor.step(&batch(&[1])).unwrap().len(), 8);
}

#[test]
fn what_a_dead_device_says_is_what_a_step_says() {
    for mode in [GraphMode::None, GraphMode::FullAndPiecewise] {
        let device = Scribe { is_dead: true, ..Scribe::default() };
        let mut executor = build(device, graph(), options(mode, GraphCapture::Startup, false)).unwrap();
        for _ in 0..2 {
            assert_eq!(executor.step(&batch(&[1])).unwrap_err().to_string(), "scribe: the pen broke");
        }
    }
}

/// Of a device that died, no recording is missed: nothing runs any more, and nobody waits for the others to fail as well.
#[test]
fn a_device_that_dies_while_it_records_ends_the_run() {
    let dies = || Scribe { is_dead: true, fails: Some(|_, tokens| tokens == 2), ..Scribe::default() };
    let device = dies();
    let built = build(device.clone(), graph(), options(GraphMode::FullDecodeOnly, GraphCapture::Startup, false));
    assert_eq!(built.err().unwrap().to_string(), "scribe: the pen broke");
    let recorded = device.calls().iter().filter(|call| matches!(call, Call::Record(..))).count();
    assert_eq!(recorded, 2, "the size 4, then the size 2, and not the size 1");
    let mut lazy = build(dies(), graph(), options(GraphMode::FullDecodeOnly, GraphCapture::Lazy, false)).unwrap();
    assert_eq!(lazy.step(&batch(&[1, 1])).unwrap_err().to_string(), "scribe: the pen broke");
}

#[test]
fn recordings_are_shown_by_name() {
    let executor = executor(GraphMode::FullAndPiecewise, GraphCapture::Startup, false);
    let texts = executor.recordings_text();
    assert_eq!(texts.len(), executor.recordings());
    assert!(texts.contains(&("step-4".to_owned(), "groups [0, 1, 2, 3, 4, 5] of 4 tokens".to_owned())));
    assert!(texts.contains(&("piece-0-8".to_owned(), "groups [0, 1] of 8 tokens".to_owned())));
}
