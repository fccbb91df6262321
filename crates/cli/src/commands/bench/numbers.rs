//! Mean, median, deviation and percentiles.

use serde_json::{Map, Value};

/// The percentiles of latencies and start times.
pub(super) const PERCENTILES: [f64; 6] = [10.0, 25.0, 50.0, 75.0, 90.0, 99.0];

/// Numbers in order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample(Vec<f64>);

impl Sample {
    pub(super) fn new(mut numbers: Vec<f64>) -> Self {
        numbers.sort_by(f64::total_cmp);
        Self(numbers)
    }

    /// The mean; 0 of nothing, as vLLM has it.
    pub(super) fn mean(&self) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.iter().sum::<f64>() / self.0.len() as f64 }
    }

    /// The deviation of these numbers themselves, and not of a population that they stand for.
    pub(super) fn standard_deviation(&self) -> f64 {
        if self.0.is_empty() {
            return 0.0;
        }
        let mean = self.mean();
        let squares: f64 = self.0.iter().map(|number| (number - mean).powi(2)).sum();
        (squares / self.0.len() as f64).sqrt()
    }

    /// A percentile, between two numbers in proportion; 0 of nothing.
    pub(super) fn percentile(&self, percentile: f64) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else { return 0.0 };
        let place = percentile.clamp(0.0, 100.0) / 100.0 * last as f64;
        let below = (place as usize).min(last);
        let (low, high) = (self.0[below], self.0[(below + 1).min(last)]);
        low + (high - low) * (place - below as f64)
    }

    /// [`PERCENTILES`] by their names.
    pub(super) fn percentiles(&self) -> Map<String, Value> {
        PERCENTILES.iter().map(|&percentile| (name(percentile), self.percentile(percentile).into())).collect()
    }
}

/// A percentile in the name of a member: `99`, `99.9`.
pub(super) fn name(percentile: f64) -> String {
    percentile.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_summed_up() {
        let sample = Sample::new(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!(sample.mean(), 2.5);
        assert_eq!(sample.standard_deviation(), 1.25_f64.sqrt());
        for (percentile, expected) in [(0.0, 1.0), (50.0, 2.5), (75.0, 3.25), (100.0, 4.0)] {
            assert_eq!(sample.percentile(percentile), expected, "{percentile}");
        }
        let single = Sample::new(vec![7.0]);
        assert_eq!((single.percentile(99.0), single.standard_deviation()), (7.0, 0.0));
    }

    #[test]
    fn nothing_sums_up_to_zero() {
        let nothing = Sample::new(Vec::new());
        assert_eq!((nothing.mean(), nothing.standard_deviation(), nothing.percentile(50.0)), (0.0, 0.0, 0.0));
    }

    #[test]
    fn percentiles_have_short_names() {
        assert_eq!((name(99.0), name(99.9)), ("99".to_owned(), "99.9".to_owned()));
        let names: Vec<String> = Sample::new(vec![1.0]).percentiles().keys().cloned().collect();
        assert_eq!(names, ["10", "25", "50", "75", "90", "99"]);
    }
}
