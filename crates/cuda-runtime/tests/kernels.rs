//! The kernels of `kernels/`, run on the emulator's machine against references in Rust.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::neg_cmp_op_on_partial_ord,
    reason = "tests: the counts of mutants are worth seeing, and a NaN must fail a comparison"
)]

#[path = "kernels/attention.rs"]
mod attention;
#[path = "common/beside.rs"]
mod beside;
#[path = "../../cuda-emulator/tests/common/mod.rs"]
mod common;
#[path = "kernels/device.rs"]
mod device;
#[path = "kernels/elements.rs"]
mod elements;
#[path = "kernels/linear.rs"]
mod linear;
#[path = "kernels/linear_slots.rs"]
mod linear_slots;
#[path = "kernels/mutants.rs"]
mod mutants;
#[path = "kernels/sample.rs"]
mod sample;
#[path = "kernels/texts.rs"]
mod texts;
#[path = "common/waits.rs"]
mod waits;

use std::collections::HashSet;
use std::sync::Arc;

use allotrope_cuda_emulator::machine::memory::Region;
use allotrope_cuda_runtime::bundle::entry_names;
use common::{Bench, Shape, bytes};

/// How a kernel is checked. What is wrong comes back as a text.
///
/// It is given the text, which may be a mutant's, and the kernel's name.
type Check = fn(&str, &str) -> Result<(), String>;

/// Every kernel, the file it is in, and its check.
fn cases() -> Vec<(String, &'static str, Check)> {
    let mut cases: Vec<(String, &'static str, Check)> = Vec::new();
    for kernel in linear::KERNELS {
        cases.push((kernel.to_owned(), "linear", linear::check));
    }
    for kernel in linear::TEMPLATES {
        cases.push((kernel.to_owned(), "linear_slots", linear_slots::check));
    }
    for kernel in attention::KERNELS {
        cases.push((kernel.to_owned(), "attention", attention::check));
        cases.push((format!("{kernel}_slots"), "attention_slots", attention::check));
    }
    cases.push(("argmax_f32".to_owned(), "sample", sample::check_argmax));
    cases.push(("sample_f32".to_owned(), "sample", sample::check_sample));
    cases
}

#[test]
fn every_kernel_computes_what_its_reference_does() {
    let cases = cases();
    for target in texts::TARGETS {
        for (kernel, file, check) in &cases {
            let text = texts::kernel(file, target, kernel);
            for _ in 0..3 {
                check(&text, kernel).unwrap_or_else(|message| panic!("{kernel} for {target}: {message}"));
            }
        }
    }
    allotrope_cuda_emulator::testing::tell(format_args!("{} kernels, each for {:?}", cases.len(), texts::TARGETS));
}

#[test]
fn every_kernel_of_the_sources_has_a_case() {
    let mut expected: Vec<String> = cases().into_iter().map(|(kernel, ..)| kernel).collect();
    let mut found: Vec<String> = ["linear", "linear_slots", "attention", "attention_slots", "sample"]
        .into_iter()
        .flat_map(|file| entry_names(&texts::file(file, "sm_80")).into_iter().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    expected.sort();
    found.sort();
    assert_eq!(expected, found);
}

#[test]
fn every_marker_comes_out_once_and_hands_over_registers_of_its_own() {
    for target in texts::TARGETS {
        for file in ["linear_slots", "attention_slots"] {
            let text = texts::file(file, target);
            for kernel in entry_names(&text) {
                let makes_inputs = kernel.starts_with("linear") && kernel.ends_with("_slots");
                let markers = if makes_inputs { &["rows", "input", "epilogue"][..] } else { &["epilogue"] };
                let mut found = Vec::new();
                let text = texts::kernel(file, target, kernel);
                for line in text.lines().filter(|line| line.contains("//@")) {
                    let words: Vec<&str> = line.trim().trim_start_matches("//@").split_whitespace().collect();
                    let distinct: HashSet<&&str> = words.iter().collect();
                    assert_eq!(distinct.len(), words.len(), "{kernel} for {target}: {line}");
                    assert!(words[1..].iter().all(|word| word.starts_with("%r")), "{kernel} for {target}: {line}");
                    found.push(words[0]);
                }
                assert_eq!(found, markers, "{kernel} for {target}");
            }
        }
    }
}

#[test]
fn every_kernel_for_9_0_waits_for_the_launches_before_it() {
    for (kernel, file, _) in cases() {
        waits::waits_first(&texts::kernel(file, "sm_90a", &kernel))
            .unwrap_or_else(|problem| panic!("{kernel}: {problem}"));
    }
}

/// Launches blocks of 128 threads with laid out parameters.
fn launch(bench: &mut Bench, kernel: &str, grid: [u32; 2], shared: u32, parameters: Parameters) -> Result<(), String> {
    let shape = Shape { grid: [grid[0], grid[1], 1], threads: 128, dynamic_shared: shared, cooperative: false };
    bench.launch_laid_out(kernel, shape, parameters.0).map(|_| ()).map_err(|report| report.to_string())
}

/// The bytes of a struct of parameters.
#[derive(Default)]
struct Parameters(Vec<u8>);

impl Parameters {
    fn address(mut self, region: &Region) -> Self {
        self.0.extend(region.address.to_le_bytes());
        self
    }

    fn word(mut self, value: usize) -> Self {
        self.0.extend((value as u32).to_le_bytes());
        self
    }

    fn float(mut self, value: f32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn pad(mut self, length: usize) -> Self {
        assert!(self.0.len() <= length);
        self.0.resize(length, 0);
        self
    }
}

/// The sizes of a step, all wrong but one.
fn sizes(bench: &mut Bench, place: usize, value: usize) -> Arc<Region> {
    let mut sizes = [u32::MAX; 4];
    sizes[place] = value as u32;
    bench.put_words(&sizes)
}

/// Whether what lies beyond the live part of a poisoned region is as it was.
fn untouched(region: &Region, live: usize) -> Result<(), String> {
    match bytes(region)[live..].iter().position(|byte| *byte != 0xff) {
        Some(at) => Err(format!("byte {at} behind the {live} live ones was written")),
        None => Ok(()),
    }
}
