//! The text form: what is printed, where errors point, and that no text makes the parser panic or run on.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use allotrope_config::OptimizationLevel;
use allotrope_graph::passes::optimize;
use allotrope_graph::text::{dot, parse, parse_unverified, print_layer};
use allotrope_graph::*;
use common::*;
use proptest::prelude::*;

const SMALL: &str = "\
graph {
  input %token_ids: i32[T]
  input %slots: i32[T]
  weight %table: bf16[11, 8]
  state<layer=3> %layers.3.kv_cache: kv_cache<bf16, kv_heads=2, head_dim=4>

  %x: bf16[T, 8] = embedding(%table, %token_ids)
  group { ; launch 1: add_scalar+kv_write
    %\"a \\\"b\\\" \\\\ c\": bf16[T, 8] = add_scalar<term=-0.0>(%x)
    %layers.3.kv_write: kv_cache<bf16, kv_heads=2, head_dim=4> = kv_write(%layers.3.kv_cache, %x, %\"a \\\"b\\\" \\\\ c\", %slots)
  }
  %y: bf16[T, 2, 4] = reshape<shape=[T, 2, 4]>(%x)
  return %y
}
";

#[test]
fn what_is_printed_is_what_was_read() {
    let graph = parse(SMALL).unwrap();
    assert_eq!(graph.to_string(), SMALL);
    assert_eq!(graph.groups().len(), 3);
    let without_comments = SMALL.lines().map(|line| line.split(" ;").next().unwrap()).collect::<Vec<_>>().join("\n");
    assert_eq!(parse(&without_comments).unwrap(), graph);
}

#[test]
fn graphs_differ_by_anything_that_changes_what_they_compute() {
    let graph = parse(SMALL).unwrap();
    for (from, to) in [
        ("term=-0.0", "term=0.0"),
        ("embedding(%table", "embedding(%other"),
        ("table: bf16[11", "table: bf16[12"),
        ("return %y", "return %x"),
        ("return %y", "return %y, %y"),
        ("layer=3", "layer=4"),
    ] {
        let changed =
            SMALL.replacen("input %slots", "weight %other: bf16[11, 8]\n  input %slots", 1).replacen(from, to, 1);
        let plain = SMALL.replacen("input %slots", "weight %other: bf16[11, 8]\n  input %slots", 1);
        assert_ne!(parse(&changed).unwrap(), parse(&plain).unwrap(), "{from} → {to}");
        assert_ne!(parse(&changed).unwrap(), graph);
    }
}

/// What replaces what in the text, and the error: line, column, a part of the message.
const ERRORS: [(&str, &str, usize, usize, &str); 20] = [
    ("graph {", "grph {", 1, 1, "expected `graph`, found `grph`"),
    ("return %y\n}", "return %y\n", 15, 1, "expected `}`, found the end of the text"),
    ("return %y\n}", "return %y\n} x", 14, 3, "expected the end after the graph, found `x`"),
    ("%token_ids: i32", "%tokens: i32", 2, 9, "a step has no input `tokens`; it has token_ids, positions"),
    ("i32[T]\n  weight", "i33[T]\n  weight", 3, 17, "`i33` is no type"),
    ("[11, 8]", "[11, Q]", 4, 22, "`Q` is no size"),
    ("head_dim=4>\n\n", "head=4>\n\n", 5, 65, "expected `head_dim`, found `head`"),
    ("embedding(", "embeding(", 7, 20, "there is no operation `embeding`; did you mean `embedding`?"),
    ("%table, %token_ids)", "%table %token_ids)", 7, 37, "expected `,`, found `%token_ids`"),
    ("%token_ids)", "%ids)", 7, 38, "nothing defines %ids"),
    ("term=-0.0", "factor=1.0", 9, 35, "add_scalar needs the attribute term, a number"),
    ("term=-0.0", "term=-0.0, factor=1.0", 9, 35, "add_scalar has no attribute factor"),
    ("term=-0.0", "term=zero", 9, 35, "term of add_scalar must be a number, found `zero`"),
    ("term=-0.0", "term=1.0, term=1.0", 9, 56, "the attribute term is given twice"),
    ("term=-0.0", "term=[1.0]", 9, 35, "term of add_scalar must be a number, found a list"),
    ("return %y", "return %y,", 14, 1, "expected the name of a value, found `}`"),
    ("layer=3", "layer=+3", 5, 15, "expected the number of a layer, found `+3`"),
    ("[T, 2, 4] =", "[1, 1, 1, 1, 1, 1, 1, 1, 1] =", 12, 11, "no tensor has more than 8 dimensions"),
    ("return %y", "return %\"y", 13, 10, "the quoted name has no end on its line"),
    ("group {", "group { }\n  group {", 8, 11, "the group is empty"),
];

#[test]
fn errors_point_at_line_and_column() {
    for (from, to, line, column, message) in ERRORS {
        assert!(SMALL.contains(from), "{from}");
        let error = parse(&SMALL.replacen(from, to, 1)).unwrap_err();
        let [found] = error.diagnostics.as_slice() else { panic!("{to}: {error}") };
        assert!(found.message.contains(message), "{to}: {error}");
        assert_eq!((found.line, found.column), (line, column), "{to}: {error}");
    }
}

#[test]
fn an_error_shows_the_line_with_a_mark_under_the_place() {
    let error = parse(&SMALL.replacen("%token_ids)", "%ids)", 1)).unwrap_err().to_string();
    let expected = "the text is no graph:\nline 7, column 38: nothing defines %ids\n 7 |   \
                    %x: bf16[T, 8] = embedding(%table, %ids)\n   |                                      ^";
    assert_eq!(error, expected);
}

