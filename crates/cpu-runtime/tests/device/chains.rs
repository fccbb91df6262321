//! Random graphs of row operations: grouped or one by one, in place or not, on any number of threads, the bits are the
//! same.

use crate::support::*;
use allotrope_cpu_runtime::{CpuTarget, Isa};
use allotrope_graph::{DType, Dim, Graph, Input, OpId, OpKind, StepInputs, Target, TensorType, ValueId};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// What a random graph may hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ops {
    /// Row operations whose bits the reference has too.
    Exact,
    /// All row operations.
    Rows,
    /// Projections too.
    Projections,
}

/// A random graph under construction.
struct Chain<'a> {
    ops: Ops,
    random: &'a mut ChaCha8Rng,
    graph: Graph,
    /// What ops may use.
    values: Vec<ValueId>,
}

impl Chain<'_> {
    fn number(&mut self, range: std::ops::Range<usize>) -> usize {
        self.random.random_range(range)
    }

    fn push(&mut self, kind: OpKind, operands: &[ValueId]) {
        let name = format!("v{}", self.graph.ops().len());
        let value = self.graph.push(name, kind, operands).unwrap();
        self.values.push(value);
    }

    fn weight(&mut self, tensor: TensorType) -> ValueId {
        let name = format!("w{}", self.graph.values().len());
        self.graph.weight(&name, tensor)
    }

    fn shape(&self, value: ValueId) -> Vec<usize> {
        let tensor = self.graph.tensor_type(value).unwrap();
        tensor.shape[1..].iter().map(|dim| StepInputs::default().sizes().of(*dim)).collect()
    }

    /// Some value of the same type, perhaps itself.
    fn partner(&mut self, value: ValueId) -> ValueId {
        let ty = self.graph.tensor_type(value);
        let same: Vec<_> = self.values.iter().copied().filter(|other| self.graph.tensor_type(*other) == ty).collect();
        same[self.number(0..same.len())]
    }

    /// One of the sizes that divide `number`.
    fn divisor(&mut self, number: usize) -> usize {
        let divisors: Vec<usize> = (1..=number).filter(|divisor| number.is_multiple_of(*divisor)).collect();
        divisors[self.number(0..divisors.len())]
    }

    /// Moves elements within rows.
    fn moving(&mut self, x: ValueId, dtype: DType) {
        let shape = self.shape(x);
        let width: usize = shape.iter().product();
        let axis = 1 + self.number(0..shape.len().max(1));
        match self.number(0..5) {
            0 => {
                let first = self.divisor(width);
                let rest = [Dim::Static(first), Dim::Static(width / first)];
                let shape = [Dim::Tokens].into_iter().chain(rest).collect();
                self.push(OpKind::Reshape { shape }, &[x]);
            }
            1 => self.push(OpKind::Reshape { shape: vec![Dim::Tokens, Dim::Static(width)] }, &[x]),
            2 if !shape.is_empty() => {
                let start = self.number(0..shape[axis - 1]);
                let end = self.number(start..shape[axis - 1]) + 1;
                self.push(OpKind::Slice { axis, start, end }, &[x]);
            }
            3 if !shape.is_empty() && width < 100 => {
                let other = self.partner(x);
                self.push(OpKind::Concat { axis }, &[x, other, x]);
            }
            _ => {
                let mut permutation: Vec<usize> = (0..=shape.len()).collect();
                permutation[1..].reverse();
                self.push(OpKind::Transpose { permutation }, &[x]);
            }
        }
        if dtype == DType::F8E4M3 && self.number(0..2) == 0 {
            let last = self.values[self.values.len() - 1];
            self.push(OpKind::Cast { to: DType::F16 }, &[last]);
        }
    }

    /// Works on matrices only.
    fn on_matrix(&mut self, x: ValueId, dtype: DType, width: usize) {
        match self.number(0..if self.ops == Ops::Projections { 6 } else { 4 }) {
            0 | 1 if self.ops != Ops::Exact => {
                let head = self.divisor(width);
                let weight = self.weight(TensorType::vector(dtype, Dim::Static(head)));
                let (heads, epsilon) = (width / head, 1e-5);
                let kind =
                    if heads == 1 { OpKind::RmsNorm { epsilon } } else { OpKind::HeadRmsNorm { heads, epsilon } };
                self.push(kind, &[x, weight]);
            }
            2 => {
                let indices = self.graph.input(Input::TokenSequences);
                self.push(OpKind::SelectRows, &[x, indices]);
            }
            3 if width.is_multiple_of(2) => {
                let half = self.divisor(width / 2);
                let positions = self.graph.input(Input::Positions);
                let inverse_frequencies: Vec<f32> = (0..half).map(|index| 0.7f32.powi(index as i32)).collect();
                let kind =
                    OpKind::RopeAngles { inverse_frequencies: inverse_frequencies.into(), attention_scaling: 1.0 };
                self.push(kind, &[positions]);
                let angles = self.values[self.values.len() - 1];
                self.push(OpKind::Rope { heads: width / (2 * half) }, &[x, angles]);
            }
            4 | 5 => {
                let rows = if self.number(0..2) == 0 { width } else { self.number(1..50) };
                let weight = self.weight(TensorType::new(dtype, [Dim::Static(rows), Dim::Static(width)]));
                self.push(OpKind::Linear { to: dtype, scale: None }, &[x, weight]);
            }
            _ => {
                let bias = self.weight(TensorType::vector(dtype, Dim::Static(width)));
                self.push(OpKind::Add, &[x, bias]);
            }
        }
    }

    fn elementwise(&mut self, x: ValueId) {
        match self.number(0..8) {
            0 | 1 => {
                let other = self.partner(x);
                self.push(OpKind::Add, &[x, other]);
            }
            2 => {
                let other = self.partner(x);
                self.push(OpKind::Sub, &[other, x]);
            }
            3 => {
                let other = self.partner(x);
                self.push(OpKind::Mul, &[x, other]);
            }
            4 if self.ops != Ops::Exact => self.push(OpKind::Silu, &[x]),
            5 => self.push(OpKind::MulScalar { factor: 0.4 }, &[x]),
            6 => self.push(OpKind::AddScalar { term: -0.6 }, &[x]),
            _ => self.push(OpKind::Quantize { scale: 0.02 }, &[x]),
        }
    }

    fn grow(&mut self) {
        // Recent values more often, so that chains get long and operands die.
        let back = self.number(0..self.values.len().min(6)) + 1;
        let x = self.values[self.values.len() - back];
        let (dtype, matrix, width) = {
            let tensor = self.graph.tensor_type(x).unwrap();
            (tensor.dtype, tensor.shape.len() == 2, tensor.width().unwrap())
        };
        match self.number(0..6) {
            _ if dtype == DType::F8E4M3 => self.moving(x, dtype),
            0 => self.moving(x, dtype),
            1 if matrix => self.on_matrix(x, dtype, width),
            _ => self.elementwise(x),
        }
    }
}

