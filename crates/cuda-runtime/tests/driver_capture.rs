//! Capture, replay and update, on the emulator.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use allotrope_cuda_runtime::driver::{Buffer, Fault, Graph, Launch, Node};
use common::{Bench, assert_scaled, outside};

/// Captures launches one after the other.
fn captured(bench: &mut Bench, launches: &[Launch], keep: &[&Buffer]) -> Graph {
    let keep = keep.iter().map(|buffer| Arc::new((*buffer).clone()) as Arc<dyn Any + Send + Sync>).collect();
    bench.stream.capture(|capture| launches.iter().try_for_each(|launch| capture.launch(launch)), keep).unwrap()
}

fn overwrite(bench: &Bench, buffer: &Buffer, values: &[f32]) {
    let mut pinned = bench.context.allocate_pinned(values.len() * 4).unwrap();
    pinned.as_mut_slice().unwrap().copy_from_slice(values);
    bench.stream.copy_to_device(buffer, 0, &pinned, 0..values.len() * 4).unwrap();
}

#[test]
fn a_recording_replays_over_changed_inputs() {
    if outside("a_recording_replays_over_changed_inputs", &[]).is_some() {
        return;
    }
    let mut bench = Bench::new();
    let (a, middle, out) = (bench.poisoned(200), bench.poisoned(200), bench.poisoned(200));
    let copy = bench.poisoned(200);
    let launches = [bench.launch(&middle, &a, 1.0, 200, "first"), bench.launch(&out, &middle, -0.5, 200, "second")];
    let record = |capture: &allotrope_cuda_runtime::driver::Capture<'_>| {
        capture.launch(&launches[0])?;
        capture.launch(&launches[1])?;
        capture.copy(&copy, 400, &out, 400..800)
    };
    let graph = bench.stream.capture(record, Vec::new()).unwrap();
    assert!(bench.get(&out).unwrap().iter().all(|value| value.is_nan()), "nothing runs while it is captured");
    assert_eq!(graph.nodes().len(), 3);
    let replay = graph.instantiate().unwrap();
    drop(graph);
    replay.upload(&bench.stream).unwrap();
    for _ in 0..3 {
        let values = bench.floats(200);
        overwrite(&bench, &a, &values);
        replay.launch(&bench.stream).unwrap();
        let once: Vec<f32> = values.iter().map(|value| value.mul_add(2.0, 1.0)).collect();
        let got = bench.get(&out).unwrap();
        assert_scaled(&got, &once, -0.5);
        let copied = bench.get(&copy).unwrap();
        assert_eq!(copied[100..], got[100..]);
        assert!(copied[..100].iter().all(|value| value.is_nan()));
    }
    // From another thread too.
    std::thread::scope(|scope| {
        let (stream, replay) = (&bench.stream, replay);
        scope.spawn(move || replay.launch(stream).unwrap());
    });
    bench.stream.synchronize().unwrap();
}

#[test]
fn a_recording_takes_over_other_parameters() {
    if outside("a_recording_takes_over_other_parameters", &[]).is_some() {
        return;
    }
    let mut bench = Bench::new();
    let values = bench.floats(150);
    let (a, first, second) = (bench.put(&values), bench.poisoned(150), bench.poisoned(150));
    let launch = bench.launch(&first, &a, 1.0, 150, "into the first");
    let mut replay = captured(&mut bench, &[launch], &[&a, &first]).instantiate().unwrap();
    replay.launch(&bench.stream).unwrap();
    let launch = bench.launch(&second, &a, 3.0, 150, "into the second");
    let graph = captured(&mut bench, std::slice::from_ref(&launch), &[&a, &second]);
    replay.update(&graph).unwrap();
    replay.launch(&bench.stream).unwrap();
    assert_scaled(&bench.get(&first).unwrap(), &values, 1.0);
    assert_scaled(&bench.get(&second).unwrap(), &values, 3.0);
    // Another number of nodes is refused, and changes nothing.
    let longer = captured(&mut bench, &[launch.clone(), launch], &[&a, &second]);
    let error = replay.update(&longer).unwrap_err();
    assert_eq!(error.code().unwrap(), "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE");
    let text = error.to_string();
    assert!(text.contains("TOPOLOGY_CHANGED") && text.contains("into the second"), "{text}");
    overwrite(&bench, &second, &[f32::NAN; 150]);
    replay.launch(&bench.stream).unwrap();
    assert_scaled(&bench.get(&second).unwrap(), &values, 3.0);
}

