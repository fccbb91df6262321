//! `cargo xtask bisect`: the first rewrite of a graph after which the logits have other bits.
//!
//! A graph that no rewrite touched is the truth. The pipeline runs with more or less fuel, and the interval between an amount
//! that gives the same bits and one that does not is halved until it is one rewrite: the only one that changes bits, or one of
//! several, the first where bits stay wrong once they are.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use allotrope_config::{GraphMode, OptimizationLevel};
use allotrope_cpu_runtime::CpuTarget;
use allotrope_engine::{Llm, Plan};
use allotrope_graph::evaluate::{ReferenceCache, evaluate};
use allotrope_graph::passes::{Fuel, PIPELINE, Pass, PassKind, planted, run_passes};
use allotrope_graph::text::{Place, lines};
use allotrope_graph::verify::VerifyError;
use allotrope_graph::{Definition, Graph, StepInputs};
use allotrope_model::Checkpoint;
use clap::ValueEnum;

use crate::error::TaskError;
use crate::runner::{BLOCK_SIZE, executor, prompt};

/// What to bisect.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The folder of a Hugging Face checkpoint
    #[arg(long, short, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// The level whose passes run
    #[arg(long, short = 'O', value_name = "LEVEL", default_value = "2")]
    pub(crate) optimization_level: OptimizationLevel,
    /// What runs the graph: the CPU device, or the reference evaluator, which has no kernels that could be wrong
    #[arg(long, value_name = "WHAT", default_value = "cpu")]
    pub(crate) on: Runner,
    /// Length of the prompt whose logits are compared, in tokens
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) tokens: u32,
    /// Plant a pass that is wrong on purpose, to see it found
    #[arg(long, value_name = "FAULT", value_parser = fault_names())]
    pub(crate) plant: Option<String>,
}

/// What runs a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Runner {
    /// The CPU device.
    Cpu,
    /// The reference evaluator.
    Reference,
}

fn fault_names() -> clap::builder::PossibleValuesParser {
    planted::FAULTS.iter().map(|fault| fault.name).collect::<Vec<_>>().into()
}

/// A rewrite that was found guilty.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Guilty {
    /// Its number: so much fuel shows it.
    pub(crate) rewrite: usize,
    /// All rewrites of the pipeline.
    pub(crate) rewrites: usize,
    /// The pass that made it.
    pub(crate) pass: &'static str,
    /// What differs: the first logit, or the error that running the graph ends with.
    pub(crate) symptom: String,
    /// Lines of the graph that it dropped, with `-`, and that it made, with `+`.
    pub(crate) change: String,
}

/// Bisects, and prints what was found.
///
/// # Errors
/// If the checkpoint can't be run, or a rewrite changes a bit.
pub(crate) fn run(options: &Options) -> Result<(), TaskError> {
    match bisect(options)? {
        None => {
            println!("the whole pipeline changes no bit");
            Ok(())
        }
        Some(Guilty { rewrite, rewrites, pass, symptom, change }) => {
            let mut message = format!(
                "rewrite {rewrite} of {rewrites}, by {pass}, is the first after which the bits differ: {symptom}\n\n{change}"
            );
            // Nobody else has the planted pass.
            if options.plant.is_none() {
                let (model, level, before) = (options.model.display(), options.optimization_level, rewrite - 1);
                message.push_str(&format!(
                    "\n`allotrope graph --model {model} -O {level} --fuel {rewrite}` shows the graph with it, `--fuel {before}` \
                     without"
                ));
            }
            Err(TaskError::Message(message))
        }
    }
}

/// The first rewrite after which bits differ, or `None` if there is none.
///
/// # Errors
/// If the checkpoint can't be run as it is.
pub(crate) fn bisect(options: &Options) -> Result<Option<Guilty>, TaskError> {
    let bisection = Bisection::new(options)?;
    let expected = bisection.logits(&bisection.compiled(0).verified()?).map_err(TaskError::Message)?;
    let rewrites = bisection.compiled(usize::MAX).graph.history().iter().map(|report| report.matches).sum();
    let symptom = |fuel: usize| -> Option<String> {
        let graph = match bisection.compiled(fuel).verified() {
            Ok(graph) => graph,
            Err(error) => return Some(error.to_string()),
        };
        match bisection.logits(&graph) {
            Err(error) => Some(error),
            Ok(found) => difference(&expected, &found),
        }
    };
    let (mut same, mut different) = (0, rewrites);
    let Some(mut last_symptom) = symptom(different) else { return Ok(None) };
    while different - same > 1 {
        let middle = same + (different - same) / 2;
        eprintln!("rewrites {same} to {different}: trying {middle}");
        match symptom(middle) {
            None => same = middle,
            Some(found) => (different, last_symptom) = (middle, found),
        }
    }
    let before = bisection.compiled(same).verified()?;
    // What is wrong with this one, if it is malformed, is the symptom.
    let after = bisection.compiled(different).graph;
    let pass = after.history().iter().rev().find(|report| report.matches > 0).map_or("no pass", |report| report.name);
    let change = change(&before, &after);
    Ok(Some(Guilty { rewrite: different, rewrites, pass, symptom: last_symptom, change }))
}

