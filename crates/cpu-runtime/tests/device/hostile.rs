//! Indices that nobody validated lead nowhere.

use crate::conformance::Cpu;
use allotrope_cpu_runtime::Isa;
use allotrope_graph::DType;
use allotrope_runtime::conformance::batches::plain_batch;
use allotrope_runtime::conformance::graphs::{DecoderSizes, decoder};
use allotrope_runtime::conformance::{Runner, Setup, Weights, random};
use allotrope_runtime::device::Device;

#[test]
fn indices_that_nobody_validated_are_no_crash() {
    let mut random = random();
    let graph = decoder(DecoderSizes::ODD, DType::Bf16, false);
    let weights = Weights::random(&mut random, &graph);
    for isa in Isa::available() {
        let mut runner = Runner::new(&Cpu(isa), &graph, &weights, Setup::default()).unwrap();
        let mut hostile = plain_batch(&mut random, 2);
        hostile.token_ids = vec![i32::MAX, -5];
        hostile.slots = vec![i32::MAX, i32::MIN];
        hostile.positions = vec![i32::MAX, 3];
        hostile.token_sequences = vec![0, 77];
        hostile.block_tables.fill(i32::MAX);
        hostile.logit_rows = vec![i32::MAX, -1];
        runner.device.write_inputs(&hostile).unwrap();
        for kernel in &runner.kernels {
            runner.device.launch(kernel, &hostile.sizes()).unwrap();
        }
    }
}
