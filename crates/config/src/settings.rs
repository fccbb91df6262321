//! The declaration of every setting: its documentation, values, default or level table, limits and flag.
//!
//! This is the one place to add a setting. Everything else is generated from it: command line, environment names, file
//! keys, JSON Schema, documents and `explain`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use serde_json::Value as Json;

use crate::capture::MOST_TOKENS;
use crate::declaration::Cell::{Is, Unused, When};
use crate::declaration::{Declared, Flag, Forced, Rule, Setting, settings_group};
use crate::kind::{FOLDER, Kind, NAMES, Optional, SWITCH, bytes, choice, count, counts, optional};
use crate::level::OptimizationLevel;
use crate::modes::{
    CompilationMode, DeviceChoice, GraphCapture, GraphMode, KvCacheDtype, LoadFormat, SchedulingPolicy,
};
use crate::rules;
use crate::source::{Resolved, Source};

const MAX_TOKENS: u64 = MOST_TOKENS as u64;

settings_group! {
    /// What will happen: every setting with its value, source and reason.
    Settings at "" {
        /// How much startup time is spent for speed: O0, O1, O2 or O3.
        ///
        /// A level is only a table of defaults: what is set explicitly is never overwritten by a level.
        optimization_level: OptimizationLevel = OPTIMIZATION_LEVEL {
            kind: Kind { placeholder: "LEVEL", ..choice() },
            default: Rule::Constant(OptimizationLevel::O2),
            forced: None,
            limit: None,
            flag: Flag::Value { long: "optimization-level", aliases: &[], short: Some('O') },
            former_paths: &[],
        }
        /// The device that runs the model: `auto`, `cpu` or `cuda`.
        ///
        /// `auto` is the first GPU where there is one that CUDA can use and that the model fits, else the CPU; the reason says
        /// which, and why no GPU. One GPU runs the model: of several, the first visible one; `CUDA_VISIBLE_DEVICES` chooses another.
        device: DeviceChoice = DEVICE {
            kind: choice(),
            default: Rule::Constant(DeviceChoice::Auto),
            forced: None,
            limit: None,
            flag: Flag::Value { long: "device", aliases: &[], short: None },
            former_paths: &[],
        }
        /// Run launch by launch: no passes, no recordings; everything else is left to the level.
        ///
        /// It forces `compilation.mode` to `none` and `compilation.cudagraph_mode` to `NONE`. Other explicit values of the two are errors.
        enforce_eager: bool = ENFORCE_EAGER {
            kind: SWITCH,
            default: Rule::Constant(false),
            forced: None,
            limit: None,
            flag: Flag::Switch { long: "enforce-eager" },
            former_paths: &[],
        }
        /// Make a step that does not run from recordings an error.
        require_graphs: bool = REQUIRE_GRAPHS {
            kind: SWITCH,
            default: Rule::Constant(false),
            forced: None,
            limit: Some(rules::require_graphs_limit),
            flag: Flag::Switch { long: "require-graphs" },
            former_paths: &[],
        }
        group
        /// Passes over the graph, and recordings of steps.
        compilation: Compilation;
        group
        /// Kernels, the layout of their weights, and what is kept of them between starts.
        kernel: Kernel;
        group
        /// The model as it is served.
        model: Model;
        group
        /// How requests become batches.
        scheduler: Scheduler;
        group
        /// The KV cache.
        cache: Cache;
        group
        /// The CPU device.
        cpu: Cpu;
    }
}

