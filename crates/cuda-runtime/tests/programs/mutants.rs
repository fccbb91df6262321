//! Mutants of generated code: each lacks one barrier, wait, bounds check or clamp, or rounds the wrong way. The checks find them.

use std::collections::{BTreeMap, HashMap};

use allotrope_cuda_runtime::lower::Templates;

use super::bench::{Code, Step, generate};
use super::cases::cases;
use super::common::seed;

/// A kernel's text with one thing changed.
struct Mutant {
    what: &'static str,
    /// The first line that is changed.
    index: usize,
    text: String,
}

/// The lines of a kernel, and which of them are generated.
struct Lines<'t> {
    all: Vec<&'t str>,
    is_row_program: bool,
}

impl<'t> Lines<'t> {
    fn new(text: &'t str) -> Self {
        Self { all: text.lines().map(str::trim).collect(), is_row_program: text.contains(".entry row_program(") }
    }

    /// Generated registers and labels have names that the compiler's have not; a barrier is known by its neighbours.
    fn is_generated(&self, index: usize) -> bool {
        let names = |index: usize| self.all.get(index).is_some_and(|line| line.contains("%g") || line.contains("$G"));
        let is_barrier = self.all[index].starts_with("bar.sync");
        self.is_row_program || names(index) || is_barrier && names(index + 1) && names(index.saturating_sub(1))
    }

    /// The words of a line, without commas.
    fn words(&self, index: usize) -> Vec<&'t str> {
        self.all[index].split([' ', ',', ';', '\t']).filter(|word| !word.is_empty()).collect()
    }

    /// The words of the last line before another one that writes a register.
    fn definition(&self, before: usize, register: &str) -> Option<(usize, Vec<&'t str>)> {
        let writes = |index: &usize| {
            let words = self.words(*index);
            let place = usize::from(words.first().is_some_and(|word| word.starts_with('@'))) + 1;
            let stores = words.iter().take(2).any(|word| word.starts_with("st.") || word.starts_with("bra"));
            let names = |word: &&str| word.trim_matches(['{', '}']) == register;
            // A move may take a word apart.
            let parts = 1 + usize::from(words.get(place).is_some_and(|word| word.starts_with('{')));
            !stores && words.iter().skip(place).take(parts).any(names)
        };
        (0..before).rev().find(writes).map(|index| (index, self.words(index)))
    }

    fn changed(&self, changes: &[(usize, String)]) -> String {
        let mut lines: Vec<&str> = self.all.clone();
        for (index, text) in changes {
            lines[*index] = text;
        }
        lines.join("\n")
    }
}

/// A rounding to a storage type toward zero: the digits that it has no room for are cut off first.
fn cut_off(line: &str, words: &[&str], mask: &str) -> String {
    let [name, to, high, low] = words else { return line.to_owned() };
    format!(
        "{{ .reg .b32 %m<2>; .reg .f32 %n<2>; mov.b32 %m0, {high}; and.b32 %m0, %m0, {mask}; mov.b32 %n0, %m0; \
         mov.b32 %m1, {low}; and.b32 %m1, %m1, {mask}; mov.b32 %n1, %m1; {name} {to}, %n0, %n1; }}"
    )
}

/// What one line does to guard something, and the line that does not.
fn mutation(lines: &Lines<'_>, index: usize) -> Option<(&'static str, String)> {
    let (line, words) = (lines.all[index], lines.words(index));
    let before = |text: &str| index > 0 && lines.all[index - 1].contains(text);
    match words.as_slice() {
        ["bar.sync", ..] => Some(("barrier", String::new())),
        ["griddepcontrol.wait"] => Some(("wait", String::new())),
        ["cvt.rn.bf16x2.f32", ..] => Some(("rounding", line.replace(".rn.", ".rz."))),
        ["cvt.rn.f16x2.f32", ..] => Some(("rounding", cut_off(line, &words, "0xffffe000"))),
        ["cvt.rn.satfinite.e4m3x2.f32", ..] => Some(("rounding", cut_off(line, &words, "0xfff00000"))),
        ["cvt.rn.f32.f64", ..] => Some(("rounding of an angle", line.replace(".rn.", ".rz."))),
        ["cvt.rn.f32.s32", ..] => Some(("rounding of a position", line.replace(".rn.", ".rz."))),
        // By integer code: to the nearest, ties to even.
        ["cvt.rni.u32.f32", ..] => Some(("rounding by code", line.replace(".rni.", ".rzi."))),
        ["add.u32", .., "0x7ffff"] => Some(("rounding by code", line.replace("0x7ffff", "0"))),
        ["add.u32", ..] if before("0x7ffff") => Some(("rounding by code", String::new())),
        ["min.u32" | "min.s32" | "max.s32" | "min.f32", to, from, _] => {
            assert_eq!(to, from, "{line}");
            Some(("clamp", String::new()))
        }
        ["selp.f32", to, from, "0f00000000", _] => Some(("mask", format!("mov.f32 {to}, {from};"))),
        [guard, "bra", label] if guard.starts_with('@') => {
            let target = lines.all.iter().position(|line| line.trim_end_matches(':') == *label);
            target.is_some_and(|target| target > index).then(|| ("branch", String::new()))
        }
        [guard, store, ..] if guard.starts_with('@') && store.starts_with("st.") => {
            Some(("guard of a store", line.trim_start_matches(guard).trim().to_owned()))
        }
        _ => None,
    }
}

