//! PTX to machine code by the driver, whose result is kept on disk.
//!
//! The driver takes tens of milliseconds for a kernel, so a second start should not ask it again. What is kept is found by
//! content, so nothing has to be invalidated: another text, driver or GPU is another entry.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use allotrope_runtime::disk_cache::{CacheKind, DiskCache};
use sha2::{Digest, Sha256};

use crate::driver::{Context, DriverError};

static KIND: CacheKind = CacheKind {
    magic: *b"altrjit1",
    ending: "cubin",
    what: "compiled kernels",
    otherwise: "the next start compiles them again",
    // Some hundred times what a kernel has.
    most_content: 64 << 20,
    // A model has some hundred kernels of some ten kilobytes: room for thousands of starts with other models and versions.
    most_bytes: 256 << 20,
    sync: false,
};

/// Where machine code came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The cache.
    Hit,
    /// The driver, which took so long.
    Compiled(Duration),
}

/// Machine code on disk, by what it was compiled from.
#[derive(Debug)]
pub struct KernelCache(DiskCache);

impl KernelCache {
    /// A cache in a folder, which is made when it is needed; one that keeps nothing if `None`.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self(DiskCache::new(&KIND, folder))
    }

    /// The same, with another bound on what is kept, in bytes.
    pub fn bounded(folder: Option<PathBuf>, most_bytes: u64) -> Self {
        Self(DiskCache::new(&KIND, folder).bounded(most_bytes))
    }
}

/// What an entry is found by.
fn key(context: &Context, ptx: &str) -> String {
    let info = context.info();
    let mut hash = Sha256::new();
    hash.update(KIND.magic);
    // The emulator calls itself what some GPU is, but for its name, and what it compiles runs nowhere else.
    hash.update(info.name.len().to_le_bytes());
    hash.update(&info.name);
    for (major, minor) in [info.driver_version, info.capability] {
        hash.update(major.to_le_bytes());
        hash.update(minor.to_le_bytes());
    }
    hash.update(ptx);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Machine code for a context's GPU: from the cache, or compiled by the driver and kept there.
///
/// # Errors
/// If the driver refuses the PTX, with what its compiler says. Never because of the cache.
pub fn compile(context: &Context, ptx: &str, cache: &KernelCache) -> Result<(Vec<u8>, Outcome), DriverError> {
    match cache.0.find(&key(context, ptx)) {
        Some(code) => Ok((code, Outcome::Hit)),
        None => compile_anew(context, ptx, cache),
    }
}

/// The same, whatever the cache has: what it kept turned out to be of no use.
///
/// # Errors
/// As [`compile`].
pub fn compile_anew(context: &Context, ptx: &str, cache: &KernelCache) -> Result<(Vec<u8>, Outcome), DriverError> {
    let start = Instant::now();
    let code = context.compile(ptx)?;
    let time = start.elapsed();
    cache.0.store(&key(context, ptx), &code);
    Ok((code, Outcome::Compiled(time)))
}
