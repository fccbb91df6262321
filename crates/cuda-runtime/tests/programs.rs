//! Generated code, row programs and filled slots, run on the emulator's machine against the reference evaluator; and its mutants.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::neg_cmp_op_on_partial_ord,
    reason = "tests: the counts of mutants are worth seeing, and a NaN must fail a comparison"
)]

#[path = "programs/bench.rs"]
mod bench;
#[path = "common/beside.rs"]
mod beside;
#[path = "programs/cases.rs"]
mod cases;
#[path = "../../cuda-emulator/tests/common/mod.rs"]
mod common;
#[path = "programs/device.rs"]
mod device;
#[path = "programs/e4m3.rs"]
mod e4m3;
#[path = "programs/layers.rs"]
mod layers;
#[path = "programs/mutants.rs"]
mod mutants;
#[path = "common/waits.rs"]
mod waits;

use allotrope_cuda_runtime::lower::Templates;
use bench::{Step, generate};
use cases::cases;
use common::seed;

#[test]
fn generated_code_computes_what_the_reference_does() {
    let mut kernels = 0;
    let cases = cases();
    for capability in [(8, 0), (8, 9), (9, 0)] {
        let templates = Templates::embedded(capability).unwrap();
        for case in &cases {
            let code = generate(case, &templates);
            let step = Step::new(case, seed());
            for (variant, launches) in code.kernels.iter().enumerate() {
                let text = &launches[0].text;
                let result = step.check(&code, variant, text);
                result.unwrap_or_else(|problem| panic!("{} for {capability:?}: {problem}\n{text}", case.name));
                kernels += launches.len();
            }
        }
    }
    allotrope_cuda_emulator::testing::tell(format_args!("{} groups, {kernels} generated kernels", cases.len()));
}

#[test]
fn generated_code_for_9_0_waits_for_the_launches_before_it() {
    let templates = Templates::embedded((9, 0)).unwrap();
    for case in cases() {
        for kernel in generate(&case, &templates).kernels.iter().flatten() {
            let problem = |problem| panic!("{}: {problem}\n{}", case.name, kernel.text);
            waits::waits_first(&kernel.text).unwrap_or_else(problem);
        }
    }
}
