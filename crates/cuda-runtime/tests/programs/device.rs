//! Generated code on the emulator's machine and through the driver, launch by launch: the emulator's driver in the ordinary run,
//! and with `ALLOTROPE_TEST_DEVICE=cuda` that of the machine's GPU.

use allotrope_cuda_emulator::testing::outside;
use allotrope_cuda_runtime::lower::Templates;

use super::bench::{Step, generate};
use super::beside::{Beside, Rules};
use super::cases::cases;
use super::common::seed;

#[test]
fn generated_code_gives_the_same_on_the_device() {
    if let Some(text) = outside("device::generated_code_gives_the_same_on_the_device", &[]) {
        println!("{text}");
        return;
    }
    let beside = Beside::open(Rules { rounds_within: true, tie: |_, _, _| false });
    for capability in [(8, 0), (8, 9), (9, 0)].into_iter().filter(|capability| beside.runs(*capability)) {
        let templates = Templates::embedded(capability).unwrap();
        for case in cases() {
            let code = generate(&case, &templates);
            let step = Step::new(&case, seed());
            let title = format!("{} for {}.{}", case.name, capability.0, capability.1);
            for (variant, launches) in code.kernels.iter().enumerate() {
                let checked = || {
                    let result = step.check(&code, variant, &launches[0].text);
                    result.unwrap_or_else(|problem| panic!("{title}: {problem}"));
                };
                beside.during(&title, checked);
            }
        }
    }
    beside.print();
}
