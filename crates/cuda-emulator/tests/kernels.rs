//! What nvcc makes of whole kernels: right as it is, and found to be wrong when a barrier, a wait or a bounds check
//! is left out.

#![allow(clippy::print_stdout, reason = "the counts of mutants are worth seeing")]

#[path = "common/cases.rs"]
mod cases;
mod common;

use std::time::Instant;

use cases::{CASES, cooperative, text};
use common::{Argument, Bench, Shape, at, shape};

const TARGETS: [&str; 2] = ["sm_80", "sm_90a"];

#[test]
fn kernels_are_right() {
    for target in TARGETS {
        for case in CASES.iter().filter(|case| case.file != "basic" || target == "sm_80") {
            for _ in 0..3 {
                let mut bench =
                    Bench::new(&text(case.file, target)).unwrap_or_else(|error| panic!("{}: {error}", case.file));
                if let Err(message) = (case.check)(&mut bench) {
                    panic!("{} for {target}: {message}", case.kernel);
                }
            }
        }
        let mut bench = Bench::new(&text("cooperative", target)).unwrap_or_else(|error| panic!("{error}"));
        cooperative(&mut bench).unwrap_or_else(|message| panic!("normalize for {target}: {message}"));
    }
}

/// A line of a kernel that guards something.
struct Mutation {
    line: usize,
    what: &'static str,
    without: String,
}

/// The lines of a kernel's body.
fn body(text: &str, kernel: &str) -> std::ops::Range<usize> {
    let lines: Vec<&str> = text.lines().collect();
    let begin =
        lines.iter().position(|line| line.contains(&format!(".entry {kernel}("))).unwrap_or_else(|| panic!("{kernel}"));
    let end = (begin..lines.len()).find(|line| lines[*line] == "}").unwrap_or_else(|| panic!("{kernel}"));
    begin..end
}

/// The text without a barrier, a wait or a conditional branch forwards, one at a time.
fn mutations(text: &str, kernel: &str) -> Vec<Mutation> {
    let lines: Vec<&str> = text.lines().collect();
    let mut list = Vec::new();
    for index in body(text, kernel) {
        let line = lines[index].trim();
        let words: Vec<&str> = line.trim_end_matches(';').split_whitespace().collect();
        let what = match words.as_slice() {
            ["bar.sync" | "barrier.sync", ..] => "barrier",
            ["cp.async.wait_group", ..] => "wait",
            [guard, "bra", label] if guard.starts_with('@') => {
                let target = lines.iter().position(|line| line.trim() == format!("{label}:"));
                // A loop's way back guards nothing; without it the loop runs once, which is no question of bounds.
                if target.is_some_and(|target| target > index) { "branch" } else { continue }
            }
            _ => continue,
        };
        let mut kept = lines.clone();
        kept[index] = "";
        list.push(Mutation { line: index + 1, what, without: kept.join("\n") });
    }
    list
}

/// A reason below.
const SAME: &str = "all lanes have the same value, so it does not matter that all store it";
/// A reason below.
const CASE: &str = "chooses a special case of values (NaN, infinity, zero, one) that these inputs do not have";
/// A reason below.
const ONE: &str = "from here on one warp is left, whose lanes run together";
/// A reason below.
const ZERO: &str = "the weight of a warp without tokens is zero anyway, as an exponential of minus infinity";

