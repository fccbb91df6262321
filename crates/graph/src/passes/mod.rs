//! The pipeline: every pass, in order, each with its flag, and a report of what it did.
//!
//! Rewrites (`rewrites/`) touch operations, and each is an identity that keeps every bit. Grouping passes
//! (`grouping/`) only move operations into one launch. Both leave a graph that [`verify`] accepts.

mod grouping;
#[cfg(feature = "planted-faults")]
pub mod planted;
mod rewrites;
mod session;

use std::time::Instant;

use allotrope_config::{
    CompilationMode, DeviceFacts, ModelFacts, OptimizationLevel, Options, PassConfig, SettingsError, Source, resolve,
};

use crate::facts::model_facts;
use crate::graph::Graph;
use crate::history::PassReport;
use crate::target::Target;
use crate::verify::{VerifyError, verify};

pub use session::{Fuel, Session};

/// Whether a pass may touch operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassKind {
    /// It replaces or drops operations, each time by an identity that keeps every bit. It runs on flat graphs.
    Rewrite,
    /// It only moves operations from launch to launch.
    Grouping,
}

/// A pass: what it is called, what it does, which setting turns it on.
#[derive(Clone, Copy)]
pub struct Pass {
    /// The name, which is the last part of its setting's path.
    pub name: &'static str,
    /// What it does, in one line.
    pub description: &'static str,
    /// Why it changes no bit.
    pub identity: &'static str,
    /// Whether it may touch operations.
    pub kind: PassKind,
    /// Whether the settings turn it on.
    pub enabled: fn(&PassConfig) -> bool,
    /// The pass itself.
    pub run: fn(&mut Session<'_>),
}

impl Pass {
    /// The path of the setting that turns the pass on or off.
    pub fn setting(&self) -> String {
        format!("compilation.pass_config.{}", self.name)
    }
}

const LAUNCHES: &str = "the same operations, with the same rounding points, in fewer launches";

/// All passes in the order in which they run: first the rewrites, then groups from small to large, so that the
/// epilogue and prologue passes find whole row groups to take in.
pub const PIPELINE: &[Pass] = &[
    Pass {
        name: "eliminate_noops",
        description: "drop operations that give back their operand",
        identity: "each rule gives a value that has the same bits already (NaN payloads aside)",
        kind: PassKind::Rewrite,
        enabled: |config| *config.eliminate_noops,
        run: rewrites::eliminate_noops,
    },
    Pass {
        name: "eliminate_common_subexpressions",
        description: "compute once what several operations compute alike",
        identity: "f(x) = f(x): operations are functions of their operands and attributes",
        kind: PassKind::Rewrite,
        enabled: |config| *config.eliminate_common_subexpressions,
        run: rewrites::eliminate_common_subexpressions,
    },
    Pass {
        name: "fuse_add_norm",
        description: "residual add and RMSNorm in one launch",
        identity: LAUNCHES,
        kind: PassKind::Grouping,
        enabled: |config| *config.fuse_add_norm,
        run: grouping::rows::fuse_add_norm,
    },
    Pass {
        name: "fuse_act_mul",
        description: "activation times gate in one launch",
        identity: LAUNCHES,
        kind: PassKind::Grouping,
        enabled: |config| *config.fuse_act_mul,
        run: grouping::rows::fuse_act_mul,
    },
    Pass {
        name: "fuse_norm_quant",
        description: "RMSNorm and the quantization of its result in one launch",
        identity: LAUNCHES,
        kind: PassKind::Grouping,
        enabled: |config| *config.fuse_norm_quant,
        run: grouping::rows::fuse_norm_quant,
    },
    Pass {
        name: "fuse_act_quant",
        description: "activation and the quantization of its result in one launch",
        identity: LAUNCHES,
        kind: PassKind::Grouping,
        enabled: |config| *config.fuse_act_quant,
        run: grouping::rows::fuse_act_quant,
    },
    Pass {
        name: "fuse_qkv_proj",
        description: "the query, key and value projections in one launch",
        identity: LAUNCHES,
        kind: PassKind::Grouping,
        enabled: |config| *config.fuse_qkv_proj,
        run: grouping::siblings::fuse_qkv_proj,
    },
    Pass {
        name: "fuse_gate_up_proj",
        description: "the gate and up projections in one launch",
        identity: LAUNCHES,
        kind: PassKind::Grouping,
        enabled: |config| *config.fuse_gate_up_proj,
        run: grouping::siblings::fuse_gate_up_proj,
    },
    Pass {
        name: "fuse_qk_norm_rope",
        description: "the norms of query and key heads and the rotary embedding in one launch",
        identity: LAUNCHES,
        kind: PassKind::Grouping,
        enabled: |config| *config.fuse_qk_norm_rope,
        run: grouping::rows::fuse_qk_norm_rope,
    },
    Pass {
        name: "fuse_rope_kvcache",
        description: "rotary embedding and the KV-cache write in one launch",
        identity: LAUNCHES,
        kind: PassKind::Grouping,
        enabled: |config| *config.fuse_rope_kvcache,
        run: grouping::rows::fuse_rope_kvcache,
    },
    Pass {
        name: "fuse_attn_quant",
        description: "attention and the quantization of its result in one launch",
        identity: LAUNCHES,
        kind: PassKind::Grouping,
        enabled: |config| *config.fuse_attn_quant,
        run: grouping::rows::fuse_attn_quant,
    },
    Pass {
        name: "fuse_gemm_epilogue",
        description: "a projection and the row operations on its result (bias, residual, activation, norm) in one launch",
        identity: LAUNCHES,
        kind: PassKind::Grouping,
        enabled: |config| *config.fuse_gemm_epilogue,
        run: grouping::gemm::fuse_gemm_epilogue,
    },
    Pass {
        name: "fuse_gemm_prologue",
        description: "a projection and the row operations that make its input (norm, quantization) in one launch",
        identity: LAUNCHES,
        kind: PassKind::Grouping,
        enabled: |config| *config.fuse_gemm_prologue,
        run: grouping::gemm::fuse_gemm_prologue,
    },
];

/// The pass of that name.
pub fn find(name: &str) -> Option<&'static Pass> {
    PIPELINE.iter().find(|pass| pass.name == name)
}

