//! `quantization_config`: which linear layers are quantized, and how.
//!
//! One scheme is supported, that of RedHatAI/Llama-3.2-1B-FP8: format `float-quantized` of the compressed-tensors
//! library, weights in FP8 e4m3 with one scale per tensor, activations quantized to e4m3 with one scale per layer that
//! was fixed by calibration ("static").

use regex::{Regex, RegexBuilder};

use crate::error::ModelError;
use crate::json::Fields;

/// Largest compiled form of an `ignore` pattern, in bytes. The engine is linear in the text, so this bounds all its work.
const MAX_PATTERN: usize = 1 << 20;
/// The class that stands for every linear layer in `targets` and `ignore`.
const LINEAR: &str = "Linear";

/// How one linear layer computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LinearScheme {
    /// Weights and activations in the same float type.
    Plain,
    /// Weights stored as e4m3; activations divided by `input_scale`, rounded to e4m3 (saturating at ±448), and the f32
    /// sums of the products multiplied by `input_scale · weight_scale`.
    Fp8Static {
        /// What a stored weight is multiplied by, finite and above 0.
        weight_scale: f32,
        /// What a quantized activation is multiplied by, finite and above 0.
        input_scale: f32,
    },
}

/// The quantization that `config.json` describes: static per-tensor FP8 for all linear layers but the ignored ones.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizationConfig {
    ignored: Vec<LayerPattern>,
}

/// One entry of `ignore`: a layer's full name, the class `Linear`, or `re:` with a pattern.
#[derive(Debug, Clone)]
struct LayerPattern {
    source: String,
    regex: Option<Regex>,
}

impl PartialEq for LayerPattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl LayerPattern {
    fn matches(&self, layer: &str) -> bool {
        match &self.regex {
            Some(regex) => regex.is_match(layer),
            None => self.source == layer || self.source == LINEAR,
        }
    }
}

impl QuantizationConfig {
    /// Whether the linear layer of this full name (`model.layers.0.self_attn.q_proj`) is quantized.
    pub fn quantizes(&self, layer: &str) -> bool {
        !self.ignored.iter().any(|pattern| pattern.matches(layer))
    }

    /// Reads `quantization_config` of `config.json`, if it has one.
    pub(crate) fn read(config: &Fields<'_>) -> Result<Option<Self>, ModelError> {
        if config.get("compression_config").is_some() {
            return Err(config.error("compression_config", "`quantization_config`, the present name of this field"));
        }
        let Some(fields) = config.object("quantization_config")? else { return Ok(None) };
        require_text(&fields, "quant_method", "compressed-tensors")?;
        require_text(&fields, "format", "float-quantized")?;
        require_absent(&fields, "kv_cache_scheme", "null: a quantized KV cache is not supported")?;
        if let Some(sparsity) = fields.object("sparsity_config")? {
            let format = sparsity.text("format")?;
            if format.is_some_and(|format| format != "dense") {
                return Err(sparsity.error("format", "\"dense\": sparse weights are not supported"));
            }
        }
        let groups = match fields.object("config_groups")? {
            Some(groups) => groups,
            None => return Err(fields.error("config_groups", "an object with one group of layers")),
        };
        let mut names = groups.keys();
        let group = match (names.next(), names.next()) {
            (Some(name), None) => groups.object(name)?.ok_or_else(|| groups.error(name, "an object"))?,
            _ => return Err(fields.error("config_groups", "one group of layers; several are not supported")),
        };
        read_group(&group)?;
        let ignored =
            fields.texts("ignore")?.into_iter().map(|source| pattern(&fields, source)).collect::<Result<_, _>>()?;
        Ok(Some(QuantizationConfig { ignored }))
    }
}

fn read_group(group: &Fields<'_>) -> Result<(), ModelError> {
    if group.texts("targets")? != [LINEAR] {
        return Err(group.error("targets", "[\"Linear\"], the supported targets"));
    }
    if group.get("format").is_some() {
        require_text(group, "format", "float-quantized")?;
    }
    require_absent(group, "output_activations", "null: quantized outputs are not supported")?;
    for field in ["weights", "input_activations"] {
        let scheme = "an object: static per-tensor FP8 of weights and input activations is the supported scheme";
        let arguments = group.object(field)?.ok_or_else(|| group.error(field, scheme))?;
        read_arguments(&arguments)?;
    }
    Ok(())
}

/// The arguments of one quantized tensor: e4m3, one scale, known before the run.
fn read_arguments(arguments: &Fields<'_>) -> Result<(), ModelError> {
    if arguments.size("num_bits", 1..=64)? != Some(8) {
        return Err(arguments.error("num_bits", "8"));
    }
    require_text(arguments, "type", "float")?;
    require_text(arguments, "strategy", "tensor")?;
    if arguments.flag("symmetric")? == Some(false) {
        return Err(arguments.error("symmetric", "true: zero points are not supported"));
    }
    if arguments.get("dynamic").is_some_and(|dynamic| dynamic != &serde_json::Value::Bool(false)) {
        return Err(arguments.error("dynamic", "false: scales must be in the checkpoint"));
    }
    require_absent(arguments, "group_size", "null: one scale per tensor is the supported granularity")?;
    require_absent(arguments, "block_structure", "null: one scale per tensor is the supported granularity")
}

fn pattern(fields: &Fields<'_>, source: &str) -> Result<LayerPattern, ModelError> {
    let regex = match source.strip_prefix("re:") {
        None => None,
        Some(expression) => {
            // The library that writes these files matches at the beginning of the name, not necessarily to its end.
            let compiled = RegexBuilder::new(&format!("^(?:{expression})")).size_limit(MAX_PATTERN).build();
            let regex = compiled.map_err(|error| {
                let reason = error.to_string();
                let reason = reason.lines().last().unwrap_or_default();
                let found = crate::error::shorten(&format!("a list with {source:?}"));
                fields.error_found(
                    "ignore",
                    found,
                    format!("regular expressions without look-around or back-references ({reason})"),
                )
            })?;
            Some(regex)
        }
    };
    Ok(LayerPattern { source: source.to_owned(), regex })
}

fn require_text(fields: &Fields<'_>, field: &str, only: &str) -> Result<(), ModelError> {
    if fields.text(field)? == Some(only) {
        Ok(())
    } else {
        Err(fields.error(field, format!("\"{only}\", the supported value")))
    }
}

fn require_absent(fields: &Fields<'_>, field: &str, expected: &str) -> Result<(), ModelError> {
    if fields.get(field).is_some() { Err(fields.error(field, expected)) } else { Ok(()) }
}
