//! What CUDA runs for a group, in words.

use std::fmt::Write as _;

use allotrope_graph::{Graph, OpId, Target};

use super::{KernelCode, LaunchPlan, plan};
use crate::CudaTarget;
use crate::program::{BLOCK, Features};

/// One line for each way in which the group can run, and what is in its slots; or why there is none.
pub fn describe(graph: &Graph, group: usize, features: Features) -> String {
    let Some(ops) = graph.groups().get(group).map(|group| group.ops.as_slice()) else {
        return format!("the graph has no group {group}");
    };
    let planned = CudaTarget.accepts(graph, ops).and_then(|()| plan(graph, ops, features));
    match planned {
        Err(reason) => format!("no kernel: {reason}"),
        Ok(plan) => lines(graph, ops, &plan),
    }
}

/// The kernels of a group by their names: one for each way in which it can run, that for the fewest rows first. None where
/// there is no kernel.
pub fn kernels(graph: &Graph, group: usize, features: Features) -> Vec<String> {
    let ops = graph.groups().get(group).map(|group| group.ops.as_slice()).unwrap_or_default();
    let planned = CudaTarget.accepts(graph, ops).and_then(|()| plan(graph, ops, features));
    let variants = planned.map(|plan| plan.variants).unwrap_or_default();
    variants.iter().map(|variant| variant.code.entry().to_owned()).collect()
}

fn lines(graph: &Graph, ops: &[OpId], plan: &LaunchPlan) -> String {
    let mut text = String::new();
    for (index, variant) in plan.variants.iter().enumerate() {
        let newline = if index == 0 { "" } else { "\n" };
        let entry = variant.code.entry();
        let how = match &variant.code {
            KernelCode::Bundled { .. } => "compiled ahead of time",
            KernelCode::Filled { .. } => "template with generated slots",
            KernelCode::Generated(_) => "generated",
        };
        let rows = match variant.most_rows {
            usize::MAX => String::new(),
            most => format!(" up to {most} rows"),
        };
        let _ = write!(
            text,
            "{newline}{entry}{rows}: {how}; {} blocks of {BLOCK} threads for each {} {} rows, {} bytes of shared memory",
            variant.grid.blocks, variant.grid.rows, plan.rows, variant.shared_memory
        );
    }
    if let Some(KernelCode::Filled { slots, .. }) = plan.variants.first().map(|variant| &variant.code) {
        if !slots.prologue.is_empty() {
            let _ = write!(text, "\n  before the products: {}", names(graph, &slots.prologue));
        }
        for bundle in &slots.bundles {
            let values: Vec<String> =
                bundle.values.iter().map(|value| format!("%{}", graph.value(*value).name)).collect();
            if !bundle.epilogue.is_empty() {
                let _ = write!(text, "\n  after {}: {}", values.join(", "), names(graph, &bundle.epilogue));
            }
        }
    } else if let Some(KernelCode::Generated(_)) = plan.variants.first().map(|variant| &variant.code) {
        let _ = write!(text, "\n  runs {}", names(graph, ops));
    }
    text
}

fn names(graph: &Graph, ops: &[OpId]) -> String {
    let name = |op: &OpId| format!("%{} = {}", graph.value(graph.op(*op).output).name, graph.op(*op).kind.name());
    ops.iter().map(name).collect::<Vec<_>>().join("; ")
}
