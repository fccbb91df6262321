//! `allotrope logits`: logits of prompts and greedy continuations in a safetensors file.

use std::borrow::Cow;
use std::fs::{File, Permissions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use allotrope_config::environment::Environment;
use clap::ArgMatches;
use safetensors::{Dtype, View};

use crate::error::CliError;
use crate::{arguments, model, output, prompts, report};

pub(super) fn run(matches: &ArgMatches, started: Instant, environment: &Environment) -> Result<(), CliError> {
    let path = |name| matches.get_one::<PathBuf>(name).cloned().unwrap_or_default();
    let (source, target) = (path(arguments::TOKENS), path(arguments::OUT));
    let target = std::path::absolute(&target).map_err(|error| CliError::file("write", &target, &error))?;
    let new_tokens = matches.get_one::<usize>(arguments::NEW_TOKENS).copied().unwrap_or_default();
    let lists = prompts::token_lists(&source)?;
    // A folder that can't be written to is found before the work, and not after it.
    let permissions = permissions_of_new_file(&target)?;
    let mut llm = model::load(matches, started, environment)?;
    let mut tensors = Vec::with_capacity(lists.len().saturating_mul(4));
    for (index, prompt) in lists.into_iter().enumerate() {
        let logits = llm
            .logits(&prompt, new_tokens)
            .map_err(|error| CliError::from(error).within(format_args!("{}: list {index}", source.display())))?;
        let (length, steps, vocabulary) = (prompt.len(), logits.tokens.len(), logits.vocabulary);
        tensors.push((format!("prompt.{index}"), Tensor::ids(prompt)));
        tensors.push((format!("logits.{index}"), Tensor::logits([length, vocabulary], logits.prompt)));
        tensors.push((format!("tokens.{index}"), Tensor::ids(logits.tokens)));
        tensors.push((format!("step_logits.{index}"), Tensor::logits([steps, vocabulary], logits.steps)));
    }
    write(tensors, &target, permissions)?;
    if !matches.get_flag(arguments::QUIET) {
        report::write(&llm, false);
    }
    Ok(())
}

/// The permissions that a new file gets beside `target`, found by making one, which is removed at once.
fn permissions_of_new_file(target: &Path) -> Result<Permissions, CliError> {
    let failed = |error: &io::Error| CliError::file("write", target, error);
    if target.is_dir() {
        return Err(failed(&io::Error::from(io::ErrorKind::IsADirectory)));
    }
    let file = output::temporary_beside(target).map_err(|error| failed(&error))?;
    Ok(file.as_file().metadata().map_err(|error| failed(&error))?.permissions())
}

/// Writes the file. It appears whole or not at all: the library writes a temporary one and renames it, but makes it
/// private and leaves it to the system when its data reaches the disk.
fn write(tensors: Vec<(String, Tensor)>, target: &Path, permissions: Permissions) -> Result<(), CliError> {
    safetensors::serialize_to_file(tensors, None, target)
        .map_err(|error| CliError::Failure(format!("cannot write {}: {error}", target.display())))?;
    std::fs::set_permissions(target, permissions)
        .and_then(|()| File::open(target)?.sync_all())
        .map_err(|error| CliError::file("write", target, &error))
}

/// A tensor to be written; its bytes are made when it is its turn.
struct Tensor {
    shape: Vec<usize>,
    values: Values,
}

enum Values {
    /// Token ids, written as int64.
    Ids(Vec<u32>),
    /// Logits, written as float32.
    Logits(Vec<f32>),
}

impl Tensor {
    fn ids(ids: Vec<u32>) -> Self {
        Self { shape: vec![ids.len()], values: Values::Ids(ids) }
    }

    fn logits(shape: [usize; 2], values: Vec<f32>) -> Self {
        Self { shape: shape.to_vec(), values: Values::Logits(values) }
    }
}

impl View for Tensor {
    fn dtype(&self) -> Dtype {
        match self.values {
            Values::Ids(_) => Dtype::I64,
            Values::Logits(_) => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.values {
            Values::Ids(ids) => ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect(),
            Values::Logits(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }

    fn data_len(&self) -> usize {
        match &self.values {
            Values::Ids(ids) => ids.len() * size_of::<i64>(),
            Values::Logits(values) => values.len() * size_of::<f32>(),
        }
    }
}
