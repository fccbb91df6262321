//! Which results may be written over which operands, and what happens to a plan that does otherwise.

use crate::conformance::Cpu;
use allotrope_cpu_runtime::{CpuTarget, Isa};
use allotrope_graph::{DType, Dim, Graph, Input, KvCacheType, OpId, OpKind, Target, TensorType, ValueId};
use allotrope_runtime::conformance::batches::{VOCABULARY, conversation};
use allotrope_runtime::conformance::graphs::{DecoderSizes, decoder, groupings};
use allotrope_runtime::conformance::{Effort, Overwriting, Runner, Setup, Weights, random};

const WIDTH: usize = 16;

/// `x` and `y`, each from a launch of its own, then the ops that `build` pushes, in one launch.
struct Launch {
    graph: Graph,
    values: Vec<(String, ValueId)>,
}

fn launch(dtype: DType, build: impl Fn(&mut Graph, ValueId, ValueId)) -> Launch {
    let mut graph = Graph::new();
    let ids = graph.input(Input::TokenIds);
    let [x, y] = ["x", "y"].map(|name| {
        let shape = [Dim::Static(VOCABULARY), Dim::Static(WIDTH)];
        let table = graph.weight(&format!("{name}.table"), TensorType::new(dtype, shape));
        graph.push(name, OpKind::Embedding, &[table, ids]).unwrap()
    });
    build(&mut graph, x, y);
    let ops: Vec<OpId> = graph.op_ids().skip(2).collect();
    graph.regroup(&ops).unwrap();
    CpuTarget.accepts(&graph, &ops).unwrap();
    let ids = graph.value_ids();
    let values = ids.map(|id| (graph.value(id).name.clone(), id)).collect();
    Launch { graph, values }
}

impl Launch {
    fn value(&self, name: &str) -> ValueId {
        self.values.iter().find(|(other, _)| other == name).unwrap().1
    }

    /// Whether the launch may write `result` over `operand`.
    fn allows(&self, operand: &str, result: &str) -> bool {
        CpuTarget.may_overwrite(&self.graph, 2, self.value(operand), self.value(result))
    }
}

fn push(graph: &mut Graph, name: &str, kind: OpKind, operands: &[ValueId]) -> ValueId {
    graph.push(name, kind, operands).unwrap()
}

fn projected(graph: &mut Graph, name: &str, x: ValueId) -> ValueId {
    let weight = TensorType::new(DType::F32, [Dim::Static(WIDTH), Dim::Static(WIDTH)]);
    let weight = graph.weight(&format!("{name}.weight"), weight);
    push(graph, name, OpKind::Linear { to: DType::F32, scale: None }, &[x, weight])
}

#[test]
fn what_a_row_program_has_loaded_may_be_overwritten() {
    let launch = launch(DType::F32, |graph, x, y| {
        let sum = push(graph, "sum", OpKind::Add, &[x, y]);
        let scaled = push(graph, "scaled", OpKind::MulScalar { factor: 0.5 }, &[sum]);
        push(graph, "again", OpKind::Sub, &[scaled, x]);
    });
    for operand in ["x", "y"] {
        for result in ["sum", "scaled", "again"] {
            assert!(launch.allows(operand, result), "{result} over {operand}");
        }
    }
}

#[test]
fn a_result_whose_op_does_not_read_the_operand_may_take_its_place_once_it_is_loaded() {
    let launch = launch(DType::F32, |graph, x, y| {
        push(graph, "first", OpKind::Silu, &[x]);
        push(graph, "second", OpKind::Silu, &[y]);
        push(graph, "third", OpKind::Add, &[x, y]);
    });
    assert!(launch.allows("x", "second"), "x was loaded for %first");
    assert!(launch.allows("y", "second"));
    assert!(!launch.allows("y", "first"), "y is loaded after %first is stored");
}

#[test]
fn a_row_of_other_bytes_may_not_overwrite() {
    let launch = launch(DType::Bf16, |graph, x, _| {
        push(graph, "wide", OpKind::Cast { to: DType::F32 }, &[x]);
        let part = push(graph, "part", OpKind::Slice { axis: 1, start: 0, end: WIDTH / 2 }, &[x]);
        push(graph, "wide_part", OpKind::Cast { to: DType::F32 }, &[part]);
        push(graph, "quantized", OpKind::Quantize { scale: 1.0 }, &[x]);
        push(graph, "shaped", OpKind::Reshape { shape: vec![Dim::Tokens, Dim::Static(2), Dim::Static(8)] }, &[x]);
    });
    assert!(!launch.allows("x", "wide"), "64 bytes over 32");
    assert!(!launch.allows("x", "part"), "16 bytes over 32");
    assert!(!launch.allows("x", "quantized"), "16 bytes over 32");
    assert!(launch.allows("x", "wide_part"), "32 bytes over 32");
    assert!(launch.allows("x", "shaped"), "32 bytes over 32");
}

#[test]
fn gathered_rows_may_not_be_overwritten() {
    let launch = launch(DType::F32, |graph, x, y| {
        let sequences = graph.input(Input::TokenSequences);
        let chosen = push(graph, "chosen", OpKind::SelectRows, &[x, sequences]);
        let sum = push(graph, "sum", OpKind::Add, &[chosen, y]);
        push(graph, "both", OpKind::Add, &[sum, x]);
    });
    for result in ["chosen", "sum", "both"] {
        assert!(!launch.allows("x", result), "{result} over x");
    }
    assert!(!launch.allows("y", "chosen"), "y is loaded after %chosen is stored");
    assert!(launch.allows("y", "sum"));
}

