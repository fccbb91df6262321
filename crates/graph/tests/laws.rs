//! Laws that hold for every graph: passes keep bits and can be undone, text reads back, buffers never overlap.
//!
//! `PROPTEST_CASES=10000 cargo test --release -p allotrope-graph --test laws` is the long run.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use allotrope_config::OptimizationLevel;
use allotrope_graph::memory::plan_memory;
use allotrope_graph::partition::{SplittingOps, partition};
use allotrope_graph::passes::{Fuel, PIPELINE, PassKind, optimize, run_passes};
use allotrope_graph::schedule::schedule;
use allotrope_graph::text::parse;
use allotrope_graph::verify::verify;
use allotrope_graph::*;
use common::*;
use proptest::prelude::*;

const LIMITS: Sizes = Sizes { tokens: 7, sequences: 2, logit_rows: 2, blocks: 1 };

fn flat(graph: &Graph) -> Graph {
    let mut graph = graph.clone();
    graph.flatten();
    graph
}

/// A target that writes nothing in place.
struct Apart;

impl Target for Apart {
    fn name(&self) -> &str {
        "apart"
    }

    fn accepts(&self, _: &Graph, _: &[OpId]) -> Result<(), String> {
        Ok(())
    }
}

/// A random graph after the whole pipeline, on a target that takes some groups and not others.
fn grouped(seed: u64) -> (Graph, Moody) {
    let mut random = Random::new(seed);
    let mut graph = random_graph(&mut random);
    let target = Moody(random.next());
    optimize(&mut graph, &passes_of(OptimizationLevel::O2, true), true, &target).unwrap();
    (graph, target)
}

proptest! {
    #![proptest_config(cases())]

    /// Every pass and every prefix of the pipeline, down to the single rewrite.
    #[test]
    fn every_prefix_of_the_pipeline_keeps_every_bit_and_verifies(seed: u64) {
        let mut random = Random::new(seed);
        let graph = random_graph(&mut random);
        verify(&graph).unwrap();
        let weights = RandomWeights::new(&graph, &mut random);
        let expected = output_bits(&graph, &weights);
        let moody = Moody(random.next());
        let target: &dyn Target = if random.below(2) == 0 { &Everything } else { &moody };
        let mut full = graph.clone();
        run_passes(&mut full, PIPELINE, |_| true, target, Fuel::UNLIMITED, &mut |_, _| {}).unwrap();
        let rewrites: usize = full.history().iter().map(|report| report.matches).sum();
        for fuel in [rewrites, random.below(rewrites + 1), random.below(rewrites + 1)] {
            let mut after = graph.clone();
            run_passes(&mut after, PIPELINE, |_| true, target, Fuel::limited(fuel), &mut |_, _| {}).unwrap();
            let made: usize = after.history().iter().map(|report| report.matches).sum();
            prop_assert_eq!(made, fuel);
            verify(&after).unwrap();
            prop_assert_eq!(&output_bits(&after, &weights), &expected, "after {} of {} rewrites", fuel, rewrites);
        }
        for level in OptimizationLevel::ALL {
            let mut after = graph.clone();
            optimize(&mut after, &passes_of(level, true), level != OptimizationLevel::O0, target).unwrap();
            prop_assert_eq!(&output_bits(&after, &weights), &expected, "{:?}", level);
        }
    }

    /// Grouping moves operations and nothing else: without its groups, a graph is what went into the pass.
    #[test]
    fn flattening_after_any_grouping_pass_gives_the_graph_that_went_in(seed: u64) {
        let mut random = Random::new(seed);
        let graph = random_graph(&mut random);
        let target = Moody(random.next());
        let mut before = flat(&graph);
        let mut wrong = Vec::new();
        let mut after = graph;
        run_passes(&mut after, PIPELINE, |_| true, &target, Fuel::UNLIMITED, &mut |report, graph| {
            let kind = PIPELINE.iter().find(|pass| pass.name == report.name).unwrap().kind;
            let now = flat(graph);
            if kind == PassKind::Grouping && now != before {
                wrong.push(report.name);
            }
            before = now;
        }).unwrap();
        prop_assert_eq!(wrong, Vec::<&str>::new());
    }

    #[test]
    fn reading_what_was_printed_gives_the_graph(seed: u64) {
        let (graph, _) = grouped(seed);
        for graph in [flat(&graph), graph] {
            let text = graph.to_string();
            let read = parse(&text).unwrap();
            prop_assert_eq!(&read, &graph);
            prop_assert_eq!(read.to_string(), text);
        }
    }

    #[test]
    fn regrouping_either_keeps_the_graph_sound_or_changes_nothing(seed: u64) {
        let (mut graph, _) = grouped(seed);
        let mut random = Random::new(seed ^ 1);
        for _ in 0..20 {
            let count = 1 + random.below(4);
            let ops: Vec<OpId> = (0..count).map(|_| OpId(random.below(graph.ops().len()) as u32)).collect();
            let before = graph.clone();
            match graph.regroup(&ops) {
                Ok(()) => {
                    verify(&graph).unwrap();
                    prop_assert!(graph.groups().len() <= before.groups().len());
                    prop_assert!(ops.iter().all(|op| graph.group_of(*op) == graph.group_of(ops[0])));
                    prop_assert_eq!(flat(&graph), flat(&before));
                }
                Err(_) => prop_assert_eq!(&graph, &before),
            }
        }
    }

    #[test]
    fn live_buffers_never_overlap(seed: u64) {
        let (graph, moody) = grouped(seed);
        let workspace: Vec<Vec<ValueId>> =
            graph.groups().iter().map(|group| group.ops.iter().map(|op| graph.op(*op).output).collect()).collect();
        for (target, workspace) in [(&Everything as &dyn Target, &[][..]), (&moody, &workspace)] {
            let plan = plan_memory(&graph, target, workspace, LIMITS, 64).unwrap();
            check_plan(&graph, target, &plan)?;
        }
    }

    #[test]
    fn scheduling_keeps_launches_and_pieces_and_never_raises_the_peak(seed: u64) {
        let (graph, _) = grouped(seed);
        for splitting in [SplittingOps::default(), SplittingOps::new(&["linear", "silu"]).unwrap()] {
            let mut after = graph.clone();
            let report = schedule(&mut after, &LIMITS, &splitting);
            verify(&after).unwrap();
            prop_assert!(report.peak_after <= report.peak_before);
            prop_assert_eq!(report.moved == 0, after == graph);
            prop_assert_eq!(partition(&after, &splitting).len(), partition(&graph, &splitting).len());
            prop_assert_eq!(flat(&after), flat(&graph));
            // What is said of the peak is what the memory plan finds where nothing is written in place.
            let bytes = |graph: &Graph| plan_memory(graph, &Apart, &[], LIMITS, 1).unwrap().lower_bound;
            prop_assert_eq!((report.peak_before, report.peak_after), (bytes(&graph), bytes(&after)));
        }
    }

    #[test]
    fn pieces_hold_every_launch_once_and_splitting_operations_alone(seed: u64) {
        let (graph, _) = grouped(seed);
        for names in [&["attention"][..], &["linear"], &["silu", "quantize"], &[]] {
            let splitting = SplittingOps::new(names).unwrap();
            let pieces = partition(&graph, &splitting);
            let covered: Vec<usize> = pieces.iter().flat_map(|piece| piece.groups.clone()).collect();
            prop_assert_eq!(covered, (0..graph.groups().len()).collect::<Vec<_>>());
            for piece in pieces {
                for group in &graph.groups()[piece.groups.clone()] {
                    let splits = group.ops.iter().any(|op| names.contains(&graph.op(*op).kind.name()));
                    prop_assert_eq!(splits, piece.splitting);
                }
            }
        }
    }
}

