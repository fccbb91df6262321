//! The pipeline: every pass, in order, each with its flag, and a report of what it did.
//!
//! Rewrites ([`rewrites`]) touch operations, and each is an identity that keeps every bit. Grouping passes
//! ([`grouping`]) only move operations into one launch. Both leave a graph that [`verify`] accepts.

mod grouping;
mod rewrites;

use std::time::{Duration, Instant};

use allotrope_config::PassConfig;

use crate::graph::Graph;
use crate::target::Target;
use crate::verify::{VerifyError, verify};

/// A pass: what it is called, what it does, which setting turns it on.
pub struct Pass {
    /// The name, which is the last part of its setting's path.
    pub name: &'static str,
    /// What it does, in one line.
    pub description: &'static str,
    /// Whether the settings turn it on.
    pub enabled: fn(&PassConfig) -> bool,
    run: fn(&mut Graph, &dyn Target) -> Outcome,
}

impl Pass {
    /// The path of the setting that turns the pass on or off.
    pub fn setting(&self) -> String {
        format!("compilation.pass_config.{}", self.name)
    }
}

/// What a pass found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Outcome {
    matches: usize,
    declined: Vec<String>,
}

/// What a pass did to one graph.
#[derive(Debug, Clone)]
pub struct PassReport {
    /// The pass.
    pub name: &'static str,
    /// What it does, in one line.
    pub description: &'static str,
    /// Whether the settings turned it on.
    pub enabled: bool,
    /// How many times it changed the graph.
    pub matches: usize,
    /// Places that looked right but were left alone, with the reason; each reason once.
    pub declined: Vec<String>,
    /// Launches in the graph afterwards.
    pub launches: usize,
    /// Time taken.
    pub time: Duration,
}

/// All passes in the order in which they run: first the rewrites, then groups from small to large, so that the
/// epilogue pass finds whole row groups to take in.
pub const PIPELINE: &[Pass] = &[
    Pass {
        name: "eliminate_noops",
        description: "drop operations that give back their operand",
        enabled: |config| *config.eliminate_noops,
        run: |graph, _| rewrites::eliminate_noops(graph),
    },
    Pass {
        name: "eliminate_common_subexpressions",
        description: "compute once what several operations compute alike",
        enabled: |config| *config.eliminate_common_subexpressions,
        run: |graph, _| rewrites::eliminate_common_subexpressions(graph),
    },
    Pass {
        name: "fuse_add_norm",
        description: "residual add and RMSNorm in one launch",
        enabled: |config| *config.fuse_add_norm,
        run: grouping::fuse_add_norm,
    },
    Pass {
        name: "fuse_act_mul",
        description: "activation times gate in one launch",
        enabled: |config| *config.fuse_act_mul,
        run: grouping::fuse_act_mul,
    },
    Pass {
        name: "fuse_norm_quant",
        description: "RMSNorm and the quantization of its result in one launch",
        enabled: |config| *config.fuse_norm_quant,
        run: grouping::fuse_norm_quant,
    },
    Pass {
        name: "fuse_act_quant",
        description: "activation and the quantization of its result in one launch",
        enabled: |config| *config.fuse_act_quant,
        run: grouping::fuse_act_quant,
    },
    Pass {
        name: "fuse_qkv_proj",
        description: "the query, key and value projections in one launch",
        enabled: |config| *config.fuse_qkv_proj,
        run: grouping::fuse_qkv_proj,
    },
    Pass {
        name: "fuse_gate_up_proj",
        description: "the gate and up projections in one launch",
        enabled: |config| *config.fuse_gate_up_proj,
        run: grouping::fuse_gate_up_proj,
    },
    Pass {
        name: "fuse_rope_kvcache",
        description: "rotary embedding and the KV-cache write in one launch",
        enabled: |config| *config.fuse_rope_kvcache,
        run: grouping::fuse_rope_kvcache,
    },
    Pass {
        name: "fuse_attn_quant",
        description: "attention and the quantization of its result in one launch",
        enabled: |config| *config.fuse_attn_quant,
        run: grouping::fuse_attn_quant,
    },
    Pass {
        name: "fuse_gemm_epilogue",
        description: "a projection and the row operations on its result (bias, residual, activation, norm) in one launch",
        enabled: |config| *config.fuse_gemm_epilogue,
        run: grouping::fuse_gemm_epilogue,
    },
];

/// Runs the whole pipeline on a flat graph, verifying it before and after every pass that changed it in debug builds
/// and once at the end in every build.
///
/// With `compile` false no pass runs: the reports then say so, and the graph stays as the model builder wrote it.
///
/// # Errors
/// If the graph is malformed; after a pass, that is a bug in the pass.
pub fn optimize(
    graph: &mut Graph,
    config: &PassConfig,
    compile: bool,
    target: &dyn Target,
) -> Result<Vec<PassReport>, VerifyError> {
    verify(graph)?;
    let mut reports = Vec::with_capacity(PIPELINE.len());
    for pass in PIPELINE {
        let started = Instant::now();
        let enabled = compile && (pass.enabled)(config);
        let outcome = if enabled { (pass.run)(graph, target) } else { Outcome::default() };
        if cfg!(debug_assertions) && outcome.matches > 0 {
            verify(graph)?;
        }
        reports.push(PassReport {
            name: pass.name,
            description: pass.description,
            enabled,
            matches: outcome.matches,
            declined: outcome.declined,
            launches: graph.groups().len(),
            time: started.elapsed(),
        });
    }
    verify(graph)?;
    Ok(reports)
}
