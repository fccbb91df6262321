//! `kernels/manifest.toml`: what each output was made of, and what each kernel takes.

use std::fmt;
use std::path::Path;

use serde::Deserialize;

use crate::error::TaskError;
use crate::workspace;

/// The manifest.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// Version of nvcc.
    pub(super) toolkit: String,
    /// What nvcc was told, beside the architecture.
    pub(super) flags: Vec<String>,
    pub(super) bundle: FileRecord,
    /// In the order of their names.
    #[serde(default, rename = "source")]
    pub(super) sources: Vec<SourceRecord>,
}

/// A file in the folder of the sources.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileRecord {
    pub(super) path: String,
    pub(super) bytes: usize,
    pub(super) sha256: String,
}

/// A source and what was made of it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceRecord {
    /// File name without its ending.
    pub(super) name: String,
    /// The source and every header that it includes, itself or through another.
    pub(super) files: Vec<FileRecord>,
    pub(super) outputs: Vec<OutputRecord>,
    pub(super) kernels: Vec<KernelRecord>,
}

/// A file that a compiler wrote.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OutputRecord {
    /// `ptx` or `cubin`.
    pub(super) kind: String,
    /// Such as `compute_80` or `sm_90a`.
    pub(super) architecture: String,
    pub(super) bytes: usize,
    pub(super) sha256: String,
}

/// What ptxas says about a kernel on one architecture.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KernelRecord {
    pub(super) name: String,
    /// Such as `sm_90a`.
    pub(super) architecture: String,
    /// Registers of a thread.
    pub(super) registers: u32,
    /// Bytes of static shared memory of a block.
    pub(super) shared: u32,
    /// Bytes that a thread stores to and loads from local memory because registers ran out.
    pub(super) spills: u32,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// If the file can't be read or is no manifest.
    pub(super) fn read(path: &Path) -> Result<Self, TaskError> {
        let text = workspace::read(path)?;
        toml::from_str(&text).map_err(|error| TaskError::Message(format!("{}: {error}", path.display())))
    }
}

/// The text of the file: one line for each thing, so that a change of one kernel is a small difference.
impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Written by `cargo xtask kernels`, and checked by `cargo xtask kernels --check`.")?;
        writeln!(f, "toolkit = {:?}\nflags = {:?}\nbundle = {}", self.toolkit, self.flags, self.bundle)?;
        for source in &self.sources {
            writeln!(f, "\n[[source]]\nname = {:?}", source.name)?;
            list(f, "files", &source.files)?;
            list(f, "outputs", &source.outputs)?;
            list(f, "kernels", &source.kernels)?;
        }
        Ok(())
    }
}

fn list(f: &mut fmt::Formatter<'_>, name: &str, records: &[impl fmt::Display]) -> fmt::Result {
    writeln!(f, "{name} = [")?;
    records.iter().try_for_each(|record| writeln!(f, "  {record},"))?;
    writeln!(f, "]")
}

impl fmt::Display for FileRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FileRecord { path, bytes, sha256 } = self;
        write!(f, "{{ path = {path:?}, bytes = {bytes}, sha256 = {sha256:?} }}")
    }
}

impl fmt::Display for OutputRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OutputRecord { kind, architecture, bytes, sha256 } = self;
        write!(f, "{{ kind = {kind:?}, architecture = {architecture:?}, bytes = {bytes}, sha256 = {sha256:?} }}")
    }
}

impl fmt::Display for KernelRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KernelRecord { name, architecture, registers, shared, spills } = self;
        write!(
            f,
            "{{ name = {name:?}, architecture = {architecture:?}, registers = {registers}, shared = {shared}, \
             spills = {spills} }}"
        )
    }
}
