//! Element types: random values, bytes, and how a number is rounded.

use allotrope_cuda_emulator::machine::Random;
use allotrope_graph::numerics::{e4m3_to_f32, f32_to_e4m3};
use half::{bf16, f16};

use super::common::{Format, uniform};

/// An element type, with its code in parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F32 = 0,
    F16 = 1,
    Bf16 = 2,
    E4m3 = 3,
}

use Element::{Bf16, E4m3, F16, F32};

pub(crate) const ELEMENTS: [Element; 4] = [F32, F16, Bf16, E4m3];

impl Element {
    /// The type that a kernel is named after.
    pub(crate) fn of(kernel: &str) -> Self {
        let named = [("e4m3", E4m3), ("bf16", Bf16), ("f16", F16), ("f32", F32)];
        named.into_iter().find(|(name, _)| kernel.contains(name)).expect("a kernel is named after its type").1
    }

    pub(crate) fn format(self) -> Format {
        match self {
            F32 => Format::F32,
            F16 => Format::F16,
            Bf16 => Format::Bf16,
            E4m3 => Format::E4m3,
        }
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            F32 => 4,
            F16 | Bf16 => 2,
            E4m3 => 1,
        }
    }

    /// Rounds to the type and stores.
    pub(crate) fn encode(self, value: f32) -> Vec<u8> {
        match self {
            F32 => value.to_le_bytes().to_vec(),
            F16 => f16::from_f32(value).to_le_bytes().to_vec(),
            Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
            E4m3 => vec![f32_to_e4m3(value)],
        }
    }

    pub(crate) fn encode_all(self, values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| self.encode(*value)).collect()
    }

    pub(crate) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let one = |bytes: &[u8]| match self {
            F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
            F16 => f16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
            Bf16 => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
            E4m3 => e4m3_to_f32(bytes[0]),
        };
        bytes.chunks_exact(self.bytes()).map(one).collect()
    }

    /// Random numbers between -1 and 1 that the type has.
    pub(crate) fn random(self, random: &mut Random, count: usize) -> Vec<f32> {
        self.decode(&self.encode_all(&uniform(random, count)))
    }

    /// Whether a number is what another one rounds to that is at most so far from an expected one.
    pub(crate) fn is_near(self, got: f32, expected: f64, distance: f64) -> bool {
        if expected.is_nan() {
            return got.is_nan();
        }
        let round = |value: f64| self.decode(&self.encode(value as f32))[0];
        // An infinite number is at no distance.
        let distance = if expected.is_finite() { distance } else { 0.0 };
        round(expected - distance) <= got && got <= round(expected + distance)
    }

    /// How far a number may be from what it was rounded from.
    pub(crate) fn rounding(self, value: f64) -> f64 {
        let (relative, least) = match self {
            F32 => (-24, -150),
            F16 => (-11, -25),
            Bf16 => (-8, -134),
            E4m3 => (-4, -10),
        };
        (value.abs() * 2f64.powi(relative)).max(2f64.powi(least))
    }
}

/// A number between two, both included.
pub(crate) fn between(random: &mut Random, least: usize, most: usize) -> usize {
    least + random.below(most - least + 1)
}
