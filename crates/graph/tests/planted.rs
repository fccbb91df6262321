//! Wrong rewrites, planted on purpose: the laws that hold for every graph must catch each of them.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use allotrope_graph::passes::planted::{self, FAULTS};
use allotrope_graph::passes::{Fuel, PIPELINE, run_passes};
use allotrope_graph::*;
use common::*;

/// How a wrong rewrite of one graph came out.
#[derive(Debug, PartialEq)]
enum Caught {
    /// It found nothing to spoil.
    NothingPlanted,
    /// The graph is malformed, says the verifier, or can't be run.
    Refused,
    /// The bits of the output differ.
    OtherBits,
    /// Nobody noticed.
    Missed,
}

fn plant(fault: &passes::Pass, graph: &Graph, weights: &RandomWeights) -> Caught {
    let mut wrong = graph.clone();
    // First or last in the pipeline, as a pass of its kind would be.
    let mut pipeline = PIPELINE.to_vec();
    match fault.kind {
        passes::PassKind::Rewrite => pipeline.insert(0, *fault),
        passes::PassKind::Grouping => pipeline.push(*fault),
    }
    let outcome = run_passes(&mut wrong, &pipeline, |_| true, &Everything, Fuel::UNLIMITED, &mut |_, _| {});
    if wrong.history().iter().any(|report| report.name == fault.name && report.matches == 0) {
        return Caught::NothingPlanted;
    }
    if outcome.is_err() || try_run(&wrong, weights).is_err() {
        return Caught::Refused;
    }
    match output_bits(&wrong, weights) == output_bits(graph, weights) {
        true => Caught::Missed,
        false => Caught::OtherBits,
    }
}

#[test]
fn every_planted_fault_is_caught_on_random_graphs() {
    for fault in FAULTS {
        let mut caught = 0;
        for seed in 0..150 {
            let mut random = Random::new(seed);
            let graph = random_graph(&mut random);
            let weights = RandomWeights::new(&graph, &mut random);
            // A wrong value may be dead, multiplied by zero, or round to the same: of one graph, not of all.
            let outcome = plant(fault, &graph, &weights);
            caught += usize::from(matches!(outcome, Caught::Refused | Caught::OtherBits));
        }
        assert!(caught >= 10, "{} was caught in {caught} of 150 graphs only", fault.name);
        println!("{} was caught in {caught} of 150 graphs", fault.name);
    }
}

#[test]
fn faults_are_caught_on_a_decoder_in_the_way_that_they_should_be() {
    let graph = decoder(2, LLAMA);
    let weights = RandomWeights::new(&graph, &mut Random::new(7));
    let outcome = |name: &str| plant(planted::find(name).unwrap(), &graph, &weights);
    assert_eq!(outcome("drop_rounding"), Caught::OtherBits);
    assert_eq!(outcome("swap_metadata"), Caught::Refused);
    assert_eq!(outcome("read_before_write"), Caught::Refused);
    assert_eq!(outcome("widen_over_write"), Caught::Refused);
    // A decoder has no subtraction, and no cast that loses anything.
    assert_eq!(outcome("swap_subtraction"), Caught::NothingPlanted);
    assert_eq!(outcome("drop_lossy_casts"), Caught::NothingPlanted);
}

#[test]
fn fuel_finds_the_first_wrong_rewrite() {
    let graph = decoder(4, LLAMA);
    let weights = RandomWeights::new(&graph, &mut Random::new(3));
    let expected = output_bits(&graph, &weights);
    let mut pipeline = PIPELINE.to_vec();
    pipeline.insert(2, *planted::find("drop_rounding").unwrap());
    let wrong_after = |fuel: usize| {
        let mut graph = graph.clone();
        run_passes(&mut graph, &pipeline, |_| true, &Everything, Fuel::limited(fuel), &mut |_, _| {}).unwrap();
        output_bits(&graph, &weights) != expected
    };
    // The one cast of the embedding is a no-op, and the next rewrite is the first that is wrong.
    let first = (0..20).find(|fuel| wrong_after(*fuel)).unwrap();
    assert_eq!(first, 2);
    assert!(wrong_after(1000));
}
