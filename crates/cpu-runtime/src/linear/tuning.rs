//! How products are cut up for the caches: defaults, and a bounded search for better ones by shape.
//!
//! No choice here can be seen in a result: sums have one order whatever the cut.

use super::{Job, RawWeights, WeightLayout, amx, run_jobs};
use crate::element::ElementType;
use crate::error::KernelError;
use crate::isa::Isa;
use crate::memory::{Buffer, Workspace};
use crate::team::Team;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The cut of one shape of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuning {
    /// Weight bytes of a unit where few rows of x pass over them once: small enough to be shared out evenly.
    pub(crate) stream_bytes: usize,
    /// Bytes before their use at which AMX asks for a stream of tiled weights.
    pub(crate) ahead: usize,
    /// Weight bytes of a unit where many rows pass over them again and again, in vector registers: half of a small
    /// second-level cache.
    pub(crate) cached_bytes: usize,
    /// The same for AMX, in rows of w.
    pub(crate) unit_columns: usize,
    /// Tiles along K after which AMX takes the next columns, where rows are many. Two tiles of x of that depth, which all
    /// columns of a unit are multiplied with, and two of weights should fit the first-level cache.
    pub(crate) run: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { stream_bytes: 256 << 10, ahead: 8 << 10, cached_bytes: 512 << 10, unit_columns: 256, run: 8 }
    }
}

/// What two products must have in common to be cut alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    element: ElementType,
    layout: WeightLayout,
    rows: usize,
    columns: usize,
}

impl Shape {
    pub(crate) fn of(w: &RawWeights) -> Self {
        Self { element: w.element, layout: w.layout, rows: w.rows, columns: w.columns }
    }

    /// A name that is the same in every process.
    pub(crate) fn key(&self, isa: Isa, threads: usize) -> String {
        let Self { element, layout, rows, columns } = self;
        format!("linear {isa} {element:?} {layout:?} {rows}x{columns}, {threads} threads")
    }
}

impl Tuning {
    /// As numbers, to be kept.
    pub(crate) fn to_numbers(self) -> Vec<u32> {
        let Self { stream_bytes, ahead, cached_bytes, unit_columns, run } = self;
        [stream_bytes, ahead, cached_bytes, unit_columns, run].map(|number| u32::try_from(number).unwrap_or(0)).to_vec()
    }

    /// From numbers that were kept, if they are of a cut that a search could have found: whoever wrote them, nothing else is
    /// followed.
    pub(crate) fn from_numbers(numbers: &[u32]) -> Option<Self> {
        let &[stream_bytes, ahead, cached_bytes, unit_columns, run] = numbers else { return None };
        let [stream_bytes, ahead, cached_bytes, unit_columns, run] =
            [stream_bytes, ahead, cached_bytes, unit_columns, run].map(|number| number as usize);
        let found = Self { stream_bytes, ahead, cached_bytes, unit_columns, run };
        let known = STREAM_BYTES.contains(&stream_bytes)
            && AHEAD.contains(&ahead)
            && CACHED_BYTES.contains(&cached_bytes)
            && BLOCKS.contains(&(unit_columns, run));
        known.then_some(found)
    }
}

/// The cuts that a search found, by shape.
#[derive(Debug, Default)]
pub(crate) struct Tunings(HashMap<Shape, Tuning>);

impl Tunings {
    /// The cut of products with these weights.
    pub(crate) fn of(&self, w: &RawWeights) -> Tuning {
        self.0.get(&Shape::of(w)).copied().unwrap_or_default()
    }

    /// Remembers what was found.
    pub(crate) fn insert(&mut self, shape: Shape, tuning: Tuning) {
        self.0.insert(shape, tuning);
    }
}

const STREAM_BYTES: [usize; 3] = [256 << 10, 128 << 10, 512 << 10];
const AHEAD: [usize; 3] = [8 << 10, 4 << 10, 16 << 10];
const CACHED_BYTES: [usize; 3] = [512 << 10, 256 << 10, 1 << 20];
/// Columns of a unit and tiles of a run.
const BLOCKS: [(usize, usize); 4] = [(256, 8), (128, 16), (256, 64), (128, 64)];

/// Weights that a measurement reads: a part, if there are more.
const MEASURED_BYTES: usize = 24 << 20;
/// Rows of x where they are many.
const MANY_ROWS: usize = 96;
/// Times that each cut is measured; the fastest counts.
const REPETITIONS: usize = 3;
/// How much faster than the best so far a cut must be to replace it: less is noise.
const GAIN: f64 = 0.97;

