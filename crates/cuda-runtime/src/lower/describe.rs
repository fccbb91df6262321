//! What CUDA runs for a group, in words.

use allotrope_graph::{Graph, OpId, Target};

use super::{KernelCode, LaunchPlan, PlannedLaunch, Variant, plan};
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
    let entries =
        |variant: &Variant| variant.launches.iter().map(|launch| launch.code.entry()).collect::<Vec<_>>().join(" + ");
    variants.iter().map(entries).collect()
}

fn lines(graph: &Graph, ops: &[OpId], plan: &LaunchPlan) -> String {
    let mut lines = Vec::new();
    for variant in &plan.variants {
        let rows = match variant.most_rows {
            usize::MAX => String::new(),
            most => format!("up to {most} rows: "),
        };
        let indent = |number: usize| if number == 0 { rows.as_str() } else { "  then " };
        let launches = variant.launches.iter().enumerate();
        lines.extend(launches.map(|(number, launch)| format!("{}{}", indent(number), line(launch, plan))));
    }
    let launches: Vec<&PlannedLaunch> = plan.variants.iter().flat_map(|variant| &variant.launches).collect();
    let slots = launches.iter().find_map(|launch| match &launch.code {
        KernelCode::Filled { slots, .. } => Some(slots),
        _ => None,
    });
    if let Some(slots) = slots {
        if !slots.prologue.is_empty() {
            lines.push(format!("  before the products: {}", names(graph, &slots.prologue)));
        }
        for bundle in slots.bundles.iter().filter(|bundle| !bundle.epilogue.is_empty()) {
            let values = bundle.values.iter().map(|value| format!("%{}", graph.value(*value).name));
            let values: Vec<String> = values.collect();
            lines.push(format!("  after {}: {}", values.join(", "), names(graph, &bundle.epilogue)));
        }
    } else if launches.iter().any(|launch| matches!(launch.code, KernelCode::Generated(_))) {
        lines.push(format!("  runs {}", names(graph, ops)));
    }
    lines.join("\n")
}

fn line(launch: &PlannedLaunch, plan: &LaunchPlan) -> String {
    let how = match &launch.code {
        KernelCode::Bundled { .. } => "compiled ahead of time",
        KernelCode::Filled { .. } => "template with generated slots",
        KernelCode::Generated(_) => "generated",
    };
    format!(
        "{}: {how}; {} blocks of {BLOCK} threads for each {} {} rows, {} bytes of shared memory",
        launch.code.entry(),
        launch.grid.blocks,
        launch.grid.rows,
        plan.rows,
        launch.shared_memory
    )
}

fn names(graph: &Graph, ops: &[OpId]) -> String {
    let name = |op: &OpId| format!("%{} = {}", graph.value(graph.op(*op).output).name, graph.op(*op).kind.name());
    ops.iter().map(name).collect::<Vec<_>>().join("; ")
}
