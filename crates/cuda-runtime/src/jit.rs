//! PTX to machine code by the driver, whose result is kept on disk.
//!
//! The driver takes tens of milliseconds for a kernel, so a second start should not ask it again. What is kept is found by
//! content, so nothing has to be invalidated: another text, driver or GPU is another entry. A cache may be damaged, shared by
//! processes that start together, or impossible to write: all of that costs time and nothing else.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest, Sha256};

use crate::driver::{Context, DriverError};

/// How an entry begins. The digit is the version of the format.
const MAGIC: &[u8; 8] = b"altrjit1";

/// Bytes of a hash.
const HASH: usize = 32;

/// What entries are called, behind their hash.
const ENDING: &str = "cubin";

/// What unfinished entries are called, behind a name of the process's own.
const UNFINISHED: &str = "partial";

/// How much is kept: a model has some hundred kernels of some ten kilobytes, so this is room for thousands of starts with
/// other models and versions.
const MOST_BYTES: u64 = 256 << 20;

/// When an unfinished entry was left behind by a process that ended.
const ABANDONED: Duration = Duration::from_secs(3600);

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
pub struct KernelCache {
    folder: Option<PathBuf>,
    most_bytes: u64,
    warned: AtomicBool,
}

impl KernelCache {
    /// A cache in a folder, which is made when it is needed; one that keeps nothing if `None`.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self::bounded(folder, MOST_BYTES)
    }

    /// The same, with another bound on what is kept, in bytes.
    pub fn bounded(folder: Option<PathBuf>, most_bytes: u64) -> Self {
        Self { folder, most_bytes, warned: AtomicBool::new(false) }
    }

    /// Where an entry is.
    fn path(&self, key: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{key}.{ENDING}")))
    }

    /// The machine code of an entry, if there is one and it is whole.
    fn find(&self, key: &str) -> Option<Vec<u8>> {
        let path = self.path(key)?;
        let bytes = fs::read(&path).ok()?;
        let body = bytes.strip_prefix(MAGIC.as_slice())?;
        let (hash, code) = body.split_at_checked(HASH)?;
        if Sha256::digest(code).as_slice() != hash {
            return None;
        }
        // What was used last is removed last.
        if let Ok(file) = File::options().append(true).open(&path) {
            let _ = file.set_modified(SystemTime::now());
        }
        Some(code.to_vec())
    }

    /// Keeps machine code. If that fails, it is said once.
    fn store(&self, key: &str, code: &[u8]) {
        let (Some(path), Some(folder)) = (self.path(key), &self.folder) else { return };
        let stored = write(folder, &path, code).and_then(|()| self.trim(folder));
        if let Err(error) = stored
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            let folder = folder.display();
            tracing::warn!("compiled kernels cannot be kept in {folder}: {error}; the next start compiles them again");
        }
    }

    /// Removes the entries that were not used for longest, if there are more bytes than there should be.
    fn trim(&self, folder: &Path) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(folder)? {
            // Another process may be removing the same files.
            let Ok((path, data)) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?))) else { continue };
            let modified = data.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            match path.extension().and_then(|ending| ending.to_str()) {
                Some(ENDING) => entries.push((modified, path, data.len())),
                Some(UNFINISHED) if modified.elapsed().is_ok_and(|age| age > ABANDONED) => drop(fs::remove_file(path)),
                _ => {}
            }
        }
        entries.sort();
        let mut total: u64 = entries.iter().map(|(_, _, bytes)| bytes).sum();
        for (_, path, bytes) in entries {
            if total <= self.most_bytes {
                break;
            }
            if fs::remove_file(path).is_ok() {
                total -= bytes;
            }
        }
        Ok(())
    }
}

/// Writes an entry under another name, which is then changed, so that nobody sees a part of it.
fn write(folder: &Path, path: &Path, code: &[u8]) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    fs::create_dir_all(folder)?;
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let partial = folder.join(format!("{}-{number}.{UNFINISHED}", std::process::id()));
    let written = File::create(&partial).and_then(|mut file| {
        file.write_all(MAGIC)?;
        file.write_all(&Sha256::digest(code))?;
        file.write_all(code)
    });
    written.and_then(|()| fs::rename(&partial, path)).inspect_err(|_| {
        let _ = fs::remove_file(&partial);
    })
}

/// What an entry is found by.
fn key(context: &Context, ptx: &str) -> String {
    let info = context.info();
    let mut hash = Sha256::new();
    hash.update(MAGIC);
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
    match cache.find(&key(context, ptx)) {
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
    cache.store(&key(context, ptx), &code);
    Ok((code, Outcome::Compiled(time)))
}
