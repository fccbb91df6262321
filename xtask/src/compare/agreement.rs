//! Whether the engines compute the same: the logits after one prompt.

use std::path::Path;

use safetensors::SafeTensors;

use super::Prompts;
use super::contender::{Contender, Engine, Workload};
use crate::error::TaskError;

/// The most that two engines' logits may differ by: the root of the mean square of their differences, in standard deviations
/// of the logits. Sums in another order and caches in other precisions make a few hundredths; another computation, such as
/// heads whose dimensions are mixed up, makes one or more.
const TOLERANCE: f64 = 0.1;

/// Compares the logits of each other engine with Allotrope's and says in a line how far they are apart.
///
/// # Errors
/// If an engine fails, or is further away than rounding explains.
pub(super) fn check(contenders: &[Contender], prompts: &Prompts, threads: u32) -> Result<Vec<String>, TaskError> {
    let (ours, theirs): (Vec<&Contender>, Vec<&Contender>) = contenders
        .iter()
        .filter(|contender| contender.runs(Workload::Logits))
        .partition(|contender| contender.engine == Engine::Allotrope);
    let mut lines = Vec::new();
    for own in ours {
        let file = prompts.path("logits", "safetensors");
        own.write_logits(prompts, threads, &file)?;
        let own = read(&file)?;
        for other in &theirs {
            let logits = floats(&other.driver_logits(prompts, threads)?);
            let distance = distance(&own, &logits).ok_or_else(|| {
                let message = format!(
                    "{} gave {} logits, and Allotrope {}: they can't be compared",
                    other.name,
                    logits.len(),
                    own.len()
                );
                TaskError::Message(message)
            })?;
            let line = format!("{}: logits {distance:.3} standard deviations from Allotrope's", other.name);
            // A distance that is no number is not the same either.
            let is_same = distance <= TOLERANCE;
            if !is_same {
                return Err(TaskError::Message(format!("{line}; over {TOLERANCE} it is not the same computation")));
            }
            lines.push(line);
        }
    }
    Ok(lines)
}

/// The logits that the first new token of the first prompt was picked from.
fn read(path: &Path) -> Result<Vec<f32>, TaskError> {
    let bytes = std::fs::read(path).map_err(TaskError::file(path))?;
    let failed = |error| TaskError::Message(format!("{}: {error}", path.display()));
    let tensors = SafeTensors::deserialize(&bytes).map_err(failed)?;
    Ok(floats(tensors.tensor("step_logits.0").map_err(failed)?.data()))
}

/// Numbers from their bytes, little-endian.
fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The root of the mean square of the differences, in standard deviations of `own`; `None` if there is not one of each, or
/// nothing to compare.
fn distance(own: &[f32], other: &[f32]) -> Option<f64> {
    if own.len() != other.len() || own.is_empty() {
        return None;
    }
    let mean_square = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>() / own.len() as f64;
    let mean = own.iter().map(|&x| f64::from(x)).sum::<f64>() / own.len() as f64;
    let variance = mean_square(&mut own.iter().map(|&x| f64::from(x) - mean));
    let error = mean_square(&mut own.iter().zip(other).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    Some((error / variance).sqrt())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn distances_are_in_standard_deviations() {
        let own = [1.0, 3.0, 1.0, 3.0];
        assert_eq!(distance(&own, &own), Some(0.0));
        assert_eq!(distance(&own, &[1.5, 3.5, 0.5, 2.5]), Some(0.5));
        assert_eq!(distance(&own, &[1.0]), None);
        assert_eq!(distance(&[], &[]), None);
        assert!(distance(&own, &[f32::NAN, 3.0, 1.0, 3.0]).unwrap().is_nan());
        assert!(distance(&[2.0, 2.0], &[2.0, 2.0]).unwrap().is_nan(), "logits that are all alike show nothing");
    }

    #[test]
    fn mixed_up_logits_are_far_away() {
        let own: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1000) as f32).collect();
        let mut mixed = own.clone();
        mixed.rotate_left(1);
        assert!(distance(&own, &mixed).unwrap() > 5.0 * TOLERANCE);
    }

    #[test]
    fn numbers_are_little_endian() {
        let bytes: Vec<u8> = [1.5_f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(floats(&bytes), [1.5, -2.0]);
    }
}
