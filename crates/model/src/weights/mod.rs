//! The weights of a checkpoint: one safetensors file or several with an index, mapped and checked, never read as a whole.

mod dummy;
mod header;
mod index;
mod mapping;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use allotrope_graph::DType;

pub(crate) use self::dummy::{DummyWeights, SCHEME as DUMMY_SCHEME};
use self::mapping::Mapping;
use crate::error::{ModelError, shorten};
use crate::json;

/// Name of the weights in a checkpoint that has one file of them.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Name of the index in a checkpoint whose weights are sharded.
pub const WEIGHTS_INDEX_FILE: &str = "model.safetensors.index.json";

/// All tensors of a checkpoint, in memory mappings.
///
/// Opening reads the headers only. Headers are checked in full: sizes with checked arithmetic, places within the file, no
/// overlap, no gap, no name twice; so a [`Tensor`] always has exactly the bytes that its type and shape need.
#[derive(Debug)]
pub struct Weights {
    /// What a missing tensor is reported against: the single file or the index.
    source: PathBuf,
    files: Vec<Mapping>,
    tensors: BTreeMap<String, Place>,
}

#[derive(Debug)]
struct Place {
    file: usize,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// One tensor in a mapped file. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    name: &'a str,
    dtype: DType,
    shape: &'a [usize],
    file: &'a Mapping,
    range: (usize, usize),
}

impl Weights {
    /// Opens the weights in `folder`: `model.safetensors` if it is there, otherwise what
    /// `model.safetensors.index.json` names.
    ///
    /// Shards must lie in `folder` itself, by plain file name; a file may be a symbolic link, as in the download cache of
    /// the Hugging Face library.
    ///
    /// # Errors
    /// If no weights are found, a shard is missing or named with a path, a header is cut off, malformed or contradicts
    /// its file, a tensor occurs twice, or the index and the shards disagree.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let single = folder.join(WEIGHTS_FILE);
        if json::exists(&single) {
            let mut weights = Weights { source: single.clone(), files: Vec::new(), tensors: BTreeMap::new() };
            weights.add_file(&single)?;
            return Ok(weights);
        }
        let index_path = folder.join(WEIGHTS_INDEX_FILE);
        if !json::exists(&index_path) {
            let other = ["pytorch_model.bin", "pytorch_model.bin.index.json"]
                .iter()
                .any(|name| json::exists(&folder.join(name)));
            let problem =
                if other { "the weights are in PyTorch's pickle format" } else { "the folder has no weights" };
            return Err(ModelError::file(
                folder,
                problem,
                format!(
                    "{WEIGHTS_FILE}, or {WEIGHTS_INDEX_FILE} with its shards; with `--load-format dummy`, weights are made by \
                     shape where only the speed matters"
                ),
            ));
        }
        Self::open_sharded(index_path)
    }

    fn open_sharded(index_path: PathBuf) -> Result<Self, ModelError> {
        let index = index::read(&index_path)?;
        let mut weights = Weights { source: index_path, files: Vec::new(), tensors: BTreeMap::new() };
        for shard in &index.shards {
            weights.add_file(shard)?;
        }
        for (name, shard) in &index.weight_map {
            let place = weights.tensors.get(name);
            let holder = place.and_then(|place| weights.files.get(place.file)).and_then(|file| file.path().file_name());
            if holder.is_none_or(|holder| holder != shard.as_str()) {
                let found = match holder {
                    Some(holder) => format!("is in {}", holder.display()),
                    None => "is in none of the shards".to_owned(),
                };
                return Err(ModelError::tensor(
                    &weights.source,
                    name,
                    found,
                    format!("it in {}, as the index says", shorten(shard)),
                ));
            }
        }
        Ok(weights)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), ModelError> {
        let mapping = Mapping::open(path)?;
        for entry in header::parse(path, mapping.bytes())? {
            let place = Place { file: self.files.len(), dtype: entry.dtype, shape: entry.shape, range: entry.range };
            if let Some(first) = self.tensors.get(&entry.name) {
                let holder = self.files.get(first.file).map_or(path, Mapping::path);
                let found = format!("occurs twice, here and in {}", holder.display());
                return Err(ModelError::tensor(path, &entry.name, found, "each tensor once"));
            }
            self.tensors.insert(entry.name, place);
        }
        self.files.push(mapping);
        Ok(())
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// If there is none, or its stored type is one that no operation takes.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, ModelError> {
        let missing = || ModelError::tensor(&self.source, name, "is missing", "a checkpoint that has it");
        let (name, place) = self.tensors.get_key_value(name).ok_or_else(missing)?;
        let file = self.files.get(place.file).ok_or_else(missing)?;
        let dtype = supported(place.dtype).ok_or_else(|| {
            ModelError::tensor(
                file.path(),
                name,
                format!("has dtype {}", place.dtype),
                "F32, F16, BF16, F8_E4M3 or I32",
            )
        })?;
        Ok(Tensor { name, dtype, shape: &place.shape, file, range: (place.range.start, place.range.end) })
    }

    /// The tensor `name`, which must have one of `dtypes` and the given shape.
    ///
    /// Each dimension comes with the configuration field (or words) that it follows from, for the error:
    /// `weights.expect("lm_head.weight", &[DType::Bf16], &[("vocab_size", 32000), ("hidden_size", 4096)])`.
    ///
    /// # Errors
    /// If the tensor is missing, or its type or shape is another.
    pub fn expect(&self, name: &str, dtypes: &[DType], shape: &[(&str, usize)]) -> Result<Tensor<'_>, ModelError> {
        let tensor = self.tensor(name)?;
        if !dtypes.contains(&tensor.dtype) {
            let names: Vec<String> = dtypes.iter().map(DType::to_string).collect();
            return Err(tensor.error(format!("has dtype {}", tensor.dtype), names.join(" or ")));
        }
        if !tensor.shape.iter().eq(shape.iter().map(|(_, size)| size)) {
            let dimensions: Vec<String> = shape.iter().map(|(field, size)| format!("{size} ({field})")).collect();
            let expected = format!("[{}], as {} says", dimensions.join(", "), crate::config::CONFIG_FILE);
            return Err(tensor.error(format!("has shape {:?}", tensor.shape), expected));
        }
        Ok(tensor)
    }

    /// The value of a tensor of one number (shape `[]` or `[1]`) in F32, F16 or BF16, finite and above 0: a scale.
    ///
    /// # Errors
    /// If the tensor is missing or is anything else.
    pub fn positive_scalar(&self, name: &str) -> Result<f32, ModelError> {
        let tensor = self.tensor(name)?;
        if !matches!(tensor.shape, [] | [1]) {
            return Err(
                tensor.error(format!("has shape {:?}", tensor.shape), "[1] or []: one number for the whole tensor")
            );
        }
        let value = match (tensor.dtype, tensor.bytes()) {
            (DType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (DType::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f32(),
            (DType::Bf16, &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f32(),
            _ => return Err(tensor.error(format!("has dtype {}", tensor.dtype), "f32, f16 or bf16")),
        };
        if value.is_finite() && value > 0.0 {
            Ok(value)
        } else {
            Err(tensor.error(format!("is {value}"), "a finite number above 0"))
        }
    }

    /// Whether there is a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The mapped files: path and content. Weights may be unaligned in them.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.files.iter().map(|file| (file.path(), file.bytes()))
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|place| place.range.len() as u64).sum()
    }
}

