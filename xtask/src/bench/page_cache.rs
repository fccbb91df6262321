//! Taking a checkpoint's files out of the page cache, which needs no privileges.

use std::fs::File;
use std::path::Path;

use rustix::fs::{Advice, fadvise};

use crate::error::TaskError;
use crate::workspace;

/// Asks the kernel to drop the cached pages of every file of a folder. Pages that another process has mapped stay, so
/// the runs themselves report what they read from storage.
///
/// # Errors
/// If a file can't be opened, or the file system refuses.
pub(crate) fn drop_files(folder: &Path) -> Result<(), TaskError> {
    for path in workspace::files_below(folder)? {
        let file = File::open(&path).map_err(TaskError::file(&path))?;
        // Pages that are still to be written can't be dropped. A file system that can't sync has none.
        let _ = file.sync_all();
        fadvise(&file, 0, None, Advice::DontNeed).map_err(|error| TaskError::file(&path)(error.into()))?;
    }
    Ok(())
}

/// Bytes of a checkpoint's weight files.
///
/// # Errors
/// If the folder can't be read.
pub(crate) fn checkpoint_bytes(folder: &Path) -> Result<u64, TaskError> {
    let mut bytes = 0;
    for path in workspace::files_below(folder)? {
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            bytes += path.metadata().map_err(TaskError::file(&path))?.len();
        }
    }
    Ok(bytes)
}