settings_group! {
    /// Passes over the graph, and recordings of steps.
    Compilation at "compilation." {
        /// Whether the passes over the graph run: `none` or `compile`.
        ///
        /// A pass that is switched on explicitly turns a level's `none` into `compile`.
        mode: CompilationMode = COMPILATION_MODE {
            kind: choice(),
            default: Rule::Levels([
                Is(CompilationMode::None),
                Is(CompilationMode::Compile),
                Is(CompilationMode::Compile),
                Is(CompilationMode::Compile),
            ]),
            forced: Some(Forced { by: &ENFORCE_EAGER, value: CompilationMode::None }),
            limit: Some(rules::compilation_mode_limit),
            flag: Flag::Dotted,
            former_paths: &[],
        }
        /// Which batches run from recordings: `NONE`, `PIECEWISE`, `FULL`, `FULL_DECODE_ONLY` or `FULL_AND_PIECEWISE`.
        ///
        /// `PIECEWISE` records what lies between the operations of `compilation.splitting_ops`, `FULL` the whole step.
        /// The other two record whole steps for batches of decodes, and nothing or pieces for all others. A level's
        /// default is lowered to what the device's attention can do.
        cudagraph_mode: GraphMode = CUDAGRAPH_MODE {
            kind: choice(),
            default: Rule::Levels([
                Is(GraphMode::None),
                Is(GraphMode::Piecewise),
                Is(GraphMode::FullAndPiecewise),
                Is(GraphMode::FullAndPiecewise),
            ]),
            forced: Some(Forced { by: &ENFORCE_EAGER, value: GraphMode::None }),
            limit: Some(rules::cudagraph_mode_limit),
            flag: Flag::Dotted,
            former_paths: &[],
        }
        /// The operations at which a step is cut into pieces; each is launched by itself under `PIECEWISE`.
        ///
        /// Pieces with attention inside can be recorded only where attention can be recorded for any batch. `+=`
        /// appends to what else is said of the list, not to the default.
        splitting_ops: Vec<String> = SPLITTING_OPS {
            kind: NAMES,
            // A list cannot be a constant.
            default: Rule::Computed { words: rules::ATTENTION, choose: rules::splitting_ops_default },
            forced: None,
            limit: None,
            flag: Flag::Dotted,
            former_paths: &[],
        }
        /// When recordings are made: at `startup`; `lazy`, when a batch first needs one; or in the `background` while steps run.
        cudagraph_capture: GraphCapture = CUDAGRAPH_CAPTURE {
            kind: choice(),
            default: Rule::Levels([
                Unused(GraphCapture::Startup),
                Is(GraphCapture::Startup),
                Is(GraphCapture::Startup),
                Is(GraphCapture::Startup),
            ]),
            forced: None,
            limit: None,
            flag: Flag::Dotted,
            former_paths: &[],
        }
        /// The batch sizes, in tokens, at which steps are recorded.
        ///
        /// A batch is padded to the next of them; above the largest, nothing is recorded.
        cudagraph_capture_sizes: Vec<usize> = CUDAGRAPH_CAPTURE_SIZES {
            kind: counts(1, MAX_TOKENS),
            default: Rule::Computed {
                words: "1, 2, 4, then steps of 8 below 256 and of 16 above, and `scheduler.max_num_seqs`, up to \
                        `compilation.max_cudagraph_capture_size` or else twice `scheduler.max_num_seqs` and at most 512; \
                        never above `scheduler.max_num_batched_tokens`; none if `compilation.cudagraph_mode` is `NONE`",
                choose: rules::capture_sizes_default,
            },
            forced: None,
            limit: Some(rules::capture_sizes_limit),
            flag: Flag::Values { long: "cudagraph-capture-sizes" },
            former_paths: &[],
        }
        /// The bound, in tokens, of the batch sizes at which steps are recorded.
        max_cudagraph_capture_size: usize = MAX_CUDAGRAPH_CAPTURE_SIZE {
            kind: count(0, MAX_TOKENS),
            default: Rule::Computed {
                words: "the largest of `compilation.cudagraph_capture_sizes`",
                choose: rules::max_capture_size_default,
            },
            forced: None,
            limit: Some(rules::max_capture_size_limit),
            flag: Flag::Value { long: "max-cudagraph-capture-size", aliases: &[], short: None },
            former_paths: &[],
        }
        /// Write the graph before and after every pass, the kernels, the memory plan, the capture plan and the settings
        /// into this folder.
        ///
        /// The same input gives the same bytes. A relative path is taken from the working directory.
        debug_dump_path: Option<PathBuf> = DEBUG_DUMP_PATH {
            kind: optional::<DumpFolder>(),
            default: Rule::Constant(None),
            forced: None,
            limit: None,
            flag: Flag::Value { long: "debug-dump-path", aliases: &[], short: None },
            former_paths: &[],
        }
        /// Stop after this many rewrites of the graph, so that a wrong one can be found by bisection
        /// (`cargo xtask bisect`).
        fuel: Option<usize> = FUEL {
            kind: optional::<Fuel>(),
            default: Rule::Constant(None),
            forced: None,
            limit: None,
            flag: Flag::Value { long: "fuel", aliases: &[], short: None },
            former_paths: &[],
        }
        group
        /// The passes, one switch each.
        pass_config: PassConfig;
    }
}

