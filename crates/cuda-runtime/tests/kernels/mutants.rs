//! Mutants of the kernels: each lacks one barrier, wait or bounds check, or rounds the wrong way. The checks find them.

use std::collections::HashMap;

use super::{cases, texts};

/// A kernel's text with one thing changed.
struct Mutant {
    what: &'static str,
    line: usize,
    text: String,
}

/// What a line guards and the line that does not.
fn mutation(lines: &[&str], index: usize) -> Option<(&'static str, String)> {
    let line = lines[index].trim();
    let words: Vec<&str> = line.trim_end_matches(';').split_whitespace().collect();
    match words.as_slice() {
        ["bar.sync" | "barrier.sync", ..] => Some(("barrier", String::new())),
        ["bar.warp.sync", ..] => Some(("warp barrier", String::new())),
        ["cp.async.wait_group", ..] => Some(("wait", String::new())),
        // How many bytes of a copy there are: all of them, instead of none where they are absent.
        ["selp.b32", to, "16,", "0,", _] => Some(("size", format!("mov.b32 {to} 16;"))),
        ["cvt.rn.bf16.f32", ..] => Some(("rounding", line.replace(".rn.", ".rz."))),
        [guard, "bra", label] if guard.starts_with('@') => {
            let target = lines.iter().position(|line| line.trim() == format!("{label}:"));
            // A loop's way back guards nothing; without it the loop runs once, which is no question of bounds.
            target.is_some_and(|target| target > index).then(|| ("branch", String::new()))
        }
        _ => None,
    }
}

fn mutants(text: &str) -> Vec<Mutant> {
    let lines: Vec<&str> = text.lines().collect();
    let mutant = |index: usize| {
        let (what, changed) = mutation(&lines, index)?;
        let mut lines = lines.clone();
        lines[index] = &changed;
        Some(Mutant { what, line: index + 1, text: lines.join("\n") })
    };
    (0..lines.len()).filter_map(mutant).collect()
}

#[test]
fn mutants_are_found() {
    let (mut found, mut survivors) = (0, Vec::new());
    for (kernel, file, check) in cases() {
        let begin = std::time::Instant::now();
        let mut numbers = HashMap::new();
        let mut count = 0;
        for mutant in mutants(&texts::kernel(file, "sm_80", &kernel)) {
            count += 1;
            let number = numbers.entry(mutant.what).or_insert(0usize);
            *number += 1;
            if (0..4).any(|_| check(&mutant.text, &kernel).is_err()) {
                found += 1;
            } else {
                survivors.push(format!("{kernel} {} {number} line {}", mutant.what, mutant.line));
            }
        }
        eprintln!("{kernel} {count} {:?}", begin.elapsed());
    }
    println!("{found} found");
    assert!(survivors.is_empty(), "{}", survivors.join("\n"));
}
