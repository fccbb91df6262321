//! Reading JSON files with errors that name file and field.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{ModelError, shorten};

/// Largest size of a small JSON file (`config.json` and its like), in bytes. Real ones have a few kilobytes.
pub(crate) const SMALL_FILE: u64 = 16 << 20;

/// Reads a regular file of at most `limit` bytes.
pub(crate) fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, ModelError> {
    let size = regular_file_size(path)?;
    if size > limit {
        return Err(ModelError::file(path, format!("the file has {size} bytes"), format!("at most {limit} bytes")));
    }
    fs::read(path).map_err(|error| ModelError::io(path, "read", error))
}

/// Reads a regular file of at most `limit` bytes of UTF-8.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String, ModelError> {
    String::from_utf8(read_file(path, limit)?).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        ModelError::file(path, format!("byte {place} is not UTF-8"), "text in UTF-8")
    })
}

/// The size of a regular file in bytes. Symbolic links are followed; folders, pipes and devices are refused, because
/// opening one of those can block for ever.
pub(crate) fn regular_file_size(path: &Path) -> Result<u64, ModelError> {
    let metadata = fs::metadata(path).map_err(|error| ModelError::io(path, "open", error))?;
    if metadata.is_file() {
        Ok(metadata.len())
    } else {
        Err(ModelError::file(path, "this is not a regular file", "a regular file or a symbolic link to one"))
    }
}

/// Whether there is anything at `path`; a dangling link counts, so that opening it reports what is wrong.
pub(crate) fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Reads a file that holds one JSON object.
pub(crate) fn read_object(path: &Path, limit: u64) -> Result<Map<String, Value>, ModelError> {
    let bytes = read_file(path, limit)?;
    serde_json::from_slice(&bytes).map_err(|error| ModelError::json(path, &error, "a JSON object"))
}

/// One JSON object of a file, with typed and checked access to its fields. A `null` counts as absent.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    path: &'a Path,
    /// Dotted name of this object inside the file, with a dot at the end; empty for the whole file.
    prefix: String,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(path: &'a Path, object: &'a Map<String, Value>) -> Self {
        Fields { path, prefix: String::new(), object }
    }

    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.object.keys().map(String::as_str)
    }

    /// The error for `field`, whose value (or absence) is not what was `expected`.
    pub(crate) fn error(&self, field: &str, expected: impl Into<String>) -> ModelError {
        let found = match self.object.get(field) {
            None => "missing".to_owned(),
            Some(value) => shorten(&value.to_string()),
        };
        self.error_found(field, found, expected)
    }

    pub(crate) fn error_found(&self, field: &str, found: impl Into<String>, expected: impl Into<String>) -> ModelError {
        ModelError::Field {
            path: self.path.to_owned(),
            field: shorten(&format!("{}{field}", self.prefix)),
            found: found.into(),
            expected: expected.into(),
        }
    }

    pub(crate) fn size(&self, field: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value
            .as_u64()
            .and_then(|size| usize::try_from(size).ok())
            .filter(|size| range.contains(size))
            .map(Some)
            .ok_or_else(|| self.error(field, format!("a whole number from {} to {}", range.start(), range.end())))
    }

    pub(crate) fn required_size(&self, field: &str, range: RangeInclusive<usize>) -> Result<usize, ModelError> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.size(field, range)?.ok_or_else(|| self.error(field, expected))
    }

    /// A number for which `right` holds; `expected` says in words what that is.
    pub(crate) fn number(
        &self,
        field: &str,
        expected: &str,
        right: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_f64().filter(|number| right(*number)).map(Some).ok_or_else(|| self.error(field, expected))
    }

    pub(crate) fn flag(&self, field: &str) -> Result<Option<bool>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.error(field, "true or false"))
    }

    pub(crate) fn text(&self, field: &str) -> Result<Option<&'a str>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.error(field, "a string"))
    }

    /// A list of strings; absent is the empty list.
    pub(crate) fn texts(&self, field: &str) -> Result<Vec<&'a str>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(Vec::new()) };
        value
            .as_array()
            .and_then(|items| items.iter().map(Value::as_str).collect())
            .ok_or_else(|| self.error(field, "a list of strings"))
    }

    pub(crate) fn object(&self, field: &str) -> Result<Option<Fields<'a>>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let object = value.as_object().ok_or_else(|| self.error(field, "an object"))?;
        Ok(Some(Fields { path: self.path, prefix: format!("{}{field}.", self.prefix), object }))
    }

    /// One token id, or a list of them, each below `vocabulary_size`; absent is the empty list.
    pub(crate) fn token_ids(&self, field: &str, vocabulary_size: usize) -> Result<Vec<u32>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(Vec::new()) };
        let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let id = |value: &Value| {
            let id = value.as_u64().filter(|id| *id < vocabulary_size as u64)?;
            u32::try_from(id).ok()
        };
        values.iter().map(id).collect::<Option<Vec<u32>>>().ok_or_else(|| {
            self.error(field, format!("a token id, or a list of them, each below vocab_size = {vocabulary_size}"))
        })
    }
}
