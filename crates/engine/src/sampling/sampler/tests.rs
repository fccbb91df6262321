//! Tests of the sampler: its statistics, its laws, and that a seed alone decides.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use proptest::prelude::*;

use super::super::params::GREEDY_BELOW;
use super::*;

const SEED: u64 = 0x5eed;

fn sampler(params: SamplingParams) -> Sampler {
    Sampler::new(&params, SEED).unwrap()
}

/// Chooses a token where nothing was seen before.
fn sample(sampler: &mut Sampler, logits: &[f32]) -> Result<u32, SamplingError> {
    sample_after(sampler, logits, &TokenCounts::default(), &[])
}

fn sample_after(
    sampler: &mut Sampler,
    logits: &[f32],
    seen: &TokenCounts,
    output: &[u32],
) -> Result<u32, SamplingError> {
    let context = SamplingContext { seen, output, grammar: None };
    sampler.sample(logits, &mut SamplingScratch::default(), context).map(|sampled| sampled.token)
}

/// The probabilities that the definition of the parameters gives, by sorting in f64.
fn probabilities(logits: &[f64], params: &SamplingParams) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut weights: Vec<f64> =
        logits.iter().map(|logit| ((logit - largest) / f64::from(params.temperature)).exp()).collect();
    for weight in &mut weights {
        if *weight < f64::from(params.min_p) {
            *weight = 0.0;
        }
    }
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].partial_cmp(&weights[a]).unwrap().then(a.cmp(&b)));
    if params.top_k > 0 {
        for &token in order.iter().skip(params.top_k as usize) {
            weights[token] = 0.0;
        }
    }
    let total: f64 = weights.iter().sum();
    let mut sum = 0.0;
    for &token in &order {
        if sum >= f64::from(params.top_p) * total {
            weights[token] = 0.0;
        }
        sum += weights[token];
    }
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

/// Pearson's chi-square statistic of `counts` against `expected` probabilities, and its degrees of freedom. Tokens that
/// are expected less than five times share one cell; a count where the probability is 0 fails at once.
fn chi_square(counts: &[usize], expected: &[f64]) -> (f64, f64) {
    let draws: usize = counts.iter().sum();
    let mut cells: Vec<(f64, f64)> = Vec::new();
    let mut rare = (0.0, 0.0);
    for (token, (&count, &probability)) in counts.iter().zip(expected).enumerate() {
        if probability == 0.0 {
            assert_eq!(count, 0, "token {token} should never be drawn");
        } else {
            let mean = probability * draws as f64;
            if mean >= 5.0 {
                cells.push((count as f64, mean));
            } else {
                rare = (rare.0 + count as f64, rare.1 + mean);
            }
        }
    }
    if rare.1 > 0.0 {
        cells.push(rare);
    }
    (cells.iter().map(|(count, mean)| (count - mean).powi(2) / mean).sum(), cells.len() as f64 - 1.0)
}

#[test]
fn draws_follow_the_distribution_that_the_parameters_define() {
    let logits: Vec<f64> = (0..40).map(|token| f64::from((token * 7) % 13) / 4.0 - 0.05 * f64::from(token)).collect();
    let defaults = SamplingParams::default();
    let cases = [
        defaults.clone(),
        SamplingParams { temperature: 0.5, ..defaults.clone() },
        SamplingParams { temperature: 2.0, ..defaults.clone() },
        SamplingParams { top_k: 7, ..defaults.clone() },
        SamplingParams { top_p: 0.6, ..defaults.clone() },
        SamplingParams { min_p: 0.2, ..defaults.clone() },
        SamplingParams { temperature: 1.5, top_k: 20, top_p: 0.8, min_p: 0.05, ..defaults },
    ];
    for params in cases {
        let expected = probabilities(&logits, &params);
        let mut counts = vec![0usize; logits.len()];
        let mut sampler = sampler(params.clone());
        for _ in 0..60_000 {
            let row: Vec<f32> = logits.iter().map(|&logit| logit as f32).collect();
            counts[sample(&mut sampler, &row).unwrap() as usize] += 1;
        }
        let (statistic, freedom) = chi_square(&counts, &expected);
        // Mean and variance of the distribution are `freedom` and `2 * freedom`; the seed is fixed, so that a sampler
        // that passes once always passes.
        let bound = freedom + 4.0 * (2.0 * freedom).sqrt();
        assert!(statistic <= bound, "{params:?}: chi-square {statistic:.1} over {bound:.1}");
    }
}

