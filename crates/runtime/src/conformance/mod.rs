//! The suite that every device must pass: operations, groups, plans and recordings, against the reference evaluator and against
//! the device itself, bit for bit. It is compiled with the feature `conformance` only, for the tests of devices.
//!
//! A device's tests say by a [`Subject`] how to open it, and run [`all`], or the parts by themselves:
//!
//! | part | what must hold |
//! |---|---|
//! | [`row_operations`] | each operation is the reference's, within steps of rounding |
//! | [`chains`] | random graphs of row operations and products have the same bits in any groups and places |
//! | [`projections`] | products are the reference's, and have the same bits fused or not, alone or in company |
//! | [`attention`] | attention is the reference's, and has the same bits fused or not, in chunks or whole |
//! | [`decoders`] | small decoders have the same bits after each pass and after all, launched and recorded |
//! | [`recordings`] | a replay does what the launches would do now, and nothing beyond its rows |
//! | [`sampling`] | chosen tokens are the likeliest, or those that a seed gives, in any company |
//! | [`misuse`] | what can't be done is an error |
//!
//! Every part draws fresh numbers, runs over memory that holds what no kernel would write, and panics at the first thing that is
//! wrong, naming it. What was done is printed and given back as a [`Report`].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a test suite")]

mod attention;
pub mod batches;
pub mod chains;
mod decoders;
pub mod graphs;
mod misuse;
mod projections;
mod recordings;
mod report;
mod row_operations;
mod runner;
mod sampling;
mod suite;
mod weights;

use std::hash::{BuildHasher, RandomState};

use allotrope_graph::DType;
use rand::SeedableRng;
pub use rand_chacha::ChaCha8Rng;

use crate::device::Device;
pub use attention::attention;
pub use chains::chains;
pub use decoders::decoders;
pub use misuse::misuse;
pub use projections::projections;
pub use recordings::recordings;
pub use report::Report;
pub use row_operations::row_operations;
pub use runner::{Overwriting, Runner, Setup};
pub use sampling::sampling;
pub use weights::{Change, Weights};

/// How much the suite does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Every case once at small sizes, for devices that are emulated: some ten thousand products and sums in most cases.
    Small,
    /// More random graphs, and the sizes that real models have.
    Full,
}

impl Effort {
    /// One of two choices.
    pub(crate) fn pick<T>(self, small: T, full: T) -> T {
        match self {
            Effort::Small => small,
            Effort::Full => full,
        }
    }
}

/// How the suite gets devices, and what it knows of them.
pub trait Subject {
    /// The device.
    type Device: Device;

    /// What failures and reports call the device.
    fn name(&self) -> String;

    /// A fresh device. `variant` is below [`Subject::variants`].
    fn open(&self, variant: usize) -> Self::Device;

    /// In how many ways the device can be opened that must all give the same bits, such as numbers of threads.
    fn variants(&self) -> usize {
        1
    }

    /// Which weight layouts there are: as the source has them (`false`), repacked (`true`). All must give the same bits.
    fn layouts(&self) -> &[bool] {
        &[false, true]
    }

    /// How much is done.
    fn effort(&self) -> Effort {
        Effort::Full
    }

    /// Fills the arena and the KV caches, which were just allocated, with `0xff` (not a number in every element type), and gives
    /// true. Where it gives false, as by default, the suite runs a step with weights that are not numbers instead, which takes
    /// longer and leaves out what no launch writes.
    fn poison(&self, _device: &mut Self::Device) -> bool {
        false
    }

    /// Whether the norm of a head has the bits of the norm of a row of the head's width. Where it is summed in another order, it
    /// has not; no pass makes one of the other.
    fn heads_are_rows(&self) -> bool {
        true
    }

    /// How far a product of `inner` terms may be from the reference before it is rounded to its type, as a part of the sum of the
    /// terms' magnitudes. By default what sums in `f32` keep to in any order, if they are not all in one chain of thousands.
    fn sum_tolerance(&self, _operands: DType, inner: usize) -> f64 {
        (16.0 + (inner as f64).sqrt()) * 2f64.powi(-23)
    }
}

/// A generator with a fresh seed, which is printed.
pub fn random() -> ChaCha8Rng {
    let seed = RandomState::new().hash_one(std::time::SystemTime::now());
    println!("seed: {seed}");
    ChaCha8Rng::seed_from_u64(seed)
}

/// Runs the whole suite.
pub fn all<S: Subject>(subject: &S, random: &mut ChaCha8Rng) -> Report {
    let parts: [fn(&S, &mut ChaCha8Rng) -> Report; 8] =
        [row_operations, chains, projections, attention, decoders, recordings, sampling, misuse];
    let mut report = Report::default();
    for part in parts {
        report.add(part(subject, random));
    }
    println!("{}: all: {report}", subject.name());
    report
}
