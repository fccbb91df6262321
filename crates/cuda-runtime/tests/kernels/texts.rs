//! The PTX of the kernels.

use allotrope_cuda_runtime::bundle::{Bundle, entry};

/// The targets that PTX is compiled for.
pub(crate) const TARGETS: [&str; 2] = ["sm_80", "sm_90a"];

/// The compute capability that a target is for.
pub(crate) fn capability(target: &str) -> (u32, u32) {
    if target == "sm_80" { (8, 0) } else { (9, 0) }
}

/// The PTX of a source file.
pub(crate) fn file(source: &str, target: &str) -> String {
    let text = Bundle::embedded().unwrap().ptx(source, capability(target)).unwrap();
    assert!(text.contains(&format!(".target {target}\n")), "{source} for {target}");
    text
}

/// The PTX of one kernel of a source file, since a whole file takes a while to load.
pub(crate) fn kernel(source: &str, target: &str, kernel: &str) -> String {
    entry(&file(source, target), kernel).unwrap_or_else(|| panic!("{kernel} is not in {source}"))
}

/// The text with each marker replaced by what is made of its name and registers.
pub(crate) fn fill(text: &str, slot: &dyn Fn(&str, &[&str]) -> String) -> String {
    let filled = |line: &str| match line.trim().strip_prefix("//@") {
        Some(marker) => {
            let words: Vec<&str> = marker.split_whitespace().collect();
            format!("{{\n{}\n}}", slot(words[0], &words[1..]))
        }
        None => line.to_owned(),
    };
    text.lines().map(filled).collect::<Vec<_>>().join("\n")
}