#[test]
fn successive_draws_are_independent() {
    // Pairs of fair coins: all four outcomes equally often.
    let mut sampler = sampler(SamplingParams::default());
    let mut counts = [0usize; 4];
    for _ in 0..20_000 {
        let first = sample(&mut sampler, &[1.0, 1.0]).unwrap();
        let second = sample(&mut sampler, &[1.0, 1.0]).unwrap();
        counts[(2 * first + second) as usize] += 1;
    }
    let (statistic, _) = chi_square(&counts, &[0.25; 4]);
    assert!(statistic <= 16.3, "chi-square {statistic} at 3 degrees of freedom, 0.1 % level");
}

#[test]
fn the_seed_alone_decides() {
    let draw =
        |mut sampler: Sampler| -> Vec<u32> { (0..200).map(|_| sample(&mut sampler, &[0.0; 1000]).unwrap()).collect() };
    let seeded = |seed| SamplingParams { seed: Some(seed), ..SamplingParams::default() };
    let reference = draw(Sampler::new(&seeded(1), 100).unwrap());
    assert_eq!(draw(Sampler::new(&seeded(1), 200).unwrap()), reference, "the request's seed wins over the engine's");
    assert_eq!(draw(Sampler::new(&SamplingParams::default(), 1).unwrap()), reference, "and both are used alike");
    assert_ne!(draw(Sampler::new(&seeded(2), 100).unwrap()), reference);
}

#[test]
fn a_seed_gives_the_same_tokens_in_every_version() {
    // Pinned: a person who noted a seed must find the output again. 16 equal tokens show 4 bits of each draw.
    let mut sampler = Sampler::new(&SamplingParams { seed: Some(42), ..SamplingParams::default() }, 0).unwrap();
    let drawn: Vec<u32> = (0..12).map(|_| sample(&mut sampler, &[0.0; 16]).unwrap()).collect();
    assert_eq!(drawn, PINNED_DRAWS);
}

/// The draws of seed 42 over 16 equally likely tokens.
const PINNED_DRAWS: [u32; 12] = [10, 15, 6, 10, 4, 2, 4, 12, 12, 3, 8, 14];

#[test]
fn every_draw_consumes_one_random_number_whatever_the_distribution() {
    // The draw of step 5 depends on the seed and the step, not on the shape of the rows before it.
    let mut even = sampler(SamplingParams::default());
    let mut peaked = even.clone();
    for _ in 0..5 {
        sample(&mut even, &[0.0; 3]).unwrap();
        sample(&mut peaked, &[90.0, 0.0, f32::NEG_INFINITY, -5.0, 1.0]).unwrap();
    }
    assert_eq!(sample(&mut even, &[0.0; 4096]).unwrap(), sample(&mut peaked, &[0.0; 4096]).unwrap());
}

#[test]
fn greedy_takes_the_lowest_id_among_equals() {
    let mut greedy = sampler(SamplingParams::greedy());
    assert_eq!(sample(&mut greedy, &[-1.0, 3.0, 3.0, 2.0]), Ok(1));
    assert_eq!(sample(&mut greedy, &[-0.0, 0.0]), Ok(0));
    assert_eq!(sample(&mut greedy, &[f32::NEG_INFINITY, -1e30]), Ok(1));
}

#[test]
fn greedy_ignores_the_filters_but_not_the_penalty() {
    let filters = SamplingParams { top_p: 0.1, top_k: 1, min_p: 1.0, ..SamplingParams::greedy() };
    assert_eq!(sample(&mut sampler(filters), &[0.0, 1.0]), Ok(1));
    let penalty = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::greedy() };
    let seen = TokenCounts::of_prompt(&[1]);
    assert_eq!(sample_after(&mut sampler(penalty), &[0.6, 1.0, 0.4], &seen, &[]), Ok(0));
}

