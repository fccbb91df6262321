//! The rules behind defaults that are worked out, and the limits of what can be had.

use std::path::PathBuf;

use crate::capture;
use crate::declaration::{Choice, Lowering};
use crate::error::{Problem, SettingsError};
use crate::facts::ActivationQuantization;
use crate::kind::show_bytes;
use crate::modes::{AttentionGraphSupport, CompilationMode, GraphMode, KvCacheDtype};
use crate::resolve::Resolution;
use crate::settings::{
    BLOCK_SIZE, COMPILATION_MODE, CUDAGRAPH_CAPTURE_SIZES, CUDAGRAPH_MODE, KV_CACHE_MEMORY, MAX_CUDAGRAPH_CAPTURE_SIZE,
    MAX_MODEL_LEN, MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS, SPLITTING_OPS, passes,
};
use crate::source::{Resolved, Source};

/// The most memory that the KV cache has by default.
const MOST_DEFAULT_KV_CACHE: u64 = 4 << 30;

/// Tokens of one sequence, or all of a shorter context, that a device with memory of its own must have room for where nobody
/// asks for a context: with fewer, hardly a question can be answered.
const LEAST_DEFAULT_CONTEXT: usize = 2048;

/// The most memory that the KV cache may be given.
pub(crate) const MOST_KV_CACHE: u64 = 1 << 50;

/// The longest context that any checkpoint may claim.
pub(crate) const MOST_CONTEXT: u64 = 1 << 24;

/// The most threads that may be asked for.
pub(crate) const MOST_THREADS: u64 = 1 << 12;

/// The most rewrites that the passes may be bounded to.
pub(crate) const MOST_REWRITES: u64 = 1 << 30;

/// The name of attention among the operations.
pub(crate) const ATTENTION: &str = "attention";

/// What a limit answers.
type Limited<T> = Result<Option<Lowering<T>>, SettingsError>;

/// A condition that always holds: what stands against it is left to the setting's limit.
pub(crate) fn wanted(_: &Resolution<'_>) -> Choice<bool> {
    Choice::of(true)
}

pub(crate) fn quantizes_activations(resolution: &Resolution<'_>) -> Choice<bool> {
    match resolution.model().activation_quantization {
        ActivationQuantization::None => Choice::because(false, "the model does not quantize activations".to_owned()),
        ActivationQuantization::Static | ActivationQuantization::Dynamic => {
            Choice::because(true, "the model quantizes activations".to_owned())
        }
    }
}

pub(crate) fn quantizes_statically(resolution: &Resolution<'_>) -> Choice<bool> {
    match resolution.model().activation_quantization {
        ActivationQuantization::None => Choice::because(false, "the model does not quantize activations".to_owned()),
        ActivationQuantization::Dynamic => {
            Choice::because(false, "the model quantizes activations dynamically".to_owned())
        }
        ActivationQuantization::Static => {
            Choice::because(true, "the model quantizes activations statically".to_owned())
        }
    }
}

pub(crate) fn has_qk_norms(resolution: &Resolution<'_>) -> Choice<bool> {
    let has = resolution.model().has_qk_norm;
    let reason = if has { "the model has q/k norms" } else { "the model has no q/k norms" };
    Choice::because(has, reason.to_owned())
}

/// A pass that somebody switched on needs the passes to run.
pub(crate) fn compilation_mode_limit(mode: &CompilationMode, resolution: &Resolution<'_>) -> Limited<CompilationMode> {
    if *mode == CompilationMode::Compile {
        return Ok(None);
    }
    let asked = passes().find_map(|path| match resolution.said_at(path) {
        Some((value, source)) if value.as_bool() == Some(true) => Some((path, source)),
        _ => None,
    });
    Ok(asked.map(|(path, source)| Lowering {
        value: CompilationMode::Compile,
        because: format!("{path}=true ({source}) needs the passes to run"),
        instead: format!("write compilation.mode=compile, or drop {path}"),
    }))
}

