//! A checkpoint folder as a whole: configuration, weights and generation defaults that fit each other.

use std::path::{Path, PathBuf};

use allotrope_graph::{DType, WeightData, WeightSource};

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::generation::GenerationConfig;
use crate::quantization::LinearScheme;
use crate::weights::{DUMMY_SCHEME, DummyWeights, Weights};

/// The float types in which plain weights and activations are stored.
const PLAIN_TYPES: [DType; 3] = [DType::Bf16, DType::F16, DType::F32];

/// An opened checkpoint. Opening is cheap: weights are mapped, not read. The tokenizer is opened beside it
/// ([`Tokenizer::open`](crate::Tokenizer::open)), on another thread where start-up time matters.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    config: ModelConfig,
    generation: GenerationConfig,
    weights: Stored,
    dtype: DType,
}

/// Where the tensors are.
#[derive(Debug)]
enum Stored {
    Files(Weights),
    /// Nowhere: they are made.
    Dummy(DummyWeights),
}

impl WeightSource for Checkpoint {
    fn weight(&self, name: &str) -> Option<WeightData<'_>> {
        match &self.weights {
            Stored::Files(files) => {
                let tensor = files.tensor(name).ok()?;
                Some(WeightData { dtype: tensor.dtype(), shape: tensor.shape(), bytes: tensor.bytes() })
            }
            Stored::Dummy(dummy) => dummy.weight(name),
        }
    }

    fn fetch(&self, name: &str) {
        if let Stored::Files(files) = &self.weights
            && let Ok(tensor) = files.tensor(name)
        {
            tensor.fetch();
        }
    }

    fn release(&self, name: &str) {
        match &self.weights {
            Stored::Files(files) => {
                if let Ok(tensor) = files.tensor(name) {
                    tensor.release();
                }
            }
            Stored::Dummy(dummy) => dummy.release(name),
        }
    }
}

