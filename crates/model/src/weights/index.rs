//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::error::{ModelError, shorten};
use crate::json;

/// Largest index in bytes; those of models with a trillion parameters have some megabytes.
const MAX_INDEX: u64 = 256 << 20;
/// Most shards of one checkpoint, so that a hostile index cannot make us open files without end.
const MAX_SHARDS: usize = 10_000;

#[derive(Deserialize)]
struct IndexFile {
    weight_map: BTreeMap<String, String>,
}

/// The index of a sharded checkpoint.
pub(super) struct Index {
    /// Tensor name to shard file name.
    pub(super) weight_map: BTreeMap<String, String>,
    /// The shards, each once, in order of their names.
    pub(super) shards: Vec<PathBuf>,
}

/// Reads the index at `path` and checks that every shard is a plain file name in the index's own folder.
///
/// A shard may be a symbolic link, wherever it points: the download cache of the Hugging Face library is made of such
/// links, and whoever can place a link in the folder has the user's rights. The text of the index, which comes from the
/// network, can't lead out of the folder.
pub(super) fn read(path: &Path) -> Result<Index, ModelError> {
    let bytes = json::read_file(path, MAX_INDEX)?;
    let index: IndexFile = serde_json::from_slice(&bytes).map_err(|error| {
        ModelError::json(path, &error, "an object with `weight_map` from tensor names to file names")
    })?;
    if index.weight_map.is_empty() {
        return Err(field_error(path, "weight_map", "empty", "at least one tensor".to_owned()));
    }
    let names: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    if names.len() > MAX_SHARDS {
        return Err(field_error(
            path,
            "weight_map",
            &format!("a map to {} files", names.len()),
            format!("at most {MAX_SHARDS} files"),
        ));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut shards = Vec::with_capacity(names.len());
    for name in names {
        let mut components = Path::new(name).components();
        let plain =
            matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name);
        if !plain || name.contains(['\\', ':', '\0']) {
            return Err(field_error(
                path,
                "weight_map",
                &format!("a map to {:?}", shorten(name)),
                "plain names of files in this folder".to_owned(),
            ));
        }
        shards.push(folder.join(name));
    }
    Ok(Index { weight_map: index.weight_map, shards })
}

fn field_error(path: &Path, field: &str, found: &str, expected: String) -> ModelError {
    ModelError::Field { path: path.to_owned(), field: field.to_owned(), found: found.to_owned(), expected }
}