/// No pass runs where passes do not run.
pub(crate) fn pass_limit(on: &bool, resolution: &Resolution<'_>) -> Limited<bool> {
    if !*on {
        return Ok(None);
    }
    let mode = resolution.settle(&COMPILATION_MODE)?;
    Ok((mode.value == CompilationMode::None).then(|| {
        let because = match (&mode.source, mode.reason) {
            (Source::Forced, Some(reason)) => format!("compilation.mode is none: {reason}"),
            (source, _) => format!("compilation.mode is none ({source})"),
        };
        Lowering {
            value: false,
            because,
            instead: "write compilation.mode=compile and leave out what turns it off, or drop the pass".to_owned(),
        }
    }))
}

pub(crate) fn splitting_ops_default(_: &Resolution<'_>) -> Result<Choice<Vec<String>>, SettingsError> {
    Ok(Choice::of(vec![ATTENTION.to_owned()]))
}

pub(crate) fn cudagraph_mode_limit(mode: &GraphMode, resolution: &Resolution<'_>) -> Limited<GraphMode> {
    let splitting = resolution.settle(&SPLITTING_OPS)?;
    let split = splitting.value.iter().any(|name| name == ATTENTION);
    // Not every mode looks at the device, and what does not look rests on no assumption.
    if *mode == GraphMode::None || (*mode == GraphMode::Piecewise && split) {
        return Ok(None);
    }
    let device = resolution.device();
    let support = device.attention_graph_support;
    let whole = mode.lowered_for(support, 1);
    let possible = if split || support == AttentionGraphSupport::Always { whole } else { whole.without_pieces() };
    if possible == *mode {
        return Ok(None);
    }
    let because = format!("on {} {}", device.name, support.words());
    let instead = format!("write compilation.cudagraph_mode={possible}");
    Ok(Some(if possible == whole {
        Lowering { value: possible, because, instead }
    } else {
        Lowering {
            value: possible,
            because: format!(
                "compilation.splitting_ops ({}) leaves attention inside the pieces, and {because}",
                splitting.source
            ),
            // With it a mode that asks for more than attention can do would still be refused.
            instead: if whole == *mode {
                format!("{instead}, or add {ATTENTION} to compilation.splitting_ops")
            } else {
                instead
            },
        }
    }))
}

/// That nothing is recorded, and what made it so.
fn nothing_recorded(mode: &Resolved<GraphMode>) -> String {
    let reason = mode.reason.as_ref().map_or_else(String::new, |reason| format!(", {reason}"));
    format!("nothing is recorded: compilation.cudagraph_mode is NONE ({}{reason})", mode.source)
}

pub(crate) fn require_graphs_limit(required: &bool, resolution: &Resolution<'_>) -> Limited<bool> {
    if !*required {
        return Ok(None);
    }
    let mode = resolution.settle(&CUDAGRAPH_MODE)?;
    Ok((mode.value == GraphMode::None).then(|| Lowering {
        value: false,
        because: nothing_recorded(&mode),
        instead: "write compilation.cudagraph_mode=PIECEWISE or another mode, or drop require_graphs".to_owned(),
    }))
}