/// The passes that a level turns on for a model like the graph, where nobody says otherwise and the device can do everything.
///
/// # Errors
/// If the settings cannot be resolved, which is a bug.
pub fn passes_at(level: OptimizationLevel, graph: &Graph) -> Result<Vec<Pass>, SettingsError> {
    let mut options = Options::default();
    options.set_optimization_level(level, Source::Builder);
    let model = model_facts(graph, ModelFacts::assumed());
    let settings = resolve(&options, &model, &DeviceFacts::assumed())?;
    let compiles = *settings.compilation.mode == CompilationMode::Compile;
    let on = |pass: &&Pass| compiles && (pass.enabled)(&settings.compilation.pass_config);
    Ok(PIPELINE.iter().filter(on).copied().collect())
}

/// Runs the whole pipeline on a flat graph. What every pass did is kept as the graph's [history](Graph::history).
///
/// With `compile` false no pass runs: the history then says so, and the graph stays as the model builder wrote it.
///
/// # Errors
/// If the graph is malformed; after a pass, that is a bug in the pass.
pub fn optimize(graph: &mut Graph, config: &PassConfig, compile: bool, target: &dyn Target) -> Result<(), VerifyError> {
    let on = |pass: &Pass| compile && (pass.enabled)(config);
    run_passes(graph, PIPELINE, on, target, Fuel::UNLIMITED, &mut |_, _| {})
}

/// Runs passes in order, those that are `on`, as far as the fuel lasts; `observe` sees every report and the graph after
/// the pass.
///
/// The graph is verified first and at the end, and in debug builds after every pass that changed it.
///
/// # Errors
/// As [`optimize`].
pub fn run_passes(
    graph: &mut Graph,
    passes: &[Pass],
    on: impl Fn(&Pass) -> bool,
    target: &dyn Target,
    mut fuel: Fuel,
    observe: &mut dyn FnMut(&PassReport, &Graph),
) -> Result<(), VerifyError> {
    verify(graph)?;
    for pass in passes {
        let started = Instant::now();
        let enabled = on(pass);
        let mut session = Session { graph, target, fuel: &mut fuel, matches: 0, near_misses: Vec::new() };
        if enabled {
            run_pass(pass, &mut session);
        }
        let Session { matches, near_misses, .. } = session;
        let report = PassReport {
            name: pass.name,
            description: pass.description,
            enabled,
            matches,
            near_misses,
            ops: graph.ops().len(),
            launches: graph.groups().len(),
            out_of_fuel: fuel.ran_out(),
            time: started.elapsed(),
        };
        // Before the verifier: what a wrong pass made is what somebody will want to see.
        observe(&report, graph);
        graph.record(report);
        if cfg!(debug_assertions) && matches > 0 {
            verify(graph)?;
        }
    }
    verify(graph)
}

fn run_pass(pass: &Pass, session: &mut Session<'_>) {
    // A rewrite renumbers operations, which would drop the groups that are there.
    if pass.kind == PassKind::Rewrite && !session.graph.is_flat() {
        if let Some(op) = session.graph.groups().first().and_then(|group| group.ops.first()).copied() {
            session.near_miss(op, "operations are rewritten before they are grouped");
        }
        return;
    }
    (pass.run)(session);
    session.graph.drop_empty_groups();
}
