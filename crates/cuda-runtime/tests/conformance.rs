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

/// A part of the suite.
type Part = fn(&Cuda, &mut ChaCha8Rng) -> Report;

/// Runs parts of the suite.
fn run(test: &str, parts: &[Part]) {
    run_with(test, parts, &[]);
}

fn run_with(test: &str, parts: &[Part], settings: &[(&str, &str)]) {
    let seed = common::fresh_seed().to_string();
    let settings = [settings, &[("ALLOTROPE_EMULATOR_SEED", &seed)]].concat();
    let Some(on_a_gpu) = on_the_device(test, &settings) else { return };
    let cache = tempfile::tempdir().unwrap();
    // Each random graph is code of its own, which a real driver compiles for longer than it runs.
    let effort = if on_a_gpu && test != "chains" { Effort::Full } else { Effort::Small };
    let subject = Cuda { effort, cache: Some(cache.path().to_owned()) };
    for part in parts {
        let report = part(&subject, &mut conformance::random());
        assert!(report.elements > 0, "{report}");
        allotrope_cuda_emulator::testing::tell(format_args!("{test}: {report}"));
    }
}

/// The code for another architecture than that of the other tests. A GPU has the one that it has.
fn run_as(test: &str, capability: &str) {
    if allotrope_cuda_emulator::testing::on_a_gpu() {
        return;
    }
    let parts: [Part; 3] = [conformance::row_operations, conformance::projections, conformance::decoders];
    run_with(test, &parts, &[("ALLOTROPE_EMULATOR_CAPABILITY", capability)]);
}

#[test]
fn row_operations() {
    run("row_operations", &[conformance::row_operations]);
}

#[test]
fn chains() {
    run("chains", &[conformance::chains]);
}

#[test]
fn projections() {
    run("projections", &[conformance::projections]);
}

#[test]
fn attention() {
    run("attention", &[conformance::attention]);
}

#[test]
fn decoders() {
    run("decoders", &[conformance::decoders]);
}

#[test]
fn recordings() {
    run("recordings", &[conformance::recordings]);
}

#[test]
fn sampling() {
    run("sampling", &[conformance::sampling]);
}

#[test]
fn misuse() {
    run("misuse", &[conformance::misuse]);
}

#[test]
fn capability_8_0() {
    run_as("capability_8_0", "8.0");
}

#[test]
fn capability_8_9() {
    run_as("capability_8_9", "8.9");
}

#[test]
fn capability_12_0() {
    run_as("capability_12_0", "12.0");
}
