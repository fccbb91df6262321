//! The suite that every device must pass, on every instruction-set path.

use allotrope_cpu_runtime::{CpuDevice, Isa};
use allotrope_runtime::conformance::{self, ChaCha8Rng, Effort, Report, Subject};

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

/// Checks that all paths have the same bits in each case whose name begins so.
fn assert_same_bits(reports: &[(Isa, Report)], cases: &str) {
    let of = |report: &Report| -> Vec<(String, u64)> {
        report.digests.iter().filter(|(name, _)| name.starts_with(cases)).cloned().collect()
    };
    let (first, expected) = &reports[0];
    let expected = of(expected);
    assert!(!expected.is_empty());
    for (isa, report) in &reports[1..] {
        let found = of(report);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected, "{isa} has not the bits of {first}");
        }
    }
}

#[test]
fn row_operations_are_the_reference_s_and_the_same_on_every_path() {
    assert_same_bits(&on_every_path(conformance::row_operations), "");
}

#[test]
fn projections_are_the_reference_s_and_the_same_in_every_launch() {
    on_every_path(conformance::projections);
}

#[test]
fn chains_have_the_same_bits_however_they_are_grouped_and_placed() {
    let reports = on_every_path(conformance::chains);
    assert_same_bits(&reports, "rows");
    let in_place: usize = reports.iter().map(|(_, report)| report.in_place).sum();
    assert!(in_place > 100, "{in_place} values were in place");
}

#[test]
fn attention_is_the_reference_s_and_the_same_in_every_batch() {
    on_every_path(conformance::attention);
}

#[test]
fn decoders_have_the_same_bits_in_every_form() {
    on_every_path(conformance::decoders);
}

#[test]
fn recordings_do_what_launches_do() {
    on_every_path(conformance::recordings);
}

#[test]
fn logits_can_be_read_by_row() {
    on_every_path(conformance::sampling);
}

#[test]
fn misuse_is_an_error() {
    on_every_path(conformance::misuse);
}

/// As devices run it that are emulated.
struct Quick;

impl Subject for Quick {
    type Device = CpuDevice;

    fn name(&self) -> String {
        "cpu, small effort".to_owned()
    }

    fn open(&self, _: usize) -> CpuDevice {
        CpuDevice::new(1, Isa::detect()).unwrap()
    }

    fn effort(&self) -> Effort {
        Effort::Small
    }
}

#[test]
fn the_whole_suite_runs_at_small_effort() {
    let report = conformance::all(&Quick, &mut conformance::random());
    for count in [report.fused, report.in_place, report.recordings, report.elements] {
        assert!(count > 0, "{report}");
    }
}