pub(crate) fn capture_sizes_default(resolution: &Resolution<'_>) -> Result<Choice<Vec<usize>>, SettingsError> {
    let mode = resolution.settle(&CUDAGRAPH_MODE)?;
    if mode.value == GraphMode::None {
        let reason = format!("nothing is recorded: compilation.cudagraph_mode is NONE ({})", mode.source);
        return Ok(Choice::because(Vec::new(), reason));
    }
    let max_num_seqs = resolution.settle(&MAX_NUM_SEQS)?.value;
    let max_num_batched_tokens = resolution.settle(&MAX_NUM_BATCHED_TOKENS)?.value;
    let maximum = resolution.said(&MAX_CUDAGRAPH_CAPTURE_SIZE)?;
    // A maximum of 0 is refused by its own limit.
    let bound = maximum.as_ref().map(|(maximum, _)| (*maximum).max(1));
    let sizes = capture::capture_sizes(max_num_seqs, max_num_batched_tokens, bound, None)
        .map_err(|error| Problem::internal(CUDAGRAPH_CAPTURE_SIZES.path, &error.to_string()))?;
    let largest = sizes.last().copied().unwrap_or_default();
    let reason = match maximum {
        Some((maximum, source)) => {
            format!("{} sizes up to max_cudagraph_capture_size={maximum} ({source})", sizes.len())
        }
        None if largest == max_num_batched_tokens => {
            format!("{} sizes up to max_num_batched_tokens", sizes.len())
        }
        None if largest == capture::CEILING => format!("{} sizes up to {largest}", sizes.len()),
        None => format!("{} sizes up to twice max_num_seqs={max_num_seqs}", sizes.len()),
    };
    Ok(Choice::because(sizes, reason))
}

#[allow(clippy::ptr_arg, reason = "a limit takes a reference to the setting's own type")]
pub(crate) fn capture_sizes_limit(sizes: &Vec<usize>, resolution: &Resolution<'_>) -> Limited<Vec<usize>> {
    if resolution.said(&CUDAGRAPH_CAPTURE_SIZES)?.is_none() {
        return Ok(None);
    }
    let lowered = |because: String, instead: String| Lowering { value: Vec::new(), because, instead };
    let mode = resolution.settle(&CUDAGRAPH_MODE)?;
    if mode.value == GraphMode::None {
        return Ok((!sizes.is_empty())
            .then(|| lowered(nothing_recorded(&mode), "choose another cudagraph_mode, or drop the sizes".to_owned())));
    }
    let Some(largest) = sizes.last().copied() else {
        return Ok(Some(lowered(
            format!("compilation.cudagraph_mode={} ({}) needs at least one size", mode.value, mode.source),
            "give sizes, or write compilation.cudagraph_mode=NONE".to_owned(),
        )));
    };
    let budget = resolution.settle(&MAX_NUM_BATCHED_TOKENS)?;
    if largest > budget.value {
        return Ok(Some(lowered(
            format!(
                "no step has {largest} tokens: scheduler.max_num_batched_tokens is {} ({})",
                budget.value, budget.source
            ),
            format!("drop the sizes above {}, or raise max_num_batched_tokens", budget.value),
        )));
    }
    Ok(match resolution.said(&MAX_CUDAGRAPH_CAPTURE_SIZE)? {
        Some((maximum, source)) if largest > maximum => Some(lowered(
            format!("{largest} is above compilation.max_cudagraph_capture_size={maximum} ({source})"),
            "give one of the two".to_owned(),
        )),
        _ => None,
    })
}

pub(crate) fn max_capture_size_default(resolution: &Resolution<'_>) -> Result<Choice<usize>, SettingsError> {
    let sizes = resolution.settle(&CUDAGRAPH_CAPTURE_SIZES)?;
    Ok(Choice::because(
        sizes.value.last().copied().unwrap_or_default(),
        "the largest of compilation.cudagraph_capture_sizes".to_owned(),
    ))
}

pub(crate) fn max_capture_size_limit(maximum: &usize, resolution: &Resolution<'_>) -> Limited<usize> {
    if resolution.said(&MAX_CUDAGRAPH_CAPTURE_SIZE)?.is_none() {
        return Ok(None);
    }
    let mode = resolution.settle(&CUDAGRAPH_MODE)?;
    Ok(match (mode.value, *maximum) {
        (GraphMode::None, 1..) => Some(Lowering {
            value: 0,
            because: nothing_recorded(&mode),
            instead: "choose another cudagraph_mode, or drop the maximum".to_owned(),
        }),
        (GraphMode::None, 0) | (_, 1..) => None,
        (graphs, 0) => Some(Lowering {
            value: 1,
            because: format!("compilation.cudagraph_mode={graphs} ({}) needs at least one size", mode.source),
            instead: "give at least 1, or write compilation.cudagraph_mode=NONE".to_owned(),
        }),
    })
}

