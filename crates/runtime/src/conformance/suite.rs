//! What the parts of the suite share: running graphs, comparing results, counting.

use std::rc::Rc;

use allotrope_graph::evaluate::{Evaluation, ReferenceCache, evaluate};
use allotrope_graph::{DType, Definition, Graph, StepInputs, ValueType};

use super::batches::BLOCKS;
use super::runner::{Runner, Setup};
use super::{Effort, Report, Subject, Weights};

/// A part of the suite at work.
pub(crate) struct Suite<'a, S: Subject> {
    pub(crate) subject: &'a S,
    /// A device that is only asked what it takes.
    pub(crate) device: Rc<S::Device>,
    pub(crate) effort: Effort,
    pub(crate) report: Report,
}

impl<'a, S: Subject> Suite<'a, S> {
    pub(crate) fn new(subject: &'a S) -> Self {
        Suite { subject, device: Rc::new(subject.open(0)), effort: subject.effort(), report: Report::default() }
    }

    /// Says what was done.
    pub(crate) fn finish(self, part: &str) -> Report {
        println!("{}: {part}: {}", self.subject.name(), self.report);
        self.report
    }

    /// A prepared graph.
    pub(crate) fn runner(&mut self, graph: &Graph, weights: &Weights, setup: Setup<'_>) -> Runner<S::Device> {
        let runner = Runner::new(self.subject, graph, weights, setup);
        assert!(runner.is_ok(), "{}: {}\n{graph}", self.subject.name(), runner.err().unwrap());
        let runner = runner.unwrap();
        self.report.graphs += 1;
        self.report.operations += graph.ops().len();
        self.report.groups += graph.groups().len();
        self.report.fused += graph.groups().iter().filter(|group| group.ops.len() > 1).count();
        self.report.in_place += runner.in_place;
        runner
    }

    /// Runs steps one after the other on a fresh device and gives the outputs of each.
    pub(crate) fn run(
        &mut self,
        graph: &Graph,
        weights: &Weights,
        setup: Setup<'_>,
        steps: &[StepInputs],
    ) -> Vec<Vec<f32>> {
        let mut runner = self.runner(graph, weights, setup);
        let results = steps.iter().map(|step| runner.step(step)).collect();
        self.report.steps += steps.len();
        self.report.recordings += runner.recordings();
        results
    }

    /// Some ways to run a graph that must all have the same bits: in each variant, with each layout, launched and recorded.
    pub(crate) fn ways(&self, block_size: usize) -> Vec<Setup<'static>> {
        let (variants, layouts) = (self.subject.variants(), self.subject.layouts());
        let count = if variants == 1 && layouts.len() == 1 { 2 } else { 4 };
        let way = |index: usize| Setup {
            target: None,
            variant: index % variants,
            repack: layouts[index % layouts.len()],
            record: index >= count / 2,
            block_size,
        };
        (0..count).map(way).collect()
    }

    /// Checks that results have the bits that are expected.
    pub(crate) fn same(&mut self, found: &[f32], expected: &[f32], what: impl Fn() -> String) {
        let name = self.subject.name();
        assert!(found.len() == expected.len(), "{name}: {} elements, not {}: {}", found.len(), expected.len(), what());
        self.report.elements += found.len();
        for (index, (f, e)) in found.iter().zip(expected).enumerate() {
            assert!(f.to_bits() == e.to_bits(), "{name}: element {index} is {f:e}, expected {e:e}: {}", what());
        }
    }

    /// Checks that results are the numbers that are expected: the same bits, or both not numbers.
    pub(crate) fn exact(&mut self, found: &[f32], expected: &[f32], what: impl Fn() -> String) {
        let pairs = found.iter().zip(expected);
        let expected: Vec<f32> = pairs.map(|(f, e)| if f.is_nan() && e.is_nan() { *f } else { *e }).collect();
        self.same(found, &expected, what);
    }

    /// Checks each of the results against what is expected, within a tolerance of its own. What is not a number, or infinite,
    /// must be so.
    pub(crate) fn near(
        &mut self,
        found: &[f32],
        expected: &[f32],
        tolerance: impl Fn(usize) -> f64,
        what: impl Fn() -> String,
    ) {
        let name = self.subject.name();
        assert!(found.len() == expected.len(), "{name}: {} elements, not {}: {}", found.len(), expected.len(), what());
        self.report.elements += found.len();
        for (index, (f, e)) in found.iter().zip(expected).enumerate() {
            let (error, tolerance) = ((f64::from(*f) - f64::from(*e)).abs(), tolerance(index));
            let special = (f.is_nan() && e.is_nan()) || (f == e && e.is_infinite());
            assert!(
                special || error <= tolerance,
                "{name}: element {index} is {f:e}, expected {e:e} within {tolerance:e}: {}",
                what()
            );
        }
    }
}

/// Half a unit in the last place of the numbers from 1 to 2 of `bf16` and `f16`, and a whole one of `f32`.
pub(crate) fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        _ => 2f64.powi(-23),
    }
}

/// Caches for every layer of a graph.
pub(crate) fn reference_caches(graph: &Graph, block_size: usize) -> Vec<ReferenceCache> {
    let types = graph.values().iter().filter_map(|value| match (&value.definition, &value.ty) {
        (Definition::State { .. }, ValueType::KvCache(ty)) => Some(ty),
        _ => None,
    });
    types.map(|ty| ReferenceCache::new(ty, BLOCKS * block_size)).collect()
}

/// The reference's outputs of steps, each one after the other.
pub(crate) fn reference_steps(
    graph: &Graph,
    weights: &Weights,
    steps: &[StepInputs],
    block_size: usize,
) -> Vec<Vec<f32>> {
    let mut caches = reference_caches(graph, block_size);
    let evaluated = steps.iter().map(|step| evaluate(graph, weights, step, &mut caches, block_size).unwrap());
    evaluated.map(|evaluation| outputs(graph, &evaluation)).collect()
}

/// The reference's outputs of a step without KV caches.
pub(crate) fn reference(graph: &Graph, weights: &Weights, inputs: &StepInputs) -> Vec<f32> {
    outputs(graph, &evaluate(graph, weights, inputs, &mut [], 1).unwrap())
}

fn outputs(graph: &Graph, evaluation: &Evaluation) -> Vec<f32> {
    graph.outputs().iter().flat_map(|output| evaluation.tensor(*output).unwrap().to_vec()).collect()
}
