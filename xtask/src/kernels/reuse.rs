//! Takes over from the bundle what would be compiled to the same bytes again.

use std::fs;
use std::path::Path;

use allotrope_cuda_runtime::bundle::{Architecture, Bundle, Kind, Output};

use super::compile::Outcome;
use super::manifest::{FileRecord, Manifest};
use super::source::Source;
use super::{BUNDLE, FLAGS, MANIFEST};

/// For each source what was made of it before, if nothing that it was made of has changed since: its files, the flags,
/// the toolkit, and what it is compiled to. `None` for all if bundle and manifest do not fit together.
pub(super) fn unchanged(folder: &Path, sources: &[Source], toolkit: &str) -> Vec<Option<Outcome>> {
    let previous = previous(folder).filter(|(manifest, _)| manifest.toolkit == toolkit && manifest.flags == FLAGS);
    let of_source = |source| previous.as_ref().and_then(|(manifest, bundle)| outcome(source, manifest, bundle));
    sources.iter().map(of_source).collect()
}

fn previous(folder: &Path) -> Option<(Manifest, Bundle)> {
    let manifest = Manifest::read(&folder.join(MANIFEST)).ok()?;
    let is_same = FileRecord::of(folder, BUNDLE).ok()? == manifest.bundle;
    let bundle = Bundle::read(fs::read(folder.join(BUNDLE)).ok()?).ok()?;
    is_same.then_some((manifest, bundle))
}

fn outcome(source: &Source, manifest: &Manifest, bundle: &Bundle) -> Option<Outcome> {
    let record = manifest.sources.iter().find(|record| record.name == source.name && record.files == source.files)?;
    let entries = bundle.entries().iter().filter(|entry| entry.source == source.name);
    let output = |entry| {
        let content = bundle.content(entry).ok()?;
        Some(Output { source: source.name.clone(), kind: entry.kind, architecture: entry.architecture, content })
    };
    let outputs: Vec<Output> = entries.map(output).collect::<Option<_>>()?;
    let is_output = |((kind, architecture), output): (&(Kind, Architecture), &Output)| {
        (*kind, *architecture) == (output.kind, output.architecture)
    };
    let wanted = source.outputs();
    let is_all = wanted.len() == outputs.len() && wanted.iter().zip(&outputs).all(is_output);
    is_all.then(|| Outcome { outputs, kernels: record.kernels.clone() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::testing::{Repository, TOOLKIT, repository};
    use super::*;

    /// Of `add.cu` and `slots.cu`, which are taken over after a change.
    fn taken_over(toolkit: &str, change: impl FnOnce(&Repository)) -> [bool; 2] {
        let repository = repository();
        change(&repository);
        let sources = Source::read_all(repository.folder()).unwrap();
        let kept = unchanged(repository.folder(), &sources, toolkit);
        kept.iter().map(Option::is_some).collect::<Vec<_>>().try_into().unwrap()
    }

    #[test]
    fn what_has_not_changed_is_taken_over() {
        assert_eq!(taken_over(TOOLKIT, |_| ()), [true, true]);
        assert_eq!(taken_over("13.0.99", |_| ()), [false, false]);
        assert_eq!(taken_over(TOOLKIT, |it| it.edit("types.cuh", |text| text + "\n")), [false, true]);
        assert_eq!(taken_over(TOOLKIT, |it| it.edit("slots.cu", |text| text + "\n")), [true, false]);
        assert_eq!(taken_over(TOOLKIT, |it| it.edit(MANIFEST, |text| text.replace("-O3", "-O2"))), [false, false]);
        assert_eq!(taken_over(TOOLKIT, |it| it.edit_bytes(BUNDLE, Vec::clear)), [false, false]);
        assert_eq!(taken_over(TOOLKIT, |it| fs::remove_file(it.folder().join(MANIFEST)).unwrap()), [false, false]);
    }

    #[test]
    fn what_is_taken_over_makes_the_same_files() {
        let repository = repository();
        let read = || [BUNDLE, MANIFEST].map(|name| fs::read(repository.folder().join(name)).unwrap());
        let before = read();
        let sources = Source::read_all(repository.folder()).unwrap();
        let kept = unchanged(repository.folder(), &sources, TOOLKIT).into_iter().map(Option::unwrap).collect();
        super::super::write(repository.folder(), &sources, kept, TOOLKIT).unwrap();
        assert_eq!(before, read());
    }
}