enum DumpFolder {}

impl Optional for DumpFolder {
    type Value = PathBuf;
    const KIND: Kind<PathBuf> = FOLDER;
    const UNSET: &'static str = "none";
}

enum Fuel {}

impl Optional for Fuel {
    type Value = usize;
    const KIND: Kind<usize> = count(0, rules::MOST_REWRITES);
    const UNSET: &'static str = "unlimited";
}

/// Declares the passes: each is a switch with a row in the level table, off wherever `compilation.mode` is `none`.
macro_rules! passes {
    ($($(#[doc = $doc:literal])+ $field:ident = $name:ident [$o0:expr, $o1:expr, $o2:expr, $o3:expr] former $former:expr;)*) => {
        settings_group! {
            /// The passes, one switch each.
            PassConfig at "compilation.pass_config." {
                $(
                    $(#[doc = $doc])+
                    $field: bool = $name {
                        kind: SWITCH,
                        default: Rule::Levels([$o0, $o1, $o2, $o3]),
                        forced: None,
                        limit: Some(rules::pass_limit),
                        flag: Flag::Dotted,
                        former_paths: $former,
                    }
                )*
            }
        }
    };
}

passes! {
    /// Remove operations that change nothing.
    eliminate_noops = ELIMINATE_NOOPS [Is(false), Is(true), Is(true), Is(true)]
        former &["compilation.pass_config.enable_noop"];
    /// Compute equal operations once.
    eliminate_common_subexpressions = ELIMINATE_COMMON_SUBEXPRESSIONS [Is(false), Is(true), Is(true), Is(true)]
        former &[];
    /// Fuse the residual addition with the RMSNorm that follows it.
    fuse_add_norm = FUSE_ADD_NORM [Is(false), Is(true), Is(true), Is(true)]
        former &[];
    /// Fuse the activation (SiLU) of the gate with the product that follows it.
    fuse_act_mul = FUSE_ACT_MUL [Is(false), Is(true), Is(true), Is(true)]
        former &[];
    /// Fuse RMSNorm with the quantization that follows it.
    fuse_norm_quant = FUSE_NORM_QUANT [Is(false), ACTIVATIONS_QUANTIZED, ACTIVATIONS_QUANTIZED, ACTIVATIONS_QUANTIZED]
        former &["compilation.pass_config.enable_fusion"];
    /// Fuse the activation and its product with the quantization that follows them.
    fuse_act_quant = FUSE_ACT_QUANT [Is(false), ACTIVATIONS_QUANTIZED, ACTIVATIONS_QUANTIZED, ACTIVATIONS_QUANTIZED]
        former &[];
    /// Compute the query, key and value projections in one matrix product.
    fuse_qkv_proj = FUSE_QKV_PROJ [Is(false), Is(false), Is(true), Is(true)]
        former &[];
    /// Compute the gate and up projections in one matrix product.
    fuse_gate_up_proj = FUSE_GATE_UP_PROJ [Is(false), Is(false), Is(true), Is(true)]
        former &[];
    /// Fuse the norms of query and key heads with the RoPE that follows them.
    fuse_qk_norm_rope = FUSE_QK_NORM_ROPE [Is(false), Is(false), QK_NORMS, QK_NORMS]
        former &["compilation.pass_config.enable_qk_norm_rope_fusion"];
    /// Fuse RoPE with the write into the KV cache.
    fuse_rope_kvcache = FUSE_ROPE_KVCACHE [Is(false), Is(false), Is(true), Is(true)]
        former &[];
    /// Do the norm, and the quantization of its result, in the launch of the matrix product that follows them.
    fuse_gemm_prologue = FUSE_GEMM_PROLOGUE [Is(false), Is(false), Is(true), Is(true)]
        former &[];
    /// Do bias, residual addition and activation in the matrix product that precedes them.
    fuse_gemm_epilogue = FUSE_GEMM_EPILOGUE [Is(false), Is(false), Is(true), Is(true)]
        former &[];
    /// Fuse attention with the quantization that follows it.
    fuse_attn_quant = FUSE_ATTN_QUANT [Is(false), Is(false), STATICALLY_QUANTIZED, STATICALLY_QUANTIZED]
        former &["compilation.pass_config.enable_attn_fusion"];
}

const ACTIVATIONS_QUANTIZED: crate::declaration::Cell<bool> =
    When { words: "if the model quantizes activations", choose: rules::quantizes_activations };

const STATICALLY_QUANTIZED: crate::declaration::Cell<bool> =
    When { words: "if activations are quantized statically", choose: rules::quantizes_statically };

const QK_NORMS: crate::declaration::Cell<bool> =
    When { words: "if the model has q/k norms", choose: rules::has_qk_norms };

settings_group! {
    /// Kernels, the layout of their weights, and what is kept of them between starts.
    Kernel at "kernel." {
        /// Lay weights out for their kernels while loading.
        repack_weights: bool = REPACK_WEIGHTS {
            kind: SWITCH,
            default: Rule::Levels([Is(false), Is(false), Is(true), Is(true)]),
            forced: None,
            limit: Some(rules::repack_weights_limit),
            flag: Flag::Value { long: "repack-weights", aliases: &[], short: None },
            former_paths: &[],
        }
        /// Search for the fastest variant of each kernel, within bounds; the result is cached on disk.
        autotune: bool = AUTOTUNE {
            kind: SWITCH,
            default: Rule::Levels([Is(false), Is(false), Is(false), Is(true)]),
            forced: None,
            limit: Some(rules::autotune_limit),
            flag: Flag::Value { long: "autotune", aliases: &[], short: None },
            former_paths: &[],
        }
        /// Run a whole decode step as one resident program.
        persistent_decode: bool = PERSISTENT_DECODE {
            kind: SWITCH,
            default: Rule::Levels([
                Is(false),
                Is(false),
                Is(false),
                When { words: "if the device and the model can", choose: rules::wanted },
            ]),
            forced: None,
            limit: Some(rules::persistent_decode_limit),
            flag: Flag::Value { long: "persistent-decode", aliases: &[], short: None },
            former_paths: &[],
        }
        /// Keep what was found out about kernels in this folder between starts: the results of `kernel.autotune`, and on a GPU the
        /// machine code that the driver makes of generated kernels; `none` keeps nothing.
        ///
        /// It may be deleted at any time, shared by processes, and damaged: that costs time and nothing else.
        kernel_cache: Option<PathBuf> = KERNEL_CACHE {
            kind: optional::<CacheFolder>(),
            default: Rule::Computed {
                words: "`$XDG_CACHE_HOME/allotrope/kernels`, else `~/.cache/allotrope/kernels`",
                choose: rules::kernel_cache_default,
            },
            forced: None,
            limit: None,
            flag: Flag::Value { long: "kernel-cache", aliases: &[], short: None },
            former_paths: &["cuda.kernel_cache"],
        }
    }
}

settings_group! {
    /// The model as it is served.
    Model at "model." {
        /// Where the weights come from: `auto`, `safetensors` or `dummy`.
        ///
        /// `auto` reads the checkpoint's safetensors files, the one format that can be read. `dummy` reads none: it makes weights
        /// by shape, the same at every start, so that `config.json` and the tokenizer are all that a start, a benchmark or a test of
        /// speed needs; the answers mean nothing.
        load_format: LoadFormat = LOAD_FORMAT {
            kind: choice(),
            default: Rule::Constant(LoadFormat::Auto),
            forced: None,
            limit: None,
            flag: Flag::Value { long: "load-format", aliases: &[], short: None },
            former_paths: &[],
        }
        /// The most tokens of a sequence, prompt and answer together.
        max_model_len: usize = MAX_MODEL_LEN {
            kind: count(1, rules::MOST_CONTEXT),
            default: Rule::Computed {
                words: "the checkpoint's context length, or what the KV cache can hold",
                choose: rules::max_model_len_default,
            },
            forced: None,
            limit: Some(rules::max_model_len_limit),
            flag: Flag::Value { long: "max-model-len", aliases: &[], short: None },
            former_paths: &[],
        }
    }
}

settings_group! {
    /// How requests become batches.
    Scheduler at "scheduler." {
        /// The most sequences of a batch.
        max_num_seqs: usize = MAX_NUM_SEQS {
            kind: count(1, 1 << 16),
            default: Rule::Constant(32),
            forced: None,
            limit: Some(rules::max_num_seqs_limit),
            flag: Flag::Value { long: "max-num-seqs", aliases: &[], short: None },
            former_paths: &[],
        }
        /// The most tokens of a step, over all its sequences.
        max_num_batched_tokens: usize = MAX_NUM_BATCHED_TOKENS {
            kind: count(1, MAX_TOKENS),
            default: Rule::Constant(512),
            forced: None,
            limit: Some(rules::max_num_batched_tokens_limit),
            flag: Flag::Value { long: "max-num-batched-tokens", aliases: &[], short: None },
            former_paths: &[],
        }
        /// Which of the waiting requests runs next: `fcfs`, the first to come; or `priority`, the one of the lowest `priority`.
        ///
        /// Where memory runs out, the last to come, or the least urgent, gives way first.
        scheduling_policy: SchedulingPolicy = SCHEDULING_POLICY {
            kind: choice(),
            default: Rule::Constant(SchedulingPolicy::Fcfs),
            forced: None,
            limit: None,
            flag: Flag::Value { long: "scheduling-policy", aliases: &[], short: None },
            former_paths: &[],
        }
        /// Run a prompt that is longer than what is left of a step over several steps, beside requests that decode.
        ///
        /// Without it `scheduler.max_num_batched_tokens` must be at least `model.max_model_len`.
        enable_chunked_prefill: bool = ENABLE_CHUNKED_PREFILL {
            kind: SWITCH,
            default: Rule::Constant(true),
            forced: None,
            limit: None,
            flag: Flag::Switch { long: "enable-chunked-prefill" },
            former_paths: &[],
        }
        /// The most tokens of one prompt in a step that others want a part of; 0 is no bound.
        long_prefill_token_threshold: usize = LONG_PREFILL_TOKEN_THRESHOLD {
            kind: count(0, MAX_TOKENS),
            default: Rule::Constant(0),
            forced: None,
            limit: None,
            flag: Flag::Value { long: "long-prefill-token-threshold", aliases: &[], short: None },
            former_paths: &[],
        }
        /// Requests of a server that may wait; more are refused until some have begun.
        max_num_queued_reqs: usize = MAX_NUM_QUEUED_REQS {
            kind: count(1, 1 << 20),
            default: Rule::Constant(8192),
            forced: None,
            limit: None,
            flag: Flag::Value { long: "max-num-queued-reqs", aliases: &[], short: None },
            former_paths: &[],
        }
        /// Tokens that the prompts of waiting requests of a server may have together.
        max_num_queued_tokens: usize = MAX_NUM_QUEUED_TOKENS {
            kind: count(1, 1 << 32),
            default: Rule::Constant(8 << 20),
            forced: None,
            limit: None,
            flag: Flag::Value { long: "max-num-queued-tokens", aliases: &[], short: None },
            former_paths: &[],
        }
    }
}

settings_group! {
    /// The KV cache.
    Cache at "cache." {
        /// Tokens in one block of the KV cache.
        block_size: usize = BLOCK_SIZE {
            kind: count(1, 1024),
            default: Rule::Constant(16),
            forced: None,
            limit: None,
            flag: Flag::Value { long: "block-size", aliases: &[], short: None },
            former_paths: &[],
        }
        /// What keys and values are stored as: the type of the model's activations, or E4M3 (fp8). E4M3 is rounded to without a scale; it
        /// takes half the memory of 16-bit types and changes the answers.
        kv_cache_dtype: KvCacheDtype = KV_CACHE_DTYPE {
            kind: choice(),
            default: Rule::Constant(KvCacheDtype::Auto),
            forced: None,
            limit: Some(rules::kv_cache_dtype_limit),
            flag: Flag::Value { long: "kv-cache-dtype", aliases: &[], short: None },
            former_paths: &[],
        }
        /// Memory for the KV cache, in bytes.
        kv_cache_memory: u64 = KV_CACHE_MEMORY {
            kind: bytes(1, rules::MOST_KV_CACHE),
            default: Rule::Computed {
                words: "on a GPU what the weights leave of nine tenths of its free memory; elsewhere a quarter of the memory that \
                        is available, at most 4 GiB; more where an explicit `model.max_model_len` needs it, and never more than `scheduler.max_num_seqs` sequences of `model.max_model_len` tokens take",
                choose: rules::kv_cache_memory_default,
            },
            forced: None,
            limit: Some(rules::kv_cache_memory_limit),
            flag: Flag::Value { long: "kv-cache-memory", aliases: &["kv-cache-memory-bytes"], short: None },
            former_paths: &["cache.kv_cache_memory_bytes"],
        }
        /// Keep blocks of the KV cache after their request, so that a prompt that begins like an earlier one is not computed again.
        enable_prefix_caching: bool = ENABLE_PREFIX_CACHING {
            kind: SWITCH,
            default: Rule::Constant(true),
            forced: None,
            limit: None,
            flag: Flag::Switch { long: "enable-prefix-caching" },
            former_paths: &[],
        }
    }
}

settings_group! {
    /// The CPU device.
    Cpu at "cpu." {
        /// Threads that compute.
        threads: usize = CPU_THREADS {
            kind: count(1, rules::MOST_THREADS),
            default: Rule::Computed {
                words: "the hardware threads that the process may use",
                choose: rules::threads_default,
            },
            forced: None,
            limit: None,
            flag: Flag::Value { long: "threads", aliases: &[], short: None },
            former_paths: &[],
        }
    }
}

enum CacheFolder {}

impl Optional for CacheFolder {
    type Value = PathBuf;
    const KIND: Kind<PathBuf> = FOLDER;
    const UNSET: &'static str = "none";
}

/// All settings, in the order of the documentation.
pub(crate) fn all() -> &'static [&'static dyn Declared] {
    static ALL: LazyLock<Vec<&'static dyn Declared>> = LazyLock::new(|| {
        let mut all = Vec::new();
        Settings::declare(&mut all);
        all
    });
    &ALL
}

