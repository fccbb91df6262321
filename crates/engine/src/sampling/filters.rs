//! The filters over one row of logits or weights. Each is linear in the vocabulary: none sorts the row.
//!
//! Tokens are ranked by value, the largest first, and among equal values by id, the lowest first. Every filter keeps
//! a prefix of that ranking.

use std::cmp::Ordering;

use super::{SamplingError, TokenCounts};

/// Below this length a range of candidates is sorted rather than divided further.
const SORTED_CANDIDATES: usize = 32;

/// One token under consideration: its id and its logit or weight.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    value: f32,
    token: usize,
}

impl Candidate {
    /// Orders likelier tokens first. Values are never NaN here: [`most_likely`] has refused such rows.
    fn rank(&self, other: &Self) -> Ordering {
        other.value.total_cmp(&self.value).then(self.token.cmp(&other.token))
    }
}

/// Finds the most likely token, the lowest id among equals, and checks the whole row on the way.
pub(super) fn most_likely(logits: &[f32]) -> Result<(usize, f32), SamplingError> {
    let mut best: Option<(usize, f32)> = None;
    let mut largest = f32::NEG_INFINITY;
    for (token, &value) in logits.iter().enumerate() {
        if value.is_nan() || value == f32::INFINITY {
            return Err(SamplingError::Logit { token, value });
        }
        if value > largest {
            largest = value;
            best = Some((token, value));
        }
    }
    best.ok_or(SamplingError::NoCandidate { vocabulary: logits.len() })
}

/// Makes the tokens of `history` less likely by `penalty`: a positive logit is divided by it, a negative one
/// multiplied (Keskar et al. 2019, "CTRL", section 4.1, in the sign-aware form that is common today).
/// Ids beyond the row have no logit and are passed over.
pub(super) fn penalize_repetition(logits: &mut [f32], history: &TokenCounts, penalty: f32) {
    for (token, _) in history.iter() {
        let Some(logit) = usize::try_from(token).ok().and_then(|token| logits.get_mut(token)) else { continue };
        if logit.is_finite() {
            let penalized = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            // A tiny penalty must not turn a finite logit into an infinite one.
            *logit = penalized.clamp(f32::MIN, f32::MAX);
        }
    }
}

/// Keeps the `k` highest ranked logits and sets the others to negative infinity.
///
/// A buffer of at most `2 k` candidates passes over the row; each time it fills up, selection cuts it back to the
/// best `k`, whose last one is from then on the bar to pass. Every cut costs O(k) and admits k more, so that the whole
/// is linear.
pub(super) fn keep_top_k(logits: &mut [f32], k: usize) {
    if k == 0 || k >= logits.len() {
        return;
    }
    let capacity = k.saturating_mul(2).min(logits.len());
    let mut best: Vec<Candidate> = Vec::with_capacity(capacity);
    let mut bar = f32::NEG_INFINITY;
    for (token, &value) in logits.iter().enumerate() {
        // Tokens come in ascending order, so one that equals the bar ranks behind it.
        if value > bar {
            best.push(Candidate { value, token });
            if best.len() == capacity {
                bar = cut_to(&mut best, k);
            }
        }
    }
    cut_to(&mut best, k);
    if let Some(last) = best.iter().copied().max_by(Candidate::rank) {
        keep_up_to(logits, last, f32::NEG_INFINITY);
    }
}

/// Cuts `candidates` to the `k` highest ranked ones and returns the value of the last of them, or negative infinity
/// if there are fewer.
fn cut_to(candidates: &mut Vec<Candidate>, k: usize) -> f32 {
    if candidates.len() < k {
        return f32::NEG_INFINITY;
    }
    let (_, last, _) = candidates.select_nth_unstable_by(k - 1, Candidate::rank);
    let bar = last.value;
    candidates.truncate(k);
    bar
}

/// Sets every value that ranks behind `last` to `dropped`.
fn keep_up_to(values: &mut [f32], last: Candidate, dropped: f32) {
    for (token, value) in values.iter_mut().enumerate() {
        if (Candidate { value: *value, token }).rank(&last) == Ordering::Greater {
            *value = dropped;
        }
    }
}

/// Turns logits into weights relative to the most likely token, `exp((logit - largest) / temperature)`: its own
/// weight is 1, and a weight below `min_p` becomes 0. Probabilities are these weights over their sum.
pub(super) fn logits_to_weights(logits: &mut [f32], largest: f32, temperature: f32, min_p: f32) {
    for value in logits {
        // The difference is at most 0, so neither a tiny temperature nor a huge logit can overflow.
        let weight = ((*value - largest) / temperature).exp();
        *value = if weight >= min_p { weight } else { 0.0 };
    }
}

