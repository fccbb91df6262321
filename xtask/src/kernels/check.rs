//! Whether sources, manifest and bundle fit together: what a machine without nvcc can say.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use allotrope_cuda_runtime::bundle::{Bundle, Kind, entry_names};

use super::manifest::{FileRecord, Manifest, OutputRecord, SourceRecord};
use super::source::Source;
use super::{BUNDLE, FLAGS, MANIFEST, MAXIMUM_BUNDLE, PTX_VERSION, hexadecimal};
use crate::error::TaskError;

/// Everything that does not fit, in words.
///
/// # Errors
/// If a file can't be read at all, or a source is none that could be compiled.
pub(super) fn problems(folder: &Path) -> Result<Vec<String>, TaskError> {
    let sources = Source::read_all(folder)?;
    let manifest = Manifest::read(&folder.join(MANIFEST))?;
    let mut problems = Vec::new();
    if manifest.flags != FLAGS {
        problems.push(format!("compiled with {:?}, and the flags are {FLAGS:?} now", manifest.flags));
    }
    for source in &sources {
        match manifest.sources.iter().find(|record| record.name == source.name) {
            Some(record) => problems.extend(source_problems(source, record)),
            None => problems.push(format!("{}.cu was never compiled", source.name)),
        }
    }
    for record in &manifest.sources {
        if !sources.iter().any(|source| source.name == record.name) {
            problems.push(format!("{}.cu is gone, and what was compiled from it is still there", record.name));
        }
    }
    problems.extend(bundle_problems(folder, &manifest)?);
    Ok(problems)
}

/// Whether a source is the one that was compiled, to what it says it is compiled to.
fn source_problems(source: &Source, record: &SourceRecord) -> Vec<String> {
    let name = &source.name;
    let mut problems = Vec::new();
    for file in &source.files {
        match record.files.iter().find(|compiled| compiled.path == file.path) {
            Some(compiled) if compiled == file => {}
            Some(_) => problems.push(format!("{} has changed since {name}.cu was compiled", file.path)),
            None => problems.push(format!("{name}.cu was compiled without {}", file.path)),
        }
    }
    for compiled in &record.files {
        if !source.files.iter().any(|file| file.path == compiled.path) {
            problems.push(format!("{name}.cu was compiled with {}, which it does not include", compiled.path));
        }
    }
    let expected: BTreeSet<String> =
        source.outputs().iter().map(|(kind, architecture)| format!("{}_{architecture}", kind.prefix())).collect();
    let listed: BTreeSet<String> = record.outputs.iter().map(|output| output.architecture.clone()).collect();
    if expected != listed {
        problems.push(format!("{name}.cu was compiled for {listed:?}, and is for {expected:?}"));
    }
    problems
}

/// Whether the bundle has the outputs that the manifest lists, and those are what they should be.
fn bundle_problems(folder: &Path, manifest: &Manifest) -> Result<Vec<String>, TaskError> {
    let path = folder.join(BUNDLE);
    let bytes = fs::read(&path).map_err(TaskError::file(&path))?;
    let mut problems = Vec::new();
    if bytes.len() > MAXIMUM_BUNDLE {
        problems.push(format!("{BUNDLE} has {} bytes, and {MAXIMUM_BUNDLE} are allowed", bytes.len()));
    }
    if manifest.bundle != FileRecord::of(folder, BUNDLE)? {
        problems.push(format!("{BUNDLE} is not the one that the manifest was written with"));
    }
    let bundle = match Bundle::read(bytes) {
        Ok(bundle) => bundle,
        Err(error) => {
            problems.push(format!("{BUNDLE}: {error}"));
            return Ok(problems);
        }
    };
    let listed = manifest.sources.iter().flat_map(|source| source.outputs.iter().map(move |it| (&source.name, it)));
    let mut listed: Vec<(&String, &OutputRecord)> = listed.collect();
    for entry in bundle.entries() {
        let title = format!("{} {} of {}", entry.kind, entry.architecture, entry.source);
        let content = match bundle.content(entry) {
            Ok(content) => content,
            Err(error) => {
                problems.push(format!("{BUNDLE}: {error}"));
                continue;
            }
        };
        let record = OutputRecord {
            kind: entry.kind.to_string(),
            architecture: format!("{}_{}", entry.kind.prefix(), entry.architecture),
            bytes: content.len(),
            sha256: hexadecimal(&entry.sha256),
        };
        match listed.iter().position(|(source, it)| **source == entry.source && **it == record) {
            Some(index) => drop(listed.swap_remove(index)),
            None => problems.push(format!("{title} in {BUNDLE} is not what the manifest lists")),
        }
        if entry.kind == Kind::Ptx {
            let record = manifest.sources.iter().find(|source| source.name == entry.source);
            problems.extend(ptx_problems(&title, &String::from_utf8_lossy(&content), record));
        }
    }
    for (source, record) in listed {
        problems.push(format!("{} of {source}, which the manifest lists, is not in {BUNDLE}", record.architecture));
    }
    Ok(problems)
}

