//! `cargo xtask kernels`: compiles `kernels/*.cu` with nvcc into the bundle that `crates/cuda-runtime` embeds, writes down
//! what it made of what, and checks without nvcc that all of it fits together.

mod check;
mod compile;
mod manifest;
mod report;
mod reuse;
mod source;
mod toolkit;

#[cfg(test)]
mod testing;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use allotrope_cuda_runtime::bundle;
use sha2::{Digest as _, Sha256};

use crate::error::TaskError;
use crate::workspace;
use manifest::{FileRecord, Manifest, OutputRecord, SourceRecord};
use source::Source;
use toolkit::Toolkit;

pub(crate) use report::document;

/// The compiled kernels, in the folder of the sources.
const BUNDLE: &str = "kernels.bundle";
/// What they were made of, in the folder of the sources.
const MANIFEST: &str = "manifest.toml";
/// The most bytes of the bundle: every build of the program carries it.
const MAXIMUM_BUNDLE: usize = 4 << 20;
/// What nvcc is told, beside the architecture. Nothing that makes arithmetic less exact: a kernel that wants an
/// approximation says so at its place.
const FLAGS: [&str; 2] = ["-O3", "-std=c++17"];
/// The PTX version of the toolkit's release: drivers from 580 on read it.
const PTX_VERSION: &str = ".version 9.0";

/// What to do with the kernels.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Compile nothing; fail if sources, manifest and bundle do not fit together (needs no nvcc)
    #[arg(long, conflicts_with_all = ["report", "all"])]
    check: bool,
    /// Compile nothing; print the registers, shared memory and spills of every kernel (needs no nvcc)
    #[arg(long, conflicts_with = "all")]
    report: bool,
    /// Compile every source; without it those that have not changed are taken over from the bundle
    #[arg(long)]
    all: bool,
    /// The CUDA toolkit to compile with; without it nvcc is looked for in PATH, and then installed below `target`
    #[arg(long, value_name = "FOLDER", env = "CUDA_HOME")]
    // Not a path: clap refuses an empty one, and an empty variable is as good as none.
    cuda_home: Option<OsString>,
}

/// Where the sources lie.
fn folder() -> PathBuf {
    workspace::root().join("kernels")
}

/// Compiles, checks or reports.
///
/// # Errors
/// If there is no toolkit and none can be installed, a kernel does not compile, or with `--check` something does not fit.
pub(crate) fn run(options: &Options) -> Result<(), TaskError> {
    let folder = folder();
    if options.check {
        return check(&folder);
    }
    if options.report {
        print!("{}", report::table(&Manifest::read(&folder.join(MANIFEST))?));
        return Ok(());
    }
    let cuda_home = options.cuda_home.as_ref().filter(|home| !home.is_empty());
    let toolkit = Toolkit::find(cuda_home.map(Path::new))?;
    let sources = Source::read_all(&folder)?;
    let kept = match options.all {
        true => sources.iter().map(|_| None).collect(),
        false => reuse::unchanged(&folder, &sources, toolkit.version()),
    };
    let is_new = sources.iter().zip(&kept).filter(|(_, kept)| kept.is_none());
    let new: Vec<Source> = is_new.map(|(source, _)| source.clone()).collect();
    println!("nvcc {}: {} of {} sources to compile", toolkit.version(), new.len(), sources.len());
    new.iter().for_each(|source| println!("  {}.cu", source.name));
    let mut compiled = compile::all(&folder, &new, &toolkit)?.into_iter();
    let outcomes = kept.into_iter().filter_map(|kept| kept.or_else(|| compiled.next())).collect();
    let manifest = write(&folder, &sources, outcomes, toolkit.version())?;
    let path = workspace::root().join(report::DOCUMENT);
    fs::write(&path, document()?).map_err(TaskError::file(&path))?;
    println!("wrote {} bytes of kernels; a table of them is in {}", manifest.bundle.bytes, report::DOCUMENT);
    check(&folder)
}

/// Checks the repository's kernels, as `--check` does.
///
/// # Errors
/// If something does not fit.
pub(crate) fn check_repository() -> Result<(), TaskError> {
    check(&folder())
}

fn check(folder: &Path) -> Result<(), TaskError> {
    let problems = check::problems(folder)?;
    if problems.is_empty() {
        return Ok(());
    }
    let lines = problems.join("\n  ");
    Err(TaskError::Message(format!("the kernels are not current; run `cargo xtask kernels`\n  {lines}")))
}

/// Writes bundle and manifest.
fn write(
    folder: &Path,
    sources: &[Source],
    outcomes: Vec<compile::Outcome>,
    toolkit: &str,
) -> Result<Manifest, TaskError> {
    let mut records = Vec::new();
    let mut outputs = Vec::new();
    for (source, outcome) in sources.iter().zip(outcomes) {
        let record = |output: &bundle::Output| OutputRecord {
            kind: output.kind.to_string(),
            architecture: format!("{}_{}", output.kind.prefix(), output.architecture),
            bytes: output.content.len(),
            sha256: sha256(&output.content),
        };
        records.push(SourceRecord {
            name: source.name.clone(),
            files: source.files.clone(),
            outputs: outcome.outputs.iter().map(record).collect(),
            kernels: outcome.kernels,
        });
        outputs.extend(outcome.outputs);
    }
    let bytes = bundle::write(&outputs).map_err(|error| TaskError::Message(error.to_string()))?;
    let manifest = Manifest {
        toolkit: toolkit.to_owned(),
        flags: FLAGS.map(str::to_owned).to_vec(),
        bundle: FileRecord { path: BUNDLE.to_owned(), bytes: bytes.len(), sha256: sha256(&bytes) },
        sources: records,
    };
    for (name, content) in [(BUNDLE, bytes), (MANIFEST, manifest.to_string().into_bytes())] {
        let path = folder.join(name);
        fs::write(&path, content).map_err(TaskError::file(&path))?;
    }
    Ok(manifest)
}

/// A SHA-256 in hexadecimal digits.
fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_repositorys_kernels_are_current() {
        check_repository().unwrap();
    }

    #[test]
    fn hashes_are_written_in_full() {
        // The first test vector of FIPS 180-4.
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
