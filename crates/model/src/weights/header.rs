//! The header of one safetensors file: which tensor lies where, checked against the size of the file.
//!
//! Types and JSON form come from the `safetensors` crate. The checks are made here, because its own sum offsets without
//! overflow checks and don't say which tensor is wrong.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::TensorInfo;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::error::{ModelError, shorten};

/// Bytes before the JSON header: its length, 64 bits, little endian.
const LENGTH_BYTES: usize = 8;
/// Largest header in bytes; the bound of the format's own implementation.
const MAX_HEADER: u64 = 100_000_000;
/// Most dimensions of a tensor. Weights have one or two; more than eight no format of ours means anything.
const MAX_RANK: usize = 8;
const FORM: &str = "a safetensors header";

/// One tensor of a file: its stored type, shape, and place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: safetensors::Dtype,
    pub(super) shape: Vec<usize>,
    /// Bytes of the file, from its beginning.
    pub(super) range: Range<usize>,
}

/// Parses and checks the header of `file`, the whole content of the file at `path`. Entries come in order of their bytes.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Vec<Entry>, ModelError> {
    let (header, data_start) = frame(path, file)?;
    let mut deserializer = serde_json::Deserializer::from_slice(header);
    let tensors = HeaderSeed.deserialize(&mut deserializer).and_then(|tensors| deserializer.end().map(|()| tensors));
    let tensors = tensors.map_err(|error| ModelError::json(path, &error, FORM))?;

    let data_size = file.len() - data_start;
    let mut entries = Vec::with_capacity(tensors.len());
    for (name, info) in tensors {
        entries.push(check_tensor(path, name, info, data_start, data_size)?);
    }
    entries.sort_by_key(|entry| (entry.range.start, entry.range.end));
    check_cover(path, &entries, data_start, file.len())?;
    Ok(entries)
}

/// The JSON bytes of the header, and where the data begins.
fn frame<'a>(path: &Path, file: &'a [u8]) -> Result<(&'a [u8], usize), ModelError> {
    let size = file.len();
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(ModelError::file(
            path,
            format!("the file has {size} bytes"),
            "a safetensors file, of at least 8 bytes",
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        let problem = format!("the header says that it has {length} bytes");
        return Err(ModelError::file(
            path,
            problem,
            format!("a safetensors file, whose header has at most {MAX_HEADER} bytes"),
        ));
    }
    let header = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let header = header.ok_or_else(|| {
        let problem = format!("the header says that it has {length} bytes, but the file has {size}");
        ModelError::file(path, problem, "a whole safetensors file; this one is cut off, or of another format")
    })?;
    Ok((header, LENGTH_BYTES + header.len()))
}

fn check_tensor(
    path: &Path,
    name: String,
    info: TensorInfo,
    data_start: usize,
    data_size: usize,
) -> Result<Entry, ModelError> {
    let wrong = |found: String, expected: String| Err(ModelError::tensor(path, &name, found, expected));
    let (begin, end) = info.data_offsets;
    if begin > end || end > data_size {
        let expected = format!("an ordered pair within the {data_size} bytes of data in this file (is it cut off?)");
        return wrong(format!("has data_offsets [{begin}, {end}]"), expected);
    }
    if info.shape.len() > MAX_RANK {
        return wrong(format!("has {} dimensions", info.shape.len()), format!("at most {MAX_RANK}"));
    }
    let elements = info.shape.iter().try_fold(1_usize, |product, dimension| product.checked_mul(*dimension));
    let bits = elements.and_then(|elements| elements.checked_mul(info.dtype.bitsize()));
    let Some(bits) = bits else {
        return wrong(
            format!("has shape {:?}", info.shape),
            "a shape whose bytes can be counted in 64 bits".to_owned(),
        );
    };
    let bytes = end - begin;
    if bits % 8 != 0 || bits / 8 != bytes {
        let expected = format!("{} bytes for shape {:?} of {}", bits.div_ceil(8), info.shape, info.dtype);
        return wrong(format!("has data_offsets [{begin}, {end}], {bytes} bytes"), expected);
    }
    Ok(Entry { name, dtype: info.dtype, shape: info.shape, range: data_start + begin..data_start + end })
}

/// The format wants the tensors to cover the data without gap or overlap.
fn check_cover(path: &Path, entries: &[Entry], data_start: usize, file_size: usize) -> Result<(), ModelError> {
    let mut end = data_start;
    let mut previous = "the header";
    for entry in entries {
        if entry.range.start != end {
            let relation = if entry.range.start < end { "overlaps" } else { "leaves a gap after" };
            let found =
                format!("{relation} {} (it begins at byte {} of the file)", shorten(previous), entry.range.start);
            return Err(ModelError::tensor(
                path,
                &entry.name,
                found,
                format!("byte {end}: tensors follow each other without gap or overlap"),
            ));
        }
        end = entry.range.end;
        previous = &entry.name;
    }
    if end == file_size {
        return Ok(());
    }
    let problem = format!("the file has {file_size} bytes, but its last tensor ends at byte {end}");
    Err(ModelError::file(path, problem, "a file that ends with its last tensor"))
}

/// Reads the header's object into a list, so that a name that occurs twice is seen.
struct HeaderSeed;

impl<'de> DeserializeSeed<'de> for HeaderSeed {
    type Value = Vec<(String, TensorInfo)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed {
    type Value = Vec<(String, TensorInfo)>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object from tensor names to dtype, shape and data_offsets")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else {
                let info = map.next_value::<TensorInfo>()?;
                tensors.push((name, info));
            }
        }
        Ok(tensors)
    }
}