/// The mutants of what is generated. Eight elements are rounded by two or four instructions in a row, which change together.
fn mutants(lines: &Lines<'_>) -> Vec<Mutant> {
    let mut mutants = Vec::new();
    let mut index = 0;
    while index < lines.all.len() {
        let first = index;
        index += 1;
        if !lines.is_generated(first) {
            continue;
        }
        let Some((what, text)) = mutation(lines, first) else { continue };
        let mut changes = vec![(first, text)];
        let name = lines.words(first)[0];
        while what == "rounding" && changes.len() < 4 && lines.words(index).first() == Some(&name) {
            changes.extend(mutation(lines, index).map(|(_, text)| (index, text)));
            index += 1;
        }
        mutants.push(Mutant { what, index: first, text: lines.changed(&changes) });
    }
    mutants
}

/// Whether a register's number is one of a type already, so that rounding it changes nothing.
fn is_rounded(lines: &Lines<'_>, before: usize, register: &str, rounding: &str) -> bool {
    let Some((index, words)) = lines.definition(before, register) else { return false };
    let rounded = |register: &str| is_rounded(lines, index, register, rounding);
    match (words.as_slice(), rounding) {
        (["selp.f32", _, a, b, _], _) => [a, b].iter().all(|from| **from == "0f00000000" || rounded(from)),
        (["mov.b32" | "mov.f32", .., from], _) => rounded(from),
        (["shl.b32", _, _, "16"] | ["and.b32", _, _, "0xffff0000"], "cvt.rn.bf16x2.f32") => true,
        (["cvt.f32.f16", ..], "cvt.rn.f16x2.f32") => true,
        (["cvt.f32.f16", _, half], _) => rounded(half),
        (["cvt.rn.f16x2.e4m3x2", ..], "cvt.rn.satfinite.e4m3x2.f32") => true,
        _ => false,
    }
}

/// Whether an index is always below a row's width: `add.u32 index, base, element`, where base is eight times `add.u32 chunk,
/// thread, first`, or eight times the thread in a loop.
fn is_within(lines: &Lines<'_>, before: usize, index: &str, width: usize) -> bool {
    let number = |word: &str| word.parse::<usize>().ok();
    let found = || {
        let (at, index) = lines.definition(before, index)?;
        let element = number(index.get(3)?)?;
        let (at, base) = lines.definition(at, index[2])?;
        let chunk = lines.definition(at, base.get(2)?).map(|(_, words)| words);
        let border = (width - 1) / 8;
        // The chunks that the threads of a warp, or of a block, have here.
        let holds_border = match chunk.as_deref() {
            Some(["add.u32", _, _, first]) => {
                let (first, threads) = (number(first)?, if width > 1024 { 128 } else { 32 });
                (first..first + threads).contains(&border)
            }
            _ => true,
        };
        Some(!holds_border || element <= (width - 1) % 8)
    };
    found().unwrap_or(false)
}

/// Whether a line asks if an index is below a register: where a tile ends.
fn is_limit(line: &str, register: &str) -> bool {
    line.starts_with("setp.lt.u32") && line.ends_with(&format!(", {register};"))
}

/// Whether a number was rounded here, and not read.
fn is_computed(lines: &Lines<'_>, before: usize, register: &str) -> bool {
    lines.definition(before, register).is_some_and(|(index, words)| match words.as_slice() {
        ["mov.b32" | "shl.b32" | "and.b32", _, from, ..] => is_computed(lines, index, from),
        [name, ..] => name.starts_with("cvt.rn."),
        [] => false,
    })
}

