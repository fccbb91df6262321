//! Passes over one row of logits or weights, written in lanes so that they become vector instructions of any target.
//!
//! A sum in lanes has one order, whatever the target: the same row always gives the same bits.

use super::SamplingError;

/// Values that one turn of a loop takes.
const LANES: usize = 16;

/// Values whose sum a draw looks at together.
const BLOCK: usize = 512;

/// Finds the most likely token, the lowest id among equals, and checks the whole row on the way.
///
/// # Errors
/// [`SamplingError::Logit`] for the first logit that is NaN or positive infinity; [`SamplingError::NoCandidate`] where none is
/// finite.
pub(super) fn most_likely(logits: &[f32]) -> Result<(usize, f32), SamplingError> {
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut accepted = [1u32; LANES];
    let mut largest = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            let value = chunk[lane];
            // NaN compares false.
            accepted[lane] &= u32::from(value < f32::INFINITY);
            largest[lane] = if value > largest[lane] { value } else { largest[lane] };
        }
    }
    let accepted = accepted.iter().all(|&lane| lane == 1) && rest.iter().all(|&value| value < f32::INFINITY);
    if !accepted {
        let refused = logits.iter().enumerate().find(|(_, value)| value.is_nan() || **value == f32::INFINITY);
        if let Some((token, &value)) = refused {
            return Err(SamplingError::Logit { token, value });
        }
    }
    let largest = largest.iter().chain(rest).fold(f32::NEG_INFINITY, |most, &value| most.max(value));
    if largest == f32::NEG_INFINITY {
        return Err(SamplingError::NoCandidate { vocabulary: logits.len() });
    }
    let found = find(logits, |value| value == largest);
    found.map(|token| (token, largest)).ok_or(SamplingError::NoCandidate { vocabulary: logits.len() })
}

/// The first place of a value that `wanted` accepts.
fn find(values: &[f32], wanted: impl Fn(f32) -> bool) -> Option<usize> {
    let (chunks, _) = values.as_chunks::<LANES>();
    // Without a branch for each value: most chunks have none that is wanted.
    let chunk = chunks.iter().position(|chunk| chunk.iter().fold(false, |any, &value| any | wanted(value)));
    let start = chunk.unwrap_or(chunks.len()) * LANES;
    values[start..].iter().position(|&value| wanted(value)).map(|place| start + place)
}

/// Calls `each` with the place and the value of all values above `bar`, in order; `each` returns the bar for those that follow.
pub(super) fn visit_above(values: &[f32], mut bar: f32, mut each: impl FnMut(usize, f32) -> f32) {
    let (chunks, rest) = values.as_chunks::<LANES>();
    for (number, chunk) in chunks.iter().enumerate() {
        if chunk.iter().fold(false, |any, &value| any | (value > bar)) {
            for (lane, &value) in chunk.iter().enumerate() {
                if value > bar {
                    bar = each(number * LANES + lane, value);
                }
            }
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        if value > bar {
            bar = each(chunks.len() * LANES + lane, value);
        }
    }
}

/// How many values are at least `bar`.
pub(super) fn count_at_least(values: &[f32], bar: f32) -> usize {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut counts = [0u32; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            counts[lane] += u32::from(chunk[lane] >= bar);
        }
    }
    counts.iter().map(|&count| count as usize).sum::<usize>() + rest.iter().filter(|&&value| value >= bar).count()
}

/// Below this the exponential is taken to be 0: it would be smaller than the smallest normal `f32`.
const LEAST_EXPONENT: f32 = -87.3;

/// The exponential of a number that is not positive; 0 below [`LEAST_EXPONENT`], exactly 1 at 0. Its relative error is at most
/// 2e-7 (about three units in the last place), which a test checks.
///
/// The number is split into a multiple of ln 2, which becomes the exponent of the result, and a remainder of at most ln 2 / 2,
/// whose exponential is a Taylor polynomial of degree 7. The standard library's function is a call for each number; this is
/// a handful of vector instructions for several.
#[inline]
pub(super) fn exp_of_nonpositive(x: f32) -> f32 {
    /// 1.5 * 2^23: added to a small number, it leaves that number rounded in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; the product of the first with a whole number of at most 9 bits is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let inside = x > LEAST_EXPONENT;
    let x = if inside { x } else { LEAST_EXPONENT };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let twos = shifted - ROUND;
    let rest = x - twos * LN_2_HIGH - twos * LN_2_LOW;
    let tail = 1.0 / 6.0 + rest * (1.0 / 24.0 + rest * (1.0 / 120.0 + rest * (1.0 / 720.0 + rest * (1.0 / 5040.0))));
    let value = 1.0 + (rest + rest * rest * (0.5 + rest * tail));
    // The low bits of `shifted` are the exponent; 127, the bias of an f32, is added in place.
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if inside { value * scale } else { 0.0 }
}

