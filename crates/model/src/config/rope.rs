//! The rotary embedding of `config.json`, in both spellings that the Hugging Face library has had: `rope_theta` with
//! `rope_scaling`, and all in `rope_parameters`.

use crate::error::ModelError;
use crate::json::Fields;
use crate::rope::{Rope, RopeKind};

use super::MAX_POSITIONS;

const DEFAULT_THETA: f64 = 10_000.0;
const SUPPORTED: &str = "\"default\", \"linear\", \"llama3\" or \"yarn\", the supported kinds";
/// Largest factor or base that is accepted; above it f32 arithmetic on frequencies loses its meaning.
const LARGEST: f64 = 1e15;

pub(super) fn read(fields: &Fields<'_>, max_position_embeddings: usize) -> Result<Rope, ModelError> {
    let field = if fields.get("rope_scaling").is_some() { "rope_scaling" } else { "rope_parameters" };
    if field == "rope_scaling"
        && fields.get("rope_parameters").is_some_and(|other| Some(other) != fields.get("rope_scaling"))
    {
        return Err(fields.error("rope_scaling", "either `rope_scaling` or `rope_parameters`, not two that differ"));
    }
    let parameters = fields.object(field)?;
    let theta = match &parameters {
        Some(parameters) => theta(parameters)?,
        None => None,
    };
    let theta = match theta {
        Some(theta) => theta,
        None => self::theta(fields)?.unwrap_or(DEFAULT_THETA),
    };
    for holder in [Some(fields), parameters.as_ref()].into_iter().flatten() {
        holder.number(
            "partial_rotary_factor",
            "1 or no such field: this architecture rotates whole heads",
            |factor| factor == 1.0,
        )?;
    }
    let kind = match &parameters {
        Some(parameters) => kind(fields, parameters, max_position_embeddings)?,
        None => RopeKind::Default,
    };
    Ok(Rope { theta, kind })
}

fn theta(fields: &Fields<'_>) -> Result<Option<f64>, ModelError> {
    fields.number("rope_theta", "a number above 1, up to 1e15", |theta| theta > 1.0 && theta <= LARGEST)
}

fn kind(config: &Fields<'_>, parameters: &Fields<'_>, max_position_embeddings: usize) -> Result<RopeKind, ModelError> {
    let field = if parameters.get("rope_type").is_some() { "rope_type" } else { "type" };
    match parameters.text(field)? {
        Some("default") => Ok(RopeKind::Default),
        None if parameters
            .keys()
            .all(|key| matches!(key, "rope_theta" | "rope_type" | "type" | "partial_rotary_factor")) =>
        {
            Ok(RopeKind::Default)
        }
        Some("linear") => Ok(RopeKind::Linear { factor: factor(parameters)? }),
        Some("llama3") => llama3(config, parameters, max_position_embeddings),
        Some("yarn") => yarn(config, parameters, max_position_embeddings),
        Some("dynamic" | "longrope") => Err(parameters
            .error(field, format!("{SUPPORTED} (frequencies that change with the length of the text are not)"))),
        None => Err(parameters.error("rope_type", SUPPORTED)),
        Some(_) => Err(parameters.error(field, SUPPORTED)),
    }
}

fn factor(parameters: &Fields<'_>) -> Result<f64, ModelError> {
    let expected = "a number from 1 to 1e15";
    parameters
        .number("factor", expected, |factor| (1.0..=LARGEST).contains(&factor))?
        .ok_or_else(|| parameters.error("factor", expected))
}

/// The context length of the original training. As in the Hugging Face library a field beside the rope parameters comes
/// first, then the one in them, then `max_position_embeddings`; the flag says whether it was given.
fn original_context(config: &Fields<'_>, parameters: &Fields<'_>, default: usize) -> Result<(usize, bool), ModelError> {
    const FIELD: &str = "original_max_position_embeddings";
    for fields in [config, parameters] {
        if let Some(context) = fields.size(FIELD, 1..=MAX_POSITIONS)? {
            return Ok((context, true));
        }
    }
    Ok((default, false))
}

fn llama3(
    config: &Fields<'_>,
    parameters: &Fields<'_>,
    max_position_embeddings: usize,
) -> Result<RopeKind, ModelError> {
    let positive = |field: &str| {
        let expected = "a number above 0";
        let value = parameters.number(field, expected, |value| value > 0.0 && value <= LARGEST)?;
        value.ok_or_else(|| parameters.error(field, expected))
    };
    let low_frequency_factor = positive("low_freq_factor")?;
    let high_frequency_factor = positive("high_freq_factor")?;
    if high_frequency_factor <= low_frequency_factor {
        let expected = format!("a number above low_freq_factor = {low_frequency_factor}");
        return Err(parameters.error("high_freq_factor", expected));
    }
    let (original_max_position_embeddings, _) = original_context(config, parameters, max_position_embeddings)?;
    Ok(RopeKind::Llama3 {
        factor: factor(parameters)?,
        low_frequency_factor,
        high_frequency_factor,
        original_max_position_embeddings,
    })
}

fn yarn(config: &Fields<'_>, parameters: &Fields<'_>, max_position_embeddings: usize) -> Result<RopeKind, ModelError> {
    let (original_max_position_embeddings, given) = original_context(config, parameters, max_position_embeddings)?;
    // Without a factor the ratio of the two context lengths is meant, if both are there.
    let factor = if given && parameters.get("factor").is_none() {
        (max_position_embeddings as f64 / original_max_position_embeddings as f64).max(1.0)
    } else {
        factor(parameters)?
    };
    let number = |field| parameters.number(field, "a number from 0 up", |value| (0.0..=LARGEST).contains(&value));
    // Zero means "not given" for these two in the Hugging Face implementation.
    let beta_fast = number("beta_fast")?.filter(|beta| *beta != 0.0).unwrap_or(32.0);
    let beta_slow = number("beta_slow")?.filter(|beta| *beta != 0.0).unwrap_or(1.0);
    if beta_fast < beta_slow {
        return Err(parameters.error("beta_fast", format!("at least beta_slow = {beta_slow}")));
    }
    let attention_factor =
        parameters.number("attention_factor", "a number above 0", |value| value > 0.0 && value <= LARGEST)?;
    Ok(RopeKind::Yarn {
        factor,
        original_max_position_embeddings,
        beta_fast,
        beta_slow,
        attention_factor,
        mscale: number("mscale")?,
        mscale_all_dim: number("mscale_all_dim")?,
        truncate: parameters.flag("truncate")?.unwrap_or(true),
    })
}
