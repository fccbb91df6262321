//! What each pass gains: decode speed at O2 with the pass and without it, in turn.

use std::path::Path;

use allotrope_config::OptimizationLevel;
use allotrope_graph::passes::PIPELINE;

use super::Bench;
use super::machine::Machine;
use super::statistics::Summary;
use crate::docs::gains::{Gains, PassGain};
use crate::error::TaskError;

/// Decode batches launch by launch, or as one recording.
const MODES: [&str; 2] = ["NONE", "FULL_AND_PIECEWISE"];

/// Measures every pass and writes what `docs/passes.md` is generated from.
///
/// # Errors
/// If a run fails, or the file can't be written.
pub(super) fn run(bench: &Bench<'_>, prompts: &Path, machine: &Machine) -> Result<(), TaskError> {
    let mut passes = Vec::new();
    let mut launches = 0;
    for pass in PIPELINE {
        let mut gains = Vec::new();
        let mut launches_without = 0;
        for mode in MODES {
            let graphs = format!("-cc.cudagraph_mode={mode}");
            let off = format!("-cc.pass_config.{}=false", pass.name);
            let mut ratios = Vec::new();
            for _ in 0..bench.options.runs {
                let with = bench.measure(prompts, OptimizationLevel::O2, &[&graphs])?;
                let without = bench.measure(prompts, OptimizationLevel::O2, &[&graphs, &off])?;
                ratios.push(with.decode_tokens_per_second / without.decode_tokens_per_second);
                launches = with.launches_per_decode_step as u64;
                launches_without = without.launches_per_decode_step as u64;
            }
            gains.extend(Summary::of(&ratios));
        }
        eprintln!("{}: {launches_without} launches without it, {:?}", pass.name, gains);
        if let [launched, recorded] = gains[..] {
            passes.push(PassGain { name: pass.name.to_owned(), launches_without, launched, recorded });
        }
    }
    let model = bench.options.model.display().to_string();
    let command = format!("cargo xtask bench --passes --model {model} --runs {}", bench.options.runs);
    let gains = Gains { model, machine: machine.name(), command, runs: bench.options.runs, launches, passes };
    println!("wrote {}; `cargo xtask docs` puts it into docs/passes.md", gains.write()?.display());
    Ok(())
}
