//! The page of passes: what is on it, that it can be put together again, and that names stay text.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use allotrope_config::OptimizationLevel;
use allotrope_graph::history::PassReport;
use allotrope_graph::passes::{Fuel, PIPELINE, find, run_passes};
use allotrope_graph::text::{Stage, page};
use allotrope_graph::*;
use common::*;
use serde_json::Value;

/// A graph, and every pass with the graph after it.
struct Compilation {
    as_built: Graph,
    after: Vec<(PassReport, Graph)>,
}

impl Compilation {
    fn new(as_built: Graph, level: OptimizationLevel, fuel: Fuel) -> Self {
        let config = passes_of(level, true);
        let mut graph = as_built.clone();
        let mut after = Vec::new();
        let mut observe = |report: &PassReport, graph: &Graph| after.push((report.clone(), graph.clone()));
        run_passes(&mut graph, PIPELINE, |pass| (pass.enabled)(&config), &Everything, fuel, &mut observe).unwrap();
        Compilation { as_built, after }
    }

    fn page(&self, title: &str) -> String {
        let stages: Vec<Stage<'_>> = self.after.iter().map(|(report, graph)| Stage { report, graph }).collect();
        page(title, &self.as_built, &stages)
    }
}

fn compiled(layers: usize, level: OptimizationLevel) -> Compilation {
    Compilation::new(decoder(layers, LLAMA_FP8), level, Fuel::UNLIMITED)
}

/// What is between two pieces of text that a page has once.
fn between<'a>(page: &'a str, start: &str, end: &str) -> &'a str {
    assert_eq!(page.matches(start).count(), 1, "{start}");
    page.split_once(start).unwrap().1.split_once(end).unwrap().0
}