#[test]
fn a_capture_ends_with_an_error_and_with_a_panic() {
    if outside("a_capture_ends_with_an_error_and_with_a_panic", &[]).is_some() {
        return;
    }
    let mut bench = Bench::new();
    let values = bench.floats(64);
    let (a, out) = (bench.put(&values), bench.poisoned(64));
    let good = bench.launch(&out, &a, 2.0, 64, "good");
    let bad = Launch { block: 2000, ..bench.launch(&out, &a, 2.0, 64, "bad") };
    let usable = |bench: &mut Bench, good: &Launch| {
        overwrite(bench, &out, &[f32::NAN; 64]);
        bench.stream.launch(good).unwrap();
        assert_scaled(&bench.get(&out).unwrap(), &values, 2.0);
        captured(bench, std::slice::from_ref(good), &[&a, &out]).instantiate().unwrap().launch(&bench.stream).unwrap();
        bench.stream.synchronize().unwrap();
    };
    let error = bench.stream.capture(|capture| capture.launch(&good).and_then(|()| capture.launch(&bad)), Vec::new());
    assert!(error.unwrap_err().to_string().contains("`bad`"));
    usable(&mut bench, &good);

    let panicking = AssertUnwindSafe(|| {
        bench.stream.capture(
            |capture| {
                capture.launch(&good)?;
                panic!("in the middle");
            },
            Vec::new(),
        )
    });
    assert!(catch_unwind(panicking).is_err());
    usable(&mut bench, &good);

    // What would invalidate a capture is refused, and an error of the caller's alone.
    let (context, other) = (bench.context.clone(), bench.context.stream().unwrap());
    let graph = bench.stream.capture(
        |capture| {
            capture.launch(&good)?;
            for error in [
                context.allocate(16).unwrap_err(),
                context.allocate_pinned(16).unwrap_err(),
                other.synchronize().unwrap_err(),
                other.launch(&good).unwrap_err(),
            ] {
                assert_eq!((error.fault(), error.code()), (&Fault::Program, None), "{error}");
                assert!(error.to_string().contains("inside of a capture"), "{error}");
            }
            capture.launch(&good)
        },
        Vec::new(),
    );
    assert_eq!(graph.unwrap().nodes().len(), 2);
    usable(&mut bench, &good);
}

#[test]
fn freeing_and_other_threads_do_not_disturb_a_capture() {
    if outside("freeing_and_other_threads_do_not_disturb_a_capture", &[]).is_some() {
        return;
    }
    let mut bench = Bench::new();
    let (a, out) = (bench.put(&[1.0; 64]), bench.poisoned(64));
    let launch = bench.launch(&out, &a, 2.0, 64, "kept");
    let (dropped, pinned) = (bench.poisoned(64), bench.context.allocate_pinned(64).unwrap());
    bench.stream.synchronize().unwrap();
    let context = bench.context.clone();
    let graph = bench.stream.capture(
        |capture| {
            capture.launch(&launch)?;
            drop((dropped, pinned));
            std::thread::scope(|scope| {
                let work = || {
                    let stream = context.stream().unwrap();
                    let buffer = context.allocate(256).unwrap();
                    stream.fill(&buffer, 1).unwrap();
                    stream.synchronize().unwrap();
                };
                scope.spawn(work).join().unwrap();
            });
            capture.launch(&launch)
        },
        Vec::new(),
    );
    graph.unwrap().instantiate().unwrap().launch(&bench.stream).unwrap();
    assert_eq!(bench.get(&out).unwrap(), [4.0; 64]);
}

#[test]
fn a_recording_keeps_what_it_needs() {
    if let Some(text) = outside("a_recording_keeps_what_it_needs", &[]) {
        assert!(!text.contains("CUDA emulator:"), "{text}");
        return;
    }
    let mut bench = Bench::new();
    let free = || bench.context.memory().unwrap().0;
    let before = free();
    let (a, middle) = (bench.put(&[1.5; 4096]), bench.poisoned(4096));
    let out = bench.poisoned(4096);
    let launches = [bench.launch(&middle, &a, 0.0, 4096, "one"), bench.launch(&out, &middle, 0.0, 4096, "two")];
    let graph = captured(&mut bench, &launches, &[&a, &middle, &out]);
    drop((a, middle, launches));
    let replay = graph.instantiate().unwrap();
    drop(graph);
    replay.launch(&bench.stream).unwrap();
    assert_eq!(bench.get(&out).unwrap(), [6.0; 4096]);
    drop(out);
    let kept = before - bench.context.memory().unwrap().0;
    assert_eq!(kept, 3 * 4096 * 4, "the three buffers, and nothing else");
    // Gone while it runs: what it uses is freed after it.
    replay.launch(&bench.stream).unwrap();
    drop(replay);
    bench.stream.synchronize().unwrap();
    assert_eq!(bench.context.memory().unwrap().0, before);
}