/// The setting of a dotted path.
pub(crate) fn find(path: &str) -> Option<&'static dyn Declared> {
    static BY_PATH: LazyLock<HashMap<&'static str, &'static dyn Declared>> =
        LazyLock::new(|| all().iter().map(|setting| (setting.path(), *setting)).collect());
    BY_PATH.get(path).copied()
}

/// Whether a setting is `group` or belongs to it.
pub(crate) fn is_within(path: &str, group: &str) -> bool {
    path.strip_prefix(group).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The paths of all passes' switches.
pub(crate) fn passes() -> impl Iterator<Item = &'static str> {
    all().iter().map(|setting| setting.path()).filter(|path| is_within(path, "compilation.pass_config"))
}

/// One resolved setting of any type.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The dotted path.
    pub setting: &'static str,
    /// The value, in the form in which JSON and TOML have it.
    pub value: Json,
    /// The value, as it is shown to a person.
    pub shown: String,
    /// Where the value comes from.
    pub source: Source,
    /// Why it is this value, where a rule or a limit decided.
    pub reason: Option<String>,
}

impl Row {
    pub(crate) fn of<T>(setting: &Setting<T>, resolved: &Resolved<T>) -> Self {
        Self {
            setting: setting.path,
            value: (setting.kind.write)(&resolved.value),
            shown: (setting.kind.show)(&resolved.value),
            source: resolved.source.clone(),
            reason: resolved.reason.clone(),
        }
    }
}

impl Settings {
    /// Every setting, in the order of the documentation.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::with_capacity(all().len());
        self.list(&mut rows);
        rows
    }

    /// One setting by its dotted path; `None` if there is none of that path.
    pub fn row(&self, path: &str) -> Option<Row> {
        self.rows().into_iter().find(|row| row.setting == path)
    }
}
