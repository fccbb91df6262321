//! When requests are sent: gaps from a gamma distribution.

use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// The moments, from the beginning, at which `count` requests are sent at `rate` per second.
///
/// The moments are stretched so that the last one is where the rate says, whatever the gaps came to; an infinite rate sends
/// all at once. A `burstiness` of 1 is a Poisson process.
pub(super) fn arrivals(count: usize, rate: f64, burstiness: f64, random: &mut ChaCha8Rng) -> Vec<Duration> {
    if rate.is_infinite() {
        return vec![Duration::ZERO; count];
    }
    let mut moment = 0.0;
    let moments: Vec<f64> = (0..count)
        .map(|_| {
            moment += gamma(burstiness, random);
            moment
        })
        .collect();
    let stretch = if moment > 0.0 { count as f64 / rate / moment } else { 0.0 };
    moments.iter().map(|moment| Duration::try_from_secs_f64(moment * stretch).unwrap_or(Duration::MAX)).collect()
}

/// A number between 0 and 1, neither of them included.
fn uniform(random: &mut ChaCha8Rng) -> f64 {
    const STEPS: f64 = (1_u64 << 53) as f64;
    ((random.next_u64() >> 11) as f64 + 0.5) / STEPS
}

/// A number of the normal distribution, by the method of Box and Muller.
fn normal(random: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * uniform(random).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(random)).cos()
}

/// A number of the gamma distribution of this shape, by the method of Marsaglia and Tsang. A shape below 1 is reduced to
/// the one above it.
fn gamma(shape: f64, random: &mut ChaCha8Rng) -> f64 {
    if shape < 1.0 {
        return gamma(shape + 1.0, random) * uniform(random).powf(1.0 / shape);
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(random);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && uniform(random).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn random() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(0)
    }

    #[test]
    fn gamma_has_the_mean_and_the_variance_of_its_shape() {
        for shape in [0.3, 1.0, 4.0] {
            let mut random = random();
            let numbers: Vec<f64> = (0..20_000).map(|_| gamma(shape, &mut random)).collect();
            let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
            let variance = numbers.iter().map(|number| (number - mean).powi(2)).sum::<f64>() / numbers.len() as f64;
            assert!((mean / shape - 1.0).abs() < 0.05, "mean {mean} of shape {shape}");
            assert!((variance / shape - 1.0).abs() < 0.1, "variance {variance} of shape {shape}");
        }
    }

    #[test]
    fn arrivals_are_in_order_and_end_where_the_rate_says() {
        let moments = arrivals(100, 50.0, 1.0, &mut random());
        assert!(moments.is_sorted());
        assert!((moments[99].as_secs_f64() - 2.0).abs() < 1e-6, "{:?}", moments[99]);
        let even = arrivals(100, 50.0, 1e6, &mut random());
        let gaps: Vec<f64> = even.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        assert!(gaps.iter().all(|gap| (gap - 0.02).abs() < 0.001), "nearly constant: {gaps:?}");
        assert_eq!(arrivals(3, f64::INFINITY, 1.0, &mut random()), [Duration::ZERO; 3]);
    }

    #[test]
    fn rates_at_the_ends_of_what_numbers_can_say_are_no_trouble() {
        for (rate, burstiness) in [(1e-300, 1.0), (1e300, 1.0), (1.0, 1e-300), (1.0, 1e300), (5e-324, 5e-324)] {
            assert_eq!(arrivals(3, rate, burstiness, &mut random()).len(), 3, "{rate} {burstiness}");
        }
    }
}
