//! A file of weights mapped into memory. The only unsafe code of this crate is here.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::ModelError;
use crate::json;

/// Advice is given in units of this many bytes: a multiple of the page size on every platform we know (4, 16 or 64 KiB),
/// so that a neighbour's page is never released.
const ADVICE_UNIT: usize = 64 << 10;

/// What is asked for at a time where pages can only be asked for: of a larger range, Linux reads the beginning and forgets the
/// rest. How much it reads is a property of the disk, and this its usual default (`read_ahead_kb`).
const READ_AHEAD: usize = 128 << 10;

/// A read-only mapping of one file.
#[derive(Debug)]
pub(super) struct Mapping {
    path: PathBuf,
    map: Mmap,
}

impl Mapping {
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let size = json::regular_file_size(path)?;
        if size == 0 {
            return Err(ModelError::file(path, "the file is empty", "a safetensors file"));
        }
        let file = File::open(path).map_err(|error| ModelError::io(path, "open", error))?;
        // SAFETY: the mapping is read-only and private to this value. Another process that writes to the file while it is
        // mapped changes the numbers we read, and one that truncates it makes the kernel end this process with SIGBUS on the
        // next read beyond the new end; no mapping can prevent either. We rely on weights as plain bytes only, for which
        // every bit pattern is valid, and the offsets checked at opening are kept in memory of our own, so changed bytes
        // can give wrong numbers but no access outside of the mapping.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| ModelError::io(path, "map", error))?;
        // What is read from the disk then comes in huge pages where the file system has them. Only a wish.
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(memmap2::Advice::HugePage) {
            tracing::debug!(path = %path.display(), %error, "no huge pages for weights");
        }
        Ok(Mapping { path: path.to_owned(), map })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Reads the pages of `range` into memory and maps them; where the kernel can't, only asks it to read them ahead.
    pub(super) fn fetch(&self, range: Range<usize>) {
        let start = range.start - range.start % ADVICE_UNIT;
        #[cfg(target_os = "linux")]
        match self.map.advise_range(memmap2::Advice::PopulateRead, start, range.end - start) {
            Ok(()) => return,
            // Kernels before 5.14 do not know it.
            Err(error) => tracing::debug!(path = %self.path.display(), %error, "weights are not mapped ahead"),
        }
        #[cfg(unix)]
        for start in (start..range.end).step_by(READ_AHEAD) {
            let bytes = READ_AHEAD.min(range.end - start);
            if let Err(error) = self.map.advise_range(memmap2::Advice::WillNeed, start, bytes) {
                tracing::debug!(path = %self.path.display(), %error, "the kernel declined to read weights ahead");
                return;
            }
        }
    }

    /// Lets the kernel drop the pages that lie wholly within `range`.
    pub(super) fn release(&self, range: Range<usize>) {
        let start = range.start.next_multiple_of(ADVICE_UNIT);
        let end = if range.end == self.map.len() { range.end } else { range.end - range.end % ADVICE_UNIT };
        if start >= end {
            return;
        }
        #[cfg(unix)]
        {
            // SAFETY: the mapping is file-backed and read-only, so a dropped page is read from the file again at the next
            // access and no data can be lost; `range` is that of a tensor, which was checked to lie within the mapping.
            let advised =
                unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
            if let Err(error) = advised {
                tracing::debug!(path = %self.path.display(), %error, "the kernel declined to release weights");
            }
        }
    }
}
