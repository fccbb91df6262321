//! Rules on Rust sources.

use super::{Finding, RustFile};

/// A rule on one Rust file.
type Rule = fn(&RustFile) -> Vec<Finding>;

/// Every rule on Rust files.
pub(super) const RULES: [Rule; 8] = [
    module_documentation,
    environment_only_in_config,
    unsafe_is_fenced_and_justified,
    instruction_sets_only_in_cpu_runtime,
    graph_is_pure,
    no_leftovers,
    panics_are_justified,
    allowances_have_reasons,
];

/// Folders in which `unsafe` may be written.
const UNSAFE_FOLDERS: [&str; 4] =
    ["crates/cpu-runtime/", "crates/cuda-runtime/", "crates/cuda-emulator/", "crates/model/src/weights/"];

/// How many lines above an `unsafe` block its SAFETY comment may begin.
const SAFETY_COMMENT_LINES: usize = 8;

fn module_documentation(file: &RustFile) -> Vec<Finding> {
    let first = file.text.lines().find(|line| !line.trim().is_empty());
    match first {
        Some(line) if line.starts_with("//!") => Vec::new(),
        _ => vec![Finding::new(&file.path, 1, "begins without module documentation (`//!`)")],
    }
}

fn environment_only_in_config(file: &RustFile) -> Vec<Finding> {
    // `BLESS=1` tells one test to write down what it found, `ALLOTROPE_TEST_ROOT` where what tests read has been taken to,
    // `ALLOTROPE_SOAK_REQUESTS` how long to soak. They are no settings of the product.
    const TESTS: [&str; 3] = ["tests/filetests.rs", "tests/lib.rs", "crates/cli/tests/serve/soak.rs"];
    if file.path.starts_with("crates/config/") || TESTS.contains(&file.path.as_str()) {
        return Vec::new();
    }
    // The emulator is loaded into other programs, which know nothing of our settings; its tests start such programs.
    if file.path.starts_with("crates/cuda-emulator/") {
        return Vec::new();
    }
    const READS: [&str; 7] = ["var", "vars", "var_os", "vars_os", "set_var", "remove_var", "home_dir"];
    let mut findings = Vec::new();
    for name in file.tokens.names_after(&["env", ":", ":"]) {
        if READS.contains(&name.text.as_str()) {
            let message = format!("`env::{}`: only crates/config may use environment variables", name.text);
            findings.push(Finding::new(&file.path, name.line, message));
        }
    }
    for (index, token) in file.tokens.list.iter().enumerate() {
        let compile_time =
            file.tokens.matches(index, &["env", "!"]) || file.tokens.matches(index, &["option_env", "!"]);
        let of_cargo = file.tokens.list.get(index + 3).is_some_and(|literal| literal.text.starts_with("\"CARGO_"));
        if compile_time && !of_cargo {
            let message = "environment variables at compile time: only those that cargo sets (`CARGO_…`)";
            findings.push(Finding::new(&file.path, token.line, message));
        }
    }
    findings
}

fn unsafe_is_fenced_and_justified(file: &RustFile) -> Vec<Finding> {
    let fenced = UNSAFE_FOLDERS.iter().any(|folder| file.path.starts_with(folder));
    let lines: Vec<&str> = file.text.lines().collect();
    let mut findings = Vec::new();
    for (index, token) in file.tokens.list.iter().enumerate().filter(|(_, token)| token.text == "unsafe") {
        if !fenced {
            let message = format!("`unsafe` is allowed in {} alone", UNSAFE_FOLDERS.join(" and "));
            findings.push(Finding::new(&file.path, token.line, message));
            continue;
        }
        let needs_comment = file.tokens.matches(index + 1, &["{"]) || file.tokens.matches(index + 1, &["impl"]);
        let above =
            &lines[token.line.saturating_sub(1 + SAFETY_COMMENT_LINES).min(lines.len())..token.line.min(lines.len())];
        if needs_comment && !above.iter().any(|line| line.contains("SAFETY:")) {
            findings.push(Finding::new(&file.path, token.line, "`unsafe` without a SAFETY comment above it"));
        }
    }
    findings
}

