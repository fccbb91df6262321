//! Any text ends with an error that points into it, or with a graph that prints, verifies and reads back.
#![no_main]

use allotrope_graph::text::{parse, parse_unverified};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match parse(text) {
        Ok(graph) => assert_eq!(parse(&graph.to_string()).as_ref(), Ok(&graph)),
        Err(error) => {
            let lines = text.split('\n').count();
            assert!(error.diagnostics.iter().all(|found| (1..=lines).contains(&found.line) && found.column > 0));
            assert!(!error.to_string().is_empty());
        }
    }
    if let Ok(graph) = parse_unverified(text) {
        let _ = allotrope_graph::verify::verify(&graph).map_err(|error| error.to_string());
        assert!(parse_unverified(&graph.to_string()).is_ok());
    }
});