/// What the pipeline left.
struct Compiled {
    graph: Graph,
    /// Whether the graph is well-formed. One that is not is as the pass that broke it left it.
    verified: Result<(), VerifyError>,
}

impl Compiled {
    fn verified(self) -> Result<Graph, TaskError> {
        self.verified.map(|()| self.graph).map_err(|error| TaskError::Message(error.to_string()))
    }
}

struct Bisection {
    as_built: Graph,
    pipeline: Vec<Pass>,
    checkpoint: Arc<Checkpoint>,
    inputs: StepInputs,
    runner: Runner,
}

impl Bisection {
    fn new(options: &Options) -> Result<Self, TaskError> {
        let failed = |error: &dyn std::fmt::Display| TaskError::Message(error.to_string());
        let builder = Llm::builder(&options.model).optimization_level(options.optimization_level);
        let builder = builder.set("device", "cpu").map_err(|error| failed(&error))?;
        let plan: Plan = builder.plan().map_err(|error| failed(&error))?;
        let config = &plan.settings().compilation.pass_config;
        let mut pipeline: Vec<Pass> = match options.optimization_level {
            OptimizationLevel::O0 => Vec::new(),
            _ => PIPELINE.iter().filter(|pass| (pass.enabled)(config)).copied().collect(),
        };
        if let Some(fault) = options.plant.as_deref().and_then(planted::find) {
            let rewrites = pipeline.iter().filter(|pass| pass.kind == PassKind::Rewrite).count();
            let place = if fault.kind == PassKind::Rewrite { rewrites } else { pipeline.len() };
            pipeline.insert(place, *fault);
        }
        let checkpoint = Checkpoint::open(&options.model).map_err(|error| failed(&error))?;
        let vocabulary = u32::try_from(checkpoint.config().vocab_size).unwrap_or(u32::MAX);
        let tokens = prompt(options.tokens, vocabulary);
        Ok(Bisection {
            as_built: plan.as_built().clone(),
            pipeline,
            checkpoint: Arc::new(checkpoint),
            inputs: StepInputs::one_sequence(&tokens, BLOCK_SIZE),
            runner: options.on,
        })
    }

    /// The graph after so many rewrites.
    fn compiled(&self, fuel: usize) -> Compiled {
        let mut graph = self.as_built.clone();
        let fuel = Fuel::limited(fuel);
        let verified = run_passes(&mut graph, &self.pipeline, |_| true, &CpuTarget, fuel, &mut |_, _| {});
        Compiled { graph, verified }
    }

    /// The logits of every token.
    fn logits(&self, graph: &Graph) -> Result<Vec<f32>, String> {
        match self.runner {
            Runner::Cpu => self.on_cpu(graph),
            Runner::Reference => self.by_reference(graph),
        }
    }

    fn on_cpu(&self, graph: &Graph) -> Result<Vec<f32>, String> {
        let executor = executor(&self.checkpoint, graph, self.inputs.token_ids.len(), (GraphMode::None, false));
        let mut executor = executor.map_err(|error| error.to_string())?;
        executor.step(&self.inputs).map(<[f32]>::to_vec).map_err(|error| error.to_string())
    }

