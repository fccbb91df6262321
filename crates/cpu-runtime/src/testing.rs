//! What the tests of several kernels share: random inputs with printed seeds, and conversions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "test support")]

use crate::element::{ElementType, to_bf16, to_e4m3, to_f16};
use crate::simd::E4M3_VALUES;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::hash::{BuildHasher, RandomState};

/// All element types.
pub(crate) const ELEMENTS: [ElementType; 4] =
    [ElementType::Bf16, ElementType::F16, ElementType::F32, ElementType::F8E4M3];

/// A generator with a fresh seed, which a failing test prints.
pub(crate) fn random() -> ChaCha8Rng {
    let seed = RandomState::new().hash_one(std::time::SystemTime::now());
    println!("seed: {seed}");
    ChaCha8Rng::seed_from_u64(seed)
}

/// `count` numbers, evenly spread over -1..1.
pub(crate) fn values(random: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.random::<f32>() * 2.0 - 1.0).collect()
}

/// Numbers rounded to `element`, as bytes.
pub(crate) fn encode(element: ElementType, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() * element.bytes());
    for &value in values {
        match element {
            ElementType::Bf16 => bytes.extend(to_bf16(value).to_le_bytes()),
            ElementType::F16 => bytes.extend(to_f16(value).to_le_bytes()),
            ElementType::F32 => bytes.extend(value.to_le_bytes()),
            ElementType::F8E4M3 => bytes.push(to_e4m3(value)),
        }
    }
    bytes
}

/// The numbers in `bytes`.
pub(crate) fn decode(element: ElementType, bytes: &[u8]) -> Vec<f32> {
    match element {
        ElementType::Bf16 => bytes.as_chunks::<2>().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        ElementType::F16 => bytes.as_chunks::<2>().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect(),
        ElementType::F32 => bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        ElementType::F8E4M3 => bytes.iter().map(|&b| E4M3_VALUES[usize::from(b)]).collect(),
    }
}

/// Random numbers of `element` as bytes and as what they are after rounding.
pub(crate) fn random_elements(random: &mut ChaCha8Rng, element: ElementType, count: usize) -> (Vec<u8>, Vec<f32>) {
    let bytes = encode(element, &values(random, count));
    let rounded = decode(element, &bytes);
    (bytes, rounded)
}

/// A buffer that no kernel would write: NaN in every element type.
pub(crate) fn poisoned(bytes: usize) -> Vec<u8> {
    vec![0xff; bytes]
}

/// Checks `found` against `expected` with an absolute tolerance for each element.
#[track_caller]
pub(crate) fn assert_close(found: &[f32], expected: &[f64], tolerance: impl Fn(usize) -> f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (&f, &e)) in found.iter().zip(expected).enumerate() {
        let (error, tolerance) = ((f64::from(f) - e).abs(), tolerance(index));
        assert!(error <= tolerance, "{what}: element {index} is {f}, expected {e}: error {error} above {tolerance}");
    }
}