#[test]
fn operands_of_projections_may_not_be_overwritten() {
    let launch = launch(DType::F32, |graph, x, y| {
        let projected = projected(graph, "projected", x);
        push(graph, "sum", OpKind::Add, &[projected, y]);
    });
    assert!(!launch.allows("x", "projected"), "columns of x are still read");
    assert!(!launch.allows("x", "sum"), "another phase reads x");
    assert!(!launch.allows("y", "projected"), "another phase reads y");
    assert!(launch.allows("y", "sum"));
}

#[test]
fn an_operand_of_two_phases_may_not_be_overwritten() {
    let launch = launch(DType::F32, |graph, x, y| {
        let first = push(graph, "first", OpKind::Add, &[x, y]);
        let projected = projected(graph, "projected", first);
        push(graph, "last", OpKind::Add, &[projected, x]);
    });
    assert!(!launch.allows("x", "first"), "x is read again after the projection");
    assert!(!launch.allows("x", "last"));
    assert!(launch.allows("y", "first"));
    assert!(!launch.allows("y", "last"), "y is not read in the phase that stores %last");
}

#[test]
fn queries_may_not_be_overwritten() {
    let launch = launch(DType::F32, |graph, x, y| {
        let state = graph.state(0, KvCacheType { dtype: DType::F32, kv_heads: 2, head_dim: 8 });
        let slots = graph.input(Input::Slots);
        let cache = push(graph, "cache", OpKind::KvWrite, &[state, y, y, slots]);
        let others = [Input::Positions, Input::TokenSequences, Input::BlockTables].map(|input| graph.input(input));
        let operands = [x, cache, others[0], others[1], others[2]];
        push(graph, "attention", OpKind::Attention { heads: 2, scale: 1.0 }, &operands);
    });
    assert!(!launch.allows("x", "attention"), "heads of x are read by other threads");
    assert!(!launch.allows("y", "attention"), "another phase reads y");
    assert!(!launch.allows("y", "cache"), "a cache is no tensor");
}

#[test]
fn what_the_launch_does_not_read_or_write_is_left_alone() {
    let launch = launch(DType::F32, |graph, x, y| {
        push(graph, "sum", OpKind::Add, &[x, x]);
        push(graph, "other", OpKind::Silu, &[y]);
    });
    assert!(launch.allows("x", "sum"));
    assert!(!launch.allows("sum", "other"), "%sum is no operand");
    assert!(!launch.allows("x", "y"), "y is no result");
    let (x, sum) = (launch.value("x"), launch.value("sum"));
    assert!(!CpuTarget.may_overwrite(&launch.graph, 0, x, sum), "another launch");
    assert!(!CpuTarget.may_overwrite(&launch.graph, 9, x, sum), "no launch");
}

#[test]
fn a_plan_that_overwrites_what_is_still_read_is_refused() {
    let mut random = random();
    // `sum` first takes the place of x, whose second reader comes after a projection.
    let Launch { mut graph, values } = launch(DType::F32, |graph, x, y| {
        let first = push(graph, "first", OpKind::Add, &[x, y]);
        let projected = projected(graph, "projected", first);
        push(graph, "last", OpKind::Add, &[projected, x]);
    });
    for name in ["first", "last"] {
        graph.add_output(values.iter().find(|(other, _)| other == name).unwrap().1);
    }
    let weights = Weights::random(&mut random, &graph);
    let subject = Cpu(Isa::detect());
    let setup = Setup { target: Some(&Overwriting(&CpuTarget, true)), variant: 1, ..Setup::default() };
    let error = Runner::new(&subject, &graph, &weights, setup).err().expect("an error").to_string();
    assert!(error.contains("puts %first over %x"), "{error}");
    Runner::new(&subject, &graph, &weights, Setup { target: Some(&CpuTarget), ..setup }).unwrap();
}

#[test]
fn a_decoder_keeps_its_bits_in_place() {
    let mut random = random();
    let mut in_place = 0;
    for quantized in [false, true] {
        let graph = decoder(DecoderSizes::ODD, DType::Bf16, quantized);
        let weights = Weights::random(&mut random, &graph);
        let steps = conversation(&mut random, 4, Effort::Full);
        for (name, grouped) in groupings(&mut random, &graph, &CpuTarget) {
            let run = |target: &dyn Target| {
                let setup = Setup { target: Some(target), variant: 1, repack: true, record: true, ..Setup::default() };
                let mut runner = Runner::new(&Cpu(Isa::detect()), &grouped, &weights, setup).unwrap();
                let bits = |step| runner.step(step).into_iter().map(f32::to_bits).collect::<Vec<u32>>();
                let bits: Vec<_> = steps.iter().map(bits).collect();
                (bits, runner.in_place)
            };
            let (apart, none) = run(&Overwriting(&CpuTarget, false));
            let (shared, some) = run(&CpuTarget);
            assert_eq!(none, 0);
            in_place += some;
            assert!(apart == shared, "{name}, quantized={quantized}");
        }
    }
    assert!(in_place > 0);
}