#[test]
fn the_mark_is_under_the_place_after_tabs_and_in_long_lines() {
    let tabs = parse("graph {\n\t\tinput %x: i32[T]\n}").unwrap_err().to_string();
    assert!(tabs.contains("\n 2 | \t\tinput %x: i32[T]\n   | \t\t      ^"), "{tabs}");
    let long = format!("graph {{\n  weight %{}: bf16[Q]\n}}", "a".repeat(500));
    let error = parse(&long).unwrap_err();
    let shown = error.to_string();
    let lines: Vec<&str> = shown.lines().rev().take(2).collect();
    assert_eq!(lines[0].chars().count(), lines[0].find('^').unwrap() + 1);
    assert_eq!(lines[1].chars().nth(lines[0].find('^').unwrap()), Some('['), "{shown}");
    assert!(lines[1].chars().count() < 250, "{shown}");
}

#[test]
fn all_that_the_verifier_finds_is_shown_at_its_line() {
    let text =
        SMALL.replacen("%y: bf16[T, 2, 4] =", "%y: bf16[T, 8] =", 1).replacen("%x: bf16[T, 8] =", "%x: f16[T, 8] =", 1);
    let error = parse(&text).unwrap_err();
    let places: Vec<(usize, usize)> = error.diagnostics.iter().map(|found| (found.line, found.column)).collect();
    assert!(places.contains(&(7, 3)) && places.contains(&(12, 3)), "{error}");
    assert!(error.to_string().contains("it is declared f16[T, 8], but embedding gives bf16[T, 8]"), "{error}");
    assert!(parse_unverified(&text).is_ok());
}

#[test]
fn every_operation_of_the_catalogue_is_read_and_printed() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let graph = random_graph(&mut random);
        seen.extend(graph.ops().iter().map(|op| op.kind.name()));
    }
    let all: std::collections::BTreeSet<&str> = op::catalogue::OPS.iter().map(|info| info.name).collect();
    assert_eq!(seen, all, "random graphs have every operation, and their texts are read back in laws.rs");
}

#[test]
fn the_catalogue_has_the_attributes_that_the_text_form_has() {
    for seed in 0..400 {
        let graph = random_graph(&mut Random::new(seed));
        for op in graph.ops() {
            let text = op.kind.to_string();
            let info = op::catalogue::find(op.kind.name()).unwrap();
            let attributes = text.split_once('<').map_or("", |(_, attributes)| attributes);
            let written = info.attributes.iter().filter(|(name, _)| attributes.contains(&format!("{name}=")));
            assert_eq!(written.count(), attributes.matches('=').count(), "{text}");
            // Only the scale of a projection may be left out.
            let optional = usize::from(op.kind.name() == "linear");
            assert!(attributes.matches('=').count() + optional >= info.attributes.len(), "{text}");
        }
    }
}

#[test]
fn a_layer_is_an_excerpt_with_what_it_reads_from_before() {
    let mut graph = parse(SMALL).unwrap();
    let layer = print_layer(&graph, 3).unwrap();
    assert!(layer.starts_with("; layer 3: launches 1\n  input %slots: i32[T]\n  state<layer=3>"), "{layer}");
    assert!(layer.contains("  ; from before: %x: bf16[T, 8]\n"), "{layer}");
    assert!(!layer.contains("%table") && !layer.contains("reshape"), "{layer}");
    assert_eq!(print_layer(&graph, 2), None);
    let picture = dot(&graph, |_| true);
    assert!(picture.starts_with("digraph") && picture.contains("subgraph cluster_1"), "{picture}");
    graph.flatten();
    assert!(dot(&graph, |launch| launch == 0).matches("->").count() == 0);
}

/// A text that was printed, with some of it cut, doubled, moved or replaced.
fn mutated(random: &mut Random) -> String {
    let mut graph = random_graph(random);
    optimize(&mut graph, &passes_of(OptimizationLevel::O2, true), true, &Moody(random.next())).unwrap();
    let mut bytes = graph.to_string().into_bytes();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        let end = (at + random.below(12)).min(bytes.len());
        match random.below(5) {
            0 => drop(bytes.drain(at..end)),
            1 => {
                let part = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, part);
            }
            2 => bytes[at] = b"%{}()<>[],=:;\"\\ \n0Tx-"[random.below(21)],
            3 => bytes.truncate(at + 1),
            _ => {
                let number = [&b"18446744073709551615"[..], b"99999999999999999999", b"0", b"-1", b"1e39", b"NaN"];
                bytes.splice(at..at, number[random.below(6)].iter().copied());
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn spoiled_texts_end_with_an_error_or_with_a_graph_that_prints_and_reads_back(seed: u64) {
        let mut random = Random::new(seed);
        for _ in 0..20 {
            let text = mutated(&mut random);
            match parse(&text) {
                Err(error) => prop_assert!(!error.diagnostics.is_empty() && !error.to_string().is_empty()),
                Ok(graph) => prop_assert_eq!(parse(&graph.to_string()).unwrap(), graph),
            }
            // Also what is no sound graph can be printed, verified and read back.
            if let Ok(graph) = parse_unverified(&text) {
                let _ = verify::verify(&graph).map_err(|error| error.to_string());
                prop_assert!(parse_unverified(&graph.to_string()).is_ok(), "{}", graph);
            }
        }
    }

    #[test]
    fn random_text_never_panics(text in "(graph \\{ )?(input |weight %w: |group \\{|return )?[\\PC\n]{0,200}") {
        if let Ok(graph) = parse(&text) {
            prop_assert_eq!(parse(&graph.to_string()).unwrap(), graph);
        }
    }
}