impl Checkpoint {
    /// Opens the checkpoint in the folder `path`.
    ///
    /// # Errors
    /// If `path` is not a folder with `config.json` and weights, or one of these or `generation_config.json` is
    /// unreadable, malformed or not supported. Everything is checked before memory is allocated for it.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let (config, generation) = described(path)?;
        let weights = Weights::open(path)?;
        let dtype = config.dtype.or_else(|| stored_dtype(&weights)).ok_or_else(|| without_dtype(path))?;
        Ok(Checkpoint { folder: path.to_owned(), config, generation, weights: Stored::Files(weights), dtype })
    }

    /// Opens the checkpoint in the folder `path` without its weights: tensors are made by shape, the same at each opening, with
    /// numbers of a size that keeps activations finite. What the checkpoint's answers are then means nothing; how long they take
    /// does. A tensor is made when it is first asked for, or all are by [`Checkpoint::make_dummy_weights`].
    ///
    /// # Errors
    /// As [`Checkpoint::open`], but for weights, or if `config.json` does not say in which type they are.
    pub fn open_dummy(path: &Path) -> Result<Self, ModelError> {
        let (config, generation) = described(path)?;
        let dtype = config.dtype.ok_or_else(|| without_dtype(path))?;
        let weights = Stored::Dummy(DummyWeights::default());
        let mut checkpoint = Checkpoint { folder: path.to_owned(), config, generation, weights, dtype };
        checkpoint.weights = Stored::Dummy(DummyWeights::of(&checkpoint.graph()?));
        Ok(checkpoint)
    }

    /// Makes all weights of a checkpoint that was opened without them, on several threads. Else it does nothing.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn make_dummy_weights(&self) -> Result<(), ModelError> {
        match &self.weights {
            Stored::Files(_) => Ok(()),
            Stored::Dummy(dummy) => dummy.make_all().map_err(|source| ModelError::Io {
                path: self.folder.clone(),
                action: "get memory for dummy weights of",
                advice: "free memory or choose a smaller model",
                source,
            }),
        }
    }

    /// Whether the weights are made and not read.
    pub fn is_dummy(&self) -> bool {
        matches!(self.weights, Stored::Dummy(_))
    }

    /// The folder that the checkpoint was opened from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The sampling defaults.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// The files of weights; `None` where weights are made.
    pub fn weights(&self) -> Option<&Weights> {
        match &self.weights {
            Stored::Files(files) => Some(files),
            Stored::Dummy(_) => None,
        }
    }

    /// The type in which a tensor is stored, which must be one of `dtypes`; its shape must be `shape`, whose dimensions come with
    /// the fields of `config.json` that they follow from.
    ///
    /// # Errors
    /// If the tensor is missing, or its type or shape is another.
    pub(crate) fn stored_type(
        &self,
        name: &str,
        dtypes: &[DType],
        shape: &[(&str, usize)],
    ) -> Result<DType, ModelError> {
        match &self.weights {
            Stored::Files(files) => Ok(files.expect(name, dtypes, shape)?.dtype()),
            Stored::Dummy(_) if dtypes.contains(&self.dtype) => Ok(self.dtype),
            Stored::Dummy(_) => Ok(dtypes.first().copied().unwrap_or(self.dtype)),
        }
    }

    /// The type in which activations are stored: F32, F16 or BF16, as `config.json` says; where it doesn't, that of the
    /// first weight.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The tokens that end generation: those of `generation_config.json`, or else of `config.json`. May be empty.
    pub fn eos_token_ids(&self) -> &[u32] {
        if self.generation.eos_token_ids.is_empty() {
            &self.config.eos_token_ids
        } else {
            &self.generation.eos_token_ids
        }
    }

    /// How the linear layer of this full name (`model.layers.0.self_attn.q_proj`) computes, from the quantization
    /// configuration and the layer's scales.
    ///
    /// # Errors
    /// If the layer's weight is missing or its type contradicts the configuration, or a scale is missing, of another
    /// shape or type than one float, not finite, or not above 0.
    pub fn linear_scheme(&self, layer: &str) -> Result<LinearScheme, ModelError> {
        let quantized = self.config.quantization.as_ref().is_some_and(|quantization| quantization.quantizes(layer));
        let files = match &self.weights {
            Stored::Files(files) => files,
            Stored::Dummy(_) => return Ok(if quantized { DUMMY_SCHEME } else { LinearScheme::Plain }),
        };
        let weight = files.tensor(&format!("{layer}.weight"))?;
        if !quantized {
            if PLAIN_TYPES.contains(&weight.dtype()) {
                return Ok(LinearScheme::Plain);
            }
            let expected = "bf16, f16 or f32: quantization_config in config.json does not name this layer";
            return Err(weight.error(format!("has dtype {}", weight.dtype()), expected));
        }
        if weight.dtype() != DType::F8E4M3 {
            let expected = "f8e4m3, or the layer in quantization_config.ignore in config.json";
            return Err(weight.error(format!("has dtype {}", weight.dtype()), expected));
        }
        Ok(LinearScheme::Fp8Static {
            weight_scale: files.positive_scalar(&format!("{layer}.weight_scale"))?,
            input_scale: files.positive_scalar(&format!("{layer}.input_scale"))?,
        })
    }
}

/// What a checkpoint's folder says beside its weights.
fn described(path: &Path) -> Result<(ModelConfig, GenerationConfig), ModelError> {
    let metadata = std::fs::metadata(path).map_err(|error| ModelError::io(path, "open", error))?;
    if !metadata.is_dir() {
        return Err(ModelError::file(path, "this is not a folder", "the folder of a Hugging Face checkpoint"));
    }
    let config = ModelConfig::open(path)?;
    let generation = GenerationConfig::open(path, config.vocab_size)?;
    Ok((config, generation))
}

fn without_dtype(path: &Path) -> ModelError {
    let problem = "config.json has no `dtype` and no weight is stored as one";
    ModelError::file(path, problem, "a `dtype` in config.json")
}

fn stored_dtype(weights: &Weights) -> Option<DType> {
    let mut types = weights.names().filter_map(|name| weights.tensor(name).ok()).map(|tensor| tensor.dtype());
    types.find(|dtype| PLAIN_TYPES.contains(dtype))
}
