//! What resolution needs to know of the model and of the device. The crate knows nothing else of either.

use std::path::PathBuf;

use crate::modes::AttentionGraphSupport;

/// How the model quantizes the activations that go into its matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActivationQuantization {
    /// Not at all.
    None,
    /// With scales stored in the checkpoint.
    Static,
    /// With scales computed from the activations at run time.
    Dynamic,
}

/// What the rules may know of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// The model's name, for messages.
    pub name: String,
    /// How activations are quantized.
    pub activation_quantization: ActivationQuantization,
    /// Whether the query and key heads are normalized before RoPE.
    pub has_qk_norm: bool,
    /// The longest context that the checkpoint was made for, in tokens.
    pub context_length: usize,
    /// Bytes that one token takes in the KV cache, over all layers; 0 for a model without one.
    pub kv_bytes_per_token: usize,
    /// Bytes of all weights that a step reads.
    pub weight_bytes: u64,
}

impl ModelFacts {
    /// The model that is assumed where none is given: plain, with a context of 4096 tokens, and a KV cache that
    /// costs nothing, so that no default is lowered for a model nobody named.
    pub fn assumed() -> Self {
        Self {
            name: "(no model given)".to_owned(),
            activation_quantization: ActivationQuantization::None,
            has_qk_norm: false,
            context_length: 4096,
            kv_bytes_per_token: 0,
            weight_bytes: 0,
        }
    }
}

/// What the rules may know of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// The device's name, for messages.
    pub name: String,
    /// The kind of device: `cpu` or `cuda`.
    pub kind: String,
    /// What the device's attention can do inside a recording.
    pub attention_graph_support: AttentionGraphSupport,
    /// Hardware threads that this process may use.
    pub parallelism: usize,
    /// Memory that can be had now, in bytes.
    pub available_memory: u64,
    /// Whether that is memory of the device's own, to which weights are copied, and which nobody else wants.
    pub dedicated_memory: bool,
    /// Whether weights can be laid out for the kernels.
    pub repack_weights: bool,
    /// Whether keys and values can be stored as E4M3.
    pub fp8_kv_cache: bool,
    /// Whether kernel variants can be tuned.
    pub autotune: bool,
    /// Whether a whole decode step can run as one resident program.
    pub persistent_decode: bool,
    /// Where what was found out about kernels may be kept between starts; `None` where the user has no folder for such things. A
    /// device does not know it: who opens the device asks the environment.
    pub kernel_cache: Option<PathBuf>,
}

impl DeviceFacts {
    /// The device that is assumed where none is given: one thread, 16 GiB, and everything that a device can do,
    /// so that no default is lowered for a device nobody named.
    pub fn assumed() -> Self {
        Self {
            name: "(no device given)".to_owned(),
            kind: "any".to_owned(),
            attention_graph_support: AttentionGraphSupport::Always,
            parallelism: 1,
            available_memory: 16 << 30,
            dedicated_memory: false,
            repack_weights: true,
            fp8_kv_cache: true,
            autotune: true,
            persistent_decode: true,
            kernel_cache: None,
        }
    }
}