/// The sum of `weights` in the order of the tokens, in f64 so that long tails count.
pub(super) fn total(weights: &[f32]) -> f64 {
    weights.iter().map(|&weight| f64::from(weight)).sum()
}

/// Keeps the shortest prefix of the ranking whose weights sum to at least `top_p` of the total, and sets the other
/// weights to 0.
///
/// Division instead of sorting: the likelier half of the candidates is selected and summed; the boundary lies in that
/// half if it suffices, else in the other one. Each round halves the candidates, so that the whole is linear.
pub(super) fn keep_top_p(weights: &mut [f32], top_p: f32) {
    if top_p >= 1.0 || weights.is_empty() {
        return;
    }
    let total = total(weights);
    let wanted = f64::from(top_p) * total;
    // All weights below this bar together sum to less than what may be left out, so none of them is in the set:
    // the usual peaked distribution leaves few candidates.
    let bar = (1.0 - f64::from(top_p)) * total / weights.len() as f64;
    let mut candidates: Vec<Candidate> = weights
        .iter()
        .enumerate()
        .filter(|&(_, &weight)| weight > 0.0 && f64::from(weight) >= bar)
        .map(|(token, &value)| Candidate { value, token })
        .collect();
    if let Some(last) = last_of_nucleus(&mut candidates, wanted) {
        keep_up_to(weights, last, 0.0);
    }
}

