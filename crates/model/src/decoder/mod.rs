//! From a checkpoint to the graph of one step.
//!
//! One decoder, described: embedding, layers of attention and gated MLP with a norm before each and a residual around
//! each, a final norm and the output projection. The description is [`ModelConfig`](crate::ModelConfig); an
//! architecture that differs in kind gets a field there and a branch here, not a file of its own.

use std::sync::Arc;

use allotrope_graph::{DType, Dim, Graph, GraphError, Input, KvCacheType, OpKind, TensorType, ValueId};

use crate::checkpoint::Checkpoint;
use crate::config::{Activation, ModelConfig};
use crate::error::ModelError;
use crate::quantization::LinearScheme;
use crate::rope::RopeParameters;

/// The float types that plain weights may be stored in.
const PLAIN: [DType; 3] = [DType::Bf16, DType::F16, DType::F32];

impl Checkpoint {
    /// The graph of one step as the model is written down, operation by operation; its output is the `f32` logits,
    /// `[R, vocab_size]`. Checks the shape and type of every tensor that it uses against `config.json`.
    ///
    /// # Errors
    /// If a tensor is missing or contradicts `config.json`.
    pub fn graph(&self) -> Result<Graph, ModelError> {
        self.graph_with_kv_cache(self.dtype())
    }

    /// The same with keys and values stored as `kv_cache`: the type of the activations, or E4M3.
    ///
    /// # Errors
    /// As [`Checkpoint::graph`], or if keys and values can't be stored so.
    pub fn graph_with_kv_cache(&self, kv_cache: DType) -> Result<Graph, ModelError> {
        let config = self.config();
        let kv_cache = KvCacheType { dtype: kv_cache, kv_heads: config.key_value_heads, head_dim: config.head_dim };
        Decoder { checkpoint: self, config, kv_cache, graph: Graph::new() }.build()
    }
}

/// A size with the field of `config.json` that it follows from, for errors.
type Size = (&'static str, usize);

/// The inputs and values that every layer uses.
struct Shared {
    angles: ValueId,
    positions: ValueId,
    slots: ValueId,
    token_sequences: ValueId,
    block_tables: ValueId,
}

struct Decoder<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    kv_cache: KvCacheType,
    graph: Graph,
}

