//! The choices of the settings: the device, where weights come from, which passes run, what is recorded, and what attention allows.

use crate::kind::{Named, OtherName, display_and_parse};

/// Whether the graph passes run at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CompilationMode {
    /// No pass runs: every operation is its own launch.
    None,
    /// The passes that are on in `compilation.pass_config` run.
    Compile,
}

impl Named for CompilationMode {
    const ALL: &'static [Self] = &[Self::None, Self::Compile];
    const OTHER_NAMES: &'static [(&'static str, OtherName<Self>)] = &[
        ("0", OtherName::Means(Self::None)),
        ("3", OtherName::Means(Self::Compile)),
        ("VLLM_COMPILE", OtherName::Means(Self::Compile)),
        ("1", TORCH_ONLY),
        ("STOCK_TORCH_COMPILE", TORCH_ONLY),
        ("2", TORCH_ONLY),
        ("DYNAMO_TRACE_ONCE", TORCH_ONLY),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Compile => "compile",
        }
    }
}

const TORCH_ONLY: OtherName<CompilationMode> = OtherName::Refused(
    "it names a way of running torch.compile, which has no meaning here; write `compile` (3) or `none` (0)",
);

display_and_parse!(CompilationMode);

/// Which device runs the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// The first GPU where there is one that can be used, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The first GPU, through CUDA.
    Cuda,
}

impl Named for DeviceChoice {
    const ALL: &'static [Self] = &[Self::Auto, Self::Cpu, Self::Cuda];
    const OTHER_NAMES: &'static [(&'static str, OtherName<Self>)] = &[];

    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

display_and_parse!(DeviceChoice);

/// Where the weights of a model come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoadFormat {
    /// The format that the checkpoint has them in, of those that can be read: safetensors.
    Auto,
    /// The checkpoint's safetensors files.
    Safetensors,
    /// Nowhere: they are made by shape.
    Dummy,
}

impl Named for LoadFormat {
    const ALL: &'static [Self] = &[Self::Auto, Self::Safetensors, Self::Dummy];
    const OTHER_NAMES: &'static [(&'static str, OtherName<Self>)] =
        &[("hf", OtherName::Means(Self::Auto)), ("pt", PICKLED), ("npcache", PICKLED), ("gguf", GGUF)];

    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Safetensors => "safetensors",
            Self::Dummy => "dummy",
        }
    }
}

const PICKLED: OtherName<LoadFormat> = OtherName::Refused(
    "it names weights in PyTorch's pickle format, which are not read; save the model as safetensors and write `safetensors`",
);

const GGUF: OtherName<LoadFormat> =
    OtherName::Refused("GGUF files are not read; use the model's safetensors files and write `safetensors`");

display_and_parse!(LoadFormat);

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvCacheDtype {
    /// In the type of the model's activations.
    Auto,
    /// As E4M3, rounded without a scale: half the memory and half the bytes of 16-bit types, other answers.
    Fp8,
}

impl Named for KvCacheDtype {
    const ALL: &'static [Self] = &[Self::Auto, Self::Fp8];
    const OTHER_NAMES: &'static [(&'static str, OtherName<Self>)] = &[
        ("fp8_e4m3", OtherName::Means(Self::Fp8)),
        ("fp8_e5m2", OtherName::Refused("E5M2 has no kernels; `fp8` stores E4M3")),
        ("bfloat16", OTHER_FLOAT),
        ("bf16", OTHER_FLOAT),
        ("float16", OTHER_FLOAT),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Fp8 => "fp8",
        }
    }
}

const OTHER_FLOAT: OtherName<KvCacheDtype> =
    OtherName::Refused("keys and values have the type of the model's activations, which `auto` means, or `fp8`");

display_and_parse!(KvCacheDtype);

/// What one batch runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuntimeMode {
    /// Launch by launch.
    None,
    /// Recorded pieces, with the operations at which the step is cut launched one by one between them.
    Piecewise,
    /// One recording of the whole step.
    Full,
}

/// Which batches run from recordings (on CUDA, CUDA graphs; on the CPU, resolved launch lists).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GraphMode {
    /// Nothing is recorded.
    None,
    /// Every batch runs as recorded pieces, with the operations at which the step is cut between them.
    Piecewise,
    /// Every batch runs as one recording.
    Full,
    /// Batches of decodes run as one recording, all others launch by launch.
    FullDecodeOnly,
    /// Batches of decodes run as one recording, all others as recorded pieces.
    FullAndPiecewise,
}

impl GraphMode {
    /// What a uniform batch of decodes runs as (every sequence has the same number of new tokens).
    pub const fn decode(self) -> RuntimeMode {
        match self {
            Self::None => RuntimeMode::None,
            Self::Piecewise => RuntimeMode::Piecewise,
            Self::Full | Self::FullDecodeOnly | Self::FullAndPiecewise => RuntimeMode::Full,
        }
    }

