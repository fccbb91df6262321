//! Checkpoint folders made for a test.

use std::fs;
use std::path::{Path, PathBuf};

use allotrope_model::ModelError;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// A checkpoint that ships with the project.
pub(crate) fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models").join(name)
}

/// A folder of files that is removed with the value.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        fs::write(self.path().join(name), content).unwrap();
        self
    }

    pub(crate) fn write_json(&self, name: &str, content: &Value) -> &Self {
        self.write(name, content.to_string())
    }
}

/// A valid `config.json` of a very small model.
pub(crate) fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 32,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": [1, 2]
    })
}

/// A configuration with some fields replaced; dots lead into objects, which must exist.
pub(crate) fn patched(mut base: Value, changes: &[(&str, Value)]) -> Value {
    for (field, value) in changes {
        let (holder, last) = match field.rsplit_once('.') {
            Some((holder, last)) => (base.pointer_mut(&format!("/{}", holder.replace('.', "/"))).unwrap(), last),
            None => (&mut base, *field),
        };
        holder[last] = value.clone();
    }
    base
}

/// One tensor to store.
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn stored(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Stored {
    Stored { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
}

/// A safetensors file, written by the format's own implementation.
pub(crate) fn safetensors_file(tensors: &[Stored]) -> Vec<u8> {
    let views = tensors.iter().map(|tensor| {
        (tensor.name.clone(), TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// A safetensors file with any header and data.
pub(crate) fn raw_file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// Asserts that an error's message has all of `words`.
#[track_caller]
pub(crate) fn assert_says<T>(result: Result<T, ModelError>, words: &[&str]) {
    let Err(error) = result else { panic!("no error, but one that says {words:?} was expected") };
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "the message lacks {word:?}: {message}");
    }
    assert!(message.len() < 2000, "the message is {} bytes long", message.len());
    assert!(!message.chars().any(char::is_control), "the message has control characters: {message:?}");
}