impl Decoder<'_> {
    fn build(mut self) -> Result<Graph, ModelError> {
        let activations = self.checkpoint.dtype();
        let (hidden, vocabulary) = (self.hidden(), ("vocab_size", self.config.vocab_size));
        let token_ids = self.graph.input(Input::TokenIds);
        let table = self.weight("model.embed_tokens.weight", &PLAIN, &[vocabulary, hidden])?;
        let embedding = self.push("embedding", OpKind::Embedding, &[table, token_ids])?;
        let mut stream = self.push("embedding.cast", OpKind::Cast { to: activations }, &[embedding])?;
        let shared = self.shared()?;
        for layer in 0..self.config.layers {
            stream = self.layer(layer, stream, &shared)?;
        }
        let logit_rows = self.graph.input(Input::LogitRows);
        let wanted = self.push("wanted", OpKind::SelectRows, &[stream, logit_rows])?;
        let normalized = self.norm("norm", "model.norm.weight", wanted)?;
        let head = if self.config.tie_word_embeddings {
            table
        } else {
            self.weight("lm_head.weight", &PLAIN, &[vocabulary, hidden])?
        };
        let head_type = self.graph.tensor_type(head).map_or(activations, |tensor| tensor.dtype);
        let input = self.push("lm_head.input", OpKind::Cast { to: head_type }, &[normalized])?;
        let logits = self.push("logits", OpKind::Linear { to: DType::F32, scale: None }, &[input, head])?;
        self.graph.add_output(logits);
        Ok(self.graph)
    }

    fn shared(&mut self) -> Result<Shared, ModelError> {
        let RopeParameters { inverse_frequencies, attention_scaling } =
            self.config.rope.parameters(self.config.head_dim);
        let positions = self.graph.input(Input::Positions);
        let angles = OpKind::RopeAngles { inverse_frequencies: Arc::from(inverse_frequencies), attention_scaling };
        Ok(Shared {
            angles: self.push("rope_angles", angles, &[positions])?,
            positions,
            slots: self.graph.input(Input::Slots),
            token_sequences: self.graph.input(Input::TokenSequences),
            block_tables: self.graph.input(Input::BlockTables),
        })
    }

    fn layer(&mut self, layer: usize, stream: ValueId, shared: &Shared) -> Result<ValueId, ModelError> {
        let folder = format!("model.layers.{layer}");
        let name = |part: &str| format!("layers.{layer}.{part}");
        let normalized = self.norm(&name("input_norm"), &format!("{folder}.input_layernorm.weight"), stream)?;
        let attended = self.attention(layer, normalized, shared)?;
        let stream = self.push(name("attention_residual"), OpKind::Add, &[stream, attended])?;
        let normalized = self.norm(&name("mlp_norm"), &format!("{folder}.post_attention_layernorm.weight"), stream)?;
        let projected = self.mlp(layer, normalized)?;
        self.push(name("mlp_residual"), OpKind::Add, &[stream, projected])
    }

    fn attention(&mut self, layer: usize, input: ValueId, shared: &Shared) -> Result<ValueId, ModelError> {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let folder = format!("model.layers.{layer}.self_attn");
        let (heads, kv_heads, bias) =
            (self.config.attention_heads, self.config.key_value_heads, self.config.attention_bias);
        let query = ("num_attention_heads × head_dim", self.config.query_size());
        let key_value = ("num_key_value_heads × head_dim", self.config.key_value_size());
        let hidden = self.hidden();
        let mut project = |part: &str, rows| self.linear(&folder, part, &name(part), input, rows, hidden, bias);
        let (q, k, v) = (project("q_proj", query)?, project("k_proj", key_value)?, project("v_proj", key_value)?);
        let q = self.push(name("q_rope"), OpKind::Rope { heads }, &[q, shared.angles])?;
        let k = self.push(name("k_rope"), OpKind::Rope { heads: kv_heads }, &[k, shared.angles])?;
        let cache = self.graph.state(layer, self.kv_cache);
        let cache = self.push(name("kv_write"), OpKind::KvWrite, &[cache, k, v, shared.slots])?;
        let scale = 1.0 / (self.config.head_dim as f32).sqrt();
        let operands = [q, cache, shared.positions, shared.token_sequences, shared.block_tables];
        let attended = self.push(name("attention"), OpKind::Attention { heads, scale }, &operands)?;
        self.linear(&folder, "o_proj", &name("o_proj"), attended, hidden, query, bias)
    }

    fn mlp(&mut self, layer: usize, input: ValueId) -> Result<ValueId, ModelError> {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let folder = format!("model.layers.{layer}.mlp");
        let (hidden, bias) = (self.hidden(), self.config.mlp_bias);
        let intermediate = ("intermediate_size", self.config.intermediate_size);
        let gate = self.linear(&folder, "gate_proj", &name("gate_proj"), input, intermediate, hidden, bias)?;
        let up = self.linear(&folder, "up_proj", &name("up_proj"), input, intermediate, hidden, bias)?;
        let activation = match self.config.activation {
            Activation::Silu => OpKind::Silu,
        };
        let activated = self.push(name("activation"), activation, &[gate])?;
        let gated = self.push(name("gated"), OpKind::Mul, &[activated, up])?;
        self.linear(&folder, "down_proj", &name("down_proj"), gated, hidden, intermediate, bias)
    }

    /// `input · weightᵀ (+ bias)`, quantized as the checkpoint says.
    #[allow(clippy::too_many_arguments, reason = "a projection is its tensor, its value, its sizes and its bias")]
    fn linear(
        &mut self,
        folder: &str,
        part: &str,
        name: &str,
        input: ValueId,
        rows: Size,
        columns: Size,
        bias: bool,
    ) -> Result<ValueId, ModelError> {
        let to = self.checkpoint.dtype();
        let tensor = format!("{folder}.{part}.weight");
        let projected = match self.checkpoint.linear_scheme(&format!("{folder}.{part}"))? {
            LinearScheme::Plain => {
                let weight = self.weight(&tensor, &PLAIN, &[rows, columns])?;
                let stored = self.graph.tensor_type(weight).map_or(to, |tensor| tensor.dtype);
                let input = if stored == to {
                    input
                } else {
                    self.push(format!("{name}.input"), OpKind::Cast { to: stored }, &[input])?
                };
                self.push(name, OpKind::Linear { to, scale: None }, &[input, weight])?
            }
            LinearScheme::Fp8Static { weight_scale, input_scale } => {
                let weight = self.weight(&tensor, &[DType::F8E4M3], &[rows, columns])?;
                let quantize = OpKind::Quantize { scale: input_scale };
                let input = self.push(format!("{name}.input"), quantize, &[input])?;
                let scale = Some(input_scale * weight_scale);
                self.push(name, OpKind::Linear { to, scale }, &[input, weight])?
            }
        };
        if !bias {
            return Ok(projected);
        }
        let bias = self.weight(&format!("{folder}.{part}.bias"), &[to], &[rows])?;
        self.push(format!("{name}.bias"), OpKind::Add, &[projected, bias])
    }

    fn norm(&mut self, name: &str, tensor: &str, input: ValueId) -> Result<ValueId, ModelError> {
        let weight = self.weight(tensor, &PLAIN, &[self.hidden()])?;
        self.push(name, OpKind::RmsNorm { epsilon: self.config.rms_norm_eps as f32 }, &[input, weight])
    }

    fn hidden(&self) -> Size {
        ("hidden_size", self.config.hidden_size)
    }

    fn weight(&mut self, name: &str, dtypes: &[DType], shape: &[Size]) -> Result<ValueId, ModelError> {
        let dtype = self.checkpoint.stored_type(name, dtypes, shape)?;
        let dims: Vec<Dim> = shape.iter().map(|(_, size)| Dim::Static(*size)).collect();
        Ok(self.graph.weight(name, TensorType::new(dtype, dims)))
    }

    fn push(&mut self, name: impl Into<String>, kind: OpKind, inputs: &[ValueId]) -> Result<ValueId, ModelError> {
        self.graph.push(name, kind, inputs).map_err(|error| self.contradiction(&error))
    }

    /// The configuration was checked, so what the graph still refuses is a combination that no kernel can have.
    fn contradiction(&self, error: &GraphError) -> ModelError {
        let path = self.checkpoint.folder().join(crate::config::CONFIG_FILE);
        ModelError::file(&path, error.to_string(), "sizes and types that fit each other")
    }
}