    /// What a mixed or prefill batch runs as.
    pub const fn mixed(self) -> RuntimeMode {
        match self {
            Self::None | Self::FullDecodeOnly => RuntimeMode::None,
            Self::Piecewise | Self::FullAndPiecewise => RuntimeMode::Piecewise,
            Self::Full => RuntimeMode::Full,
        }
    }

    /// The strongest mode not above this one that attention with `support` can run, where a decode
    /// adds `query_length` tokens to each sequence (1 without speculation).
    ///
    /// Steps are taken to be cut at attention: pieces do not contain it and are always possible, a whole step contains
    /// it. The result is the table of vLLM's `resolve_cudagraph_mode_and_sizes` for models that can be cut into pieces,
    /// which here is every model. (Where vLLM refuses `FULL` because attention can never be recorded, this
    /// gives `PIECEWISE`; resolving settings refuses any explicit mode that would be lowered.)
    pub const fn lowered_for(self, support: AttentionGraphSupport, query_length: usize) -> Self {
        let decodes = match support {
            AttentionGraphSupport::Always | AttentionGraphSupport::UniformBatch => true,
            AttentionGraphSupport::SingleTokenDecode => query_length == 1,
            AttentionGraphSupport::Never => false,
        };
        match self {
            Self::None | Self::Piecewise => self,
            Self::Full if matches!(support, AttentionGraphSupport::Always) => Self::Full,
            Self::Full if decodes => Self::FullAndPiecewise,
            Self::FullDecodeOnly | Self::FullAndPiecewise if decodes => self,
            Self::Full | Self::FullDecodeOnly | Self::FullAndPiecewise => Self::Piecewise,
        }
    }

    /// The same with every batch that would run as pieces launch by launch.
    pub(crate) const fn without_pieces(self) -> Self {
        match self {
            Self::Piecewise => Self::None,
            Self::FullAndPiecewise => Self::FullDecodeOnly,
            Self::None | Self::Full | Self::FullDecodeOnly => self,
        }
    }
}

impl Named for GraphMode {
    const ALL: &'static [Self] =
        &[Self::None, Self::Piecewise, Self::Full, Self::FullDecodeOnly, Self::FullAndPiecewise];
    const OTHER_NAMES: &'static [(&'static str, OtherName<Self>)] = &[
        ("0", OtherName::Means(Self::None)),
        ("1", OtherName::Means(Self::Piecewise)),
        ("2", OtherName::Means(Self::Full)),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Piecewise => "PIECEWISE",
            Self::Full => "FULL",
            Self::FullDecodeOnly => "FULL_DECODE_ONLY",
            Self::FullAndPiecewise => "FULL_AND_PIECEWISE",
        }
    }
}

display_and_parse!(GraphMode);

/// When recordings are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GraphCapture {
    /// All of them before the engine says that it is ready.
    Startup,
    /// Each of them when a batch first needs it.
    Lazy,
    /// On a thread of its own while steps run; a batch whose recording is not there yet runs without it.
    Background,
}

impl Named for GraphCapture {
    const ALL: &'static [Self] = &[Self::Startup, Self::Lazy, Self::Background];
    const OTHER_NAMES: &'static [(&'static str, OtherName<Self>)] = &[];

    fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Lazy => "lazy",
            Self::Background => "background",
        }
    }
}

display_and_parse!(GraphCapture);

/// Which of the waiting requests runs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SchedulingPolicy {
    /// The first to come.
    Fcfs,
    /// The most urgent: that with the lowest `priority`, and of equals the first to come.
    Priority,
}

impl Named for SchedulingPolicy {
    const ALL: &'static [Self] = &[Self::Fcfs, Self::Priority];
    const OTHER_NAMES: &'static [(&'static str, OtherName<Self>)] = &[];

    fn name(self) -> &'static str {
        match self {
            Self::Fcfs => "fcfs",
            Self::Priority => "priority",
        }
    }
}

display_and_parse!(SchedulingPolicy);

/// What an attention implementation can do inside a recording, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttentionGraphSupport {
    /// It cannot be recorded.
    Never,
    /// It can be recorded for decodes of one token per sequence.
    SingleTokenDecode,
    /// It can be recorded for batches whose sequences all have the same number of new tokens.
    UniformBatch,
    /// It can be recorded for any batch.
    Always,
}

impl AttentionGraphSupport {
    /// What can be recorded, as a clause.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Never => "attention can never be recorded",
            Self::SingleTokenDecode => "attention can be recorded only for single-token decodes",
            Self::UniformBatch => "attention can be recorded only for uniform batches",
            Self::Always => "attention can be recorded for any batch",
        }
    }
}