/// Writes the weights of `logits` relative to the most likely token, `exp((logit - largest) / temperature)`, and gives their
/// sum: the most likely token's own weight is 1. Probabilities are these weights over their sum.
pub(super) fn logits_to_weights(logits: &[f32], largest: f32, temperature: f32, weights: &mut Vec<f32>) -> f64 {
    weights.resize(logits.len(), 0.0);
    let blocks = logits.chunks(BLOCK).zip(weights.chunks_mut(BLOCK));
    blocks.map(|(from, to)| block_of_weights(from, largest, temperature, to)).sum()
}

/// The sum of `exp(logit - largest)` over a row.
pub(super) fn sum_of_exponentials(logits: &[f32], largest: f32) -> f64 {
    let mut weights = [0.0; BLOCK];
    logits.chunks(BLOCK).map(|block| block_of_weights(block, largest, 1.0, &mut weights[..block.len()])).sum()
}

/// Writes the weights of as many logits as `weights` has places for, and gives their sum while they are in the cache.
fn block_of_weights(logits: &[f32], largest: f32, temperature: f32, weights: &mut [f32]) -> f64 {
    // The difference is at most 0, so neither a small temperature nor a huge logit can overflow.
    let scale = 1.0 / temperature;
    for (from, to) in logits.iter().zip(weights.iter_mut()) {
        *to = exp_of_nonpositive((from - largest) * scale);
    }
    total(weights)
}

/// The sum of `weights`, in f64 so that long tails count.
pub(super) fn total(weights: &[f32]) -> f64 {
    let (chunks, rest) = weights.as_chunks::<LANES>();
    let mut sums = [0.0f64; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += f64::from(chunk[lane]);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&weight| f64::from(weight)).sum::<f64>()
}

/// The sum of those `weights` that are below `bar`.
pub(super) fn total_below(weights: &[f32], bar: f32) -> f64 {
    let mut below = [0.0; BLOCK];
    let blocks = weights.chunks(BLOCK).map(|block| {
        for (from, to) in block.iter().zip(below.iter_mut()) {
            *to = if *from < bar { *from } else { 0.0 };
        }
        total(&below[..block.len()])
    });
    blocks.sum()
}

