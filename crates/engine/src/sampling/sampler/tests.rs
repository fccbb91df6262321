//! Tests of the sampler: its statistics, its laws, and that a seed alone decides.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use proptest::prelude::*;

use super::*;

const SEED: u64 = 0x5eed;

fn sampler(params: SamplingParams) -> Sampler {
    Sampler::new(&params, SEED).unwrap()
}

fn no_history() -> TokenCounts {
    TokenCounts::default()
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
            let mut row: Vec<f32> = logits.iter().map(|&logit| logit as f32).collect();
            counts[sampler.sample(&mut row, &no_history()).unwrap() as usize] += 1;
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
        let first = sampler.sample(&mut [1.0, 1.0], &no_history()).unwrap();
        let second = sampler.sample(&mut [1.0, 1.0], &no_history()).unwrap();
        counts[(2 * first + second) as usize] += 1;
    }
    let (statistic, _) = chi_square(&counts, &[0.25; 4]);
    assert!(statistic <= 16.3, "chi-square {statistic} at 3 degrees of freedom, 0.1 % level");
}

#[test]
fn the_seed_alone_decides() {
    let draw = |mut sampler: Sampler| -> Vec<u32> {
        (0..200).map(|_| sampler.sample(&mut [0.0; 1000], &no_history()).unwrap()).collect()
    };
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
    let drawn: Vec<u32> = (0..12).map(|_| sampler.sample(&mut [0.0; 16], &no_history()).unwrap()).collect();
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
        even.sample(&mut [0.0; 3], &no_history()).unwrap();
        peaked.sample(&mut [90.0, 0.0, f32::NEG_INFINITY, -5.0, 1.0], &no_history()).unwrap();
    }
    assert_eq!(
        even.sample(&mut [0.0; 4096], &no_history()).unwrap(),
        peaked.sample(&mut [0.0; 4096], &no_history()).unwrap()
    );
}

#[test]
fn greedy_takes_the_lowest_id_among_equals() {
    let mut greedy = sampler(SamplingParams::greedy());
    assert_eq!(greedy.sample(&mut [-1.0, 3.0, 3.0, 2.0], &no_history()), Ok(1));
    assert_eq!(greedy.sample(&mut [-0.0, 0.0], &no_history()), Ok(0));
    assert_eq!(greedy.sample(&mut [f32::NEG_INFINITY, -1e30], &no_history()), Ok(1));
}

#[test]
fn greedy_ignores_the_filters_but_not_the_penalty() {
    let filters = SamplingParams { top_p: 0.1, top_k: 1, min_p: 1.0, ..SamplingParams::greedy() };
    assert_eq!(sampler(filters).sample(&mut [0.0, 1.0], &no_history()), Ok(1));
    let penalty = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::greedy() };
    let history = [1].into_iter().collect();
    assert_eq!(sampler(penalty).sample(&mut [0.6, 1.0, 0.4], &history), Ok(0));
}

#[test]
fn a_row_that_is_not_a_number_is_an_error_and_never_a_token() {
    for params in [SamplingParams::greedy(), SamplingParams { top_k: 2, top_p: 0.5, ..SamplingParams::default() }] {
        for value in [f32::NAN, f32::INFINITY] {
            let mut sampler = sampler(SamplingParams { repetition_penalty: 1.2, ..params.clone() });
            let history = [2].into_iter().collect();
            let error = sampler.sample(&mut [1.0, 2.0, value, 3.0], &history).unwrap_err();
            assert!(matches!(error, SamplingError::Logit { token: 2, .. }), "{error}");
        }
        let masked = sampler(params.clone()).sample(&mut [f32::NEG_INFINITY; 3], &no_history());
        assert_eq!(masked, Err(SamplingError::NoCandidate { vocabulary: 3 }));
        assert_eq!(sampler(params).sample(&mut [], &no_history()), Err(SamplingError::NoCandidate { vocabulary: 0 }));
    }
}

#[test]
fn extreme_logits_and_temperatures_do_not_overflow() {
    let tiny = SamplingParams { temperature: f32::MIN_POSITIVE, ..SamplingParams::default() };
    assert_eq!(sampler(tiny).sample(&mut [f32::MIN, f32::MAX, 0.0], &no_history()), Ok(1));
    let flat = SamplingParams { temperature: 2.0, top_p: 0.9, ..SamplingParams::default() };
    assert_eq!(sampler(flat).sample(&mut [f32::MIN, f32::MAX, 0.0], &no_history()), Ok(1));
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
        let greedy = sampler(SamplingParams::greedy()).sample(&mut row.clone(), &no_history()).unwrap();
        let base = SamplingParams { temperature, seed: Some(seed), ..SamplingParams::default() };
        for params in [SamplingParams { top_k: 1, ..base.clone() }, SamplingParams { top_p: 1e-9, ..base }] {
            prop_assert_eq!(sampler(params).sample(&mut row.clone(), &no_history()).unwrap(), greedy);
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
            let token = sampler.sample(&mut row.clone(), &no_history()).unwrap();
            prop_assert!(expected[token as usize] > 0.0, "token {} has no probability", token);
        }
    }

    #[test]
    fn a_uniform_number_picks_the_token_whose_share_it_falls_in(
        weights in proptest::collection::vec(prop_oneof![Just(0.0f32), 1e-6f32..1.0], 1..50), uniform in 0.0f64..1.0,
    ) {
        match draw(&weights, uniform) {
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
