//! A checkpoint folder as a whole: configuration, weights and generation defaults that fit each other.

use std::path::{Path, PathBuf};

use allotrope_graph::DType;

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::generation::GenerationConfig;
use crate::quantization::LinearScheme;
use crate::weights::Weights;

/// The float types in which plain weights and activations are stored.
const PLAIN_TYPES: [DType; 3] = [DType::Bf16, DType::F16, DType::F32];

/// An opened checkpoint. Opening is cheap: weights are mapped, not read. The tokenizer is opened beside it
/// ([`Tokenizer::open`](crate::Tokenizer::open)), on another thread where start-up time matters.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    config: ModelConfig,
    generation: GenerationConfig,
    weights: Weights,
    dtype: DType,
}

impl Checkpoint {
    /// Opens the checkpoint in the folder `path`.
    ///
    /// # Errors
    /// If `path` is not a folder with `config.json` and weights, or one of these or `generation_config.json` is
    /// unreadable, malformed or not supported. Everything is checked before memory is allocated for it.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let metadata = std::fs::metadata(path).map_err(|error| ModelError::io(path, "open", error))?;
        if !metadata.is_dir() {
            return Err(ModelError::file(path, "this is not a folder", "the folder of a Hugging Face checkpoint"));
        }
        let config = ModelConfig::open(path)?;
        let generation = GenerationConfig::open(path, config.vocab_size)?;
        let weights = Weights::open(path)?;
        let dtype = config.dtype.or_else(|| stored_dtype(&weights)).ok_or_else(|| {
            ModelError::file(
                path,
                "config.json has no `dtype` and no weight is stored as one",
                "a `dtype` in config.json",
            )
        })?;
        Ok(Checkpoint { folder: path.to_owned(), config, generation, weights, dtype })
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

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
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
        let weight = self.weights.tensor(&format!("{layer}.weight"))?;
        let quantized = self.config.quantization.as_ref().is_some_and(|quantization| quantization.quantizes(layer));
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
            weight_scale: self.weights.positive_scalar(&format!("{layer}.weight_scale"))?,
            input_scale: self.weights.positive_scalar(&format!("{layer}.input_scale"))?,
        })
    }
}

fn stored_dtype(weights: &Weights) -> Option<DType> {
    let mut types = weights.names().filter_map(|name| weights.tensor(name).ok()).map(|tensor| tensor.dtype());
    types.find(|dtype| PLAIN_TYPES.contains(dtype))
}