/// Why a mutant computes the same as the kernel, if there is a reason.
fn excuse(lines: &Lines<'_>, mutant: &Mutant, is_of_angles: bool) -> Option<&'static str> {
    let (index, words) = (mutant.index, lines.words(mutant.index));
    match mutant.what {
        "wait" => Some("the emulator begins no launch before the one in front of it is done; a GPU may"),
        "rounding" => words[2..].iter().all(|from| is_rounded(lines, index, from, words[0])).then_some(ROUNDED),
        "clamp" if words[3].starts_with('%') => {
            Some("beyond a tile is what the block itself has in shared memory, which is not stored")
        }
        "clamp" if lines.all[index + 1..].iter().any(|line| is_limit(line, words[1])) => Some(STORED_AGAIN),
        "clamp" if is_of_angles => {
            Some("an angle beyond the row is computed of a number of the table all the same, and not stored")
        }
        "clamp" => {
            let last: usize = words[3].parse().ok()?;
            is_within(lines, index, words[1], last + 1).then_some(WITHIN)
        }
        "mask" if !lines.is_row_program && is_computed(lines, index, words[2]) => Some(
            "a norm's results are finite or none of the row's is, and beyond the row the product's weight has zeros",
        ),
        "mask" => {
            let (at, condition) = lines.definition(index, words[4])?;
            let width: usize = condition[3].parse().ok()?;
            (condition[0] == "setp.lt.u32" && is_within(lines, at, condition[2], width)).then_some(WITHIN)
        }
        "guard of a store" => Some(STORED_AGAIN),
        "branch" => {
            let (_, condition) = lines.definition(index, words[0].trim_start_matches('@'))?;
            let is_odd = condition.get(3)?.parse().is_ok_and(|width: usize| !width.is_multiple_of(8));
            let is_held = || lines.all[index + 1..].iter().take(12).any(|line| line.starts_with("min.u32"));
            (condition[0] == "setp.ge.u32" && (is_odd || is_held())).then_some(HELD)
        }
        "rounding of a position" => Some("positions are below 2^24 and f32 has all of them"),
        _ => None,
    }
}

const STORED_AGAIN: &str = "beyond the row is its last element again, which would be stored with the value that it has";
const HELD: &str = "beyond the row all is held at its last element, masked in sums, and guarded where it is stored";
const ROUNDED: &str = "the numbers were read in the storage type, or rounded to it before";
const WITHIN: &str = "the element is one of the row in every eight that it has, at this width";

/// Whether one of several batches shows that a text is wrong.
fn is_found(steps: &[Step<'_>], code: &Code, text: &str) -> bool {
    steps.iter().any(|step| step.check(code, 0, text).is_err())
}

#[test]
fn mutants_of_generated_code_are_found() {
    let (mut kernels, mut found, mut missed) = (0, 0, Vec::new());
    let mut harmless: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for case in cases() {
        let code = generate(&case, &Templates::embedded(case.capability).unwrap());
        let steps: Vec<Step<'_>> = (0..8).map(|_| Step::new(&case, seed())).collect();
        let lines = Lines::new(&code.kernels[0][0].text);
        let mut numbers = HashMap::new();
        for mutant in mutants(&lines) {
            let number = numbers.entry(mutant.what).or_insert(0usize);
            *number += 1;
            let name = format!("{}: {} {number}", case.name, mutant.what);
            let excuse = excuse(&lines, &mutant, case.name.starts_with("rope_angles"));
            let tries = if excuse.is_some() { 1 } else { steps.len() };
            if is_found(&steps[..tries], &code, &mutant.text) {
                found += 1;
            } else if let Some(reason) = excuse {
                harmless.entry(reason).or_default().push(name);
            } else {
                missed.push(format!("{name}, line {}: {}", mutant.index + 1, lines.all[mutant.index]));
            }
        }
        kernels += 1;
    }
    let count: usize = harmless.values().map(Vec::len).sum();
    allotrope_cuda_emulator::testing::tell(format_args!(
        "{kernels} generated kernels: {found} mutants found, {count} harmless"
    ));
    for (reason, mutants) in &harmless {
        println!("{} are harmless: {reason}:\n    {}", mutants.len(), mutants.join("\n    "));
    }
    assert!(missed.is_empty(), "{} not found:\n{}", missed.len(), missed.join("\n"));
}
