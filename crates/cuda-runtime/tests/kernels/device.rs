//! The kernels on the emulator's machine and through the driver, launch by launch: the emulator's driver in the ordinary run, and with
//! `ALLOTROPE_TEST_DEVICE=cuda` that of the machine's GPU.

use allotrope_cuda_emulator::testing::outside;

use super::beside::{Beside, Rules};
use super::{cases, sample, texts};

#[test]
fn kernels_give_the_same_on_the_device() {
    if let Some(text) = outside("device::kernels_give_the_same_on_the_device", &[]) {
        println!("{text}");
        return;
    }
    let beside = Beside::open(Rules { rounds_within: false, tie: sample::tie });
    for target in texts::TARGETS.into_iter().filter(|target| beside.runs(texts::capability(target))) {
        for (kernel, file, check) in cases() {
            let text = texts::kernel(file, target, &kernel);
            let checked = || check(&text, &kernel).unwrap_or_else(|message| panic!("{kernel} for {target}: {message}"));
            beside.during(&format!("{kernel} {target}"), checked);
        }
    }
    beside.print();
}
