//! `config.json`: the shape of the model, typed and checked.

mod rope;

use std::fmt;
use std::path::Path;

use allotrope_graph::DType;
use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::json::{self, Fields};
use crate::quantization::QuantizationConfig;
use crate::rope::Rope;

/// Name of the configuration file in a checkpoint folder.
pub const CONFIG_FILE: &str = "config.json";

// Bounds far above every published model: they keep products of sizes within 64 bits and stop a hostile file before
// anything is allocated for it.
const MAX_HIDDEN: usize = 1 << 20;
const MAX_INTERMEDIATE: usize = 1 << 22;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEADS: usize = 1 << 14;
const MAX_HEAD_DIM: usize = 1 << 12;
const MAX_VOCABULARY: usize = 1 << 24;
const MAX_POSITIONS: usize = 1 << 28;

/// The architectures that can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `LlamaForCausalLM`: RMSNorm before attention and MLP, rotary embedding, grouped-query attention, gated MLP.
    Llama,
}

impl Architecture {
    /// Class names as `config.json` spells them, with the model type that belongs to each.
    const NAMES: [(&'static str, &'static str, Architecture); 1] = [("LlamaForCausalLM", "llama", Architecture::Llama)];

    fn supported() -> String {
        let names: Vec<&str> = Self::NAMES.iter().map(|(class, _, _)| *class).collect();
        names.join(", ")
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, _, architecture)| architecture == self);
        f.write_str(name.map_or("", |(class, _, _)| class))
    }
}

/// The activation function of the gated MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`, also called swish.
    Silu,
}

/// The shape of a model, from `config.json`. All sizes are positive and below fixed bounds, and fit each other.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which graph to build.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP between its projections.
    pub intermediate_size: usize,
    /// Number of decoder layers, `num_hidden_layers`.
    pub layers: usize,
    /// Query heads of each layer, `num_attention_heads`; a multiple of `key_value_heads`.
    pub attention_heads: usize,
    /// Key and value heads of each layer, `num_key_value_heads` (default: `attention_heads`).
    pub key_value_heads: usize,
    /// Elements of one head, even (default: `hidden_size / attention_heads`).
    pub head_dim: usize,
    /// Rows of the embedding; token ids are below it.
    pub vocab_size: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// The rotary embedding.
    pub rope: Rope,
    /// Longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the output projection is the embedding's table.
    pub tie_word_embeddings: bool,
    /// Whether the four attention projections have biases.
    pub attention_bias: bool,
    /// Whether the three MLP projections have biases.
    pub mlp_bias: bool,
    /// Activation of the MLP, `hidden_act`.
    pub activation: Activation,
    /// Type in which activations are stored, `torch_dtype` or `dtype`; `None` where the file doesn't say.
    pub dtype: Option<DType>,
    /// Token that begins every text, if any.
    pub bos_token_id: Option<u32>,
    /// Tokens that end generation; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// How linear layers are quantized; `None` for a plain checkpoint.
    pub quantization: Option<QuantizationConfig>,
}

