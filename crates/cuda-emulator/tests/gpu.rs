//! The same PTX on the machine and through a driver, element by element: the emulator's in the ordinary run, and a GPU's where
//! there is one (`cargo test -p allotrope-cuda-emulator --test gpu -- --ignored --nocapture`).

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests; the table is worth seeing")]

#[path = "common/cases.rs"]
mod cases;
mod common;
#[path = "common/driver.rs"]
mod process;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use cases::{CASES, cooperative, text};
use common::{Argument, Bench, Shape, Witness};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use half::bf16;
use process::outside;

/// How results of one kernel compare.
#[derive(Default)]
struct Row {
    elements: usize,
    different: usize,
    /// The largest relative difference; of codes, in steps between neighbours.
    largest: f32,
}

/// Elements as numbers: of two bytes as bf16 where the kernel works on those, codes of FP8 as they are, else of four.
fn numbers(kernel: &str, pointer: usize, bytes: &[u8]) -> Vec<f32> {
    match (kernel, pointer) {
        ("rms_norm", _) => bytes.as_chunks::<2>().0.iter().map(|two| bf16::from_le_bytes(*two).to_f32()).collect(),
        ("quantize", 0) => bytes.iter().map(|byte| f32::from(*byte)).collect(),
        _ => bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
    }
}

/// How far results may be apart: functions are approximated in other ways, and sums of atomics come in any order.
fn tolerance(kernel: &str) -> f32 {
    match kernel {
        // One step of bf16.
        "rms_norm" => 1.0 / 128.0,
        _ => 1e-4,
    }
}

/// A difference of a smaller number is taken as one of a number of this size. A sum of products of both signs may be small
/// where its terms are not, and tensor cores add them with fewer digits than the machine does.
fn least(kernel: &str) -> f32 {
    if kernel == "gemm" { 0.1 } else { 1e-3 }
}

/// A witness that runs every launch on the driver's device as well, and compares.
fn beside(
    context: &Arc<CudaContext>,
    ptx: &str,
    rows: Rc<RefCell<BTreeMap<String, Row>>>,
    target: &'static str,
) -> Witness {
    let stream: Arc<CudaStream> = context.new_stream().unwrap();
    let module = context.load_module(Ptx::from_src(ptx)).unwrap();
    Box::new(move |kernel: &str, shape: Shape, arguments: &[Argument], seen: &[[Vec<u8>; 2]]| {
        let function = module.load_function(kernel).unwrap();
        let mut buffers: Vec<CudaSlice<u8>> =
            seen.iter().map(|[before, _]| stream.clone_htod(before).unwrap()).collect();
        let (grid, threads) = (shape.grid, shape.threads);
        let configuration = LaunchConfig {
            grid_dim: (grid[0], grid[1], grid[2]),
            block_dim: (threads, 1, 1),
            shared_mem_bytes: shape.dynamic_shared,
        };
        let mut launch = stream.launch_builder(&function);
        let mut left = buffers.iter_mut();
        for argument in arguments {
            match argument {
                Argument::Pointer(_) => launch.arg(left.next().unwrap()),
                Argument::Word(word) => launch.arg(word),
                Argument::Float(float) => launch.arg(float),
            };
        }
        // SAFETY: the arguments are those that the machine has just run the kernel with, in buffers of the same size.
        unsafe {
            if shape.cooperative { launch.launch_cooperative(configuration) } else { launch.launch(configuration) }
        }
        .unwrap();
        stream.synchronize().unwrap();
        let mut rows = rows.borrow_mut();
        let row = rows.entry(format!("{kernel} {target}")).or_default();
        for (pointer, (buffer, [_, after])) in buffers.iter().zip(seen).enumerate() {
            let found = stream.clone_dtoh(buffer).unwrap();
            let pairs = numbers(kernel, pointer, after).into_iter().zip(numbers(kernel, pointer, &found));
            for (expected, found) in pairs {
                row.elements += 1;
                if expected.to_bits() == found.to_bits() {
                    continue;
                }
                row.different += 1;
                let codes = kernel == "quantize" && pointer == 0;
                let scale = if codes { 1.0 } else { expected.abs().max(least(kernel)) };
                let error = (expected - found).abs() / scale;
                let most = if codes { 1.0 } else { tolerance(kernel) };
                // Said this way round, so that a NaN is too far off.
                let near = error <= most;
                assert!(near, "{kernel} for {target}: {found}, and {expected} on the machine");
                row.largest = row.largest.max(error);
            }
        }
    })
}

/// Runs every case on the machine and on the driver's device, and prints how they compare.
fn compare() {
    let context = CudaContext::new(0).unwrap();
    // SAFETY: each launch is waited for before its results are read.
    unsafe { context.disable_event_tracking() };
    let rows = Rc::new(RefCell::new(BTreeMap::new()));
    for target in ["sm_80", "sm_90a"] {
        for case in CASES.iter().filter(|case| case.file != "basic" || target == "sm_80") {
            let ptx = text(case.file, target);
            let mut bench = Bench::new(&ptx).unwrap();
            bench.witness = Some(beside(&context, &ptx, rows.clone(), target));
            (case.check)(&mut bench).unwrap_or_else(|message| panic!("{} for {target}: {message}", case.kernel));
        }
        let ptx = text("cooperative", target);
        let mut bench = Bench::new(&ptx).unwrap();
        bench.witness = Some(beside(&context, &ptx, rows.clone(), target));
        cooperative(&mut bench).unwrap();
    }
    println!("{}", context.name().unwrap());
    println!("{:<22} {:>9} {:>9}  largest difference", "kernel", "elements", "different");
    for (name, Row { elements, different, largest }) in rows.borrow().iter() {
        assert!(*elements > 0);
        println!("{name:<22} {elements:>9} {different:>9}  {largest:.1e}");
    }
}

#[test]
fn kernels_give_the_same_through_the_driver() {
    if let Some(text) = outside("kernels_give_the_same_through_the_driver", &[]) {
        assert!(text.contains("CUDA emulator") && text.contains("attention sm_90a"), "{text}");
        return;
    }
    compare();
}

#[test]
#[ignore = "needs a GPU and its driver"]
fn kernels_give_the_same_on_a_gpu() {
    compare();
}
