//! A folder of kernels whose outputs no compiler made, for the tests of the check and of the report.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use allotrope_cuda_runtime::bundle::{Bundle, Kind, Output, write};

use super::compile::Outcome;
use super::manifest::{KernelRecord, Manifest};
use super::source::Source;
use super::{BUNDLE, PTX_VERSION};

/// The version of the compilers that did not run.
pub(super) const TOOLKIT: &str = "13.0.88";

/// A folder of kernels.
pub(super) struct Repository(tempfile::TempDir);

/// A folder with one source for all architectures and one template, and what was made of them.
pub(super) fn repository() -> Repository {
    let repository = Repository(tempfile::tempdir().unwrap());
    repository.write("add.cu", "// targets: all\n#include \"types.cuh\"\n");
    repository.write("slots.cu", "// targets: ptx\n");
    repository.write("types.cuh", "using word = int;\n");
    repository.rebuild(|text| text);
    repository
}

impl Repository {
    pub(super) fn folder(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        fs::write(self.folder().join(name), text).unwrap();
    }

    pub(super) fn edit(&self, name: &str, change: impl FnOnce(String) -> String) {
        self.write(name, &change(fs::read_to_string(self.folder().join(name)).unwrap()));
    }

    pub(super) fn edit_bytes(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.folder().join(name);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    /// Writes bundle and manifest as if compilers had run, and had made such PTX.
    pub(super) fn rebuild(&self, ptx: impl Fn(String) -> String) -> Manifest {
        let sources = Source::read_all(self.folder()).unwrap();
        let outcomes = sources.iter().map(|source| outcome(source, &ptx)).collect();
        super::write(self.folder(), &sources, outcomes, TOOLKIT).unwrap()
    }

    /// Writes the bundle anew with other outputs, and leaves the manifest.
    pub(super) fn rebuild_bundle(&self, change: impl FnOnce(&mut Vec<Output>)) {
        let bundle = Bundle::read(fs::read(self.folder().join(BUNDLE)).unwrap()).unwrap();
        let output = |entry: &allotrope_cuda_runtime::bundle::Entry| Output {
            source: entry.source.clone(),
            kind: entry.kind,
            architecture: entry.architecture,
            content: bundle.content(entry).unwrap(),
        };
        let mut outputs: Vec<Output> = bundle.entries().iter().map(output).collect();
        change(&mut outputs);
        fs::write(self.folder().join(BUNDLE), write(&outputs).unwrap()).unwrap();
    }
}

fn outcome(source: &Source, ptx: impl Fn(String) -> String) -> Outcome {
    let kernel = format!("{}_one", source.name);
    let output = |(kind, architecture)| Output {
        source: source.name.clone(),
        kind,
        architecture,
        content: match kind {
            Kind::Ptx => {
                ptx(format!("{PTX_VERSION}\n.target sm_{architecture}\n.entry {kernel}() {{ ret; }}\n")).into()
            }
            Kind::Cubin => vec![architecture.major; 100],
        },
    };
    let kernel = |architecture| KernelRecord {
        name: kernel.clone(),
        architecture: format!("sm_{architecture}"),
        registers: 16 + u32::from(architecture == source.architectures().into_iter().next().unwrap()),
        shared: 1024,
        spills: 0,
    };
    Outcome {
        outputs: source.outputs().into_iter().map(output).collect(),
        kernels: source.architectures().into_iter().map(kernel).collect(),
    }
}