/// A random graph of about `count` operations.
fn chain(random: &mut ChaCha8Rng, dtype: DType, count: usize, ops: Ops) -> Graph {
    let mut chain = Chain { ops, random, graph: Graph::new(), values: Vec::new() };
    let ids = chain.graph.input(Input::TokenIds);
    let width = chain.number(1..70);
    for width in [width, width, 48] {
        let table = chain.weight(TensorType::new(dtype, [Dim::Static(VOCABULARY), Dim::Static(width)]));
        chain.push(OpKind::Embedding, &[table, ids]);
    }
    while chain.graph.ops().len() < count {
        chain.grow();
    }
    let Chain { mut graph, values, random, .. } = chain;
    let mut results = vec![values[values.len() - 1]];
    results.extend((0..3).map(|_| values[random.random_range(0..values.len())]));
    results.dedup();
    for (index, value) in results.into_iter().enumerate() {
        let output = graph.push(format!("output{index}"), OpKind::Cast { to: DType::F32 }, &[value]).unwrap();
        graph.add_output(output);
    }
    graph
}

fn batch(random: &mut ChaCha8Rng) -> StepInputs {
    let tokens = random.random_range(1..40);
    let mut inputs = plain_batch(random, tokens);
    inputs.token_sequences.iter_mut().for_each(|row| *row = random.random_range(0..tokens as i32));
    inputs
}

