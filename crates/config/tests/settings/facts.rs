//! Models and devices that the tests resolve for, and the way from arguments to options.

use allotrope_config::{ActivationQuantization, AttentionGraphSupport, DeviceFacts, ModelFacts, Options, command_line};

/// A model by the name that the tests' data give it.
pub(crate) fn model(name: &str) -> ModelFacts {
    let activation_quantization = match name {
        "plain" | "qk-norms" => ActivationQuantization::None,
        "fp8-static" => ActivationQuantization::Static,
        "fp8-dynamic" => ActivationQuantization::Dynamic,
        other => panic!("no model is called {other}"),
    };
    ModelFacts {
        name: name.to_owned(),
        activation_quantization,
        has_qk_norm: name == "qk-norms",
        context_length: 8192,
        kv_bytes_per_token: 32 * 1024,
        weight_bytes: 1 << 30,
    }
}

/// A device by the name that the tests' data give it.
pub(crate) fn device(name: &str) -> DeviceFacts {
    let (attention_graph_support, can) = match name {
        "capable" => (AttentionGraphSupport::Always, true),
        "uniform" => (AttentionGraphSupport::UniformBatch, true),
        "never" => (AttentionGraphSupport::Never, true),
        "cpu" => (AttentionGraphSupport::Always, false),
        other => panic!("no device is called {other}"),
    };
    DeviceFacts {
        name: name.to_owned(),
        kind: "cpu".to_owned(),
        attention_graph_support,
        parallelism: 8,
        available_memory: 64 << 30,
        dedicated_memory: false,
        repack_weights: true,
        fp8_kv_cache: true,
        autotune: can,
        persistent_decode: can,
        kernel_cache: None,
    }
}

/// What was wrong with arguments: the message and the status to exit with.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) message: String,
    pub(crate) status: i32,
}

impl From<allotrope_config::SettingsError> for Refusal {
    fn from(error: allotrope_config::SettingsError) -> Self {
        Self { message: error.to_string(), status: if error.is_usage() { 2 } else { 1 } }
    }
}

impl From<clap::Error> for Refusal {
    fn from(error: clap::Error) -> Self {
        Self { message: error.to_string(), status: error.exit_code() }
    }
}

/// What a program with our arguments takes from a command line.
pub(crate) fn matches(arguments: &[&str]) -> Result<clap::ArgMatches, Refusal> {
    let all = std::iter::once("program").chain(arguments.iter().copied()).map(Into::into);
    let normal = command_line::normalize(all)?;
    let command =
        clap::Command::new("program").args(command_line::arguments()).arg(clap::Arg::new("prompt").num_args(0..=1));
    Ok(command.try_get_matches_from(normal)?)
}

/// What a command line says.
pub(crate) fn options(arguments: &[&str]) -> Result<Options, Refusal> {
    Ok(command_line::options_from(&matches(arguments)?)?)
}