    fn by_reference(&self, graph: &Graph) -> Result<Vec<f32>, String> {
        let slots = self.inputs.blocks * BLOCK_SIZE;
        let states = graph.values().iter().filter_map(|value| match (&value.definition, value.ty.kv_cache()) {
            (Definition::State { layer }, Some(ty)) => Some((*layer, ReferenceCache::new(ty, slots))),
            _ => None,
        });
        let mut by_layer: Vec<(usize, ReferenceCache)> = states.collect();
        by_layer.sort_by_key(|(layer, _)| *layer);
        let mut caches: Vec<ReferenceCache> = by_layer.into_iter().map(|(_, cache)| cache).collect();
        let evaluation = evaluate(graph, &*self.checkpoint, &self.inputs, &mut caches, BLOCK_SIZE);
        let evaluation = evaluation.map_err(|error| error.to_string())?;
        let output = graph.outputs().first().ok_or("the graph has no output")?;
        Ok(evaluation.tensor(*output).unwrap_or_default().to_vec())
    }
}

/// The first logit whose bits differ, and how many do.
fn difference(expected: &[f32], found: &[f32]) -> Option<String> {
    if expected.len() != found.len() {
        return Some(format!("{} logits instead of {}", found.len(), expected.len()));
    }
    let differs = |(expected, found): &(&f32, &f32)| expected.to_bits() != found.to_bits();
    let count = expected.iter().zip(found).filter(differs).count();
    let first = expected.iter().zip(found).position(|pair| differs(&pair))?;
    Some(format!(
        "{count} of {} logits; the first, {first}, is {} instead of {}",
        found.len(),
        found[first],
        expected[first]
    ))
}

/// Lines that only one of two graphs has. Launches are numbered anew after each rewrite, which is no change.
fn change(before: &Graph, after: &Graph) -> String {
    let texts = |graph: &Graph| -> Vec<String> {
        let lines = lines(graph).into_iter().map(|line| match line.place {
            Some(Place::Group(group)) => format!("  group {{ ; {}", graph.group_label(group)),
            _ => line.text,
        });
        lines.collect()
    };
    let (before, after) = (texts(before), texts(after));
    let only = |mark: char, these: &[String], others: &[String]| -> String {
        let others: HashSet<&String> = others.iter().collect();
        let lines = these.iter().filter(|line| !others.contains(line));
        lines.map(|line| format!("{mark}{line}\n")).collect()
    };
    format!("{}{}", only('-', &before, &after), only('+', &after, &before))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;

    /// The checkpoint that is bisected.
    fn tiny_chat() -> PathBuf {
        crate::workspace::root().join("tests/models/tiny-chat")
    }

    fn options(plant: Option<&str>, on: Runner, model: &Path) -> Options {
        let (model, plant) = (model.to_owned(), plant.map(str::to_owned));
        Options { model, optimization_level: OptimizationLevel::O2, on, tokens: 8, plant }
    }

    #[test]
    fn nothing_is_found_where_nothing_is_wrong() {
        for model in [tiny_chat(), tiny_chat().with_file_name("tiny-chat-fp8")] {
            assert_eq!(bisect(&options(None, Runner::Cpu, &model)).unwrap(), None);
        }
    }

    #[test]
    fn a_dropped_rounding_point_is_found_on_a_real_checkpoint() {
        for on in [Runner::Cpu, Runner::Reference] {
            let guilty = bisect(&options(Some("drop_rounding"), on, &tiny_chat())).unwrap().unwrap();
            assert_eq!(guilty.pass, "drop_rounding", "{on:?}");
            // Two casts go before it; the first layer is spoiled first.
            assert_eq!(guilty.rewrite, 3, "{on:?}: {guilty:?}");
            assert!(guilty.symptom.contains("logits; the first"), "{on:?}: {guilty:?}");
            assert!(guilty.change.contains("%layers.0.gated.product: f32"), "{on:?}: {guilty:?}");
        }
    }

    #[test]
    fn a_change_is_the_lines_that_differ_and_not_the_numbers_of_launches() {
        let bisection = Bisection::new(&options(None, Runner::Cpu, &tiny_chat())).unwrap();
        // The first group that is formed: everything after it has another number.
        let (before, after) = (bisection.compiled(2).verified().unwrap(), bisection.compiled(3).verified().unwrap());
        let change = change(&before, &after);
        assert!(change.lines().count() <= 6 && change.contains("+  group { ; add+rms_norm"), "{change}");
    }

    #[test]
    fn a_graph_that_is_no_graph_any_more_is_found_too() {
        let guilty = bisect(&options(Some("read_before_write"), Runner::Cpu, &tiny_chat())).unwrap().unwrap();
        assert_eq!(guilty.pass, "read_before_write");
        assert!(guilty.symptom.contains("which %layers.0.kv_write writes"), "{guilty:?}");
    }
}
