//! Mutants of the kernels: each lacks one barrier, wait or bounds check, or rounds the wrong way. The checks find them.

use std::collections::{BTreeMap, HashMap};

use super::{cases, texts};

/// A kernel's text with one thing changed.
struct Mutant {
    what: &'static str,
    line: usize,
    text: String,
}

/// A rounding to nearest that rounds toward zero: the digits that the type has no room for are cut off first.
fn cut_off(name: &str, to: &str, before: &str, from: &str, mask: &str) -> String {
    let cut = format!("mov.b32 %cut0, {from}; and.b32 %cut0, %cut0, {mask}; mov.b32 %cut1, %cut0;");
    format!("{{ .reg .b32 %cut0; .reg .f32 %cut1; {cut} {name} {to} {before} %cut1; }}")
}

/// What a line guards and the line that does not.
fn mutation(lines: &[&str], index: usize) -> Option<(&'static str, String)> {
    let line = lines[index].trim();
    let words: Vec<&str> = line.trim_matches(['{', '}', ' ']).trim_end_matches(';').split_whitespace().collect();
    match words.as_slice() {
        ["bar.sync" | "barrier.sync", ..] => Some(("barrier", String::new())),
        ["bar.warp.sync", ..] => Some(("warp barrier", String::new())),
        ["cp.async.wait_group", ..] => Some(("wait", String::new())),
        // How many bytes of a copy there are: all of them, instead of none where they are absent.
        ["selp.b32", to, "16,", "0,", _] => Some(("size", format!("mov.b32 {to} 16;"))),
        ["cvt.rn.bf16.f32", ..] => Some(("rounding", line.replace(".rn.", ".rz."))),
        [name @ "cvt.rn.f16.f32", to, from] => Some(("rounding", cut_off(name, to, "", from, "0xffffe000"))),
        [name @ "cvt.rn.satfinite.e4m3x2.f32", to, high, low] => {
            Some(("rounding", cut_off(name, to, high, low, "0xfff00000")))
        }
        // Rounding to e4m3 by integers: what is added to the nearest, the subnormal numbers, and the largest.
        ["add.s32", to, from, "524287"] => {
            Some(("rounding by code", format!("mov.b32 {to} {};", from.trim_end_matches(','))))
        }
        ["min.u32", to, from, "1138753536"] => Some(("clamp", format!("mov.b32 {to} {};", from.trim_end_matches(',')))),
        ["add.rn.f32", ..] if index > 0 && lines[index - 1].contains("0f46800000") => {
            Some(("rounding by code", line.replace(".rn.", ".rz.")))
        }
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

/// Why a mutant may compute the same as the kernel, if there is a reason.
fn excuse(kernel: &str, mutant: &Mutant, lines: &[&str]) -> Option<&'static str> {
    let index = mutant.line - 1;
    if mutant.what == "warp barrier" {
        return Some("the machine's lanes meet again in time, or run together; a GPU promises neither");
    }
    if mutant.what != "branch" {
        return None;
    }
    let guard = lines[index].trim().trim_start_matches('@').split_whitespace().next()?;
    let condition = (0..index).rev().find(|line| {
        let words: Vec<&str> = lines[*line].split_whitespace().collect();
        matches!(words.as_slice(), [name, to, ..] if name.starts_with("setp.") && to.trim_end_matches(',') == guard)
    })?;
    let asked = |line: &str| Some(line.trim().strip_prefix("setp.ge.u32")?.split_once(", ")?.1.to_owned());
    let bound = asked(lines[condition]);
    if kernel == "sample_f32" && bound.is_some() && lines.iter().filter(|line| asked(line) == bound).count() > 1 {
        return Some("the bound is asked for twice: by the loop, and for its first token");
    }
    let operands: Vec<&str> = lines[condition].trim().trim_end_matches(';').split([' ', ',', '\t']).collect();
    let before = lines[condition - 1].trim();
    match (operands[0], *operands.last()?) {
        ("setp.eq.s32", "0") if before.starts_with("and.b32") && before.ends_with(", 7;") => {
            Some("leads to the way for whole eights, and the other way is right for all")
        }
        ("setp.eq.s32" | "setp.eq.s64", "0") => Some("asks whether a loop has a round at all, and it always has"),
        ("setp.eq.s64", input) if input.starts_with("%rd") => {
            Some("asks whether the inputs are there already; without it they are made again")
        }
        ("setp.ne.s32", "0") if before.ends_with(", 31;") || before.starts_with("bar.warp.sync") => {
            Some("lets one lane store, and all have the same value")
        }
        ("setp.lt.u32", "2139095040") if kernel == "sample_f32" => {
            Some("asks whether the logarithm's argument is above zero already, and this one is below")
        }
        ("setp.ge.u32", _) if before.starts_with("bar.sync") => {
            Some("without it zeros are brought behind the last slab, and nobody reads them")
        }
        _ => None,
    }
}

#[test]
fn mutants_are_found() {
    let (mut kernels, mut found, mut missed) = (0, 0, Vec::new());
    let mut harmless: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let cases = cases();
    for ((kernel, file, check), target) in cases.iter().flat_map(|case| texts::TARGETS.map(|target| (case, target))) {
        let text = texts::kernel(file, target, kernel);
        let lines: Vec<&str> = text.lines().collect();
        let mut numbers = HashMap::new();
        for mutant in mutants(&text) {
            let number = numbers.entry(mutant.what).or_insert(0usize);
            *number += 1;
            let name = format!("{kernel} for {target}: {} {number}", mutant.what);
            // A schedule or a size may hide a mistake, so each has several; fewer if it is known to do no harm.
            let excuse = excuse(kernel, &mutant, &lines);
            let tries = if excuse.is_some() { 1 } else { 40 };
            if (0..tries).any(|_| check(&mutant.text, kernel).is_err()) {
                found += 1;
            } else if let Some(reason) = excuse {
                harmless.entry(reason).or_default().push(name);
            } else {
                missed.push(format!("{name}, line {}: {}", mutant.line, lines[mutant.line - 1]));
            }
        }
        kernels += 1;
    }
    let count: usize = harmless.values().map(Vec::len).sum();
    allotrope_cuda_emulator::testing::tell(format_args!(
        "{kernels} kernels' texts: {found} mutants found, {count} harmless"
    ));
    for (reason, mutants) in &harmless {
        println!("{reason}:\n    {}", mutants.join("\n    "));
    }
    assert!(missed.is_empty(), "not found:\n{}", missed.join("\n"));
}