/// The data of a page, read as a browser reads it: up to the first end of a script.
fn data(page: &str) -> Value {
    serde_json::from_str(between(page, r#"<script type="application/json" id="data">"#, "</script")).unwrap()
}

/// The text form from the places of its lines.
fn text(data: &Value, places: &Value) -> String {
    let place = |place: &Value| usize::try_from(place.as_u64().unwrap()).unwrap();
    let line = |at: &Value| format!("{}\n", data["lines"][place(at)].as_str().unwrap());
    places.as_array().unwrap().iter().map(line).collect()
}

/// The page without its data.
fn frame(page: &str) -> String {
    let (start, rest) = page.split_once(r#"<script type="application/json" id="data">"#).unwrap();
    let (_, end) = rest.split_once("</script").unwrap();
    format!("{start}{end}")
}

#[test]
fn the_same_graphs_give_the_same_page() {
    let mut compilation = compiled(2, OptimizationLevel::O2);
    let first = compilation.page("decoder");
    assert_eq!(first, compiled(2, OptimizationLevel::O2).page("decoder"));
    for (report, _) in &mut compilation.after {
        report.time = Duration::from_secs(12_345);
    }
    assert_eq!(first, compilation.page("decoder"), "times are on the page");
}

#[test]
fn every_stage_can_be_put_together_again() {
    for level in OptimizationLevel::ALL {
        let compilation = compiled(3, level);
        let data = data(&compilation.page("decoder"));
        let mut before = text(&data, &data["as_built"]["text"]);
        assert_eq!(before, compilation.as_built.to_string());
        let stages = data["stages"].as_array().unwrap();
        assert_eq!(stages.len(), compilation.after.len());
        for (stage, (report, graph)) in stages.iter().zip(&compilation.after) {
            let after = if stage["text"].is_null() { before.clone() } else { text(&data, &stage["text"]) };
            assert_eq!(after, graph.to_string(), "{level:?}, {}", report.name);
            assert_eq!(stage["text"].is_null(), after == before, "{level:?}, {}", report.name);
            before = after;
        }
    }
}

#[test]
fn no_line_is_there_twice() {
    let data = data(&compiled(3, OptimizationLevel::O2).page("decoder"));
    let lines: Vec<&str> = data["lines"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    let mut distinct = lines.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), lines.len());
}

#[test]
fn reports_are_whole() {
    let compilation = Compilation::new(decoder(2, LLAMA_FP8), OptimizationLevel::O1, Fuel::limited(5));
    let data = data(&compilation.page("decoder"));
    let stages = data["stages"].as_array().unwrap();
    assert_eq!(stages.len(), PIPELINE.len());
    for (stage, (report, graph)) in stages.iter().zip(&compilation.after) {
        let pass = find(report.name).unwrap();
        assert_eq!(stage["name"], report.name);
        assert_eq!(stage["description"], pass.description);
        assert_eq!(stage["identity"], pass.identity);
        assert_eq!(stage["setting"], pass.setting());
        assert_eq!(stage["enabled"], report.enabled);
        assert_eq!(stage["matches"], report.matches);
        assert_eq!(stage["ops"], graph.ops().len());
        assert_eq!(stage["launches"], graph.groups().len());
        assert_eq!(stage["out_of_fuel"], report.out_of_fuel);
        let misses = stage["near_misses"].as_array().unwrap();
        assert_eq!(misses.len(), report.near_misses.len());
        for (miss, expected) in misses.iter().zip(&report.near_misses) {
            assert_eq!(miss["reason"], expected.reason);
            assert_eq!(miss["first"], format!("%{}", expected.first));
            assert_eq!(miss["count"], expected.count);
        }
    }
    assert!(stages.iter().any(|stage| stage["enabled"] == false));
    assert!(stages.iter().any(|stage| stage["out_of_fuel"] == true));
}

#[test]
fn names_that_are_html_stay_text() {
    const HOSTILE: [&str; 6] = [
        "</script><script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<!--<script>",
        "\"quoted\\",
        "{title} {data}",
        "two\nlines\u{2028}and \u{202e}more",
    ];
    let mut builder = Builder::new();
    let x = builder.embedding();
    let scale = TensorType::vector(DType::Bf16, Dim::Static(16));
    let mut stream = x;
    for (index, name) in HOSTILE.into_iter().enumerate() {
        let weight = builder.graph.weight(name, scale.clone());
        stream =
            builder.graph.push(format!("{name}{index}"), OpKind::RmsNorm { epsilon: 1e-5 }, &[stream, weight]).unwrap();
    }
    let compilation = Compilation::new(builder.finish(stream), OptimizationLevel::O2, Fuel::UNLIMITED);
    let title = "</title><script>alert(1)</script> & {style}";
    let page = compilation.page(title);

    let data = data(&page);
    assert_eq!(text(&data, &data["as_built"]["text"]), compilation.as_built.to_string());
    // The data end where they should: nothing of them is in the rest of the page, and no tag is in them.
    let plain = compiled(1, OptimizationLevel::O2).page(title);
    assert_eq!(frame(&page), frame(&plain));
    assert!(!between(&page, r#"<script type="application/json" id="data">"#, "</script>").contains('<'));
    // The title is escaped too, and the same two scripts are there as on any page.
    assert_eq!(page.matches("&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt; &amp; {style}").count(), 2);
    assert_eq!(page.matches("<script").count(), 2);
    assert_eq!(page.matches("</script").count(), 2);
}

#[test]
fn the_page_stands_alone() {
    let page = compiled(1, OptimizationLevel::O2).page("decoder");
    assert!(page.contains("<noscript>"));
    assert!(page.contains("default-src 'none'"));
    for outside in ["http:", "https:", "src=", "@import", "url(", "fetch(", "innerHTML", "eval("] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn a_graph_without_passes_and_an_empty_graph_have_pages() {
    let graph = decoder(1, LLAMA);
    let first = data(&page("as built", &graph, &[]));
    assert_eq!(text(&first, &first["as_built"]["text"]), graph.to_string());
    assert_eq!(first["stages"].as_array().unwrap().len(), 0);
    let empty = data(&page("empty", &Graph::new(), &[]));
    assert_eq!(text(&empty, &empty["as_built"]["text"]), Graph::new().to_string());
}

#[test]
fn the_page_of_a_model_of_16_layers_is_small() {
    let size = compiled(16, OptimizationLevel::O2).page("decoder").len();
    assert!(size < 400_000, "{size} bytes");
}
