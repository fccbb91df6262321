//! Files that save a start some time: what was found out once, by a name that says what it was found out for.
//!
//! A cache may be damaged, shared by processes that start together, on a full disk, deleted at any time or put there by somebody
//! else: all of that costs time and nothing else. A file begins with the magic of its kind and the SHA-256 of what follows, and is
//! written under another name first, so that nobody reads a part of one.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

/// Bytes of a hash.
const HASH: usize = 32;

/// What unfinished files are called, behind a name of their own.
const UNFINISHED: &str = "partial";

/// When an unfinished file was left behind by a process that ended.
const ABANDONED: Duration = Duration::from_secs(3600);

/// What is kept.
#[derive(Debug)]
pub struct CacheKind {
    /// How a file begins. The last byte is the version of the format.
    pub magic: [u8; 8],
    /// What files are called, behind their name.
    pub ending: &'static str,
    /// What it is, for warnings: "compiled kernels".
    pub what: &'static str,
    /// What happens without it, for warnings: "the next start compiles them again".
    pub otherwise: &'static str,
    /// The most bytes of a file's content.
    pub most_content: u64,
    /// The most bytes of all files together.
    pub most_bytes: u64,
    /// Whether a file is on the disk before it gets its name: where making it again takes long.
    pub sync: bool,
}

/// Files of one kind in a folder, which is made when it is needed. Of what goes wrong, the first is a warning and nothing is an
/// error.
#[derive(Debug)]
pub struct DiskCache {
    kind: &'static CacheKind,
    folder: Option<PathBuf>,
    most_bytes: u64,
    warned: AtomicBool,
}

impl DiskCache {
    /// A cache in a folder; one that keeps nothing if `None`.
    pub fn new(kind: &'static CacheKind, folder: Option<PathBuf>) -> Self {
        Self { kind, folder, most_bytes: kind.most_bytes, warned: AtomicBool::new(false) }
    }

    /// The same, with another bound on all files together, in bytes.
    #[must_use]
    pub fn bounded(self, most_bytes: u64) -> Self {
        Self { most_bytes, ..self }
    }

    /// The content of a file, if there is one and it is whole. It then counts as used.
    pub fn find(&self, name: &str) -> Option<Vec<u8>> {
        let path = self.path(name)?;
        match self.read(&path) {
            Ok(content) => {
                // What was used last is removed last.
                if let Ok(file) = File::options().append(true).open(&path) {
                    let _ = file.set_modified(SystemTime::now());
                }
                Some(content)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.warn(|| {
                    let CacheKind { what, otherwise, .. } = self.kind;
                    format!("{}: {error}; kept {what} are not used, and {otherwise}", path.display())
                });
                None
            }
        }
    }

    /// Keeps something under a name: letters, digits and `-`.
    pub fn store(&self, name: &str, content: &[u8]) {
        let (Some(path), Some(folder)) = (self.path(name), &self.folder) else { return };
        if let Err(error) = self.write(folder, &path, content).and_then(|()| self.trim(folder)) {
            self.warn(|| {
                let CacheKind { what, otherwise, .. } = self.kind;
                format!("{what} cannot be kept in {}: {error}; {otherwise}", folder.display())
            });
        }
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{name}.{}", self.kind.ending)))
    }

    fn warn(&self, message: impl FnOnce() -> String) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!("{}", message());
        }
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
        let most = self.kind.most_content.saturating_add((self.kind.magic.len() + HASH) as u64);
        // Opening a pipe would wait for somebody to write.
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() || metadata.len() > most {
            return Err(invalid(format!("it is no file of at most {most} bytes")));
        }
        let mut bytes = Vec::new();
        File::open(path)?.take(most).read_to_end(&mut bytes)?;
        let hashed = bytes.strip_prefix(self.kind.magic.as_slice()).and_then(|body| body.split_at_checked(HASH));
        match hashed {
            Some((hash, content)) if Sha256::digest(content).as_slice() == hash => Ok(content.to_vec()),
            _ => Err(invalid("it is damaged".to_owned())),
        }
    }

    /// Writes a file under another name, which is then changed.
    fn write(&self, folder: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
        if content.len() as u64 > self.kind.most_content {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too large"));
        }
        fs::create_dir_all(folder)?;
        // Processes in containers that share a folder may have the same number.
        let number = RandomState::new().build_hasher().finish();
        let unfinished = folder.join(format!("{}-{number:016x}.{UNFINISHED}", std::process::id()));
        let written = File::create_new(&unfinished).and_then(|mut file| {
            file.write_all(&self.kind.magic)?;
            file.write_all(&Sha256::digest(content))?;
            file.write_all(content)?;
            if self.kind.sync { file.sync_all() } else { Ok(()) }
        });
        written.and_then(|()| fs::rename(&unfinished, path)).inspect_err(|_| {
            let _ = fs::remove_file(&unfinished);
        })
    }

    /// Removes the files that were not used for longest, if there are more bytes than there should be.
    fn trim(&self, folder: &Path) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            // Another process may be removing the same files.
            let Ok((path, data)) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?))) else { continue };
            let modified = data.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            match path.extension().and_then(|ending| ending.to_str()) {
                Some(ending) if ending == self.kind.ending => files.push((modified, path, data.len())),
                Some(UNFINISHED) if modified.elapsed().is_ok_and(|age| age > ABANDONED) => drop(fs::remove_file(path)),
                _ => {}
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, _, bytes)| bytes).sum();
        for (_, path, bytes) in files {
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