fn instruction_sets_only_in_cpu_runtime(file: &RustFile) -> Vec<Finding> {
    if file.path.starts_with("crates/cpu-runtime/") {
        return Vec::new();
    }
    let mut lines: Vec<usize> = Vec::new();
    for library in ["std", "core"] {
        let names = file.tokens.names_after(&[library, ":", ":"]);
        lines.extend(names.iter().filter(|name| name.text == "arch").map(|name| name.line));
    }
    let message = "instruction sets are the business of crates/cpu-runtime alone";
    lines.into_iter().map(|line| Finding::new(&file.path, line, message)).collect()
}

fn graph_is_pure(file: &RustFile) -> Vec<Finding> {
    if !file.path.starts_with("crates/graph/src/") {
        return Vec::new();
    }
    const OUTSIDE: [&str; 5] = ["fs", "net", "thread", "process", "env"];
    let names = file.tokens.names_after(&["std", ":", ":"]);
    let outside = names.iter().filter(|name| !name.is_test && OUTSIDE.contains(&name.text.as_str()));
    let finding = |line, name: &str| {
        Finding::new(&file.path, line, format!("`std::{name}`: the graph crate knows no files and no threads"))
    };
    outside.map(|name| finding(name.line, &name.text)).collect()
}

fn no_leftovers(file: &RustFile) -> Vec<Finding> {
    const LEFTOVERS: [&str; 3] = ["todo", "unimplemented", "dbg"];
    let found =
        file.tokens.list.iter().enumerate().filter(|(index, token)| {
            LEFTOVERS.contains(&token.text.as_str()) && file.tokens.matches(index + 1, &["!"])
        });
    found.map(|(_, token)| Finding::new(&file.path, token.line, format!("`{}!` is left over", token.text))).collect()
}

/// `unwrap` and `expect` are found by clippy, which knows types; what clippy is told not to look at is found by
/// [`allowances_have_reasons`].
fn panics_are_justified(file: &RustFile) -> Vec<Finding> {
    if file.is_test {
        return Vec::new();
    }
    let panics = file.tokens.list.iter().enumerate().filter(|(index, token)| {
        ["panic", "unreachable"].contains(&token.text.as_str())
            && file.tokens.matches(index + 1, &["!"])
            && !token.is_test
            && !token.may_panic
    });
    let finding = |line, name: &str| {
        let message = format!(
            "`{name}!` outside tests: return an error, or say why it can't happen with `#[allow(clippy::{name}, reason = \"…\")]`"
        );
        Finding::new(&file.path, line, message)
    };
    panics.map(|(_, token)| finding(token.line, &token.text)).collect()
}