#[test]
fn a_recording_is_drawn_with_kernels_grids_and_edges() {
    if outside("a_recording_is_drawn_with_kernels_grids_and_edges", &[]).is_some() {
        return;
    }
    let mut bench = Bench::new();
    let (a, out) = (bench.put(&[1.0; 200]), bench.poisoned(200));
    let early = Launch { dependent: true, ..bench.launch(&out, &a, 1.0, 100, "linear of %9 \"o\"") };
    let launches = [bench.launch(&out, &a, 1.0, 200, "rms_norm of %3"), early];
    let graph = captured(&mut bench, &launches, &[&a, &out]);
    assert_eq!(graph.edges(), [(0, 1)]);
    let Node::Kernel { label, kernel, grid, block, .. } = &graph.nodes()[0] else { panic!("a kernel comes first") };
    assert_eq!((&**label, kernel.as_str(), *grid, *block), ("rms_norm of %3", "scale", [4, 1, 1], 64));
    let expected = "digraph recording {
  node [shape=box];
  n0 [label=\"rms_norm of %3\\nscale\\ngrid 4×1×1, block 64, 0 bytes shared\"];
  n1 [label=\"linear of %9 \\\"o\\\"\\nscale\\ngrid 2×1×1, block 64, 0 bytes shared\"];
  n0 -> n1 [style=dashed];
}
";
    assert_eq!(graph.to_dot(), expected);
    assert_eq!(captured(&mut bench, &launches, &[&a, &out]).to_dot(), expected);
    let empty = bench.stream.capture(|_| Ok(()), Vec::new()).unwrap();
    assert_eq!(empty.to_dot(), "digraph recording {\n  node [shape=box];\n}\n");
}

#[test]
fn memory_runs_out_while_recording() {
    let failing = [("ALLOTROPE_EMULATOR_FAIL", "cuGraphInstantiateWithFlags:1:2, cuStreamEndCapture:2:2")];
    if outside("memory_runs_out_while_recording", &failing).is_some() {
        return;
    }
    let mut bench = Bench::new();
    let (a, out) = (bench.put(&[1.0; 64]), bench.poisoned(64));
    let launch = bench.launch(&out, &a, 2.0, 64, "kept");
    let graph = captured(&mut bench, std::slice::from_ref(&launch), &[]);
    let error = graph.instantiate().unwrap_err();
    assert_eq!(error.fault(), &Fault::OutOfMemory { wanted: None });
    let text = error.to_string();
    assert!(text.contains("cuGraphInstantiate") && text.contains("a recording of 1 launches: kept"), "{text}");
    graph.instantiate().unwrap().launch(&bench.stream).unwrap();
    assert_eq!(bench.get(&out).unwrap(), [4.0; 64]);
    let error = bench.stream.capture(|capture| capture.launch(&launch), Vec::new()).unwrap_err();
    assert!(matches!(error.fault(), Fault::OutOfMemory { .. }), "{error}");
    bench.context.check().unwrap();
}

#[test]
fn a_recording_that_fails_is_named() {
    if outside("a_recording_that_fails_is_named", &[]).is_some() {
        return;
    }
    let mut bench = Bench::new();
    let (a, out) = (bench.put(&[1.0; 64]), bench.poisoned(64));
    let launches: Vec<Launch> = (0..9).map(|n| bench.launch(&out, &a, 2.0, 64 + n / 8, &format!("op {n}"))).collect();
    let replay = captured(&mut bench, &launches, &[]).instantiate().unwrap();
    replay.launch(&bench.stream).unwrap();
    let error = bench.get(&out).unwrap_err();
    assert_eq!(error.fault(), &Fault::Device);
    let named = "a recording of 9 launches: op 0, op 1, op 2, op 3, op 4, …, op 8";
    assert!(error.in_flight().contains(&named.to_owned()), "{error}");
    assert!(replay.launch(&bench.stream).unwrap_err().to_string().contains("was not tried"));
    // With the context dead, a capture is refused too, and what is left is dropped without harm.
    assert!(bench.stream.capture(|_| Ok(()), Vec::new()).is_err());
}
