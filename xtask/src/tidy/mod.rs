//! `cargo xtask tidy`: the rules of the source tree that no compiler checks. Each rule is one function from files to
//! findings, and has a test that shows that it can fail. The last test runs all of them on this repository.

mod files;
mod layering;
mod sources;
mod tokens;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use crate::error::TaskError;
use crate::workspace;
use tokens::Tokens;

/// A place that breaks a rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// Path below the repository's top folder, with `/`.
    path: String,
    /// Line, from 1; 0 for the file as a whole.
    line: usize,
    /// What is wrong and what to do.
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Finding { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{}:{line}: {}", self.path, self.message),
        }
    }
}

/// A text file of the repository.
struct TextFile {
    /// Path below the repository's top folder, with `/`.
    path: String,
    text: String,
}

/// A Rust source file.
struct RustFile {
    path: String,
    text: String,
    tokens: Tokens,
    /// Whether the whole file belongs to tests, benches or examples.
    is_test: bool,
}

/// Checks the repository and prints what breaks a rule.
///
/// # Errors
/// If anything does, or a file can't be read.
pub(crate) fn run() -> Result<(), TaskError> {
    let findings = check(&workspace::root())?;
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        count => Err(TaskError::Message(format!("{count} places break a rule of the source tree"))),
    }
}

/// All findings in a repository, sorted.
///
/// # Errors
/// If a file can't be read.
fn check(root: &Path) -> Result<Vec<Finding>, TaskError> {
    let files = text_files(root)?;
    let mut findings = Vec::new();
    let rust_files = rust_files(&files, &mut findings);
    for file in &rust_files {
        for rule in sources::RULES {
            findings.extend(rule(file));
        }
    }
    for file in &files {
        for rule in files::RULES {
            findings.extend(rule(file));
        }
    }
    findings.extend(files::readme_in_each_crate(&files));
    findings.extend(layering::check(&files));
    findings.sort();
    Ok(findings)
}

/// Every file of the repository that is UTF-8 text.
fn text_files(root: &Path) -> Result<Vec<TextFile>, TaskError> {
    let mut files = Vec::new();
    for path in workspace::files_below(root)? {
        let bytes = std::fs::read(&path).map_err(TaskError::file(&path))?;
        let Ok(text) = String::from_utf8(bytes) else { continue };
        let relative = path.strip_prefix(root).unwrap_or(&path);
        files.push(TextFile { path: relative.to_string_lossy().replace('\\', "/"), text });
    }
    Ok(files)
}

/// The Rust files among `files`, tokenized. One that can't be tokenized is a finding.
fn rust_files(files: &[TextFile], findings: &mut Vec<Finding>) -> Vec<RustFile> {
    let mut rust_files = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        match Tokens::parse(&file.text) {
            Ok(tokens) => {
                let is_test = ["tests", "benches", "examples"]
                    .iter()
                    .any(|folder| file.path.split('/').any(|part| part == *folder));
                rust_files.push(RustFile { path: file.path.clone(), text: file.text.clone(), tokens, is_test });
            }
            Err(message) => findings.push(Finding::new(&file.path, 0, format!("is not Rust: {message}"))),
        }
    }
    let test_modules: BTreeSet<String> = rust_files.iter().flat_map(test_module_paths).collect();
    for file in &mut rust_files {
        let stem = file.path.trim_end_matches(".rs");
        file.is_test |= test_modules.iter().any(|module| stem == module || stem.starts_with(&format!("{module}/")));
    }
    rust_files
}

/// Where the modules lie that a file declares as `#[cfg(test)] mod NAME;`, without `.rs`.
fn test_module_paths(file: &RustFile) -> Vec<String> {
    let stem = file.path.trim_end_matches(".rs");
    let folder = match stem.rsplit_once('/') {
        Some((folder, "lib" | "main" | "mod")) => folder,
        _ => stem,
    };
    file.tokens.test_modules.iter().map(|name| format!("{folder}/{name}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn this_repository_is_tidy() {
        let findings = check(&workspace::root()).unwrap();
        let lines: Vec<String> = findings.iter().map(Finding::to_string).collect();
        assert!(lines.is_empty(), "{} findings:\n{}", lines.len(), lines.join("\n"));
    }

    #[test]
    fn files_of_test_modules_are_tests() {
        let file = |path: &str, text: &str| TextFile { path: path.into(), text: text.into() };
        let files = [
            file("crates/a/src/lib.rs", "#[cfg(test)]\nmod testing;\nmod b;"),
            file("crates/a/src/testing.rs", ""),
            file("crates/a/src/testing/more.rs", ""),
            file("crates/a/src/b.rs", "#[cfg(test)] mod tests;"),
            file("crates/a/src/b/tests.rs", ""),
            file("crates/a/benches/c.rs", ""),
            file("crates/a/src/d.rs", "fn {"),
        ];
        let mut findings = Vec::new();
        let tests: Vec<bool> = rust_files(&files, &mut findings).iter().map(|file| file.is_test).collect();
        assert_eq!(tests, [false, true, true, false, true, true]);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].to_string().starts_with("crates/a/src/d.rs: is not Rust"));
    }
}
