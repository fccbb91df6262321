//! The suite that every device must pass, on every instruction-set path.

use allotrope_cpu_runtime::{CpuDevice, Isa};
use allotrope_runtime::conformance::{self, ChaCha8Rng, Report, Subject};

/// The CPU by one path, on one to three threads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu(pub(crate) Isa);

impl Subject for Cpu {
    type Device = CpuDevice;

    fn name(&self) -> String {
        format!("cpu, {} path", self.0)
    }

    fn open(&self, variant: usize) -> CpuDevice {
        CpuDevice::new(variant + 1, self.0).unwrap()
    }

    fn variants(&self) -> usize {
        3
    }
}

/// Runs a part of the suite on every path with the same random numbers, and gives what each did.
fn on_every_path(part: fn(&Cpu, &mut ChaCha8Rng) -> Report) -> Vec<(Isa, Report)> {
    let random = conformance::random();
    Isa::available().map(|isa| (isa, part(&Cpu(isa), &mut random.clone()))).collect()
}

/// Checks that all paths have the same bits in each case.
fn assert_same_bits(reports: &[(Isa, Report)]) {
    let (first, expected) = &reports[0];
    assert!(!expected.digests.is_empty());
    for (isa, report) in &reports[1..] {
        for (found, expected) in report.digests.iter().zip(&expected.digests) {
            assert_eq!(found, expected, "{isa} has not the bits of {first}");
        }
        assert_eq!(report.digests.len(), expected.digests.len());
    }
}

#[test]
fn row_operations_are_the_reference_s_and_the_same_on_every_path() {
    assert_same_bits(&on_every_path(conformance::row_operations));
}

#[test]
fn projections_are_the_reference_s_and_the_same_in_every_launch() {
    on_every_path(conformance::projections);
}
