//! The filters over a distribution. Each is linear in the vocabulary: none sorts the row.
//!
//! Tokens are ranked by value, the largest first, and among equal values by id, the lowest first. Every filter keeps
//! a prefix of that ranking.

use std::cmp::Ordering;

use super::row::{count_at_least, exp_of_nonpositive, total_below, visit_above};

/// Below this length a range of candidates is sorted rather than divided further.
const SORTED_CANDIDATES: usize = 32;

/// From this length on a nucleus is first narrowed down by the sums of classes of similar weights.
const CLASSED_CANDIDATES: usize = 1024;

/// Weights whose bits agree but for so many low ones are one class: it spans about 3 %.
const CLASS_BITS: u32 = 18;

/// One token under consideration: its id and its logit or weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) value: f32,
    pub(super) token: u32,
}

impl Candidate {
    fn new(place: usize, value: f32) -> Self {
        // Adding 0 makes the two zeros one, as a comparison of floats has it. A row has fewer tokens than u32 has values.
        Candidate { value: value + 0.0, token: place as u32 }
    }

    /// Orders likelier tokens first. Values are never NaN here: such rows are refused before.
    pub(super) fn rank(&self, other: &Self) -> Ordering {
        other.value.total_cmp(&self.value).then(self.token.cmp(&other.token))
    }
}

/// The `k` highest ranked tokens of a row, in no particular order; tokens of negative infinity are none.
///
/// A buffer of at most `2 k` candidates passes over the row; each time it fills up, selection cuts it back to the
/// best `k`, whose last one is from then on the bar to pass. Every cut costs O(k) and admits k more, so that the whole
/// is linear.
pub(super) fn top_candidates(logits: &[f32], k: usize) -> Vec<Candidate> {
    let k = k.min(logits.len());
    if k == 0 {
        return Vec::new();
    }
    let capacity = k.saturating_mul(2).min(logits.len());
    let mut best: Vec<Candidate> = Vec::with_capacity(capacity);
    let mut bar = f32::NEG_INFINITY;
    visit_above(logits, bar, |place, value| {
        // Tokens come in ascending order, so one that equals the bar ranks behind it.
        best.push(Candidate::new(place, value));
        if best.len() >= capacity {
            bar = cut_to(&mut best, k);
        }
        bar
    });
    cut_to(&mut best, k);
    best
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

/// Turns the logits of candidates into weights, as [`logits_to_weights`](super::row::logits_to_weights) does for a row, and puts
/// them in the order of their tokens.
pub(super) fn candidates_to_weights(candidates: &mut [Candidate], largest: f32, temperature: f32) {
    let scale = 1.0 / temperature;
    for candidate in candidates.iter_mut() {
        candidate.value = exp_of_nonpositive((candidate.value - largest) * scale);
    }
    candidates.sort_unstable_by_key(|candidate| candidate.token);
}

/// Writes the tokens whose weight is positive and at least `bar` to `candidates`, in order.
pub(super) fn candidates_from(weights: &[f32], bar: f32, candidates: &mut Vec<Candidate>) {
    candidates.clear();
    // "At least the bar" is "above what lies just below it".
    let below = bar.next_down().max(0.0);
    visit_above(weights, below, |place, value| {
        candidates.push(Candidate::new(place, value));
        below
    });
}

/// A weight such that all weights below it together are no more than what [`keep_nucleus`] leaves out, so that none of them
/// is in the set: the usual peaked distribution leaves few candidates.
pub(super) fn nucleus_bar(weights: &[f32], total: f64, top_p: f32) -> f32 {
    let left_out = (1.0 - f64::from(top_p)) * total;
    // As many weights as there are, each below this, are less. One step down makes up for the rounding to f32.
    let bar = ((left_out / weights.len().max(1) as f64) as f32).next_down();
    if count_at_least(weights, bar) < CLASSED_CANDIDATES {
        return bar;
    }
    // A flat distribution leaves many. Looking where the tail really ends costs less than they do.
    let higher = [64.0, 16.0, 4.0].map(|factor| bar * factor).into_iter();
    higher.into_iter().find(|bar| total_below(weights, *bar) <= left_out * (1.0 - 1e-9)).unwrap_or(bar)
}

/// Keeps the shortest prefix of the ranking of `candidates` whose weights sum to at least `top_p` of `total`. The order of
/// the candidates stays.
pub(super) fn keep_nucleus(candidates: &mut Vec<Candidate>, total: f64, top_p: f32) {
    if let Some(last) = last_of_nucleus(candidates, f64::from(top_p) * total) {
        candidates.retain(|candidate| candidate.rank(&last) != Ordering::Greater);
    }
}

/// The candidate at which the sum over the ranking first reaches `wanted`; the last one if rounding keeps the sum of
/// all below it. Weights are positive.
fn last_of_nucleus(candidates: &[Candidate], wanted: f64) -> Option<Candidate> {
    if candidates.len() < CLASSED_CANDIDATES {
        return last_of_part(&mut candidates.to_vec(), 0.0, wanted);
    }
    // The bits of positive floats have the order of the floats. Sums of classes find the class in which the boundary lies.
    let most = candidates.iter().map(|candidate| candidate.value.to_bits()).max().unwrap_or(0);
    let least = candidates.iter().map(|candidate| candidate.value.to_bits()).min().unwrap_or(0);
    let class = |candidate: &Candidate| (most.saturating_sub(candidate.value.to_bits()) >> CLASS_BITS) as usize;
    let mut sums = vec![0.0f64; (most.saturating_sub(least) >> CLASS_BITS) as usize + 1];
    for candidate in candidates {
        if let Some(sum) = sums.get_mut(class(candidate)) {
            *sum += f64::from(candidate.value);
        }
    }
    let mut before = 0.0;
    let reached = sums.iter().position(|sum| {
        let reached = before + sum >= wanted;
        before += if reached { 0.0 } else { *sum };
        reached
    });
    match reached {
        Some(reached) => {
            let mut part: Vec<Candidate> =
                candidates.iter().filter(|candidate| class(candidate) == reached).copied().collect();
            last_of_part(&mut part, before, wanted)
        }
        None => candidates.iter().max_by(|a, b| a.rank(b)).copied(),
    }
}

/// [`last_of_nucleus`] among candidates before which the sum is `sum`.
///
/// Division instead of sorting: the likelier half of the candidates is selected and summed; the boundary lies in that
/// half if it suffices, else in the other one. Each round halves the candidates, so that the whole is linear.
fn last_of_part(candidates: &mut [Candidate], mut sum: f64, wanted: f64) -> Option<Candidate> {
    let mut rest = candidates;
    while rest.len() > SORTED_CANDIDATES {
        let middle = rest.len() / 2;
        rest.select_nth_unstable_by(middle, Candidate::rank);
        let (likelier, less_likely) = rest.split_at_mut(middle);
        let with_likelier = sum + candidates_total(likelier);
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

/// The sum of the candidates' weights.
pub(super) fn candidates_total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.value)).sum()
}