pub(crate) fn autotune_limit(on: &bool, resolution: &Resolution<'_>) -> Limited<bool> {
    if !*on || resolution.device().autotune {
        return Ok(None);
    }
    Ok(Some(Lowering {
        value: false,
        because: format!("{} has no kernel variants to tune", resolution.device().name),
        instead: "write kernel.autotune=false, or drop it".to_owned(),
    }))
}

pub(crate) fn repack_weights_limit(on: &bool, resolution: &Resolution<'_>) -> Limited<bool> {
    if !*on || resolution.device().repack_weights {
        return Ok(None);
    }
    Ok(Some(Lowering {
        value: false,
        because: format!("the kernels of {} read weights as they are stored", resolution.device().name),
        instead: "write kernel.repack_weights=false, or drop it".to_owned(),
    }))
}

pub(crate) fn kv_cache_dtype_limit(dtype: &KvCacheDtype, resolution: &Resolution<'_>) -> Limited<KvCacheDtype> {
    if *dtype == KvCacheDtype::Auto || resolution.device().fp8_kv_cache {
        return Ok(None);
    }
    Ok(Some(Lowering {
        value: KvCacheDtype::Auto,
        because: format!("{} has no attention over keys and values in FP8", resolution.device().name),
        instead: "write cache.kv_cache_dtype=auto, or drop it".to_owned(),
    }))
}

pub(crate) fn kernel_cache_default(resolution: &Resolution<'_>) -> Result<Choice<Option<PathBuf>>, SettingsError> {
    Ok(Choice::of(resolution.device().kernel_cache.clone()).from(Source::Device))
}

pub(crate) fn persistent_decode_limit(on: &bool, resolution: &Resolution<'_>) -> Limited<bool> {
    if !*on {
        return Ok(None);
    }
    let instead = "write kernel.persistent_decode=false, or drop it".to_owned();
    if !resolution.device().persistent_decode {
        let because = format!("{} cannot run a decode step as one resident program", resolution.device().name);
        return Ok(Some(Lowering { value: false, because, instead }));
    }
    let mode = resolution.settle(&CUDAGRAPH_MODE)?;
    let instead = "choose another cudagraph_mode, or ".to_owned() + &instead;
    Ok((mode.value == GraphMode::None).then(|| Lowering { value: false, because: nothing_recorded(&mode), instead }))
}

pub(crate) fn max_num_seqs_limit(sequences: &usize, resolution: &Resolution<'_>) -> Limited<usize> {
    Ok(match resolution.said(&MAX_NUM_BATCHED_TOKENS)? {
        Some((tokens, source)) if *sequences > tokens => Some(Lowering {
            value: tokens,
            because: format!(
                "each sequence of a step has a token, and scheduler.max_num_batched_tokens is {tokens} ({source})"
            ),
            instead: format!("write at most {tokens}, or raise max_num_batched_tokens"),
        }),
        _ => None,
    })
}

pub(crate) fn max_num_batched_tokens_limit(tokens: &usize, resolution: &Resolution<'_>) -> Limited<usize> {
    let sequences = resolution.settle(&MAX_NUM_SEQS)?;
    Ok((*tokens < sequences.value).then(|| Lowering {
        value: sequences.value,
        because: format!(
            "each sequence of a step has a token, and scheduler.max_num_seqs is {} ({})",
            sequences.value, sequences.source
        ),
        instead: format!("write at least {}, or lower max_num_seqs", sequences.value),
    }))
}

pub(crate) fn max_model_len_default(resolution: &Resolution<'_>) -> Result<Choice<usize>, SettingsError> {
    let reason = format!("the context length of {}", resolution.model().name);
    Ok(Choice::because(context_length(resolution), reason).from(Source::Model))
}

/// The model's context length; a checkpoint may claim anything.
fn context_length(resolution: &Resolution<'_>) -> usize {
    let most = usize::try_from(MOST_CONTEXT).unwrap_or(usize::MAX);
    resolution.model().context_length.clamp(1, most)
}