fn allowances_have_reasons(file: &RustFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    for allowance in &file.tokens.allowances {
        if allowance.text.contains("clippy::too_many_lines") {
            findings.push(Finding::new(&file.path, allowance.line, "a function of over 100 lines: split it"));
        } else if !file.is_test && !allowance.is_test && !allowance.text.contains("reason=") {
            findings.push(Finding::new(&file.path, allowance.line, format!("`{}` without a reason", allowance.text)));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::tokens::Tokens;
    use super::*;

    /// Lines that a rule finds in a source at a path.
    fn lines(rule: Rule, path: &str, source: &str) -> Vec<usize> {
        let tokens = Tokens::parse(source).unwrap();
        let is_test = path.contains("/tests/");
        let file = RustFile { path: path.into(), text: source.into(), tokens, is_test };
        rule(&file).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn module_documentation_comes_first() {
        assert_eq!(lines(module_documentation, "a.rs", "use a;\n//! doc"), [1]);
        assert_eq!(lines(module_documentation, "a.rs", ""), [1]);
        assert!(lines(module_documentation, "a.rs", "\n//! Says.\nuse a;").is_empty());
    }

    #[test]
    fn the_environment_is_read_in_config_alone() {
        let source = "use std::env::{self, var};\nfn f() {\n env::vars_os();\n env!(\"HOME\");\n option_env!(\"X\"); }";
        assert_eq!(lines(environment_only_in_config, "crates/cli/src/a.rs", source), [1, 3, 4, 5]);
        assert!(lines(environment_only_in_config, "crates/config/src/a.rs", source).is_empty());
        let fine = "fn f() { std::env::args(); env!(\"CARGO_MANIFEST_DIR\"); command.env(\"A\", \"env::var\"); }";
        assert!(lines(environment_only_in_config, "crates/cli/src/a.rs", fine).is_empty());
    }

    #[test]
    fn unsafe_is_found_and_wants_a_comment() {
        let rule = unsafe_is_fenced_and_justified;
        let bare = "fn f() {\n    unsafe { g() }\n}";
        let justified = "fn f() {\n    // SAFETY: g has no conditions.\n    unsafe { g() }\n}";
        assert_eq!(lines(rule, "crates/engine/src/a.rs", justified), [3]);
        assert_eq!(lines(rule, "crates/cpu-runtime/src/a.rs", bare), [2]);
        assert!(lines(rule, "crates/cpu-runtime/src/a.rs", justified).is_empty());
        assert!(lines(rule, "crates/model/src/weights/a.rs", "// unsafe\nfn f() { \"unsafe\"; }").is_empty());
    }

    #[test]
    fn instruction_sets_are_found() {
        let source = "use std::arch::x86_64::*;\nuse core::{arch, mem};";
        assert_eq!(lines(instruction_sets_only_in_cpu_runtime, "crates/model/src/a.rs", source), [1, 2]);
        assert!(lines(instruction_sets_only_in_cpu_runtime, "crates/cpu-runtime/src/a.rs", source).is_empty());
    }

    #[test]
    fn the_graph_crate_touches_nothing() {
        let source = "use std::fs::File;\nfn f() { std::thread::spawn(g); }\n#[cfg(test)]\nmod t { use std::fs; }";
        assert_eq!(lines(graph_is_pure, "crates/graph/src/a.rs", source), [1, 2]);
        assert!(lines(graph_is_pure, "crates/runtime/src/a.rs", source).is_empty());
    }

    #[test]
    fn leftovers_are_found() {
        assert_eq!(
            lines(no_leftovers, "a.rs", "fn f() {\n todo!();\n unimplemented!(\"x\");\n dbg!(1); todo(); }"),
            [2, 3, 4]
        );
    }

    #[test]
    fn panics_need_a_reason() {
        let source = "fn f() {\n panic!(\"x\") }\n#[allow(clippy::unreachable, reason = \"r\")]\nfn g() { unreachable!() }\n\
                      fn h() {\n unreachable!() }\n#[cfg(test)] mod t { fn f() { panic!() } }";
        assert_eq!(lines(panics_are_justified, "crates/a/src/a.rs", source), [2, 6]);
        assert!(lines(panics_are_justified, "crates/a/tests/a.rs", source).is_empty());
    }

    #[test]
    fn allowances_need_a_reason_and_length_has_none() {
        let source = "#[allow(dead_code)]\nfn f() {}\n#[expect(dead_code, reason = \"r\")]\nfn g() {}\n\
                      #[allow(clippy::too_many_lines, reason = \"r\")]\nfn h() {}\n#[cfg(test)]\n#[allow(dead_code)]\nfn i() {}";
        assert_eq!(lines(allowances_have_reasons, "crates/a/src/a.rs", source), [1, 5]);
        assert_eq!(lines(allowances_have_reasons, "crates/a/src/a.rs", "#![allow(missing_docs)]\nfn f() {}"), [1]);
    }
}