impl<'a> Tensor<'a> {
    /// The tensor's name.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions, outermost first; elements lie in row-major order.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The elements, little endian: exactly `shape` × `dtype` bytes. **Not** necessarily aligned for `dtype`.
    pub fn bytes(&self) -> &'a [u8] {
        self.file.bytes().get(self.range.0..self.range.1).unwrap_or_default()
    }

    /// The file that holds the tensor.
    pub fn path(&self) -> &'a Path {
        self.file.path()
    }

    /// Reads the tensor's pages into memory ahead of use, which takes as long as the disk does: call it beside other work.
    pub fn fetch(&self) {
        self.file.fetch(self.range.0..self.range.1);
    }

    /// Lets the kernel drop the pages that hold nothing but this tensor, after it was copied into another layout. The
    /// tensor stays valid: the next access reads the file again.
    pub fn release(&self) {
        self.file.release(self.range.0..self.range.1);
    }

    /// An error about this tensor: what was `found`, and what was `expected`.
    pub(crate) fn error(&self, found: impl Into<String>, expected: impl Into<String>) -> ModelError {
        ModelError::tensor(self.path(), self.name, found, expected)
    }
}

fn supported(dtype: safetensors::Dtype) -> Option<DType> {
    match dtype {
        safetensors::Dtype::F32 => Some(DType::F32),
        safetensors::Dtype::F16 => Some(DType::F16),
        safetensors::Dtype::BF16 => Some(DType::Bf16),
        safetensors::Dtype::F8_E4M3 => Some(DType::F8E4M3),
        safetensors::Dtype::I32 => Some(DType::I32),
        _ => None,
    }
}
