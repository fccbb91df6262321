//! Code is the same for all layers of a model: what differs between them is in the launches' parameters.

use std::collections::BTreeSet;

use allotrope_cuda_runtime::CudaTarget;
use allotrope_cuda_runtime::lower::Templates;
use allotrope_graph::passes::{Fuel, PIPELINE, run_passes};
use allotrope_graph::text::parse;
use allotrope_graph::{DType, Graph};
use allotrope_runtime::conformance::graphs::{DecoderSizes, decoder};

/// A decoder whose layers have other scales and epsilons, as checkpoints have; compiled.
fn compiled(layers: usize, quantized: bool) -> Graph {
    let sizes = DecoderSizes { layers, ..DecoderSizes::ODD };
    let text = decoder(sizes, DType::Bf16, quantized).to_string();
    let own = |line: &str| {
        let layer = line.trim().strip_prefix("%layers.").and_then(|line| line.split('.').next());
        let number = layer.map_or(1, |layer| 2 + layer.parse::<usize>().unwrap());
        line.replace("<scale=0.01>", &format!("<scale=0.0{number}>"))
            .replace("<epsilon=1e-5>", &format!("<epsilon={number}e-5>"))
            .replace("scale=0.002>", &format!("scale=0.00{number}>"))
            .replace("scale=0.3>", &format!("scale=0.{number}>"))
    };
    let text: Vec<String> = text.lines().map(own).collect();
    let mut graph = parse(&text.join("\n")).unwrap();
    run_passes(&mut graph, PIPELINE, |_| true, &CudaTarget, Fuel::UNLIMITED, &mut |_, _| {}).unwrap();
    graph
}

/// The texts of a graph's kernels, and how many there are.
fn texts(graph: &Graph, templates: &Templates) -> (BTreeSet<String>, usize) {
    let groups = 0..graph.groups().len();
    let all: Vec<String> =
        groups.flat_map(|group| templates.group(graph, group).unwrap()).map(|kernel| kernel.text).collect();
    let count = all.len();
    (all.into_iter().collect(), count)
}

#[test]
fn layers_share_their_code() {
    for capability in [(8, 0), (9, 0)] {
        let templates = Templates::embedded(capability).unwrap();
        for quantized in [false, true] {
            let (two, kernels_of_two) = texts(&compiled(2, quantized), &templates);
            let (five, kernels_of_five) = texts(&compiled(5, quantized), &templates);
            assert!(kernels_of_five > kernels_of_two);
            assert_eq!(two, five, "{} and {} texts for {capability:?}", two.len(), five.len());
            println!("quantized {quantized}: {kernels_of_two} and {kernels_of_five} kernels of {} texts", two.len());
            let (again, _) = texts(&compiled(2, quantized), &Templates::embedded(capability).unwrap());
            assert_eq!(two, again, "the same graph gives the same code");
        }
    }
}