/// The token at which the running sum of `weights` passes `target`; the last token with a weight if rounding keeps the
/// sum below. `None` if no weight is positive.
pub(super) fn draw(weights: &[f32], target: f64) -> Option<usize> {
    let mut sum = 0.0;
    for (number, block) in weights.chunks(BLOCK).enumerate() {
        let with_block = sum + total(block);
        if with_block > target {
            for (place, &weight) in block.iter().enumerate() {
                sum += f64::from(weight);
                if weight > 0.0 && sum > target {
                    return Some(number * BLOCK + place);
                }
            }
        }
        // Where the sum one by one falls short of the block's by rounding, the next token with a weight is taken.
        sum = with_block;
    }
    weights.iter().rposition(|&weight| weight > 0.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use proptest::prelude::*;

    use super::super::filters::tests::{ranking, rows};
    use super::*;

    #[test]
    fn the_exponential_is_within_its_documented_error() {
        assert_eq!(exp_of_nonpositive(0.0), 1.0);
        assert_eq!(exp_of_nonpositive(-0.0), 1.0);
        assert_eq!(exp_of_nonpositive(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_of_nonpositive(f32::MIN), 0.0);
        assert_eq!(exp_of_nonpositive(LEAST_EXPONENT), 0.0);
        let mut worst = 0.0f64;
        let mut last = 1.0;
        for step in 0..2_000_000u32 {
            let x = step as f32 * (LEAST_EXPONENT / 2_000_000.0);
            let value = exp_of_nonpositive(x);
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(value) - exact).abs() / exact);
            assert!(value <= last * (1.0 + 4.0 * f32::EPSILON), "a lower exponent gives no more, at {x}");
            last = value;
        }
        assert!(worst <= 2e-7, "relative error {worst}");
    }

    #[test]
    fn not_a_number_and_infinity_are_refused_wherever_they_are() {
        for value in [f32::NAN, -f32::NAN, f32::INFINITY] {
            for (length, token) in [(3, 0), (3, 2), (40, 0), (40, 31), (40, 32), (40, 39)] {
                let mut logits = vec![f32::NEG_INFINITY; length];
                logits[1] = 0.5;
                logits[token] = value;
                let error = most_likely(&logits).unwrap_err();
                assert!(matches!(error, SamplingError::Logit { token: found, .. } if found == token), "{error}");
            }
        }
        assert_eq!(most_likely(&[]), Err(SamplingError::NoCandidate { vocabulary: 0 }));
    }

    proptest! {
        #[test]
        fn the_most_likely_token_is_the_first_of_the_ranking(row in rows()) {
            let first = ranking(&row)[0];
            match most_likely(&row) {
                Ok((token, value)) => prop_assert_eq!((token, value), (first, row[first])),
                Err(error) => {
                    prop_assert_eq!(row[first], f32::NEG_INFINITY);
                    prop_assert_eq!(error, SamplingError::NoCandidate { vocabulary: row.len() });
                }
            }
        }

        #[test]
        fn counts_sums_and_visits_are_those_of_plain_loops(row in rows(), bar in -9.0f32..9.0) {
            prop_assert_eq!(count_at_least(&row, bar), row.iter().filter(|&&value| value >= bar).count());
            let mut above = Vec::new();
            visit_above(&row, bar, |place, value| { above.push((place, value)); bar });
            let expected: Vec<_> = row.iter().copied().enumerate().filter(|&(_, value)| value > bar).collect();
            prop_assert_eq!(above, expected);
            let below: f64 = row.iter().filter(|&&value| value.is_finite() && value < bar).map(|&value| f64::from(value)).sum();
            let finite: Vec<f32> = row.iter().map(|value| value.max(-100.0)).collect();
            let masked = row.iter().filter(|value| value.is_infinite()).count() as f64;
            prop_assert!((total_below(&finite, bar) - (below - 100.0 * masked)).abs() <= 1e-9);
            let Ok((_, largest)) = most_likely(&row) else { return Ok(()) };
            let mut weights = Vec::new();
            let sum = logits_to_weights(&row, largest, 1.0, &mut weights);
            let plain: f64 = row.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
            prop_assert!((sum - plain).abs() <= 1e-6 * plain, "{} is not {}", sum, plain);
            prop_assert!((sum - total(&weights)).abs() <= 1e-12 * sum);
            prop_assert_eq!(sum, sum_of_exponentials(&row, largest));
        }

        #[test]
        fn a_weight_is_the_exponential_of_its_logit_at_every_temperature(row in rows(), temperature in 0.05f32..2.0) {
            let Ok((first, largest)) = most_likely(&row) else { return Ok(()) };
            let mut weights = Vec::new();
            logits_to_weights(&row, largest, temperature, &mut weights);
            prop_assert_eq!(weights[first], 1.0);
            for token in 0..row.len() {
                let exact = (f64::from(row[token] - largest) / f64::from(temperature)).exp();
                prop_assert!((f64::from(weights[token]) - exact).abs() <= 1e-5 * exact + 2e-38);
            }
        }

        #[test]
        fn a_uniform_number_picks_the_token_whose_share_it_falls_in(
            weights in proptest::collection::vec(prop_oneof![Just(0.0f32), 1e-6f32..1.0], 1..1500), uniform in 0.0f64..1.0,
        ) {
            match draw(&weights, uniform * total(&weights)) {
                None => prop_assert!(weights.iter().all(|&weight| weight == 0.0)),
                Some(token) => {
                    prop_assert!(weights[token] > 0.0);
                    let all = total(&weights);
                    prop_assert!(total(&weights[..token]) / all <= uniform + 1e-12);
                    prop_assert!(total(&weights[..=token]) / all >= uniform - 1e-12);
                }
            }
        }
    }

    #[test]
    fn a_target_beyond_the_sum_gives_the_last_token_with_a_weight() {
        assert_eq!(draw(&[0.0, 1.0, 2.0, 0.0], 3.0), Some(2));
        assert_eq!(draw(&[0.0, 0.0], 0.0), None);
        assert_eq!(draw(&[], 0.0), None);
    }
}