/// Groups of a few ops that are near each other: most values cross launches, and many die in one.
fn small_groups(random: &mut ChaCha8Rng, graph: &Graph) -> Graph {
    let mut grouped = graph.clone();
    let count = graph.ops().len();
    for _ in 0..count / 2 {
        let first = random.random_range(0..count);
        let ops: Vec<OpId> = (0..random.random_range(2..6))
            .map(|_| OpId((first + random.random_range(0..9)).min(count - 1) as u32))
            .collect();
        // What would make a cycle stays as it is.
        let _ = grouped.regroup(&ops);
    }
    grouped
}

#[test]
fn a_chain_has_the_same_bits_however_it_is_grouped_and_placed() {
    let mut random = random();
    let (mut in_place, mut finite, mut all) = (0, 0, 0);
    for round in 0..40 {
        let dtype = [DType::Bf16, DType::F16, DType::F32][round % 3];
        let kind = [Ops::Rows, Ops::Projections][round % 2];
        let graph = chain(&mut random, dtype, 40, kind);
        let weights = Weights::random(&mut random, &graph);
        let inputs = batch(&mut random);
        let mut groupings = groupings(&mut random, &graph);
        let ops: Vec<OpId> = graph.op_ids().collect();
        CpuTarget.accepts(&graph, &ops).unwrap();
        let mut whole = graph.clone();
        whole.regroup(&ops).unwrap();
        groupings.push(("all in one".into(), whole));
        groupings.extend((0..4).map(|number| (format!("small {number}"), small_groups(&mut random, &graph))));
        let mut across_paths: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            let mut expected: Option<Vec<u32>> = None;
            for (name, grouped) in &groupings {
                for (sharing, threads, record) in [(false, 1, false), (true, 1, true), (true, 3, false)] {
                    let target: &dyn Target = if sharing { &CpuTarget } else { &Overwriting(false) };
                    let setup = Setup { target, isa, threads, repack: false, block_size: 4 };
                    let mut runner = Runner::set_up(grouped, &weights, setup).unwrap();
                    in_place += runner.in_place;
                    runner.record = record;
                    let found = runner.step(&inputs);
                    finite += found.iter().filter(|value| value.is_finite()).count();
                    all += found.len();
                    let found = bits(&found);
                    let same = *expected.get_or_insert_with(|| found.clone()) == found;
                    assert!(
                        same,
                        "{isa} {name} sharing={sharing} {threads} threads record={record}: {inputs:?}\n{grouped}"
                    );
                }
            }
            let expected = expected.unwrap();
            if kind == Ops::Rows {
                assert!(*across_paths.get_or_insert_with(|| expected.clone()) == expected, "{isa}\n{graph}");
            }
        }
    }
    assert!(in_place > 100, "{in_place} values were in place");
    assert!(finite > all / 2, "{finite} of {all} numbers are finite");
}

#[test]
fn chains_of_exact_ops_have_the_bits_of_the_reference() {
    let mut random = random();
    for round in 0..40 {
        let dtype = [DType::Bf16, DType::F16, DType::F32][round % 3];
        let graph = chain(&mut random, dtype, 20, Ops::Exact);
        let weights = Weights::random(&mut random, &graph);
        let inputs = batch(&mut random);
        let expected = reference(&graph, &weights, &inputs);
        let found = Runner::new(&graph, &weights, Isa::detect(), 2, false).step(&inputs);
        assert_eq!(found.len(), expected.len());
        for (index, (f, e)) in found.iter().zip(&expected).enumerate() {
            let same = f.to_bits() == e.to_bits() || (f.is_nan() && e.is_nan());
            assert!(same, "element {index} is {f}, expected {e}\n{graph}");
        }
    }
}