#[test]
fn a_row_that_is_not_a_number_is_an_error_and_never_a_token() {
    for params in [SamplingParams::greedy(), SamplingParams { top_k: 2, top_p: 0.5, ..SamplingParams::default() }] {
        for value in [f32::NAN, f32::INFINITY] {
            let mut sampler = sampler(SamplingParams { repetition_penalty: 1.2, ..params.clone() });
            let seen = TokenCounts::of_prompt(&[2]);
            let error = sample_after(&mut sampler, &[1.0, 2.0, value, 3.0], &seen, &[]).unwrap_err();
            assert!(matches!(error, SamplingError::Logit { token: 2, .. }), "{error}");
        }
        let masked = sample(&mut sampler(params.clone()), &[f32::NEG_INFINITY; 3]);
        assert_eq!(masked, Err(SamplingError::NoCandidate { vocabulary: 3 }));
        assert_eq!(sample(&mut sampler(params), &[]), Err(SamplingError::NoCandidate { vocabulary: 0 }));
    }
}

#[test]
fn extreme_logits_and_temperatures_do_not_overflow() {
    let tiny = SamplingParams { temperature: GREEDY_BELOW, ..SamplingParams::default() };
    assert_eq!(sample(&mut sampler(tiny), &[f32::MIN, f32::MAX, 0.0]), Ok(1));
    let flat = SamplingParams { temperature: 2.0, top_p: 0.9, ..SamplingParams::default() };
    assert_eq!(sample(&mut sampler(flat), &[f32::MIN, f32::MAX, 0.0]), Ok(1));
}

#[test]
fn parameters_out_of_range_make_no_sampler() {
    let wrong = SamplingParams { top_p: 0.0, ..SamplingParams::default() };
    assert!(matches!(Sampler::new(&wrong, 0), Err(SamplingError::Parameter { name: "top_p", .. })));
}

fn rows() -> impl Strategy<Value = Vec<f32>> {
    let coarse = (-8i8..8).prop_map(|value| f32::from(value) / 2.0);
    proptest::collection::vec(prop_oneof![coarse, -20.0f32..20.0], 1..300)
}

proptest! {
    #[test]
    fn one_candidate_is_the_greedy_choice(row in rows(), seed: u64, temperature in 0.01f32..2.0) {
        let greedy = sample(&mut sampler(SamplingParams::greedy()), &row).unwrap();
        let base = SamplingParams { temperature, seed: Some(seed), ..SamplingParams::default() };
        for params in [SamplingParams { top_k: 1, ..base.clone() }, SamplingParams { top_p: 1e-9, ..base }] {
            prop_assert_eq!(sample(&mut sampler(params), &row).unwrap(), greedy);
        }
    }

    #[test]
    fn only_tokens_with_probability_are_drawn(
        row in rows(), seed: u64, temperature in 0.1f32..2.0, top_k in 0u32..50, top_p in 0.05f32..=1.0, min_p in 0.0f32..0.5,
    ) {
        let params =
            SamplingParams { temperature, top_k, top_p, min_p, seed: Some(seed), ..SamplingParams::default() };
        // A token that lies within rounding of the border of a filter may fall on either side: the filters of the
        // definition are loosened by that much.
        let loose = SamplingParams {
            top_p: (top_p + 1e-4).min(1.0), min_p: (min_p - 1e-4).max(0.0), ..params.clone()
        };
        let expected = probabilities(&row.iter().map(|&logit| f64::from(logit)).collect::<Vec<_>>(), &loose);
        let mut sampler = sampler(params);
        for _ in 0..20 {
            let token = sample(&mut sampler, &row).unwrap();
            prop_assert!(expected[token as usize] > 0.0, "token {} has no probability", token);
        }
    }
}

#[test]
fn the_end_is_masked_before_the_least_number_of_tokens() {
    let params = SamplingParams { min_tokens: 2, stop_token_ids: vec![1], ..SamplingParams::greedy() };
    let mut sampler = sampler(params).with_end_tokens(&[2, 99]);
    let logits = [0.0, 3.0, 2.0, 1.0];
    let mut chosen = |output: &[u32]| sample_after(&mut sampler, &logits, &TokenCounts::default(), output);
    assert_eq!(chosen(&[]), Ok(3));
    assert_eq!(chosen(&[3]), Ok(3));
    assert_eq!(chosen(&[3, 3]), Ok(1));
}

