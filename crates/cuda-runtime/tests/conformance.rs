//! The suite that every device must pass: on the emulator, each part in a process of its own that has it as its driver; or, with
//! `ALLOTROPE_TEST_DEVICE=cuda`, on the machine's GPU.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests; the counts are worth seeing")]

mod common;

use allotrope_cuda_runtime::{CudaDevice, CudaOptions};
use allotrope_graph::DType;
use allotrope_runtime::conformance::{self, ChaCha8Rng, Effort, Report, Subject};
use common::on_the_device;

/// The first GPU, or the emulator's.
struct Cuda {
    effort: Effort,
    cache: Option<std::path::PathBuf>,
}

impl Subject for Cuda {
    type Device = CudaDevice;

    fn name(&self) -> String {
        "cuda".to_owned()
    }

    fn open(&self, _: usize) -> CudaDevice {
        CudaDevice::open(CudaOptions { cache: self.cache.clone() }).unwrap()
    }

    fn layouts(&self) -> &[bool] {
        &[false]
    }

    fn effort(&self) -> Effort {
        self.effort
    }

    fn poison(&self, device: &mut CudaDevice) -> bool {
        device.fill_memory(0xff).unwrap();
        true
    }

    fn heads_are_rows(&self) -> bool {
        false
    }

    /// Tensor cores add products with fewer digits than `f32` has.
    fn sum_tolerance(&self, operands: DType, inner: usize) -> f64 {
        let steps = if operands == DType::F32 { 1.0 } else { 16.0 };
        steps * (16.0 + (inner as f64).sqrt()) * 2f64.powi(-23)
    }
}

/// Runs a part of the suite.
fn run(test: &str, part: fn(&Cuda, &mut ChaCha8Rng) -> Report) {
    let seed = common::fresh_seed().to_string();
    let Some(on_a_gpu) = on_the_device(test, &[("ALLOTROPE_EMULATOR_SEED", &seed)]) else { return };
    let cache = tempfile::tempdir().unwrap();
    let effort = if on_a_gpu { Effort::Full } else { Effort::Small };
    let report = part(&Cuda { effort, cache: Some(cache.path().to_owned()) }, &mut conformance::random());
    assert!(report.elements > 0 || test == "misuse", "{report}");
    println!("{test}: {report}");
}

#[test]
fn row_operations() {
    run("row_operations", conformance::row_operations);
}

#[test]
fn chains() {
    run("chains", conformance::chains);
}

#[test]
fn projections() {
    run("projections", conformance::projections);
}

#[test]
fn attention() {
    run("attention", conformance::attention);
}

#[test]
fn decoders() {
    run("decoders", conformance::decoders);
}

#[test]
fn recordings() {
    run("recordings", conformance::recordings);
}

#[test]
fn sampling() {
    run("sampling", conformance::sampling);
}

#[test]
fn misuse() {
    run("misuse", conformance::misuse);
}
