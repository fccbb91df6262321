//! Reads bundles, which can be wrong in any way.

use std::borrow::Cow;
use std::io::Read as _;
use std::ops::Range;

use flate2::read::DeflateDecoder;
use sha2::{Digest as _, Sha256};

use super::{Architecture, BundleError, HASH_BYTES, Kind, MAGIC, MAXIMUM_OUTPUT, is_source_name};

/// The bundle that this crate was built with.
static EMBEDDED: &[u8] = include_bytes!("../../../../kernels/kernels.bundle");

/// Kernels compiled ahead of time. Only the directory has been read; outputs are inflated when they are asked for.
#[derive(Debug, Clone)]
pub struct Bundle {
    bytes: Cow<'static, [u8]>,
    entries: Vec<Entry>,
}

/// What the directory says about one output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The source, without folder and ending.
    pub source: String,
    /// What the output is.
    pub kind: Kind,
    /// What it is compiled for.
    pub architecture: Architecture,
    /// How many bytes it inflates to.
    pub size: usize,
    /// SHA-256 of the inflated bytes.
    pub sha256: [u8; HASH_BYTES],
    /// Where its stream lies in the bundle.
    stored: Range<usize>,
}

impl Entry {
    /// How many bytes it takes in the bundle.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        self.stored.len()
    }
}

impl Bundle {
    /// The kernels that are part of this program.
    ///
    /// # Errors
    /// [`BundleError::Damaged`] if the program was built with a damaged bundle.
    pub fn embedded() -> Result<Self, BundleError> {
        Self::read(EMBEDDED)
    }

