//! Random graphs of row operations and products.

use std::rc::Rc;

use allotrope_graph::{DType, Dim, Graph, Input, OpId, OpKind, StepInputs, Target, TensorType, ValueId};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::batches::{VOCABULARY, plain_batch};
use super::graphs::{grouped, groupings};
use super::runner::{Overwriting, Setup};
use super::suite::{Suite, reference};
use super::{Report, Subject, Weights};
use crate::device::Device;

/// What a random graph may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ops {
    /// Row operations whose bits the reference has too.
    Exact,
    /// All row operations.
    Rows,
    /// Products too.
    Products,
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

    /// A value of the same type, perhaps itself.
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
        match self.number(0..if self.ops == Ops::Products { 6 } else { 4 }) {
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
pub fn chain(random: &mut ChaCha8Rng, dtype: DType, count: usize, ops: Ops) -> Graph {
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

fn batch(random: &mut ChaCha8Rng, most: usize) -> StepInputs {
    let tokens = random.random_range(1..most);
    let mut inputs = plain_batch(random, tokens);
    inputs.token_sequences.iter_mut().for_each(|row| *row = random.random_range(0..tokens as i32));
    inputs
}

/// Random graphs of row operations and products, in random groups that the target takes, with results in the place of operands
/// and apart, launched and recorded: the same bits, and where all operations are exact, those of the reference.
pub fn chains<S: Subject>(subject: &S, random: &mut ChaCha8Rng) -> Report {
    let mut suite = Suite::new(subject);
    let (mut finite, mut all) = (0, 0);
    for round in 0..suite.effort.pick(4, 40) {
        let dtype = [DType::Bf16, DType::F16, DType::F32][round % 3];
        let ops = [Ops::Rows, Ops::Products][round % 2];
        let graph = chain(random, dtype, suite.effort.pick(24, 40), ops);
        let weights = Weights::random(random, &graph);
        let inputs = batch(random, suite.effort.pick(9, 40));
        let result = in_any_groups(&mut suite, random, &graph, &weights, &inputs);
        finite += result.iter().filter(|value| value.is_finite()).count();
        all += result.len();
        let kind = if ops == Ops::Rows { "rows" } else { "products" };
        suite.report.digest(&format!("{kind}: chain {round}"), &result);
    }
    for round in 0..suite.effort.pick(6, 40) {
        let dtype = [DType::Bf16, DType::F16, DType::F32][round % 3];
        let graph = chain(random, dtype, 20, Ops::Exact);
        let weights = Weights::random(random, &graph);
        let inputs = batch(random, suite.effort.pick(9, 40));
        let expected = reference(&graph, &weights, &inputs);
        let variant = random.random_range(0..subject.variants());
        let setup = Setup { variant, ..Setup::default() };
        let found = suite.run(&graph, &weights, setup, std::slice::from_ref(&inputs)).remove(0);
        suite.exact(&found, &expected, || format!("exact operations, {inputs:?}\n{graph}"));
    }
    assert!(finite > all / 2, "{}: {finite} of {all} numbers are finite", subject.name());
    suite.finish("chains")
}

/// Runs a graph in many groupings and gives its result.
fn in_any_groups<S: Subject>(
    suite: &mut Suite<'_, S>,
    random: &mut ChaCha8Rng,
    graph: &Graph,
    weights: &Weights,
    inputs: &StepInputs,
) -> Vec<f32> {
    let mut all = groupings(random, graph, suite.device.target());
    let ops: Vec<OpId> = graph.op_ids().collect();
    all.extend(grouped(graph, &ops, suite.device.target()).map(|whole| ("all in one".to_owned(), whole)));
    all.truncate(suite.effort.pick(3, usize::MAX));
    for number in 0..suite.effort.pick(1, 4) {
        all.push((format!("small {number}"), small_groups(random, graph, suite.device.target())));
    }
    let steps = std::slice::from_ref(inputs);
    let mut expected: Option<Vec<f32>> = None;
    let last = suite.subject.variants() - 1;
    let device = Rc::clone(&suite.device);
    let apart = Overwriting(device.target(), false);
    for (name, grouped) in &all {
        for (in_place, variant, record) in [(false, 0, false), (true, 0, true), (true, last, false)] {
            let target: Option<&dyn Target> = if in_place { None } else { Some(&apart) };
            let setup = Setup { target, variant, record, ..Setup::default() };
            let found = suite.run(grouped, weights, setup, steps).remove(0);
            let expected = expected.get_or_insert_with(|| found.clone());
            suite.same(&found, expected, || format!("{name}, in place={in_place}, {setup:?}: {inputs:?}\n{grouped}"));
        }
    }
    expected.unwrap()
}

/// Groups of a few ops that are near each other: most values cross launches, and many die in one.
fn small_groups(random: &mut ChaCha8Rng, graph: &Graph, target: &dyn Target) -> Graph {
    let mut result = graph.clone();
    let count = graph.ops().len();
    for _ in 0..count / 2 {
        let first = random.random_range(0..count);
        let ops: Vec<OpId> = (0..random.random_range(2..6))
            .map(|_| OpId((first + random.random_range(0..9)).min(count - 1) as u32))
            .collect();
        // What would make a cycle, or what the target does not take, stays as it is.
        if let Some(grouped) = grouped(&result, &ops, target) {
            result = grouped;
        }
    }
    result
}
