//! What each kernel takes, for people: on a terminal, and in `docs/kernels.md`.

use std::collections::BTreeSet;

use allotrope_cuda_runtime::bundle::Architecture;

use super::manifest::{KernelRecord, Manifest};
use super::{MANIFEST, folder};
use crate::error::TaskError;
use crate::workspace;

/// The page with the table.
pub(super) const DOCUMENT: &str = "docs/kernels.md";

const BEGIN: &str = "<!-- kernels: written by `cargo xtask kernels` and `cargo xtask docs` -->\n";
const END: &str = "<!-- end of kernels -->\n";

/// [`DOCUMENT`] with the table of the manifest.
///
/// # Errors
/// If the page or the manifest can't be read, or the page has no place for the table.
pub(crate) fn document() -> Result<String, TaskError> {
    let manifest = Manifest::read(&folder().join(MANIFEST))?;
    let page = workspace::read(&workspace::root().join(DOCUMENT))?;
    let lacks = || TaskError::Message(format!("{DOCUMENT} lacks the lines {BEGIN}{END}"));
    replaced(&page, &markdown(&manifest)).ok_or_else(lacks)
}

/// A page with something else between the marks.
fn replaced(page: &str, between: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{between}\n{END}{after}"))
}

/// A table for a terminal.
pub(super) fn table(manifest: &Manifest) -> String {
    let rows = rows(manifest);
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().filter(|character| *character != '`').count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let cells = |row: &Vec<String>| {
        let padded =
            row.iter().zip(&widths).map(|(cell, width)| format!("{:width$}", cell.replace('`', ""), width = *width));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(cells).collect()
}

fn markdown(manifest: &Manifest) -> String {
    let rows = rows(manifest);
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        text += &format!("| {} |\n", row.join(" | "));
        if index == 0 {
            let columns = row.iter().enumerate().map(|(column, _)| if column < 2 { "---" } else { "--:" });
            text += &format!("|{}|\n", columns.collect::<Vec<_>>().join("|"));
        }
    }
    let size = manifest.bundle.bytes as f64 / 1024.0;
    text += &format!("\nCompiled by nvcc {}. The bundle has {size:.1} KiB.\n", manifest.toolkit);
    text
}

/// A heading and a row for each kernel.
fn rows(manifest: &Manifest) -> Vec<Vec<String>> {
    let kernels = || manifest.sources.iter().flat_map(|source| &source.kernels);
    let mut architectures: Vec<&str> = Vec::new();
    for kernel in kernels() {
        if !architectures.contains(&kernel.architecture.as_str()) {
            architectures.push(&kernel.architecture);
        }
    }
    // By number, so that sm_90a comes before sm_100a.
    architectures.sort_by_key(|name| name.split_once('_').and_then(|(_, number)| number.parse::<Architecture>().ok()));
    let mut heading = vec!["kernel".to_owned(), "source".to_owned()];
    heading.extend(architectures.iter().map(|name| (*name).to_owned()));
    heading.extend(["shared bytes".to_owned(), "spilled bytes".to_owned()]);
    let mut rows = vec![heading];
    for source in &manifest.sources {
        let names: BTreeSet<&str> = source.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
        for name in names {
            let of_name = || source.kernels.iter().filter(|kernel| kernel.name == name);
            let on = |architecture: &&str| {
                let kernel = of_name().find(|kernel| kernel.architecture == **architecture);
                kernel.map_or_else(|| "–".to_owned(), |kernel| kernel.registers.to_string())
            };
            let mut row = vec![format!("`{name}`"), format!("`{}.cu`", source.name)];
            row.extend(architectures.iter().map(on));
            row.push(summary(of_name(), |kernel| kernel.shared));
            row.push(summary(of_name(), |kernel| kernel.spills));
            rows.push(row);
        }
    }
    rows
}

/// A number that is the same on all architectures, or each.
fn summary<'a>(kernels: impl Iterator<Item = &'a KernelRecord>, of: impl Fn(&KernelRecord) -> u32) -> String {
    let numbers: Vec<(&str, u32)> = kernels.map(|kernel| (kernel.architecture.as_str(), of(kernel))).collect();
    let distinct: BTreeSet<u32> = numbers.iter().map(|(_, number)| *number).collect();
    match distinct.first() {
        Some(number) if distinct.len() == 1 => number.to_string(),
        _ => numbers.iter().map(|(name, number)| format!("{name}: {number}")).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::testing::repository;
    use super::*;

    #[test]
    fn the_manifest_says_what_was_written_into_it() {
        let repository = repository();
        let written = repository.rebuild(|text| text);
        assert_eq!(Manifest::read(&repository.folder().join(MANIFEST)).unwrap(), written);
    }

    #[test]
    fn every_kernel_has_a_row_with_its_resources() {
        let mut manifest = repository().rebuild(|text| text);
        manifest.sources[0].kernels[1].spills = 8;
        let text = markdown(&manifest);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..4],
            [
                "| kernel | source | sm_80 | sm_86 | sm_89 | sm_90 | sm_90a | sm_100a | sm_120 | shared bytes | spilled bytes |",
                "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
                "| `add_one` | `add.cu` | 17 | 16 | 16 | 16 | 16 | 16 | 16 | 1024 | \
                 sm_80: 0, sm_86: 8, sm_89: 0, sm_90: 0, sm_90a: 0, sm_100a: 0, sm_120: 0 |",
                "| `slots_one` | `slots.cu` | 17 | – | 16 | 16 | 16 | – | – | 1024 | 0 |",
            ]
        );
        let terminal = table(&manifest);
        assert_eq!(terminal.lines().count(), 3);
        assert!(terminal.lines().nth(2).unwrap().starts_with("slots_one  slots.cu  17"), "{terminal}");
    }

    #[test]
    fn the_table_takes_the_place_of_the_one_before() {
        let page = format!("before\n{BEGIN}old\n{END}after\n");
        assert_eq!(replaced(&page, "new\n").unwrap(), format!("before\n{BEGIN}\nnew\n\n{END}after\n"));
        assert_eq!(replaced("no marks", "new\n"), None);
    }
}
