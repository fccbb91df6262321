//! Hugging Face checkpoints as hostile input: `config.json`, weights, quantization, generation defaults, tokenizer and
//! chat template. Every file is checked before anything is allocated for it, and every error names file, field, what
//! was found and what would be right.

mod chat;
mod checkpoint;
mod config;
mod decoder;
mod error;
mod generation;
mod json;
mod quantization;
mod rope;
mod tokenizer;
mod weights;

pub use chat::{CHAT_TEMPLATE_FILE, ChatTemplate, Message, TOKENIZER_CONFIG_FILE};
pub use checkpoint::Checkpoint;
pub use config::{Activation, Architecture, CONFIG_FILE, ModelConfig};
pub use error::{Fault, ModelError};
pub use generation::{GENERATION_CONFIG_FILE, GenerationConfig};
pub use quantization::{LinearScheme, QuantizationConfig};
pub use rope::{Rope, RopeKind, RopeParameters};
pub use tokenizer::{TOKENIZER_FILE, TokenStream, Tokenizer};
pub use weights::{Tensor, WEIGHTS_FILE, WEIGHTS_INDEX_FILE, Weights};
