//! What tuning found, kept on disk: for each kernel and shape the parameters that were fastest.
//!
//! One file holds what was found with one *fingerprint*: device, kernels and version. Where one of them changes, so does the
//! name of the file, and nothing has to be invalidated. A file may be damaged, deleted or written by several processes at once:
//! then kernels are tuned again ([`crate::disk_cache`]).
//!
//! The body of a file is `number of entries`, then for each entry `length of the key`, the key in UTF-8, `number of parameters`
//! and the parameters; all numbers are `u32`, little-endian. Before that stands the SHA-256 of the fingerprint, so that a
//! file under another's name is not taken for it.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::disk_cache::{CacheKind, DiskCache};

/// The most bytes of a key.
pub const LONGEST_KEY: usize = 1 << 10;

/// The most parameters of an entry.
pub const MOST_PARAMETERS: usize = 32;

static KIND: CacheKind = CacheKind {
    magic: *b"altrtun1",
    ending: "tuning",
    what: "results of tuning",
    otherwise: "kernels are tuned again",
    // Models have tens of shapes; this is room for ten thousand.
    most_content: 1 << 20,
    most_bytes: 16 << 20,
    sync: true,
};

/// Parameters of kernels by what they were found for.
///
/// ```
/// use allotrope_runtime::TuningCache;
///
/// let folder = std::env::temp_dir().join(format!("tuning-{}", std::process::id()));
/// let mut cache = TuningCache::open(Some(&folder), "a processor; kernels 1f3a; version 1");
/// assert_eq!(cache.get("linear 2048x2048 bf16, 2 threads"), None);
/// cache.set("linear 2048x2048 bf16, 2 threads", &[8, 4]);
/// cache.save();
///
/// let again = TuningCache::open(Some(&folder), "a processor; kernels 1f3a; version 1");
/// assert_eq!(again.get("linear 2048x2048 bf16, 2 threads"), Some(&[8, 4][..]));
/// let other = TuningCache::open(Some(&folder), "another processor; kernels 1f3a; version 1");
/// assert_eq!(other.get("linear 2048x2048 bf16, 2 threads"), None);
/// # std::fs::remove_dir_all(folder)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct TuningCache {
    files: DiskCache,
    fingerprint: [u8; 32],
    /// What was on disk.
    found: BTreeMap<String, Vec<u32>>,
    /// What was set since; stronger.
    set: BTreeMap<String, Vec<u32>>,
}

impl TuningCache {
    /// Reads what is kept in a folder for a fingerprint. Whatever is not there or not whole is not known; without a folder
    /// nothing is, and nothing is kept.
    pub fn open(folder: Option<&Path>, fingerprint: &str) -> Self {
        let mut cache = Self {
            files: DiskCache::new(&KIND, folder.map(Path::to_path_buf)),
            fingerprint: Sha256::digest(fingerprint).into(),
            found: BTreeMap::new(),
            set: BTreeMap::new(),
        };
        cache.found = cache.read();
        cache
    }

    /// The parameters for a key. They come from a file: whoever uses them checks that a kernel can have them.
    pub fn get(&self, key: &str) -> Option<&[u32]> {
        self.set.get(key).or_else(|| self.found.get(key)).map(Vec::as_slice)
    }

    /// Notes the parameters for a key. A key that is longer than [`LONGEST_KEY`] or has more than [`MOST_PARAMETERS`] is known
    /// until the process ends and not kept.
    pub fn set(&mut self, key: impl Into<String>, parameters: &[u32]) {
        self.set.insert(key.into(), parameters.to_vec());
    }

    /// Keeps what was set, beside what other processes have kept since. Where that fails it is a warning.
    pub fn save(&mut self) {
        if self.set.is_empty() {
            return;
        }
        let mut all = self.read();
        all.extend(self.set.iter().map(|(key, parameters)| (key.clone(), parameters.clone())));
        let mut body = self.encode(&all);
        if body.len() as u64 > KIND.most_content {
            // Others' results gave way.
            body = self.encode(&self.set);
            all = self.set.clone();
        }
        self.files.store(&self.name(), &body);
        self.found = all;
        self.set.clear();
    }

    /// The name of the file.
    fn name(&self) -> String {
        self.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn read(&self) -> BTreeMap<String, Vec<u32>> {
        let Some(bytes) = self.files.find(&self.name()) else { return BTreeMap::new() };
        decode(&self.fingerprint, &bytes).unwrap_or_else(|| {
            tracing::warn!(
                "kept results of tuning are not of the form that they should have, and kernels are tuned again"
            );
            BTreeMap::new()
        })
    }

    fn encode(&self, entries: &BTreeMap<String, Vec<u32>>) -> Vec<u8> {
        let kept =
            |(key, parameters): &(&String, &Vec<u32>)| key.len() <= LONGEST_KEY && parameters.len() <= MOST_PARAMETERS;
        let kept: Vec<_> = entries.iter().filter(kept).collect();
        let mut body = self.fingerprint.to_vec();
        let number = |body: &mut Vec<u8>, number: usize| body.extend((number as u32).to_le_bytes());
        number(&mut body, kept.len());
        for (key, parameters) in kept {
            number(&mut body, key.len());
            body.extend(key.as_bytes());
            number(&mut body, parameters.len());
            body.extend(parameters.iter().flat_map(|parameter| parameter.to_le_bytes()));
        }
        body
    }
}

/// The entries of a file; `None` if it is of another fingerprint or not of this form.
fn decode(fingerprint: &[u8; 32], bytes: &[u8]) -> Option<BTreeMap<String, Vec<u32>>> {
    let mut rest = bytes.strip_prefix(fingerprint.as_slice())?;
    let entries = take_number(&mut rest)?;
    let mut found = BTreeMap::new();
    for _ in 0..entries {
        let length = usize::try_from(take_number(&mut rest)?).ok().filter(|length| *length <= LONGEST_KEY)?;
        let key = std::str::from_utf8(rest.split_off(..length)?).ok()?;
        let count = usize::try_from(take_number(&mut rest)?).ok().filter(|count| *count <= MOST_PARAMETERS)?;
        let parameters = (0..count).map(|_| take_number(&mut rest)).collect::<Option<_>>()?;
        found.insert(key.to_owned(), parameters);
    }
    rest.is_empty().then_some(found)
}

fn take_number(rest: &mut &[u8]) -> Option<u32> {
    rest.split_off(..4)?.try_into().ok().map(u32::from_le_bytes)
}