/// Mutants that compute the same, with the reason. Each is a kernel, a kind and its number among those of that kind.
const HARMLESS: [(&str, &str, usize, &str); 26] = [
    ("total", "barrier", 3, ONE),
    ("total", "barrier", 4, ONE),
    ("total", "barrier", 5, ONE),
    ("total", "barrier", 6, ONE),
    ("total", "barrier", 7, ONE),
    ("rms_norm", "branch", 2, SAME),
    ("rope", "branch", 2, CASE),
    ("rope", "branch", 4, CASE),
    ("rope", "branch", 5, CASE),
    ("rope", "branch", 6, CASE),
    ("rope", "branch", 8, CASE),
    ("rope", "branch", 9, CASE),
    ("quantize", "branch", 2, SAME),
    ("quantize", "branch", 4, SAME),
    ("quantize", "branch", 7, CASE),
    ("quantize", "branch", 8, CASE),
    ("gemv", "branch", 5, SAME),
    ("gemm", "wait", 2, "stands in the first half of a loop unrolled twice, which is never the last step"),
    ("gemm", "wait", 5, "stands in the odd step after that loop, which is always the last one"),
    ("gemm", "branch", 6, "never taken: it asks whether another step follows the last one"),
    ("gemm", "barrier", 6, "comes after the last reads of shared memory"),
    ("attention", "branch", 4, SAME),
    ("attention", "branch", 6, ZERO),
    ("attention", "branch", 7, ZERO),
    ("attention", "branch", 8, ZERO),
    ("attention", "branch", 9, ZERO),
];

#[test]
fn mutants_are_found() {
    let (mut found, mut survivors) = (0, Vec::new());
    for case in &CASES {
        let original = text(case.file, "sm_80");
        let mut numbers = std::collections::HashMap::new();
        for mutation in mutations(&original, case.kernel) {
            let number = numbers.entry(mutation.what).or_insert(0usize);
            *number += 1;
            let harmless = HARMLESS
                .iter()
                .any(|(kernel, what, which, _)| (*kernel, *what, *which) == (case.kernel, mutation.what, *number));
            // A schedule may hide a mistake, so each has several.
            let caught = (0..4).any(|_| {
                let mut bench = Bench::new(&mutation.without).unwrap_or_else(|error| panic!("{error}"));
                (case.check)(&mut bench).is_err()
            });
            match (caught, harmless) {
                (true, false) => found += 1,
                (false, true) => {}
                (caught, _) => {
                    let state = if caught { "is found but listed as harmless" } else { "is not found" };
                    survivors
                        .push(format!("{} line {}: {} {number} {state}", case.kernel, mutation.line, mutation.what));
                }
            }
        }
    }
    println!("{found} mutants found, {} harmless:", HARMLESS.len());
    for (kernel, what, number, reason) in HARMLESS {
        println!("{kernel}, {what} {number}: {reason}");
    }
    assert!(survivors.is_empty(), "{}", survivors.join("\n"));
}

/// `cargo test -p allotrope-cuda-emulator --test kernels -- --ignored --nocapture speed` prints how fast kernels run.
#[test]
#[ignore = "prints times and asserts nothing"]
fn speed() {
    const SIDE: usize = 1024;
    let runs: [(&str, &str, Shape, &[usize]); 4] = [
        ("basic", "add", shape(4096, 256), &[1 << 20]),
        ("rows", "rms_norm", shape(64, 128), &[SIDE]),
        ("products", "gemv", shape(256, 128), &[SIDE, SIDE]),
        ("products", "gemm", Shape { grid: [8, 8, 1], ..shape(1, 64) }, &[256, SIDE]),
    ];
    for (file, kernel, shape, sizes) in runs {
        let mut bench = Bench::new(&text(file, "sm_80")).unwrap_or_else(|error| panic!("{error}"));
        let regions: Vec<_> = (0..3).map(|_| bench.put(&vec![0; 4 << 20])).collect();
        let mut arguments: Vec<Argument> = regions.iter().map(|region| at(region)).collect();
        arguments.extend(sizes.iter().map(|size| Argument::Word(*size as u32)));
        if kernel == "rms_norm" {
            arguments.push(Argument::Float(1e-5));
        }
        let mut best = f64::INFINITY;
        let mut instructions = 0;
        for _ in 0..5 {
            let begin = Instant::now();
            let counts = bench.launch(kernel, shape, &arguments).unwrap_or_else(|report| panic!("{report}"));
            best = best.min(begin.elapsed().as_secs_f64());
            instructions = counts.thread_instructions;
        }
        let rate = instructions as f64 / best / 1e6;
        println!("{kernel}: {:.1} ms, {rate:.0} M thread-instructions a second", best * 1e3);
    }
}
