//! Rules on text files of every kind.

use super::{Finding, TextFile};

/// A rule on one text file.
type Rule = fn(&TextFile) -> Vec<Finding>;

/// Every rule on single text files.
pub(super) const RULES: [Rule; 2] = [length, no_places];

/// The most lines of a source file.
const MAXIMUM_LINES: usize = 800;

/// Endings of files that people write as sources.
const SOURCE_ENDINGS: [&str; 5] = [".rs", ".py", ".sh", ".cu", ".cuh"];

/// Places that mean something on one machine only, or that a reader's package client knows better. Cut in two, so that
/// this file does not break its own rule.
const PLACES: [&str; 7] = [
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/wo", "rk/"),
    concat!("/Us", "ers/"),
    concat!("cra", "tes.io"),
    concat!("py", "pi.org"),
    concat!("python", "hosted.org"),
];

fn length(file: &TextFile) -> Vec<Finding> {
    let lines = file.text.lines().count();
    let is_source = SOURCE_ENDINGS.iter().any(|ending| file.path.ends_with(ending));
    if is_source && lines > MAXIMUM_LINES {
        let message = format!("has {lines} lines; split it by concern (at most {MAXIMUM_LINES})");
        return vec![Finding::new(&file.path, 0, message)];
    }
    Vec::new()
}

fn no_places(file: &TextFile) -> Vec<Finding> {
    // Cargo writes the registry into its lock file in a form of its own.
    if file.path.split('/').next_back() == Some("Cargo.lock") {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        if let Some(place) = PLACES.iter().find(|place| line.contains(**place)) {
            let message = format!("names `{place}`: no paths of one machine and no hosts of package registries");
            findings.push(Finding::new(&file.path, index + 1, message));
        }
    }
    findings
}

/// Every folder with a `Cargo.toml` has a `README.md`, the top folder among them.
pub(super) fn readme_in_each_crate(files: &[TextFile]) -> Vec<Finding> {
    let manifests = files.iter().filter_map(|file| Some((file, file.path.strip_suffix("Cargo.toml")?)));
    let lacks = |folder: &str| !files.iter().any(|file| file.path == format!("{folder}README.md"));
    let without = manifests.filter(|(_, folder)| lacks(folder));
    without.map(|(file, _)| Finding::new(&file.path, 0, "has no README.md beside it")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> TextFile {
        TextFile { path: path.into(), text: text.into() }
    }

    #[test]
    fn long_sources_are_found() {
        assert_eq!(length(&file("a.rs", &"\n".repeat(801))).len(), 1);
        assert!(length(&file("a.rs", &"\n".repeat(800))).is_empty());
        assert!(length(&file("a.json", &"\n".repeat(801))).is_empty());
    }

    #[test]
    fn places_are_found() {
        for place in PLACES {
            let findings = no_places(&file("docs/a.md", &format!("x\nsee {place}here")));
            assert_eq!(findings.iter().map(|finding| finding.line).collect::<Vec<_>>(), [2], "{place}");
        }
        assert!(no_places(&file("docs/a.md", "see docs/b.md")).is_empty());
    }

    #[test]
    fn a_crate_without_a_readme_is_found() {
        let files = [file("Cargo.toml", ""), file("README.md", ""), file("crates/a/Cargo.toml", "")];
        let findings = readme_in_each_crate(&files);
        assert_eq!(findings.iter().map(|finding| finding.path.as_str()).collect::<Vec<_>>(), ["crates/a/Cargo.toml"]);
    }
}
