//! What each pass gains: the time of a decode step at O2 with the pass and without it.
//!
//! Both steps are in one process and take turns in blocks, and the ratio is taken block by block, so that a disturbance
//! of the machine hits both.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use allotrope_config::{GraphMode, OptimizationLevel};
use allotrope_cpu_runtime::CpuDevice;
use allotrope_engine::{Llm, Plan};
use allotrope_graph::StepInputs;
use allotrope_graph::passes::{PIPELINE, Pass};
use allotrope_model::Checkpoint;
use allotrope_runtime::Executor;

use super::machine::Machine;
use super::statistics::Summary;
use crate::docs::gains::{Gains, PassGain};
use crate::error::TaskError;
use crate::runner::{BLOCK_SIZE, executor, prompt};

/// Launch by launch, or the whole step as one recording.
const MODES: [GraphMode; 2] = [GraphMode::None, GraphMode::FullAndPiecewise];
/// Tokens before the one that is decoded.
const CONTEXT: u32 = 64;
/// Steps of a block, of which the median counts.
const STEPS: usize = 60;

/// Measures every pass over so many blocks, and writes what `docs/passes.md` is generated from.
///
/// # Errors
/// If the checkpoint can't be run, or the file can't be written.
pub(super) fn run(model: &Path, shown: &str, blocks: u32, machine: &Machine) -> Result<(), TaskError> {
    let failed = |error: &dyn std::fmt::Display| TaskError::Message(error.to_string());
    let checkpoint = Arc::new(Checkpoint::open(model).map_err(|error| failed(&error))?);
    let plan_without = |pass: Option<&Pass>| -> Result<Plan, TaskError> {
        let mut builder = Llm::builder(model).optimization_level(OptimizationLevel::O2);
        builder = builder.set("device", "cpu").map_err(|error| failed(&error))?;
        if let Some(pass) = pass {
            builder = builder.set(&pass.setting(), "false").map_err(|error| failed(&error))?;
        }
        builder.plan().map_err(|error| failed(&error))
    };
    let full = plan_without(None)?;
    let mut passes = Vec::new();
    for pass in PIPELINE {
        let without = plan_without(Some(pass))?;
        let mut gains = Vec::new();
        for mode in MODES {
            let mut steps = [&without, &full].map(|plan| Step::new(&checkpoint, plan, mode));
            let [Ok(without), Ok(with)] = &mut steps else {
                return Err(steps.into_iter().find_map(Result::err).unwrap_or_else(|| failed(&"no step")));
            };
            // Each of the two is first in turn.
            let ratios = (0..blocks).map(|block| match block % 2 {
                0 => Ok(without.block()? / with.block()?),
                _ => with.block().and_then(|with| Ok(without.block()? / with)),
            });
            gains.extend(Summary::of(&ratios.collect::<Result<Vec<f64>, TaskError>>()?));
        }
        if let [launched, recorded] = gains[..] {
            let launches_without = without.launches();
            eprintln!(
                "{}: {launches_without} launches without it, {:.3} and {:.3}",
                pass.name, launched.median, recorded.median
            );
            passes.push(PassGain { name: pass.name.to_owned(), launches_without, launched, recorded });
        }
    }
    let gains = Gains {
        model: shown.to_owned(),
        machine: machine.name(),
        command: format!("cargo run --release --package xtask -- bench --passes --model {shown} --runs {blocks}"),
        blocks,
        launches: full.launches(),
        passes,
    };
    println!("wrote {}; `cargo xtask docs` puts it into docs/passes.md", gains.write()?.display());
    Ok(())
}

/// A decode step, ready to run again and again.
struct Step {
    executor: Executor<CpuDevice>,
    inputs: StepInputs,
}

impl Step {
    fn new(checkpoint: &Arc<Checkpoint>, plan: &Plan, mode: GraphMode) -> Result<Self, TaskError> {
        let vocabulary = u32::try_from(checkpoint.config().vocab_size).unwrap_or(u32::MAX);
        let tokens = CONTEXT as usize + 1;
        let mut executor = executor(checkpoint, plan.graph(), tokens, (mode, true))?;
        let prefill = StepInputs::one_sequence(&prompt(CONTEXT, vocabulary), BLOCK_SIZE);
        executor.step(&prefill).map_err(|error| TaskError::Message(error.to_string()))?;
        let (position, blocks) = (CONTEXT.cast_signed(), tokens.div_ceil(BLOCK_SIZE));
        let inputs = StepInputs {
            token_ids: vec![1],
            positions: vec![position],
            slots: vec![position],
            token_sequences: vec![0],
            block_tables: (0..blocks as i32).collect(),
            blocks,
            logit_rows: vec![0],
        };
        Ok(Step { executor, inputs })
    }

    /// The median time of a step, in seconds, over a block of them.
    fn block(&mut self) -> Result<f64, TaskError> {
        let mut times = Vec::with_capacity(STEPS);
        for _ in 0..STEPS {
            let started = Instant::now();
            self.executor.step(&self.inputs).map_err(|error| TaskError::Message(error.to_string()))?;
            times.push(started.elapsed().as_secs_f64());
        }
        Ok(Summary::of(&times).map_or(f64::NAN, |summary| summary.median))
    }
}