#[test]
fn biases_allowed_tokens_and_bad_words_are_heeded() {
    let logits = [0.0, 3.0, 2.0, 1.0];
    let greedy = SamplingParams::greedy();
    let biased = SamplingParams { logit_bias: BTreeMap::from([(0, 3.5)]), ..greedy.clone() };
    assert_eq!(sample(&mut sampler(biased.clone()), &logits), Ok(0));
    let allowed = SamplingParams { allowed_token_ids: Some(vec![2, 3]), ..biased };
    assert_eq!(sample(&mut sampler(allowed), &logits), Ok(2), "a bias allows no token that is not");
    let mut bad = sampler(greedy).with_bad_words(vec![vec![1], vec![3, 2]]);
    let after = |bad: &mut Sampler, output: &[u32]| sample_after(bad, &logits, &TokenCounts::default(), output);
    assert_eq!(after(&mut bad, &[]), Ok(2));
    assert_eq!(after(&mut bad, &[3]), Ok(3));
    let nothing = SamplingParams { allowed_token_ids: Some(vec![9]), ..SamplingParams::default() };
    assert_eq!(sample(&mut sampler(nothing), &logits), Err(SamplingError::Masked));
}

#[test]
fn a_masked_logit_that_is_not_a_number_is_still_an_error() {
    let allowed = SamplingParams { allowed_token_ids: Some(vec![0]), ..SamplingParams::greedy() };
    let error = sample(&mut sampler(allowed), &[0.0, f32::NAN]).unwrap_err();
    assert!(matches!(error, SamplingError::Logit { token: 1, .. }), "{error}");
}

#[test]
fn reported_probabilities_are_those_before_every_edit() {
    let params = SamplingParams {
        logprobs: Some(LogprobCount::Top(2)),
        logit_bias: BTreeMap::from([(0, 100.0)]),
        temperature: 0.5,
        top_k: 1,
        ..SamplingParams::default()
    };
    let logits = [0.0, 3.0, 2.0, 1.0];
    let context = SamplingContext { seen: &TokenCounts::default(), output: &[], grammar: None };
    let sampled = sampler(params).sample(&logits, &mut SamplingScratch::default(), context).unwrap();
    assert_eq!(sampled.token, 0);
    assert_eq!(sampled.logprobs, Some(TokenLogprobs::of(&logits, 0, LogprobCount::Top(2)).unwrap()));
    assert_eq!(sampled.logprobs.map(|logprobs| (logprobs.rank, logprobs.top[0].0)), Some((4, 1)));
}

#[test]
fn whatever_a_device_can_not_do_is_read() {
    let drawn = SamplingParams { temperature: 0.7, seed: Some(5), ..SamplingParams::default() };
    let seeded = RowSampling::Seeded { temperature: 0.7, seed: 5, counter: 3 };
    assert_eq!(sampler(drawn.clone()).on_device(3), seeded);
    assert_eq!(sampler(SamplingParams::greedy()).on_device(3), RowSampling::Greedy);
    assert_eq!(sampler(SamplingParams { temperature: 1e-6, ..drawn.clone() }).on_device(0), RowSampling::Greedy);
    let raised = sampler(SamplingParams { temperature: 1e-3, ..drawn.clone() }).on_device(0);
    assert_eq!(raised, RowSampling::Seeded { temperature: 0.01, seed: 5, counter: 0 });
    // What ends an output is for the engine.
    let stops = SamplingParams { stop_token_ids: vec![1], max_tokens: Some(9), ..drawn.clone() };
    assert_eq!(sampler(stops).with_end_tokens(&[2]).on_device(3), seeded);
    let read: [fn(&mut SamplingParams); 12] = [
        |params| params.top_k = 5,
        |params| params.top_p = 0.5,
        |params| params.min_p = 0.5,
        |params| params.repetition_penalty = 1.1,
        |params| params.presence_penalty = -0.1,
        |params| params.frequency_penalty = 0.1,
        |params| params.min_tokens = 1,
        |params| params.logprobs = Some(LogprobCount::Top(0)),
        |params| params.logit_bias = BTreeMap::from([(0, 1.0)]),
        |params| params.allowed_token_ids = Some(vec![0]),
        |params| params.structured_output = Some(crate::StructuredOutput::JsonObject),
        |params| (params.temperature, params.min_tokens) = (0.0, 1),
    ];
    for set in read {
        let mut params = drawn.clone();
        set(&mut params);
        assert_eq!(sampler(params.clone()).on_device(3), RowSampling::Read, "{params:?}");
    }
    assert_eq!(sampler(drawn).with_bad_words(vec![vec![1]]).on_device(3), RowSampling::Read);
}