/// Whether PTX is of the right version and has the kernels that the manifest describes.
fn ptx_problems(title: &str, text: &str, record: Option<&SourceRecord>) -> Vec<String> {
    let mut problems = Vec::new();
    if !text.lines().any(|line| line == PTX_VERSION) {
        problems.push(format!("{title} does not say `{PTX_VERSION}`"));
    }
    let kernels: BTreeSet<&str> = entry_names(text).into_iter().collect();
    let described: BTreeSet<&str> =
        record.into_iter().flat_map(|record| record.kernels.iter().map(|kernel| kernel.name.as_str())).collect();
    if kernels != described {
        problems.push(format!("{title} has the kernels {kernels:?}, and the manifest describes {described:?}"));
    }
    problems
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::testing::{Repository, repository};
    use super::*;

    /// The problems after something was done to a folder whose kernels are current.
    fn after(change: impl FnOnce(&Repository)) -> Vec<String> {
        let repository = repository();
        assert_eq!(problems(repository.folder()).unwrap(), Vec::<String>::new());
        change(&repository);
        problems(repository.folder()).unwrap()
    }

    /// Asserts that each problem is one of those named, in order.
    fn assert_found(found: &[String], expected: &[&str]) {
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{found}: not {expected}");
        }
    }

    #[test]
    fn changed_sources_and_headers_are_found() {
        let found = after(|it| it.edit("add.cu", |text| format!("{text}\n")));
        assert_found(&found, &["add.cu has changed since add.cu"]);
        let found = after(|it| it.edit("types.cuh", |text| text.replace("int", "long")));
        assert_found(&found, &["types.cuh has changed since add.cu"]);
    }

    #[test]
    fn new_and_lost_files_are_found() {
        assert_found(&after(|it| it.write("new.cu", "// targets: ptx\n")), &["new.cu was never compiled"]);
        let found = after(|it| fs::remove_file(it.folder().join("slots.cu")).unwrap());
        assert_found(&found, &["slots.cu is gone"]);
        let found = after(|it| {
            it.write("more.cuh", "");
            it.edit("types.cuh", |text| format!("#include \"more.cuh\"\n{text}"));
        });
        assert_found(&found, &["compiled without more.cuh", "types.cuh has changed"]);
        let found = after(|it| it.edit("add.cu", |text| text.replace("#include \"types.cuh\"\n", "")));
        assert_found(&found, &["add.cu has changed", "types.cuh, which it does not include"]);
    }

    #[test]
    fn other_targets_and_flags_are_found() {
        let found = after(|it| it.edit("slots.cu", |text| text.replace("ptx", "all")));
        assert_found(&found, &["slots.cu has changed", "slots.cu was compiled for"]);
        let found = after(|it| it.edit(MANIFEST, |text| text.replace("-O3", "-O2")));
        assert_found(&found, &["the flags are"]);
    }

    #[test]
    fn a_bundle_of_another_build_is_found() {
        let found = after(|it| it.rebuild_bundle(|outputs| outputs[0].content.push(b'\n')));
        let expected =
            ["not the one that the manifest", "ptx 80 of add in kernels.bundle is not", "compute_80 of add, which the"];
        assert_found(&found, &expected);
        let found = after(|it| it.rebuild_bundle(|outputs| drop(outputs.pop())));
        assert_found(&found, &["not the one that the manifest", "of slots, which the manifest lists, is not in"]);
    }

    #[test]
    fn a_damaged_bundle_is_found() {
        let found = after(|it| it.edit_bytes(BUNDLE, |bytes| bytes.truncate(bytes.len() / 2)));
        assert_found(&found, &["not the one that the manifest", "damaged"]);
        let found = after(|it| it.edit_bytes(BUNDLE, Vec::clear));
        assert_found(&found, &["not the one that the manifest", "damaged"]);
        let found =
            after(|it| it.edit_bytes(BUNDLE, |bytes| bytes.iter_mut().rev().take(20).for_each(|byte| *byte ^= 1)));
        assert!(found.iter().any(|problem| problem.contains("of slots")), "{found:#?}");
        let found = after(|it| it.edit_bytes(BUNDLE, |bytes| bytes.resize(MAXIMUM_BUNDLE + 1, 0)));
        assert_found(&found, &["are allowed", "not the one that the manifest", "follow the last output"]);
    }

    #[test]
    fn a_manifest_that_says_something_else_is_found() {
        let found = after(|it| it.edit(MANIFEST, |text| text.replace("name = \"add_one\"", "name = \"add_two\"")));
        let of_add = ["80", "89", "90", "90a"].map(|name| format!("ptx {name} of add has the kernels"));
        assert_found(&found, &of_add.each_ref().map(String::as_str));
        let found = after(|it| it.edit(MANIFEST, |text| text.replace("kind = \"cubin\"", "kind = \"ptx\"")));
        assert_eq!(found.len(), 12, "{found:#?}");
        let repository = repository();
        repository.edit(MANIFEST, |text| text.replace("toolkit", "tools"));
        assert!(problems(repository.folder()).unwrap_err().to_string().contains("manifest.toml"));
    }

    #[test]
    fn ptx_of_another_version_is_found() {
        let found = after(|it| drop(it.rebuild(|text| text.replace(".version 9.0", ".version 9.5"))));
        assert_eq!(found.len(), 8, "{found:#?}");
        assert!(found.iter().all(|problem| problem.contains("does not say `.version 9.0`")), "{found:#?}");
    }

    #[test]
    fn the_failure_names_what_differs_and_the_command_that_mends_it() {
        let repository = repository();
        super::super::check(repository.folder()).unwrap();
        repository.edit("add.cu", |text| format!("{text}\n"));
        let error = super::super::check(repository.folder()).unwrap_err().to_string();
        assert!(error.contains("run `cargo xtask kernels`\n") && error.contains("add.cu has changed"), "{error}");
    }
}