pub(crate) fn max_model_len_limit(length: &usize, resolution: &Resolution<'_>) -> Limited<usize> {
    let context = context_length(resolution);
    if *length > context {
        return Ok(Some(Lowering {
            value: context,
            because: format!("the context length of {} is {context} tokens", resolution.model().name),
            instead: format!("write at most {context}"),
        }));
    }
    let Some(block) = block_bytes(resolution)? else {
        return Ok(None);
    };
    let memory = resolution.settle(&KV_CACHE_MEMORY)?;
    let block_size = resolution.settle(&BLOCK_SIZE)?.value;
    let blocks = usize::try_from(memory.value / block).unwrap_or(usize::MAX);
    let held = blocks.saturating_mul(block_size);
    Ok((*length > held).then(|| Lowering {
        value: held.max(1),
        because: format!("cache.kv_cache_memory={} ({}) holds {held} tokens", show_bytes(memory.value), memory.source),
        instead: format!("write at most {held}, or give cache.kv_cache_memory more"),
    }))
}

/// Bytes of one block of the KV cache; `None` for a model without one.
fn block_bytes(resolution: &Resolution<'_>) -> Result<Option<u64>, SettingsError> {
    let block_size = resolution.settle(&BLOCK_SIZE)?.value;
    let per_token = resolution.model().kv_bytes_per_token;
    Ok((per_token > 0).then(|| saturating_product(&[block_size, per_token])))
}

fn saturating_product(factors: &[usize]) -> u64 {
    factors.iter().map(|factor| u64::try_from(*factor).unwrap_or(u64::MAX)).fold(1, u64::saturating_mul)
}

/// Memory that the KV cache can have: what is available, less the weights where they go to the same memory.
fn room(resolution: &Resolution<'_>) -> u64 {
    let device = resolution.device();
    if !device.dedicated_memory {
        return device.available_memory;
    }
    device.available_memory.saturating_sub(resolution.model().weight_bytes)
}

/// What the KV cache gets where it could have more, and why.
fn share(resolution: &Resolution<'_>) -> (u64, String) {
    let device = resolution.device();
    let available = device.available_memory;
    if device.dedicated_memory {
        // A tenth is left for activations, recordings and the driver.
        let most = available - available / 10;
        let share = most.saturating_sub(resolution.model().weight_bytes).clamp(1, MOST_KV_CACHE);
        return (share, format!("what the weights leave of nine tenths of the free memory of {}", device.name));
    }
    let share = (available / 4).clamp(1, MOST_DEFAULT_KV_CACHE);
    if share == MOST_DEFAULT_KV_CACHE {
        // How much is available differs from run to run, and the reason should not where the value does not.
        return (share, format!("a quarter of what is available, at most {}", show_bytes(share)));
    }
    (share, format!("a quarter of {} available", show_bytes(available)))
}

/// The model does not fit a device with memory of its own; `cache` is what of the KV cache there must be room for.
fn no_room(resolution: &Resolution<'_>, cache: Option<String>) -> SettingsError {
    let (model, device) = (resolution.model(), resolution.device());
    let weights = show_bytes(model.weight_bytes);
    let free = format!("{} are free", show_bytes(device.available_memory));
    let (because, instead) = match cache {
        None => (format!("its weights take {weights}, and {free}"), "free some of its memory".to_owned()),
        Some(cache) => (
            format!("its weights take {weights}, {cache}, and {free}"),
            "free some of its memory, or write a smaller model.max_model_len or cache.block_size".to_owned(),
        ),
    };
    Problem::NoRoom { model: model.name.clone(), device: device.name.clone(), because, instead }.into()
}

