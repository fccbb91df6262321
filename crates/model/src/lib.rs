//! Hugging Face checkpoints as hostile input: `config.json`, weights, quantization, generation defaults, tokenizer and
//! chat template. Every file is checked before anything is allocated for it, and every error names file, field, what
//! was found and what would be right.
//!
//! ```
//! use allotrope_model::{ChatTemplate, Checkpoint, LinearScheme, Message, Tokenizer};
//! # let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/tiny-chat-fp8");
//!
//! let checkpoint = Checkpoint::open(&folder)?;
//! let projection = "model.layers.0.self_attn.q_proj";
//! assert_eq!(checkpoint.config().layers, 4);
//! let weights = checkpoint.weights().expect("files of weights");
//! assert_eq!(weights.tensor(&format!("{projection}.weight"))?.shape(), [160, 160]);
//! assert!(matches!(checkpoint.linear_scheme(projection)?, LinearScheme::Fp8Static { .. }));
//!
//! let prompt = ChatTemplate::open(&folder)?.render(&[Message::new("user", "What is 7 + 8?")], true)?;
//! let tokenizer = Tokenizer::open(&folder)?;
//! tokenizer.check_vocabulary(checkpoint.config())?;
//! let ids = tokenizer.encode(&prompt, false)?;
//!
//! let mut stream = tokenizer.stream(false);
//! let mut text = String::new();
//! for id in ids {
//!     text.extend(stream.push(id)?);
//! }
//! text.extend(stream.flush()?);
//! assert_eq!(text, prompt);
//! # Ok::<(), allotrope_model::ModelError>(())
//! ```

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

pub use chat::{CHAT_TEMPLATE_FILE, ChatTemplate, Conversation, Message, TOKENIZER_CONFIG_FILE};
pub use checkpoint::Checkpoint;
pub use config::{Activation, Architecture, CONFIG_FILE, ModelConfig};
pub use error::{Fault, ModelError};
pub use generation::{GENERATION_CONFIG_FILE, GenerationConfig};
pub use quantization::{LinearScheme, QuantizationConfig};
pub use rope::{Rope, RopeKind, RopeParameters};
pub use tokenizer::{TOKENIZER_FILE, TokenStream, Tokenizer};
pub use weights::{Tensor, WEIGHTS_FILE, WEIGHTS_INDEX_FILE, Weights};
