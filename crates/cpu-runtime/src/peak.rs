//! The measurement of what the arithmetic can do: the ceiling of everything that multiplies more than it reads.

use crate::element::ElementType;
use crate::isa::{Isa, Task};
use crate::linear::amx;
use crate::simd::{BLOCK_BYTES, Dot, Simd};
use crate::team::Team;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a round must take at least, so that starting the team does not count.
const ROUND: Duration = Duration::from_millis(4);
/// Rounds of each count of sums; the best of all is the peak.
const ROUNDS: usize = 6;
/// Elements of one stored block: bfloat16 is what is multiplied.
const ELEMENTS: usize = BLOCK_BYTES / 2;

/// Multiplies and adds bfloat16 operands that stay in registers, on all threads of `team`, as the dot products of the path
/// `isa` do, and returns floating-point operations per second: one multiplication and one addition for each pair of
/// elements. Best of several rounds of a few milliseconds, in vector registers with 4, 8, 12 and 24 independent sums, since how
/// many hide the latency is the processor's affair, and on [`Isa::Amx`] with four tiles of sums.
pub fn measure_dot_product_peak(team: &Team, isa: Isa) -> f64 {
    if isa.is_available() && amx::multiplies(isa, ElementType::Bf16) {
        return best_round(team, amx::multiply_in_registers);
    }
    let rounds = [vectors::<4>, vectors::<8>, vectors::<12>, vectors::<24>];
    rounds.into_iter().map(|round| best_round(team, |steps| round(isa, steps))).fold(0.0, f64::max)
}

/// The best of some rounds of `work`, which takes a number of steps and gives its operations, in operations per second.
fn best_round(team: &Team, work: impl Fn(usize) -> usize + Sync) -> f64 {
    let mut steps = 1 << 10;
    let mut best = 0.0f64;
    let mut rounds = 0;
    while rounds < ROUNDS {
        let operations = AtomicUsize::new(0);
        let begin = Instant::now();
        team.run(|_| {
            operations.fetch_add(work(steps), Ordering::Relaxed);
        });
        let time = begin.elapsed();
        if time < ROUND {
            steps *= 2;
            continue;
        }
        best = best.max(operations.into_inner() as f64 / time.as_secs_f64());
        rounds += 1;
    }
    best
}

/// Some steps with so many sums; gives the operations.
fn vectors<const SUMS: usize>(isa: Isa, steps: usize) -> usize {
    black_box(isa.dispatch(Products::<SUMS> { steps }));
    2 * ELEMENTS * SUMS * steps
}

/// Adds `steps` products of one block to each of some sums.
struct Products<const SUMS: usize> {
    steps: usize,
}

impl<const SUMS: usize> Task for Products<SUMS> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        // Ones: a sum stays a normal number however long it grows. Opaque, so that nothing is computed beforehand.
        let ones = black_box([0x3f80u16; ELEMENTS]);
        // SAFETY: the path's features are present inside `dispatch`; the array is one stored block.
        unsafe {
            let block = S::Bf16::unpack(ones.as_ptr().cast());
            let mut sums = [S::Bf16::zero(); SUMS];
            for _ in 0..self.steps {
                for part in 0..S::Bf16::PARTS {
                    for sum in &mut sums {
                        *sum = S::Bf16::multiply_add(*sum, block[part], block[part]);
                    }
                }
            }
            sums.into_iter()
                .map(|sum| S::Bf16::reduce([sum, S::Bf16::zero(), S::Bf16::zero(), S::Bf16::zero()])[0])
                .sum()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_product_is_computed() {
        for isa in Isa::available() {
            // 3 sums of 5 blocks of ones.
            let total = isa.dispatch(Products::<3> { steps: 5 });
            assert_eq!(total, (3 * 5 * ELEMENTS) as f32, "{isa}");
        }
    }

    #[test]
    #[allow(clippy::unwrap_used, reason = "a test")]
    fn the_peak_is_a_speed_on_every_path() {
        let team = Team::new(2).unwrap();
        for isa in Isa::available() {
            let peak = measure_dot_product_peak(&team, isa);
            assert!(peak.is_finite() && peak > 0.0, "{isa}: {peak}");
        }
    }
}