/// Buffers that are alive together lie apart, but for a result that took over the bytes of an operand in its last launch.
fn check_plan(graph: &Graph, target: &dyn Target, plan: &memory::MemoryPlan) -> Result<(), TestCaseError> {
    let mut buffers = Vec::new();
    for (index, offset) in plan.offsets.iter().enumerate() {
        let Some(offset) = offset else { continue };
        let id = ValueId(index as u32);
        let bytes = graph.tensor_type(id).unwrap().bytes(&plan.limits).unwrap();
        prop_assert!(offset % 64 == 0 && offset + bytes <= plan.bytes);
        let first = graph.group_of(graph.producer(id).unwrap());
        let last = graph.users(id).iter().map(|user| graph.group_of(*user)).max().unwrap_or(first);
        let last = if graph.outputs().contains(&id) { usize::MAX } else { last };
        buffers.push((id, *offset..offset + bytes, first, last));
    }
    prop_assert!(plan.bytes >= plan.lower_bound);
    for (result, operand) in &plan.in_place {
        let group = graph.group_of(graph.producer(*result).unwrap());
        prop_assert!(target.may_overwrite(graph, group, *operand, *result));
        prop_assert_eq!(plan.offsets[result.index()], plan.offsets[operand.index()]);
    }
    for (index, (a, a_bytes, a_first, a_last)) in buffers.iter().enumerate() {
        for (b, b_bytes, b_first, b_last) in &buffers[index + 1..] {
            let apart = a_bytes.end <= b_bytes.start || b_bytes.end <= a_bytes.start;
            let alive_together = a_first <= b_last && b_first <= a_last;
            // Nothing but the one launch in which the operand dies and the result is made.
            let handed_over = (plan.in_place.contains(&(*b, *a)) && a_last == b_first)
                || (plan.in_place.contains(&(*a, *b)) && b_last == a_first);
            prop_assert!(apart || !alive_together || handed_over, "{:?} and {:?}", a, b);
        }
    }
    Ok(())
}