pub(crate) fn kv_cache_memory_default(resolution: &Resolution<'_>) -> Result<Choice<u64>, SettingsError> {
    let available = room(resolution);
    let (share, share_reason) = share(resolution);
    let by_share = Choice::because(share, share_reason).from(Source::Device);
    let dedicated = resolution.device().dedicated_memory;
    if dedicated && resolution.device().available_memory <= resolution.model().weight_bytes {
        return Err(no_room(resolution, None));
    }
    let Some(block) = block_bytes(resolution)? else {
        return Ok(by_share);
    };
    let block_size = resolution.settle(&BLOCK_SIZE)?.value;
    let sequences = resolution.settle(&MAX_NUM_SEQS)?.value;
    let said = resolution.said(&MAX_MODEL_LEN)?;
    let length = said.as_ref().map_or_else(|| context_length(resolution), |(length, _)| *length);
    let bytes_of = |tokens: usize| saturating_product(&[tokens.div_ceil(block_size)]).saturating_mul(block).max(block);
    let one = bytes_of(length);
    // A person who asks for a context may have it of all that is free.
    let (least, most) = if said.is_some() { (length, available) } else { (length.min(LEAST_DEFAULT_CONTEXT), share) };
    if dedicated && bytes_of(least) > most {
        let takes = show_bytes(bytes_of(least));
        let beside = if said.is_some() { "" } else { ", activations and recordings a tenth of the free memory" };
        let cache = format!("the KV cache of one sequence of {least} tokens {takes}{beside}");
        return Err(no_room(resolution, Some(cache)));
    }
    let every = one.saturating_mul(saturating_product(&[sequences]));
    Ok(if every <= share {
        let reason = format!("all that {sequences} sequences of {length} tokens take");
        Choice::because(every, reason).from(Source::Model)
    } else if let Some((_, source)) = said.filter(|_| one > share && one <= available.min(MOST_KV_CACHE)) {
        let reason = format!("what one sequence of model.max_model_len={length} ({source}) takes");
        Choice::because(one, reason).from(Source::Model)
    } else {
        by_share
    })
}

pub(crate) fn kv_cache_memory_limit(memory: &u64, resolution: &Resolution<'_>) -> Limited<u64> {
    let block = block_bytes(resolution)?;
    let device = resolution.device();
    let room = room(resolution);
    let available = room.min(MOST_KV_CACHE);
    let beside = if device.dedicated_memory { " beside the weights" } else { "" };
    let block_fits = block.is_none_or(|block| block <= available);
    if device.dedicated_memory && (room == 0 || !block_fits) {
        let takes = block.filter(|_| room > 0).map(show_bytes);
        return Err(no_room(resolution, takes.map(|bytes| format!("one block of the KV cache {bytes}"))));
    }
    let has = format!("{} has {} available{beside}", device.name, show_bytes(room));
    if let Some(block) = block.filter(|block| *block > available) {
        // There is nothing to lower the value to.
        return Err(Problem::Impossible {
            setting: KV_CACHE_MEMORY.path.to_owned(),
            value: show_bytes(*memory),
            origin: resolution.said(&KV_CACHE_MEMORY)?.map_or(Source::Default, |(_, source)| source.clone()),
            because: format!("one block of the KV cache takes {}, and {has}", show_bytes(block)),
            instead: "free some memory, or write a smaller cache.block_size".to_owned(),
        }
        .into());
    }
    if *memory > available {
        return Ok(Some(Lowering {
            value: available.max(1),
            because: has,
            instead: format!("write at most {available}"),
        }));
    }
    Ok(block.filter(|block| memory < block).map(|block| Lowering {
        value: block,
        because: format!("one block of the KV cache takes {}", show_bytes(block)),
        instead: format!("write at least {block}, or a smaller cache.block_size"),
    }))
}

pub(crate) fn threads_default(resolution: &Resolution<'_>) -> Result<Choice<usize>, SettingsError> {
    let device = resolution.device();
    let most = usize::try_from(MOST_THREADS).unwrap_or(usize::MAX);
    let reason = format!("hardware threads of {}", device.name);
    Ok(Choice::because(device.parallelism.clamp(1, most), reason).from(Source::Device))
}
