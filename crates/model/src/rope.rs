//! Rotary position embedding (RoPE): the kinds a configuration may name, and the frequencies of each.
//!
//! The rotation itself is Su et al., "RoFormer" (arXiv 2104.09864). Everything is computed in f32 in the order of the
//! Hugging Face implementation, so that positions far into the context get the same angles there and here.

use std::f64::consts::PI;

/// How the frequencies of the rotary embedding are derived from `rope_theta`.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeKind {
    /// As in the RoFormer paper: frequency `theta^(-2i/d)` for pair `i` of `d/2`.
    Default,
    /// Position interpolation (Chen et al., arXiv 2306.15595): every frequency divided by `factor`.
    Linear {
        /// How many times longer than in training the context is.
        factor: f64,
    },
    /// The scaling of Llama 3.1 and later (Grattafiori et al., arXiv 2407.21783, and the published model code): long
    /// wavelengths divided by `factor`, short ones kept, those between interpolated.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_frequency_factor` are scaled in full.
        low_frequency_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_frequency_factor` are kept.
        high_frequency_factor: f64,
        /// Context length of the training before the extension, in tokens.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al., arXiv 2309.00071): interpolation by parts, with a factor on the attention logits.
    Yarn {
        /// How many times longer than in training the context is.
        factor: f64,
        /// Context length of the training before the extension, in tokens.
        original_max_position_embeddings: usize,
        /// Dimensions that turn more often than this over the original context are kept.
        beta_fast: f64,
        /// Dimensions that turn less often than this over the original context are interpolated in full.
        beta_slow: f64,
        /// Factor on cosines and sines; `None` is the paper's `0.1 ln(factor) + 1`.
        attention_factor: Option<f64>,
        /// With `mscale_all_dim`, replaces the paper's attention factor by a quotient of two such.
        mscale: Option<f64>,
        /// See `mscale`.
        mscale_all_dim: Option<f64>,
        /// Whether the bounds of the interpolated range are rounded to whole dimensions.
        truncate: bool,
    },
}

/// The rotary embedding that a configuration describes. Made by [`ModelConfig`](crate::ModelConfig), which has checked
/// that all numbers are finite and in range.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies, `rope_theta`.
    pub theta: f64,
    /// How they are scaled.
    pub kind: RopeKind,
}

/// What a kernel needs to know of the rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeParameters {
    /// Radians per position for each rotated pair, f32 `[head_dim / 2]`.
    pub inverse_frequencies: Vec<f32>,
    /// Factor on both cosine and sine, so that the attention logits are scaled by its square. 1 for all kinds but YaRN.
    pub attention_scaling: f32,
}

impl Rope {
    /// The frequencies for heads of `head_dim` elements, which must be even.
    pub fn parameters(&self, head_dim: usize) -> RopeParameters {
        let periods = periods(self.theta, head_dim);
        let plain = periods.iter().map(|period| 1.0 / period);
        let (inverse_frequencies, attention_scaling) = match self.kind {
            RopeKind::Default => (plain.collect(), 1.0),
            RopeKind::Linear { factor } => (plain.map(|frequency| frequency / factor as f32).collect(), 1.0),
            RopeKind::Llama3 {
                factor,
                low_frequency_factor,
                high_frequency_factor,
                original_max_position_embeddings,
            } => {
                let context = original_max_position_embeddings as f64;
                let bands = Llama3Bands { factor, low: low_frequency_factor, high: high_frequency_factor, context };
                (plain.map(|frequency| bands.scale(frequency)).collect(), 1.0)
            }
            RopeKind::Yarn { .. } => (self.yarn_frequencies(&periods), self.yarn_attention_scaling() as f32),
        };
        RopeParameters { inverse_frequencies, attention_scaling }
    }

    fn yarn_frequencies(&self, periods: &[f32]) -> Vec<f32> {
        let RopeKind::Yarn { factor, original_max_position_embeddings, beta_fast, beta_slow, truncate, .. } = self.kind
        else {
            return Vec::new();
        };
        let head_dim = 2 * periods.len();
        // The dimension whose pair makes `rotations` full turns over the original context (equation 17 of the paper, solved).
        let dimension_of = |rotations: f64| {
            let context = original_max_position_embeddings as f64;
            (head_dim as f64 * (context / (rotations * 2.0 * PI)).ln()) / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (dimension_of(beta_fast), dimension_of(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        let frequency = |(index, period): (usize, &f32)| {
            let ramp = ((index as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            let kept = 1.0 - ramp;
            let interpolated = 1.0 / (factor as f32 * period);
            interpolated * (1.0 - kept) + (1.0 / period) * kept
        };
        periods.iter().enumerate().map(frequency).collect()
    }

    fn yarn_attention_scaling(&self) -> f64 {
        let RopeKind::Yarn { factor, attention_factor, mscale, mscale_all_dim, .. } = self.kind else { return 1.0 };
        let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        match (attention_factor, mscale, mscale_all_dim) {
            (Some(attention_factor), _, _) => attention_factor,
            // Zero means "not given" in the Hugging Face implementation.
            (None, Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => scale(mscale) / scale(all),
            _ => scale(1.0),
        }
    }
}

/// `theta^(2i/d)` for each pair. The power is taken in f64 and rounded once: platforms differ in the last bit of an f32
/// power, and this is the value they approximate.
fn periods(theta: f64, head_dim: usize) -> Vec<f32> {
    let base = f64::from(theta as f32);
    (0..head_dim).step_by(2).map(|index| base.powf(f64::from(index as f32 / head_dim as f32)) as f32).collect()
}

/// The three bands of Llama 3's scaling.
struct Llama3Bands {
    factor: f64,
    low: f64,
    high: f64,
    context: f64,
}

impl Llama3Bands {
    fn scale(&self, frequency: f32) -> f32 {
        let factor = self.factor as f32;
        // The order of operations (reciprocal first, then product) is that of the Hugging Face implementation.
        let wavelength = (1.0 / frequency) * (2.0 * PI) as f32;
        if wavelength < (self.context / self.high) as f32 {
            frequency
        } else if wavelength > (self.context / self.low) as f32 {
            frequency / factor
        } else {
            let turns = (1.0 / wavelength) * self.context as f32;
            let smooth = (turns - self.low as f32) / (self.high - self.low) as f32;
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    }
}