    /// Reads the directory of a bundle.
    ///
    /// # Errors
    /// [`BundleError::Damaged`] if the bytes are not a bundle of this format.
    pub fn read(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, BundleError> {
        let bytes = bytes.into();
        let mut cursor = Cursor { bytes: &bytes, position: 0 };
        if cursor.take(MAGIC.len())? != MAGIC {
            return Err(damaged("they do not begin as a bundle of this version does"));
        }
        let count = cursor.number()?;
        let mut entries: Vec<Entry> = Vec::new();
        // The loop ends at the end of the bytes however large the number is, and the list grows with what was read.
        for _ in 0..count {
            let entry = cursor.entry()?;
            let same = |other: &Entry| {
                (&other.source, other.kind, other.architecture) == (&entry.source, entry.kind, entry.architecture)
            };
            if entries.iter().any(same) {
                return Err(damaged(&format!("{} is there twice", title(&entry))));
            }
            entries.push(entry);
        }
        let mut position = cursor.position;
        for entry in &mut entries {
            let end = position.checked_add(entry.stored.end).filter(|end| *end <= bytes.len());
            let end = end.ok_or_else(|| damaged(&format!("{} is cut off", title(entry))))?;
            entry.stored = position..end;
            position = end;
        }
        if position != bytes.len() {
            return Err(damaged(&format!("{} bytes follow the last output", bytes.len() - position)));
        }
        Ok(Bundle { bytes, entries })
    }

    /// What the directory lists, in its order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// One output, inflated.
    ///
    /// # Errors
    /// [`BundleError::Damaged`] if it does not have the size or the hash that the directory says.
    pub fn content(&self, entry: &Entry) -> Result<Vec<u8>, BundleError> {
        let wrong = |what: &str| damaged(&format!("{} {what}", title(entry)));
        let stored = self.bytes.get(entry.stored.clone()).ok_or_else(|| wrong("is cut off"))?;
        // The vector grows with what is really there, one byte past the size at most: a size that lies costs nothing.
        let limit = entry.size as u64 + 1;
        let mut content = Vec::new();
        let read = DeflateDecoder::new(stored).take(limit).read_to_end(&mut content);
        read.map_err(|error| wrong(&format!("can't be inflated ({error})")))?;
        if content.len() != entry.size {
            return Err(wrong(&format!("does not inflate to the {} bytes that the directory says", entry.size)));
        }
        if Sha256::digest(&content).as_slice() != entry.sha256 {
            return Err(wrong("does not have the hash that the directory says"));
        }
        Ok(content)
    }

    /// The machine code of a source (`linear` for `kernels/linear.cu`) for a device of a compute capability, of the
    /// nearest architecture that runs there; `None` if there is no such and the driver must compile [`Bundle::ptx`].
    ///
    /// # Errors
    /// [`BundleError::UnknownSource`], [`BundleError::Damaged`].
    pub fn cubin(&self, source: &str, capability: (u32, u32)) -> Result<Option<Vec<u8>>, BundleError> {
        self.select(source, Kind::Cubin, capability)?.map(|entry| self.content(entry)).transpose()
    }

    /// The PTX of a source for a device of a compute capability: `compute_90a` on 9.0 and on nothing else, or else that of
    /// the newest architecture that is not newer than the device.
    ///
    /// # Errors
    /// [`BundleError::UnknownSource`], [`BundleError::TooOld`], [`BundleError::Damaged`].
    pub fn ptx(&self, source: &str, capability: (u32, u32)) -> Result<String, BundleError> {
        let too_old = || BundleError::TooOld { name: source.to_owned(), capability };
        let entry = self.select(source, Kind::Ptx, capability)?.ok_or_else(too_old)?;
        let text = String::from_utf8(self.content(entry)?);
        text.map_err(|_| damaged(&format!("{} is not UTF-8", title(entry))))
    }

    /// The output of a kind that fits a device best.
    fn select(&self, source: &str, kind: Kind, capability: (u32, u32)) -> Result<Option<&Entry>, BundleError> {
        let mut of_source = self.entries.iter().filter(|entry| entry.source == source).peekable();
        if of_source.peek().is_none() {
            return Err(BundleError::UnknownSource(source.to_owned()));
        }
        let fits = |entry: &&Entry| entry.kind == kind && entry.architecture.runs_on(kind, capability);
        // A specific architecture has the numbers of the device, so none that fits has higher ones.
        Ok(of_source.filter(fits).max_by_key(|entry| entry.architecture))
    }
}

/// Reads a directory from its start.
struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], BundleError> {
        let end = self.position.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.position..end));
        let taken = taken.ok_or_else(|| damaged("their directory is cut off"))?;
        self.position += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BundleError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn number(&mut self) -> Result<usize, BundleError> {
        usize::try_from(u32::from_le_bytes(self.array()?)).map_err(|_| damaged("a size is too large"))
    }

    /// One entry, whose range has the stored size but begins at 0.
    fn entry(&mut self) -> Result<Entry, BundleError> {
        let [name_bytes] = self.array()?;
        let name = std::str::from_utf8(self.take(usize::from(name_bytes))?).ok().filter(|name| is_source_name(name));
        let name = name.ok_or_else(|| damaged("a source has no proper name"))?.to_owned();
        let [kind, major, minor, specific] = self.array()?;
        let kind = match kind {
            0 => Kind::Ptx,
            1 => Kind::Cubin,
            _ => return Err(damaged(&format!("an output of {name} is of the unknown kind {kind}"))),
        };
        if minor > 9 || specific > 1 {
            return Err(damaged(&format!("an output of {name} is for no architecture")));
        }
        let architecture = Architecture { major, minor, specific: specific == 1 };
        let (stored, size, sha256) = (self.number()?, self.number()?, self.array()?);
        let entry = Entry { source: name, kind, architecture, size, sha256, stored: 0..stored };
        if size > MAXIMUM_OUTPUT {
            return Err(damaged(&format!("{} claims {size} bytes", title(&entry))));
        }
        Ok(entry)
    }
}

fn title(entry: &Entry) -> String {
    format!("{} {} of {}", entry.kind, entry.architecture, entry.source)
}

fn damaged(message: &str) -> BundleError {
    BundleError::Damaged(message.to_owned())
}