/// Finds the cut for some weights by measuring one choice after the other, for one row of x and for many, as long as
/// `deadline` is not reached. The order is fixed and the defaults come first, so without time it gives the defaults.
///
/// # Safety
/// The weights must be readable.
///
/// # Errors
/// [`KernelError`] if there is no memory for operands and scratch.
pub(crate) unsafe fn search(
    team: &Team,
    workspace: &mut Workspace,
    isa: Isa,
    w: &RawWeights,
    deadline: Option<Instant>,
) -> Result<Tuning, KernelError> {
    let rows = (MEASURED_BYTES / w.row_bytes().max(1)).clamp(1, w.rows);
    let weights = RawWeights { rows, ..*w };
    let x = Buffer::new(MANY_ROWS * w.row_bytes())?;
    let mut y = Buffer::new(MANY_ROWS * rows * size_of::<f32>())?;
    let y = y.bytes_mut().as_mut_ptr();
    let job = |tuning| Job { isa, x: x.bytes().as_ptr(), weights, scale: 1.0, y, output: ElementType::F32, tuning };
    let mut measure = |tuning: Tuning, rows: usize| -> Result<Duration, KernelError> {
        let job = job(tuning);
        workspace.reserve(team.threads(), job.scratch_bytes(team.threads())?)?;
        let scratch = workspace.scratch();
        let mut best = Duration::MAX;
        for _ in 0..REPETITIONS {
            let begin = Instant::now();
            team.run(|worker| {
                // SAFETY: the caller vouches for the weights; x and y have the rows; scratch was reserved, and each member
                // asks for its own.
                unsafe { run_jobs(&[job], rows, worker, scratch.part(worker.index())) };
            });
            best = best.min(begin.elapsed());
        }
        Ok(best)
    };
    let mut best = Tuning::default();
    let tiles = amx::multiplies(isa, w.element);
    for (rows, candidates) in [(1, few as fn(Tuning, bool) -> Vec<Tuning>), (MANY_ROWS, many)] {
        let mut time = measure(best, rows)?;
        for candidate in candidates(best, tiles) {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(best);
            }
            let found = measure(candidate, rows)?;
            if found.as_secs_f64() < time.as_secs_f64() * GAIN {
                (best, time) = (candidate, found);
            }
        }
    }
    Ok(best)
}

/// What is tried for few rows.
fn few(start: Tuning, tiles: bool) -> Vec<Tuning> {
    let streams = STREAM_BYTES.into_iter().skip(1).map(|stream_bytes| Tuning { stream_bytes, ..start });
    let ahead = AHEAD.into_iter().skip(1).map(|ahead| Tuning { ahead, ..start });
    if tiles { streams.chain(ahead).collect() } else { streams.collect() }
}

/// What is tried for many.
fn many(start: Tuning, tiles: bool) -> Vec<Tuning> {
    if tiles {
        BLOCKS.into_iter().skip(1).map(|(unit_columns, run)| Tuning { unit_columns, run, ..start }).collect()
    } else {
        CACHED_BYTES.into_iter().skip(1).map(|cached_bytes| Tuning { cached_bytes, ..start }).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::linear::{Linear, TileHeight, Weights, linear, repack, tiled_bytes};
    use crate::testing::{ELEMENTS, poisoned, random, random_elements};

    #[test]
    fn every_cut_gives_the_same_bits() {
        let mut random = random();
        let team = Team::new(2).unwrap();
        let (rows, columns, depth) = (70, 90, 700);
        for element in ELEMENTS {
            let (x, _) = random_elements(&mut random, element, rows * depth);
            let (w, _) = random_elements(&mut random, element, columns * depth);
            let source = Weights::new(&w, element, WeightLayout::Rows, columns, depth).unwrap();
            for isa in Isa::available() {
                let height = TileHeight::of(isa, element);
                let mut tiled = poisoned(tiled_bytes(element, height, columns, depth).unwrap());
                repack(&team, &source, height, &mut tiled).unwrap();
                let tiled = Weights::new(&tiled, element, WeightLayout::Tiled(height), columns, depth).unwrap();
                for rows in [1, rows] {
                    let row_bytes = depth * element.bytes();
                    let mut expected = poisoned(rows * columns * 4);
                    let product = Linear {
                        isa,
                        x: &x[..rows * row_bytes],
                        rows,
                        weights: source,
                        scale: 1.0,
                        output: ElementType::F32,
                    };
                    linear(&team, &product, &mut expected, &mut Workspace::default()).unwrap();
                    let tiles = amx::multiplies(isa, element);
                    let cuts = [few(Tuning::default(), tiles), many(Tuning::default(), tiles)].concat();
                    assert!(!cuts.is_empty());
                    for tuning in cuts {
                        assert_eq!(Tuning::from_numbers(&tuning.to_numbers()), Some(tuning));
                        let mut y = poisoned(rows * columns * 4);
                        let (x, y_begin) = (x.as_ptr(), y.as_mut_ptr());
                        let (weights, output) = (tiled.raw(), ElementType::F32);
                        let job = Job { isa, x, weights, scale: 1.0, y: y_begin, output, tuning };
                        let mut workspace = Workspace::default();
                        workspace.reserve(2, job.scratch_bytes(2).unwrap()).unwrap();
                        let scratch = workspace.scratch();
                        // SAFETY: x, w and y have the shapes, and scratch was reserved.
                        team.run(|worker| unsafe {
                            run_jobs(&[job], rows, worker, scratch.part(worker.index()));
                        });
                        assert!(y == expected, "{isa} {element:?} {rows} rows, {tuning:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_search_without_time_gives_the_defaults_and_numbers_of_no_search_are_refused() {
        let team = Team::new(1).unwrap();
        let w = vec![0u8; 64 * 128 * 2];
        let weights = Weights::new(&w, ElementType::Bf16, WeightLayout::Rows, 64, 128).unwrap();
        let mut workspace = Workspace::default();
        for isa in Isa::available() {
            // SAFETY: the weights are borrowed.
            let found = unsafe { search(&team, &mut workspace, isa, &weights.raw(), Some(Instant::now())) };
            assert_eq!(found.unwrap(), Tuning::default());
        }
        for numbers in [&[][..], &[1, 2, 3, 4, 5], &[262_144, 8192, 524_288, 256, 0], &[262_144, 8192, 524_288, 256]] {
            assert_eq!(Tuning::from_numbers(numbers), None);
        }
    }
}