impl ModelConfig {
    /// Reads and checks `config.json` in `folder`.
    ///
    /// # Errors
    /// If the file can't be read, is not a JSON object, names an architecture, activation, rotary embedding or
    /// quantization that is not supported, or holds sizes that are absurd or contradict each other.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join(CONFIG_FILE);
        let object = json::read_object(&path, json::SMALL_FILE)?;
        Self::from_json(&path, &object)
    }

    fn from_json(path: &Path, object: &Map<String, Value>) -> Result<Self, ModelError> {
        let fields = Fields::new(path, object);
        let architecture = architecture(&fields)?;
        let hidden_size = fields.required_size("hidden_size", 1..=MAX_HIDDEN)?;
        let (attention_heads, key_value_heads, head_dim) = heads(&fields, hidden_size)?;
        let vocab_size = fields.required_size("vocab_size", 1..=MAX_VOCABULARY)?;
        let max_position_embeddings = fields.size("max_position_embeddings", 1..=MAX_POSITIONS)?.unwrap_or(2048);
        let bos_token_id = match fields.token_ids("bos_token_id", vocab_size)?.as_slice() {
            [] => None,
            [id] => Some(*id),
            _ => return Err(fields.error("bos_token_id", "one token id")),
        };
        Ok(ModelConfig {
            architecture,
            hidden_size,
            intermediate_size: fields.required_size("intermediate_size", 1..=MAX_INTERMEDIATE)?,
            layers: fields.required_size("num_hidden_layers", 1..=MAX_LAYERS)?,
            attention_heads,
            key_value_heads,
            head_dim,
            vocab_size,
            rms_norm_eps: fields
                .number("rms_norm_eps", "a number above 0 and below 1", |eps| {
                    eps > 0.0 && eps < 1.0 && eps as f32 > 0.0
                })?
                .unwrap_or(1e-6),
            rope: rope::read(&fields, max_position_embeddings)?,
            max_position_embeddings,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
            activation: activation(&fields)?,
            dtype: dtype(&fields)?,
            bos_token_id,
            eos_token_ids: fields.token_ids("eos_token_id", vocab_size)?,
            quantization: QuantizationConfig::read(&fields)?,
        })
    }

    /// Width of the queries of one token: `attention_heads · head_dim`.
    pub fn query_size(&self) -> usize {
        self.attention_heads * self.head_dim
    }

    /// Width of the keys, and of the values, of one token: `key_value_heads · head_dim`.
    pub fn key_value_size(&self) -> usize {
        self.key_value_heads * self.head_dim
    }
}

fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let classes = fields.texts("architectures")?;
    let model_type = fields.text("model_type")?;
    let supported = || format!("one of the supported architectures: {}", Architecture::supported());
    let known = Architecture::NAMES
        .iter()
        .find(|(class, kind, _)| if classes.is_empty() { model_type == Some(*kind) } else { classes.contains(class) });
    let Some((class, kind, architecture)) = known else {
        let field = if classes.is_empty() && model_type.is_some() { "model_type" } else { "architectures" };
        return Err(fields.error(field, supported()));
    };
    if model_type.is_some_and(|found| found != *kind) {
        return Err(fields.error("model_type", format!("\"{kind}\", which belongs to {class}")));
    }
    Ok(*architecture)
}

/// Query heads, key-value heads and elements of a head.
fn heads(fields: &Fields<'_>, hidden_size: usize) -> Result<(usize, usize, usize), ModelError> {
    let heads = fields.required_size("num_attention_heads", 1..=MAX_HEADS)?;
    let key_value_heads = fields.size("num_key_value_heads", 1..=MAX_HEADS)?.unwrap_or(heads);
    if !heads.is_multiple_of(key_value_heads) {
        let expected = format!("a divisor of num_attention_heads = {heads}");
        return Err(fields.error("num_key_value_heads", expected));
    }
    let head_dim = match fields.size("head_dim", 2..=MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let expected = format!("a divisor of hidden_size = {hidden_size}, or a field `head_dim` beside it");
            return Err(fields.error("num_attention_heads", expected));
        }
    };
    if head_dim % 2 != 0 || head_dim > MAX_HEAD_DIM {
        let expected =
            format!("an even number up to {MAX_HEAD_DIM} (hidden_size / num_attention_heads where it is not given)");
        return Err(fields.error_found("head_dim", head_dim.to_string(), expected));
    }
    Ok((heads, key_value_heads, head_dim))
}

fn activation(fields: &Fields<'_>) -> Result<Activation, ModelError> {
    match fields.text("hidden_act")? {
        None | Some("silu" | "swish") => Ok(Activation::Silu),
        Some(_) => Err(fields.error("hidden_act", "\"silu\", the supported activation")),
    }
}

fn dtype(fields: &Fields<'_>) -> Result<Option<DType>, ModelError> {
    let field = if fields.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    match fields.text(field)? {
        None => Ok(None),
        Some("bfloat16") => Ok(Some(DType::Bf16)),
        Some("float16") => Ok(Some(DType::F16)),
        Some("float32") => Ok(Some(DType::F32)),
        Some(_) => Err(fields.error(field, "\"bfloat16\", \"float16\" or \"float32\"")),
    }
}