/// The candidate at which the sum over the ranking first reaches `wanted`; the last one if rounding keeps the sum of
/// all below it.
fn last_of_nucleus(candidates: &mut [Candidate], wanted: f64) -> Option<Candidate> {
    let sum_of = |part: &[Candidate]| part.iter().map(|candidate| f64::from(candidate.value)).sum::<f64>();
    let mut rest = candidates;
    let mut sum = 0.0;
    while rest.len() > SORTED_CANDIDATES {
        let middle = rest.len() / 2;
        rest.select_nth_unstable_by(middle, Candidate::rank);
        let (likelier, less_likely) = rest.split_at_mut(middle);
        let with_likelier = sum + sum_of(likelier);
        if with_likelier >= wanted {
            rest = likelier;
        } else {
            sum = with_likelier;
            rest = less_likely;
        }
    }
    rest.sort_unstable_by(Candidate::rank);
    let reached = rest.iter().find(|candidate| {
        sum += f64::from(candidate.value);
        sum >= wanted
    });
    reached.or(rest.last()).copied()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use proptest::prelude::*;

    use super::*;

    /// Rows with many equal values, so that the order among equals matters, and some masked tokens.
    fn rows() -> impl Strategy<Value = Vec<f32>> {
        let coarse = (-8i8..8).prop_map(|value| f32::from(value) / 2.0);
        let value = prop_oneof![4 => coarse, 4 => -20.0f32..20.0, 1 => Just(f32::NEG_INFINITY)];
        proptest::collection::vec(value, 1..400)
    }

    /// The ranking by the definition: a whole sort.
    fn ranking(values: &[f32]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[b].partial_cmp(&values[a]).unwrap().then(a.cmp(&b)));
        order
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
        fn top_k_keeps_the_k_first_of_the_ranking_unchanged(row in rows(), k in 0usize..450) {
            let mut kept = row.clone();
            keep_top_k(&mut kept, k);
            let mut expected = row.clone();
            if k > 0 {
                for &token in ranking(&row).iter().skip(k) {
                    expected[token] = f32::NEG_INFINITY;
                }
            }
            prop_assert_eq!(kept, expected);
        }

        #[test]
        fn top_p_keeps_the_smallest_set_that_reaches_its_share(row in rows(), top_p in 0.001f32..1.0) {
            let Ok((_, largest)) = most_likely(&row) else { return Ok(()) };
            let mut weights = row;
            logits_to_weights(&mut weights, largest, 1.0, 0.0);
            let before = weights.clone();
            keep_top_p(&mut weights, top_p);

            let order = ranking(&before);
            let kept = weights.iter().filter(|&&weight| weight > 0.0).count();
            prop_assert!(kept >= 1);
            for (place, &token) in order.iter().enumerate() {
                prop_assert_eq!(weights[token], if place < kept { before[token] } else { 0.0 }, "not a prefix");
            }
            // Sums in another order differ by rounding: the boundary may lie that much to either side.
            let share = |count: usize| {
                order[..count].iter().map(|&token| f64::from(before[token])).sum::<f64>() / total(&before)
            };
            prop_assert!(share(kept) >= f64::from(top_p) - 1e-12, "{} tokens reach {}", kept, share(kept));
            prop_assert!(share(kept - 1) < f64::from(top_p) + 1e-12, "{} tokens already suffice", kept - 1);
        }

        #[test]
        fn min_p_keeps_the_tokens_at_least_that_fraction_as_likely_as_the_first(
            row in rows(), temperature in 0.05f32..2.0, min_p in 0.0f32..=1.0,
        ) {
            let Ok((first, largest)) = most_likely(&row) else { return Ok(()) };
            let mut all = row.clone();
            logits_to_weights(&mut all, largest, temperature, 0.0);
            let mut kept = row.clone();
            logits_to_weights(&mut kept, largest, temperature, min_p);
            prop_assert_eq!(kept[first], 1.0);
            for token in 0..row.len() {
                let exact = (f64::from(row[token] - largest) / f64::from(temperature)).exp();
                prop_assert!((f64::from(all[token]) - exact).abs() <= 1e-5 * exact + 1e-37);
                prop_assert_eq!(kept[token], if all[token] >= min_p { all[token] } else { 0.0 });
            }
        }

        #[test]
        fn a_penalty_above_one_never_makes_a_seen_token_likelier_and_leaves_the_others(
            row in rows(), seen in proptest::collection::vec(0u32..500, 0..50), penalty in 1.0f32..1e30,
        ) {
            let history: TokenCounts = seen.iter().copied().collect();
            let mut penalized = row.clone();
            penalize_repetition(&mut penalized, &history, penalty);
            for token in 0..row.len() {
                if !seen.contains(&u32::try_from(token).unwrap()) || row[token].is_infinite() {
                    prop_assert_eq!(penalized[token], row[token]);
                } else {
                    prop_assert!(penalized[token].is_finite());
                    prop_assert!(penalized[token] <= row[token]);
                    prop_assert_eq!(penalized[token] > 0.0, row[token] / penalty > 0.0);
                }
            }
        }
    }

    #[test]
    fn the_penalty_divides_positive_logits_multiplies_negative_ones_and_counts_a_token_once() {
        let mut logits = [3.0, -3.0, 0.0, 3.0, f32::NEG_INFINITY, f32::MAX];
        let history: TokenCounts = [0, 0, 0, 1, 2, 4, 5, 99].into_iter().collect();
        penalize_repetition(&mut logits, &history, 1.5);
        assert_eq!(logits, [2.0, -4.5, 0.0, 3.0, f32::NEG_INFINITY, f32::MAX / 1.5]);
        penalize_repetition(&mut logits, &history, 1e-30);
        assert_eq!(logits[5], f32::MAX, "a finite logit stays finite");
    }

    #[test]
    fn what_lies_exactly_on_the_border_of_a_filter_is_kept() {
        // Shares of 1/2, 1/4, 1/8 and twice 1/16, whose sums are exact.
        let kept_by = |top_p: f32| {
            let mut weights = [1.0, 8.0, 2.0, 4.0, 1.0];
            keep_top_p(&mut weights, top_p);
            weights
        };
        assert_eq!(kept_by(0.5), [0.0, 8.0, 0.0, 0.0, 0.0]);
        assert_eq!(kept_by(0.500_001), [0.0, 8.0, 0.0, 4.0, 0.0]);
        assert_eq!(kept_by(0.75), [0.0, 8.0, 0.0, 4.0, 0.0]);
        assert_eq!(kept_by(0.9375), [1.0, 8.0, 2.0, 4.0, 0.0], "the lowest id among equals");
        assert_eq!(kept_by(1.0), [1.0, 8.0, 2.0, 4.0, 1.0]);

        let mut logits = [2.0, 5.0, 5.0];
        logits_to_weights(&mut logits, 5.0, 1.0, 1.0);
        assert_eq!(logits, [0.0, 1.0, 1.0], "as likely as the most likely one");
    }

    #[test]
    fn not_a_number_and_infinity_are_refused_wherever_they_are() {
        for value in [f32::NAN, -f32::NAN, f32::INFINITY] {
            for token in 0..3 {
                let mut logits = [0.5, 1.0, f32::NEG_INFINITY];
                logits[token] = value;
                let error = most_likely(&logits).unwrap_err();
                assert!(matches!(error, SamplingError::Logit { token: found, .. } if found == token), "{error}");
            }
        }
        assert_eq!(most_likely(&[]), Err(SamplingError::NoCandidate { vocabulary: 0 }));
    }
}