/// The candidate at which the running sum of the weights passes `target`; the last one if rounding keeps the sum below.
pub(super) fn draw_candidate(candidates: &[Candidate], target: f64) -> Option<u32> {
    let mut sum = 0.0;
    let passed = candidates.iter().find(|candidate| {
        sum += f64::from(candidate.value);
        sum > target
    });
    passed.or(candidates.last()).map(|candidate| candidate.token)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use proptest::prelude::*;

    use super::super::row::{logits_to_weights, most_likely, total};
    use super::*;

    /// Rows with many equal values, so that the order among equals matters, and some masked tokens.
    pub(in super::super) fn rows() -> impl Strategy<Value = Vec<f32>> {
        let coarse = (-8i8..8).prop_map(|value| f32::from(value) / 2.0);
        let value = prop_oneof![4 => coarse, 4 => -20.0f32..20.0, 1 => Just(f32::NEG_INFINITY), 1 => Just(-0.0)];
        proptest::collection::vec(value, 1..400)
    }

    /// Longer ones, for what is done for many candidates only.
    fn long_rows() -> impl Strategy<Value = Vec<f32>> {
        (0.1f32..3.0).prop_flat_map(|width| {
            let value = prop_oneof![1 => (-8i8..8).prop_map(f32::from), 8 => -6.0f32..6.0];
            let value = value.prop_map(move |value| value * width);
            proptest::collection::vec(value, CLASSED_CANDIDATES..4 * CLASSED_CANDIDATES)
        })
    }

    /// The ranking by the definition: a whole sort.
    pub(in super::super) fn ranking(values: &[f32]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[b].partial_cmp(&values[a]).unwrap().then(a.cmp(&b)));
        order
    }

    fn keep_top_p(weights: &[f32], top_p: f32) -> Vec<Candidate> {
        let all = total(weights);
        let mut candidates = Vec::new();
        candidates_from(weights, nucleus_bar(weights, all, top_p), &mut candidates);
        keep_nucleus(&mut candidates, all, top_p);
        candidates
    }

    fn check_nucleus(row: &[f32], top_p: f32) -> Result<(), TestCaseError> {
        let Ok((_, largest)) = most_likely(row) else { return Ok(()) };
        let mut weights = Vec::new();
        logits_to_weights(row, largest, 1.0, &mut weights);
        let candidates = keep_top_p(&weights, top_p);

        let order = ranking(&weights);
        let kept = candidates.len();
        prop_assert!(kept >= 1);
        let mut prefix: Vec<usize> = order[..kept].to_vec();
        prefix.sort_unstable();
        let tokens: Vec<usize> = candidates.iter().map(|candidate| candidate.token as usize).collect();
        prop_assert_eq!(tokens, prefix, "not a prefix, or not in order");
        prop_assert!(candidates.iter().all(|candidate| candidate.value == weights[candidate.token as usize]));
        // Sums in another order differ by rounding: the boundary may lie that much to either side.
        let share =
            |count: usize| order[..count].iter().map(|&token| f64::from(weights[token])).sum::<f64>() / total(&weights);
        prop_assert!(share(kept) >= f64::from(top_p) - 1e-12, "{} tokens reach {}", kept, share(kept));
        prop_assert!(share(kept - 1) < f64::from(top_p) + 1e-12, "{} tokens already suffice", kept - 1);
        Ok(())
    }

    proptest! {
        #[test]
        fn top_k_keeps_the_k_first_of_the_ranking_unchanged(row in rows(), k in 0usize..450) {
            let mut kept = top_candidates(&row, k);
            kept.sort_unstable_by_key(|candidate| candidate.token);
            let mut expected: Vec<usize> = ranking(&row).into_iter().take(k).collect();
            expected.retain(|&token| row[token] > f32::NEG_INFINITY);
            expected.sort_unstable();
            let kept: Vec<(usize, f32)> = kept.iter().map(|c| (c.token as usize, c.value)).collect();
            prop_assert_eq!(kept, expected.iter().map(|&token| (token, row[token])).collect::<Vec<_>>());
        }

        #[test]
        fn top_p_keeps_the_smallest_set_that_reaches_its_share(row in rows(), top_p in 0.001f32..1.0) {
            check_nucleus(&row, top_p)?;
        }

        #[test]
        fn top_p_keeps_the_smallest_set_of_many_tokens_too(row in long_rows(), top_p in 0.001f32..1.0) {
            check_nucleus(&row, top_p)?;
        }

        #[test]
        fn min_p_keeps_the_tokens_at_least_that_fraction_as_likely_as_the_first(
            row in rows(), temperature in 0.05f32..2.0, min_p in 0.0f32..=1.0,
        ) {
            let Ok((first, largest)) = most_likely(&row) else { return Ok(()) };
            let mut all = Vec::new();
            logits_to_weights(&row, largest, temperature, &mut all);
            let mut kept = vec![Candidate::new(0, 9.0)];
            candidates_from(&all, min_p, &mut kept);
            prop_assert!(kept.iter().any(|candidate| candidate.token as usize == first && candidate.value == 1.0));
            let expected: Vec<(usize, f32)> =
                all.iter().copied().enumerate().filter(|&(_, weight)| weight > 0.0 && weight >= min_p).collect();
            prop_assert_eq!(kept.iter().map(|c| (c.token as usize, c.value)).collect::<Vec<_>>(), expected);
            let mut candidates = top_candidates(&row, row.len());
            candidates_to_weights(&mut candidates, largest, temperature);
            prop_assert!(candidates.iter().all(|candidate| candidate.value == all[candidate.token as usize]));
        }
    }

    #[test]
    fn what_lies_exactly_on_the_border_of_a_filter_is_kept() {
        // Shares of 1/2, 1/4, 1/8 and twice 1/16, whose sums are exact.
        let kept_by = |top_p: f32| -> Vec<u32> {
            keep_top_p(&[1.0, 8.0, 2.0, 4.0, 1.0], top_p).iter().map(|candidate| candidate.token).collect()
        };
        assert_eq!(kept_by(0.5), [1]);
        assert_eq!(kept_by(0.500_001), [1, 3]);
        assert_eq!(kept_by(0.75), [1, 3]);
        assert_eq!(kept_by(0.9375), [0, 1, 2, 3], "the lowest id among equals");
        let mut candidates = Vec::new();
        candidates_from(&[0.2, 1.0, 1.0], 1.0, &mut candidates);
        assert_eq!(candidates.len(), 2, "as likely as the most likely one");
    }

    #[test]
    fn a_candidate_is_drawn_by_its_share() {
        let candidates = [Candidate::new(3, 1.0), Candidate::new(7, 2.0)];
        assert_eq!(draw_candidate(&candidates, 0.0), Some(3));
        assert_eq!(draw_candidate(&candidates, 1.0), Some(7));
        assert_eq!(draw_candidate(&candidates, 3.0), Some(7), "rounding may keep the sum below the target");
        assert_eq!(draw_candidate(&[], 0.0), None);
    }
}
